"""Expert routing against a second computation of the whole model, in NumPy, from the weights of the file."""

import gguf
import numpy as np
import pytest

import make_tiny
from server import read_log
from truth import of_kind, start

EPSILON = 1e-5


class Qwen3Moe:
    """The forward pass of the tiny qwen3moe model, token by token list, up to the choice of experts in each layer."""

    def __init__(self, path):
        self.w = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
                  for tensor in gguf.GGUFReader(path).tensors}

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * self.w[f"{name}.weight"]

    def rope(self, x):
        """Rotates the halves of each head: x is [tokens, heads, size]."""
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[0])[:, None, None] * 10000.0 ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)

    def attention(self, x, block):
        def heads(part, n):
            return (x @ self.w[f"{block}.attn_{part}.weight"].T).reshape(len(x), n, make_tiny.HEAD_DIM)

        q = self.rope(self.norm(heads("q", make_tiny.HEADS), f"{block}.attn_q_norm"))
        k = self.rope(self.norm(heads("k", make_tiny.KV_HEADS), f"{block}.attn_k_norm"))
        share = make_tiny.HEADS // make_tiny.KV_HEADS
        k, v = np.repeat(k, share, axis=1), np.repeat(heads("v", make_tiny.KV_HEADS), share, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(make_tiny.HEAD_DIM)
        scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(x), -1) @ self.w[f"{block}.attn_output.weight"].T

    def experts(self, x, block):
        """(what the chosen experts add, [tokens, used] ids)"""
        odds = softmax(x @ self.w[f"{block}.ffn_gate_inp.weight"].T)
        chosen = np.argsort(-odds, axis=-1)[:, :make_tiny.EXPERTS_USED]
        out = np.zeros_like(x)
        for token, ids in enumerate(chosen):
            for expert in ids:
                gate, up, down = (self.w[f"{block}.ffn_{part}_exps.weight"][expert] for part in ("gate", "up", "down"))
                a = gate @ x[token]
                out[token] += odds[token, expert] / odds[token, ids].sum() * (down @ (a / (1 + np.exp(-a)) * (up @ x[token])))
        return out, chosen

    def choices(self, tokens):
        """[layer] -> [tokens, used] ids of experts."""
        x, chosen = self.w["token_embd.weight"][tokens], []
        for layer in range(make_tiny.LAYERS):
            block = f"blk.{layer}"
            x = x + self.attention(self.norm(x, f"{block}.attn_norm"), block)
            added, ids = self.experts(self.norm(x, f"{block}.ffn_norm"), block)
            x = x + added
            chosen.append(ids)
        return chosen


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("level", ["DETAILED", "VERBOSE"])
def test_routing_is_what_the_weights_say(tmp_path, tiny_model, level):
    path = tiny_model("qwen3moe")
    with start(path, ["-np", "1", "-c", "512"], level=level, log_path=tmp_path / "log.jsonl") as server:
        prompt = server.post("/tokenize", {"content": "the people of the small house were there when the light was on. " * 3})["tokens"]
        answer = server.post("/completion", {"prompt": prompt, "n_predict": 60, "temperature": 0, "return_tokens": True})
        assert server.stop() == 0
    events = of_kind(read_log(tmp_path / "log.jsonl"), "moe_routing")
    sequence = prompt + answer["tokens"][:-1]
    model = Qwen3Moe(path)
    # The server tries the cache with two tokens 0, and warms up with <s> and </s>, before the request.
    runs = [([0, 0], 1), ([1, 2], 1), (sequence, len(answer["tokens"]))]
    truth = np.zeros((make_tiny.LAYERS, make_tiny.EXPERTS), int)
    tokens = np.zeros(make_tiny.LAYERS, int)
    for ids, outputs in runs:
        for layer, chosen in enumerate(model.choices(ids)):
            if layer == make_tiny.LAYERS - 1:
                chosen = chosen[-outputs:]  # after the last attention only rows with an output go on
            truth[layer] += np.bincount(chosen.ravel(), minlength=make_tiny.EXPERTS)
            tokens[layer] += len(chosen)
    counts = np.zeros_like(truth)
    for event in events:
        assert event["experts_used"] == make_tiny.EXPERTS_USED and len(event["counts"]) == make_tiny.EXPERTS
        assert sum(event["counts"]) == event["tokens"] * make_tiny.EXPERTS_USED
        counts[event["layer_id"]] += event["counts"]
        tokens[event["layer_id"]] -= event["tokens"]
    assert not tokens.any(), f"tokens routed, by layer, differ by {tokens}"
    moved = np.abs(counts - truth).sum() / 2
    print(f"{moved:.0f} of {truth.sum()} choices differ; counts {counts.tolist()}")
    assert len({tuple(row) for row in counts}) == make_tiny.LAYERS and counts.std() > 5, "nothing to tell apart"
    # The server multiplies in half precision: an even choice may fall the other way.
    assert moved <= 0.01 * truth.sum(), (counts, truth)
