"""--from-json of bench/overhead.py and bench/capture.py: several runs together are what one long run would have been. Their figures are made up; no
server runs."""

import json
import subprocess
import sys

import pytest
from server import REPOSITORY

BENCH = REPOSITORY / "bench"


def result(slower, cores=2):
    """A run of two rounds of two pairs, whose patched server takes so many per cent more."""
    machine = {"date": "2026-01-01 00:00:00", "cpu": "made up", "cores": cores, "memory_gb": 1.0, "kernel": "0", "machine": "x86_64",
               "llama_cpp": None, "llama_cpp_commit": "0", "library": "0", "library_sha256": "0", "model": "made up", "threads": 1,
               "load_before": 0.1, "load_after": 0.2}
    pair = {"mode": "patched-off", "phase": "decode", "plain_ms": 1.0, "plain_cpu_ms": 1.0}
    pairs = [{**pair, "round": n // 2, "at_s": float(n), "mode_ms": 1 + percent / 100, "mode_cpu_ms": 1 + percent / 100}
             for n, percent in enumerate(slower)]
    return {"machine": machine, "pairs": 4, "rounds": 2, "took_s": 4.0, "request_tokens": {"decode": 32, "prefill": 64}, "idle_percent": {},
            "accounts_of_rounds": {"patched-off": []}, "busy": {}, "log_rate": None, "different_text": [], "measurements": pairs}


def captured(slower, codec="bounded", mode="residual"):
    """The same of a capture."""
    run = result(slower)
    account = {"captured": {"bytes": 300}, "seen": {"bytes": 300}, "dropped": {}}
    run |= {"modes": [mode], "codec": codec, "max_memory": "1G", "policy": "block", "log_level": "DETAILED"}
    run["accounts_of_rounds"] = {mode: [{"busy_s": 1.0, "account": {**account, "captured": {"bytes": 300, "tensors": 3}}, "stream_bytes": 100}]}
    del run["busy"], run["request_tokens"]
    return run | {"measurements": [{**pair, "mode": mode} for pair in run["measurements"]]}


@pytest.fixture
def show(tmp_path):
    def show(*results, program="overhead.py"):
        files = [tmp_path / f"{n}.json" for n in range(len(results))]
        for file, content in zip(files, results):
            file.write_text(json.dumps(content))
        together = tmp_path / "together.json"
        command = [sys.executable, str(BENCH / program), "--from-json", *map(str, files), "--json", str(together)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done, json.loads(together.read_text()) if done.returncode == 0 else None
    return show


def test_runs_together_are_all_their_pairs_in_all_their_rounds(show):
    done, together = show(result([0, 1, 2, 3]), result([4, 5, 6, 7]))
    assert done.returncode == 0, done.stderr
    (row,) = together["rows"]
    assert (row["cpu"]["pairs"], row["cpu"]["rounds"]) == (8, 4)
    assert row["cpu"]["median"] == pytest.approx(3.5)
    assert "patched-off" in done.stdout and "+3.50" in done.stdout


def test_runs_of_other_machines_are_refused(show):
    done, _ = show(result([0, 1, 2, 3]), result([4, 5, 6, 7], cores=4))
    assert done.returncode != 0 and "say nothing together" in done.stderr


def test_captures_together_are_all_their_pairs_and_bytes(show):
    done, together = show(captured([0, 25, 25, 25]), captured([0, 25, 25, 25]), program="capture.py")
    assert done.returncode == 0, done.stderr
    (row,) = together["rows"]
    assert row["pairs"] == 8 and row["kept"] == pytest.approx(80)
    assert (together["flow"]["residual"]["raw_bytes"], together["flow"]["residual"]["ratio"]) == (600, 3)


def test_captures_of_other_tensors_have_rows_of_their_own(show):
    runs = captured([0, 25, 25, 25]), captured([25] * 4, mode="MLP_ONLY"), captured([0, 25, 25, 25])
    done, together = show(*runs, program="capture.py")
    assert done.returncode == 0, done.stderr
    assert {row["mode"]: row["pairs"] for row in together["rows"]} == {"residual": 8, "MLP_ONLY": 4}
    assert "4 to 8 pairs a mode" in done.stdout
    assert "not every mode has all pairs: residual 8, MLP_ONLY 4" in done.stdout


def test_captures_with_another_codec_are_refused(show):
    done, _ = show(captured([0, 1, 2, 3]), captured([4, 5, 6, 7], codec="fast"), program="capture.py")
    assert done.returncode != 0 and "codec" in done.stderr and "say nothing together" in done.stderr
