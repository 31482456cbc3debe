"""Retention asks the host's allocator for more memory. Where there is none, or where the host may not plan a graph anew, the host must not notice."""

import json

import pytest

from capture import Stream, account, build, capturing, check_account, compare, align, json_packets, packets, read_oracle, total
from server import Server, read_log
from test_capture_truth import ALONE_ARGS, GREEDY, LETTERS, alone, seen_alone, served_by  # noqa: F401 (a fixture)

ARGS = ["-c", "1024", "-b", "512", "-ub", "512"]
PROMPTS = [LETTERS * 8, "The people", LETTERS * 9, "The water", LETTERS * 2]


def little_memory():
    return build("little_memory.c", "-shared", "-fPIC")


def ask(server):
    """Texts of long and short prompts in turn; every request must be answered."""
    texts = [server.post("/completion", {**GREEDY, "prompt": p, "n_predict": 6, "cache_prompt": False})["content"] for p in PROMPTS]
    assert server.stop() == 0, server.stderr[-2000:]
    return texts


@pytest.fixture(scope="module")
def without_us(tiny_model, tmp_path_factory):
    """(texts, size of the largest buffer) of a plain server."""
    seen = tmp_path_factory.mktemp("plain") / "sizes"
    env = {"LD_PRELOAD": str(little_memory()), "MEMORY_SEEN": str(seen), "OMP_WAIT_POLICY": "passive"}
    with Server(tiny_model("llama"), ARGS, env=env, preload=False) as server:
        texts = ask(server)
    return texts, max(map(int, seen.read_text().split()))


@pytest.mark.parametrize("route", ["auto", "retain"])
def test_a_host_without_memory_to_spare_goes_on_as_without_us(route, without_us, tiny_model, tmp_path):
    texts, largest = without_us
    path, log, seen = tmp_path / "acts.stream", tmp_path / "log.jsonl", tmp_path / "sizes"
    env = {"MEMORY_MOST": str(largest), "MEMORY_SEEN": str(seen)}
    with capturing(tiny_model("llama"), path, ARGS, env=env, shims=[little_memory()], route=route, max_memory="512M", log_path=log) as server:
        assert ask(server) == texts
    sizes = list(map(int, seen.read_text().split()))
    assert max(sizes) > largest, "retention was never refused"
    # What was given up for it is had again, so that the host never has less than without us.
    assert largest in sizes[sizes.index(max(sizes)):], sizes
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    assert set(said["skipped"]) <= {"empty", "view", "external_view", "not_contiguous", "type", "warm_up"} | ({"not_retained", "needs_callback"} if route == "retain" else set()), said
    assert "not_retained" in said["skipped"] or route == "auto", said
    ours = [line for line in server.stderr.splitlines() if line.startswith("llama-resource: ") and "has no room for" in line]
    assert len(ours) == 1, ours
    # The short prompts and the tokens behind them find room in what is there.
    assert "retain" in served_by(path)
    states = [e for e in read_log(log) if e["event"] == "instrumentation_state" and e["component"] == "capture"]
    assert [s["state"] for s in states] == ["degraded"], states


def test_a_host_that_had_no_memory_for_a_while(without_us, tiny_model, tmp_path):
    """A plan that failed leaves an allocator without the buffers that its next placing takes for granted: it plans again before."""
    texts, _ = without_us
    path, none = tmp_path / "acts.stream", tmp_path / "none"
    with capturing(tiny_model("llama"), path, ARGS, env={"MEMORY_NONE": str(none)}, shims=[little_memory()], route="auto", max_memory="512M") as server:
        body = {**GREEDY, "prompt": PROMPTS[0], "n_predict": 6, "cache_prompt": False}
        none.touch()
        assert server.request("POST", "/completion", body)[0] == 500, "the host had memory"
        none.unlink()
        assert [server.post("/completion", body)["content"] for _ in range(2)] == texts[:1] * 2
        assert ask(server) == texts
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said


def test_a_host_that_must_not_plan_anew(seen_alone, tiny_model, tmp_path):
    """`GGML_SCHED_DEBUG_REALLOC=1`, and ggml built with GGML_SCHED_NO_REALLOC, abort when a scheduler plans a graph anew without need."""
    tokens, runs = seen_alone(tiny_model("llama"))
    with capturing(tiny_model("llama"), tmp_path / "acts.stream", ALONE_ARGS, env={"GGML_SCHED_DEBUG_REALLOC": "1"}, route="retain") as server:
        assert alone(server) == tokens
    compare(align(Stream(tmp_path / "acts.stream"), runs))
    assert served_by(tmp_path / "acts.stream") == {"retain"}
