"""Fixtures of the tests that run a real llama-server: paths of the server, the library, SmolLM2 and the tiny models."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from server import LIBRARY, LLAMA_SERVER, REPOSITORY, SMOLLM2, TARGET

sys.path.insert(0, str(REPOSITORY / "tests" / "models"))
import make_tiny  # noqa: E402 (needs the path above)

# A shell that runs us in the background has SIGINT ignored, and so would every host that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_MODELS = TARGET / "tiny-models"



def pytest_runtest_logreport(report):
    """What is skipped is told once more at the end of `make test`."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        with (TARGET / "skipped.txt").open("a") as told:
            told.write(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}\n")


@pytest.fixture(scope="session")
def library():
    """Path of the library under test."""
    return _existing(LIBRARY, "build it with `make`")


@pytest.fixture(scope="session")
def llama_server():
    """Path of the unmodified llama-server."""
    return _existing(LLAMA_SERVER, "`make` builds it")


@pytest.fixture(scope="session")
def smollm2():
    """Path of the one real model: SmolLM2-135M-Instruct, Q4_1."""
    return _existing(SMOLLM2, "`make` fetches it")


@pytest.fixture(scope="session")
def tiny_model():
    """Function from a name in make_tiny.MODELS to the path of that model; makes the file when it is not there."""
    return lambda name: make_tiny.make(name, TINY_MODELS)


@pytest.fixture(scope="session")
def tiny_models(tiny_model):
    """All tiny models, name -> path."""
    return {name: tiny_model(name) for name in make_tiny.MODELS}


@pytest.fixture(scope="module")
def rpc_port():
    """Port of a ggml RPC server: device memory that the host cannot look into."""
    server = _existing(LLAMA_SERVER.parent / "ggml-rpc-server", "`make` builds it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([str(server), "-H", "127.0.0.1", "-p", str(port), "-t", "2"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None and time.monotonic() < deadline, "the RPC server did not start"
        time.sleep(0.05)
    yield port
    process.kill()
    process.wait()


def _existing(path, remedy):
    if not path.exists():
        pytest.fail(f"{path} is missing: {remedy}")
    return path
