"""Servers that live long: many slots at once, a model that is unloaded when nobody asks, and a hundred thousand tokens.

`LRI_LONG=1` makes the last one a million tokens, about ten minutes.
"""

import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server import read_log
from truth import check_request, of_kind, start

SLOTS = 64
TOKENS = 1_000_000 if os.environ.get("LRI_LONG") == "1" else 30_000


def resident_kib(server):
    """Resident memory of the server's process."""
    [line] = [line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def is_asleep(events):
    """A model was loaded, and every buffer is freed."""
    loaded = any(e["outcome"] == "load" for e in of_kind(events, "model_load"))
    return loaded and {e["buffer_id"] for e in of_kind(events, "buffer_allocation")} == {e["buffer_id"] for e in of_kind(events, "buffer_free")}


def test_64_slots_at_once_are_64_requests(tiny_model, tmp_path):
    """Every request of every slot equals what the server itself says of it."""
    with start(tiny_model("llama"), ["-np", SLOTS, "-c", 64 * SLOTS], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        def ask(n):
            return server.post("/completion", {"prompt": "the and " * (n % 7 + 1), "n_predict": 8, "id_slot": n % SLOTS, "temperature": 0,
                                               "cache_prompt": False, "ignore_eos": True})

        with ThreadPoolExecutor(SLOTS) as pool:
            answers = list(pool.map(ask, range(2 * SLOTS)))
        server.stop()
    ends = of_kind(read_log(server.log_path), "request_end")
    assert len(ends) == len(answers) == 2 * SLOTS
    said = sorted((a["id_slot"], a["timings"]["cache_n"] + a["timings"]["prompt_n"], a["timings"]["predicted_n"]) for a in answers)
    assert sorted((e["seq_id"], e["prompt_tokens"], e["generated_tokens"]) for e in ends) == said
    assert len({e["request_id"] for e in ends}) == 2 * SLOTS


def test_a_model_that_sleeps_is_freed_and_loaded_again(tiny_model, tmp_path):
    """llama-server unloads its model when it is idle: buffers go, and the requests after it are recorded like those before."""
    with start(tiny_model("llama"), ["-c", 256, "--sleep-idle-seconds", 1], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        body = {"prompt": "the and of", "n_predict": 6, "temperature": 0, "ignore_eos": True}
        answers = [server.post("/completion", body)]
        deadline = time.monotonic() + 20
        while not is_asleep(read_log(server.log_path, running=True)):
            assert time.monotonic() < deadline, "the server did not go to sleep"
            time.sleep(0.1)
        answers.append(server.post("/completion", body))
        server.stop()
    events = read_log(server.log_path)
    assert answers[0]["content"] == answers[1]["content"]
    ends = of_kind(events, "request_end")
    assert len(ends) == 2
    for end, answer in zip(ends, answers):
        check_request(end, answer["timings"], speeds=False)
    loads = [e["outcome"] for e in of_kind(events, "model_load")]
    assert loads.count("load") == 2, loads
    # What was allocated before the sleep was freed in it, and nothing is freed twice.
    ids = [e["buffer_id"] for e in of_kind(events, "buffer_free")]
    assert len(ids) == len(set(ids)) and set(ids) <= {e["buffer_id"] for e in of_kind(events, "buffer_allocation")}


def test_memory_does_not_grow_with_tokens(tiny_model, tmp_path):
    """Resident memory over many tokens with the residual stream captured: the slope and its interval hold zero, or next to nothing."""
    capture = {"LLAMA_RESOURCE_CAPTURE": str(tmp_path / "acts.stream"), "LLAMA_RESOURCE_TENSORS": "residual", "LLAMA_RESOURCE_CODEC": "bounded"}
    with start(tiny_model("llama"), ["-c", 2048, "-np", 4, "--cache-ram", 0], level="DETAILED", log_path=tmp_path / "log.jsonl",
                env=capture, timeout=600) as server:
        def ask(n):
            return server.post("/completion", {"prompt": "the", "n_predict": 480, "id_slot": n, "temperature": 1, "seed": n,
                                               "cache_prompt": False, "ignore_eos": True})["timings"]["predicted_n"]

        points, done = [], 0
        with ThreadPoolExecutor(4) as pool:
            while done < TOKENS:
                done += sum(pool.map(ask, range(4)))
                points.append((done, resident_kib(server)))
        server.stop()
    # Buffers and caches fill at first.
    late = points[len(points) // 2:]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) * 1e3 for i, a in enumerate(late) for b in late[i + 1:]]
    slope = statistics.median(slopes)
    low, high = (sorted(slopes)[int(len(slopes) * q)] for q in (0.025, 0.975))
    print(f"{done} tokens: {points[0][1]} KiB at first, {late[0][1]} at half, {late[-1][1]} at the end; "
          f"{slope:+.2f} KiB a thousand tokens ({low:+.2f} .. {high:+.2f}, of pairs)")
    assert late[-1][1] - late[0][1] < 4096, points
    total = sum(e["generated_tokens"] for e in of_kind(read_log(server.log_path), "request_end"))
    assert total == done
    [summary] = of_kind(read_log(server.log_path), "capture_summary")
    assert summary["captured"]["tensors"] == summary["seen"]["tensors"] - sum(s["tensors"] for s in summary["skipped"]), json.dumps(summary)[:600]
