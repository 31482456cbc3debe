"""Bad input: whatever is wrong with a setting, the disk, the build, the host or its end, there is one clear message or event, the host
goes on untouched, and every line already in the log is valid JSON - at most the last one is cut, by `kill -9`.

Most cases run small hosts from tests/host, which do what the real server cannot be told to do; the real server runs the rest.
"""

import ctypes
import itertools
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from server import LIBRARY, LLAMA_SERVER, REPOSITORY, TARGET, Server, read_log

HOSTS = REPOSITORY / "tests" / "host"
PROGRAM = TARGET / "release" / "llama-resource"
REAL = LLAMA_SERVER.parent
PREFIX = "llama-resource: "
RECORD_ALL = {"LLAMA_RESOURCE_LOG_LEVEL": "VERBOSE", "LLAMA_RESOURCE_LOG_RATE": "unlimited"}
WORK = ["load", "context", "decode=8"]


# --- Hosts --------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Function that compiles a source of tests/host, once for each set of options, and gives the program's path."""
    folder, numbers, built = tmp_path_factory.mktemp("hosts"), itertools.count(), {}

    def compile_once(source, *options, name=None):
        key = (source, options, name)
        if key not in built:
            out = folder / str(next(numbers)) / (name or Path(source).stem)
            out.parent.mkdir()
            compiler = os.environ.get("CXX", "c++") if source.endswith(".cpp") else os.environ.get("CC", "cc")
            command = [compiler, "-g", "-O1", "-o", out, HOSTS / source, *options, "-pthread"]
            result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            built[key] = out
        return built[key]

    return compile_once


@pytest.fixture(scope="session")
def host(build, llama_server, tiny_model):
    """Command of tests/host/host.c, a host linked with the real llama.cpp; verbs are to be added."""
    include = [f"-I{REPOSITORY}/llama.cpp/include", f"-I{REPOSITORY}/llama.cpp/ggml/include"]
    libraries = [f"-L{REAL}", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{REAL}"]
    return [build("host.c", *include, *libraries), tiny_model("llama")]


@pytest.fixture(scope="session")
def names(build, llama_server):
    """A host of ggml alone whose tensors have the worst names."""
    return build("names.c", f"-I{REPOSITORY}/llama.cpp/ggml/include", f"-L{REAL}", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{REAL}")


@pytest.fixture(scope="session")
def mock(build):
    """Function from a macro of the MOCK llama.cpp to a host's command and environment."""
    def with_macro(macro):
        library = build("mock_llama.cpp", "-shared", "-fPIC", f"-D{macro}", name="libllama.so")
        return [build("mock_host.cpp", f"-L{library.parent}", "-lllama")], \
            {"LD_LIBRARY_PATH": library.parent}

    return with_macro


@pytest.fixture(scope="session")
def api(build, library):
    """Command and environment of tests/host/api.c, linked with the library itself."""
    program = build("api.c", f"-I{REPOSITORY}/include", library)
    soname = program.parent / "libllama_resource_instrumentation.so.1"
    if not soname.exists():
        soname.symlink_to(library.resolve())
    return [program], {"LD_LIBRARY_PATH": program.parent}


class Outcome:
    """How a host ended and what it said."""

    def __init__(self, code, out, err, log_path):
        self.code, self.out, self.log_path = code, out, log_path
        lines = err.splitlines()
        self.ours = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
        self.others = [line for line in lines if not line.startswith(PREFIX)]

    def is_untouched(self):
        """The host did all it was told and ended by itself."""
        assert self.code == 0, (self.code, self.out, self.ours, self.others)
        assert self.out.splitlines()[-1:] == ["done"], self.out
        return self

    def said_once(self, *parts):
        """Exactly one line of ours, with all of `parts` in it."""
        print("the message:", *self.ours)
        assert len(self.ours) == 1, self.ours
        missing = [part for part in parts if str(part) not in self.ours[0]]
        assert not missing, f"{missing} not in {self.ours[0]!r}"
        return self

    def said_nothing(self):
        assert self.ours == []
        return self

    @property
    def events(self):
        return read_log(self.log_path)


def environment(log_path, **more):
    kept = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
    if log_path is not None:
        kept["LLAMA_RESOURCE_LOG_PATH"] = os.fspath(log_path)
    # What a test gives, where None takes away.
    return {key: value if isinstance(value, bytes) else str(value)
            for key, value in {**kept, "LD_PRELOAD": LIBRARY, "OMP_WAIT_POLICY": "passive", **more}.items() if value is not None}


@pytest.fixture
def run(tmp_path):
    """Function that runs a command with the library preloaded and gives its Outcome. The log is log.jsonl in the test's folder."""
    started = []

    def run_command(command, log_path=tmp_path / "log.jsonl", timeout=30, before=None, stderr=subprocess.PIPE, **more):
        process = start(command, log_path, before=before, stderr=stderr, **more)
        out, err = process.communicate(timeout=timeout)
        return Outcome(process.returncode, out.decode(errors="replace"), (err or b"").decode(errors="replace"), log_path)

    def start(command, log_path=tmp_path / "log.jsonl", before=None, stderr=subprocess.PIPE, **more):
        process = subprocess.Popen(list(map(str, command)), env=environment(log_path, **more), stdin=subprocess.DEVNULL, cwd=tmp_path,
                                   stdout=subprocess.PIPE, stderr=stderr, preexec_fn=before, start_new_session=True)
        started.append(process)
        return process

    run_command.start = start
    yield run_command
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kinds(events):
    return [event["event"] for event in events]


def is_whole(events):
    """A recording from its beginning to its orderly end."""
    assert kinds(events)[0] == "resource_session_start" and kinds(events)[-1] == "resource_session_end"
    assert kinds(events).count("resource_session_start") == 1
    return True


# --- The log's path and the disk ----------------------------------------------------------------------------------------------------

def no_permission(folder):
    """A folder that its owner may not write to; and root may, unless the host gives up that right before it starts."""
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    return closed / "log.jsonl"


def pipe(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def obey_permissions():
    CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)


BAD_PATHS = {
    "missing folder": (lambda folder: folder / "none" / "log.jsonl", ["opening the log", "No such file or directory", "create the directory"]),
    "a folder": (lambda folder: folder, ["opening the log", "Is a directory", "LLAMA_RESOURCE_LOG_PATH"]),
    "no permission": (no_permission, ["opening the log", "Permission denied", "choose a writable path"]),
    "pipe without a reader": (pipe, ["opening the log", "start what reads this pipe first"]),
    "full disk": (lambda folder: "/dev/full", ["writing the log", "No space left on device", "free space"]),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_a_log_that_cannot_be_written_is_told_once(case, run, host, tmp_path):
    path, parts = BAD_PATHS[case][0](tmp_path), BAD_PATHS[case][1]
    # The writer's thread is started before the first line is written, and ends by itself where that fails.
    outcome = run([*host, *WORK, "sleep=500", "threads"], log_path=path, before=obey_permissions)
    outcome.is_untouched().said_once("error: ", path, *parts, "Nothing is recorded; the host goes on")
    assert "lri-" not in outcome.out, "a thread has stayed for nothing"


def test_the_server_answers_without_its_log(tiny_model):
    with Server(tiny_model("llama"), args=["-t", "1"], log_path="/nonexistent/log.jsonl") as server:
        assert server.post("/completion", {"prompt": "the", "n_predict": 4})["tokens_predicted"] == 4
        assert server.stop() == 0
        ours = [line for line in server.stderr.splitlines() if line.startswith(PREFIX)]
    assert len(ours) == 1 and "opening the log /nonexistent/log.jsonl failed" in ours[0], ours


def limit_file_size(size):
    # Python ignores SIGXFSZ, and a host would inherit that; by default the signal kills.
    def before():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return before


@pytest.mark.parametrize("size", [2_000, 20_001, 100_003])
def test_a_disk_that_fills_up_ends_the_recording_and_nothing_else(size, run, host):
    """A limit of file sizes stands for the disk; its signal would kill the host if it were delivered."""
    outcome = run([*host, *WORK, "sleep=200", *WORK[2:], "sleep=200", *WORK[2:], "threads"], before=limit_file_size(size), **RECORD_ALL)
    outcome.is_untouched().said_once("error: writing the log", "File too large", "ulimit -f", "Recording has ended; the host goes on")
    assert "lri-" not in outcome.out, "the writer's thread is still there"
    assert kinds(outcome.events)[0] == "resource_session_start"
    assert outcome.log_path.stat().st_size <= size


def test_no_room_for_even_the_first_line(run, host, tmp_path):
    """The first write happens on the host's own thread."""
    torso = b'{"event":"batch","t_ns":' + b"1" * 5000
    (tmp_path / "log.jsonl").write_bytes(torso)
    outcome = run([*host, *WORK], before=limit_file_size(len(torso)))
    outcome.is_untouched().said_once("error: writing the log", "File too large", "Nothing is recorded")
    assert outcome.log_path.read_bytes() == torso


def test_a_failing_write_spares_the_lines_of_another_host(run, host, tmp_path):
    """Two hosts on one path, one of them limited: what it takes back is its own."""
    log = tmp_path / "log.jsonl"
    limited = run.start([*host, *WORK, "sleep=100", *["decode=8", "sleep=20"] * 10], before=limit_file_size(400_000), **RECORD_ALL)
    free = run.start([*host, *WORK, "sleep=100", *["decode=8", "sleep=20"] * 10], **RECORD_ALL)
    for process in (limited, free):
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and out.endswith(b"done\n"), err
    events = read_log(log)
    own = [e for e in events if e["session_id"] == next(e["session_id"] for e in events if e.get("pid") == free.pid)]
    assert is_whole(own)
    summary = next(e for e in own if e["event"] == "resource_session_summary")
    assert summary["lines_written"] == len(own) - 2, "lines of the other host were lost"


def test_two_hosts_on_one_path_are_told_apart(run, host, tmp_path):
    processes = [run.start([*host, *WORK, "sleep=100", "decode=4"], **RECORD_ALL) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and PREFIX.encode() not in err, err
    events = read_log(tmp_path / "log.jsonl")
    sessions = {e["session_id"]: e["pid"] for e in events if e["event"] == "resource_session_start"}
    assert sorted(sessions.values()) == sorted(process.pid for process in processes)
    for session in sessions:
        assert is_whole([e for e in events if e["session_id"] == session])


def test_a_torso_in_the_log_is_not_continued(run, host, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"event":"resource_session_end","timest')
    run([*host, *WORK]).is_untouched().said_nothing()
    first, _, rest = log.read_bytes().partition(b"\n")
    assert first == b'{"event":"resource_session_end","timest'
    assert is_whole([json.loads(line) for line in rest.splitlines()])


def test_a_log_deleted_under_the_host_is_told_once(run, host, tmp_path):
    outcome = run([*host, *WORK, f"unlink={tmp_path}/log.jsonl", "sleep=2600", "decode=2"], **RECORD_ALL)
    outcome.is_untouched().said_once("warning: the log", tmp_path / "log.jsonl", "was deleted while it was written")
    assert not outcome.log_path.exists()


def test_a_host_that_closes_our_descriptor_keeps_its_own_files(run, host, tmp_path):
    """The number of the closed descriptor is the host's next file."""
    theirs = tmp_path / "theirs"
    outcome = run([*host, *WORK, "sleep=200", f"close-descriptors={theirs}", "decode=8", "sleep=200"], **RECORD_ALL)
    outcome.is_untouched().said_once("error: writing the log", "the host has closed its descriptor", "Recording has ended; the host goes on")
    assert theirs.read_bytes() == b""
    assert outcome.events


def test_a_closed_stderr_does_not_become_the_log(run, host):
    """The log would get number 2, and what the host prints would land in it."""
    outcome = run([*host, *WORK, "use-stderr", "decode=2", "use-stderr"], before=lambda: (os.close(2), os.close(0)), stderr=None)
    outcome.is_untouched()
    assert is_whole(outcome.events)


def test_a_message_for_a_broken_stderr_does_not_kill_the_host(run, host):
    """Nobody reads stderr any more: a write raises SIGPIPE, which by default kills."""
    reader, writer = os.pipe()
    os.close(reader)
    outcome = run([*host, *WORK], stderr=writer, LLAMA_RESOURCE_LOG_LEVEL="LOUD")
    os.close(writer)
    assert is_whole(outcome.is_untouched().events)


def test_a_message_for_a_full_stderr_does_not_stop_the_host(run, host):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    outcome = run([*host, *WORK], stderr=writer, timeout=5, LLAMA_RESOURCE_LOG_LEVEL="LOUD")
    os.close(reader), os.close(writer)
    assert is_whole(outcome.is_untouched().events)


# --- A pipe as the log --------------------------------------------------------------------------------------------------------------

class Reader(threading.Thread):
    """Reads a named pipe: `wait` seconds late, and at most `limit` bytes."""

    def __init__(self, path, wait=0.0, limit=None):
        super().__init__(daemon=True)
        self.data, self.wait, self.limit = b"", wait, limit
        os.mkfifo(path)
        self.file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.file, True)
        self.start()

    def run(self):
        time.sleep(self.wait)
        while self.limit is None or len(self.data) < self.limit:
            more = os.read(self.file, 1 << 16)
            if not more and self.data:
                break
            self.data += more
        os.close(self.file)


def test_a_slow_reader_of_a_pipe_gets_every_line(run, host, tmp_path):
    """More than a pipe holds is written before the reader begins."""
    reader = Reader(tmp_path / "pipe", wait=0.7)
    run([*host, *WORK, "sleep=50", *["decode=8", "sleep=10"] * 5], log_path=tmp_path / "pipe", **RECORD_ALL).is_untouched().said_nothing()
    reader.join(10)
    assert len(reader.data) > 1 << 17, "a pipe holds 64 KiB: nothing was tested"
    assert is_whole([json.loads(line) for line in reader.data.splitlines()])


def test_a_reader_of_a_pipe_that_ends_is_told_once(run, host, tmp_path):
    """A write then raises SIGPIPE, which by default kills the host."""
    reader = Reader(tmp_path / "pipe", limit=1)
    outcome = run([*host, *WORK, "sleep=200", "decode=8", "sleep=200", "decode=8"], log_path=tmp_path / "pipe", **RECORD_ALL)
    reader.join(10)
    outcome.is_untouched().said_once("error: writing the log", "Broken pipe", "what reads the pipe has ended", "the host goes on")


def test_a_reader_of_a_pipe_that_sleeps_holds_the_exit_for_five_seconds_at_most(run, host, tmp_path):
    reader = Reader(tmp_path / "pipe", wait=8, limit=1)
    begun = time.monotonic()
    outcome = run([*host, *WORK, "sleep=50", *["decode=8", "sleep=10"] * 5], log_path=tmp_path / "pipe", **RECORD_ALL)
    assert time.monotonic() - begun < 7
    outcome.is_untouched().said_once("error: the log could not be closed within 5 s")
    del reader


# --- Settings -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", [
    ("LLAMA_RESOURCE_LOG_LEVEL", "LOUD"), ("LLAMA_RESOURCE_LOG_LEVEL", "3"), ("LLAMA_RESOURCE_LOG_LEVEL", "\x1b[31m\nDETAILED"),
    ("LLAMA_RESOURCE_LOG_LEVEL", b"\xff\xfe"),
    ("LLAMA_RESOURCE_LOG_RATE", "fast"), ("LLAMA_RESOURCE_LOG_RATE", "-1"), ("LLAMA_RESOURCE_LOG_RATE", "0"),
    ("LLAMA_RESOURCE_LOG_RATE", "99999999999999999999"), ("LLAMA_RESOURCE_DISABLED", "maybe"), ("LLAMA_RESOURCE_LOG_TEXT", "2"),
    ("LLAMA_RESOURCE_FOLLOW_CHILDREN", "?"), ("LLAMA_RESOURCE_LOGLEVEL", "MINIMAL"),
])
def test_a_bad_setting_is_told_once_and_the_default_holds(name, value, run, host):
    outcome = run([*host, *WORK], **{name: value})
    outcome.is_untouched().said_once("warning: ", name, "not a setting" if name == "LLAMA_RESOURCE_LOGLEVEL" else "is not understood; expected")
    assert outcome.ours[0].isprintable() and outcome.others == []
    assert is_whole(outcome.events)
    assert (outcome.events[0]["level"], outcome.events[0]["rate_limit"]) == ("DETAILED", 50_000)


def test_an_empty_setting_is_no_setting(run, host):
    outcome = run([*host, *WORK], LLAMA_RESOURCE_LOG_LEVEL="", LLAMA_RESOURCE_LOG_RATE="", LLAMA_RESOURCE_DISABLED="")
    assert is_whole(outcome.is_untouched().said_nothing().events)


def test_the_smallest_rate_writes_no_steps_beyond_the_first_ones(run, host):
    outcome = run([*host, *WORK, "sleep=150", *["decode=8"] * 50, "sleep=1100", "decode=2"], LLAMA_RESOURCE_LOG_LEVEL="VERBOSE",
                  LLAMA_RESOURCE_LOG_RATE="1")
    events = outcome.is_untouched().said_nothing().events
    assert is_whole(events)
    steps = {event["step"] for event in events if event["event"] == "compute_execution"}
    assert 1 <= len(steps) <= 2, "one prompt and one token before the rate is known to be spent"
    assert sum(event["steps"] for event in events if event["event"] == "step_summary") == 8 + 50 * 8 + 2, "every step is counted"
    assert any(event["event"] == "events_dropped" for event in events)


def test_disabled_leaves_no_trace(run, host, tmp_path):
    outcome = run([*host, *WORK, "threads"], LLAMA_RESOURCE_DISABLED="1")
    outcome.is_untouched().said_nothing()
    assert list(tmp_path.iterdir()) == []
    assert "lri-" not in outcome.out and "threads:" in outcome.out


def test_the_paths_placeholders_and_bytes_are_taken_as_they_are(run, host, tmp_path):
    process = run.start([*host, *WORK], log_path=os.fsencode(tmp_path) + b"/%e %p %% %x \xff\n\"quote\".jsonl")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b""), err
    [log] = os.listdir(os.fsencode(tmp_path))
    assert log == b"host %d %% %%x \xff\n\"quote\".jsonl" % process.pid
    path = os.path.join(os.fsencode(tmp_path), log)
    assert is_whole(read_log(Path(os.fsdecode(path))))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_no_thread_can_be_made(run, host, build):
    nothing = build("no_threads.c", "-shared", "-fPIC", name="no_threads.so")
    outcome = run([*host, *WORK], LD_PRELOAD=f"{LIBRARY}:{nothing}")
    outcome.is_untouched().said_once("error: starting the writer's thread failed", "ulimit -u", "Nothing is recorded; the host goes on")
    assert outcome.log_path.read_bytes() == b""


# --- Builds -------------------------------------------------------------------------------------------------------------------------

STATIC = r"""
#include <stdio.h>
#include <unistd.h>
#include <sys/wait.h>
const char *const mark = "ggml_backend_sched_graph_compute: GGML_ASSERT(%s) failed";
int main(int argc, char **argv) {
    if (argc > 1) { printf(mark, argv[1]); }
    if (fork() == 0) { return 0; }  // its end is no end of the host
    wait(NULL);
    puts("done");
    return 0;
}
"""


def test_a_statically_linked_host_is_told_at_its_end(run, tmp_path):
    """A MOCK of one: the library knows it by a text of ggml's in its constants."""
    program = tmp_path / "static-host"
    subprocess.run(["cc", "-o", program, "-x", "c", "-"], input=STATIC, text=True, check=True)
    outcome = run([program])
    outcome.is_untouched().said_once("warning: static-host is statically linked with llama.cpp", "nothing was recorded")
    assert not outcome.log_path.exists()


SHARED = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    if (argc > 1 && !dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) { puts(dlerror()); return 1; }
    puts("done");
    return 0;
}
"""


def test_a_host_of_shared_libraries_that_was_not_seen_is_not_called_static(run, mock, tmp_path):
    """It loads them, as Node.js loads an addon, and makes no call that is recorded. (node-llama-cpp 3.1.1 loads models by a name of 2024.)"""
    program = tmp_path / "shared-host"
    subprocess.run(["cc", "-o", program, "-x", "c", "-", "-ldl"], input=SHARED, text=True, check=True)
    library = Path(mock("MOCK_BIGGER")[1]["LD_LIBRARY_PATH"]) / "libllama.so"
    outcome = run([program, library])
    outcome.is_untouched().said_once("warning: shared-host has loaded llama.cpp's shared libraries", "doctor")
    assert not outcome.log_path.exists()


def test_a_program_without_ggml_is_left_alone(run, tmp_path):
    """It may be the shell that starts the server: no message, no log, no thread. The launcher, which was asked to record it, says so."""
    assert run(["sh", "-c", "true; cat /proc/$$/task/*/comm; echo done"]).is_untouched().said_nothing().out == "sh\ndone\n"
    assert list(tmp_path.iterdir()) == []
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is missing: build it with `make`")
    outcome = run([PROGRAM, "run", "--", "sh", "-c", "echo done"], LD_PRELOAD=None, LLAMA_RESOURCE_LIBRARY=LIBRARY)
    outcome.is_untouched().said_once("warning: ", "no ggml or llama.cpp in it or in its libraries")


LAYOUTS = {
    "MOCK_BIGGER": "struct ggml_tensor has 352 bytes in this build, expected 336",
    "MOCK_MOVED": "struct ggml_tensor differs in this build: flags expected at 148, found at 80",
    "MOCK_MINIMAL": "the host's ggml lacks a function that the probe needs",
}


@pytest.mark.parametrize("macro", LAYOUTS)
def test_another_layout_costs_what_needs_tensors_and_no_more(macro, mock, run):
    command, more = mock(macro)
    outcome = run([*command, "plain", "plain"], LLAMA_RESOURCE_LOG_LEVEL="VERBOSE", **more)
    outcome.is_untouched().said_once("warning: layout unavailable", LAYOUTS[macro], "not recorded: everything that needs tensors")
    events = outcome.events
    assert is_whole(events)
    [state] = [e for e in events if e["event"] == "instrumentation_state" and e["component"] == "layout"]
    assert state["state"] == "unavailable" and LAYOUTS[macro] in state["reason"]
    assert not {"compute_execution", "layer_begin", "component_begin"} & set(kinds(events))
    assert [e["generated_tokens"] for e in events if e["event"] == "request_end"] == [3, 3], "requests need no tensors"


def test_the_mock_itself_is_read_in_full(mock, run):
    """So the tests above fail for the layout, not for the mock."""
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "plain", "plain"], **more, **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    events = outcome.events
    assert is_whole(events)
    assert sum(e["steps"] for e in events if e["event"] == "step_summary") == 8, "two rounds of three tokens and a graph"
    assert {"norm-0", "l_out-0"} == {e["tensor"] for e in events if e["event"] == "compute_execution"}


@pytest.mark.parametrize("what", ["decode", "compute", "accept", "apply"])
def test_an_exception_of_the_hosts_passes_through_and_recording_goes_on(what, mock, run):
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "plain", what, "plain"], **more, **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    assert outcome.out.splitlines() == ["nothing was thrown", f"caught {what}", "nothing was thrown", "done"]
    events = outcome.events
    assert is_whole(events)
    ends = [(e["generated_tokens"], e["outcome"]) for e in events if e["event"] == "request_end"]
    assert (ends[0], ends[-1]) == ((3, "context_freed"),) * 2
    # A graph behind the last request is recorded like the one before the exception: nothing is left switched on or off.
    computed = [e for e in events if e["event"] == "compute_execution"]
    assert [e["operation"] for e in computed[-2:]] == [e["operation"] for e in computed[:2]]


# --- Several copies of llama.cpp in one process ---------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def copies(build):
    """Function from a verb and a number of copies to the command of tests/host/copies.cpp; every copy of the MOCK has its own plugin."""
    def with_plugins(verb, n):
        plugins = []
        for i in range(n):
            mock = build("mock_llama.cpp", "-shared", "-fPIC", "-DMOCK_PLAIN", name=f"libllama-copy{i}.so")
            plugins.append(build("mock_plugin.cpp", "-shared", "-fPIC", mock, name=f"plugin{i}.so"))
        return [build("copies.cpp", "-ldl"), verb, *plugins]

    return with_plugins


@pytest.mark.parametrize("disabled", ["", "1"])
@pytest.mark.parametrize("verb", ["in-turn", "at-once", "reload", "by-handle"])
def test_every_copy_of_llama_gets_its_own_calls(verb, disabled, copies, run):
    """A mock aborts when it is given what another copy has made."""
    outcome = run(copies(verb, 3), LLAMA_RESOURCE_DISABLED=disabled, **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    if disabled:
        return
    events = outcome.events
    assert is_whole(events)
    ends = [e["generated_tokens"] for e in events if e["event"] == "request_end"]
    steps = sum(e["steps"] for e in events if e["event"] == "step_summary")
    told = [e for e in events if e["event"] == "instrumentation_state" and "another copy of ggml" in e["reason"]]
    # Three tokens and a graph a run. What is called by handle is one definition of each name, and the first copy has them all.
    expected = {"in-turn": 9, "at-once": 123, "reload": 15, "by-handle": 1}[verb]
    assert ends == [3] * expected
    assert steps == 4 * expected + (2 if verb == "by-handle" else 0)
    assert len(told) == (0 if verb == "reload" else 2), told


@pytest.mark.parametrize("disabled", ["", "1"])
def test_plugins_that_are_bound_to_themselves_are_not_seen_and_not_disturbed(disabled, copies, run):
    """RTLD_DEEPBIND: the plugin's calls pass the preload by."""
    outcome = run(copies("deep-bound", 2), LLAMA_RESOURCE_DISABLED=disabled, **RECORD_ALL)
    outcome.is_untouched()
    assert not outcome.log_path.exists() or not {"request_end", "batch"} & set(kinds(outcome.events))


def test_more_copies_than_are_told_apart_are_left_alone_and_said_once(copies, run):
    outcome = run(copies("in-turn", 5), **RECORD_ALL)
    outcome.is_untouched().said_once("one more copy of ggml than the 4", "not recorded: everything of that copy")
    assert [e["generated_tokens"] for e in outcome.events if e["event"] == "request_end"] == [3] * 12


# --- Names --------------------------------------------------------------------------------------------------------------------------

def test_names_of_any_bytes_are_escaped(names, run):
    outcome = run([names], **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    events = outcome.events
    assert is_whole(events)
    found = [event.get("tensor", "") for event in events if event["event"] == "compute_execution"]
    expected = [
        "norm-0", "plain", '"quoted" \\back\\slash/', "line\nbreak\r\nand\ttab", "\x01\x02\x1f\x7f", None, "half a letter ", "a surrogate ",
        "a letter \u00e4 and a sign \u20ac", '{"event":"resource_session_end"}', "node_10",
        "sixty-three bytes, the most that a name can have: 0123456789abc", "cut within a letter, at byte sixty-three: 0123456789 abcdefghij",
        "\u2028 line separator", "</script><b>",
    ]
    assert len(found) == 3 * len(expected)
    for name, text in zip(found, expected * 3):
        # A name that is not UTF-8 is kept up to there, or with marks in its place; its valid part must be.
        assert text is None or name.rstrip("\ufffd").startswith(text.rstrip()), (name, text)
    assert kinds(events).count("resource_session_end") == 1, "a name that looks like an event is none"


# --- The C API ----------------------------------------------------------------------------------------------------------------------

def test_the_api_answers_misuse_with_a_status(api, run, tmp_path):
    command, more = api
    outcome = run([*command, "misuse"], LD_PRELOAD=None, A_LOG=tmp_path / "log.jsonl", **more).is_untouched()
    answers = [line.rpartition(": ")[::2] for line in outcome.out.splitlines() if "(" in line]
    assert [(call, int(status)) for call, status in answers] == [
        ("flush()", -2), ("deinit()", -2), ("set_level(1)", -2), ("set_level(3)", -1), ("set_level(-1)", -1),
        ("init(3, log)", -1), ("init(999, NULL)", -1), ('init(0, "")', -1),
        ('init(0, "/nonexistent/log.jsonl")', -3), ('init(0, "/dev/full")', -3), ("flush()", -2),
        ("init(0, log)", 0), ("init(2, NULL)", 1), ('init(0, "/nonexistent/log.jsonl")', 1),
        ("set_level(2)", 0), ("set_level(3)", -1), ("flush()", 0), ("deinit()", 0), ("deinit()", -2), ("init(0, log)", 0), ("deinit()", 0),
    ]
    words = dict(line.split(" is ", 1) for line in outcome.out.splitlines() if re.match(r"-?\d+ is ", line))
    assert len(words) == 100 and all(words.values()) and words["-50"] == words["49"] == "unknown status"
    assert (words["0"], words["-1"], words["-2"]) == ("success", "invalid argument", "no recording is on")
    errors = [line for line in outcome.ours if line.startswith("error: ")]
    assert len(errors) == 2, "one message for each log that could not be written"
    assert "opening the log /nonexistent/log.jsonl failed" in errors[0] and "writing the log /dev/full failed" in errors[1]
    assert all(re.match(r"warning: llama_resource_instrumentation_\w+: ", line) for line in outcome.ours if line not in errors), outcome.ours
    assert kinds(outcome.events).count("resource_session_start") == kinds(outcome.events).count("resource_session_end") == 2


def test_a_message_may_call_the_api_back(api, run, tmp_path):
    """It may flush, change the level, begin a recording and put stderr back: nothing waits for itself."""
    command, more = api
    outcome = run([*command, "callback"], timeout=10, LD_PRELOAD=None, A_LOG=tmp_path / "other.jsonl", **more).is_untouched().said_nothing()
    assert "message 4: llama-resource: opening the log /nonexistent/log.jsonl failed" in outcome.out
    assert outcome.events


def test_init_from_many_threads_begins_one_recording(api, run, tmp_path):
    command, more = api
    outcome = run([*command, "together"], LD_PRELOAD=None, A_LOG=tmp_path / "log.jsonl", **more).is_untouched().said_nothing()
    assert sorted(outcome.out.split()[:8]) == ["0"] + ["1"] * 7
    assert is_whole(outcome.events)


@pytest.mark.parametrize("how", ["stderr", "free"])
def test_the_api_can_begin_anew_after_the_disk_was_full(how, api, run, tmp_path):
    """With `free`, the host ends the recording from inside the message that says so, on the library's own thread."""
    command, more = api
    outcome = run([*command, "full"], before=limit_file_size(2_000), LD_PRELOAD=None, A_LOG=tmp_path / "log.jsonl", HOW=how,
                  ANOTHER_LOG=tmp_path / "other.jsonl", **more).is_untouched()
    message = "writing the log"
    if how == "stderr":
        outcome.said_once(message, "File too large")
    else:
        assert outcome.out.count(message) == 1 and "free in it: 0" in outcome.out
    flushed = "-3" if how == "stderr" else "-2"
    assert [line.rpartition(": ")[2] for line in outcome.out.splitlines() if "(" in line and "message" not in line] == ["0", flushed, "0", "0", "0"]
    assert kinds(outcome.events)[0] == "resource_session_start" and "resource_session_end" not in kinds(outcome.events)
    assert is_whole(read_log(tmp_path / "other.jsonl"))


@pytest.mark.parametrize("verbs", [["null"], ["load", "context", "decode=2", "null", "decode=2", "free"]])
def test_null_where_llama_cpp_takes_it(verbs, run, host):
    outcome = run([*host, *verbs], **RECORD_ALL).is_untouched()
    assert is_whole(outcome.events)


# --- The host's life ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["exit", "_exit", "exec"])
def test_a_fork_is_told_once_and_the_child_is_not_recorded(how, run, host):
    begun = time.monotonic()
    outcome = run([*host, "load", "context", "decode=3", f"fork={how}", f"fork={how}", "decode=2"], **RECORD_ALL)
    assert time.monotonic() - begun < 2.5, "a child waited at its end"
    outcome.is_untouched()
    # Each child computes, as the workers of a prefork server do; the first says for all that this is recorded nowhere.
    outcome.said_once("was forked from one that is recorded", "load the model itself")
    assert outcome.out.count(f"child {how} ended with 0") == 2
    events = outcome.events
    assert is_whole(events)
    [state] = [e for e in events if e["event"] == "instrumentation_state" and e["component"] == "process"]
    assert (state["state"], state["reason"]) == ("ok", "the host forked; the child is not recorded")
    assert sum(e["steps"] for e in events if e["event"] == "step_summary") == 5, "the children's steps are not the host's"


def test_an_exec_of_the_host_leaves_whole_lines_and_no_preload(run, host):
    outcome = run([*host, "load", "context", "decode=3", "sleep=250", "exec"], **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    assert "LD_PRELOAD is ''" in outcome.out
    assert "compute_execution" in kinds(outcome.events) and kinds(outcome.events).count("resource_session_start") == 1
    assert "NOT CLOSED" in report(outcome.log_path)


def test_exit_from_another_thread_closes_the_log(run, host):
    outcome = run([*host, *WORK, "exit-in-thread=3"], **RECORD_ALL)
    assert (outcome.code, outcome.out) == (3, "done\n")
    assert is_whole(outcome.said_nothing().events)


def test_exit_from_a_signal_handler_hangs_nowhere(run, host):
    """As llama-server does at the second Ctrl-C. In the middle of our own code the end of the log is given up, not the host's."""
    closed = 0
    for number in range(6):
        outcome = run([*host, "load", "context", f"exit-in-handler={2000 + 1300 * number}"], timeout=10)
        assert (outcome.code, outcome.out) == (0, "done\n")
        closed += kinds(outcome.said_nothing().events)[-1] == "resource_session_end"
        outcome.log_path.unlink()
    print(f"{closed} of 6 logs were closed")


def test_quick_exit_leaves_whole_lines(run, host):
    outcome = run([*host, *WORK, "sleep=250", "quick_exit"], **RECORD_ALL)
    assert "compute_execution" in kinds(outcome.is_untouched().said_nothing().events)


def report(log):
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is missing: build it with `make`")
    result = subprocess.run([PROGRAM, "report", log], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_that_ends_the_host_leaves_whole_lines(which, run, host, tmp_path):
    """The host has no handler and writes as fast as it can; at most its last line is cut, and the reader says that it was killed."""
    process = run.start([*host, "load", "context", "ready", "spin"], **RECORD_ALL)
    assert process.stdout.readline() == b"ready\n"
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 20
    while log.stat().st_size < 1 << 20 and time.monotonic() < deadline:  # the writer has the lowest priority
        time.sleep(0.01)
    process.send_signal(which)
    assert process.wait(5) == -which, "the signal was not delivered to the host as before"
    data = log.read_bytes()
    lines = data.splitlines(keepends=True)
    cut = not lines[-1].endswith(b"\n")
    for line in lines[:-1] if cut else lines:
        json.loads(line)
    assert len(lines) > 1000
    assert "NOT CLOSED: killed" in report(log)
    print(f"{len(lines)} lines, the last one is {'cut' if cut else 'whole'}")


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_server(which, tiny_model, tmp_path):
    with Server(tiny_model("llama"), args=["-t", "1"], log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": "the", "n_predict": 4})
        time.sleep(0.25)  # the writer looks every 100 ms
        os.kill(server.pid, which)
        code = server.process.wait(10)
        assert not [line for line in server.stderr.splitlines() if line.startswith(PREFIX)]
    events = read_log(tmp_path / "log.jsonl")
    assert sum(e["event"] == "request_end" for e in events) == 1
    if which == signal.SIGKILL:
        assert code == -which and "resource_session_end" not in kinds(events)
        assert "NOT CLOSED: killed" in report(tmp_path / "log.jsonl")
    else:
        assert code == 0 and is_whole(events)


def test_contexts_come_and_go_without_a_trace(run, host):
    """No thread stays, and what is kept for each context goes with it; the plans of graphs two intervals later."""
    outcome = run([*host, "load", *["contexts=600", "sleep=2300", "usage"] * 2], LLAMA_RESOURCE_LOG_LEVEL="VERBOSE")
    outcome.is_untouched().said_nothing()
    usages = [tuple(map(int, pair)) for pair in re.findall(r"tasks (\d+) resident (\d+)", outcome.out)]
    assert [tasks for tasks, _ in usages] == [2, 2], "the host's thread and the writer's"
    grown_kb = usages[1][1] - usages[0][1]
    print(f"{usages[0][1]} KB after 600 contexts, {grown_kb} KB more after 600 further ones")
    assert grown_kb < 2500, "the allocator keeps a megabyte now and then; a plan for each context would be 18"
    assert is_whole(outcome.events)


def test_no_access_outside_our_memory(mock, run):
    """Valgrind's memcheck on the MOCK: the real ggml-cpu has instructions that valgrind does not know."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    command, more = mock("MOCK_PLAIN")
    memcheck = ["valgrind", "--quiet", "--error-exitcode=33", "--num-callers=30", "--child-silent-after-fork=yes"]
    outcome = run([*memcheck, *command, "plain", "accept", "apply", "plain"], timeout=60, **more, **RECORD_ALL)
    assert outcome.code == 0 and outcome.others == [], "\n".join(outcome.others)
    assert is_whole(outcome.said_nothing().events)


# --- Far more often than anybody would -----------------------------------------------------------------------------------------------

LONG = os.environ.get("LRI_LONG") == "1"  # rounds of the nightly run


@pytest.fixture(scope="session")
def lifecycle(build, library):
    """Function from a verb of tests/host/lifecycle.cpp and a number of rounds to a command and its environment."""
    def with_verb(verb, rounds):
        mock = build("mock_llama.cpp", "-shared", "-fPIC", "-DMOCK_PLAIN", name="libllama.so")
        linked = [library] if verb == "recordings" else []
        program = build("lifecycle.cpp", *linked, mock, "-ldl")
        for name in ["libllama_resource_instrumentation.so.1"] * len(linked):
            (program.parent / name).unlink(missing_ok=True)
            (program.parent / name).symlink_to(library.resolve())
        return [program, verb, rounds], {"LD_LIBRARY_PATH": program.parent}

    return with_verb


@pytest.mark.parametrize("verb, rounds", [("contexts", 20_000), ("threads", 3_000), ("forks", 90), ("recordings", 10_000 if LONG else 200)])
def test_memory_does_not_grow_with_what_has_gone(verb, rounds, lifecycle, run, tmp_path):
    """Contexts, threads, children and recordings come and go; what they took is given back."""
    command, more = lifecycle(verb, rounds)
    preload = {"LD_PRELOAD": None, "A_LOG": tmp_path / "log.jsonl"} if verb == "recordings" else {}
    outcome = run(command, timeout=900, LLAMA_RESOURCE_LOG_LEVEL="DETAILED", **more, **preload)
    outcome.is_untouched()
    if verb == "forks":
        outcome.said_once("was forked from one that is recorded", "what it and others like it compute is not")
    elif verb == "threads":  # they compute without any decode call, which nobody can tell requests from
        outcome.said_once("requests unavailable", "none of llama_process, llama_decode and llama_encode is seen")
    else:
        outcome.said_nothing()
    early, late = map(int, outcome.out.split()[:2])
    print(f"{verb}: {early} KiB after half of {rounds} rounds, {late} at their end")
    assert late - early < 1500, "the allocator keeps a megabyte; a kilobyte a round would be more"
    assert [e["event"] for e in outcome.events][-1] == "resource_session_end"
