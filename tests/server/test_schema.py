"""Real logs of all three levels are what docs/events.schema.json says, hold every kind of event that a plain run can bring, and
answer the jq commands that the documentation of the older LLaMA resource instrumentation gives.

`UPDATE=1 pytest tests/server/test_schema.py` takes the examples of docs/EVENTS.md (docs/examples.jsonl) out of these logs.
"""

import collections
import json
import math
import os
import shutil
import subprocess

import jsonschema
import pytest

from server import REPOSITORY, Server, read_log

LEVELS = ["MINIMAL", "DETAILED", "VERBOSE"]
SCHEMA = json.loads((REPOSITORY / "docs" / "events.schema.json").read_text())
BRANCHES = {branch["properties"]["event"]["const"]: branch for branch in SCHEMA["oneOf"]}
FIELDS = {kind: {"event", *SCHEMA["$defs"][branch["$ref"].rpartition("/")[2]]["required"]} for kind, branch in BRANCHES.items()}
EXAMPLES = REPOSITORY / "docs" / "examples.jsonl"

# Kinds that a run of llama-server with one model and without our C API cannot bring, and why.
NEVER_IN_A_PLAIN_RUN = {
    "memory_deallocation": "written when a C caller says that it freed something",
    "resource_tracking_begin": "written for a session that the host itself names, through the C API or the macros",
    "split_execution": "needs a device beside the CPU (see test_devices.py)",
    "moe_routing": "the model has no experts (see test_routing_is_told_for_a_model_with_experts)",
    "capture_summary": "written when activations are captured (see test_capture_account.py)",
    "gpu_sample": "needs a GPU (see test_gpu.py)",
    "gpu_summary": "needs a GPU (see test_gpu.py)",
    "request_progress": "needs a request that lasts a second (see test_serve.py)",
}

# SmolLM2-135M, as its GGUF file says.
LAYERS, WIDTH, FEED_FORWARD, VOCABULARY = 30, 576, 1536, 49152

PROMPT = "The people of the small house by the water have one time to be at it. " * 4
JQ = {
    "memory": 'select(.event=="memory_allocation") | {layer_id, allocation_size_mb, memory_type}',
    "compute": 'select(.event=="compute_execution") | {layer_id, compute_intensity_gflops}',
    "mlp": 'select(.event=="mlp_operation") | {layer_id, mlp_operation, activation_memory_peak_mb}',
}


def recorded(model, level, log_path):
    """Path of the log of a server that has answered three requests: a prompt, its continuation from the cache, and a stream."""
    with Server(os.path.relpath(model), args=["-c", "1024"], level=level, log_path=log_path) as server:
        body = {"n_predict": 12, "temperature": 0, "cache_prompt": True}
        server.post("/completion", {**body, "prompt": PROMPT})
        server.post("/completion", {**body, "prompt": PROMPT + "What would they have"})
        list(server.stream("/completion", {**body, "prompt": "There was a light"}))
        server.stop()
    return log_path


@pytest.fixture(scope="module")
def logs(smollm2, library, llama_server, tmp_path_factory):
    """level -> path of its log."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)  # the model's path is in the log, and from there in the documentation
        return {level: recorded(smollm2, level, folder / f"{level.lower()}.jsonl") for level in LEVELS}


@pytest.fixture(scope="module")
def moe_log(tiny_model, library, llama_server, tmp_path_factory):
    """Path of the log of a server with a mixture-of-experts model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        return recorded(tiny_model("qwen3moe"), "DETAILED", tmp_path_factory.mktemp("moe") / "moe.jsonl")


def check(events):
    """Each event against its own branch of the schema: against all of them, a log would take minutes."""
    validators = {kind: jsonschema.Draft202012Validator({**branch, "$defs": SCHEMA["$defs"]}) for kind, branch in BRANCHES.items()}
    for number, event in enumerate(events, start=1):
        kind = event.get("event")
        assert kind in BRANCHES, f"line {number}: {kind!r} is no kind of the schema"
        errors = [f"{error.json_path}: {error.message}" for error in validators[kind].iter_errors(event)]
        assert not errors, f"line {number}, {kind}: {errors}"
        # The schema lets readers meet fields of later versions; this version writes none that it does not list.
        assert set(event) == FIELDS[kind], f"line {number}, {kind}: other fields than documented: {set(event) ^ FIELDS[kind]}"


def test_the_schema_is_itself_valid_and_tells_kinds_apart():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    whole = jsonschema.Draft202012Validator(SCHEMA)
    for line in EXAMPLES.read_text().splitlines():
        whole.validate(json.loads(line))
        damaged = {**json.loads(line), "t_ns": "late"}
        assert not whole.is_valid(damaged), damaged


@pytest.mark.parametrize("level", LEVELS)
def test_every_line_of_a_real_log_is_as_the_schema_says(logs, level):
    check(read_log(logs[level]))


@pytest.mark.parametrize("level", LEVELS)
def test_no_kind_is_written_below_its_level(logs, level):
    allowed = LEVELS[: LEVELS.index(level) + 1]
    found = {event["event"] for event in read_log(logs[level])}
    assert not {kind for kind in found if BRANCHES[kind]["x-level"] not in allowed}


def test_every_kind_that_can_occur_does(logs):
    found = {event["event"] for event in read_log(logs["VERBOSE"])}
    # On a slow machine one of the requests may last a second.
    assert found - {"request_progress"} == set(BRANCHES) - set(NEVER_IN_A_PLAIN_RUN)


def test_routing_is_told_for_a_model_with_experts(moe_log):
    events = read_log(moe_log)
    check(events)
    routing = [event for event in events if event["event"] == "moe_routing"]
    assert routing
    for event in routing:
        assert sum(event["counts"]) == event["tokens"] * event["experts_used"]


# --- The documented commands of the older system ---


def select(path, name):
    """What JQ[name] selects, done in Python."""
    kind, fields = {
        "memory": ("memory_allocation", ["layer_id", "allocation_size_mb", "memory_type"]),
        "compute": ("compute_execution", ["layer_id", "compute_intensity_gflops"]),
        "mlp": ("mlp_operation", ["layer_id", "mlp_operation", "activation_memory_peak_mb"]),
    }[name]
    return [{field: event[field] for field in fields} for event in read_log(path) if event["event"] == kind]


@pytest.mark.parametrize("level", ["DETAILED", "VERBOSE"])
@pytest.mark.parametrize("name", JQ)
def test_documented_jq_commands_give_what_they_select(logs, level, name):
    if not shutil.which("jq"):
        pytest.skip("jq is not installed; the same selections are checked in Python by the tests below")
    output = subprocess.run(["jq", "-c", JQ[name], str(logs[level])], capture_output=True, text=True, check=True).stdout
    answers = [json.loads(line) for line in output.splitlines()]
    assert answers and answers == select(logs[level], name)


def test_jq_sorts_operations_by_compute(logs):
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    program = f"map({JQ['compute']}) | sort_by(.compute_intensity_gflops) | reverse"
    output = subprocess.run(["jq", "-s", program, str(logs["DETAILED"])], capture_output=True, text=True, check=True).stdout
    amounts = [answer["compute_intensity_gflops"] for answer in json.loads(output)]
    assert amounts == sorted((event["compute_intensity_gflops"] for event in select(logs["DETAILED"], "compute")), reverse=True)


def test_memory_by_layer_adds_up_to_the_model(logs):
    events = read_log(logs["DETAILED"])
    weights = [e for e in events if e["event"] == "memory_allocation" and e["usage"] == "weights"]
    size = next(e["size_bytes"] for e in events if e["event"] == "model_load" and e["outcome"] == "load")
    assert math.isclose(sum(e["allocation_size_mb"] for e in weights) * 2**20, size, rel_tol=1e-4)
    assert {e["layer_id"] for e in weights} == {None, *range(LAYERS)}
    assert {e["memory_type"] for e in select(logs["DETAILED"], "memory")} <= {"ram", "mmap"}  # a build without a GPU


def test_the_largest_operation_is_the_multiplication_by_the_vocabulary(logs):
    """Only the last row of a prompt needs its logits, so this holds in decode steps and in this prompt's step too."""
    for event in read_log(logs["VERBOSE"]):
        if event["event"] == "compute_execution" and event["output_shape"][:1] == [VOCABULARY]:
            rows = math.prod(event["output_shape"][1:])
            assert math.isclose(event["compute_intensity_gflops"], 2 * WIDTH * VOCABULARY * rows / 1e9)
            break
    else:
        pytest.fail("no multiplication by the vocabulary among the sampled steps")


def test_every_layer_of_a_sampled_step_tells_its_three_mlp_operations(logs):
    by_step = collections.defaultdict(collections.Counter)
    for event in read_log(logs["DETAILED"]):
        if event["event"] == "mlp_operation":
            by_step[event["step"]][event["layer_id"], event["mlp_operation"]] += 1
            # Input and result, both f32, of as many tokens as the step has.
            tokens = math.prod(event["activation_shape"][1:])
            expected = (WIDTH + FEED_FORWARD) * tokens * 4 / 2**20
            assert math.isclose(event["activation_memory_peak_mb"], expected, abs_tol=1e-6)
    assert by_step
    every = {(layer, name) for layer in range(LAYERS) for name in ("gate_proj", "up_proj", "down_proj")}
    # llama.cpp may cut the last layer's rows away, never the layer.
    assert all(set(counts) == every and set(counts.values()) == {1} for counts in by_step.values())


# --- The examples of the documentation ---

# Which lines of a kind say most; the last of them is taken, so that nothing is of a start-up.
TELLING = {
    "layer_begin": lambda e: e["layer_id"] == 1,
    "layer_end": lambda e: e["layer_id"] == 1,
    "component_begin": lambda e: e["layer_id"] == 1 and e["component_type"] == "mlp",
    "component_end": lambda e: e["layer_id"] == 1 and e["component_type"] == "mlp",
    "memory_allocation": lambda e: e["tensor"] == "blk.0.ffn_down.weight",
    "compute_execution": lambda e: e["operation"] == "mul_mat" and e["layer_id"] == 1 and e["component_type"] == "mlp",
    "component_handoff": lambda e: e["layer_id"] == 1,
    "mlp_operation": lambda e: e["layer_id"] == 1,
    "kv_cache_operation": lambda e: e["cache_operation"] == "update",
    "model_load": lambda e: e["outcome"] == "load",
    "buffer_allocation": lambda e: e["kind"] == "kv_cache",
    "buffer_free": lambda e: e["kind"] == "kv_cache",
    "request_token": lambda e: e["index"] > 0,
    "request_end": lambda e: e["cached_tokens"] > 0,
    "batch": lambda e: e["role"] == "main" and e["synchronized_us"] is not None,
    "kv_cache_usage": lambda e: e["used_cells"],
    "step_summary": lambda e: e["prefill"]["steps"] and e["decode"]["steps"],
    "host_sample": lambda e: e["cpu_percent"] is not None,
    "events_dropped": lambda e: e["kind"] == "step_events",
    "instrumentation_state": lambda e: e["component"] == "op_times",
}


@pytest.mark.skipif("UPDATE" not in os.environ, reason="UPDATE=1 writes docs/examples.jsonl anew")
def test_write_the_examples_of_the_documentation(logs, moe_log):
    lines = collections.defaultdict(list)
    for path in [moe_log, logs["VERBOSE"]]:  # the last line is taken: of the real model, where it has one
        for line in path.read_text().splitlines():
            lines[json.loads(line)["event"]].append(line)
    kept = {json.loads(line)["event"]: line for line in EXAMPLES.read_text().splitlines()}
    with EXAMPLES.open("w") as file:
        for kind in BRANCHES:
            says_most = [line for line in lines[kind] if TELLING.get(kind, lambda e: True)(json.loads(line))]
            found = says_most or lines[kind] or [kept.get(kind)]
            if found[-1]:
                file.write(found[-1] + "\n")
