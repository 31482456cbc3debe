"""What a preloaded run must show, one function a fact, each against what the host itself says or what follows from it."""
import json
import re
import subprocess
import sys
from collections import defaultdict

from host import HERE, PROGRAM

sys.path.insert(0, str(HERE.parent / "stream"))
import reader  # noqa: E402 (needs the path above)

N_LAYER, N_PARAMS, ARCHITECTURE = 30, 134_515_008, "llama"  # of SmolLM2-135M, from the file
COMPONENTS = {"attention", "mlp", "norm", "residual", "kv_cache", "embedding", "output"}
KEY_BYTES = 3 * 64 * 2  # of a token in a layer: heads of keys, their length, f16
FACTS = ["output", "exit", "session", "model", "requests", "memory", "KV", "tensors", "operation times", "capture", "labels", "told"]
# Which parts of the library, by their names in instrumentation_state, may be the reason why a fact is missing. `hooks` may be of all.
PARTS = {
    "model": {"requests"}, "requests": {"requests"}, "memory": {"memory", "layout"}, "KV": {"requests", "kv"}, "tensors": {"layout"},
    "operation times": {"op_times", "layout"}, "capture": {"capture", "layout"}, "labels": {"capture", "layout"},
}


class Fact:
    """`yes` if all held, `no` if nothing of it is there, `partly` otherwise; the reasons of what did not hold."""

    def __init__(self):
        self.held, self.reasons, self.notes, self.absent, self.details = 0, [], [], False, 0

    def that(self, holds, reason):
        if holds:
            self.held += 1
        else:
            self.reasons.append(reason)
        return bool(holds)

    def equal(self, found, expected, what):
        return self.that(found == expected, f"{what}: found {found}, expected {expected}")

    def detail(self, holds, reason):
        """Less than a fault: a field that stays empty. doctor speaks of whole features."""
        self.details += not self.that(holds, reason)

    def nothing(self, reason):
        self.absent = True
        self.reasons.append(reason)

    @property
    def seen(self):
        """Whether the feature is there as a whole, as doctor would say it."""
        return not self.absent and len(self.reasons) == self.details

    @property
    def state(self):
        return "no" if self.absent else "partly" if self.reasons else "yes"


class Log:
    """The events of a run; those of all its processes where it has several logs."""

    def __init__(self, run):
        self.lines, self.bad, self.files = [], [], []
        for path in run.logs():
            events = []
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                try:
                    event = json.loads(line)
                    event["event"]
                    events.append(event)
                except (ValueError, KeyError, TypeError):
                    self.bad.append(f"{path.name}:{number}")
            self.files.append(events)
            self.lines += events

    def of(self, kind):
        return [e for e in self.lines if e["event"] == kind]

    def states(self):
        return [(e["component"], e["state"], e["reason"]) for e in self.of("instrumentation_state")]

    def steps(self):
        return sum(e["steps"] for e in self.of("step_summary"))


def check_output(f, run, plain):
    f.that(run.whole == plain.whole, f"the host answered differently: {json.dumps(run.whole)} with us, {json.dumps(plain.whole)} without")


def check_session(f, log):
    f.that(not log.bad, f"lines that are no events: {log.bad[:3]}")
    if not log.files:
        f.nothing("there is no log")
    for events in log.files:
        kinds = [e["event"] for e in events]
        for kind, place in (("resource_session_start", kinds[:1]), ("resource_session_end", kinds[-1:])):
            f.that(kinds.count(kind) == 1 and place == [kind], f"{kinds.count(kind)} {kind} in a log, in its place stands {place}")


def check_told(f, facts, log, run):
    """What is missing is said, once and in its place; and nothing is said to be missing that is there."""
    ours = run.ours()
    f.that(len(set(ours)) == len(ours), f"said more than once: {[l for l in ours if ours.count(l) > 1][:1]}")
    # What is wrong but there is another matter: the host can say nothing of it.
    missing = [name for name, fact in facts.items() if name in PARTS and (fact.absent or any(r.startswith("no ") for r in fact.reasons))]
    if missing and not log.files:
        f.that(len(ours) == 1, f"{len(ours)} lines on stderr and no log, which say why nothing is there: {ours}")
        return
    # A machine without a GPU says so; that is not this build's fault (tests/server/test_gpu.py has the GPU part).
    states = {(component, reason) for component, state, reason in log.states() if state != "ok" and component != "gpu"}
    said = {component for component, _ in states}
    if any("forked" in line and "is not" in line for line in ours):
        said.add("hooks")  # a worker writes no log: it says so itself, for all that it does
    unsaid = [name for name in missing if name != "labels" and not said & (PARTS[name] | {"hooks"})]
    f.that(not unsaid, f"not a word of what is missing of: {', '.join(unsaid)}")
    for component, reason in sorted(states):
        bad = {name for name in PARTS if name in facts and not facts[name].seen and (component == "hooks" or component in PARTS[name])}
        known = component == "hooks" or any(component in parts for parts in PARTS.values())
        # A capture that goes another way than usual is whole all the same.
        f.that(not known or bad or "callback" in reason, f"everything is there, but {component}: {reason}")


def check_model(f, log, outcome):
    loads = [e for e in log.of("model_load") if e["outcome"] == outcome]
    if not log.of("model_load"):
        return f.nothing("no model_load")
    if f.equal(len(loads), 1, f"model_load events with outcome `{outcome}`"):
        layers = N_LAYER if outcome == "load" else None  # a vocabulary has none
        f.equal((loads[0]["architecture"], loads[0]["n_layer"], loads[0]["n_params"]), (ARCHITECTURE, layers, N_PARAMS), "model_load")


def printed_mib(run, llama, whisper):
    """Sum of the sizes that the host prints, llama.cpp's in MiB and whisper's in MB, and how far it may be off for their rounding."""
    mib = re.findall(rf" {llama} buffer size = +([0-9.]+) MiB", run.said) if llama else []
    mb = re.findall(rf"{whisper} size += +([0-9.]+) MB", run.said) if whisper else []
    if not mib and not mb:
        return None, 0
    return sum(map(float, mib)) + sum(map(float, mb)) * 1e6 / 2**20, 0.005 * (len(mib) + len(mb)) + 0.001


def check_memory(f, log, run):
    buffers = log.of("buffer_allocation")
    if not buffers:
        return f.nothing("no buffer_allocation")
    # whisper.cpp prints other lines, and keeps its cache in buffers that nothing tells from others.
    told = {"weights": ("model", "whisper_model_load: +CPU total"), "kv_cache": ("KV", None), "other": (None, "whisper_init_state: kv .*")}
    for kind, (llama, whisper) in told.items():
        printed, tolerance = printed_mib(run, llama, whisper)
        found = sum(e["size_bytes"] for e in buffers if e["kind"] == kind) / 2**20
        if printed is None:
            if kind != "other":
                f.notes.append(f"the host prints no size of {kind}")
        else:
            f.that(abs(found - printed) <= tolerance, f"{kind}: {found:.3f} MiB in buffer_allocation, the host printed {printed:.2f} MiB")
    # A compute buffer grows: the host prints how large it is at the beginning.
    f.that(any(e["kind"] == "compute" for e in buffers), "no buffer_allocation of kind compute")
    freed = log.of("buffer_free")
    f.that(len(freed) == len(buffers), f"{len(buffers)} buffers allocated, {len(freed)} freed")


def check_tensors(f, log, run, is_llama):
    """Graphs: their operations and bytes, sorted into parts of the model and layers."""
    steps = log.of("step_summary")
    if not log.steps() or not any(o["flops"] for e in steps for o in e["ops"]):
        return f.nothing("no step_summary with operations")
    for phase in ("prefill", "decode"):
        f.that(sum(e[phase]["flops"] for e in steps) > 0, f"{phase} steps have no flops")
    if is_llama:
        parts = {c["name"]: c["count"] for e in steps for c in e["components"] if c["count"]}
        if "heard" in run.whole:
            parts.pop("other", None)  # whisper's graphs, which name no parts
        f.detail(parts.keys() == COMPONENTS, f"components are {', '.join(sorted(parts))}")
        f.equal(sorted({part["layer_id"] for e in steps for part in e["layers"]}), list(range(N_LAYER)), "layers")


def check_times(f, log):
    steps = log.of("step_summary")
    if not log.steps():
        return f.nothing("no step_summary with a step")
    if not sum(e["timed_steps"] for e in steps):
        return f.nothing("no step was timed")
    ops = [o for e in steps for o in e["ops"] if o["name"] == "mul_mat"]
    f.that(sum(o["timed_us"] for o in ops) > 0, f"mul_mat has no time ({len(ops)} entries)")
    for part in ("ops", "components", "layers"):
        timed, whole = sum(o["timed_us"] for e in steps for o in e[part]), sum(e["timed_graph_us"] for e in steps)
        f.that(timed <= whole * 1.001, f"{part} took {timed:.0f} us of graphs of {whole:.0f} us")


def check_requests(f, log, run):
    ends = sorted(log.of("request_end"), key=lambda e: e["request_id"])
    if not ends and run.requests:
        return f.nothing("no request_end")
    if f.equal(len(ends), len(run.requests), "request_end events"):
        f.equal(len(log.of("request_start")), len(ends), "request_start events")
        for field in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            f.equal([e[field] for e in ends], [a[field] for a in run.requests], field)


def decoded(run):
    """Tokens that the host computed: every prompt token that was not cached and every generated one but the last of a request."""
    return sum(a["prompt_tokens"] - a["cached_tokens"] + a["generated_tokens"] - 1 for a in run.requests)


def check_kv(f, log, run):
    """Writes by graphs, cuts by the host, and how many cells are in use when a request ends."""
    operations = defaultdict(list)
    for e in log.of("kv_cache_operation"):
        operations[e["cache_operation"]].append(e)
    usage = log.of("kv_cache_usage")
    if not operations and not usage:
        return f.nothing("neither kv_cache_operation nor kv_cache_usage")
    updates = [e for e in operations["update"] if e["layer_id"] == 0 and e["key_cache_size_mb"] is not None]
    written = sum(round(e["key_cache_size_mb"] * 2**20 / KEY_BYTES) for e in updates)
    computed = decoded(run)
    if any(e["reason"] == "warm_up" for e in log.of("events_dropped")) and run.requests and written < computed:
        # Of a host that marks no requests, the first two batches may be warm-ups: their events are left out, and counted.
        computed -= run.requests[0]["prompt_tokens"] + 1
        f.notes.append("its first two batches are taken for warm-ups, and have no events")
    f.equal(written, computed, "tokens whose keys were written in layer 0")
    # Here one sequence after another is served: a write has one, and positions from one to another.
    nowhere = sum(e["cache_start_pos"] is None or e["seq_id"] is None for e in updates)
    f.detail(not nowhere, f"{nowhere} of {len(updates)} updates of layer 0 have no sequence or positions")
    for e in updates:
        if e["cache_start_pos"] is not None:
            tokens = round(e["key_cache_size_mb"] * 2**20 / KEY_BYTES)
            span = e["cache_start_pos"], e["cache_end_pos"]
            f.that(span[1] - span[0] == tokens, f"an update of positions {span[0]} to {span[1]} has keys of {tokens} tokens")
    # Every host here takes the tokens that a new prompt does not share with the one before out of the cache.
    cuts = sum(len(operations[o]) for o in ("evict", "clear", "keep"))
    f.that(cuts > 0, f"no kv_cache_operation that takes tokens out (found {', '.join(operations) or 'none'})")
    cells = [e["used_cells"] for e in usage]
    f.that(cells and all(c is not None and 0 <= c <= e["size_cells"] for c, e in zip(cells, usage)), f"used cells: {cells}")
    ends = [e["used_cells"] for e in usage if e["reason"] == "request_end"]
    if ends and None not in ends and run.requests:  # derived requests end when the next one begins, and have none
        # A sequence holds its prompt and all generated tokens but the last, which most hosts never decode.
        last = run.requests[-1]
        held = last["prompt_tokens"] + last["generated_tokens"]
        f.that(ends[-1] >= held - 1, f"{ends[-1]} used cells at the last request's end, which held {held - 1} tokens")


def check_capture(f, log, run):
    """The account adds up, nothing is lost, every layer and the logits are there, with a row for every token."""
    streams = run.streams()
    if not streams:
        return f.nothing("there is no stream")
    captured = 0
    for path in streams:
        packets = read(path)
        accounts = [p.meta for p in packets if p.kind == "account"]
        if not f.that(accounts and any(p.kind == "end" for p in packets), f"{path.name} has no account and end"):
            continue
        last = accounts[-1]
        for unit in ("tensors", "bytes"):
            parts = last["captured"][unit] + sum(part[unit] for where in ("skipped", "dropped") for part in amounts(last[where]))
            f.equal(parts, last["seen"][unit], f"captured, skipped and dropped {unit} together against those seen")
        lost = {reason: part for reason, part in last["dropped"].items() if part["tensors"]}
        f.that(not lost, f"dropped: {lost}")
        captured += last["captured"]["tensors"]
        got = subprocess.run([str(PROGRAM), "stream", "verify", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        f.that(got.returncode == 0, f"stream verify exits {got.returncode}: {got.stdout.strip()[-200:]}")
    if not captured:
        said = [reason for component, _, reason in log.states() if component == "capture"] + [l for l in run.ours() if "captur" in l]
        why = f"the reason given is: {said[0]}" if said else "no reason is given"
        return f.nothing(f"nothing was captured in {log.steps()} steps, and {why}")
    rows = rows_of(run)
    missing = [n for n in [f"l_out-{i}" for i in range(N_LAYER)] + ["result_output"] if n not in rows]
    f.that(not missing, f"not captured: {missing}")
    found, computed = len(rows.get("l_out-0", [])), decoded(run)
    f.detail(found == computed, f"rows of l_out-0: found {found}, expected {computed}")


def amounts(parts):
    return parts.values() if isinstance(parts, dict) else parts


def check_labels(f, run):
    """Every row has sequence, position and token, those of the last block and the logits among those of the first block."""
    rows = rows_of(run)
    if not rows:
        return f.nothing("there are no rows")
    lacking = defaultdict(list)
    for name, labels in rows.items():
        for i, what in enumerate(("sequence", "position", "token")):
            count = sum(label is None or label[i] < 0 for label in labels)
            if not f.that(not count, None):
                lacking[what, count == len(labels)].append(name)
    f.reasons = []
    for (what, all_of), names in lacking.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        f.reasons.append(f"{'no' if all_of else 'not every'} row has a {what}: {', '.join(names[:3])}{more}")
    if not lacking and "l_out-0" in rows:
        first = set(rows["l_out-0"])
        if len(rows["l_out-0"]) == decoded(run):
            check_order(f, rows["l_out-0"], run)
        for name in (f"l_out-{N_LAYER - 1}", "result_output"):
            strange = [label for label in rows.get(name, []) if label not in first]
            f.that(not strange, f"{name} has rows that are not in l_out-0: {strange[:3]}")


def check_order(f, labels, run):
    """One request after another: positions go on from what was cached, and tokens are those that the host generated, if it tells them."""
    labels = iter(labels)
    for number, a in enumerate(run.requests, 1):
        count = a["prompt_tokens"] - a["cached_tokens"] + a["generated_tokens"] - 1
        part = [next(labels) for _ in range(count)]
        f.equal([p for _, p, _ in part], list(range(a["cached_tokens"], a["cached_tokens"] + count)), f"positions of request {number}")
        if "ids" in a:
            generated = a["generated_tokens"] - 1
            f.equal([t for _, _, t in part][count - generated:], a["ids"][:-1], f"generated tokens of request {number}")


def rows_of(run):
    """Tensor name -> [(sequence, position, token) or None], of every row that a token stands for."""
    if not hasattr(run, "rows"):
        run.rows = defaultdict(list)
        for path in run.streams():
            for p in read(path):
                if p.kind != "tensor":
                    continue
                for part in p.meta["parts"]:
                    # Without a dimension of tokens a row is whatever stands beside the first dimension.
                    count = part["ne"][part["token_dim"]] if part["token_dim"] else part["ne"][1] * part["ne"][2] * part["ne"][3]
                    labels = [row[:3] for row in part["rows"]]
                    run.rows[p.meta["tensor"]] += labels + [None] * (count - len(labels))
    return run.rows


_read = {}


def read(path):
    """The stream's packets, by the reader that was written from its description. Checksums are left to `stream verify`: in Python
    they take longer than all the rest."""
    key = (path, path.stat().st_mtime_ns)
    if key not in _read:
        _read.clear()
        try:
            _read[key] = reader.read(path, checksums=False)
        except (AssertionError, IndexError, ValueError) as e:
            raise Unreadable(f"{path.name} does not follow docs/STREAM-FORMAT.md: {type(e).__name__} {e}") from None
    return _read[key]


class Unreadable(Exception):
    """A stream that the reader of the tests cannot read."""


def check(run, plain, log, applies):
    """Every fact of `applies`: name -> Fact."""
    outcome = "load" if "memory" in applies else "vocabulary"
    facts = {"exit": Fact()}
    checks = {
        "output": lambda f: check_output(f, run, plain),
        "session": lambda f: check_session(f, log),
        "model": lambda f: check_model(f, log, outcome),
        "requests": lambda f: check_requests(f, log, run),
        "memory": lambda f: check_memory(f, log, run),
        "KV": lambda f: check_kv(f, log, run),
        "tensors": lambda f: check_tensors(f, log, run, "model" in applies),
        "operation times": lambda f: check_times(f, log),
        "capture": lambda f: check_capture(f, log, run),
        "labels": lambda f: check_labels(f, run),
        "told": lambda f: check_told(f, facts, log, run),
    }
    if run.death:
        facts["exit"].nothing(run.death)
    for name in FACTS:
        if name in applies and name != "exit":
            facts[name] = Fact()
            if run.death:
                facts[name].nothing("the host died")
                continue
            try:
                checks[name](facts[name])
            except (KeyError, TypeError) as e:
                facts[name].that(False, f"an event is not of the documented form: {type(e).__name__} {e}")
            except Unreadable as e:
                facts[name].that(False, str(e))
    return facts
