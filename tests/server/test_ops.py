"""Operations of a step: FLOPs counted by hand, the node list of the architecture, times that add up, totals that equal their events."""

from collections import Counter, defaultdict

import gguf
import pytest

from server import SMOLLM2, read_log
from truth import EXACT, LETTERS, let_warm_up_pass, near, of_kind, served_part, sole, start

# SmolLM2-135M. Q4_1 weights; a multiply-add is two operations.
LAYERS, EMBD, HEADS, KV_HEADS, HEAD, FF, VOCAB = 30, 576, 9, 3, 64, 1536, 49152
KV = KV_HEADS * HEAD
CELLS = 256  # llama.cpp shows attention a multiple of so many cells

# What one layer runs, in order: (operation, component, tensor, operations at one token).
LAYER = [
    ("rms_norm", "norm", "norm-{}", 3 * EMBD),  # square and add, scale
    ("mul", "norm", "attn_norm-{}", EMBD),  # times the weights
    ("mul_mat", "attention", "Qcur-{}", 2 * EMBD * HEADS * HEAD),
    ("rope", "attention", "Qcur-{}", 3 * HEADS * HEAD),  # a rotation of a pair: 4 multiplications, 2 additions
    ("mul_mat", "attention", "Vcur-{}", 2 * EMBD * KV),
    ("mul_mat", "attention", "Kcur-{}", 2 * EMBD * KV),
    ("rope", "attention", "Kcur-{}", 3 * KV),
    ("set_rows", "kv_cache", "cache_k_l{} (view)", 0),
    ("set_rows", "kv_cache", "cache_v_l{} (view)", 0),
    ("flash_attn_ext", "attention", None, None),  # depends on the cells: see attention()
    ("mul_mat", "attention", "attn_out-{}", 2 * HEADS * HEAD * EMBD),
    ("add", "residual", "ffn_inp-{}", EMBD),
    ("rms_norm", "norm", "norm-{}", 3 * EMBD),
    ("mul", "norm", "ffn_norm-{}", EMBD),
    ("mul_mat", "mlp", "ffn_gate-{}", 2 * EMBD * FF),
    ("mul_mat", "mlp", "ffn_up-{}", 2 * EMBD * FF),
    ("swiglu", "mlp", "ffn_swiglu-{}", 5 * FF),  # silu: negate, exp, add, divide; times the other half
    ("mul_mat", "mlp", "ffn_out-{}", 2 * FF * EMBD),
    ("add", "residual", "l_out-{}", EMBD),
]
FIRST = ("get_rows", "embedding", "embd", 0)
LAST = [("rms_norm", "norm", "norm", 3 * EMBD), ("mul", "output", "result_norm", EMBD), ("mul_mat", "output", "result_output", 2 * EMBD * VOCAB)]
OPERATIONS = Counter(op for op, *_ in LAYER * LAYERS + [FIRST] + LAST) + Counter({"get_rows": 2})  # and the last layer's choice of rows


def attention(cells):
    """Scores: a dot product of 64, the softmax (scale, mask, subtract the maximum, exp, add), 64 values; at last one division each."""
    return HEADS * cells * (2 * HEAD + 5 + 2 * HEAD) + HEADS * HEAD


def decode_flops(position):
    cells = -(-(position + 1) // CELLS) * CELLS
    return LAYERS * (sum(flops or 0 for *_, flops in LAYER) + attention(cells)) + sum(flops for *_, flops in LAST)


def record(log):
    """(events, answer, summary of the warm-up) of one request at VERBOSE, every step written; its tokens cross a block of 256 cells."""
    with start(SMOLLM2, ["-np", "1"], env=EXACT, level="VERBOSE", log_path=log) as server:
        let_warm_up_pass(server)
        answer = server.post("/completion", {"prompt": LETTERS * 10, "n_predict": 24, "temperature": 0, "ignore_eos": True})
        assert server.stop() == 0
    events, warm_up = served_part(read_log(log))
    # What is left out is the warm-up, and nothing else.
    left_out = sum(event["count"] for event in of_kind(events, "events_dropped"))
    assert left_out <= warm_up["steps"] * sum(OPERATIONS.values()), of_kind(events, "events_dropped")
    return events, answer, warm_up


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return record(tmp_path_factory.mktemp("ops") / "log.jsonl")


def executions(events):
    """Operations by step, in order, and the decode steps among them (one token, that is one row of embeddings)."""
    steps = defaultdict(list)
    for event in of_kind(events, "compute_execution"):
        steps[event["step"]].append(event)
    decode = [step for step, ops in sorted(steps.items()) if ops[0]["output_shape"] == [EMBD]]
    return steps, decode


def flops(event):
    return round(event["compute_intensity_gflops"] * 1e9)


def test_flops_of_a_decode_step(exact):
    events, answer, warm_up = exact
    steps, decode = executions(events)
    prompt, predicted = answer["timings"]["prompt_n"], answer["timings"]["predicted_n"]
    assert prompt < CELLS < prompt + predicted, "the run does not cross a block of cells"
    assert len(decode) == predicted - 1
    counted = [sum(map(flops, steps[step])) for step in decode]
    assert counted == [decode_flops(prompt + i) for i in range(predicted - 1)]
    summaries = of_kind(events, "step_summary")
    assert sum(summary["decode"]["flops"] for summary in summaries) == sum(counted)
    total = of_kind(events, "resource_session_summary")[0]["total_compute_gflops"]
    before = warm_up["prefill"]["flops"] + warm_up["decode"]["flops"]
    assert total == pytest.approx((before + sum(map(flops, of_kind(events, "compute_execution")))) / 1e9, rel=1e-12)


def test_operations_are_the_architecture(exact):
    """Each decode step: the same operations in the same order, layer by layer, each in its component."""
    events, _, _ = exact
    steps, decode = executions(events)
    expected = [(*FIRST[:3], None)]
    for layer in range(LAYERS):
        expected += [(op, component, name and name.format(layer), layer) for op, component, name, _ in LAYER]
    expected += [(op, component, name, None) for op, component, name, _ in LAST]
    for step in decode:
        found = []
        for event in steps[step]:
            # In the last layer only rows with an output go on: both sources of the first addition are picked.
            if (event["operation"], event["layer_id"]) == ("get_rows", LAYERS - 1):
                assert found[-1][2] == f"attn_out-{LAYERS - 1}", "rows were picked elsewhere"
                continue
            found.append((event["operation"], event["component_type"], event["tensor"], event["layer_id"]))
            # The CPU backend computes a norm and its weights in one call.
            found += [("mul", "output" if name == "result_norm" else "norm", name, event["layer_id"]) for name in event["fused_with"]]
        assert [(op, component, None if op == "flash_attn_ext" else name, layer) for op, component, name, layer in found] == expected
        counts = Counter(event["operation"] for event in steps[step]) + Counter(mul=sum(len(event["fused_with"]) for event in steps[step]))
        assert counts == OPERATIONS


def test_weights_are_read_once_a_step(exact):
    """A decode step reads every weight but the embedding table's other rows: what the file holds is in bytes_read."""
    events, _, _ = exact
    steps, decode = executions(events)
    file = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(SMOLLM2).tensors}
    for step in decode[:3]:
        for event in steps[step]:
            weights = [file[name] for name in event["input_tensors"] if name in file]
            if event["operation"] == "mul_mat":
                rows = event["output_shape"][0]
                inner = round(flops(event) / 2 / rows)
                assert event["bytes_read"] == sole(weights, f"weights of {event['tensor']}") + 4 * inner
                assert event["bytes_written"] == 4 * rows
    matrices = sum(file[name] for event in steps[decode[0]] if event["operation"] == "mul_mat" for name in event["input_tensors"] if name in file)
    norms = sum(size for name, size in file.items() if "norm" in name)
    assert matrices + norms == sum(file.values()), "some weight is used by no operation (the embedding table is the output matrix too)"


def share_of_graph_time(events):
    """What operations and barriers are of the graphs' time. With the rest they are all of it."""
    summaries = of_kind(events, "step_summary")
    graph, barriers, other = (sum(summary[key] for summary in summaries) for key in ("timed_graph_us", "barrier_us", "other_us"))
    operations = of_kind(events, "compute_execution")
    in_ops, in_barriers = sum(event["duration_us"] for event in operations), sum(event["barrier_us"] for event in operations)
    assert near(in_barriers, barriers, relative=1e-4) and near(in_ops + in_barriers + other, graph, relative=1e-4)
    print(f"operations and barriers: {(in_ops + in_barriers) / graph:.4f} of the graphs' time")
    return (in_ops + in_barriers) / graph


def test_times_add_up(exact, tmp_path):
    """Operations and barriers are the graphs' time within 2 per cent."""
    events, _, _ = exact
    shares = [share_of_graph_time(events)]
    # Another program can take the core between two operations, before the first or after the last: then once more, twice at most.
    while shares[-1] < 0.98 and len(shares) < 3:
        shares.append(share_of_graph_time(record(tmp_path / f"{len(shares)}.jsonl")[0]))
    assert 0.98 <= shares[-1] <= 1, shares
    # In time they follow each other without overlap, and each layer lies around its operations.
    steps, _ = executions(events)
    for ops in steps.values():
        for event, following in zip(ops, ops[1:]):
            end = event["t_ns"] + (event["duration_us"] + event["barrier_us"]) * 1e3
            assert end <= following["t_ns"] + 2, (event, following)


def test_totals_are_the_sum_of_the_events(exact):
    events, _, warm_up = exact
    summaries = of_kind(events, "step_summary")
    operations = of_kind(events, "compute_execution")
    steps = {event["step"] for event in operations}
    assert sum(summary["steps"] for summary in summaries) == sum(summary["sampled_steps"] for summary in summaries) == len(steps)
    assert steps == set(range(warm_up["step"] + 1, max(steps) + 1))

    def by(key, rows, name, field):
        total = Counter()
        for row in rows:
            total[row[name]] += row[field] if isinstance(field, str) else field(row)
        return {k: v for k, v in total.items() if v}

    for section, name, key in (("ops", "name", "operation"), ("components", "name", "component_type"), ("layers", "layer_id", "layer_id")):
        rows = [row for summary in summaries for row in summary[section]]
        inside = [event for event in operations if event[key] is not None]
        assert by(section, rows, name, "timed_count") == by(section, inside, key, lambda event: 1), section
        assert by(section, rows, name, "timed_flops") == by(section, inside, key, flops), section
        assert by(section, rows, name, "timed_bytes") == by(section, inside, key, lambda e: e["bytes_read"] + e["bytes_written"]), section
        ours, theirs = by(section, rows, name, "timed_us"), by(section, inside, key, "duration_us")
        assert all(near(ours[k], theirs[k], relative=1e-3, slack=1) for k in theirs), section
        # With fused operations counted where they belong, the sums over everything are the same.
        assert sum(by(section, rows, name, "flops").values()) == sum(map(flops, inside))
        assert sum(by(section, rows, name, "bytes").values()) == sum(e["bytes_read"] + e["bytes_written"] for e in inside)
        assert sum(by(section, rows, name, "count").values()) == sum(1 + len(event["fused_with"]) for event in inside)
    handoffs = len(of_kind(events, "component_handoff"))
    assert sum(summary["component_flows"] for summary in summaries) == handoffs > 0
    assert of_kind(events, "resource_session_summary")[0]["component_flows"] == handoffs + warm_up["component_flows"]


def test_layers_and_components_nest(exact):
    """begin and end are balanced, hold the operations of their layer and component, and every step has all layers in order."""
    events, _, _ = exact
    layers, layer, component = defaultdict(list), None, None
    for event in of_kind(events, "layer_begin", "layer_end", "component_begin", "component_end", "compute_execution"):
        kind = event["event"]
        if kind == "layer_begin":
            assert layer is None and component is None
            layer, inside = event, []
        elif kind == "layer_end":
            assert component is None and (layer["layer_id"], layer["step"]) == (event["layer_id"], event["step"])
            assert near(event["duration_us"], (event["t_ns"] - layer["t_ns"]) / 1e3, relative=0, slack=1e-3)
            assert round(event["layer_compute_gflops"] * 1e9) == sum(map(flops, inside))
            assert event["memory_operations"] + event["compute_operations"] == sum(1 + len(op["fused_with"]) for op in inside)
            layers[event["step"]].append(event["layer_id"])
            layer = None
        elif kind == "component_begin":
            assert component is None and event["layer_id"] == (layer and layer["layer_id"])
            component = event
        elif kind == "component_end":
            assert (component["component_type"], component["layer_id"]) == (event["component_type"], event["layer_id"])
            assert near(event["duration_us"], (event["t_ns"] - component["t_ns"]) / 1e3, relative=0, slack=1e-3)
            component = None
        else:
            assert component["component_type"] == event["component_type"] and event["layer_id"] == (layer and layer["layer_id"])
            assert component["t_ns"] <= event["t_ns"]
            if layer:
                inside.append(event)
    assert layer is None and component is None
    assert layers and all(found == list(range(LAYERS)) for found in layers.values())


def test_mlp_operations_have_the_shapes_of_the_file(exact):
    events, _, _ = exact
    file = {tensor.name: [int(n) for n in tensor.shape] for tensor in gguf.GGUFReader(SMOLLM2).tensors}
    found = of_kind(events, "mlp_operation")
    steps = len({event["step"] for event in of_kind(events, "compute_execution")})
    assert len(found) == 3 * LAYERS * steps
    for event in found:
        weights = event["mlp_operation"].replace("_proj", "")
        assert event["weight_shape"] == file[f"blk.{event['layer_id']}.ffn_{weights}.weight"]
        assert event["activation_shape"][0] == event["weight_shape"][1] and event["activation_function"] == "silu"


def test_cache_writes(exact):
    """Each step writes the keys and values of its own positions: 192 halves of each, a token and layer."""
    events, answer, _ = exact
    _, decode = executions(events)
    writes = defaultdict(list)
    for event in of_kind(events, "kv_cache_operation"):
        if event["cache_operation"] == "update":
            writes[event["step"]].append(event)
    for i, step in enumerate(decode):
        position = answer["timings"]["prompt_n"] + i
        assert [event["layer_id"] for event in writes[step]] == [layer for layer in range(LAYERS) for _ in "kv"]
        for key, value in zip(writes[step][::2], writes[step][1::2]):
            assert key["key_cache_size_mb"] == value["value_cache_size_mb"] == pytest.approx(KV * 2 / 2**20, abs=1e-6)
            assert key["value_cache_size_mb"] is None and value["key_cache_size_mb"] is None
            for event in (key, value):
                assert (event["cache_start_pos"], event["cache_end_pos"], event["seq_id"]) == (position, position + 1, 0)


def test_graph_time_is_the_servers_time(tmp_path):
    """The decode steps take no longer than the server's predicted_ms, and are nearly all of it."""
    with start(SMOLLM2, ["-np", "1"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        timings = server.post("/completion", {"prompt": LETTERS, "n_predict": 150, "temperature": 0, "ignore_eos": True})["timings"]
        assert server.stop() == 0
    events = read_log(tmp_path / "log.jsonl")
    decode = [summary["decode"] for summary in of_kind(events, "step_summary")]
    assert sum(phase["steps"] for phase in decode) == sum(phase["tokens"] for phase in decode) == timings["predicted_n"] - 1
    share = sum(phase["graph_us"] for phase in decode) / 1e3 / timings["predicted_ms"]
    print(f"graphs: {share:.4f} of predicted_ms")
    assert 0.9 <= share <= 1, share
    batches = of_kind(events, "batch")
    assert batches and all(batch["synchronized_us"] >= batch["duration_us"] for batch in batches if batch["synchronized_us"])
