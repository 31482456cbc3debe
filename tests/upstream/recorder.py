"""A pytest plugin for llama.cpp's server tests: every HTTP answer is written down, failed asserts are counted and passed over, and what
the tests would download comes from generated files. Settings: environment variables that server_suite.py gives.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import types
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

OUT = Path(os.environ["UPSTREAM_OUT"])
DOWNLOADS = Path(os.environ["UPSTREAM_DOWNLOADS"])
TEST_SECONDS = int(os.environ.get("UPSTREAM_TEST_SECONDS", "60"))

_lock = threading.Lock()
_answers = []
_soft = []      # asserts that failed in this test
_statuses = []  # how the servers of this test ended
_pids = {}      # process -> status


def soft_failure(error, where):
    """Called in place of a failed assert of a test."""
    if isinstance(error, TimeoutError):
        raise error
    with _lock:
        _soft.append(where)


sys.modules["soft"] = types.SimpleNamespace(failure=soft_failure)
sys.modules["wget"] = types.SimpleNamespace(download=lambda *_, **__: pytest.skip("nothing can be downloaded"))


def record(method, url, sent, status, body, whole=True):
    parts = urlsplit(str(url))
    if parts.path == "/health":
        return  # asked until the server is ready: as often as that takes
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    sent = sent.decode(errors="replace") if isinstance(sent, bytes) else str(sent or "")
    query = f"?{parts.query}" if parts.query else ""
    with _lock:
        _answers.append({"request": f"{method} {parts.path}{query}", "sent": sent, "status": status, "body": text, "whole": whole})


# --- requests ---

_send = requests.Session.send


def send(self, request, **options):
    if urlsplit(request.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return downloaded(request)
    response = _send(self, request, **options)
    if options.get("stream"):
        chunks, inner = [], response.iter_content

        def iter_content(*arguments, **named):
            whole = False
            try:
                for chunk in inner(*arguments, **named):
                    chunks.append(chunk if isinstance(chunk, bytes) else chunk.encode())
                    yield chunk
                whole = True
            finally:
                record(request.method, request.url, request.body, response.status_code, b"".join(chunks), whole)

        response.iter_content = iter_content
    else:
        record(request.method, request.url, request.body, response.status_code, response.content)
    return response


def downloaded(request):
    """What a test would fetch from elsewhere, if it is generated."""
    file = DOWNLOADS / request.url.rsplit("/", 1)[-1]
    response = requests.Response()
    response.request, response.url = request, request.url
    response.status_code = 200 if file.exists() else 404
    response._content = file.read_bytes() if file.exists() else b""
    return response


requests.Session.send = send


# --- httpx, which the client of OpenAI uses ---

try:
    import httpx
except ImportError:
    httpx = None

if httpx is not None:
    _handle = httpx.HTTPTransport.handle_request

    class Recorded(httpx.SyncByteStream):
        def __init__(self, inner, request, status):
            self.inner, self.request, self.status, self.chunks, self.whole = inner, request, status, [], False

        def __iter__(self):
            for chunk in self.inner:
                self.chunks.append(chunk)
                yield chunk
            self.whole = True

        def close(self):
            record(self.request.method, self.request.url, self.request.content, self.status, b"".join(self.chunks), self.whole)
            self.inner.close()

    def handle_request(self, request):
        request.headers["accept-encoding"] = "identity"
        response = _handle(self, request)
        response.stream = Recorded(response.stream, request, response.status_code)
        return response

    httpx.HTTPTransport.handle_request = handle_request


# --- the tests themselves ---

def pytest_configure():
    import utils

    utils.ServerPreset.load_all = staticmethod(lambda: None)

    def download_file(url, output_file_path=None):
        file = DOWNLOADS / url.split("/")[-1]
        if not file.exists():
            pytest.skip(f"{url} cannot be downloaded")
        return str(file)

    utils.download_file = download_file
    start, stop = utils.ServerProcess.start, utils.ServerProcess.stop

    def watched_start(self, *arguments, **named):
        try:
            return start(self, *arguments, **named)
        except (RuntimeError, TimeoutError) as error:
            with _lock:
                _statuses.append(re.sub(r"\d+ seconds", "", str(error)))
            raise

    def watched_stop(self):
        process = self.process
        stop(self)
        if process is not None:
            with _lock:
                _statuses.append(process.returncode)
                _pids[process.pid] = process.returncode

    utils.ServerProcess.start, utils.ServerProcess.stop = watched_start, watched_stop


def _too_long(*_):
    raise TimeoutError("the test takes too long")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    with _lock:
        _answers.clear(), _soft.clear(), _statuses.clear(), _pids.clear()
    item.lri = {"test": item.nodeid, "outcome": "passed"}
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(TEST_SECONDS)
    random.seed(item.nodeid)  # some tests make up their prompts
    (OUT / "current").write_text(item.nodeid)
    yield
    signal.alarm(0)
    with _lock:
        entry = item.lri | {"soft": list(_soft), "statuses": list(_statuses), "pids": dict(_pids), "answers": list(_answers)}
    with open(OUT / "tests.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        item.lri["outcome"] = f"failed in {report.when}: {call.excinfo.typename}"
        item.lri["why"] = str(call.excinfo.value)[:300]
    elif report.skipped:
        item.lri["outcome"] = "skipped"
        item.lri["why"] = str(report.longrepr)[:300]
