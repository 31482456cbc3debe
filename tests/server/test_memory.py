"""Memory: buffers against the sizes that the server prints, weights against the GGUF file."""

import re

import gguf
import pytest

from server import SMOLLM2, read_log
from truth import EXACT, LETTERS, let_warm_up_pass, of_kind, served_part, start

MIB = 1024 * 1024
LINES = {  # what the server prints -> kinds of buffers that add up to it
    "model": {"weights"},
    "KV": {"kv_cache"},
    "RS": {"recurrent_state"},
    "compute": {"compute"},
    "output": {"output"},
}


def printed_sizes(stderr):
    """{(what, buffer type): [MiB as printed]} of the real load: with --fit the server first loads and sizes a model without weights."""
    probes = [match.start() for match in re.finditer(r"load_tensors: loading model tensors", stderr)]
    assert probes, "the server did not print its loading (-lv too low?)"
    real = stderr[probes[-1]:]
    sizes = {}
    for buffer_type, what, size in re.findall(r": +(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB", real):
        sizes.setdefault((what, buffer_type), []).append(size)
    return sizes


def check_buffers(events, stderr):
    printed = printed_sizes(stderr)
    assert {what for what, _ in printed} >= {"model", "compute", "output"}, printed
    loaded = [event["t_ns"] for event in of_kind(events, "model_load") if event["outcome"] == "load"][-1]
    allocations = of_kind(events, "buffer_allocation")
    compared = []
    for (what, buffer_type), sizes in printed.items():
        ours = [event["size_bytes"] for event in allocations if event["kind"] in LINES[what] and event["backend"] == buffer_type
                and (what == "model" or event["t_ns"] >= loaded)]
        # The scheduler grows its buffer while it tries graphs; the last one is what is printed.
        if what == "compute":
            ours, sizes = ours[-1:], sizes[-1:]
        digits = len(sizes[-1].partition(".")[2])
        assert sorted(f"{size / MIB:.{digits}f}" for size in ours) == sorted(sizes), (what, buffer_type, ours, sizes)
        compared.append((what, buffer_type, sum(ours)))
    return compared


def check_life(events):
    """Every buffer_free has its allocation, and live_bytes is their running difference."""
    live, known = {}, set()
    for event in sorted(of_kind(events, "buffer_allocation", "buffer_free"), key=lambda event: event["t_ns"]):
        number = event["buffer_id"]
        if event["event"] == "buffer_allocation":
            assert number not in known, f"buffer_id {number} twice"
            known.add(number)
            live[number] = event
        else:
            allocation = live.pop(number, None)
            assert allocation, f"free of a buffer that was not allocated: {event}"
            assert all(event[key] == allocation[key] for key in ("size_bytes", "kind", "backend")), (allocation, event)
        assert event["live_bytes"] == sum(other["size_bytes"] for other in live.values()), event
    return live


@pytest.mark.parametrize("arguments", [
    ["-np", "1"],
    ["-np", "4", "-c", "2048", "--no-kv-unified", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"],
    ["-np", "2", "--load-mode", "none", "-ub", "64"],
])
def test_buffers_are_what_the_server_prints(tmp_path, arguments):
    with start(SMOLLM2, ["-lv", "5", *arguments], level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": LETTERS, "n_predict": 4})
        assert server.stop() == 0
        stderr = server.stderr
    events = read_log(tmp_path / "log.jsonl")
    compared = check_buffers(events, stderr)
    assert {what for what, _, _ in compared} == {"model", "KV", "compute", "output"}
    assert not check_life(events), "buffers that were never freed"
    summary = of_kind(events, "resource_session_summary")[0]
    assert summary["total_memory_mb"] == pytest.approx(max(e["live_bytes"] for e in of_kind(events, "buffer_allocation")) / MIB, abs=1e-3)


@pytest.mark.parametrize("name", ["mamba", "gemma3", "granitehybrid", "qwen3moe"])
def test_buffers_of_other_architectures(tmp_path, tiny_model, name):
    with start(tiny_model(name), ["-lv", "5", "-c", "512"], level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": "the house", "n_predict": 4})
        assert server.stop() == 0
        stderr = server.stderr
    events = read_log(tmp_path / "log.jsonl")
    compared = {what for what, _, _ in check_buffers(events, stderr)}
    assert ("RS" in compared) == (name in ("mamba", "granitehybrid")) and ("KV" in compared) == (name != "mamba")
    assert not check_life(events)


@pytest.mark.parametrize("name, mapped", [("smollm2", True), ("qwen3moe", True), ("llama-q8_0", True), ("qwen3moe", False)])
def test_weights_are_the_tensors_of_the_file(tmp_path, tiny_model, name, mapped):
    path = SMOLLM2 if name == "smollm2" else tiny_model(name)
    with start(path, ["-c", "256", *([] if mapped else ["--load-mode", "none"])], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        assert server.stop() == 0
    events = read_log(tmp_path / "log.jsonl")
    check_weights(events, path, {"mmap", "ram"} if mapped else {"ram"})


def check_weights(events, path, memory_types):
    """Every tensor of the file was told, once, with its size and shape."""
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    told = [event for event in of_kind(events, "memory_allocation") if event["usage"] == "weights"]
    names = [event["tensor"] for event in told]
    # A tied output matrix is one tensor of the file; where a device computes it, the table of embeddings is there and with the host.
    places = [(event["tensor"], event["backend"]) for event in told]
    assert len(set(places)) == len(places) and set(names) == set(file), (set(names) ^ set(file), len(names), len(file))
    assert len(names) == len(file) or "vram" in memory_types and {name for name in names if names.count(name) > 1} == {"token_embd.weight"}
    for event in told:
        tensor = file[event["tensor"]]
        shape = [int(n) for n in tensor.shape]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        assert event["tensor_shape"] == shape, event["tensor"]
        assert event["precision"] == tensor.tensor_type.name.lower(), event["tensor"]
        assert event["allocation_size_mb"] == pytest.approx(int(tensor.n_bytes) / MIB, abs=1e-6), event["tensor"]
        assert event["compression_ratio"] == pytest.approx(int(tensor.n_elements) * 4 / int(tensor.n_bytes)), event["tensor"]
        block = re.match(r"blk\.(\d+)\.", event["tensor"])
        assert event["layer_id"] == (int(block.group(1)) if block else None), event["tensor"]
        assert event["memory_address"] and event["memory_type"] in memory_types
    # Two tensors never share an address.
    assert len({event["memory_address"] for event in told}) == len(told)
    load = [event for event in of_kind(events, "model_load") if event["outcome"] == "load"][0]
    assert load["size_bytes"] == sum(int(tensor.n_bytes) for tensor in file.values())
    assert load["n_params"] == sum(int(tensor.n_elements) for tensor in file.values())


def test_large_tensors_at_minimal(tmp_path):
    """What is over 1 MiB, and nothing else."""
    with start(SMOLLM2, ["-c", "4096", "-np", "1"], level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        assert server.stop() == 0
    told = of_kind(read_log(tmp_path / "log.jsonl"), "memory_allocation")
    large = {tensor.name for tensor in gguf.GGUFReader(SMOLLM2).tensors if tensor.n_bytes > MIB}
    cache = {f"cache_{kind}_l{layer}" for kind in "kv" for layer in range(30)}  # 3 * 64 * 4096 halves: 1.5 MiB
    assert {event["tensor"] for event in told if event["usage"] != "compute"} == large | cache
    assert large == {"token_embd.weight"} and all(event["allocation_size_mb"] > 1 for event in told)


def test_the_cache_tensors(tmp_path):
    """Keys and values of 30 layers: kv heads * head size * cells, f16."""
    with start(SMOLLM2, ["-c", "1024", "-np", "1"], level="DETAILED", log_path=tmp_path / "log.jsonl") as server:
        assert server.stop() == 0
    cache = [event for event in of_kind(read_log(tmp_path / "log.jsonl"), "memory_allocation") if event["usage"] == "kv_cache"]
    assert {event["tensor"] for event in cache} == {f"cache_{kind}_l{layer}" for kind in "kv" for layer in range(30)}
    for event in cache:
        assert event["tensor_shape"] == [3 * 64, 1024] and event["precision"] == "f16"
        assert event["layer_id"] == int(event["tensor"].rpartition("l")[2])


def test_tensors_of_a_graph(tmp_path):
    """At VERBOSE the tensors of a written step's graph are told too; all lie in the compute buffer."""
    with start(SMOLLM2, ["-np", "1"], env=EXACT, level="VERBOSE", log_path=tmp_path / "log.jsonl") as server:
        let_warm_up_pass(server)
        server.post("/completion", {"prompt": LETTERS, "n_predict": 8})
        assert server.stop() == 0
    events, _ = served_part(read_log(tmp_path / "log.jsonl"))
    compute = [event for event in of_kind(events, "memory_allocation") if event["usage"] == "compute"]
    assert {"inp_tokens", "result_output", "ffn_out-17"} <= {event["tensor"] for event in compute}
    outputs = [event for event in compute if event["tensor"] == "result_output"]
    built = sum(summary["graphs_built"] for summary in of_kind(events, "step_summary"))
    assert len(outputs) == built, "one graph, one placement"
    assert {tuple(event["tensor_shape"]) for event in outputs} == {(49152,)}
