"""Levels and budget: what each level writes, how fast its log grows under load, and that its totals stay exact."""

import json
import threading
import time
from collections import defaultdict

import pytest

import make_tiny
from server import SMOLLM2, read_log
from truth import EXACT, LETTERS, metric, of_kind, start

RATES = {"MINIMAL": 10_000, "DETAILED": 50_000, "VERBOSE": 200_000}
SECONDS = 20
MODEL, LAYERS = "llama", make_tiny.LAYERS
STEP_EVENTS = ("compute_execution", "component_handoff", "mlp_operation", "layer_begin", "layer_end", "component_begin", "component_end",
               "thread_imbalance")


class Load:
    """A server that is never idle for a while: two clients, prompts and generation, some hundred steps a second."""

    def __init__(self, model, level, log_path):
        self.level, self.log_path = level, log_path
        self.server = start(model, ["-np", "2", "--metrics", "--kv-unified", "-c", "2048"], level=level, log_path=log_path)

    def run(self):
        with self.server as server:
            time.sleep(0.5)  # until the writer has written what the start left: the burst
            self.before = self.log_path.stat().st_size
            began = time.monotonic()
            clients = [threading.Thread(target=self.client, args=(i, began)) for i in range(2)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            time.sleep(0.3)
            self.seconds = time.monotonic() - began
            self.after = self.log_path.stat().st_size
            self.decodes = metric(server, "n_decode_total")
            self.exit_code = server.stop()
        self.events = read_log(self.log_path)

    def client(self, number, began):
        turn = 0
        while time.monotonic() - began < SECONDS:
            turn += 1
            self.server.post("/completion", {"prompt": f"{number} {turn} " + LETTERS, "n_predict": 400, "cache_prompt": turn % 2 == 0,
                                             "ignore_eos": True})


@pytest.fixture(scope="module")
def loads(tmp_path_factory, tiny_model):
    """One run a level, one after the other would take a minute: they share the machine."""
    directory = tmp_path_factory.mktemp("levels")
    loads = {level: Load(tiny_model(MODEL), level, directory / f"{level}.jsonl") for level in RATES}
    for load in loads.values():  # the process belongs to the thread that starts it, see Server
        load.thread = threading.Thread(target=load.run)
        load.thread.start()
    for load in loads.values():
        load.thread.join()
        assert load.exit_code == 0
    return loads


@pytest.fixture(scope="module")
def idle_steps(tmp_path_factory, tiny_model):
    """Steps of a server that only starts: its try of the cache and its warm-up."""
    log = tmp_path_factory.mktemp("idle") / "log.jsonl"
    with start(tiny_model(MODEL), ["-np", "2", "--kv-unified"], level="MINIMAL", log_path=log) as server:
        assert server.stop() == 0
    return sum(summary["steps"] for summary in of_kind(read_log(log), "step_summary"))


def sizes_of_steps(load):
    """Bytes of the largest written prompt step and decode step."""
    lines, prefill = defaultdict(int), {}
    for line in load.log_path.read_text().splitlines():
        event = json.loads(line)
        if event["event"] in STEP_EVENTS or event.get("cache_operation") == "update" or event.get("usage") == "compute":
            lines[event.get("step")] += len(line) + 1
            if event.get("tensor") == "Kcur-0" and event["event"] == "compute_execution" and event["operation"] == "mul_mat":
                prefill[event["step"]] = (event["output_shape"] + [1])[1] > 2  # rows: two slots decode two tokens
    return [max((size for step, size in lines.items() if prefill[step] is phase), default=0) for phase in (True, False)]


@pytest.mark.parametrize("level", RATES)
def test_the_log_stays_within_its_budget(loads, level):
    load = loads[level]
    grown, debts = load.after - load.before, sizes_of_steps(load)
    share = grown / load.seconds / RATES[level]
    print(f"{level}: {grown / load.seconds / 1e3:.1f} KB/s in {load.seconds:.1f} s, {share:.2f} of the rate; at the start {load.before / 1e3:.0f} KB; "
          f"largest steps {debts}")
    # What was written up to the load is the burst: the weights, the caches, and the warm-up's step, each once. Within the load
    # each phase may have one step written that is not paid for yet.
    assert grown <= 1.1 * RATES[level] * load.seconds + sum(debts)
    assert all(debts), "no step of a phase was written event by event"
    # And the budget is used.
    assert share >= 0.3


@pytest.mark.parametrize("level", RATES)
def test_totals_are_exact_at_every_level(loads, idle_steps, level):
    load = loads[level]
    summaries = of_kind(load.events, "step_summary")
    steps = sum(summary["steps"] for summary in summaries)
    # Every prompt here fits a ubatch, so a decode call of the server is a step.
    assert steps == load.decodes + idle_steps
    assert steps == sum(summary["prefill"]["steps"] + summary["decode"]["steps"] for summary in summaries)
    assert steps == sum(summary["graphs_built"] + summary["graphs_reused"] for summary in summaries)
    assert steps == of_kind(load.events, "resource_session_summary")[0]["steps"]
    matrices = 7 * LAYERS + 1
    multiplications = sum(op["count"] for summary in summaries for op in summary["ops"] if op["name"] == "mul_mat")
    assert multiplications == matrices * steps
    sampled = sum(summary["sampled_steps"] for summary in summaries)
    assert 2 <= sampled < steps, "every step was written: the budget was not tried"


def test_each_level_writes_its_own_events(loads):
    kinds = {level: {event["event"] for event in load.events} for level, load in loads.items()}
    common = {"resource_session_start", "resource_session_summary", "resource_session_end", "model_load", "buffer_allocation", "buffer_free",
              "request_start", "request_end", "step_summary", "host_sample", "compute_execution", "kv_cache_usage", "events_dropped"}
    detailed = {"layer_begin", "layer_end", "component_begin", "component_end", "batch", "component_handoff", "mlp_operation",
                "kv_cache_operation", "memory_allocation"}  # MINIMAL tells allocations over 1 MiB only: this model has none
    verbose = {"request_token", "thread_imbalance"}
    assert common <= kinds["MINIMAL"] and not kinds["MINIMAL"] & (detailed | verbose)
    assert common | detailed <= kinds["DETAILED"] and not kinds["DETAILED"] & verbose
    assert common | detailed | verbose <= kinds["VERBOSE"]
    operations = {level: {event["operation"] for event in of_kind(load.events, "compute_execution")} for level, load in loads.items()}
    assert operations["MINIMAL"] == {"mul_mat"}
    assert {"mul_mat", "rms_norm", "swiglu", "flash_attn_ext"} <= operations["DETAILED"]
    assert operations["DETAILED"] < operations["VERBOSE"] and {"add", "set_rows", "get_rows"} <= operations["VERBOSE"]


def test_what_is_left_out_is_counted(loads):
    """Operations of steps that were not written appear in events_dropped, number for number."""
    for level, load in loads.items():
        written = len(of_kind(load.events, "compute_execution"))
        dropped = sum(event["count"] for event in of_kind(load.events, "events_dropped") if event["kind"] == "step_events")
        summaries = of_kind(load.events, "step_summary")
        steps = sum(summary["steps"] for summary in summaries)
        sampled = sum(summary["sampled_steps"] for summary in summaries)
        assert {event["reason"] for event in of_kind(load.events, "events_dropped")} == {"rate_limit", "warm_up"}, level
        assert dropped == pytest.approx(written / sampled * (steps - sampled), rel=0.02), level
        tokens = sum(end["generated_tokens"] for end in of_kind(load.events, "request_end"))
        if level == "VERBOSE":
            lost = sum(event["count"] for event in of_kind(load.events, "events_dropped") if event["kind"] == "request_token")
            assert len(of_kind(load.events, "request_token")) + lost == tokens


@pytest.mark.parametrize("rate", ["5K", "10M"])
def test_the_rate_can_be_chosen(tmp_path, rate):
    with start(SMOLLM2, ["-np", "1"], env={"LLAMA_RESOURCE_LOG_RATE": rate}, level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        for _ in range(3):
            server.post("/completion", {"prompt": LETTERS, "n_predict": 40, "ignore_eos": True})
        assert server.stop() == 0
    sampled = sum(summary["sampled_steps"] for summary in of_kind(read_log(tmp_path / "log.jsonl"), "step_summary"))
    assert sampled <= 4 if rate == "5K" else sampled >= 6, sampled


def test_without_a_limit_every_step_is_written(tmp_path, idle_steps):
    """But those before the server served."""
    with start(SMOLLM2, ["-np", "1"], env=EXACT, level="MINIMAL", log_path=tmp_path / "log.jsonl") as server:
        server.post("/completion", {"prompt": LETTERS, "n_predict": 10, "ignore_eos": True})
        assert server.stop() == 0
    events = read_log(tmp_path / "log.jsonl")
    summaries = of_kind(events, "step_summary")
    assert sum(summary["sampled_steps"] for summary in summaries) == sum(summary["steps"] for summary in summaries) - idle_steps == 10
