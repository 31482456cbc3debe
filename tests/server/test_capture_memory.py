"""Memory: with everything captured, the host grows by less than the budget, however long it runs and however large its batches are.

LRI_LONG sets the seconds of the long run (600 for the promised ten minutes). A stream of that length would be some tens of gigabytes: its
blocks are given back to the file system a while after they were written.
"""

import ctypes
import json
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from capture import capturing, check_account, plain, total
from server import LIBRARY, SMOLLM2

LETTERS = "There was a house by the water, and the people in it were not there when the light was on. "
GREEDY = {"temperature": 0, "seed": 7, "ignore_eos": True, "cache_prompt": False}
SECONDS = float(os.environ.get("LRI_LONG", "10"))
MB = 1 << 20


class Watch(threading.Thread):
    """The largest resident size of a process, and the last one."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.peak, self.last, self.over = Path(f"/proc/{pid}/statm"), 0, 0, False
        self.start()

    def run(self):
        while not self.over:
            try:
                self.last = int(self.path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, IndexError):
                return
            self.peak = max(self.peak, self.last)
            time.sleep(0.02)


class Eater(threading.Thread):
    """Punches holes into a growing file, up to `KEPT` bytes before its end: it keeps its length and takes no more room."""

    KEPT = 256 << 20
    PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.at, self.over = path, 0, False
        self.start()

    def run(self):
        libc = ctypes.CDLL(None, use_errno=True)
        while not self.over:
            time.sleep(0.5)
            if not self.path.exists():
                continue
            end = (self.path.stat().st_size - self.KEPT) & -4096
            if end > self.at:
                with open(self.path, "r+b") as file:
                    length = ctypes.c_int64(end - self.at)
                    if libc.fallocate(file.fileno(), self.PUNCH_HOLE, ctypes.c_int64(self.at), length):
                        return  # a file system without holes keeps it all
                self.at = end


def end_of(path):
    """The account in the end packet, found from the file's last bytes."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (64 << 10)))
        last = file.read()
    trailer_len, mark = struct.unpack("<4xI4x4s", last[-16:])
    assert mark == b"LRS1", "no end packet"
    return json.loads(last[-trailer_len + 18 : -16])["account"]


def load(server, seconds):
    """Long prompts in large batches, short ones that the allocator keeps, and decode, for so long; gives (peak, tokens)."""
    watch, tokens, begun, number = Watch(server.pid), 0, time.monotonic(), 0
    while not number or time.monotonic() - begun < seconds:
        for prompt, n in ((LETTERS[:30], 4), (LETTERS * 2, 4), (f"{number} " + LETTERS * 24, 4), ("Once more", 60)):
            timings = server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n})["timings"]
            tokens += timings["prompt_n"] + timings["predicted_n"]
        number += 1
    watch.over = True
    return watch.peak, tokens


# Of 64 MB, the allocator may keep a prompt of 8 tokens; of 256, one of 45: what it takes, the buffers must leave.
@pytest.mark.parametrize("policy, budget", [("block", 64), ("drop", 64), ("block", 256)])
@pytest.mark.parametrize("codec", ["bounded"])
def test_growth_stays_under_the_budget(policy, budget, codec, tmp_path):
    # The server's own cache of finished prompts would grow with every request.
    args = ["-c", "1024", "-np", "1", "-ub", "512", "--cache-ram", "0"]
    # The same library without a capture: what is measured is the capture.
    env = {"LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "idle.jsonl")}
    with plain(SMOLLM2, args, env) as server:
        without, _ = load(server, 1)
    path = tmp_path / "acts.stream"
    seconds = SECONDS if (policy, budget) == ("block", 64) else min(SECONDS, 5)
    with capturing(SMOLLM2, path, args, tensors="FULL_TENSOR", route="auto", codec=codec, policy=policy, max_memory=f"{budget}M") as server:
        eater = Eater(path)
        peak, tokens = load(server, seconds)
        assert server.stop(timeout=60) == 0
        eater.over = True
    said = end_of(path)
    size = path.stat().st_size
    path.unlink()
    grown = peak - without
    print(f"\n{policy}: {tokens} tokens in {seconds:.0f} s, {total(said, 'captured')[1] / 1e9:.2f} GB captured, {size / 1e9:.2f} GB written; "
          f"resident {without / MB:.0f} MB without, peak {peak / MB:.0f} MB with: {grown / MB:+.1f} MB of {budget}")
    assert total(check_account(said), "captured")[0] > 1000
    assert grown <= budget * MB, f"the host grew by {grown / MB:.1f} MB"
