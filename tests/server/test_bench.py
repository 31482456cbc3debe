"""`llama-resource bench` on real servers: it measures what it says, and a library that became slow is found by --check and by compare.

The slow library is a stand-in (slow_library.c), preloaded where the real one would be.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import server as harness

HERE = Path(__file__).parent
PROGRAM = Path(os.environ.get("LLAMA_RESOURCE_TEST_PROGRAM", harness.TARGET / "release" / "llama-resource"))
PHASES = ["prefill 16", "decode 16", "prefill 64", "decode 64", "4 at once"]


def bench(out, library, *options, modes="disabled"):
    """Runs the benchmark with short requests; (exit code, report, what it said)."""
    command = [PROGRAM, "bench", "--server", harness.LLAMA_SERVER, "--model", harness.SMOLLM2, "--modes", modes, "--contexts", "16,64",
               "--predict", "8", "--threads", "1", "--json", out, *options]
    env = os.environ | {"LLAMA_RESOURCE_LIBRARY": str(library)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, timeout=900)
    return done.returncode, json.loads(out.read_text()) if out.exists() else None, done.stdout + done.stderr


@pytest.fixture(scope="module")
def slow_library(tmp_path_factory):
    library = tmp_path_factory.mktemp("slow") / "slow_library.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", HERE / "slow_library.c", "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The real library, loaded and disabled."""
    out = tmp_path_factory.mktemp("bench") / "base.json"
    code, report, said = bench(out, harness.LIBRARY, "--rounds", "6", "--pairs", "6", "--check")
    assert code == 0, said
    return out, report


def test_pairs_are_whole_and_nothing_is_over(base):
    _, report = base
    assert [(r["mode"], r["phase"]) for r in report["rows"]] == [("disabled", phase) for phase in PHASES]
    assert all(r["pairs"] == 6 and r["rounds"] == 6 and r["verdict"] != "over" for r in report["rows"])
    assert len(report["pairs"]) == 6 * len(PHASES)
    assert report["not_measured"] == [] and not [n for n in report["notes"] if "text" in n]
    names = [f["name"] for f in report["build"]["server"]["files"]]
    assert names[0] == "llama-server" and any(n.startswith("libggml-cpu") for n in names)
    assert all(len(f["sha256"]) == 64 for f in report["build"]["server"]["files"] + [report["build"]["library"]])
    expected = subprocess.run(["sha256sum", harness.LIBRARY], capture_output=True, text=True, check=True).stdout.split()[0]
    assert report["build"]["library"]["sha256"] == expected


def test_a_slow_library_is_over_its_ceiling_and_a_regression(base, slow_library, tmp_path):
    out, _ = base
    slow = tmp_path / "slow.json"
    code, report, said = bench(slow, slow_library, "--rounds", "6", "--pairs", "6", "--check")
    assert code == 2, said
    assert [r["phase"] for r in report["rows"] if r["verdict"] == "over"], said
    compared = subprocess.run([PROGRAM, "compare", out, slow], capture_output=True, text=True)
    assert compared.returncode == 2 and "REGRESSION" in compared.stdout, compared.stdout + compared.stderr
    # And the same against itself is none.
    assert subprocess.run([PROGRAM, "compare", slow, slow], capture_output=True).returncode == 0


def test_twenty_equal_runs_in_a_row_are_no_regression(tmp_path):
    """The same build twenty times, each against the one before: compare may be undecided, but never wrong."""
    before = None
    for i in range(20):
        out = tmp_path / f"{i}.json"
        code, report, said = bench(out, harness.LIBRARY, "--rounds", "4", "--pairs", "4", "--check")
        assert code == 0 and report["rows"], said
        if before:
            compared = subprocess.run([PROGRAM, "compare", before, out], capture_output=True, text=True)
            assert compared.returncode == 0, compared.stdout + compared.stderr
        before = out


def test_modes_write_what_they_should_and_missing_ones_are_named(tmp_path):
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    code, report, said = bench(out, harness.LIBRARY, "--rounds", "1", "--pairs", "1", "--html", page,
                               modes="plain,verbose,capture,patched-off")
    assert code == 0, said
    # A slip in a mode's variables would show here: a mode that records nothing is not measured.
    missing = {m["mode"]: m["reason"] for m in report["not_measured"]}
    assert set(missing) <= {"patched-off"}, missing
    assert {p["mode"] for p in report["pairs"]} | set(missing) == {"plain", "verbose", "capture", "patched-off"}
    assert page.read_text().endswith("</html>\n")
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith(("llama-resource: wrote", "round")))


@pytest.fixture(scope="module")
def paired():
    """The program that measures inside one process."""
    program = harness.TARGET / "paired"
    subprocess.run(["make", "--no-print-directory", "-o", "llama", "target/paired"], cwd=harness.REPOSITORY, check=True)
    return program


def test_cpu_time_of_short_requests(tmp_path):
    options = ["--fine", "--rounds", "2", "--pairs", "4"]
    code, report, said = bench(tmp_path / "r.json", harness.LIBRARY, *options, modes="plain,disabled")
    assert code == 0, said
    expected = [(mode, phase, 4) for mode in ("plain", "disabled") for phase in ("decode 16", "prefill 64")]
    assert [(r["mode"], r["phase"], r["pairs"]) for r in report["rows"]] == expected
    assert report["settings"]["method"] == "fine" and "CPU time of short requests" in said
    # One thread computes: its CPU time for a token is no less than a millisecond, and no more than the request took.
    assert all(1 < p["plain_ms"] < 500 for p in report["pairs"] if p["phase"] == "decode 16")


def test_steps_inside_one_process(paired, tmp_path):
    options = ["--in-process", paired, "--rounds", "1", "--pairs", "1"]
    modes = "plain,disabled,minimal,verbose,capture,patched-off"
    code, report, said = bench(tmp_path / "r.json", harness.LIBRARY, *options, modes=modes)
    assert code == 0, said
    levels = [(mode, "decode") for mode in ("plain", "disabled", "minimal", "verbose")]
    assert [(r["mode"], r["phase"]) for r in report["rows"]] == [*levels, ("capture", "decode"), ("capture", "prefill")]
    assert [m["mode"] for m in report["not_measured"]] == ["patched-off"]


def test_another_library_in_the_place_of_ours(slow_library, tmp_path):
    once = ["--rounds", "1", "--pairs", "1"]
    code, report, said = bench(tmp_path / "r.json", harness.LIBRARY, *once, modes=f"preload:{slow_library}")
    assert code == 0 and [r["ceiling"] for r in report["rows"]] == [None] * len(PHASES), said
    code, report, said = bench(tmp_path / "r.json", harness.LIBRARY, *once, modes="preload:/no/such.so")
    assert code == 1 and "the library was not loaded" in said, said


def test_a_library_that_is_none_is_not_measured(tmp_path):
    no_library = tmp_path / "empty.so"
    no_library.write_text("no ELF file")
    code, report, said = bench(tmp_path / "r.json", no_library, "--rounds", "1", "--pairs", "1", modes="disabled")
    assert code == 1 and "disabled: not measured: the library was not" in said, said
    assert [m["mode"] for m in report["not_measured"]] == ["disabled"]


def test_nothing_is_left_running_or_lying(tmp_path):
    """Killed in the middle, the benchmark takes its servers with it; ended by Ctrl-C, its folder too."""
    for how, clean in ((signal.SIGKILL, False), (signal.SIGINT, True)):
        temporary = tmp_path / how.name
        temporary.mkdir()
        command = [PROGRAM, "bench", "--server", harness.LLAMA_SERVER, "--model", harness.SMOLLM2, "--modes", "plain"]
        process = subprocess.Popen(list(map(str, command)), env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: any(is_serving(p) for p in children.read_text().split()), "a server")
        servers = children.read_text().split()
        process.send_signal(how)
        process.wait(120)
        wait_for(lambda: not any(map(is_serving, servers)), f"the servers' end after {how.name}")
        assert not clean or not list(temporary.iterdir())


def is_serving(pid):
    """Whether the process is a server at work; one that has ended and waits for its parent has no command line."""
    try:
        return b"--port" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited a minute for {what}"
        time.sleep(0.05)
