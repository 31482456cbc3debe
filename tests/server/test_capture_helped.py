"""Where llama.cpp computes on every core, its own threads encode rows while a step runs: the same stream, and less work for ours."""

import os
from pathlib import Path

import numpy as np
import pytest

from capture import (Part, Stream, account, align, capturing, check_account, made_up, packets, read_oracle, reader, resolve, spread, total,
                     unmatched_rows)
from server import SMOLLM2
from test_capture_truth import busy

CORES = len(os.sched_getaffinity(0))
PROMPT = {"prompt": "Once upon a time", "temperature": 0, "seed": 1, "ignore_eos": True, "n_predict": 320, "cache_prompt": False}


def codec_ms(pid):
    """CPU time of our codec threads."""
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if (task / "comm").read_text().startswith("lri-cap-codec")]
    assert tasks, "no codec thread"
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def captured(path, threads, **settings):
    """CPU time of our codec threads while the request ran, and the stream."""
    with capturing(SMOLLM2, path, ["-t", str(threads), "-np", "1", "-c", "512"], route="retain", codec="bounded", **settings) as server:
        text = server.post("/completion", PROMPT)["content"]
        spent = codec_ms(server.pid)
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    return text, spent, Stream(path, exported=True)


def test_the_hosts_threads_compress_where_they_fill_every_core(tmp_path):
    (text, helped, ours), (same, alone, theirs) = (
        captured(tmp_path / f"{n}.stream", CORES, codec_threads=n) for n in (None, 1))
    print(f"codec threads: {helped:.1f} ms helped, {alone:.1f} ms alone")
    assert text == same
    # Ours puts encoded rows together to packets.
    assert alone > 20 and helped < alone / 2, (helped, alone)
    # The same rows of the same steps in the same order, whoever compressed them.
    assert ours.parts.keys() == theirs.parts.keys()
    for name, parts in ours.parts.items():
        assert [(p.step, p.values.tobytes()) for p in parts] == [(p.step, p.values.tobytes()) for p in theirs.parts[name]], name


def test_with_a_core_to_spare_they_compute(tmp_path):
    if CORES < 2:
        pytest.skip("one core")
    _, spared, _ = captured(tmp_path / "a.stream", CORES - 1, codec_threads=None)
    _, alone, _ = captured(tmp_path / "b.stream", CORES - 1, codec_threads=1)
    assert spared > alone * 2 / 3, (spared, alone)


class Decoded:
    """A stream of a codec of our own: values by the program's decoder, descriptions and rows of tokens from the packets."""

    def __init__(self, path):
        values = {(name, part.step): part.values for name, parts in Stream(path, exported=True).parts.items() for part in parts}
        self.steps = {}
        for kind, name, _, metadata in packets(path):
            if kind == "tensor":
                meta = reader._tensor(reader.Metadata(metadata))
                for part in meta["parts"]:
                    found = Part(part["step"], values[name, part["step"]], spread(part), meta, [row[:3] for row in part["rows"]])
                    assert name not in self.steps.setdefault(part["step"], {}), f"{name}: in two packets"
                    self.steps[part["step"]][name] = found


@pytest.mark.parametrize("codec", ["bounded", "fast"])
@pytest.mark.parametrize("model", ["smollm2", "llama", "qwen3moe", "gemma3", "deepseek2", "falcon-h1"])
def test_every_row_is_what_an_independent_hook_saw(model, codec, tiny_model, tmp_path):
    """Batches of two slots and of prompts, graphs that run again: within the bound of the oracle's exact values, row by row."""
    path, witness = tmp_path / "acts.stream", tmp_path / "oracle.bin"
    args = ["-c", "1024", "-b", "64", "-ub", "16", "-np", "2", "-t", str(CORES)]
    model = SMOLLM2 if model == "smollm2" else tiny_model(model)
    with capturing(model, path, args, witness=witness, route="retain", codec=codec, codec_threads=None) as server:
        busy(server)
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    compared = tensors = 0
    for step, parts, run in align(Decoded(path), read_oracle(witness)):
        for name, part in parts.items():
            where, tensors = f"step {step} (run {run.number}, {len(run.rows)} tokens) {name}", tensors + 1
            assert unmatched_rows(part, run) is None, f"{where}: {unmatched_rows(part, run)}"
            # A name that ggml made up does not say which node it was.
            if made_up(part.meta["tensor"]) or np.dtype(part.meta["dtype"]) != np.float32:
                continue
            node = resolve(part, run, {})
            assert node is not None and node.taken, f"{where}: no such node"
            exact, got = np.frombuffer(node.data, np.float32), part.values.reshape(-1)
            assert got.shape == exact.shape, where
            # `fast` bounds the error of a block by its greatest value: at most eight times that of the row's L2 norm.
            bound = 1.0001 * {"bounded": 1e-3, "fast": 8e-3}.get(part.meta["codec"], 0)
            exact, got = (a.reshape(-1, part.meta["row_len"]).astype(np.float64) for a in (exact, got))
            finite = np.isfinite(exact).all(axis=1)
            exact, got = exact[finite], got[finite]
            missed, size = (np.linalg.norm(a, axis=1) for a in (got - exact, exact))
            assert (missed <= bound * size).all(), f"{where}: {(missed / size).max()}"
            compared += 1
    assert compared > tensors / 2 > 50, (compared, tensors)
