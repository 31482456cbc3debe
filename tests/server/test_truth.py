"""Requests: every number that the library writes about a request is the number that the server gives in `timings`."""

import re
import threading
import time

import pytest

from server import SMOLLM2, read_log
from truth import LETTERS, Served, brief, check_request, metric, near, of_kind, sole, start

GREEDY = {"temperature": 0, "seed": 7}


def complete(served, server, prompt, n, **more):
    return served.add(server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n, **more}))


def finish(server):
    assert server.stop() == 0
    return read_log(server.log_path)


def together(calls):
    """Run all calls at once and give their results in order."""
    results = [None] * len(calls)

    def run(index, call):
        results[index] = call()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results), results
    return results


def test_one_after_the_other(tmp_path):
    served = Served()
    with start(SMOLLM2, ["-np", "1"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        complete(served, server, LETTERS, 16)
        cached = complete(served, server, LETTERS + "Then it began to", 12)
        uncached = complete(served, server, LETTERS + "Then it began to", 12, cache_prompt=False)
        complete(served, server, "Something else", 1)
        complete(served, server, LETTERS * 8, 5)
        prefix = complete(served, server, LETTERS * 8 + "And so", 5)
        same = complete(served, server, LETTERS * 8 + "And so", 5)
        chat = server.post("/v1/chat/completions", {**GREEDY, "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 12})
        served.add({**chat, "id_slot": 0})
        events = finish(server)
    # The cases are what they are called.
    assert cached["timings"]["cache_n"] > 10 and uncached["timings"]["cache_n"] == 0
    assert prefix["timings"]["cache_n"] > 150 and same["timings"]["prompt_n"] == 1
    for answer, end in served.check(events):
        stopped = answer.get("stop_type", "limit")
        assert end["outcome"] == ("eog" if stopped == "eos" else "stopped"), (stopped, brief([end]))
        assert end["shifted_tokens"] == 0


def test_end_of_generation(tmp_path):
    served = Served()
    with start(SMOLLM2, level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        prompt = "<|im_start|>user\nSay only the word yes.<|im_end|>\n<|im_start|>assistant\n"
        ended = complete(served, server, prompt, 200)
        stopped = complete(served, server, prompt, 200, stop=["e"])
        events = finish(server)
    assert (ended["stop_type"], stopped["stop_type"]) == ("eos", "word")
    assert [end["outcome"] for _, end in served.check(events)] == ["eog", "stopped"]


@pytest.mark.parametrize("unified", ["--kv-unified", "--no-kv-unified"])
def test_four_at_once(tmp_path, unified):
    served = Served()
    prompts = [LETTERS, "In the beginning there was " + LETTERS * 3, "A list of fruits:", "1 2 3 4 5 6 7 8"]
    with start(SMOLLM2, ["-np", "4", "-c", "2048", unified, "--metrics"], level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        for _ in range(2):  # the second time with what the first has left in the slots
            answers = together([lambda p=prompt, n=n: server.post("/completion", {**GREEDY, "prompt": p, "n_predict": 16 + 3 * n})
                                for n, prompt in enumerate(prompts)])
            assert {answer["id_slot"] for answer in answers} == {0, 1, 2, 3}
            for answer in answers:
                served.add(answer)
        assert metric(server, "n_busy_slots_per_decode") > 1.5, "they did not run in the same batches"
        events = finish(server)
    served.check(events)


def test_more_requests_than_slots(tmp_path):
    """The waiting ones have no slot yet: their request starts when they get one."""
    served = Served()
    with start(SMOLLM2, ["-np", "2"], level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        for answer in together([lambda n=n: server.post("/completion", {**GREEDY, "prompt": f"{n} " + LETTERS, "n_predict": 10 + n})
                                for n in range(6)]):
            served.add(answer)
        events = finish(server)
    # A slot's answers come back in the order in which it gave them, but not in ours: match by the token count, which differs.
    served.answers.sort(key=lambda answer: next(i for i, end in enumerate(of_kind(events, "request_end"))
                                                if end["generated_tokens"] == answer["timings"]["predicted_n"]))
    served.check(events)


def test_streams(tmp_path):
    served = Served()
    with start(SMOLLM2, level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        chunks = list(server.stream("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 20}))
        served.add(chunks[-1])
        messages = [{"role": "user", "content": "What is rain?"}]
        chunks = list(server.stream("/v1/chat/completions", {**GREEDY, "messages": messages, "max_tokens": 24, "timings_per_token": True}))
        served.add({"id_slot": 0, "timings": [chunk for chunk in chunks if "timings" in chunk][-1]["timings"]})
        events = finish(server)
    served.check(events)


def test_a_cancelled_request(tmp_path):
    served = Served()
    with start(SMOLLM2, level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        stream = server.stream("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 900, "ignore_eos": True})
        for _ in range(10):
            next(stream)
        stream.close()
        deadline = time.monotonic() + 20
        while server.get("/slots")[0]["is_processing"]:
            assert time.monotonic() < deadline, "the server went on after its client had left"
            time.sleep(0.05)
        left = server.stderr
        complete(served, server, "And then", 4)
        events = finish(server)
    ends = of_kind(events, "request_end")
    cancelled = ends[0]
    assert len(ends) == len(of_kind(events, "request_start")) == 2
    assert cancelled["outcome"] == "stopped"
    # "stop processing: n_tokens" counts what is in the slot: the prompt and all tokens but the last, which was not decoded yet.
    in_slot = int(sole(re.findall(r"stop processing: n_tokens = (\d+)", left), "stop lines"))
    assert cancelled["generated_tokens"] == in_slot - cancelled["prompt_tokens"] + 1 >= 10
    tokens = [event for event in of_kind(events, "request_token") if event["request_id"] == cancelled["request_id"]]
    assert [event["index"] for event in tokens] == list(range(cancelled["generated_tokens"]))
    check_request(ends[1], sole(served.answers, "answers")["timings"])


def test_context_shift(tmp_path):
    served = Served()
    with start(SMOLLM2, ["-c", "256", "--context-shift"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        complete(served, server, LETTERS, 400, ignore_eos=True)
        shifts = [int(n) for n in re.findall(r"slot context shift, n_keep = \d+, n_left = \d+, n_discard = (\d+)", server.stderr)]
        complete(served, server, LETTERS, 3)
        events = finish(server)
    assert shifts, "the context was never shifted"
    (_, shifted), (_, other) = served.check(events)
    assert shifted["shifted_tokens"] == sum(shifts) and other["shifted_tokens"] == 0


@pytest.mark.parametrize("unified", ["--kv-unified", "--no-kv-unified"])
@pytest.mark.parametrize("n", [2, 3])
def test_several_completions_of_one_prompt(tmp_path, n, unified):
    served = Served()
    with start(SMOLLM2, ["-np", "4", unified], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        body = {"prompt": LETTERS, "n_predict": 14, "n_cmpl": n, "temperature": 1.2, "seed": 3, "ignore_eos": True}
        for _ in range(2):
            answers = server.post("/completion", body)
            assert len(answers) == n and len({answer["id_slot"] for answer in answers}) == n
            for answer in answers:
                served.add(answer)
        complete(served, server, "alone", 4)
        events = finish(server)
    served.check(events)
    copies = [event for event in of_kind(events, "request_start") if event["source"] == "copy"]
    assert len(copies) == 2 * (n - 1)


@pytest.mark.parametrize("np", [1, 3])
def test_a_long_prompt_in_many_batches(tmp_path, np):
    served = Served()
    with start(SMOLLM2, ["-np", np, "-b", "64", "-ub", "32", "-c", "2048", "--kv-unified"], level="DETAILED",
               log_path=tmp_path / "log.jsonl") as server:
        for answer in together([lambda i=i: server.post("/completion", {**GREEDY, "prompt": f"{i}. " + LETTERS * 9, "n_predict": 12})
                                for i in range(np)]):
            served.add(answer)
        events = finish(server)
    for answer, _ in served.check(events):
        assert answer["timings"]["prompt_n"] > 200


def test_prompts_saved_and_restored(tmp_path):
    """One slot, two conversations in turn: the server saves the one and restores the other (--cache-ram)."""
    served = Served()
    with start(SMOLLM2, ["--cache-ram", "64", "-np", "1"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        first, second = LETTERS * 3, "Numbers: " + ", ".join(map(str, range(80)))
        for prompt in [first, second, first + "So", second + ", 80", first + "So it"]:
            complete(served, server, prompt, 6)
        events = finish(server)
    served.check(events)
    assert all(answer["timings"]["cache_n"] > 50 for answer in served.answers[2:]), "nothing came out of the cache"
    operations = {event["cache_operation"] for event in of_kind(events, "kv_cache_operation")}
    assert {"save", "restore"} <= operations


def test_prompts_move_between_slots(tmp_path):
    served = Served()
    with start(SMOLLM2, ["--cache-ram", "64", "-np", "3", "--kv-unified"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        prompts = [letter * 2 + " " + LETTERS * 2 for letter in "abcde"]
        for prompt in prompts + [p + "Then" for p in prompts]:
            complete(served, server, prompt, 5)
        events = finish(server)
    served.check(events)
    assert sum(answer["timings"]["cache_n"] > 30 for answer in served.answers) >= 3


def test_a_grammar(tmp_path):
    """With a grammar the server reads and applies twice where the first choice is not allowed."""
    served = Served()
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
              "required": ["name", "age"]}
    with start(SMOLLM2, level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        for n in (3, 40):
            complete(served, server, "A person as JSON: ", n, json_schema=schema, temperature=0.9)
        complete(served, server, "Yes or no? ", 8, grammar='root ::= "yes" | "no"')
        complete(served, server, "Tell me", 8, n_probs=5)
        events = finish(server)
    served.check(events)


def test_embeddings(tmp_path):
    texts = ["A house.", LETTERS, "x " * 40]
    with start(SMOLLM2, ["--embedding", "--pooling", "mean", "-np", "2"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        counts = [len(server.post("/tokenize", {"content": text, "add_special": True})["tokens"]) for text in texts]
        for text in texts:
            vector = server.post("/embedding", {"content": text})[0]["embedding"]
            assert vector
        both = server.post("/v1/embeddings", {"input": texts[:2]})
        assert len(both["data"]) == 2 and both["usage"]["prompt_tokens"] == sum(counts[:2])
        events = finish(server)
    ends = of_kind(events, "request_end")
    assert len(ends) == len(of_kind(events, "request_start")) == 5, brief(ends)
    assert [end["prompt_tokens"] for end in ends[:3]] == counts
    assert sorted(end["prompt_tokens"] for end in ends[3:]) == sorted(counts[:2])
    for end in ends:
        assert (end["generated_tokens"], end["cached_tokens"], end["outcome"]) == (0, 0, "no_tokens"), brief([end])
        assert end["ttft_ms"] is None and end["tokens_per_second"] is None and end["inter_token_ms"] is None


def test_speculation(tmp_path):
    """The draft context decodes too, and the target verifies several tokens at once: neither adds requests or tokens."""
    served = Served()
    arguments = ["-md", SMOLLM2, "--spec-type", "draft-simple", "--spec-draft-n-max", "4", "-np", "2", "--kv-unified"]
    with start(SMOLLM2, arguments, level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        complete(served, server, LETTERS, 30)
        complete(served, server, "Once upon a time", 25, temperature=1.5)
        for answer in together([lambda p=prompt: server.post("/completion", {**GREEDY, "prompt": p, "n_predict": 20})
                                for prompt in (LETTERS, "Numbers: one, two,")]):
            served.add(answer)
        events = finish(server)
    assert sum(answer["timings"].get("draft_n_accepted", 0) for answer in served.answers) > 10, "nothing was drafted"
    served.check(events, speeds=False)  # the server's clock stops at another token of a draft


def test_backend_sampling(tmp_path):
    """The token is sampled inside the graph and only read (`--backend-sampling`)."""
    served = Served()
    with start(SMOLLM2, ["-np", "2", "--kv-unified", "--backend-sampling"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        complete(served, server, LETTERS, 10, samplers=["top_k", "temperature"], backend_sampling=True)
        for answer in together([lambda p=prompt: server.post("/completion", {"prompt": p, "n_predict": 12, "backend_sampling": True})
                                for prompt in (LETTERS, "Numbers: one, two,")]):
            served.add(answer)
        events = finish(server)
    served.check(events)


def test_refused_requests_leave_nothing(tmp_path):
    """Too long, empty, or not understood: no request, and the next one on the slot is whole."""
    served = Served()
    with start(SMOLLM2, ["-c", "256"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        assert server.request("POST", "/completion", {"prompt": LETTERS * 40, "n_predict": 4})[0] == 400
        assert server.request("POST", "/completion", {"prompt": "x", "n_predict": 4, "grammar": "root ::= ("})[0] == 400
        complete(served, server, LETTERS, 4)
        assert server.request("POST", "/completion", {"prompt": LETTERS * 40, "n_predict": 4})[0] == 400
        complete(served, server, LETTERS, 4)
        events = finish(server)
    served.check(events)


def test_no_requests(tmp_path):
    """Warm-up, the fit probe and the start of the slots are no requests, and use no cache."""
    with start(SMOLLM2, ["-np", "3"], level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        events = finish(server)
    assert not of_kind(events, "request_start", "request_end", "request_token")
    assert not of_kind(events, "kv_cache_usage"), "the use of a cache that nothing used"
    assert [load["outcome"] for load in of_kind(events, "model_load")] == ["probe", "load"]


def test_waiting_counts_as_time_to_first_token(tmp_path):
    """A prompt that finds the batch full waits: ttft = wait + prompt. The server fills slot 0's prompt into each batch first."""
    served = Served()
    with start(SMOLLM2, ["-np", "2", "-b", "32", "-ub", "32", "--kv-unified"], level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        # One call with two prompts: both are launched before any work begins.
        for answer in server.post("/completion", {**GREEDY, "prompt": [f"{i} " + LETTERS * 8 for i in range(2)], "n_predict": 3}):
            served.add(answer)
        events = finish(server)
    ends = [end for _, end in served.check(events)]
    for end in ends:
        assert near(end["ttft_ms"], end["wait_ms"] + end["prompt_ms"], relative=0, slack=1e-3), end
    waited = {end["seq_id"]: end for end in ends}
    # Six batches of the other prompt went by; the server's own clock leaves them out, ours must not.
    assert waited[0]["wait_ms"] < 5 and waited[1]["wait_ms"] > 0.8 * waited[0]["prompt_ms"], brief(ends)
