"""Byte truth: what is captured equals what an independent hook saw (tests/host/oracle.c), for every tensor, route, architecture and batch.

Two arrangements. *Apart*: the same requests to a plain server with the oracle and to a server with only our library; the host's own
graph runs, uncut, so the captured bytes are those of production. *Beside*: both in one process, on the very same graph runs, which is
exact even where batches depend on timing (several slots). The oracle cuts the graph at every node there, so retention is tried at its
hardest: each kept value must survive all later nodes.
"""

import functools
import itertools

import pytest

import make_tiny
from capture import (VIEW_OPS, Stream, account, align, capturing, check_account, compare, read_oracle, total, why_left,
                     witnessed)
from server import SMOLLM2, read_log

LETTERS = "There was a house by the water, and the people in it were not there when the light was on. "
SHORT = "The people of the small house"
GREEDY = {"temperature": 0, "seed": 7, "ignore_eos": True}
ROUTES = ["retain", "callback"]

# Dense, mixture of experts, sliding window, latent attention, recurrent, hybrids: every kind of graph that the tiny models have.
APART = ["smollm2", "llama", "qwen3moe", "gemma3", "gpt-oss", "gptneox", "deepseek2", "mamba", "rwkv7", "qwen35", "lfm2", "falcon-h1"]
BESIDE = ["smollm2", *make_tiny.MODELS]


@pytest.fixture
def model(request, tiny_model):
    return SMOLLM2 if request.param == "smollm2" else tiny_model(request.param)


# --- Apart ---

ALONE_ARGS = ["-c", "512", "-b", "64", "-ub", "16", "-np", "1"]


def alone(server):
    """One slot, so the same graph runs every time: a prompt over several ubatches, decode, a prefix from the cache, a prompt without."""
    def ask(prompt, n_predict, **more):
        return server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n_predict, "return_tokens": True, **more})

    answers = [ask(LETTERS * 2, 5), ask(LETTERS * 2 + SHORT, 3), ask(SHORT, 2, cache_prompt=False)]
    assert server.stop() == 0, server.stderr[-2000:]
    return [answer["tokens"] for answer in answers]


@pytest.fixture(scope="session")
def seen_alone(tmp_path_factory):
    """Function from a model to (tokens, graph runs) of a plain server with the oracle; each model runs once."""
    @functools.cache
    def run(model):
        path = tmp_path_factory.mktemp("oracle") / "alone.bin"
        with witnessed(model, path, ALONE_ARGS) as server:
            tokens = alone(server)
        return tokens, read_oracle(path)

    return run


@pytest.mark.parametrize("model, route", [*itertools.product(APART, ROUTES), ("smollm2", "auto"), ("qwen35", "auto")], indirect=["model"])
def test_apart(model, route, seen_alone, tmp_path):
    tokens, runs = seen_alone(model)
    with capturing(model, tmp_path / "acts.stream", ALONE_ARGS, route=route) as server:
        assert alone(server) == tokens, "the capture changed the answers"
    pairs = align(Stream(tmp_path / "acts.stream"), runs)
    for step, _, run in pairs:
        assert run.complete, f"step {step}: the oracle's run {run.number} is not complete"
    result = compare(pairs)
    # Nothing but the host's warm-up may be missing at the start: two runs, before the first prompt.
    missing = [run for run in runs if run.rows is not None][: -len(pairs)]
    assert len(missing) <= 2 and all(len(run.rows) <= 2 for run in missing), [run.rows for run in missing]
    check_left(result, tmp_path / "acts.stream", missing)


def check_left(result, path, warm_up):
    """Every node that the oracle saw is either in the stream or skipped for a reason that the oracle confirms."""
    said, clean = account(path)
    assert clean, "no end packet"
    check_account(said)
    assert total(said, "dropped") == (0, 0), said
    assert total(said, "captured") == (result.tensors, result.bytes), (said, result)
    empty = sum(n for (_, op, why), n in result.left.items() if why == "empty" and op not in VIEW_OPS)
    empty += sum(why_left(node, {}) == "empty" and node.op not in VIEW_OPS for run in warm_up for node in run.nodes)
    assert said["skipped"].get("empty", {"tensors": 0})["tensors"] == empty, (said["skipped"], result.left)
    unexplained = {what: n for what, n in result.left.items() if what[2] == "?"}
    assert not unexplained, f"computed, contiguous, not a view, and not captured: {unexplained}; account {said['skipped']}"


# --- Beside ---

def busy(server):
    """Two slots at once, the same prefixes again, two completions of one prompt. A list of prompts is started as one."""
    def ask(prompt, n_predict, **more):
        server.post("/completion", {**GREEDY, "prompt": prompt, "n_predict": n_predict, **more})

    ask([LETTERS * 2, SHORT], 6)
    ask([LETTERS * 2 + SHORT, SHORT + " and the water"], 4)
    ask(LETTERS, 4, n_cmpl=2, temperature=1.0)
    assert server.stop() == 0, server.stderr[-2000:]


def check_beside(path, witness):
    stream, runs = Stream(path), read_oracle(witness)
    pairs = align(stream, runs)
    result = compare(pairs)
    check_left(result, path, [run for run in runs if run.rows is not None][: -len(pairs)])
    return pairs, result


@pytest.mark.parametrize("model", BESIDE, indirect=True)
@pytest.mark.parametrize("route", ROUTES)
def test_beside(model, route, tmp_path):
    args = ["-c", "1024", "-b", "64", "-ub", "16", "-np", "2"]
    with capturing(model, tmp_path / "acts.stream", args, witness=tmp_path / "oracle.bin", route=route) as server:
        busy(server)
    pairs, _ = check_beside(tmp_path / "acts.stream", tmp_path / "oracle.bin")
    assert any(len({seq for seq, _, _ in run.rows}) == 2 for _, _, run in pairs), "no batch held two sequences"
    assert served_by(tmp_path / "acts.stream") <= {route, *(["callback"] if route == "retain" else [])}


def served_by(path):
    """Routes that the packets name."""
    return {part.meta["route"] for parts in Stream(path).parts.values() for part in parts}


@pytest.mark.parametrize("model", ["llama", "qwen3moe", "falcon-h1"], indirect=True)
@pytest.mark.parametrize("route", [*ROUTES, "auto"])
def test_behind_a_callback_of_the_host(model, route, tmp_path):
    """The oracle before our library looks like a host with an eval callback: both must get their values."""
    args = ["-c", "512", "-b", "64", "-ub", "16", "-np", "2"]
    with capturing(model, tmp_path / "acts.stream", args, witness=tmp_path / "oracle.bin", order="before", route=route) as server:
        busy(server)
    check_beside(tmp_path / "acts.stream", tmp_path / "oracle.bin")


@pytest.mark.parametrize("model", ["llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("route", ROUTES)
def test_context_shift(model, route, tmp_path):
    """After the shift a graph of another kind has run on the same scheduler, and positions go back."""
    args = ["-c", "256", "--context-shift", "-np", "1", "-ub", "64"]
    with capturing(model, tmp_path / "acts.stream", args, witness=tmp_path / "oracle.bin", route=route) as server:
        server.post("/completion", {**GREEDY, "prompt": LETTERS, "n_predict": 300})
        shifted = server.stderr.count("slot context shift")
        assert server.stop() == 0
    pairs, _ = check_beside(tmp_path / "acts.stream", tmp_path / "oracle.bin")
    positions = [run.rows[-1][1] for _, _, run in pairs]
    assert shifted and sum(b < a for a, b in zip(positions, positions[1:])) == shifted, "no shift is in the stream"


@pytest.mark.parametrize("args", [["-fa", "off"], ["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"], ["--no-kv-unified", "-np", "3"], ["--kv-unified", "-np", "3"]],
                         ids=" ".join)
@pytest.mark.parametrize("route", ROUTES)
def test_other_graphs(args, route, tiny_model, tmp_path):
    """Without flash attention (kq, softmax), with a quantised cache, with one stream of the cache a slot and with one for all."""
    args = [*args, *([] if "-np" in args else ["-np", "2"]), "-c", "1024", "-ub", "16"]
    model = SMOLLM2 if "-ctk" in args else tiny_model("llama")  # the heads of a tiny model are shorter than a quantised block
    with capturing(model, tmp_path / "acts.stream", args, witness=tmp_path / "oracle.bin", route=route) as server:
        busy(server)
    check_beside(tmp_path / "acts.stream", tmp_path / "oracle.bin")


def test_graph_reuse_is_tried(seen_alone, tmp_path):
    """The servers above reuse graphs; if they did not, the tests would miss the case."""
    with capturing(SMOLLM2, tmp_path / "acts.stream", ALONE_ARGS, tensors="residual") as server:
        server.post("/completion", {**GREEDY, "prompt": SHORT, "n_predict": 8})
        server.stop()
        reused = [int(line.rpartition("=")[2]) for line in server.stderr.splitlines() if "graphs reused" in line]
    assert reused and reused[-1] >= 4


# --- A second backend ---

@pytest.mark.parametrize("model, layers", [("llama", "99"), ("qwen3moe", "2")], ids=["all layers there", "some here, some there"])
@pytest.mark.parametrize("route", ROUTES)
def test_second_backend(model, layers, route, rpc_port, tiny_model, tmp_path):
    args = ["-c", "512", "-b", "64", "-ub", "16", "-np", "2", "--rpc", f"127.0.0.1:{rpc_port}", "-ngl", layers]
    with capturing(tiny_model(model), tmp_path / "acts.stream", args, witness=tmp_path / "oracle.bin", route=route) as server:
        # Every node that the oracle looks at is a question over the network: few graph runs.
        server.post("/completion", {**GREEDY, "prompt": [LETTERS, SHORT], "n_predict": 3})
        assert server.stop() == 0, server.stderr[-2000:]
    events = read_log(tmp_path / "acts.jsonl")
    assert any("RPC" in str(event.get("device", "")) + str(event.get("buffer_type", "")) for event in events), "nothing was there"
    check_beside(tmp_path / "acts.stream", tmp_path / "oracle.bin")


# --- The export ---

@pytest.mark.parametrize("model", ["qwen3moe", "falcon-h1"], indirect=True)
def test_the_export_has_the_same(model, tmp_path):
    """`stream export` gives every value and every row that is in the packets."""
    path = tmp_path / "acts.stream"
    with capturing(model, path, ["-c", "1024", "-ub", "16", "-np", "2"], codec="zstd") as server:
        busy(server)
    stored, exported = Stream(path), Stream(path, exported=True)
    assert stored.parts.keys() == exported.parts.keys()
    for name, parts in stored.parts.items():
        assert len(parts) == len(exported.parts[name]), name
        for one, other in zip(parts, exported.parts[name]):
            assert one.step == other.step and one.values.dtype == other.values.dtype and one.bytes == other.bytes, (name, one.step)
            assert (one.rows == other.rows).all(), (name, one.step)


# --- The comparison itself ---

def test_the_comparison_can_fail(seen_alone, tmp_path):
    """One wrong byte, one wrong row, one lost tensor: each must be noticed."""
    _, runs = seen_alone(SMOLLM2)
    with capturing(SMOLLM2, tmp_path / "acts.stream", ALONE_ARGS, tensors="residual") as server:
        alone(server)
    pairs = align(Stream(tmp_path / "acts.stream"), runs)
    compare(pairs)
    step, parts, run = pairs[-1]
    name = sorted(parts)[0]
    part = parts[name]
    part.values = part.values.copy()
    part.values.view("u1")[0, 5] ^= 1
    with pytest.raises(AssertionError, match="1 of .* bytes differ"):
        compare(pairs)
    part.values.view("u1")[0, 5] ^= 1
    table, part.table = part.table, [(seq, pos + 1, token) for seq, pos, token in part.table]
    with pytest.raises(AssertionError, match="rows"):
        compare(pairs)
    part.table = table
    del parts[name]
    assert any(name in str(what) for what in compare(pairs).left for name in ("l_out", "embd", "ffn_inp")), "a lost tensor is not noticed"


def test_the_oracle_is_deterministic(seen_alone, tmp_path, tiny_model):
    """Two plain servers with the oracle give the same bytes: else nothing could be compared apart."""
    model = tiny_model("gemma3")
    tokens, first = seen_alone(model)
    with witnessed(model, tmp_path / "again.bin", ALONE_ARGS) as server:
        assert alone(server) == tokens
    second = read_oracle(tmp_path / "again.bin")
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.rows == other.rows and len(one.nodes) == len(other.nodes)
        assert all(a.name == b.name and a.data == b.data for a, b in zip(one.nodes, other.nodes)), f"run {one.number}"


def test_the_oracle_agrees_with_the_graph_inputs(seen_alone):
    """Tokens, positions and outputs of llama.cpp's ubatch are those in the graph's input tensors."""
    for run in seen_alone(SMOLLM2)[1]:
        assert [token for _, _, token in run.rows] == run.inputs["inp_tokens"]
        assert [pos for _, pos, _ in run.rows] == run.inputs["inp_pos"]
        assert run.outputs == [run.rows[i] for i in run.inputs["out_ids"]]
