"""The account: captured + skipped + dropped = seen, in tensors and bytes, whatever the disk, the budget and the policy do.

A bad disk is a preloaded shim that delays or refuses writes (tests/host/slow_disk.c), and a file system of a few megabytes where one can
be mounted. What is in a stream after any of it is right: it is compared with the oracle's bytes.
"""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest

from capture import (LIBRARY, Stream, account, build, capture_env, capturing, check_account, compare, json_packets, packets, plain,
                     read_oracle, resource, together, total)
from server import SMOLLM2, Server, read_log

LETTERS = "There was a house by the water, and the people in it were not there when the light was on. "
GREEDY = {"temperature": 0, "seed": 7, "ignore_eos": True}
ARGS = ["-c", "1024", "-np", "2", "-ub", "64"]
AUTO = {"route": "auto"}  # a forced route has limits of its own: a small budget leaves no room to retain


def work(server, n_predict=24, rounds=1):
    """Prefill and decode in two slots; gives the texts."""
    texts = []
    for number in range(rounds):
        answers = together([lambda p=p: server.post("/completion", {**GREEDY, "prompt": p, "n_predict": n_predict, "cache_prompt": False})
                            for p in (LETTERS * 3, f"{number} more people")])
        texts += [answer["content"] for answer in answers]
    return texts


def ended(server, path):
    """The account of a stream whose server has ended, checked twice: by hand and through `stream info`."""
    assert server.stop(timeout=60) == 0, server.stderr[-2000:]
    said, clean = account(path)
    assert clean, f"no end packet\n{server.stderr[-2000:]}"
    check_account(said)
    assert account_of_info(path) == said
    verify(path)
    stored = [p for parts in Stream(path).parts.values() for p in parts]
    assert sum(len(part.bytes) for part in stored) == total(said, "captured")[1], "the file does not hold what it says"
    return said


def account_of_info(path):
    info = resource("stream", "info", path, "--json").stdout
    found = find(json.loads(info), "seen")
    assert found, info[:500]
    return {key: found[key] for key in ("seen", "captured", "skipped", "dropped")}


def find(value, key):
    """The first object below `value` that has `key`."""
    if isinstance(value, dict):
        if key in value:
            return value
        value = list(value.values())
    if isinstance(value, list):
        return next(filter(None, (find(v, key) for v in value)), None)
    return None


def verify(path, check=True):
    return resource("stream", "verify", path, check=check)


@pytest.mark.parametrize("policy", ["block", "drop", "sample"])
@pytest.mark.parametrize("max_memory", ["16M", "1G"])
def test_policies(policy, max_memory, tmp_path):
    path = tmp_path / "acts.stream"
    with capturing(SMOLLM2, path, ARGS, policy=policy, max_memory=max_memory, codec="zstd", **AUTO) as server:
        work(server)
        said = ended(server, path)
    if policy == "block":
        assert total(said, "dropped") == (0, 0), said
    assert total(said, "captured")[0] > 0


@pytest.mark.parametrize("policy", ["block", "drop", "sample"])
def test_a_slow_disk(policy, tmp_path):
    """Far slower than the host: `block` makes the host wait and loses nothing, the others lose and count."""
    path = tmp_path / "acts.stream"
    env = {"DISK_MATCH": "acts.stream", "DISK_RATE": "60000000"}
    server = shimmed(SMOLLM2, path, env, policy=policy, max_memory="32M")
    with server:
        work(server, n_predict=16)
        said = ended(server, path)
    lost = total(said, "dropped")
    if policy == "block":
        assert lost == (0, 0), said
    else:
        assert lost[0] > 0, f"nothing was lost: the disk was not slow enough to try anything: {said}"
        reasons = set(said["dropped"])
        assert reasons <= {"full", "sampled", "too_large"}, said


def shimmed(model, path, env, order="behind", **settings):
    """A capturing server with the bad disk preloaded as well."""
    shim = str(build("slow_disk.c", "-shared", "-fPIC"))
    server = capturing(model, path, ARGS, env=env, **settings)
    server.env["LD_PRELOAD"] = f"{LIBRARY}:{shim}"
    return server


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_disk_that_fills_up(policy, tmp_path):
    """The host goes on as if nothing had happened; what was written is whole, the rest is counted."""
    path = tmp_path / "acts.stream"
    with plain(SMOLLM2, ARGS) as server:
        expected = work(server, n_predict=40)
    env = {"DISK_MATCH": "acts.stream", "DISK_FULL_AT": str(30_000_000)}
    server = shimmed(SMOLLM2, path, env, policy=policy, max_memory="64M")
    with server:
        assert work(server, n_predict=40) == expected
        assert server.stop(timeout=60) == 0
    check_failed(server, path)


def check_failed(server, path):
    """A stream whose disk failed: no end packet can be there, but all before is good, and the log tells the account."""
    assert "capture" in server.stderr.lower() or "stream" in server.stderr.lower(), "nobody was told"
    assert path.stat().st_size <= 30_000_000 + 4096
    kinds = [kind for kind, *_ in packets(path)]
    assert kinds.count("tensor") > 10 and kinds[0] == "header"
    assert recovered(path) > 0
    said, _ = account(path) if {"account", "end"} & set(kinds) else ({}, False)
    if said:
        assert total(said, "seen")[0] >= sum(total(said, kind)[0] for kind in ("captured", "skipped", "dropped"))


def recovered(path, exported=False):
    """Tensors of a stream that was cut off, after `stream recover`."""
    out = path.with_name("recovered.stream")
    resource("stream", "recover", path, "--out", out)
    verify(out)
    return sum(len(parts) for parts in Stream(out, exported).parts.values())


def test_a_small_file_system(tmp_path):
    """A real one that is full, where an ordinary user may mount it (user and mount namespaces)."""
    mount = tmp_path / "small"
    mount.mkdir()
    launcher = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=24m tmpfs "{mount}" && "$@"; code=$?; cp "{mount}"/* "{tmp_path}"; exit $code', "sh"]
    if subprocess.run([*launcher, "true"], capture_output=True).returncode and not os.access(mount, os.W_OK):
        pytest.skip("no user namespaces here")
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    env = capture_env(mount / "acts.stream", max_memory="64M", policy="block") | {"LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"),
                                                                                   "OMP_WAIT_POLICY": "passive", "LD_PRELOAD": str(LIBRARY)}
    with Server(SMOLLM2, args=ARGS, env=env, preload=False, launcher=launcher) as server:
        first = work(server, n_predict=30, rounds=2)
        child = int(open(f"/proc/{server.pid}/task/{server.pid}/children").read().split()[0])
        os.kill(child, signal.SIGTERM)
        server.process.wait(60)
    with plain(SMOLLM2, ARGS) as server:
        assert work(server, n_predict=30, rounds=2) == first
    path = tmp_path / "acts.stream"
    assert 8_000_000 < path.stat().st_size <= 24 << 20, path.stat().st_size
    assert recovered(path) > 0


def test_a_file_size_limit(tiny_model, tmp_path):
    """RLIMIT_FSIZE: the signal that comes with it must not end the host. Python's children have it ignored; the shell sets it back."""
    path = tmp_path / "acts.stream"
    launcher = ["sh", "-c", 'trap "" XFSZ; ulimit -f 2000; exec "$@"', "sh"]
    with capturing(tiny_model("llama"), path, ARGS, launcher=launcher, log_path="/dev/null") as server:
        work(server, n_predict=60, rounds=3)
        assert server.stop() == 0
    assert 0 < path.stat().st_size <= 2000 * 1024
    assert recovered(path) > 0


def test_a_disk_that_hangs(tiny_model, tmp_path):
    """`drop` never waits: the host's answers keep coming while a write hangs, and the exit has an end."""
    path, release = tmp_path / "acts.stream", tmp_path / "release"
    env = {"DISK_MATCH": "acts.stream", "DISK_STALL_AT": "1000000", "DISK_RELEASE": str(release)}
    server = shimmed(tiny_model("llama"), path, env, policy="drop", max_memory="16M", **AUTO)
    with server:
        for _ in range(4):
            work(server, n_predict=40)
        release.touch()
        said = ended(server, path)
    assert total(said, "dropped")[0] > 0 and total(said, "captured")[0] > 0


def test_a_budget_smaller_than_a_tensor(tiny_model, tmp_path):
    """What can never fit is counted as such, or goes in pieces; nothing waits for ever."""
    path = tmp_path / "acts.stream"
    with capturing(SMOLLM2, path, ["-c", "1024", "-np", "2", "-ub", "512"], policy="block", max_memory="16M", **AUTO) as server:
        server.post("/completion", {**GREEDY, "prompt": LETTERS * 20, "n_predict": 2})
        ended(server, path)


@pytest.mark.parametrize("settings", [{"tensors": "routing"}, {"tensors": "ffn_moe_topk"}, {"tensors": "FULL_TENSOR", "sample_elements": 1}])
def test_tensors_of_any_size_lie_behind_each_other(settings, tiny_model, tmp_path):
    """Expert numbers and single elements take no multiple of what values are aligned to."""
    path = tmp_path / "acts.stream"
    with capturing(tiny_model("qwen3moe"), path, ARGS, policy="block", **settings, **AUTO) as server:
        work(server)
        assert server.stop() == 0, server.stderr[-2000:]
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    assert total(said, "captured")[0] > 50, said


def test_a_wrong_setting_is_told(tiny_model, tmp_path):
    """A selection that nobody understands must not pass as an empty one."""
    path = tmp_path / "acts.stream"
    with capturing(tiny_model("llama"), path, ARGS, tensors="no-such-preset-or-name:::") as server:
        work(server, n_predict=2)
        assert server.stop() == 0
        assert "no-such-preset" in server.stderr


def test_the_log_tells_the_same_account_and_loses_nothing(tiny_model, tmp_path):
    """`capture_summary` is written while the process exits, when its main thread has no thread-locals any more."""
    path = tmp_path / "acts.stream"
    with capturing(tiny_model("llama"), path, ARGS, **AUTO) as server:
        work(server, n_predict=4)
        said = ended(server, path)
    events = read_log(path.with_suffix(".jsonl"))
    [summary] = [event for event in events if event["event"] == "capture_summary"]
    for what in ("seen", "captured"):
        assert summary[what] == said[what], what
    assert summary["clean"] and summary["file_bytes"] == path.stat().st_size
    lost = [event for event in events if event["event"] == "events_dropped" and event["reason"] in ("internal", "queue_full")]
    assert lost == []
    assert [event["event"] for event in events][-1] == "resource_session_end"


def test_a_forced_route_without_memory_says_so_once(tmp_path):
    """16 MB leave nothing for the allocator to keep: all is skipped, and the budget that the warning names is enough."""
    def run(name, max_memory):
        path = tmp_path / f"{name}.stream"
        with capturing(SMOLLM2, path, ["-c", "512", "-np", "1"], tensors="residual", route="retain", max_memory=max_memory) as server:
            server.post("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 8})
            said = ended(server, path)
        return said, [line for line in server.stderr.splitlines() if "LLAMA_RESOURCE_ROUTE=retain" in line]

    said, warnings = run("without", "16M")
    assert said["seen"] == add(said["skipped"]["retain_memory"], said["skipped"].get("warm_up")) and said["captured"]["tensors"] == 0, said
    assert len(warnings) == 1 and warnings[0].startswith("llama-resource: warning:"), warnings
    # A graph of a prompt: 30 rows of 576 numbers of four bytes for each token.
    tensors, tokens, kept, found, budget = map(int, re.search(
        r"skips (\d+) tensors in a graph of (\d+) tokens: at most (\d+) bytes may be kept of .* they take (\d+); "
        r"set LLAMA_RESOURCE_MAX_MEMORY=(\d+)M, or LLAMA_RESOURCE_ROUTE=auto", warnings[0]).groups())
    assert (tensors, kept) == (30, 0) and found >= tokens * 29 * 576 * 4 and tokens > 1
    said, warnings = run("with", f"{budget}M")
    assert warnings == [] and "retain_memory" not in said["skipped"] and total(said, "captured")[0] > 0, said


def add(amount, other):
    return {key: amount[key] + (other or {}).get(key, 0) for key in amount}


# --- kill -9 and resume ---

def test_kill_and_resume(tmp_path):
    """After `kill -9` the file opens, verifies, and goes on behind its last checkpoint without a seam: every step of every life is there once,
    in order, with the bytes that the oracle saw in that life."""
    path, chance = tmp_path / "acts.stream", random.Random(5)
    settings = {"tensors": "residual", "codec": "zstd", "checkpoint_tokens": "16"}
    kept, checked, at = 0, 0, 0  # steps before this life
    for life in range(3):
        witness = tmp_path / f"oracle-{life}.bin"
        more = {"capture_resume": "1"} if life else {}
        with capturing(SMOLLM2, path, ARGS, witness=witness, names="l_out", **settings, **more) as server:
            if life == 2:
                work(server, n_predict=40)
                assert server.stop() == 0
            else:
                run_until_killed(server, chance.uniform(0.4, 1.2), path.with_name("acts.stream.ckpt.json"), at)
        before, stream = kept, Stream(path)
        steps = list(stream.steps.items())
        if life:
            assert [step for step, _ in steps[:len(saved)]] == [step for step, _ in saved], "what stood before the resume has changed"
            assert all(parts[name].bytes == old[name].bytes for (_, parts), (_, old) in zip(steps, saved) for name in old)
            before = len(saved)
        own = steps[before:]
        runs = [run for run in read_oracle(witness) if run.rows is not None and run.complete]
        result = compare(aligned_at_start(own, runs))
        checked += result.steps
        if life < 2:
            at = json.loads(path.with_name("acts.stream.ckpt.json").read_text())["last_step"]
            later = [checkpoint for checkpoint in json_packets(path, "checkpoint") if checkpoint["last_step"] > at]
            assert len(later) <= 1, "the checkpoint beside the stream lags behind those in it"  # one may have been on its way
            saved = [(step, parts) for step, parts in steps if step <= at]
            assert len(saved) > before, "no checkpoint in this life"
    assert checked > 20
    headers = json_packets(path, "header")
    assert [bool(header.get("resumed")) for header in headers] == [False, True, True]
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0)
    verify(path)


def run_until_killed(server, seconds, checkpoint, after):
    """Kills it so long after its start, but not before a checkpoint of this life stands (a slow machine needs longer for 16 tokens)."""
    begun = time.monotonic()
    stream = server.stream("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 900})
    while time.monotonic() - begun < seconds or not (checkpoint.exists() and json.loads(checkpoint.read_text())["last_step"] > after):
        next(stream)
    server.kill()


def aligned_at_start(steps, runs):
    """[(step, parts, run)] of a life that was cut off: the first step is the first run that has its rows."""
    first = next(number for number, run in enumerate(runs) if steps[0][1]["l_out-0"].table == run.rows and len(run.rows) > 2)
    return [(step, parts, run) for (step, parts), run in zip(steps, runs[first:])]


@pytest.mark.parametrize("codec", ["zstd", "bounded"])
def test_kills_at_random(codec, tiny_model, tmp_path):
    """Each stream opens, every packet of it is whole, and `verify` finds no damage but the missing end. LRI_KILLS sets how many."""
    chance = random.Random(11)
    for number in range(int(os.environ.get("LRI_KILLS", "5"))):
        path = tmp_path / f"{number}.stream"
        with capturing(tiny_model("llama"), path, ARGS, codec=codec, checkpoint_tokens="32") as server:
            stream = server.stream("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 900})
            begun, life = time.monotonic(), chance.uniform(0, 0.7)
            while time.monotonic() - begun < life and next(stream, None):
                pass
            server.kill()
        if not path.exists() or not path.stat().st_size:
            continue  # killed before the header was written
        result = verify(path, check=False)
        assert result.returncode in (0, 1) and "panic" not in result.stderr, result.stderr
        found = list(packets(path))
        assert found and found[0][0] == "header"
        if any(kind == "tensor" for kind, *_ in found):
            assert recovered(path, exported=codec == "bounded") > 0
        for left in tmp_path.iterdir():
            left.unlink()  # a file or a link; hundreds of them would fill the disk
