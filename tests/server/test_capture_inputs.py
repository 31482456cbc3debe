"""Whose rows they are where the host says less: inputs of the graph without names, batches without positions, graphs without tokens."""

import re
import subprocess

import pytest

from capture import LLAMA_SOURCE, Stream, account, build, capture_env, capturing, check_account, compare, align, read_oracle, total
from server import LIBRARY, LLAMA_SERVER, read_log
from test_capture_truth import busy, check_left

ARGS = ["-c", "1024", "-b", "64", "-ub", "16", "-np", "2"]


def nameless():
    return build("nameless.c", "-shared", "-fPIC")


# Every way of telling positions: turned, partly turned, none at all (recurrent), four of them (M-RoPE); several kinds of hybrids.
@pytest.mark.parametrize("model", ["llama", "gptneox", "gemma3", "deepseek2", "mamba", "qwen35", "lfm2"])
def test_inputs_are_found_by_what_the_graph_does_with_them(model, tiny_model, tmp_path):
    """Builds b4980 to b7347 do not name the tokens, b7836 to b10434 neither positions nor the rows with an output."""
    path, witness = tmp_path / "acts.stream", tmp_path / "oracle.bin"
    with capturing(tiny_model(model), path, ARGS, witness=witness, route="callback", shims=[nameless()]) as server:
        busy(server)
    stream, runs = Stream(path), read_oracle(witness)
    assert all(run.inputs == {"inp_tokens": None, "inp_pos": None, "out_ids": None} for run in runs), "the inputs have names"
    pairs = align(stream, runs)
    result = compare(pairs)
    check_left(result, path, [run for run in runs if run.rows is not None][: -len(pairs)])
    unlabelled = {name for name in result.without_rows if re.match(r"l_out-|result_|embd", name)}
    assert not unlabelled, unlabelled
    outputs = [part.table for part in stream.parts["result_output"]]
    assert outputs[-len(pairs):] == [run.outputs for _, _, run in pairs if run.outputs], "rows of the logits"


def test_graphs_without_tokens_end_with_a_reason(tmp_path):
    """A program of ggml alone: its graphs run, and nothing is captured. That has a reason, said once."""
    libraries = LLAMA_SERVER.parent
    program = build("names.c", f"-L{libraries}", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{libraries}")
    stream, log = tmp_path / "acts.stream", tmp_path / "log.jsonl"
    env = {"LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_PATH": str(log), **capture_env(stream, route="auto")}
    ran = subprocess.run([program], env=env, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran
    said = [line for line in ran.stderr.splitlines() if "none of the 3 graphs" in line]
    assert len(said) == 1 and "activations" in said[0], ran.stderr
    states = [e for e in read_log(log) if e["event"] == "instrumentation_state" and e["component"] == "capture"]
    assert [s["state"] for s in states] == ["unavailable"], states
    said, clean = account(stream)
    assert clean and total(check_account(said), "seen") == (0, 0)


@pytest.mark.parametrize("model", ["mamba", "llama"])
def test_positions_that_nobody_gives_come_from_the_cache(model, tiny_model, tmp_path):
    """`llama_batch_get_one` leaves positions to llama.cpp, and a recurrent model's graph has none: they go on where the sequence ends."""
    libraries = LLAMA_SERVER.parent
    program = build("host.c", f"-L{libraries}", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{libraries}", "-pthread")
    path = tmp_path / "acts.stream"
    env = {"LD_PRELOAD": str(LIBRARY), "LLAMA_RESOURCE_LOG_PATH": str(tmp_path / "log.jsonl"), **capture_env(path, tensors="residual", route="auto")}
    ran = subprocess.run([program, tiny_model(model), "load", "context", "decode=5", "decode=3", "free"], env=env, capture_output=True, text=True,
                         timeout=30)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran
    rows = [(seq, pos) for part in Stream(path).parts["l_out-0"] for seq, pos, _ in part.table]
    assert rows == [(0, pos) for n in (5, 3) for pos in range(3 + n - 1)], rows
