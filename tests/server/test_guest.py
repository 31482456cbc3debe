"""The library is a guest: with it preloaded, the host computes, answers, exits and spawns children exactly as without it.

Each model answers the same requests in a plain server and in preloaded ones, and every token, log-probability and byte of
text must be equal - equal floats, not close ones. A server is deterministic only for the same requests in the same order
(a prompt taken from the cache goes through other batch sizes), so each run starts a fresh server.
"""

import functools
import json
import os
import shlex
import subprocess
import sys

import pytest

import make_tiny
from server import SMOLLM2, Server, read_log

MODELS = ["smollm2", *make_tiny.MODELS]
MODES = ["MINIMAL", "DETAILED", "VERBOSE", "disabled"]

SHORT = "The people of the small house"
LONG = "There was a house by the water, and the people in it were not there when the light was on. They have one time to be at it. " * 2
GREEDY = {"temperature": 0, "seed": 7, "n_predict": 20, "n_probs": 10, "return_tokens": True}
REQUESTS = [
    {**GREEDY, "prompt": SHORT, "cache_prompt": False},
    {**GREEDY, "prompt": LONG, "cache_prompt": True},
    {**GREEDY, "prompt": LONG + "What would they have", "cache_prompt": True},  # continues in the cache of the one before
    {**GREEDY, "prompt": LONG, "cache_prompt": False},
    {**GREEDY, "prompt": SHORT, "cache_prompt": True, "temperature": 0.8},  # the random numbers are the host's, too
]
COMPARED = ("content", "tokens", "completion_probabilities", "stop", "stop_type", "tokens_predicted", "tokens_evaluated", "tokens_cached",
            "truncated")
COMPARED_TIMINGS = ("cache_n", "prompt_n", "predicted_n")


def outcome(answer):
    """What of an answer, or of a streamed chunk of one, must not change: everything but durations."""
    kept = {key: answer[key] for key in COMPARED if key in answer}
    kept.update({key: answer["timings"][key] for key in COMPARED_TIMINGS if "timings" in answer})
    return kept


def run(model, **server_options):
    """Outcome of all requests in a fresh server, its exit code and what it printed."""
    with Server(model, args=["-c", "512"], **server_options) as server:
        result = {f"request {number}": outcome(server.post("/completion", body)) for number, body in enumerate(REQUESTS)}
        result["stream"] = [outcome(chunk) for chunk in server.stream("/completion", {**GREEDY, "prompt": LONG})]
        result["exit code"] = server.stop()
        result["stdout"] = server.stdout
    return result


def run_in_mode(model, mode, log_path):
    if mode == "disabled":
        return run(model, log_path=log_path, level="VERBOSE", env={"LLAMA_RESOURCE_DISABLED": "1"})
    return run(model, log_path=log_path, level=mode)


@pytest.fixture(scope="session")
def plain_run():
    """Function from a model's path to the outcome without the library; each model runs once."""
    return functools.cache(lambda model: run(model, preload=False))


@pytest.fixture
def model(request, tiny_model):
    return SMOLLM2 if request.param == "smollm2" else tiny_model(request.param)


def first_difference(plain, preloaded, path=""):
    """Where two outcomes part, for a message that fits on a line."""
    if isinstance(plain, dict) and isinstance(preloaded, dict) and plain.keys() == preloaded.keys():
        pairs = [(f"{path}[{key!r}]", plain[key], preloaded[key]) for key in plain]
    elif isinstance(plain, list) and isinstance(preloaded, list) and len(plain) == len(preloaded):
        pairs = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(plain, preloaded))]
    else:
        return None if plain == preloaded else f"{path}: plain {plain!r:.300}, preloaded {preloaded!r:.300}"
    return next(filter(None, (first_difference(left, right, where) for where, left, right in pairs)), None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_output_is_bit_identical(model, mode, plain_run, tmp_path):
    log_path = tmp_path / "log.jsonl"
    plain, preloaded = plain_run(model), run_in_mode(model, mode, log_path)

    difference = first_difference(plain, preloaded)
    if difference:
        same_again = first_difference(plain, run(model, preload=False)) is None
        pytest.fail(f"{difference}\n(a second plain server gave {'the same as the first' if same_again else 'yet another answer'})")
    # Equal because it was idle proves nothing: it must have recorded, or, disabled, have kept its hands off.
    if mode == "disabled":
        assert not log_path.exists(), "the library recorded although it was disabled"
    else:
        assert log_path.exists() and read_log(log_path), "the library recorded nothing"


def test_a_plain_answer_is_sensitive_enough(plain_run, tiny_model):
    """The comparison would pass if every answer were empty or alike; it must tell models and prompts apart."""
    answers = [plain_run(tiny_model(name)) for name in make_tiny.MODELS]
    for answer in answers:
        assert len(answer["request 0"]["tokens"]) == GREEDY["n_predict"]
        assert all(len(token["top_logprobs"]) == GREEDY["n_probs"] for token in answer["request 0"]["completion_probabilities"])
        assert answer["request 2"]["cache_n"] > 0, "no request reached the prompt cache"
    assert len({json.dumps(answer["request 0"]) for answer in answers}) == len(answers)


# Prints the environment that a child process gets; both hosts below run it.
SHOW_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
LLAMA_HOST = r"""
#include <stdlib.h>
void llama_backend_init(void);
int main(int argc, char ** argv) { llama_backend_init(); return system(argv[1]) != 0; }
"""
OTHER_HOST = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1], shell=True).returncode)"]


@pytest.fixture(scope="module")
def llama_host(llama_server, tmp_path_factory):
    """Command of a program that is linked with llama.cpp, calls it, and then runs a shell command."""
    program = tmp_path_factory.mktemp("host") / "llama-host"
    libraries = llama_server.parent
    subprocess.run(["cc", "-o", program, "-x", "c", "-", f"-L{libraries}", "-lllama", f"-Wl,-rpath,{libraries}",
                    f"-Wl,-rpath-link,{libraries}"], input=LLAMA_HOST, text=True, check=True)
    return [str(program)]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another library to preload, as a profiler or an allocator would be."""
    path = tmp_path_factory.mktemp("other") / "libother.so"
    subprocess.run(["cc", "-shared", "-o", path, "-x", "c", os.devnull], check=True)
    return str(path)


def preloaded_in_children(host, preload, log_path):
    """Entries of LD_PRELOAD in the environment of a child of `host`, which itself runs with `preload`."""
    environment = {"PATH": os.environ["PATH"], "LD_PRELOAD": preload, "LLAMA_RESOURCE_LOG_PATH": str(log_path)}
    command = shlex.join([sys.executable, "-c", SHOW_ENVIRONMENT])
    result = subprocess.run([*host, command], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "cannot be preloaded" not in result.stderr, result.stderr
    return json.loads(result.stdout).get("LD_PRELOAD", "").replace(" ", ":").strip(":").split(":")


@pytest.mark.parametrize("preload, left", [
    ("{library}", [""]),
    ("{other}:{library}", ["{other}"]),
    ("{library}:{other}", ["{other}"]),
    ("{other} {library} {other}", ["{other}", "{other}"]),  # the dynamic linker takes spaces as well as colons
])
def test_children_of_a_llama_host_do_not_inherit_the_library(library, llama_host, other, tmp_path, preload, left):
    """Only our own entry may go: what else the user preloads stays for the children."""
    log_path = tmp_path / "log.jsonl"
    entries = preloaded_in_children(llama_host, preload.format(library=library, other=other), log_path)
    assert entries == [entry.format(other=other) for entry in left]
    assert log_path.exists(), "the library was not active in the host"


def test_other_programs_pass_the_library_on(library, tmp_path):
    """A start script in between is no host: llama-server behind it must still get the library, and no log may appear."""
    log_path = tmp_path / "log.jsonl"
    assert preloaded_in_children(OTHER_HOST, str(library), log_path) == [str(library)]
    assert not log_path.exists()
