"""Fixtures of the tests that run a real llama-server: paths of the server, the library, SmolLM2 and the tiny models."""

import sys

import pytest

from server import LIBRARY, LLAMA_SERVER, REPOSITORY, SMOLLM2, TARGET

sys.path.insert(0, str(REPOSITORY / "tests" / "models"))
import make_tiny  # noqa: E402 (needs the path above)

TINY_MODELS = TARGET / "tiny-models"


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


def _existing(path, remedy):
    if not path.exists():
        pytest.fail(f"{path} is missing: {remedy}")
    return path
