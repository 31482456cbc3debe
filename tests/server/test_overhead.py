"""bench/overhead.py --from-json: several runs together are what one long run would have been. Its figures are made up; no server runs."""

import json
import subprocess
import sys

import pytest
from server import REPOSITORY

PROGRAM = REPOSITORY / "bench" / "overhead.py"


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


@pytest.fixture
def show(tmp_path):
    def show(*results):
        files = [tmp_path / f"{n}.json" for n in range(len(results))]
        for file, content in zip(files, results):
            file.write_text(json.dumps(content))
        together = tmp_path / "together.json"
        command = [sys.executable, str(PROGRAM), "--from-json", *map(str, files), "--json", str(together)]
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
