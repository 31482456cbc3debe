"""Meaning: the residual stream, stored with a lossy codec and put back into the model, must not change what the model says.

A text goes through the model once, exactly; the residual stream is captured once with each codec. Then the model runs again, and each
layer's residual gets the error of the stored one (`eval_tool --add`), all layers in one run, so that errors meet and grow as they do where
a whole stream is used. The floor is not zero: the quantised matrix products round activations, and any change flips some of these
roundings, which is why the measure is what half precision does.
"""

import os
import subprocess

import numpy as np
import pytest

from capture import LIBRARY, Stream, capture_env, eval_tool
from server import SMOLLM2

TEXT = """The harbour had been built for ships that no longer came. In the years when grain was carried by sail, forty masts could be
counted from the church tower on a summer morning, and the inns along the quay kept their lamps lit until the last crew had found its way
back on board. Then the railway reached the next town, the river brought down its sand, and within one generation the deep channel had
become a broad, shallow mirror in which herons stood and waited. Most families left. Those who stayed learned to live from what the mud
gave them: eels, mussels, and reeds for the roofs of the farms inland. A teacher who arrived at that time wrote in her diary that the
children could read the wind better than their books, and that she had decided to teach them arithmetic with the tables of the tides. It
worked so well that the inspector, who had come to close the school, sat in the last row for a whole morning and worked out the height of
the water at the old bridge for every day of the following week. He was wrong by less than a hand, and he never mentioned closing the
school again. Today there is a small museum in the customs house. Its most valuable exhibit is not the model of the last three-masted
ship, nor the silver cup that the king is said to have left behind, but a plain notebook in which four pupils recorded, twice a day and
for eleven years, how high the water stood, where the wind came from, and what they had seen pass by. Scientists who study how the coast
is changing ask for copies of it, because nobody else was looking."""
TOKENS = 256
CODECS = ["f16", "bf16", "bounded", "fast"]


def run(tmp_path, name, *arguments, **env):
    """Logits of every token of the text, in double precision."""
    text, logits = tmp_path / "text.txt", tmp_path / f"{name}.logits"
    text.write_text(TEXT.replace("\n", " "))
    environment = {"PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "passive", "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"), **env}
    # Its own callback is off unless it changes something, so that the exact run is the production graph.
    command = [str(eval_tool()), str(SMOLLM2), "--text", str(text), "--tokens", str(TOKENS), "--ask", "none", "--logits", str(logits),
               "--ids", str(tmp_path / "ids"), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    values = np.fromfile(logits, np.float32).reshape(-1, 49152)
    logits.unlink()
    return values


def residual(tmp_path, codec):
    """layer -> [tokens, n_embd] as stored with the codec."""
    path = tmp_path / f"{codec}.stream"
    run(tmp_path, codec, LD_PRELOAD=str(LIBRARY), **capture_env(path, tensors="l_out", route="retain", codec=codec))
    parts = Stream(path, exported=codec in ("bounded", "fast")).parts
    rows = {name: np.concatenate([part.values for part in parts[name]])[-TOKENS:] for name in parts}
    assert len(rows) == 30 and all(values.shape == (TOKENS, 576) for values in rows.values()), {n: v.shape for n, v in rows.items()}
    return rows


def distance(exact, other):
    """Of two runs' logits: KL divergence in nats (mean, 99th percentile) and how often the first choice is the same."""
    def log_probabilities(logits):
        logits = logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    divergences, same = [], 0
    for start in range(0, len(exact), 32):
        p, q = log_probabilities(exact[start : start + 32]), log_probabilities(other[start : start + 32])
        divergences += list((np.exp(p) * (p - q)).sum(axis=1))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    return float(np.mean(divergences)), float(np.quantile(divergences, 0.99)), same / len(exact)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """(logits, residual stream) of the exact run."""
    tmp_path = tmp_path_factory.mktemp("exact")
    return run(tmp_path, "plain"), residual(tmp_path, "none")


def inject(tmp_path, option, values):
    arguments = []
    for name, rows in values.items():
        path = tmp_path / f"{name}.f32"
        rows.astype(np.float32).tofile(path)
        arguments += [f"--{option}", f"{name}={path}"]
    return run(tmp_path, "injected", *arguments)


def test_exact_values_change_nothing(exact, tmp_path):
    """The lossless stream, put back, is the exact run: so what is injected arrives, and the measure begins at zero."""
    logits, layers = exact
    assert distance(logits, inject(tmp_path, "replace", layers))[0] == 0
    wrong = {"l_out-5": np.roll(layers["l_out-5"], 1, axis=0)}
    assert distance(logits, inject(tmp_path, "replace", wrong))[0] > 0.1, "the injection has no effect"


def test_bounded_sits_at_the_floor_of_f16(exact, tmp_path, capsys):
    logits, layers = exact
    table = {}
    for codec in CODECS:
        stored = residual(tmp_path, codec)
        errors = {name: stored[name].astype(np.float64) - layers[name] for name in layers}
        row_l2 = max(float((np.linalg.norm(errors[name], axis=1) / np.linalg.norm(layers[name], axis=1)).max()) for name in layers)
        table[codec] = (*distance(logits, inject(tmp_path, "add", errors)), row_l2)
    with capsys.disabled():
        print(f"\n\nresidual put back, {TOKENS} tokens, SmolLM2-135M Q4_1, all 30 layers\n"
              f"{'codec':<10}{'KL mean':>10}{'KL p99':>10}{'top-1 same':>12}{'row L2 max':>12}")
        for codec, (mean, p99, same, row_l2) in table.items():
            print(f"{codec:<10}{mean:>10.2e}{p99:>10.2e}{same:>11.1%} {row_l2:>12.2e}")
    f16, bounded = table["f16"], table["bounded"]
    assert bounded[3] <= 1e-3 * (1 + 1e-6), "the bound does not hold"
    assert bounded[0] <= 1.5 * f16[0], "farther from the exact run than half precision is"
    assert bounded[2] >= f16[2] - 0.025
    assert max(f16[0], bounded[0]) < 1e-2
