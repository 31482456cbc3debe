"""Running a host of the matrix, plain or with the library preloaded, and keeping what it answered and wrote."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
TARGET = TOP / "target"
OUT = TARGET / "matrix"
MODEL = TARGET / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
PINNED = TARGET / "llama.cpp/bin"
LIBRARY = Path(os.environ.get("LRI_LIBRARY", TARGET / "release/libllama_resource_instrumentation.so")).resolve()
PROGRAM = Path(os.environ.get("LRI_PROGRAM", TARGET / "release/llama-resource")).resolve()
TOKENS = 16
SELECTION = "residual,logits"
TIME_LIMIT_S = 120  # a host may take
HEALTHY_WITHIN_S = 60
ENDS_WITHIN_S = 30


class Skip(Exception):
    """This entry cannot run on this machine."""


class Failed(Exception):
    """The host itself did not run without us, so that there is nothing to check."""


class Died(Exception):
    """The host did not end in order."""


def fetch(name):
    got = subprocess.run([str(HERE / "fetch.sh"), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = re.sub(r"\x1b\[[0-9;]*m", "", got.stderr).strip()
    if got.returncode == 3:
        raise Skip(said)
    if got.returncode:
        raise Failed(f"fetch.sh {name}: {said[-500:]}")
    if said:
        print(said, file=sys.stderr)
    return Path(got.stdout.strip())


class Run:
    """One run of a host: what it answered, what it wrote, log and stream if it was preloaded."""

    def __init__(self, entry, preloaded):
        self.dir = OUT / re.sub(r"[^a-z0-9.]+", "-", entry.lower()) / ("preloaded" if preloaded else "plain")
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.preloaded, self.requests, self.whole, self.death = preloaded, [], None, None
        self.log_path, self.stream_path = self.dir / "log.jsonl", self.dir / "acts.stream"

    def environment(self, extra):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_")) and k not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
        # OpenMP's threads spin at barriers by default: with another program on the second core a run takes a hundred times longer.
        env["OMP_WAIT_POLICY"] = "passive"
        if self.preloaded:
            env |= {"LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_LEVEL": "DETAILED", "LLAMA_RESOURCE_LOG_PATH": str(self.log_path),
                    "LLAMA_RESOURCE_LOG_RATE": "unlimited",  # every event is there to be counted
                    "LLAMA_RESOURCE_CAPTURE": str(self.stream_path), "LLAMA_RESOURCE_TENSORS": SELECTION}
        else:
            extra = {k: v for k, v in extra.items() if not k.startswith("LLAMA_RESOURCE_")}
        return env | {k: str(v) for k, v in extra.items()}

    def start(self, command, extra, cwd):
        with open(self.dir / "stdout", "wb") as out, open(self.dir / "stderr", "wb") as err:
            return subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd or self.dir,
                                    env=self.environment(extra), start_new_session=True)

    def finish(self, process, limit_s=TIME_LIMIT_S):
        """Waits for the host's end; anything but an orderly one raises."""
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Died(f"the host was still running after {limit_s} s") from None
        finally:
            end(process)
        if status:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            raise Died(f"the host {how}; its last words: {' | '.join(self.stderr.splitlines()[-3:])[-300:] or 'none'}")

    @property
    def stderr(self):
        return (self.dir / "stderr").read_text(errors="replace")

    @property
    def said(self):
        """All that it wrote: a router passes on what its children say."""
        return self.stderr + (self.dir / "stdout").read_text(errors="replace")

    def ours(self):
        """Our lines on the host's stderr."""
        return [l for l in self.stderr.splitlines() if l.startswith("llama-resource: ")]

    def logs(self):
        """Its logs: one, or one a process where the path has a %p."""
        return sorted(self.dir.glob("log*.jsonl"))

    def streams(self):
        return sorted(self.dir.glob("acts*.stream"))


def end(process):
    """Whatever is left of the host's process group: children outlive a parent that was killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def program(command, extra=None, cwd=None):
    """A host that prints its answer as the last line of its output and ends."""
    def go(run):
        run.finish(run.start(command() if callable(command) else command, extra or {}, cwd))
        lines = (run.dir / "stdout").read_text(errors="replace").splitlines()
        try:
            run.whole = json.loads(lines[-1])
            run.requests = run.whole["requests"]
        except (IndexError, ValueError, KeyError):
            raise Died(f"the host printed no answer; see {run.dir}") from None
    return go


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port, method, path, body=None):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=TIME_LIMIT_S)
    try:
        c.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        r = c.getresponse()
        return r.status, r.read()
    finally:
        c.close()


LONG = " ".join(f"Item {i} is number {i * 7}." for i in range(12))  # longer than -b, so that its prompt takes several calls
PROMPTS = ["The capital of France is", "The capital of Italy is", "Once upon a time there was a little robot who", LONG, LONG + " Item"]
SERVER_OPTIONS = ["-c", 1024, "-t", 2, "-tb", 2, "-b", 64, "-ub", 32, "-np", 2, "-lv", 4, "--no-webui", "--offline", "--host", "127.0.0.1"]


def llama_answer(body):
    t = body["timings"]  # llama-server's own counts
    return {"prompt_tokens": t["cache_n"] + t["prompt_n"], "cached_tokens": t["cache_n"], "generated_tokens": t["predicted_n"],
            "text": body["content"]}


def served(command, answer, ready="/health", path="/completion", prompts=PROMPTS, asked=None, extra=None, cwd=None):
    """A host that serves: `command(port)` starts it, a few requests one after another (the rows of a batch with several sequences may
    round differently), then SIGTERM."""
    def go(run):
        port = free_port()
        process = run.start(command(port), extra or {}, cwd)
        try:
            deadline = time.monotonic() + HEALTHY_WITHIN_S
            while True:
                if process.poll() is not None:
                    run.finish(process)
                    raise Died("the server ended by itself")
                try:
                    if ask(port, "GET", ready)[0] == 200:
                        break
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    raise Died(f"the server was not healthy after {HEALTHY_WITHIN_S} s")
                time.sleep(0.05)
            for prompt in prompts:
                try:
                    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "cache_prompt": True, **(asked or {})}
                    status, body = ask(port, "POST", path, body)
                except OSError as e:
                    if process.poll() is not None:
                        run.finish(process)
                    raise Died(f"no answer to a completion ({e})") from None
                if status != 200:
                    raise Died(f"a completion got status {status}: {body[:200]}")
                run.requests.append(answer(json.loads(body)))
            run.whole = {"requests": run.requests}
            process.send_signal(signal.SIGTERM)
            run.finish(process, ENDS_WITHIN_S)
        finally:
            end(process)
    return go


def llama_server(server, options=(), cwd=None, extra=None):
    command = server if isinstance(server, list) else [server]
    return served(lambda port: [*command, "-m", MODEL, *SERVER_OPTIONS, "--port", port, *options], llama_answer, cwd=cwd, extra=extra)
