"""How a capture ends: beside a log that fails, while a step is in flight, on names that are pipes. The host is untouched, and the account adds up."""

import os
import resource
import signal
import time

import pytest

from capture import Stream, account, build as compile_source, capture_env, check_account, json_packets, total
from server import LIBRARY
from test_bad_input import PREFIX, RECORD_ALL, build, host, kinds, run  # noqa: F401 (fixtures)

STEPS = 61  # of `decode=60`: a prompt, and one for each token but the last


def slow_disk(**settings):
    """Environment of a disk that fails for some files, and of our library behind it."""
    shim = compile_source("slow_disk.c", "-shared", "-fPIC")
    return {"LD_PRELOAD": f"{shim}:{LIBRARY}", **{f"DISK_{name.upper()}": str(value) for name, value in settings.items()}}


def test_a_full_disk_of_the_log_does_not_end_the_capture(run, host, tmp_path):  # noqa: F811
    """The log fails after 30,000 bytes, in the middle of steps; the stream is on a disk of its own."""
    streams = {}
    for name, disk in (("whole", {}), ("failing", slow_disk(match="failing.jsonl", full_at=30_000))):
        path = tmp_path / f"{name}.stream"
        env = {**RECORD_ALL, **capture_env(path, tensors="residual"), **disk}
        outcome = run([*host, "load", "context", *["decode=20", "sleep=150"] * 3], log_path=tmp_path / f"{name}.jsonl", **env).is_untouched()
        if disk:
            outcome.said_once("error: writing the log", "No space left", "No more events are recorded; the capture goes on, and the host")
            assert "resource_session_end" not in kinds(outcome.events)
        else:
            outcome.said_nothing()
        said, clean = account(path)
        assert clean and total(check_account(said), "dropped") == (0, 0), said
        streams[name] = Stream(path)
    whole, failing = streams["whole"], streams["failing"]
    assert sorted(whole.steps) == sorted(failing.steps) and len(whole.steps) >= 60
    for name, parts in whole.parts.items():
        assert [p.bytes for p in parts] == [p.bytes for p in failing.parts[name]], name


def test_a_failing_stream_does_not_end_the_log(run, host, tmp_path):  # noqa: F811
    path = tmp_path / "acts.stream"
    env = {**capture_env(path, tensors="residual"), **slow_disk(match="acts.stream", full_at=20_000)}
    outcome = run([*host, "load", "context", *["decode=60", "sleep=150"] * 3], **env).is_untouched()
    assert "No space left" in outcome.ours[0] and "The stream ends here" in outcome.ours[0], outcome.ours
    events = outcome.events
    assert kinds(events)[-1] == "resource_session_end"
    [summary] = [e for e in events if e["event"] == "capture_summary"]
    assert not summary["clean"]
    became = [summary["captured"], *summary["skipped"], *summary["dropped"]]
    for what in ("tensors", "bytes"):
        assert sum(amount[what] for amount in became) == summary["seen"][what], summary
    assert any(loss["reason"] == "io_error" and loss["tensors"] for loss in summary["dropped"]), summary


@pytest.mark.parametrize("route", ["retain", "callback"])
def test_an_exit_beside_a_step_in_flight_leaves_an_account_that_adds_up(route, run, host, tmp_path):  # noqa: F811
    """Another thread computes while main returns."""
    in_flight = 0
    for number in range(12):
        path = tmp_path / f"{number}.stream"
        outcome = run([*host, "load", "context", f"exit-beside={60_000 + 5_300 * number}"], timeout=20,
                      **capture_env(path, tensors="FULL_TENSOR", route=route))
        # Whoever computes beside an exit may crash when it is over, with us or without; not before our end.
        assert outcome.out == "done\n" and outcome.code in (0, -signal.SIGSEGV), (outcome.code, outcome.others)
        said, clean = account(path)
        counts = check_account(said)
        assert clean and total(counts, "captured")[0] > 0
        in_flight += bool(total(counts, "dropped")[0])
    print(f"{in_flight} of 12 exits met a step in flight")
    assert in_flight > 0, "none of the exits came while a step ran"


def test_a_host_with_little_address_space_is_not_ended_by_us(run, host, tmp_path):  # noqa: F811
    """From the least in which the host runs alone. What is missing for the capture is counted, or there is none; nobody aborts."""
    def limit(mib):
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))

    work = [*host, "load", "context", "decode=20"]
    alone = dict(before=None, LD_PRELOAD=None)
    low, high = 16, 4096
    while high - low > 4:
        middle = (low + high) // 2
        outcome = run(work, **{**alone, "before": limit(middle)})
        low, high = (low, middle) if (outcome.code, outcome.out) == (0, "done\n") else (middle, high)
    ends = {}
    for more in (0, 8, 24, 64, 192, 768):
        path = tmp_path / f"{more}.stream"
        outcome = run(work, before=limit(high + more), log_path=tmp_path / f"{more}.jsonl",
                      **RECORD_ALL, **capture_env(path, tensors="FULL_TENSOR", route="callback"))
        told = "\n".join(outcome.ours + outcome.others)
        assert "memory allocation of" not in told, (more, outcome.code, told)
        # With less than our threads' stacks and tables take, the host may find no memory where it did without us, and says so
        # itself. The C library gives a thread that allocates beside another one 64 MiB of address space of its own.
        untouched = (outcome.code, outcome.out) == (0, "done\n")
        of_the_host = "GGML_ASSERT" in told or "bad_alloc" in told or "failed" in outcome.out
        assert untouched or (more <= 64 and of_the_host), (more, outcome.code, outcome.out, told)
        lost = None
        if path.exists() and path.stat().st_size and json_packets(path, "end"):
            said, _ = account(path)
            lost = total(check_account(said), "dropped")[0]
            assert lost == 0 or "no_memory" in said["dropped"] or "stopped" in said["dropped"], said
        ends[more] = (untouched, lost)
        if untouched and lost is None:
            assert outcome.ours or "cannot be preloaded" in told, (more, told)
    print(f"alone from {high} MiB on; with so many more: {ends}")
    assert ends[768] == (True, 0), ends


def test_a_pipe_as_a_stream_does_not_hold_the_host_up(run, host, tmp_path):  # noqa: F811
    """Nobody reads it, and before main nobody could be told."""
    path = tmp_path / "acts.stream"
    os.mkfifo(path)
    begun = time.monotonic()
    outcome = run([*host, "load", "context", "decode=3"], timeout=10, **capture_env(path))
    outcome.is_untouched().said_once("error: opening the stream", "acts.stream", "neither a file nor a device", "No activations are captured")
    assert kinds(outcome.events)[-1] == "resource_session_end" and time.monotonic() - begun < 8


def test_a_pipe_that_is_full_as_a_log_does_not_hold_the_host_up(run, host, tmp_path):  # noqa: F811
    """It has a reader, which does not read: the first line is written by the host's own thread."""
    path = tmp_path / "log.pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(end, b"x" * 4096)
    except BlockingIOError:
        pass
    try:
        outcome = run([*host, "load", "context", "decode=3"], log_path=path, timeout=10)
        outcome.is_untouched().said_once("error: writing the log", "does not keep up", "Nothing is recorded")
    finally:
        os.close(end)


def test_a_long_message_for_a_stderr_that_is_nearly_full_does_not_stop_the_host(run, host):  # noqa: F811
    """A pipe that has room for a page takes a page without waiting, and no more: the message is cut to that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    os.read(reader, 4096)
    selection = ",".join(f"no_such_tensor_{number}" for number in range(600))
    outcome = run([*host, "load", "context", "decode=3"], stderr=writer, timeout=10, LLAMA_RESOURCE_TENSORS=selection, LLAMA_RESOURCE_CODEC="x" * 6000)
    outcome.is_untouched()
    os.set_blocking(reader, False)
    said = b""
    try:
        while True:
            said += os.read(reader, 1 << 16)
    except BlockingIOError:
        pass
    os.close(reader), os.close(writer)
    ours = said[said.index(PREFIX.encode()):]
    assert len(ours) <= 4096 and ours.endswith(b"\n"), len(ours)
