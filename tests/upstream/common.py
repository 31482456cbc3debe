"""What the judges of this folder share: paths, environments, a run of a program, and what must hold of a log and a capture."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests/server"), str(TOP / "tests/models")]
import capture  # noqa: E402 (needs the path above)
import make_tiny  # noqa: E402
from server import LIBRARY, read_log  # noqa: E402

TARGET = TOP / "target"
PROGRAMS = TARGET / "upstream-bin"
PINNED = TARGET / "llama.cpp/bin"
SOURCE = TOP / "llama.cpp"
SMOLLM2 = TARGET / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY_MODELS = TARGET / "tiny-models"
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

# Reasons of the account that are a loss under the policy `block`; whatever is dropped is one, too.
LOSSES = {"unread"}


def tiny(name):
    return make_tiny.make(name, TINY_MODELS)


@dataclass
class Mode:
    """How a program is run: plain, or with the library preloaded and these settings of it."""
    name: str
    settings: dict = field(default_factory=dict)
    preload: bool = True

    @property
    def captures(self):
        return "tensors" in self.settings


PLAIN, AGAIN = Mode("plain", preload=False), Mode("plain-again", preload=False)
DETAILED = Mode("detailed", {"log_level": "DETAILED"})
VERBOSE = Mode("verbose", {"log_level": "VERBOSE"})
# Programs that the host starts (the router's servers, tools) are recorded too.
CAPTURE = Mode("capture", {"log_level": "VERBOSE", "tensors": "FULL_TENSOR", "codec": "lz4", "follow_children": "1"})


def environment(mode, folder, extra=None):
    """The environment of a run in `mode` that writes its logs and streams into `folder`, one a process."""
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
    # OpenMP's threads spin at barriers by default: with another program on the second core a run takes a hundred times longer.
    env["OMP_WAIT_POLICY"] = "passive"
    if mode.preload:
        settings = {"log_path": folder / "log.%p.jsonl", **mode.settings}
        if mode.captures:
            settings = {"capture": folder / "acts.%p.stream", **settings}
        env |= {f"LLAMA_RESOURCE_{word.upper()}": str(value) for word, value in settings.items()}
        env["LD_PRELOAD"] = str(LIBRARY)
    return env | (extra or {})


@dataclass
class Ended:
    """What a program left: how it ended, what it said, how long it took, where it wrote."""
    status: object  # exit code, `killed by SIGNAL`, or `did not end`
    stdout: bytes
    stderr: str
    seconds: float
    folder: Path

    @property
    def ours(self):
        """Our lines on the host's stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("llama-resource: ")]


def run(command, mode, folder, limit, extra=None, stdin=b"", files=None):
    """Runs `command` in a new `folder`/files, where `files` (name -> content) lie, with logs and streams in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    for name, content in (files or {}).items():
        (folder / "files" / name).write_text(content)
    began = time.monotonic()
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=folder / "files",
                                   env=environment(mode, folder, extra), start_new_session=True, preexec_fn=_die_with_parent)
        try:
            process.communicate(stdin, timeout=limit)
            status = process.returncode if process.returncode >= 0 else f"killed by {signal.Signals(-process.returncode).name}"
        except subprocess.TimeoutExpired:
            status = "did not end"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ended(status, (folder / "stdout").read_bytes(), (folder / "stderr").read_text(errors="replace"), time.monotonic() - began, folder)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wrong_with_log(path):
    """What is wrong with a log, as a list of sentences."""
    try:
        events = read_log(path)
    except AssertionError as error:
        return [str(error)]
    wrong = []
    if not events or events[-1]["event"] != "resource_session_end":
        wrong.append(f"{path.name}: no resource_session_end: the log was cut short")
    wrong += [f"{path.name}: {event['component']}: {event['reason']}" for event in events
              if event["event"] == "instrumentation_state" and event["component"] == "internal" and event["state"] != "ok"]
    return wrong


def n_bytes(kind, name, data, metadata):
    """Bytes of the values of a tensor packet. By packets, since a host with several threads has its steps in the order of their end."""
    reader = capture.reader
    return reader.Packet(0, name, kind, 0, data, reader._tensor(reader.Metadata(metadata))).values().nbytes


def wrong_with_stream(path, contents=True):
    """(what is wrong with a stream, its account): the account adds up, the file holds what it says, nothing is lost."""
    if path.stat().st_size == 0:
        return [f"{path.name}: empty"], None
    try:
        said, clean = capture.account(path)
    except (IndexError, ValueError, AssertionError) as error:
        return [f"{path.name}: not readable: {error!r}"], None
    wrong = [] if clean else [f"{path.name}: no end packet"]
    try:
        capture.check_account(said)
    except AssertionError:
        wrong.append(f"{path.name}: captured + skipped + dropped is not seen: {json.dumps(said)}")
    if said.get("dropped"):
        wrong.append(f"{path.name}: dropped under block: {json.dumps(said['dropped'])}")
    wrong += [f"{path.name}: lost as {reason}: {json.dumps(entry)}" for reason, entry in said.get("skipped", {}).items() if reason in LOSSES]
    if contents:
        stored = sum(n_bytes(*packet) for packet in capture.packets(path) if packet[0] == "tensor")
        if stored != capture.total(said, "captured")[1]:
            wrong.append(f"{path.name}: the file holds {stored} bytes of values, its account says {capture.total(said, 'captured')[1]}")
    return wrong, said
