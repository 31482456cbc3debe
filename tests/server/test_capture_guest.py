"""A capture is a guest: text, tokens and log-probabilities are bit-identical with and without it, and a callback of the host's own works on.

The library's other modes are compared in test_guest.py; the requests and the comparison are the same here.
"""

import itertools
import os
import subprocess

import pytest

import make_tiny
from capture import LIBRARY, Stream, account, build, capture_env, check_account, eval_tool, oracle, total
from server import LLAMA_SERVER, REPOSITORY, SMOLLM2
from test_guest import first_difference, plain_run, run  # noqa: F401 (plain_run is a fixture)

LOSSY = "auto, lossy, small budget"
SETTINGS = {
    "retain": {"route": "retain"},
    "callback": {"route": "callback"},
    LOSSY: {"route": "auto", "codec": "bounded", "max_memory": "64M"},
}
MODELS = ["smollm2", "llama-q4_0", "qwen3moe", "qwen35", "gemma2", "gpt-oss", "deepseek2", "mamba", "rwkv7", "granitehybrid"]


@pytest.fixture
def model(request, tiny_model):
    return SMOLLM2 if request.param == "smollm2" else tiny_model(request.param)


@pytest.mark.parametrize("model, settings", [*itertools.product(MODELS, ["retain", "callback"]), ("smollm2", LOSSY)], indirect=["model"])
def test_output_is_bit_identical(model, settings, plain_run, tmp_path):  # noqa: F811
    path = tmp_path / "acts.stream"
    env = capture_env(path, **SETTINGS[settings])
    captured = run(model, env=env, log_path=tmp_path / "log.jsonl")
    difference = first_difference(plain_run(model), captured)
    assert not difference, difference
    said, clean = account(path)
    assert clean and total(check_account(said), "captured")[0] > 1000, f"it was idle: {said}"


def test_sampling_on_the_backend_is_unchanged(tiny_model, tmp_path):
    """The sampler's own nodes are part of the graph then."""
    body = {"prompt": "The people of the small house", "n_predict": 24, "temperature": 0.9, "seed": 5, "backend_sampling": True, "return_tokens": True}
    from capture import capturing, plain
    args = ["-c", "512", "--backend-sampling"]
    tokens = []
    for server in (plain(tiny_model("llama"), args), capturing(tiny_model("llama"), tmp_path / "acts.stream", args)):
        with server:
            tokens.append(server.post("/completion", body)["tokens"])
    assert tokens[0] == tokens[1]


# --- A host with an eval callback of its own ---

def show(log, model, ask, preload=(), **env):
    """Runs eval_tool, with libraries preloaded or not; gives what it printed and the lines of its log."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
    environment |= {"OMP_WAIT_POLICY": "passive", **env}
    if preload:
        environment["LD_PRELOAD"] = ":".join(map(str, preload))
    command = [str(eval_tool()), str(model), "--ask", ask, "--log", str(log), "--ubatch", "8", "--decode", "5"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout, log.read_text().splitlines()


ASKS = ["all", "l_out,Qcur", "one-by-one", "nothing-has-this-name", "none"]


@pytest.mark.parametrize("tensors", ["FULL_TENSOR", "residual"])
@pytest.mark.parametrize("route", ["retain", "callback", "auto"])
@pytest.mark.parametrize("ask", ASKS)
def test_a_callback_of_the_host_sees_the_same(ask, route, tensors, tiny_model, tmp_path):
    """Every question and every value, in the same order; the capture beside it is whole."""
    model = tiny_model("qwen3moe")
    alone = show(tmp_path / "alone.txt", model, ask)
    path = tmp_path / "acts.stream"
    beside = show(tmp_path / "beside.txt", model, ask, [LIBRARY], **capture_env(path, route=route, tensors=tensors),
                  LLAMA_RESOURCE_LOG_PATH=str(tmp_path / "log.jsonl"))
    where = next((i for i, pair in enumerate(zip(alone[1], beside[1])) if pair[0] != pair[1]), None)
    assert where is None, f"line {where}: alone {alone[1][where]!r}, beside a capture {beside[1][where]!r}"
    assert alone == beside
    said, clean = account(path)
    assert clean and total(check_account(said), "dropped") == (0, 0), said
    # 17 tokens in ubatches of 8, then 5: eight graph runs.
    assert len(Stream(path).steps) == 8


@pytest.mark.parametrize("route", ["retain", "callback"])
def test_both_callbacks_get_the_same_values(route, tiny_model, tmp_path):
    """What the host is shown is what the stream holds: beside each other in the host's log and in the stream."""
    model, path = tiny_model("llama"), tmp_path / "acts.stream"
    _, lines = show(tmp_path / "log.txt", model, "l_out", [LIBRARY], **capture_env(path, route=route, tensors="residual"),
                    LLAMA_RESOURCE_LOG_PATH=str(tmp_path / "log.jsonl"))
    shown = [line.split()[-1] for line in lines if line.startswith("got l_out-1 ")]
    parts = Stream(path).parts["l_out-1"]
    assert [f"{fnv(part.bytes):016x}" for part in parts] == shown


def fnv(data):
    value = 1469598103934665603
    for byte in data:
        value = (value ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return value


def test_the_tool_is_deterministic(tiny_model, tmp_path):
    model = tiny_model("qwen3moe")
    assert show(tmp_path / "one.txt", model, "all") == show(tmp_path / "two.txt", model, "all")


@pytest.mark.parametrize("tool", ["llama-eval-callback", "llama-imatrix"])
def test_tools_of_llama_cpp(tool, tiny_model, tmp_path):
    """Upstream's own users of the callback, where they are built."""
    program = LLAMA_SERVER.parent / tool
    if not program.exists():
        pytest.skip(f"{tool} is not part of this build")
    text = tmp_path / "text.txt"
    text.write_text("There was a house by the water, and the people in it were not there when the light was on. " * 40)
    outputs = []
    for name, env in (("alone", {}), ("beside", {"LD_PRELOAD": str(LIBRARY), **capture_env(tmp_path / "acts.stream")})):
        out = tmp_path / f"{name}.dat"
        more = ["-f", str(text), "-o", str(out), "-c", "128"] if tool == "llama-imatrix" else ["-p", "The people of the house", "-n", "1"]
        result = subprocess.run([str(program), "-m", str(tiny_model("llama")), "-t", "2", *more], capture_output=True, timeout=120,
                                env={"PATH": os.environ["PATH"], "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"), **env})
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(out.read_bytes() if out.exists() else [line for line in result.stdout.splitlines() if b"sum" in line])
    assert outputs[0] and outputs[0] == outputs[1]


def test_the_oracle_is_a_guest_too(plain_run, tmp_path):  # noqa: F811
    """Else what it saw would not be what the plain server computes."""
    env = {"LD_PRELOAD": str(oracle()), "ORACLE_OUT": str(tmp_path / "oracle.bin"), "ORACLE_NAMES": "l_out"}
    model = make_tiny.make("llama", SMOLLM2.parents[1] / "tiny-models")
    assert not first_difference(plain_run(model), run(model, preload=False, env=env))


def test_a_callback_that_is_set_between_recordings_is_the_hosts(tmp_path):
    """The host replaces its callback while nothing is recorded: neither the next recording nor what follows may bring the old one back."""
    libraries = LLAMA_SERVER.parent
    program = build("restart.c", f"-I{REPOSITORY}/include", str(LIBRARY), f"-L{libraries}", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{libraries}")
    (tmp_path / "libllama_resource_instrumentation.so.1").symlink_to(LIBRARY)
    files = [tmp_path / name for name in ("a.stream", "a.jsonl", "b.stream", "b.jsonl")]
    env = {"LD_LIBRARY_PATH": str(tmp_path), "LLAMA_RESOURCE_TENSORS": "l_out", "LLAMA_RESOURCE_ROUTE": "callback"}
    ran = subprocess.run([program, *files], env=env, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout.splitlines()) == (0, ["recorded: A 2, B 0", "again: A 0, B 2", "not recorded: A 0, B 2", "done"]), ran
    assert [len(Stream(path).parts["l_out-0"]) for path in files[::2]] == [1, 1]
