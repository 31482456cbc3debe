"""Used cells of the KV cache: the library's replay against the cache's own count (LLAMA_KV_CACHE_DEBUG prints it before each ubatch)."""

import re
import time

import pytest

from server import SMOLLM2, read_log
from test_truth import together
from truth import FIND_SLOT, KV_DEBUG, LETTERS, find_slots, of_kind, start

GREEDY = {"temperature": 0, "seed": 7, "return_tokens": True, "ignore_eos": True}


class Talk:
    """One slot's conversation in tokens: what the slot holds is known to the last one, so that it can be continued without a cut."""

    def __init__(self, server, slot, text):
        self.server, self.slot = server, slot
        self.tokens = server.post("/tokenize", {"content": text})["tokens"]

    def go(self, n, more=(), **options):
        """Generate `n` tokens after `more` new ones; the slot then holds all but the last."""
        self.tokens += more
        answer = self.server.post("/completion", {**GREEDY, "prompt": self.tokens, "n_predict": n, "id_slot": self.slot, **options})
        assert answer["id_slot"] == self.slot and answer["timings"]["predicted_n"] == n
        self.tokens = self.tokens + answer["tokens"]
        return answer


def launch(model, tmp_path, *arguments):
    return start(model, ["-lv", "5", *arguments], env=KV_DEBUG, level="VERBOSE", log_path=tmp_path / "log.jsonl")


def by_time(events, stderr, swa=0):
    """[(the library's used cells, the cache's before the next ubatch)] wherever nothing was cut, copied or moved in between.

    Both logs have microseconds; a request's end, which both tell, ties the two clocks together. For unified caches.
    """
    stops = [at for at, _ in logged(r"stop processing: n_tokens", stderr)]
    ends = [event["t_ns"] / 1e3 for event in of_kind(events, "request_end")]
    assert len(stops) == len(ends)
    offsets = sorted(ours - theirs for ours, theirs in zip(ends, stops))
    offset = offsets[len(offsets) // 2]
    lines = [(at + offset, int(line[2])) for at, line in logged(FIND_SLOT.pattern, stderr) if int(line[4]) == swa]
    moved = [event["t_ns"] / 1e3 for event in of_kind(events, "kv_cache_operation") if event["cache_operation"] not in ("update", "save")]
    pairs = []
    for usage in of_kind(events, "kv_cache_usage"):
        now = usage["t_ns"] / 1e3
        following = next(((at, used) for at, used in lines if at > now), None)
        if following and not any(now <= t <= following[0] for t in moved):
            pairs.append((usage["used_cells"], following[1]))
    return pairs


def logged(pattern, stderr):
    """(microseconds since the start of the server's log, match) of every line with the pattern."""
    for line in stderr.splitlines():
        stamp, match = re.match(r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) ", line), re.search(pattern, line)
        if stamp and match:
            minutes, seconds, ms, us = map(int, stamp.groups())
            yield ((minutes * 60 + seconds) * 1000 + ms) * 1000 + us, match


def wait_for_end(server, requests):
    """The writer naps: wait until it has written the ends of `requests` requests; the last look at the cache was at the last end."""
    deadline = time.monotonic() + 10
    while True:
        events = of_kind(read_log(server.log_path, running=True), "request_end", "kv_cache_usage")
        events.sort(key=lambda event: event["t_ns"])  # where there is a GPU, an end waits for its figures
        if len(of_kind(events, "request_end")) == requests and events[-1]["event"] == "kv_cache_usage":
            assert events[-1]["reason"] == "request_end"
            return events[-1]
        assert time.monotonic() < deadline, "request_end did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("unified", ["--kv-unified", "--no-kv-unified"])
def test_at_rest(tmp_path, unified):
    """Four slots with different histories; then each is continued, and the cache's count before the first new token is its own."""
    with launch(SMOLLM2, tmp_path, "-np", "4", "-c", "2048", unified, "--cache-ram", "0") as server:
        talks = [Talk(server, slot, text) for slot, text in enumerate([LETTERS, LETTERS * 3, "A list of fruits:", "1 2 3 4 5 6 7"])]
        together([lambda talk=talk, n=n: talk.go(10 + 7 * n) for n, talk in enumerate(talks)])
        talks[2].go(5, more=[28, 339])
        # A cut in the middle: slot 1 forgets most of what it had.
        talks[1].tokens = talks[1].tokens[:30]
        talks[1].go(6, more=[500, 501, 502])
        usage = wait_for_end(server, 6)
        held = sum(len(talk.tokens) - 1 for talk in talks)
        seen = len(find_slots(server.stderr))
        for talk in talks:
            talk.go(1, more=[28])
        assert server.stop() == 0
        after = find_slots(server.stderr)[seen:]
    assert len(after) == 4, after
    if unified == "--kv-unified":
        assert [stream for stream, _, _, _ in after] == [0] * 4
        truth, size = after[0][1], after[0][2]
        # Each continuation adds the last token, which was not decoded yet, and a new one.
        assert [used for _, used, _, _ in after] == [truth + 2 * i for i in range(4)], "the probes were not continuations"
    else:
        assert [stream for stream, _, _, _ in after] == [0, 1, 2, 3]
        truth, size = sum(used for _, used, _, _ in after), sum(size for _, _, size, _ in after)
    assert truth == held, "the test itself lost count"
    assert (usage["used_cells"], usage["size_cells"], usage["sequences"]) == (truth, size, 4)


def test_step_by_step(tmp_path):
    """One after the other with cuts, then all at once, in a shared cache that also saves and clears idle slots."""
    with launch(SMOLLM2, tmp_path, "-np", "4", "-c", "2048", "--kv-unified") as server:
        for text, n in [(LETTERS, 60), (LETTERS + "Then", 40), ("Other", 50)]:
            server.post("/completion", {**GREEDY, "prompt": text, "n_predict": n})
        together([lambda i=i: server.post("/completion", {**GREEDY, "prompt": f"{i}: " + LETTERS, "n_predict": 30 + 9 * i}) for i in range(4)])
        assert server.stop() == 0
        stderr = server.stderr
    pairs = by_time(read_log(tmp_path / "log.jsonl"), stderr)
    assert len(pairs) >= 5 and len(set(pairs)) >= 4, pairs
    assert all(ours == theirs for ours, theirs in pairs), pairs


def test_completions_share_the_prompt(tmp_path):
    """Three completions of one prompt hold its cells once; when they end, only the first keeps what it has."""
    with launch(SMOLLM2, tmp_path, "-np", "3", "--kv-unified", "--cache-ram", "0") as server:
        answers = server.post("/completion", {**GREEDY, "prompt": LETTERS * 4, "n_predict": 60, "n_cmpl": 3, "temperature": 1.0})
        usage = wait_for_end(server, 3)
        assert server.stop() == 0
        stderr = server.stderr
    events = read_log(tmp_path / "log.jsonl")
    pairs = by_time(events, stderr)
    prompt = answers[0]["timings"]["prompt_n"]
    assert len(pairs) >= 2 and all(ours == theirs for ours, theirs in pairs), pairs
    assert all(prompt < ours <= prompt + 3 * 60 for ours, _ in pairs), "the prompt was counted once for each completion"
    assert usage["used_cells"] == prompt + 60 - 1 and usage["sequences"] == 1


def test_completions_in_streams_of_their_own(tmp_path):
    with launch(SMOLLM2, tmp_path, "-np", "3", "--no-kv-unified", "--cache-ram", "0") as server:
        answers = server.post("/completion", {**GREEDY, "prompt": LETTERS * 4, "n_predict": 30, "n_cmpl": 3, "temperature": 1.0})
        assert server.stop() == 0
        lines = find_slots(server.stderr)
    prompt = answers[0]["timings"]["prompt_n"]
    assert [used for _, used, _, _ in lines[-3:]] == [prompt + 28] * 3, "the prompt was not copied into each stream"
    ends = [usage["used_cells"] for usage in of_kind(read_log(tmp_path / "log.jsonl"), "kv_cache_usage") if usage["reason"] == "request_end"]
    # All end at the same token, in the order of the slots; the further completions are cleared as they end.
    assert len(ends) == 3 and set(ends) <= {n * (prompt + 29) for n in (1, 2, 3)} and ends[0] > ends[-1] == prompt + 29, ends


def test_context_shift(tmp_path):
    with launch(SMOLLM2, tmp_path, "-np", "2", "-c", "256", "--context-shift", "--kv-unified", "--cache-ram", "0") as server:
        talk = Talk(server, 0, LETTERS)
        talk.go(300)
        usage = wait_for_end(server, 1)
        # The server logs on a thread of its own: the line may come after the answer.
        stopped, deadline = [], time.monotonic() + 20
        while not stopped and time.monotonic() < deadline:
            stopped = re.findall(r"stop processing: n_tokens = (\d+)", server.stderr)
            time.sleep(0.05)
        in_slot = int(stopped[-1])
        assert "slot context shift" in server.stderr
        # What is left of the conversation is its end (n_keep is 0), without the last token, which was never decoded.
        talk.tokens = talk.tokens[:-1][-in_slot:] + talk.tokens[-1:]
        seen = len(find_slots(server.stderr))
        answer = talk.go(1, more=[28])
        # More ends that tie the two clocks: on a busy machine a thread may be put off between our note of one and the server's.
        for _ in range(4):
            talk.go(1, more=[28])
        assert server.stop() == 0
        stderr = server.stderr
    assert answer["timings"]["cache_n"] == in_slot
    assert usage["used_cells"] == find_slots(stderr)[seen:][0][1] == in_slot
    pairs = by_time(read_log(tmp_path / "log.jsonl"), stderr)
    assert len(pairs) >= 4 and all(ours == theirs for ours, theirs in pairs), pairs


def test_slots_saved_to_files(tmp_path):
    """`/slots/N?action=save|erase|restore`: the restored slot holds what was saved, in another slot too."""
    with launch(SMOLLM2, tmp_path, "-np", "3", "--kv-unified", "--cache-ram", "0", "--slot-save-path", f"{tmp_path}/") as server:
        talk, other = Talk(server, 0, LETTERS * 2), Talk(server, 2, "Numbers: one, two")
        talk.go(20)
        server.post("/slots/0?action=save", {"filename": "talk.bin"})
        server.post("/slots/0?action=erase", {"filename": "talk.bin"})
        other.go(8)
        server.post("/slots/0?action=restore", {"filename": "talk.bin"})
        server.post("/slots/1?action=restore", {"filename": "talk.bin"})
        other.go(8, more=[28])
        held = 2 * (len(talk.tokens) - 1) + len(other.tokens) - 1
        usage = wait_for_end(server, 3)
        seen = len(find_slots(server.stderr))
        talk.slot = 1
        answer = talk.go(4, more=[28])
        assert server.stop() == 0
        stderr = server.stderr
    assert answer["timings"]["cache_n"] > 40
    assert usage["used_cells"] == find_slots(stderr)[seen][1] == held and usage["sequences"] == 3
    events = read_log(tmp_path / "log.jsonl")
    operations = [event["cache_operation"] for event in of_kind(events, "kv_cache_operation") if event["cache_operation"] in ("save", "restore")]
    assert operations == ["save", "restore", "restore"]
    assert all(ours == theirs for ours, theirs in by_time(events, stderr))


def test_a_full_cache(tmp_path):
    """Two slots share fewer cells than they want: the server retries, gives up, and clears; the replay must follow."""
    with launch(SMOLLM2, tmp_path, "-np", "2", "-c", "512", "--kv-unified", "--cache-ram", "0") as server:
        body = {**GREEDY, "n_predict": 250}
        answers = together([lambda i=i: server.request("POST", "/completion", {**body, "prompt": f"{i}" + LETTERS * 5}) for i in range(2)])
        assert "failed to find free space in the KV cache" in server.stderr
        server.post("/completion", {**body, "prompt": LETTERS, "n_predict": 30})
        assert server.stop() == 0
        stderr = server.stderr
    events = read_log(tmp_path / "log.jsonl")
    assert len(of_kind(events, "request_start")) == len(of_kind(events, "request_end")) == 3, answers
    pairs = by_time(events, stderr)
    assert len(pairs) >= 4 and all(ours == theirs for ours, theirs in pairs), pairs


@pytest.mark.parametrize("name, swa", [("gemma3", 0), ("gpt-oss", 0), ("granitehybrid", 0), ("qwen35", 0)])
def test_other_memories(tmp_path, tiny_model, name, swa):
    """Sliding windows and hybrids: the cells of the full attention layers."""
    with launch(tiny_model(name), tmp_path, "-np", "2", "-c", "1024", "--kv-unified") as server:
        text = "there was a house by the water and the people in it were not there " * 2
        for prompt, n in [(text, 40), (text + "when", 20), ("the people", 40), (text + "when the", 30)]:
            server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n})
        assert server.stop() == 0
        stderr = server.stderr
    events = read_log(tmp_path / "log.jsonl")
    pairs = by_time(events, stderr, swa)
    assert len(pairs) >= 2 and all(ours == theirs for ours, theirs in pairs), pairs


def test_recurrent_memory_has_no_cells(tmp_path, tiny_model):
    with launch(tiny_model("mamba"), tmp_path, "-np", "2") as server:
        server.post("/completion", {**GREEDY, "prompt": "the house", "n_predict": 5})
        assert server.stop() == 0
    usages = of_kind(read_log(tmp_path / "log.jsonl"), "kv_cache_usage")
    assert usages and all(usage["used_cells"] is None for usage in usages)
