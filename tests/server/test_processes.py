"""Servers of several processes: the real llama-server in router mode, which loads no model itself and starts a server for each."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from server import LIBRARY, read_log


def ask(port, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body and json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


class Router:
    """A llama-server that was given a folder of models, and no model."""

    def __init__(self, server, folder, log, **env):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        kept = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
        command = [server, "--models-dir", folder, "--host", "127.0.0.1", "--port", str(self.port), "-t", "2", "-np", "1", "-c", "256"]
        self.output = open(log.parent / "router.txt", "wb+")
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
                                        start_new_session=True, env={**kept, "LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_PATH": str(log),
                                                                     **env})

    def __enter__(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                self.model = next(m["id"] for m in ask(self.port, "/models")["data"])
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.said()
                time.sleep(0.05)

    def __exit__(self, kind, error, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if kind is None else signal.SIGKILL)
        try:
            self.process.wait(30)
        finally:
            # Whatever it has started and not ended.
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def said(self):
        self.output.seek(0)
        return self.output.read().decode(errors="replace")[-4000:]


@pytest.fixture
def models(tmp_path, smollm2):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "SmolLM2.gguf").symlink_to(smollm2.resolve())
    return folder


def sessions(log):
    """Events of each process, by its number."""
    found, names = {}, {}
    for event in read_log(log):
        if event["event"] == "resource_session_start":
            names[event["session_id"]] = event["pid"]
        found.setdefault(names[event["session_id"]], []).append(event)
    return found


def kinds(events):
    return [event["event"] for event in events]


def test_the_servers_of_a_router_are_recorded_and_the_router_says_that_it_is_one(llama_server, models, tmp_path, library):
    """Both paths are fixed: the log is shared line by line, the stream is the server's own."""
    log, stream = tmp_path / "log.jsonl", tmp_path / "acts.stream"
    with Router(llama_server, models, log, LLAMA_RESOURCE_CAPTURE=str(stream)) as router:
        reply = ask(router.port, "/completion", {"model": router.model, "prompt": "One two three", "n_predict": 8, "ignore_eos": True})
        assert reply["tokens_predicted"] == 8
        ask(router.port, "/models/unload", {"model": router.model})
        deadline = time.monotonic() + 20
        while not any("resource_session_end" in kinds(events) for events in sessions(log).values()):
            assert time.monotonic() < deadline, router.said()
            time.sleep(0.05)
    found = sessions(log)
    parent = found.pop(router.process.pid)
    [(child, events)] = found.items()
    assert "model_load" in kinds(events) and kinds(events)[-1] == "resource_session_end"
    requests = [event for event in events if event["event"] == "request_end"]
    assert [r["generated_tokens"] for r in requests] == [8]
    # The stream: no empty one of the router, and all of the server's.
    assert not stream.exists() and (tmp_path / f"acts.{child}.stream").stat().st_size > 0
    [summary] = [event for event in events if event["event"] == "capture_summary"]
    assert summary["captured"]["tensors"] > 0 and summary["dropped"] == []
    left_out = sum(part["amount"]["tensors"] if "amount" in part else part["tensors"] for part in summary["skipped"])
    assert summary["seen"]["tensors"] == summary["captured"]["tensors"] + left_out, summary
    # The router: closed in order, nothing of a model, and why.
    assert not {"model_load", "request_start", "capture_summary", "batch"} & set(kinds(parent))
    [state] = [event for event in parent if event["event"] == "instrumentation_state" and event["component"] == "process"]
    assert state["state"] == "ok" and "router" in state["reason"] and kinds(parent)[-1] == "resource_session_end"


def test_a_router_that_is_told_not_to_follow_is_alone(llama_server, models, tmp_path, library, tiny_model):
    log = tmp_path / "log.jsonl"
    (models / "SmolLM2.gguf").unlink()
    (models / "tiny.gguf").symlink_to(tiny_model("llama"))
    with Router(llama_server, models, log, LLAMA_RESOURCE_FOLLOW_CHILDREN="0") as router:
        reply = ask(router.port, "/completion", {"model": router.model, "prompt": "One two three", "n_predict": 4, "ignore_eos": True})
        assert reply["tokens_predicted"] == 4
    assert list(sessions(log)) == [router.process.pid]
