"""What the server itself says - answers, timings, its own log - set beside what the library wrote about the same run.

Nothing here computes a number the way the library does: the server's `timings`, its log lines and the GGUF file are the truth.
"""

import re
import time
from collections import defaultdict

import pytest

from server import Server, read_log

# Threads that spin at barriers make a shared machine crawl; sleeping ones change no count and no order.
QUIET = {"OMP_WAIT_POLICY": "passive"}
EXACT = {"LLAMA_RESOURCE_LOG_RATE": "unlimited"}
KV_DEBUG = {"LLAMA_KV_CACHE_DEBUG": "1"}

LETTERS = "When the rain had stopped they went down to the river and looked for the boat that the old man had left there. "


def start(model, args=(), env=None, **options):
    """A server of small cost: two threads, short context unless `args` say otherwise."""
    args = list(map(str, args))
    if "-c" not in args:
        args += ["-c", "1024"]
    return Server(model, args=args, env={**QUIET, **(env or {})}, **options)


def of_kind(events, *kinds):
    return [event for event in events if event["event"] in kinds]


def near(value, truth, relative=0.02, slack=0.0):
    return abs(value - truth) <= relative * abs(truth) + slack


def sole(items, what):
    items = list(items)
    assert len(items) == 1, f"{len(items)} {what}: {items!r:.600}"
    return items[0]


class Served:
    """Requests made to a server, and the library's account of each."""

    def __init__(self):
        self.answers = []

    def add(self, answer):
        """An answer of /completion that has `timings` and `id_slot`; give it back."""
        self.answers.append(answer)
        return answer

    def check(self, events, more=0, speeds=True):
        """Every answer has its request_start and request_end with the server's own numbers; `more` requests answered nothing.

        Gives (answer, request_end) in the order of the answers.
        """
        starts, ends = of_kind(events, "request_start"), of_kind(events, "request_end")
        made = len(self.answers) + more
        assert (len(starts), len(ends)) == (made, made), f"{made} requests, {len(starts)} starts, {len(ends)} ends: {brief(ends)}"
        begun = {event["request_id"]: event for event in starts}
        assert len(begun) == made, "a request_id was given twice"
        assert len({event["context_id"] for event in starts}) <= 1, "requests in two contexts: a draft or a warm-up was counted"
        by_slot = defaultdict(list)
        for end in ends:
            start_of = begun.pop(end["request_id"], None)
            assert start_of, f"request_end without its request_start: {brief([end])}"
            assert (start_of["seq_id"], start_of["context_id"]) == (end["seq_id"], end["context_id"])
            assert start_of["t_ns"] < end["t_ns"]
            by_slot[end["seq_id"]].append(end)
        pairs = []
        for answer in self.answers:  # a slot serves one request after the other
            slot = by_slot[answer["id_slot"]]
            assert slot, f"no request_end for an answer of slot {answer['id_slot']}: {brief(ends)}"
            pairs.append((answer, slot.pop(0)))
        for answer, end in pairs:
            check_request(end, answer["timings"], speeds)
        return pairs


def check_request(end, timings, speeds=True):
    """One request_end against the server's `timings` of the same request."""
    said = f"library {brief([end])}, server {timings}"
    assert end["generated_tokens"] == timings["predicted_n"], said
    assert end["cached_tokens"] == timings["cache_n"], said
    assert end["prompt_tokens"] == timings["cache_n"] + timings["prompt_n"], said
    assert near(end["prompt_ms"], timings["prompt_ms"], slack=0.5), said
    assert end["ttft_ms"] >= end["prompt_ms"] - 1e-6, said
    assert end["duration_ms"] >= end["ttft_ms"], said
    if timings["predicted_n"] > 1 and speeds:
        # The server's clock starts after the first accept and ends after the last, ours before both.
        slack = 0.2 / timings["predicted_ms"] * timings["predicted_per_second"]
        assert near(end["tokens_per_second"], timings["predicted_per_second"], slack=slack), said
        assert near(end["inter_token_ms"]["mean"], timings["predicted_ms"] / (timings["predicted_n"] - 1), slack=0.2), said


def brief(ends):
    keys = ("request_id", "seq_id", "prompt_tokens", "cached_tokens", "generated_tokens", "prompt_ms", "tokens_per_second", "outcome",
            "shifted_tokens")
    return [{key: end.get(key) for key in keys} for end in ends]


# --- Warm-up ---

def let_warm_up_pass(server):
    """Wait for the first step_summary: it holds the steps that the server made before it served, which are never written one by one."""
    deadline = time.monotonic() + 10
    while not of_kind(read_log(server.log_path, running=True), "step_summary"):
        assert time.monotonic() < deadline, "no step_summary"
        time.sleep(0.05)


def served_part(events):
    """(events of the steps after that first summary, the first summary)"""
    first = of_kind(events, "step_summary")[0]
    assert first["sampled_steps"] == 0, "a warm-up was written"
    return [event for event in events if event is not first and (event.get("step") or first["step"] + 1) > first["step"]], first


# --- The server's log ---

FIND_SLOT = re.compile(r"find_slot: stream\[(\d+)\], n = +\d+, used = +(\d+), head = +\d+, size = +(\d+), n_swa = +(\d+)")


def find_slots(stderr):
    """[(stream, used cells before the ubatch, size, sliding window)] of every ubatch, from LLAMA_KV_CACHE_DEBUG."""
    return [tuple(map(int, match)) for match in FIND_SLOT.findall(stderr)]


def metric(server, name):
    """A counter of /metrics (needs --metrics)."""
    text = server.get("/metrics")
    match = re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE)
    if not match:
        pytest.fail(f"/metrics has no {name}:\n{text}")
    return float(match.group(1))
