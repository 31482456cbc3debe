"""`export perfetto` on a real run: the trace, read with Perfetto's own schema, holds what the log holds."""

import subprocess
import threading
from collections import Counter, defaultdict

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from server import LIBRARY, SMOLLM2, read_log
from truth import of_kind, start

PROGRAM = LIBRARY.parent / "llama-resource"
DEPTH = ["step", "layer", "component", "operation"]
BYTES_A_SLICE = 30


class Slice:
    def __init__(self, track, start, name, category, event):
        self.track, self.start, self.name, self.category = track, start, name, category
        self.end, self.around, self.event = None, None, event


class Trace:
    """A trace as a reader must take it: times by difference, names by number, slices within slices."""

    def __init__(self, data):
        self.size = len(data)
        trace = pb.Trace()
        trace.ParseFromString(data)
        self.tracks, self.slices, self.instants, self.counters = {}, [], [], defaultdict(list)
        at, default, names, categories, notes, events = {}, {}, {}, {}, {}, []
        for packet in trace.packet:
            sequence = packet.trusted_packet_sequence_id
            if packet.HasField("clock_snapshot"):
                assert packet.sequence_flags == 3, "the first packet of a sequence begins its state"
                assert packet.trace_packet_defaults.timestamp_clock_id == 64
                default[sequence] = packet.trace_packet_defaults.track_event_defaults.track_uuid
                at[sequence] = packet.timestamp
            elif packet.HasField("timestamp_clock_id"):
                assert packet.timestamp_clock_id == pb.BUILTIN_CLOCK_MONOTONIC and packet.timestamp < at[sequence]
            else:
                at[sequence] += packet.timestamp
            t = packet.timestamp if packet.HasField("timestamp_clock_id") else at[sequence]
            interned = packet.interned_data
            for known, fresh in ((names, interned.event_names), (categories, interned.event_categories),
                                 (notes, interned.debug_annotation_names)):
                for item in fresh:
                    assert known.setdefault((sequence, item.iid), item.name) == item.name
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("track_event"):
                event = packet.track_event
                track = event.track_uuid or default[sequence]
                assert track in self.tracks, "a track is described before its first event"
                name = event.name or names.get((sequence, event.name_iid))
                category = (*event.categories, *(categories[sequence, iid] for iid in event.category_iids), None)[0]
                said = event.debug_annotations
                values = {notes[sequence, n.name_iid]: getattr(n, n.WhichOneof("value")) for n in said}
                events.append((t, track, name, category, event, values))
        events.sort(key=lambda event: event[0])  # stable, as Perfetto's is
        open_slices = defaultdict(list)
        for t, track, name, category, event, values in events:
            stack = open_slices[track]
            if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
                new = Slice(track, t, name, category, event)
                new.values, new.around = values, stack[-1] if stack else None
                stack.append(new)
                self.slices.append(new)
            elif event.type == pb.TrackEvent.TYPE_SLICE_END:
                assert stack, "an end without a beginning"
                stack.pop().end = t
            elif event.type == pb.TrackEvent.TYPE_INSTANT:
                self.instants.append((t, track, name, category))
            else:
                self.counters[track].append((t, event.counter_value or event.double_counter_value))
        assert not any(open_slices.values()), "a beginning without an end"

    def of(self, category):
        return [s for s in self.slices if s.category == category]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A VERBOSE log of two slots, one request alone, then two at a time, and its trace; not all steps are sampled."""
    folder = tmp_path_factory.mktemp("perfetto")
    log, out = folder / "log.jsonl", folder / "log.pftrace"
    rate = {"LLAMA_RESOURCE_LOG_RATE": "2M"}
    with start(SMOLLM2, ["-np", "2", "--kv-unified"], env=rate, level="VERBOSE", log_path=log) as server:
        def ask(text):
            server.post("/completion", {"prompt": text, "n_predict": 24, "ignore_eos": True})

        ask("The first of all")
        texts = "Once upon a time", "When the rain had stopped they went"
        clients = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert server.stop() == 0
    told = export(log, out)
    return read_log(log), Trace(out.read_bytes()), told, log


def export(log, out):
    """What the program tells while it writes `out`."""
    command = [PROGRAM, "export", "perfetto", log, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_slices_are_the_events_of_the_log(recorded):
    events, trace, told, _ = recorded
    lines = Counter(event["event"] for event in events)
    found = Counter(s.category for s in trace.slices) + Counter(category for *_, category in trace.instants)
    assert found["operation"] == lines["compute_execution"] > 0
    assert found["layer"] == lines["layer_begin"] == lines["layer_end"] > 0
    assert found["component"] == lines["component_begin"] == lines["component_end"] > 0
    assert found["request"] == lines["request_end"] == found["prefill"] == found["decode"] == 3
    assert found["token"] == lines["request_token"] == 72
    assert found["model_load"] == lines["model_load"]
    assert found["step"] == len({e["step"] for e in of_kind(events, "compute_execution")}) > 1
    executions = of_kind(events, "compute_execution")
    assert Counter(s.name for s in trace.of("operation")) == Counter(e["operation"] for e in executions)
    assert f"{found['step']} sampled steps" in told


def test_what_is_in_a_step_lies_in_it(recorded):
    _, trace, *_ = recorded
    for s in trace.slices:
        assert s.start <= s.end
        if s.around:
            assert s.around.start <= s.start and s.end <= s.around.end
        if s.category in DEPTH[1:]:
            assert DEPTH.index(s.around.category) < DEPTH.index(s.category)
        elif s.category in ("wait", "prefill", "decode"):
            assert s.around.category == "request"
        else:
            assert s.around is None
    assert {trace.tracks[s.track].thread.thread_name for s in trace.of("step")} == {"compute 0"}
    assert {trace.tracks[s.track].name for s in trace.of("request")} == {"slot 0", "slot 1"}
    process = [t for t in trace.tracks.values() if t.process.process_name]
    assert len(process) == 1 and process[0].process.process_name.startswith("llama-server Smollm2 135M")


def test_times_are_those_of_the_log(recorded):
    events, trace, *_ = recorded
    executions = of_kind(events, "compute_execution")
    timed = Counter((e["t_ns"], e["t_ns"] + round(e["duration_us"] * 1000)) for e in executions)
    assert Counter((s.start, s.end) for s in trace.of("operation")) == timed
    for kind in ("layer", "component"):
        assert Counter(s.start for s in trace.of(kind)) == Counter(e["t_ns"] for e in of_kind(events, f"{kind}_begin"))
        assert Counter(s.end for s in trace.of(kind)) == Counter(e["t_ns"] for e in of_kind(events, f"{kind}_end"))
    starts = {e["request_id"]: e["t_ns"] for e in of_kind(events, "request_start")}
    slices = {s.name: s for s in trace.of("request")}
    for e in of_kind(events, "request_end"):
        s = slices[f"request {e['request_id']}"]
        assert (s.start, s.end) == (starts[e["request_id"]], e["t_ns"])
        assert {k: s.values[k] for k in ("prompt_tokens", "generated_tokens", "outcome")} == {
            "prompt_tokens": e["prompt_tokens"], "generated_tokens": 24, "outcome": e["outcome"]}
        prefill, decode = ([p for p in trace.of(kind) if p.around is s][0] for kind in ("prefill", "decode"))
        assert prefill.end == decode.start and decode.end == s.end
        assert abs(prefill.start - s.start - e["wait_ms"] * 1e6) <= 1
        assert abs(prefill.end - s.start - e["ttft_ms"] * 1e6) <= 1


def test_steps_that_were_not_sampled_are_shown_and_counted(recorded):
    events, trace, *_ = recorded
    steps = sum(e["steps"] for e in of_kind(events, "step_summary"))
    gaps = trace.of("not_sampled")
    assert all(g.name == f"not sampled ({g.values['steps']} step{'' if g.values['steps'] == 1 else 's'})" for g in gaps)
    shown = sum(g.values["steps"] for g in gaps) + len(trace.of("step"))
    # On a starved machine a written step may outlast the last interval, which then has no time left for what it counts.
    assert 0.95 * steps <= shown <= steps


def test_steps_and_the_requests_that_they_served_belong_together(recorded):
    _, trace, *_ = recorded
    requests = {s.event.correlation_id: s for s in trace.of("request")}
    flows = {tuple(s.event.flow_ids): s.around for s in trace.of("prefill")}
    assert len(requests) == 3 and flows == {(number,): s for number, s in requests.items()}
    together = 0
    for s in trace.of("step"):
        for number in s.event.flow_ids:
            assert requests[number].start <= s.start < requests[number].end
        together += bool(s.event.correlation_id)
        assert list(s.event.flow_ids) == [s.event.correlation_id] or not s.event.correlation_id
    assert together, "the first request is alone"


def test_counters_hold_what_was_measured(recorded):
    events, trace, *_ = recorded
    named = {trace.tracks[uuid].name: values for uuid, values in trace.counters.items()}
    weights = max(e["size_bytes"] for e in of_kind(events, "buffer_allocation") if e["kind"] == "weights")
    memory = [values for name, values in named.items() if name.startswith("weights ")]
    assert max(value for values in memory for _, value in values) == weights
    assert all(values[-1][1] == 0 for values in memory)
    cells = [(e["t_ns"], e["used_cells"]) for e in of_kind(events, "kv_cache_usage")]
    used = [values for name, values in named.items() if name.startswith("used, context")]
    assert sorted(value for values in used for value in values) == sorted(cells)
    rss = [(e["t_ns"], e["rss_bytes"]) for e in of_kind(events, "host_sample")]
    assert named["resident memory"] == rss


def test_a_slice_takes_few_bytes(recorded):
    _, trace, *_ = recorded
    each = trace.size / len(trace.slices)
    print(f"{trace.size} bytes, {len(trace.slices)} slices: {each:.1f} bytes a slice")
    assert each <= BYTES_A_SLICE


def test_damage_and_the_unknown_are_skipped_and_told(recorded, tmp_path):
    *_, log = recorded
    whole = log.read_bytes().splitlines(keepends=True)
    damaged, out = tmp_path / "damaged.jsonl", tmp_path / "out.pftrace"
    strange = b'{"event":"tea","t_ns":1}\n' + b"\xff{\n"
    damaged.write_bytes(b"".join(whole[:50]) + strange + b"".join(whole[50:-400])[:-20])
    told = export(damaged, out)
    assert "`tea`" in told and "line 52:" in told and "cut off" in told
    assert Trace(out.read_bytes()).slices
    damaged.write_bytes(b"")
    told = export(damaged, out)
    assert "holds no event" in told and not Trace(out.read_bytes()).slices
