"""How many instructions the library adds to a decode step, counted under valgrind: unlike times, they are the same on
a busy machine.

A MOCK host (tests/host/mock_model.h) makes the calls of a SmolLM2-135M decode step without its arithmetic, on one
thread, so that all it counts beyond the plain host is the library's doing. `library` is our own code on the host's
thread, `host` what that thread executes more than the plain one's, libc on our behalf included; `all` is our code on
all threads until everything is written. The rate keeps steps out of the log but for `written`, and a mock step takes
25 ms, so that DETAILED times each one. With one core the host fills every core, and encodes rows itself while the
step runs; with a core to spare our threads do.

The counts stand in tests/data/instructions.json by compiler and architecture. A change of more than 2 % fails, of
more than 10 % where it depends on when other threads wake: on one core, and of `all`, which is compared for captures
only. If it is meant,

    UPDATE=1 target/venv/bin/python -m pytest -q tests/server/test_instructions.py

writes the new counts, and the commit says why they have changed. `host` is compared where libc is the same.
"""

import concurrent.futures
import json
import os
import platform
import re
import shutil
import subprocess

import pytest
from server import REPOSITORY

TABLE = REPOSITORY / "tests" / "data" / "instructions.json"
STEPS = 16
PROFILE = "CARGO_PROFILE_RELEASE_"

ORDINARY = {"LLAMA_RESOURCE_LOG_RATE": "1"}
CAPTURE = {**ORDINARY, "LLAMA_RESOURCE_CAPTURE": "acts.stream", "LLAMA_RESOURCE_LOG_LEVEL": "DETAILED",
           "LLAMA_RESOURCE_CODEC": "bounded"}
MODES = {
    "disabled": {"LLAMA_RESOURCE_DISABLED": "1"},
    "MINIMAL": {**ORDINARY, "LLAMA_RESOURCE_LOG_LEVEL": "MINIMAL"},
    "DETAILED": {**ORDINARY, "LLAMA_RESOURCE_LOG_LEVEL": "DETAILED"},
    "VERBOSE": {**ORDINARY, "LLAMA_RESOURCE_LOG_LEVEL": "VERBOSE"},
    "VERBOSE, written": {"LLAMA_RESOURCE_LOG_RATE": "unlimited", "LLAMA_RESOURCE_LOG_LEVEL": "VERBOSE"},
    "residual": {**CAPTURE, "LLAMA_RESOURCE_TENSORS": "residual"},
    "residual, one core": {**CAPTURE, "LLAMA_RESOURCE_TENSORS": "residual"},
    "FULL_TENSOR": {**CAPTURE, "LLAMA_RESOURCE_TENSORS": "FULL_TENSOR"},
    "FULL_TENSOR, one core": {**CAPTURE, "LLAMA_RESOURCE_TENSORS": "FULL_TENSOR"},
}
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def toolchain():
    """What counts belong to: another compiler makes other code."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed: instructions are not counted")
    if changed := [name for name in os.environ if name.startswith(PROFILE)]:
        pytest.skip(f"{changed[0]} is set: this is not the release profile that the counts are of")
    said = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    return f"rustc {said.split()[1]} {platform.machine()}"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The MOCK host, in a folder of its own."""
    folder, sources = tmp_path_factory.mktemp("instructions"), REPOSITORY / "tests" / "host"
    mock = ["-shared", "-fPIC", "-DMOCK_TOKENS", "-DMOCK_MODEL=30", sources / "mock_llama.cpp"]
    linked = [sources / "mock_host.cpp", f"-L{folder}", "-lllama", "-ldl", f"-Wl,-rpath,{folder}"]
    for out, what in ("libllama.so", mock), ("host", linked):
        subprocess.run(["c++", "-O2", "-g", "-o", folder / out, *what], check=True)
    return folder / "host"


def costs(path):
    """Thread and self cost by object of one of callgrind's files."""
    found, thread, inclusive, current = {}, None, False, None
    for line in path.read_text().splitlines():
        if line.startswith("thread:"):
            thread = int(line.split()[1])
        elif line.startswith("ob="):
            current = line[3:]
        elif line.startswith("calls="):
            inclusive = True  # of the next line: what was called counts there
        elif re.match(r"[\d+*-]", line):
            if not inclusive:
                found[current] = found.get(current, 0) + int(line.split()[1])
            inclusive = False
    return thread, found


def counted(host, library, folder, environment, cores):
    """All instructions of the host's thread, ours there, and ours on all threads, for a step."""
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_", "LD_"))}
    if environment:
        env |= {"LD_PRELOAD": str(library), "LD_BIND_NOW": "1", "LLAMA_RESOURCE_LOG_PATH": "host.jsonl", **environment}
    command = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--compress-strings=no", "--compress-pos=no",
               "--zero-before=counted_steps", "--callgrind-out-file=out", host, "context", f"count={STEPS}"]
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=300,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))
    assert done.returncode == 0, done.stderr[-3000:]
    threads = dict(map(costs, folder.glob("out-*")))
    ours = {thread: sum(n for name, n in found.items() if library.name in name) for thread, found in threads.items()}
    assert bool(ours[1]) == bool(environment), done.stderr[-3000:]
    return sum(threads[1].values()) / STEPS, ours[1] / STEPS, sum(ours.values()) / STEPS


def allowed(mode, same_libc):
    """By which part of itself each count of a mode may change."""
    of_host = 0.1 if "one core" in mode else 0.02
    counts = {"library": of_host}
    if same_libc:
        counts["host"] = of_host
    if "LLAMA_RESOURCE_CAPTURE" in MODES[mode]:
        counts["all"] = 0.1
    return counts


def test_a_step_takes_as_many_instructions_as_it_did(host, library, toolchain, tmp_path):
    if len(CORES) < 2:
        pytest.skip("one core: the counts are of a host that leaves one to spare")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = {}
        for mode, environment in {"plain": {}, **MODES}.items():
            cores = CORES[-1:] if "one core" in mode else CORES
            runs[mode] = pool.submit(counted, host, library, tmp_path / mode, environment, cores)
        found = {mode: run.result() for mode, run in runs.items()}
    plain = found.pop("plain")[0]
    now = {mode: {"library": round(ours), "host": round(total - plain), "all": round(everywhere)}
           for mode, (total, ours, everywhere) in found.items()}
    table = json.loads(TABLE.read_text())
    libc = " ".join(platform.libc_ver())
    then = table.get(toolchain)
    if os.environ.get("UPDATE"):
        table[toolchain] = {"libc": libc, "per_step": now}
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        return
    for mode, row in now.items():
        print(f"{mode:<22}", *(f"{key} {n:>10,}" for key, n in row.items()))
    if then is None:
        pytest.skip(f"tests/data/instructions.json has no counts of {toolchain}: UPDATE=1 writes them")
    changed = []
    for mode, row in now.items():
        for key, most in allowed(mode, then["libc"] == libc).items():
            before = then["per_step"].get(mode, {}).get(key, 0)
            if abs(row[key] - before) > most * before:
                percent = (row[key] / max(before, 1) - 1) * 100
                changed.append(f"{mode}, {key}: {before:,} before, {row[key]:,} now ({percent:+.1f} %)")
    assert not changed, "\n".join(["instructions of a decode step have changed:", *changed,
                                   "If that is meant: UPDATE=1, and say in the commit why."])
