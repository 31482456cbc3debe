"""Rows: every captured row names its sequence, position and token.

Two truths, neither of them ours. The server's own answers - its tokenizer, the tokens it returned, how many it took from its cache, where
it shifted the context - say which (position, token) each slot must have processed, in order and completely. And a run of the same texts
one token at a time (`-ub 1`, the oracle) says which values belong to a position, so that a row with the right label on the wrong values
is found too.
"""

import re
from collections import defaultdict

import numpy as np
import pytest

from capture import Stream, account, align, capturing, check_account, made_up, read_oracle, together, total, witnessed

LETTERS = "There was a house by the water, and the people in it were not there when the light was on. "
PROMPTS = [LETTERS, "What would they have? ", LETTERS * 2, "1 2 3 4 5 6 7 8 9 and the small house "]
GREEDY = {"temperature": 0, "seed": 7, "ignore_eos": True, "return_tokens": True}
DENSE = ["llama", "qwen3", "gemma3", "gptneox"]
RECURRENT = ["mamba", "rwkv7", "falcon-h1", "lfm2", "qwen35"]
UNIFIED = ["--kv-unified", "--no-kv-unified"]


class Asked:
    """Requests made to a server, and what each slot must have processed for them."""

    def __init__(self, server):
        self.server = server
        self.slots = defaultdict(list)  # slot -> [(pos, token)], as processed
        self.texts = []                 # token ids of each request, prompt and answer

    def ask(self, prompt, n_predict, **more):
        """A request, not yet accounted for: (prompt's tokens, answer)."""
        ids = self.server.post("/tokenize", {"content": prompt, "add_special": True})["tokens"]
        return ids, self.server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n_predict, **more})

    def ask_all(self, prompts, n_predict):
        """One request of several prompts, which start together, each in a slot of its own; accounted for."""
        ids = [self.server.post("/tokenize", {"content": prompt, "add_special": True})["tokens"] for prompt in prompts]
        answers = self.server.post("/completion", {**GREEDY, "prompt": prompts, "n_predict": n_predict})
        answers.sort(key=lambda answer: answer["index"])
        assert len({answer["id_slot"] for answer in answers}) == len(prompts)
        for tokens, answer in zip(ids, answers):
            self.add(tokens, answer)
        return answers

    def add(self, ids, answer, shifts=(), n_ctx=0):
        """Accounts for an answer: the prompt behind what was cached, then every token but the last, which was never processed.

        shifts  how many tokens each context shift discarded; it comes when the next token would fill the slot's context, `n_ctx`
        """
        tokens = ids + answer["tokens"]
        timings = answer["timings"]
        assert timings["cache_n"] + timings["prompt_n"] == len(ids) and timings["predicted_n"] == len(answer["tokens"])
        discarded, to_come = 0, list(shifts)
        for number in range(timings["cache_n"], len(tokens) - 1):
            if to_come and number - discarded == n_ctx - 1:
                discarded += to_come.pop(0)
            self.slots[answer["id_slot"]].append((number - discarded, tokens[number]))
        assert not to_come, "a shift that did not come"
        self.texts.append(tokens)

    def check(self, processed):
        """`processed`: (seq, pos, token) in the order in which they were."""
        by_slot = defaultdict(list)
        for seq, pos, token in processed:
            by_slot[seq].append((pos, token))
        assert by_slot.keys() == self.slots.keys()
        for slot, rows in self.slots.items():
            found = by_slot[slot]
            where = next((i for i, pair in enumerate(zip(rows, found)) if pair[0] != pair[1]), min(len(rows), len(found)))
            assert found == rows, f"slot {slot}, row {where} of {len(rows)} ({len(found)} found): {rows[where:where + 5]}, found {found[where:where + 5]}"


def busy(server):
    """Four slots at work, then the same prefixes again, then several completions of one prompt."""
    asked = Asked(server)
    for suffix, n in (("", 9), ("Then there were more people. ", 6)):
        asked.ask_all([prompt + suffix for prompt in PROMPTS], n)
    return asked


def captured_rows(stream, name):
    """(seq, pos, token) of a tensor with one row a token, in capture order."""
    return [tuple(row) for part in stream.parts[name] for row in part.rows.tolist()]


def end(server, path):
    assert server.stop() == 0, server.stderr[-2000:]
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    return Stream(path)


@pytest.mark.parametrize("unified", UNIFIED)
@pytest.mark.parametrize("model", [*DENSE, *RECURRENT])
def test_four_slots(model, unified, tiny_model, tmp_path):
    args = ["-c", "2048", "-np", "4", "-b", "64", "-ub", "32", unified]
    with capturing(tiny_model(model), tmp_path / "acts.stream", args, tensors="residual", route="auto") as server:
        asked = busy(server)
        stream = end(server, tmp_path / "acts.stream")
    served = without_warm_up(stream)
    asked.check(served)
    assert len({len(part.rows) for part in stream.parts["l_out-0"]}) > 2, "batches of one size only"


def without_warm_up(stream, name="l_out-0"):
    """Rows of a layer that has all tokens; the host's warm-up (two tokens at position 0 and 1, before anything is asked), if captured, is not one of them."""
    parts = stream.parts[name]
    warm = 0
    while warm < 2 and len(parts[warm].rows) == 2 and parts[warm].rows[:, 1].tolist() == [0, 1]:
        warm += 1
    return [tuple(row) for part in parts[warm:] for row in part.rows.tolist()]


TAIL = " people of the small house by the water and the people in it"


@pytest.mark.parametrize("batch, ubatch", [(64, 16), (20, 7), (24, 24)])
@pytest.mark.parametrize("model", ["llama", "gpt-oss", "mamba", "lfm2"])
def test_same_tokens_at_the_same_positions(model, batch, ubatch, tiny_model, tmp_path):
    """Four prompts that agree almost everywhere, of different lengths, cut into ubatches: (position, token) alone does not tell whose a row is.

    One request holds them all, so the batches are the same every time. The truth is llama.cpp's own ubatch.
    """
    path, witness = tmp_path / "acts.stream", tmp_path / "oracle.bin"
    args = ["-c", "2048", "-np", "4", "-b", batch, "-ub", ubatch]
    prompts = [letter + TAIL * n for letter, n in zip("abcd", (1, 2, 1, 3))] + [TAIL * n for n in (3, 1, 2, 1)]
    with capturing(tiny_model(model), path, args, witness=witness, names="l_out", tensors="residual", route="auto") as server:
        for some in (prompts[:4], prompts[4:]):
            server.post("/completion", {**GREEDY, "prompt": some, "n_predict": 4, "cache_prompt": False})
        stream = end(server, path)
    pairs = align(stream, read_oracle(witness))
    wrong = [f"step {step}: {parts['l_out-0'].table}, ubatch {run.rows}" for step, parts, run in pairs if parts["l_out-0"].table != run.rows]
    assert not wrong, f"{len(wrong)} of {len(pairs)} steps:\n" + "\n".join(wrong[:3])


@pytest.mark.parametrize("unified", UNIFIED)
def test_several_completions_of_one_prompt(unified, tiny_model, tmp_path):
    """The prompt is processed once, in one slot; the others get a copy of its cache and process only what they generate."""
    args = ["-c", "2048", "-np", "4", unified]
    with capturing(tiny_model("llama"), tmp_path / "acts.stream", args, tensors="residual", route="auto") as server:
        asked = Asked(server)
        ids, answers = asked.ask(LETTERS, 7, n_cmpl=3, temperature=1.5)
        for answer in answers:
            tokens = ids + answer["tokens"]
            start = 0 if answer is answers[0] else len(ids)
            asked.slots[answer["id_slot"]] += [(pos, tokens[pos]) for pos in range(start, len(tokens) - 1)]
        stream = end(server, tmp_path / "acts.stream")
    assert len({tuple(answer["tokens"]) for answer in answers}) > 1, "all alike: a mix-up would not be seen"
    asked.check(without_warm_up(stream))


@pytest.mark.parametrize("model", ["llama", "gemma2"])
@pytest.mark.parametrize("slots", [1, 2])
def test_context_shift(model, slots, tiny_model, tmp_path):
    args = ["-c", 256 * slots, "-np", slots, "--context-shift", "--no-kv-unified"]
    with capturing(tiny_model(model), tmp_path / "acts.stream", args, tensors="residual", route="auto") as server:
        asked = Asked(server)
        answers = together([lambda p=p: asked.ask(p, 400) for p in PROMPTS[:slots]])
        shifts = defaultdict(list)
        for slot, n in re.findall(r"id +(\d+).*slot context shift, n_keep = \d+, n_left = \d+, n_discard = (\d+)", server.stderr):
            shifts[int(slot)].append(int(n))
        for ids, answer in answers:
            assert shifts[answer["id_slot"]], "the context was never shifted"
            asked.add(ids, answer, shifts[answer["id_slot"]], n_ctx=256)
        stream = end(server, tmp_path / "acts.stream")
    asked.check(without_warm_up(stream))


# --- Values ---

def references(model, texts, tmp_path):
    """For each text, (name, op, occurrence) -> values [token, ...] of a run with one token at a time."""
    found = []
    for number, tokens in enumerate(texts):
        path = tmp_path / f"one-by-one-{number}.bin"
        with witnessed(model, path, ["-c", "512", "-np", "1", "-ub", "1", "-b", "16"]) as server:
            server.post("/completion", {"prompt": tokens, "n_predict": 1, "temperature": 0, "cache_prompt": False})
            server.stop()
        runs = [run for run in read_oracle(path) if run.rows is not None][-len(tokens):]
        assert [run.rows for run in runs] == [[(0, pos, token)] for pos, token in enumerate(tokens)]
        by_name = defaultdict(list)
        for run in runs:
            for node in run.nodes:
                if node.taken and node.dtype == "f32":
                    by_name[node.name, node.op, node.occurrence].append(np.frombuffer(node.data, np.float32))
                    if node.op == "RESHAPE":  # under its name a nameless node is stored
                        by_name[node.name, None, node.occurrence].append(np.frombuffer(node.data, np.float32))
        found.append({name: np.stack(rows) for name, rows in by_name.items() if len({len(r) for r in rows}) == 1 and len(rows) == len(tokens)})
    return found


@pytest.mark.parametrize("model", ["qwen3", "gemma3", "mamba", "rwkv7", "falcon-h1", "lfm2"])
def test_values_belong_to_their_rows(model, tiny_model, tmp_path):
    """Each row's values are those of its token in a run of its text alone, one token at a time; all tensors, not only the residual."""
    args = ["-c", "2048", "-np", "4", "-b", "64", "-ub", "32"]
    with capturing(tiny_model(model), tmp_path / "acts.stream", args, tensors="FULL_TENSOR", route="auto") as server:
        asked = Asked(server)
        text_of = {answer["id_slot"]: number for number, answer in enumerate(asked.ask_all(PROMPTS, 7))}
        stream = end(server, tmp_path / "acts.stream")
    truth = references(tiny_model(model), asked.texts, tmp_path)
    compared, wrong = defaultdict(int), []
    apart = []
    for name, parts in stream.parts.items():
        for part in parts:
            for (seq, pos, token), values in per_token(part):
                if seq < 0 or part.values.dtype != np.float32:
                    continue
                text = text_of[seq]
                expected = truth[text].get((part.meta["tensor"], part.meta["op"], part.meta["occurrence"]))
                if made_up(part.meta["tensor"]):
                    expected = truth[text].get((name, None, 0), expected)
                if expected is None or pos >= len(asked.texts[text]) or expected.shape[1] != values.size:
                    continue
                error = np.linalg.norm(expected - values, axis=1) / max(np.linalg.norm(values), 1e-9)
                compared[name] += 1
                apart.append(np.median(error))
                if error[pos] > 0.1:
                    wrong.append(f"{name} step {part.step} seq {seq} pos {pos}: {error[pos]:.3f} off; nearest is pos {error.argmin()} ({error.min():.3f})")
    assert not wrong, f"{len(wrong)} of {sum(compared.values())}:\n" + "\n".join(wrong[:20])
    assert sum(compared.values()) > 3000 and "l_out-0" in compared, dict(compared)
    assert np.median(apart) > 0.5, "rows hardly differ: a mix-up would not be seen"


def per_token(part):
    """((seq, pos, token), values) of each token of a part: its rows in order, flattened."""
    rows = [tuple(row) for row in part.rows.tolist()]
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row].append(number)
    for row, numbers in groups.items():
        yield row, part.values[numbers].ravel()
