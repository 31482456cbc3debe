"""Start a real llama-server, with or without the library preloaded, and talk to it. Standard library only.

    with Server(model, args=["-c", "512"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        reply = server.post("/completion", {"prompt": "Hello", "n_predict": 8})
        chunks = list(server.stream("/completion", {"prompt": "Hello", "n_predict": 8}))
        server.stop()                      # SIGTERM; returns the exit code
        events = read_log(server.log_path)

Every failure - no start, unexpected HTTP status, an exception inside the `with` block - shows the end of the server's stderr.
"""

import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "target"
LIBRARY = Path(os.environ.get("LLAMA_RESOURCE_TEST_LIBRARY", TARGET / "release" / "libllama_resource_instrumentation.so"))
LLAMA_SERVER = Path(os.environ.get("LRI_LLAMA_SERVER", TARGET / "llama.cpp" / "bin" / "llama-server")).absolute()
SMOLLM2 = TARGET / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"

DEFAULT_ARGS = {"-t": "2", "-np": "1"}
PR_SET_PDEATHSIG = 1
LISTENING = "0A"  # TCP state in /proc/PID/net/tcp
_libc = ctypes.CDLL(None)


def read_log(path, running=False):
    """All events of a JSONL log, as dicts. Fails on any line that is not one JSON object.

    With `running`, an unterminated last line is left out: the writer may be in the middle of it.
    """
    data = Path(path).read_bytes()
    if running:
        data = data[: data.rfind(b"\n") + 1]
    assert not data or data.endswith(b"\n"), f"{path}: the last line is cut off: {data[-200:]!r}"
    events = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise AssertionError(f"{path}:{number}: not valid JSON ({error}): {line[:200]!r}") from error
        assert isinstance(event, dict), f"{path}:{number}: not a JSON object: {line[:200]!r}"
        events.append(event)
    return events


class ServerError(AssertionError):
    """The server did not start, died, or answered with an unexpected status."""


class Server:
    """One llama-server process on a port of its own at 127.0.0.1.

    model     path of the GGUF file
    args      further arguments of llama-server; two threads and one slot unless they say otherwise (`-t`, `-np`)
    env       further environment variables; nothing of the caller's LD_PRELOAD, LLAMA_* and GGML_* gets through
    preload   whether the library is preloaded; checked against the process's memory map
    level     LLAMA_RESOURCE_LOG_LEVEL, if given
    log_path  LLAMA_RESOURCE_LOG_PATH, if given
    binary    another llama-server
    launcher  command put before the binary, such as ["llama-resource", "run", "--"]; use preload=False with it
    timeout   seconds until the server must be ready, and for each request

    Start it from a thread that outlives it: the kernel kills the server when that thread ends, so that an
    interrupted test run leaves none behind.
    """

    def __init__(self, model, args=(), env=None, preload=True, level=None, log_path=None, binary=LLAMA_SERVER, launcher=(), timeout=60):
        self.log_path = Path(log_path) if log_path else None
        self.timeout = timeout
        self.preload = preload
        self.port = None
        self.process = None
        # The port is the kernel's choice (0), read back from the process, so two servers cannot meet on one.
        args = [str(argument) for argument in args]
        for option, value in DEFAULT_ARGS.items():
            if option not in args:  # llama-server complains about an option given twice
                args += [option, value]
        self.command = [*map(str, launcher), str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", "0", *args]
        self.env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
        if preload:
            self.env["LD_PRELOAD"] = str(LIBRARY)
        if level:
            self.env["LLAMA_RESOURCE_LOG_LEVEL"] = level
        if log_path:
            self.env["LLAMA_RESOURCE_LOG_PATH"] = str(log_path)
        self.env.update(env or {})

    # --- Life ---

    def start(self):
        """Start the process and return when the model is loaded and the main loop runs."""
        if self.preload and not LIBRARY.exists():  # the dynamic linker would only warn
            raise ServerError(f"{LIBRARY} is missing: build it first (make)")
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # files, not pipes: nobody must drain them
        self.process = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=self._stdout,
                                        stderr=self._stderr, preexec_fn=_die_with_parent, start_new_session=True)
        try:
            self._wait_until_ready()
            if self.preload and str(LIBRARY.resolve()) not in Path(f"/proc/{self.process.pid}/maps").read_text():
                raise self._error("the library was not loaded into the server")
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout=20):
        """End the server with SIGTERM and return its exit code; fails if it does not end in time."""
        if self.process.poll() is None:
            # llama-server's signal handler takes the task queue's mutex: a signal that meets the main loop inside it, as it
            # may right after the last answer, waits for itself for ever. Let the loop come to rest first.
            time.sleep(0.05)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise self._error(f"the server did not end within {timeout} s after SIGTERM") from None
        return self.process.returncode

    def kill(self):
        """End the server, and its launcher, with SIGKILL, as an out-of-memory killer would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.stop()
        else:
            print(f"--- end of llama-server's stderr ---\n{self.stderr[-4000:]}", file=sys.stderr)
            self.kill()

    @property
    def pid(self):
        return self.process.pid

    @property
    def stderr(self):
        """What the server has written to stderr so far; llama.cpp's log goes there."""
        return _read_all(self._stderr)

    @property
    def stdout(self):
        return _read_all(self._stdout)

    # --- Requests ---

    def get(self, path):
        """JSON answer of a GET, or its text where it is not JSON (/metrics)."""
        return self._expect_ok("GET", path)

    def post(self, path, body):
        """JSON answer of a POST of `body`."""
        return self._expect_ok("POST", path, body)

    def request(self, method, path, body=None):
        """(status, answer), whatever the status is."""
        connection, response = self._send(method, path, body)
        try:
            text = response.read().decode()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text

    def stream(self, path, body):
        """Chunks of a streaming POST (server-sent events) as dicts. Closing the generator drops the connection."""
        connection, response = self._send("POST", path, {**body, "stream": True})
        try:
            if response.status != 200:
                raise self._error(f"POST {path}: status {response.status}: {response.read().decode()[:500]}")
            for line in response:
                field, _, value = line.decode().strip().partition(":")
                if field == "data" and value.strip() != "[DONE]":
                    yield json.loads(value)
                elif field == "error":
                    raise self._error(f"POST {path}: {value.strip()[:500]}")
        finally:
            connection.close()

    # --- Inside ---

    def _send(self, method, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._error(f"{method} {path}: {error!r}") from error

    def _expect_ok(self, method, path, body=None):
        status, answer = self.request(method, path, body)
        if status != 200:
            raise self._error(f"{method} {path}: status {status}: {str(answer)[:500]}")
        return answer

    def _wait_until_ready(self):
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._error("the server ended while starting")
            self.port = self.port or _listening_port(self.process.pid)
            if self.port and self.request("GET", "/health")[0] == 200:
                # /health is green shortly before the main loop starts, and a SIGTERM in between would be lost.
                # /slots is answered by that loop.
                self.request("GET", "/slots")
                return
            time.sleep(0.02)
        raise self._error(f"the server was not ready after {self.timeout} s")

    def _error(self, message):
        state = self.process.poll()
        return ServerError(f"{message}\ncommand: {' '.join(self.command)}\nexit code: {'still running' if state is None else state}"
                           f"\n--- end of stderr ---\n{self.stderr[-4000:]}")


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_all(file):
    """The whole file, by position: the server shares the file offset and goes on writing there."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _listening_port(pid):
    """TCP port at which the process, or a child of it (a launcher's), listens; None if there is none yet."""
    try:
        sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            local, state, inode = fields[1], fields[3], fields[9]
            if state == LISTENING and f"socket:[{inode}]" in sockets:
                return int(local.rpartition(":")[2], 16)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # a file descriptor or the process went away meanwhile
        return None
    return next(filter(None, map(_listening_port, children)), None)
