"""`llama-resource doctor --tensors` on the real server: what it promises is what a capture with the same selection holds, and it leaves
nothing behind. The number of blocks and experts is the model's own, from its file.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from gguf import GGUFReader

import make_tiny
from capture import PROGRAM, Stream, capturing
from server import LIBRARY, LLAMA_SERVER

PROMPT = "There was a house by the water, and the people in it were not there. "
MODELS = ["llama", "gemma3", "qwen3moe", "deepseek2", "gpt-oss", "mamba", "rwkv7", "falcon-h1", "qwen35"]


def doctor(model, selection, *further, cwd=None, **env):
    """(exit status, list, or what was said on stderr)."""
    command = [str(PROGRAM), "doctor", "--json", "--tensors", selection, str(LLAMA_SERVER), str(model), *further]
    environment = {**os.environ, "LLAMA_RESOURCE_LIBRARY": str(LIBRARY), "OMP_WAIT_POLICY": "passive", **env}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=cwd)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def numbers(model):
    """{key without architecture: value} of the model's metadata."""
    fields = GGUFReader(model).fields
    architecture = fields["general.architecture"].contents()
    return {key.removeprefix(architecture + "."): field.contents() for key, field in fields.items() if key.startswith(architecture)}


def running(model):
    """Processes whose command line names the model."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(model).encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("name", sorted(make_tiny.MODELS))
def test_residual_is_one_tensor_a_block(tiny_model, name):
    model = tiny_model(name)
    status, listing = doctor(model, "residual")
    assert status == 0, listing
    layers = sorted(node["layer"] for node in listing["nodes"])
    assert layers == list(range(numbers(model)["block_count"])), layers
    assert listing["n_layer"] == len(layers) and listing["unmatched_terms"] == []
    width = numbers(model)["embedding_length"]
    assert {(node["ne"][0], node["dtype"], node["bytes_per_token"]) for node in listing["nodes"]} == {(width, "f32", 4 * width)}


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "deepseek2", "granitehybrid"])
def test_routing_names_the_experts(tiny_model, name):
    model = tiny_model(name)
    about = numbers(model)
    status, listing = doctor(model, "routing")
    assert status == 0, listing
    by_base = {}
    for node in listing["nodes"]:
        by_base.setdefault(node["name"].rsplit("-", 1)[0], []).append(node)
    dense = about.get("leading_dense_block_count", 0)
    for base, width, dtype in [("ffn_moe_logits", about["expert_count"], "f32"), ("ffn_moe_topk", about["expert_used_count"], "i32")]:
        assert sorted(node["layer"] for node in by_base[base]) == list(range(dense, about["block_count"])), base
        assert {(node["ne"][0], node["dtype"]) for node in by_base[base]} == {(width, dtype)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("selection", ["FULL_TENSOR", "ATTENTION_ONLY,MLP_ONLY@last", "SAMPLED_SLICES@0,logits,auto"])
def test_the_list_is_what_a_capture_holds(tiny_model, tmp_path, name, selection):
    model = tiny_model(name)
    status, listing = doctor(model, selection, TMPDIR=str(tmp_path))
    assert status == (0 if listing["nodes"] else 2), listing
    promised = {node["store"]: node for node in listing["nodes"] if node["route"] != "refused"}
    assert len(promised) == sum(node["route"] != "refused" for node in listing["nodes"]), "store names are not unique"
    path = tmp_path / "a.stream"
    with capturing(model, path, tensors=selection, route="auto", args=["-c", "512", "-np", "1"]) as server:
        server.post("/completion", {"prompt": PROMPT, "n_predict": 4, "ignore_eos": True})
        server.stop()
    stream = Stream(path)
    # What holds no value in a graph, as a state that nobody asks for, is no packet.
    empty = {store for store, node in promised.items() if 0 in node["ne"]}
    # Where the length of a row changes from graph to graph, elements are sampled by length, in packets of their own.
    found = {re.sub(r"@\d+$", "", store) for store in stream.parts}
    assert set(promised) - empty == found - empty
    for store, parts in stream.parts.items():
        node = promised.get(store)
        if node is None or node["rows"] == "other":
            continue
        for part in parts:
            if not part.table and 2 in node["ne"][1:]:
                continue  # a state of two rows looks like the two tokens of the warm-up; the capture has seen other graphs
            assert part.table, f"{store}, step {part.step}: rows of no token"
            assert part.values.nbytes == node["bytes_per_token"] * len(part.table), f"{store}, step {part.step}"


def test_nothing_is_left_behind_and_nothing_captured(tiny_model, tmp_path):
    model = tiny_model("llama")
    status, listing = doctor(model, "l_out,l_uot,-@0", "--", "-c", "64", cwd=tmp_path, TMPDIR=str(tmp_path),
                             LLAMA_RESOURCE_CAPTURE=str(tmp_path / "never.stream"))
    assert status == 0 and listing["unmatched_terms"] == ["l_uot"], listing
    assert [node["layer"] for node in listing["nodes"]] == list(range(1, make_tiny.LAYERS))
    assert list(tmp_path.iterdir()) == []
    assert running(model) == []


def test_a_selection_of_nothing_and_a_broken_model_have_their_own_status(tiny_model, tmp_path):
    status, listing = doctor(tiny_model("llama"), "routing")
    assert (status, listing["nodes"], listing["unmatched_terms"]) == (2, [], ["routing"])
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    status, said = doctor(broken, "residual", TMPDIR=str(tmp_path))
    assert status == 1 and "before a graph with tokens ran" in said and "|" in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
