"""Where llama.cpp computes on every core, its own threads compress: the same stream, and hardly any work for ours."""

import os
from pathlib import Path

import pytest

from capture import Stream, account, capturing, check_account, total
from server import SMOLLM2

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
    assert spared > alone / 4, (spared, alone)
