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
FACTS = ["output", "exit", "session", "model", "requests", "memory", "KV", "operation times", "capture", "labels"]


class Fact:
    """`yes` if all held, `no` if nothing of it is there, `partly` otherwise; the reasons of what did not hold."""

    def __init__(self):
        self.held, self.reasons, self.notes, self.absent = 0, [], [], False

    def that(self, holds, reason):
        if holds:
            self.held += 1
        else:
            self.reasons.append(reason)
        return bool(holds)

    def equal(self, found, expected, what):
        return self.that(found == expected, f"{what}: found {found}, expected {expected}")

    def nothing(self, reason):
        self.absent = True
        self.reasons.append(reason)

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
    # A machine without a GPU says so once; that is not this build's fault (tests/server/test_gpu.py has the GPU part).
    lost = [f"{component} {state}: {reason}" for component, state, reason in log.states() if state in ("unavailable", "stopped", "degraded") and component != "gpu"]
    f.that(not lost, "; ".join(lost))


def check_model(f, log):
    loads = [e for e in log.of("model_load") if e["outcome"] == "load"]
    if not log.of("model_load"):
        return f.nothing("no model_load")
    if f.equal(len(loads), 1, "model_load events with outcome `load`"):
        f.equal((loads[0]["architecture"], loads[0]["n_layer"], loads[0]["n_params"]), (ARCHITECTURE, N_LAYER, N_PARAMS), "model_load")


def printed_mib(run, what):
    """Sum of the host's own `... WHAT buffer size = X MiB` lines and how far it may be off for their rounding; None if it prints none."""
    sizes = re.findall(rf" {what} buffer size = +([0-9.]+) MiB", run.stderr)
    return (sum(map(float, sizes)), 0.005 * len(sizes) + 0.001) if sizes else None


def check_memory(f, log, run):
    buffers = log.of("buffer_allocation")
    if not buffers:
        return f.nothing("no buffer_allocation")
    for kind, word in (("weights", "model"), ("kv_cache", "KV"), ("compute", "compute")):
        found = sum(e["size_bytes"] for e in buffers if e["kind"] == kind) / 2**20
        f.that(found > 0, f"no buffer_allocation of kind {kind}")
        printed = printed_mib(run, word)
        if printed is None:
            f.notes.append(f"the host prints no size of {kind}")
        elif kind != "compute":  # a compute buffer grows: the host prints it once, at the beginning
            f.that(abs(found - printed[0]) <= printed[1], f"{kind}: {found:.3f} MiB in buffer_allocation, the host printed {printed[0]:.2f} MiB")
    freed = log.of("buffer_free")
    f.that(len(freed) == len(buffers), f"{len(buffers)} buffers allocated, {len(freed)} freed")


def check_times(f, log):
    steps = log.of("step_summary")
    if not log.steps():
        return f.nothing("no step_summary with a step")
    if not sum(e["timed_steps"] for e in steps):
        return f.nothing("no step was timed")
    ops = [o for e in steps for o in e["ops"] if o["name"] == "mul_mat"]
    f.that(sum(o["timed_us"] for o in ops) > 0, f"mul_mat has no time ({len(ops)} entries)")
    for phase in ("prefill", "decode"):
        f.that(sum(e[phase]["flops"] for e in steps) > 0, f"{phase} steps have no flops")
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


def check_kv(f, log, run):
    """Writes by graphs, cuts by the host, and how many cells are in use when a request ends."""
    operations = defaultdict(int)
    for e in log.of("kv_cache_operation"):
        operations[e["cache_operation"]] += 1
    usage = [e["used_cells"] for e in log.of("kv_cache_usage") if e["reason"] == "request_end"]
    if not operations and not usage:
        return f.nothing("neither kv_cache_operation nor kv_cache_usage")
    f.that(operations["update"] > 0, "no kv_cache_operation `update`: the graphs' own writes")
    # Every host here takes the tokens that a new prompt does not share with the one before out of the cache.
    cuts = sum(operations[o] for o in ("evict", "clear", "keep"))
    f.that(cuts > 0, f"no kv_cache_operation that takes tokens out (found {dict(operations)})")
    f.that(usage and None not in usage, f"used cells when requests ended: {usage}")
    if usage and None not in usage and run.requests:
        # A sequence holds its prompt and all generated tokens but the last, which most hosts never decode.
        last = run.requests[-1]
        held = last["prompt_tokens"] + last["generated_tokens"]
        f.that(usage[-1] >= held - 1, f"{usage[-1]} used cells at the last request's end, which held {held - 1} tokens")


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
        return f.nothing(f"nothing was captured in {log.steps()} steps, and " + (f"the reason given is: {said[0]}" if said else "no reason is given"))
    rows = rows_of(run)
    missing = [n for n in [f"l_out-{i}" for i in range(N_LAYER)] + ["result_output"] if n not in rows]
    f.that(not missing, f"not captured: {missing}")
    # Every prompt token that was not cached and every generated one but the last is decoded once; some hosts decode the last one, too.
    least = sum(a["prompt_tokens"] - a["cached_tokens"] + a["generated_tokens"] - 1 for a in run.requests)
    found = len(rows.get("l_out-0", []))
    f.that(least <= found <= least + len(run.requests), f"{found} rows of l_out-0, the host decoded {least}")


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
    f.reasons = [f"{'no' if all_of else 'not every'} row has a {what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
                 for (what, all_of), names in lacking.items()]
    if not lacking and "l_out-0" in rows:
        first = set(rows["l_out-0"])
        for name in (f"l_out-{N_LAYER - 1}", "result_output"):
            strange = [label for label in rows.get(name, []) if label not in first]
            f.that(not strange, f"{name} has rows that are not in l_out-0: {strange[:3]}")


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
    checks = {
        "output": lambda f: check_output(f, run, plain), "session": lambda f: check_session(f, log), "model": lambda f: check_model(f, log),
        "requests": lambda f: check_requests(f, log, run), "memory": lambda f: check_memory(f, log, run), "KV": lambda f: check_kv(f, log, run),
        "operation times": lambda f: check_times(f, log), "capture": lambda f: check_capture(f, log, run), "labels": lambda f: check_labels(f, run),
    }
    facts = {"exit": Fact()}
    facts["exit"].that(run.death is None, run.death)
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
