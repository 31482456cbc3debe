"""Hosts that do what llama-server never does: a model without layers, contexts that are freed while a sample is under way, devices without
a name, several threads, several recordings, functions by older names. Each once crashed, or was recorded wrongly.

Small hosts from tests/host, most of them of the MOCK of llama.cpp.
"""

import collections

import pytest

from test_bad_input import RECORD_ALL, build, host, is_whole, mock, run  # noqa: F401 (fixtures)

ANSWER = 3  # tokens of a round of mock_host


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]


@pytest.fixture
def linked(build, library):  # noqa: F811
    """Command and environment of a MOCK host that is linked with the library and begins and ends recordings itself."""
    llama = build("mock_llama.cpp", "-shared", "-fPIC", "-DMOCK_PLAIN", name="libllama.so")
    program = build("mock_host.cpp", "-DLINKED", library, f"-L{llama.parent}", "-lllama", name="linked_host")
    soname = program.parent / "libllama_resource_instrumentation.so.1"
    if not soname.exists():
        soname.symlink_to(library.resolve())
    return [program], {"LD_LIBRARY_PATH": f"{program.parent}:{llama.parent}", "LD_PRELOAD": None}


# --- What a host may ask llama.cpp for, and we not ----------------------------------------------------------------------------------

def test_a_model_that_is_loaded_for_its_vocabulary_only(host, run):  # noqa: F811
    outcome = run([*host, "vocabulary"])
    outcome.is_untouched().said_nothing()
    [load] = of_kind(outcome.events, "model_load")
    assert (load["outcome"], load["architecture"]) == ("vocabulary", "llama")
    assert [load[field] for field in ("n_layer", "n_embd", "n_head", "n_head_kv", "n_ctx_train")] == [None] * 5


@pytest.mark.parametrize("verb", ["freed-read", "freed-applied"])
def test_a_context_that_was_freed_in_the_middle_of_a_sample_is_not_asked(verb, mock, run):  # noqa: F811
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, verb, "plain"], **more, **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    ends = [e["generated_tokens"] for e in of_kind(outcome.events, "request_end")]
    assert ends == ([1, ANSWER] if verb == "freed-applied" else [ANSWER]), "what was applied before the end counts"


def test_a_device_without_a_name_has_none(mock, run, tmp_path):  # noqa: F811
    for macro, name in ("MOCK_NAMELESS", None), ("MOCK_PLAIN", "CPU"):
        command, more = mock(macro)
        outcome = run([*command, "plain"], log_path=tmp_path / f"{macro}.jsonl", **more, **RECORD_ALL)
        outcome.is_untouched().said_nothing()
        devices = {(e["event"], e["device"]) for e in outcome.events if e["event"] in ("compute_execution", "buffer_allocation")}
        assert devices == {("compute_execution", name), ("buffer_allocation", name)}


def test_all_sequences_restored_at_once(mock, run):  # noqa: F811
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "context", "steps=1", "restore-all", "steps=1"], **more)
    outcome.is_untouched().said_nothing()


def test_a_recording_that_begins_in_mid_batch(linked, run, tmp_path):  # noqa: F811
    command, more = linked
    log = tmp_path / "api.jsonl"
    outcome = run([*command, "context", "fill=2", f"init={log}", "fill=2", "process", "free"], log_path=None, **more)
    outcome.is_untouched()
    outcome.log_path = log
    [request] = of_kind(outcome.events, "request_end")
    assert (request["prompt_tokens"], request["generated_tokens"]) == (8 + 2, 1), "two rows were seen, behind positions 0 to 7"


def test_a_token_outside_the_vocabulary_has_no_text(host, run, tmp_path):  # noqa: F811
    stream = tmp_path / "a.stream"
    outcome = run([*host, "load", "context", "decode=2", "strange-token", "decode=2"], LLAMA_RESOURCE_LOG_TEXT="1",
                  LLAMA_RESOURCE_CAPTURE=stream)
    outcome.is_untouched()
    assert stream.stat().st_size > 0
    assert sum(e["generated_tokens"] for e in of_kind(outcome.events, "request_end")) == 5


# --- Threads ------------------------------------------------------------------------------------------------------------------------

def placements(events):
    """Names of the tensors that were placed for each step's graph."""
    placed = collections.defaultdict(list)
    for event in of_kind(events, "memory_allocation"):
        if event["step"] is not None:
            placed[event["step"]].append(event["tensor"])
    return {step: tuple(sorted(names)) for step, names in placed.items()}


def test_contexts_on_several_threads_are_kept_apart(host, run, tmp_path):  # noqa: F811
    """All contexts are alike, so every step places the tensors that some step of a host with one thread places. Freed memory is filled with
    another byte, so that whoever reads a tensor of another thread's freed graph shows it."""
    found = {}
    for threads in 1, 4:
        outcome = run([*host, "load", f"threads-decode={threads}", "free"], log_path=tmp_path / f"{threads}.jsonl", MALLOC_PERTURB_="165",
                      timeout=60, **RECORD_ALL)
        outcome.is_untouched().said_nothing()
        events = outcome.events
        assert is_whole(events)
        kinds = collections.Counter((e["kind"], e["size_bytes"]) for e in of_kind(events, "buffer_allocation"))
        found[threads] = placements(events), kinds
    (alone, kinds_alone), (together, kinds_together) = found[1], found[4]
    assert (len(alone), len(together)) == (12, 4 * 12), "the third batch of each context: the first two count as warm-ups"
    assert set(together.values()) <= set(alone.values())
    per_context = {key: n for key, n in kinds_alone.items() if key[0] in ("kv_cache", "output")}
    assert {key[0] for key in per_context} == {"kv_cache", "output"} and {key[0] for key in kinds_together} == {key[0] for key in kinds_alone}
    assert {key: n for key, n in kinds_together.items() if key[0] in ("kv_cache", "output")} == {k: 4 * n for k, n in per_context.items()}


# --- What outlives a step or a recording --------------------------------------------------------------------------------------------

def test_steps_are_written_again_behind_an_exception(mock, run):  # noqa: F811
    """The first two batches count as warm-ups, so the third is the first that is to be written - and the one that throws."""
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "context", "steps=2", "throw", "steps=40"], **more, LLAMA_RESOURCE_LOG_LEVEL="VERBOSE",
                  LLAMA_RESOURCE_LOG_RATE="200K")
    outcome.is_untouched().said_nothing()
    steps = sorted({e["step"] for e in of_kind(outcome.events, "compute_execution")})
    assert len(steps) > 1 and min(steps) > 3, f"behind the exception in step 3: {steps}"


def test_a_second_recording_counts_its_own_work(linked, run, tmp_path):  # noqa: F811
    command, more = linked
    logs = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    outcome = run([*command, "context", f"init={logs[0]}", "steps=5", "free", "steps=6", f"init={logs[1]}", "steps=7", "free"], log_path=None,
                  **more)
    outcome.is_untouched()
    for log, steps in zip(logs, (5, 7)):
        outcome.log_path = log
        events = outcome.events
        assert is_whole(events)
        [summary] = of_kind(events, "resource_session_summary")
        totals = of_kind(events, "step_summary")
        operations = sum(op["count"] for total in totals for op in total["ops"])
        assert (summary["steps"], sum(t["steps"] for t in totals), totals[-1]["step"], operations) == (steps, steps, steps, 2 * steps)
        assert summary["component_flows"] == sum(t["component_flows"] for t in totals)


def test_graphs_without_tokens_are_in_the_whole_as_in_its_parts(mock, run):  # noqa: F811
    """Such as an encoder of pictures: 50 graphs of 2 ms beside a few short steps. A share is a part over the whole."""
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "context", "steps=3", "pictures=50"], **more, **RECORD_ALL)
    outcome.is_untouched().said_nothing()
    totals = of_kind(outcome.events, "step_summary")
    whole, parts = sum(t["timed_graph_us"] for t in totals), sum(c["timed_us"] for t in totals for c in t["components"])
    assert 50 * 2_000 <= parts <= whole, (parts, whole)
    assert sum(t["steps"] for t in totals) == 3, "they are no steps"


# --- Older names --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("verbs", [["older"], ["overwrite"] * 3], ids=["by name", "by position"])
def test_prompts_by_older_names_are_requests_of_their_own(verbs, mock, run):  # noqa: F811
    """A prompt of one row, behind three rows of the same sequence: only that its position goes back shows it."""
    command, more = mock("MOCK_PLAIN")
    outcome = run([*command, "context", *verbs], **more)
    outcome.is_untouched().said_nothing()
    assert [e["generated_tokens"] for e in of_kind(outcome.events, "request_end")] == [ANSWER] * 3


# --- What is not seen is not guessed ------------------------------------------------------------------------------------------------

def buffers(events):
    return sorted((e["kind"], e["size_bytes"]) for e in of_kind(events, "buffer_allocation"))


@pytest.mark.parametrize("macro", ["MOCK_PLAIN", "MOCK_BIGGER"])
def test_a_caches_buffer_is_known_by_its_tensors_names_whatever_their_layout(macro, mock, run):  # noqa: F811
    command, more = mock(macro)
    outcome = run([*command, "plain"], **more)
    outcome.is_untouched()
    assert buffers(outcome.events) == [("kv_cache", 1000), ("output", 500)]
    [summary] = of_kind(outcome.events, "resource_session_summary")
    assert summary["total_memory_mb"] == round(1500 / 2**20, 3)


def test_memory_that_ggml_allocates_unseen_is_missed_aloud(mock, run):  # noqa: F811
    command, more = mock("MOCK_BOUND")
    outcome = run([*command, "plain"], **more)
    outcome.is_untouched().said_once("warning: memory degraded", "-Bsymbolic", "not recorded: compute buffers")
    assert buffers(outcome.events) == [("kv_cache", 1000), ("output", 500)]
    [summary] = of_kind(outcome.events, "resource_session_summary")
    assert summary["total_memory_mb"] is None, "a sum without them would be too small"
