"""A llama-server that was built with patches/: it answers as the unpatched one does, bit for bit, and what `request_end` says of every
request is what the server says in its answers and its log.

`make llama-patched` builds it; without it these tests are skipped.
"""

import json
import os
import random
import re
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server import LIBRARY, LLAMA_SERVER, REPOSITORY, TARGET, read_log
from truth import near, of_kind, sole, start

PATCHED = TARGET / "llama.cpp-patched" / "bin" / "llama-server"
pytestmark = pytest.mark.skipif(not PATCHED.exists(), reason="target/llama.cpp-patched is not there: `make llama-patched` builds it")

WORDS = "the rain had stopped and they went down to the river to look for a boat that the old man left there".split()
SERVER_FIELDS = ("task_id", "completion_id", "queue_ms", "stop_reason", "drafted", "accepted")


def patched(model, log_path=None, args=(), **more):
    return start(model, args, preload=False, binary=PATCHED, log_path=log_path, **more)


def ended(server):
    assert server.stop() == 0
    return of_kind(read_log(server.log_path), "request_end")


# --- The same server ---

def answers(server):
    """What a server answers to three prompts, with the probabilities that stand for its logits; without what is a time or an id."""
    given = []
    for prompt, more in ((" ".join(WORDS), {}), (" ".join(WORDS) + " and then", {}), ("Once", {"temperature": 1.0, "top_k": 0})):
        body = {"prompt": prompt, "n_predict": 24, "temperature": 0, "seed": 11, "n_probs": 5, "return_tokens": True, **more}
        answer = server.post("/completion", body)
        given.append({key: answer[key] for key in ("content", "tokens", "completion_probabilities", "stop_type", "tokens_evaluated", "tokens_cached")})
    return json.dumps(given)


def test_completions_and_logits_are_bit_identical_to_the_unpatched_server(smollm2, tmp_path):
    with start(smollm2, preload=False, binary=LLAMA_SERVER) as server:
        plain = answers(server)
    with patched(smollm2) as server:
        assert answers(server) == plain, "patched, not recording"
    with patched(smollm2, tmp_path / "log.jsonl", level="VERBOSE") as server:
        assert answers(server) == plain, "patched, recording"
        assert len(ended(server)) == 3


def test_a_task_is_no_larger_than_the_unpatched_servers(tmp_path):
    """What the server asks of the allocator, and so where all its memory lies, is the same (docs/OVERHEAD.md, Next to nothing)."""
    llama, work = REPOSITORY / "llama.cpp", tmp_path / "llama.cpp"
    work.mkdir()
    archive = subprocess.run(["git", "-C", llama, "archive", "HEAD", "tools/server"], stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", work], input=archive.stdout, check=True)
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply", *sorted((REPOSITORY / "patches").glob("*.patch"))], cwd=work, env=outside, check=True)
    (tmp_path / "size.cpp").write_text('#include "server-task.h"\nchar task_of_this_size[sizeof(server_task)] = {1};\n')
    include = [work / "tools/server", *(llama / d for d in ("common", "include", "ggml/include", "vendor", "tools/mtmd")), REPOSITORY / "include"]

    def size(*options):
        compiler, out = os.environ.get("CXX", "c++"), tmp_path / "size.o"
        subprocess.run([compiler, "-std=c++17", "-w", *options, *(f"-I{d}" for d in include), "-c", tmp_path / "size.cpp", "-o", out], check=True)
        symbols = subprocess.run(["nm", "-S", out], stdout=subprocess.PIPE, text=True, check=True).stdout
        return int(re.search(r"(\w+) D task_of_this_size", symbols)[1], 16)

    assert size("-DLLAMA_RESOURCE_INSTRUMENTATION") == size() > 1000


# --- What switches it on ---

def writers(server):
    """Threads of the library that write a log."""
    return sum(comm.read_text().strip() == "lri-writer" for comm in Path(f"/proc/{server.pid}/task").glob("*/comm"))


def test_nothing_is_recorded_unless_the_environment_asks(tiny_model, tmp_path):
    with patched(tiny_model("llama")) as server:
        server.post("/completion", {"prompt": "a", "n_predict": 2})
        assert LIBRARY.name in Path(f"/proc/{server.pid}/maps").read_text(), "the library is not linked"
        assert writers(server) == 0
        assert server.stop() == 0


def test_the_environment_alone_records_the_hooks_too(tiny_model, tmp_path):
    with patched(tiny_model("llama"), tmp_path / "log.jsonl", level="DETAILED") as server:
        server.post("/completion", {"prompt": "a b c", "n_predict": 4})
        assert server.stop() == 0
    events = read_log(server.log_path)
    assert sole(of_kind(events, "resource_session_start"), "sessions")["mode"] == "linked"
    kinds = Counter(event["event"] for event in events)
    for kind in ("model_load", "buffer_allocation", "batch", "compute_execution", "step_summary", "kv_cache_usage", "resource_session_end"):
        assert kinds[kind], f"no {kind}: the calls of the C API were not seen; {kinds}"
    assert sole(of_kind(events, "request_start"), "starts")["source"] == "server"


def test_linked_and_preloaded_is_one_recording(tiny_model, tmp_path):
    with start(tiny_model("llama"), binary=PATCHED, log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": "a b c", "n_predict": 4})
        assert writers(server) == 1
        assert server.stop() == 0
    events = read_log(server.log_path)
    assert sole(of_kind(events, "resource_session_start"), "sessions")["mode"] == "preload"
    end = sole(of_kind(events, "request_end"), "ends")
    assert end["task_id"] is not None and end["stop_reason"] == "limit"
    summed = sum(event["decode"]["tokens"] + event["prefill"]["tokens"] for event in of_kind(events, "step_summary"))
    assert summed < 30, "steps were counted twice"


def test_an_unpatched_server_has_no_such_facts(tiny_model, tmp_path, library):
    with start(tiny_model("llama"), log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": "a b c", "n_predict": 4})
        end = sole(ended(server), "ends")
    assert [end[field] for field in SERVER_FIELDS] == [None] * len(SERVER_FIELDS)


# --- Every request ---

class Load:
    """Requests of many kinds at once, and what the server answered to each. Lengths are distinct where an answer has no id."""

    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.native, self.open_ai, self.cancelled, self.refused, self.embedded, self.failed = [], [], [], [], [], []

    def run(self, kinds, threads=24):
        kinds = list(enumerate(kinds))
        random.Random(self.seed).shuffle(kinds)
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(self.one, i, kind) for i, kind in kinds]:
                done.result()

    def one(self, i, kind):
        r = random.Random(self.seed * 1000 + i)
        prompt = " ".join(r.choice(WORDS) for _ in range(r.randrange(3, 20)))
        body = {"prompt": (WORDS[0] + " ") * r.choice((0, 6)) + prompt, "temperature": r.choice((0, 1.0)), "seed": i, "n_predict": r.randrange(1, 24),
                "max_tokens": r.randrange(1, 24), "logit_bias": [[2, r.choice((0, 3, 6))]], "stop": r.choice(([], ["e"], ["th", "a"]))}
        begun = time.monotonic()
        getattr(self, kind)(i, body)
        return time.monotonic() - begun

    def completion(self, i, body):
        self.native.append(self.server.post("/completion", body))

    def several(self, i, body):
        self.native += self.server.post("/completion", {**body, "n_cmpl": 2})

    def streamed(self, i, body):
        *_, last = self.server.stream("/completion", body)
        self.native.append(last)

    def text(self, i, body):
        self.open_ai.append(self.server.post("/v1/completions", body))

    def chat(self, i, body):
        *_, last = self.server.stream("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": body["prompt"]}]})
        self.open_ai.append(last)

    def two_choices(self, i, body):
        self.open_ai.append(self.server.post("/v1/completions", {**body, "n": 2}))

    def cancel(self, i, body):
        body = {**body, "prompt": WORDS[i % 20], "n_predict": 480, "max_tokens": 480, "logit_bias": [[2, False]], "stop": []}
        chunks = self.server.stream("/v1/completions", body)
        seen = [next(chunks) for _ in range(1 + i % 4)]
        chunks.close()
        self.cancelled.append((seen[0]["id"], len(seen)))

    def too_long(self, i, body):
        status, answer = self.server.request("POST", "/completion", {**body, "prompt": "the " * (600 + i)})
        assert status == 400 and answer["error"]["type"] == "exceed_context_size_error", answer
        self.refused.append(answer["error"]["n_prompt_tokens"])

    def embedding(self, i, body):
        self.embedded.append(self.server.post("/v1/embeddings", {"input": "the river " * (1 + i)})["usage"]["prompt_tokens"])

    def check(self, ends, log):
        """Each answer has its request_end, and each request_end its answer."""
        left = {end["request_id"]: end for end in ends}

        def take(what, wanted):
            end = sole([end for end in left.values() if wanted(end)], f"request_end for {what}")
            return left.pop(end["request_id"])

        for answer in self.native:
            timings = answer["timings"]
            end = take(answer, lambda end: end["seq_id"] == answer["id_slot"] and end["prompt_ms"] == timings["prompt_ms"]
                       and near(end["tokens_per_second"] or 0, timings["predicted_per_second"], 1e-9))
            check_end(end, timings, answer["stop_type"])
            assert end["prompt_tokens"] == answer["tokens_evaluated"]
        for answer in self.open_ai:
            timings, choices = answer["timings"], answer["choices"]
            # `timings` are those of one choice: its first token came a microsecond or more ahead of the other's.
            own = take(answer, lambda end: end["completion_id"] == answer["id"] and end["prompt_ms"] == timings["prompt_ms"])
            check_end(own, timings)
            reasons = [own["stop_reason"]]
            if len(choices) > 1:
                other = take("its second choice", lambda end: end["completion_id"] == answer["id"])
                assert other["prompt_ms"] and (other["cached_tokens"], other["prompt_tokens"]) == (own["cached_tokens"], own["prompt_tokens"])
                assert other["task_id"] != own["task_id"]
                reasons.append(other["stop_reason"])
            assert own["prompt_tokens"] == answer.get("usage", {}).get("prompt_tokens", own["prompt_tokens"])
            words = Counter({"eos": "stop", "word": "stop", "limit": "length"}[reason] for reason in reasons)
            assert words == Counter(choice["finish_reason"] for choice in choices), (own, answer)
        for name, chunks in self.cancelled:
            end = take(name, lambda end: end["completion_id"] == name)
            assert end["stop_reason"] == "cancelled" and end["generated_tokens"] >= chunks, end
        for tokens in self.refused:
            end = take(f"a prompt of {tokens}", lambda end: end["stop_reason"] == "error" and end["prompt_tokens"] == tokens)
            assert (end["generated_tokens"], end["cached_tokens"], end["ttft_ms"]) == (0, 0, None)
        for tokens in self.embedded:
            end = take(f"an embedding of {tokens}", lambda end: end["completion_id"] is None and end["prompt_tokens"] == tokens)
            assert (end["stop_reason"], end["generated_tokens"]) == ("none", 0)
        assert not left, f"requests that nobody made: {list(left.values())!r:.800}"
        # The server's own log names slot and task of every release, in order.
        released = re.findall(r"release: id +(\d+) \| task (\d+) \| stop processing", log)
        told = [(end["seq_id"], end["task_id"]) for end in sorted(ends, key=lambda end: end["t_ns"])]
        assert told == [(int(slot), int(task)) for slot, task in released]
        assert all(end["queue_ms"] >= 0 and (end["wait_ms"] is None or end["wait_ms"] >= 0) for end in ends)


def check_end(end, timings, stop=None):
    said = f"library {end}, server {timings}"
    assert (end["generated_tokens"], end["cached_tokens"]) == (timings["predicted_n"], timings["cache_n"]), said
    assert end["prompt_ms"] == timings["prompt_ms"], said
    assert near(end["ttft_ms"], end["wait_ms"] + timings["prompt_ms"], 1e-9, 1e-6), said
    assert (end["drafted"], end["accepted"]) == (timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)), said
    assert stop is None or end["stop_reason"] == stop, said
    if timings["predicted_n"] > 1:
        assert near(end["tokens_per_second"], timings["predicted_per_second"], 1e-9), said


def mixed(server, seed, kinds):
    load = Load(server, seed)
    load.run(kinds)
    ends = ended(server)
    load.check(ends, server.stderr)
    return load, ends


def test_150_mixed_requests_with_speculative_decoding(tiny_model, tmp_path):
    model = tiny_model("llama")
    args = ["-np", "6", "-c", 6 * 512, "-md", model, "--spec-type", "draft-simple", "--spec-draft-n-max", "4"]
    with patched(model, tmp_path / "log.jsonl", args) as server:
        load, ends = mixed(server, 1, ["completion"] * 35 + ["several"] * 15 + ["streamed"] * 25 + ["text"] * 20 + ["chat"] * 15
                           + ["two_choices"] * 10 + ["cancel"] * 20 + ["too_long"] * 10)
    reasons = Counter(end["stop_reason"] for end in ends)
    assert all(reasons[reason] for reason in ("eos", "word", "limit", "cancelled", "error")), reasons
    assert any(end["cached_tokens"] for end in ends)
    drafted, accepted = (sum(end[field] for end in ends) for field in ("drafted", "accepted"))
    assert drafted > accepted > 0, (drafted, accepted)
    assert max(end["queue_ms"] for end in ends) > 1, "nobody had to wait"


def test_50_embeddings_and_completions_at_once(tiny_model, tmp_path):
    args = ["-np", "4", "-c", 4 * 512, "--embeddings", "--pooling", "mean"]
    with patched(tiny_model("llama"), tmp_path / "log.jsonl", args) as server:
        mixed(server, 2, ["embedding"] * 25 + ["completion"] * 15 + ["streamed"] * 10)


# --- Waiting ---

STAMP = r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) \w "


def logged_ms(log, pattern):
    """{task: milliseconds since the log began} of the lines of the server's log that match."""
    return {int(found[4]): int(found[0]) * 60e3 + int(found[1]) * 1e3 + int(found[2]) + int(found[3]) / 1e3
            for found in re.findall(STAMP + pattern, log)}


def test_queue_wait_is_what_the_servers_log_says(tiny_model, tmp_path):
    """One slot, and requests that come while it is busy: the log at its highest verbosity stamps when a task is queued and launched."""
    with patched(tiny_model("llama"), tmp_path / "log.jsonl", ["-np", "1", "-lv", "10"]) as server:
        body = {"prompt": "the river", "n_predict": 900, "logit_bias": [[2, False]]}
        threads = [threading.Thread(target=server.post, args=("/completion", body)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ends = ended(server)
        queued = logged_ms(server.stderr, r"que +post: new task, id = (\d+)")
        launched = logged_ms(server.stderr, r"slot launch_slot_: id +\d+ \| task (\d+) \| processing task")
    assert len(ends) == 6
    for end in ends:
        task = end["task_id"]
        # A task is made shortly before it is queued, and launched shortly before the log says so.
        assert near(end["queue_ms"], launched[task] - queued[task], 0, 60), (end, launched[task], queued[task])
    waits = sorted(end["queue_ms"] for end in ends)
    longest = max(end["duration_ms"] for end in ends)
    assert waits[-1] > longest > 100, f"six requests, one slot, and the last waited {waits[-1]} ms for others of up to {longest} ms"
