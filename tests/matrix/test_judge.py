"""The matrix itself: each fact is told from its lack, and an entry fails when it is worse, better or otherwise than expected."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import expected  # noqa: E402 (needs the path above)
import facts  # noqa: E402
import foretold  # noqa: E402
import page  # noqa: E402
import run  # noqa: E402
from entries import ENTRIES  # noqa: E402

TOLD = {"prompt_tokens": 5, "cached_tokens": 2, "generated_tokens": 3}


def host(tmp_path, events=(), requests=(TOLD,), said="", rows=None):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    made = SimpleNamespace(logs=lambda: [tmp_path / "log.jsonl"], streams=lambda: [], ours=lambda: [], requests=list(requests), said=said,
                           whole={"requests": list(requests)}, death=None)
    if rows is not None:
        made.rows = rows
    return made


def request(number, **other):
    end = {"event": "request_end", "request_id": number, **TOLD, **other}
    return [{"event": "request_start", "request_id": number}, end]


@pytest.mark.parametrize("events, state, words", [
    (request(1), "yes", ""),
    ([], "no", "no request_end"),
    (request(1, generated_tokens=2), "partly", "generated_tokens: found [2], expected [3]"),
    (request(1) + request(2), "partly", "request_end events: found 2, expected 1"),
])
def test_requests(tmp_path, events, state, words):
    made, fact = host(tmp_path, events), facts.Fact()
    facts.check_requests(fact, facts.Log(made), made)
    assert fact.state == state and words in "; ".join(fact.reasons)


def buffer(kind, mib, event="buffer_allocation"):
    return {"event": event, "kind": kind, "size_bytes": int(mib * 2**20)}


@pytest.mark.parametrize("kv_mib, freed, state, words", [
    (11.25, 3, "yes", ""),
    (0, 2, "partly", "kv_cache: 0.000 MiB"),
    (11.25, 2, "partly", "3 buffers allocated, 2 freed"),
])
def test_memory(tmp_path, kv_mib, freed, state, words):
    buffers = [buffer("weights", 92.1), buffer("compute", 1)] + ([buffer("kv_cache", kv_mib)] if kv_mib else [])
    said = "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\nllama_kv_cache:  CPU KV buffer size =    11.25 MiB\n"
    made, fact = host(tmp_path, buffers + [buffer("other", 1, "buffer_free")] * freed, said=said), facts.Fact()
    facts.check_memory(fact, facts.Log(made), made)
    assert fact.state == state and words in "; ".join(fact.reasons)


def test_shares_above_one_are_seen(tmp_path):
    part = {"name": "mul_mat", "count": 1, "timed_us": 30.0, "flops": 1, "layer_id": 0}
    step = {"event": "step_summary", "steps": 1, "timed_steps": 1, "timed_graph_us": 10.0, "ops": [part], "components": [part], "layers": [part]}
    made, fact = host(tmp_path, [step]), facts.Fact()
    facts.check_times(fact, facts.Log(made))
    assert fact.state == "partly" and "ops took 30 us of graphs of 10 us" in fact.reasons


LABELS = [(0, 2, 11), (0, 3, 12), (0, 4, 13), (0, 5, 14), (0, 6, 15)]


@pytest.mark.parametrize("rows, state, words", [
    ({"l_out-0": LABELS, "l_out-29": LABELS[2:], "result_output": LABELS[2:]}, "yes", ""),
    ({}, "no", "there are no rows"),
    ({"l_out-0": LABELS, "l_out-29": [None] * 3}, "partly", "no row has a sequence: l_out-29"),
    ({"l_out-0": LABELS, "l_out-29": [(0, -1, 13), *LABELS[3:]]}, "partly", "not every row has a position: l_out-29"),
    ({"l_out-0": LABELS, "l_out-29": [(0, 9, 9)]}, "partly", "l_out-29 has rows that are not in l_out-0"),
    ({"l_out-0": LABELS[::-1]}, "partly", "positions of request 1"),
])
def test_labels(tmp_path, rows, state, words):
    fact = facts.Fact()
    facts.check_labels(fact, host(tmp_path, rows=rows))
    assert fact.state == state and words in "; ".join(fact.reasons)


def test_an_empty_capture_and_a_silent_one_are_no_capture(tmp_path):
    made, fact = host(tmp_path), facts.Fact()
    facts.check_capture(fact, facts.Log(made), made)
    assert fact.state == "no"
    lost = {name: facts.Fact() for name in ("exit", "capture")}
    lost["capture"].nothing("nothing was captured")
    told = facts.Fact()
    facts.check_told(told, lost, facts.Log(host(tmp_path, [{"event": "batch"}])), made)
    assert told.reasons == ["not a word of what is missing of: capture"]


def found(**states):
    """Facts of an entry, each with the reason that is given for it."""
    made = {"exit": facts.Fact()}
    for name, reason in states.items():
        made[name] = facts.Fact()
        if reason:
            made[name].that(False, reason)
    return made


@pytest.mark.parametrize("reason, table, words", [
    ("", {}, None),
    ("two merge", {}, "requests: partly, expected yes: two merge"),
    ("two merge", {("host", "requests"): ("partly", "merge", "known")}, None),
    ("", {("host", "requests"): ("partly", "merge", "known")}, "mended? take its line out"),
    ("three are lost", {("host", "requests"): ("partly", "merge", "known")}, "not for the reason `merge`"),
    ("", {("host", "KV"): ("partly", "x", "known")}, "facts that were not looked at: ['KV']"),
])
def test_judge(monkeypatch, reason, table, words):
    monkeypatch.setattr(run, "EXPECTED", table)
    wrong, whys = run.judge(SimpleNamespace(name="host"), found(requests=reason))
    assert (not wrong) if words is None else words in wrong[0]
    assert whys == ({"requests": "known"} if reason and words is None else {})


def test_doctor_is_held_to_every_line(tmp_path, monkeypatch):
    said = {"predictions": {key: {"value": "yes", "reason": "seen"} for key in foretold.KEYS}}
    monkeypatch.setattr(foretold, "doctor", lambda: (0, "usable", said))
    lines = found(**{fact: None for fact in set(foretold.KEYS.values()) - {"layout"}})
    log = facts.Log(host(tmp_path, [{"event": "step_summary", "steps": 1}]))
    fact = facts.Fact()
    foretold.compare(fact, lines, log, {})
    assert fact.state == "yes" and fact.held == 2 + len(foretold.KEYS)
    lines["memory"].that(False, "no buffers")
    said["predictions"]["requests"]["value"] = "no"
    fact = facts.Fact()
    foretold.compare(fact, lines, log, {})
    assert len(fact.reasons) == 2 and "requests: no (seen), but it is there" in fact.reasons[0] and "memory: yes" in fact.reasons[1]


def test_no_cell_of_the_page_is_unexplained(tmp_path):
    without = {fact: "it has none" for fact in page.COLUMNS if fact not in ("output", "requests")}
    entry = SimpleNamespace(name="host", version="1", date="2026", loads="so", without=without)
    made = found(output="", requests="two merge")
    page.write(tmp_path / "page.md", [(entry, made, {"requests": "known"}, None), (entry, None, {}, "no Node.js")], "pinned")
    text = (tmp_path / "page.md").read_text()
    assert "| yes | partly [^1] |" in text and "Known." in text and "No Node.js." in text and "It has none." in text
    with pytest.raises(KeyError):
        page.write(tmp_path / "page.md", [(entry, made, {}, None)], "pinned")


def test_the_table_speaks_of_entries_that_are_there():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert {name for name, _ in expected.EXPECTED} <= set(names)
    assert all(state in ("no", "partly") and words and why for state, words, why in expected.EXPECTED.values())
