"""Graphs on several devices: a remote one (ggml RPC) beside the CPU. What is copied between them is counted by hand from the model's shapes.

SmolLM2-135M has 30 layers and an output layer; `-ngl 15` puts the last 14 layers and the output on the remote device, and llama.cpp's
scheduler adds the last operation of the layer before: what crosses over are the two terms of that layer's sum.
"""

import json
import subprocess
from collections import Counter, defaultdict

import pytest

from capture import PROGRAM
from server import SMOLLM2, read_log
from test_schema import check
from truth import EXACT, LETTERS, let_warm_up_pass, of_kind, served_part, start

EMBD, FIRST_REMOTE, LAYERS = 576, 16, 30
CELLS = 256  # llama.cpp shows attention a multiple of so many cells
F32, F16, I32, I64 = 4, 2, 4, 8
GREEDY = {"prompt": LETTERS * 8, "n_predict": 6, "temperature": 0, "ignore_eos": True, "return_tokens": True, "n_probs": 10}
UBATCH = 64
HALF = ["-ngl", "15"]
# Layers 20 and 21 have their feed-forward parts here, so that results come back as well.
BACK_AND_FORTH = [*HALF, "-ot", r"blk\.(20|21)\.ffn_(gate|up|down)=CPU"]


def serve(port, log, args, env=None, preload=True):
    """(events, answer, steps of the warm-up) of one request at VERBOSE, every step written."""
    remote = [] if port is None else ["--rpc", f"127.0.0.1:{port}"]
    options = {"env": {**EXACT, **(env or {})}, "level": "VERBOSE", "log_path": log} if preload else {"preload": False}
    with start(SMOLLM2, ["-np", "1", "-c", "512", "-ub", str(UBATCH), "-fa", "on", *remote, *args], **options) as server:
        if preload:
            let_warm_up_pass(server)
        answer = server.post("/completion", GREEDY)
        assert server.stop() == 0, server.stderr[-2000:]
    return (*served_part(read_log(log)), answer) if preload else answer


@pytest.fixture(scope="module")
def half(rpc_port, tmp_path_factory):
    return serve(rpc_port, tmp_path_factory.mktemp("half") / "log.jsonl", HALF)


@pytest.fixture(scope="module")
def back_and_forth(rpc_port, tmp_path_factory):
    return serve(rpc_port, tmp_path_factory.mktemp("back") / "log.jsonl", BACK_AND_FORTH)


def said(answer):
    """Tokens, and the ten most likely at each with their logarithms."""
    assert all(len(token["top_logprobs"]) == GREEDY["n_probs"] for token in answer["completion_probabilities"])
    return answer["tokens"], answer["completion_probabilities"]


def ubatches(answer):
    """Tokens, outputs and positions before each ubatch of the request: the prompt in pieces, then one token at a time."""
    timings = answer["timings"]
    assert timings["cache_n"] == 0
    prompt, out = timings["prompt_n"], []
    for at in range(0, prompt, UBATCH):
        tokens = min(UBATCH, prompt - at)
        out.append((tokens, int(at + tokens == prompt), at))
    return out + [(1, 1, prompt + i) for i in range(timings["predicted_n"] - 1)]


def copies(events):
    """Copies between devices by step, in order."""
    steps = defaultdict(list)
    for event in of_kind(events, "component_handoff"):
        if event["from_device"]:
            steps[event["step"]].append(event)
    return dict(sorted(steps.items()))


def inputs_of_the_remote_part(tokens, outputs, before):
    """Bytes of everything that the first remote layer needs and has not: counted by hand."""
    cells = -(-(before + tokens) // CELLS) * CELLS
    expected = {
        f"ffn_out-{FIRST_REMOTE - 1}": EMBD * tokens * F32,
        f"ffn_inp-{FIRST_REMOTE - 1}": EMBD * tokens * F32,
        "positions": tokens * I32,
        "mask": cells * tokens * F16,
        "key cells": tokens * I64,  # where the new keys go
        "value cells": tokens * I64,
    }
    if outputs:
        expected["rows with an output"] = outputs * I32
    return expected


def test_copies_have_the_bytes_of_the_inputs(half):
    events, _, answer = half
    found = copies(events)
    expected = [inputs_of_the_remote_part(*ubatch) for ubatch in ubatches(answer)]
    assert len(found) == len(expected), (found.keys(), len(expected))
    for (step, all_of_it), by_hand in zip(found.items(), expected):
        said = [(event["tensor"], event["bytes"]) for event in all_of_it]
        assert sorted(n for _, n in said) == sorted(by_hand.values()), f"step {step}: {said}, by hand {by_hand}"
        terms = {event["tensor"]: event for event in all_of_it if event["layer_id"] == FIRST_REMOTE - 1}
        assert {name: (e["bytes"], e["from_component"], e["to_component"]) for name, e in terms.items()} == {
            name: (by_hand[name], component, "residual")
            for name, component in ((f"ffn_out-{FIRST_REMOTE - 1}", "mlp"), (f"ffn_inp-{FIRST_REMOTE - 1}", "residual"))}
        for event in all_of_it:
            assert (event["from_device"], event["device"]) == ("CPU", "RPC0")
            assert event["data_size_mb"] == pytest.approx(event["bytes"] / 2**20, abs=1e-6)
            # The CPU was done with it: nothing but the copy is in the time.
            assert event["waited"] is False and event["duration_us"] > 0
            assert event["transfer_bandwidth_gbps"] == pytest.approx(event["bytes"] / event["duration_us"] / 1e3, rel=0.01, abs=0.001)


def test_every_line_is_as_the_schema_says(back_and_forth):
    check(back_and_forth[0])


def test_summaries_hold_what_the_events_say(half, back_and_forth):
    for events, _, _ in (half, back_and_forth):
        by_pair, timed = Counter(), Counter()
        for event in (event for events_of_step in copies(events).values() for event in events_of_step):
            pair = event["from_device"], event["device"]
            by_pair[pair, "count"] += 1
            by_pair[pair, "bytes"] += event["bytes"]
            timed[pair] += 0 if event["waited"] else event["duration_us"]
        total = Counter()
        for summary in of_kind(events, "step_summary"):
            for copy in summary["copies"]:
                pair = copy["from_device"], copy["to_device"]
                total[pair, "count"] += copy["count"]
                total[pair, "bytes"] += copy["bytes"]
                timed[pair] -= copy["timed_us"]
        assert by_pair and total == by_pair
        assert all(abs(rest) < 1 for rest in timed.values()), timed

        operations = Counter()
        for event in of_kind(events, "compute_execution"):
            operations[event["device"], event["memory_type"]] += 1 + len(event["fused_with"])
        said = Counter()
        for device in (device for summary in of_kind(events, "step_summary") for device in summary["devices"]):
            said[device["device"], device["memory_type"]] += device["operations"]
        assert said == operations and set(said) == {("CPU", "ram"), ("RPC0", "vram")}


def test_operations_name_their_device_and_have_no_invented_time(half):
    events, _, _ = half
    executions = of_kind(events, "compute_execution")
    for event in executions:
        layer = event["layer_id"]
        remote = event["component_type"] != "embedding" if layer is None else layer >= FIRST_REMOTE
        remote |= event["tensor"] == f"l_out-{FIRST_REMOTE - 1}"
        assert event["device"] == ("RPC0" if remote else "CPU"), event
        timed = [event[key] is not None for key in ("duration_us", "barrier_us", "gflops_per_s", "gbps", "memory_throughput_gbps")]
        assert timed == [event["device"] == "CPU"] * len(timed), event
        assert event["timing"] is None
    assert {event["device"] for event in executions} == {"CPU", "RPC0"}
    for event in of_kind(events, "layer_end"):
        assert (event["duration_us"] is not None) == (event["layer_id"] < FIRST_REMOTE - 1), event
    states = [event for event in of_kind(events, "instrumentation_state") if event["component"] == "op_times"]
    assert any(event["state"] == "warning" and "RPC0" in event["reason"] for event in states), states


def splits(events):
    steps = defaultdict(list)
    for event in of_kind(events, "split_execution"):
        steps[event["step"]].append(event)
    return dict(sorted(steps.items()))


def test_a_part_has_a_time_only_where_its_end_is_seen(half, back_and_forth):
    events, _, answer = half
    assert len(splits(events)) == len(ubatches(answer))
    for step, parts in splits(events).items():
        assert [part["device"] for part in parts] == ["CPU", "RPC0"] and [part["split"] for part in parts] == [0, 1]
        here, there = parts
        assert here["last_tensor"] == f"ffn_out-{FIRST_REMOTE - 1}" and there["first_tensor"] == f"l_out-{FIRST_REMOTE - 1}" and there["last_tensor"] in ("result_output", f"l_out-{LAYERS - 1}"), there
        assert here["duration_us"] >= here["submit_us"] > 0
        # Only sent: the scheduler returns, and the host reads the logits later.
        assert there["duration_us"] is None and there["submit_us"] > 0
        assert [part["timing"] for part in parts] == [None, None] and {part["calls"] for part in parts} == {1}
        executions = [event for event in of_kind(events, "compute_execution") if event["step"] == step]
        for part in parts:
            of_it = [event for event in executions if event["device"] == part["device"]]
            assert part["operations"] == sum(1 + len(event["fused_with"]) for event in of_it)
            assert part["flops"] == sum(round(event["compute_intensity_gflops"] * 1e9) for event in of_it)
            # What the device is given stands at that moment.
            assert part["device"] == "CPU" or {event["t_ns"] for event in of_it} == {part["t_ns"]}

    events, _, _ = back_and_forth
    for parts in splits(events).values():
        assert [part["device"] for part in parts] == ["CPU", "RPC0", "CPU", "RPC0", "CPU", "RPC0"]
        # A result of the first two remote parts was read.
        assert [part["duration_us"] is not None for part in parts] == [True] * 5 + [False]
        assert {part["timing"] for part in parts} == {None}


def test_results_that_come_back(back_and_forth):
    events, _, answer = back_and_forth
    for (step, all_of_it), (tokens, _, _) in zip(copies(events).items(), ubatches(answer), strict=True):
        back = [event for event in all_of_it if event["device"] == "CPU"]
        assert {event["bytes"] for event in back} == {EMBD * tokens * F32}, back
        assert {event["from_device"] for event in back} == {"RPC0"} and {event["layer_id"] for event in back} == {20, 21}
        # The remote device answers when it has computed: the wait is in the call, so there is no rate.
        for layer in (20, 21):
            first = next(event for event in back if event["layer_id"] == layer)
            assert first["waited"] is True and first["transfer_bandwidth_gbps"] is None and first["duration_us"] > 0


def test_waiting_is_asked_for_and_said(rpc_port, tmp_path, half):
    """With the setting every part has its time, which together are the server's own time; the answer is the same."""
    events, _, answer = serve(rpc_port, tmp_path / "log.jsonl", HALF, {"LLAMA_RESOURCE_SPLIT_TIMES": "1"})
    assert said(answer) == said(half[2])
    by_phase, timings = Counter(), answer["timings"]
    for (tokens, _, before), parts in zip(ubatches(answer), splits(events).values(), strict=True):
        here, there = parts
        assert (here["timing"], there["timing"]) == (None, "serialized")
        assert there["duration_us"] > there["submit_us"]
        by_phase[before < timings["prompt_n"]] += here["duration_us"] + there["duration_us"]
        if tokens == UBATCH:
            # 14 layers of 64 tokens are more work than sending some names.
            assert there["duration_us"] > 3 * there["submit_us"], there
    for is_prompt, server_ms in ((True, timings["prompt_ms"]), (False, timings["predicted_ms"])):
        assert 0.6 * server_ms < by_phase[is_prompt] / 1e3 < 1.02 * server_ms, (by_phase, timings)
    remote = [device for summary in of_kind(events, "step_summary") for device in summary["devices"] if device["device"] == "RPC0"]
    assert sum(device["splits"] for device in remote) == sum(device["serialized_splits"] for device in remote) > 0
    assert {event["timing"] for event in of_kind(events, "compute_execution")} == {None}


def test_the_host_computes_the_same(rpc_port, half, back_and_forth):
    for args, (_, _, answer) in ((HALF, half), (BACK_AND_FORTH, back_and_forth)):
        assert said(serve(rpc_port, None, args, preload=False)) == said(answer)


def test_all_on_one_remote_device(rpc_port, tmp_path):
    events, _, answer = serve(rpc_port, tmp_path / "log.jsonl", ["-ngl", "99"])
    for parts in splits(events).values():
        assert [part["device"] for part in parts][-1] == "RPC0" and parts[-1]["duration_us"] is None
    layers = [event for event in of_kind(events, "compute_execution") if event["layer_id"] is not None]
    assert {(event["device"], event["memory_type"], event["duration_us"]) for event in layers} == {("RPC0", "vram", None)}


def test_a_graph_on_the_cpu_alone_has_no_such_lines(tmp_path):
    events, _, answer = serve(None, tmp_path / "log.jsonl", [])
    assert not of_kind(events, "split_execution") and not copies(events)
    assert {event["timing"] for event in of_kind(events, "compute_execution")} == {None}
    for summary in of_kind(events, "step_summary"):
        assert summary["copies"] == [] and [device["device"] for device in summary["devices"]] == ["CPU"]
        assert summary["devices"][0]["splits"] == summary["devices"][0]["timed_splits"] == summary["steps"]


def test_the_report_shows_devices_and_copies(rpc_port, tmp_path):
    log = tmp_path / "log.jsonl"
    serve(rpc_port, log, HALF)
    wanted, flops = Counter(), Counter()
    for summary in of_kind(read_log(log), "step_summary"):
        for copy in summary["copies"]:
            wanted[copy["from_device"], copy["to_device"]] += copy["bytes"]
        for device in summary["devices"]:
            flops[device["device"]] += device["flops"]
    session = json.loads(report(log, "--json"))["sessions"][-1]
    # The host only sends the remote part its work: no rate of computing follows from the time of that.
    time = session["time"]
    assert time["unseen_parts"] > 0 and time["decode"]["steps"] > 0
    assert all(time[phase][rate] is None for phase in ("prefill", "decode") for rate in ("tokens_per_second", "gflops_per_s"))
    said = session["devices"]
    assert {(c["from_device"], c["to_device"]): c["bytes"] for c in said["copies"]} == wanted
    assert {d["device"]: d["flops"] for d in said["devices"]} == flops and len(flops) == 2
    text = report(log)
    assert "submitting" in text and "computing  " not in text
    assert "\nDEVICES" in text and all(len(line) <= 80 for line in text.splitlines())
    page = tmp_path / "report.html"
    report(log, "--html", str(page))
    assert "<h2>Devices</h2>" in page.read_text()


def report(log, *options):
    return subprocess.run([PROGRAM, "report", log, *options], capture_output=True, text=True, check=True).stdout
