"""Captures of real servers beside an independent witness: builds and reads the oracle (tests/host/oracle.c), reads our streams, compares.

Nothing here uses our code to understand our files, but for `llama-resource stream export`, which is itself under test. A stream is
read by tests/stream/reader.py, written from the specification, or, for the codecs of our own, exported to safetensors and read with
their package.
"""

import functools
import hashlib
import json
import mmap
import os
import re
import struct
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stream"))
import reader  # noqa: E402 (needs the path above)
from server import LIBRARY, LLAMA_SERVER, REPOSITORY, TARGET, Server  # noqa: E402

PROGRAM = Path(os.environ.get("LLAMA_RESOURCE_TEST_PROGRAM", LIBRARY.parent / "llama-resource"))
HOST_SOURCES = REPOSITORY / "tests" / "host"
BUILT = TARGET / "test-host"
LLAMA_SOURCE = REPOSITORY / "llama.cpp"
VIEW_OPS = {"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"}
GGML_TYPES = {0: "f32", 1: "f16", 30: "bf16", 26: "i32", 27: "i64", 25: "i16", 24: "i8", 28: "f64"}


# --- Programs in C that the tests build ---

@functools.cache
def build(source, *flags):
    """Path of tests/host/SOURCE, compiled; a shared library where `flags` say -shared."""
    path = HOST_SOURCES / source
    command = ["cc", "-O2", f"-I{LLAMA_SOURCE}/include", f"-I{LLAMA_SOURCE}/ggml/include", str(path), *flags]
    key = hashlib.sha256(path.read_bytes() + repr(command).encode() + str(LLAMA_SERVER.resolve()).encode()).hexdigest()[:12]
    BUILT.mkdir(parents=True, exist_ok=True)
    built = BUILT / f"{path.stem}-{key}{'.so' if '-shared' in flags else ''}"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}.part")
        subprocess.run([*command, "-o", str(part), "-ldl"], check=True)
        os.replace(part, built)
    return built


def oracle():
    return build("oracle.c", "-shared", "-fPIC")


def eval_tool():
    libraries = LLAMA_SERVER.parent
    return build("eval_tool.c", f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}",
                 f"-Wl,-rpath-link,{libraries}")


# --- Servers that capture ---

def capture_env(stream, tensors="FULL_TENSOR", route="retain", codec="none", **settings):
    """Environment of a capture to `stream`; further settings by their word: max_memory="64M" and so on."""
    chosen = {"capture": stream, "tensors": tensors, "route": route, "codec": codec, **settings}
    return {f"LLAMA_RESOURCE_{word.upper()}": str(value) for word, value in chosen.items() if value is not None}


def capturing(model, stream, args=(), env=None, witness=None, names="", order="behind", log_path=None, launcher=(), timeout=60, shims=(),
              **settings):
    """A server that captures to `stream` and, with `witness`, lets the oracle write what it saw to that file.

    order   where the oracle stands in LD_PRELOAD: "behind" our library, or "before" it, where it looks like a callback of the host
    shims   further libraries to preload behind ours: a host as it is not
    """
    env = {"OMP_WAIT_POLICY": "passive", **capture_env(stream, **settings), **(env or {})}
    env["LLAMA_RESOURCE_LOG_PATH"] = str(log_path or Path(stream).with_suffix(".jsonl"))
    preload = [str(LIBRARY)]
    if witness:
        env |= {"ORACLE_OUT": str(witness), "ORACLE_NAMES": names}
        preload.insert(0 if order == "before" else 1, str(oracle()))
    preload += map(str, shims)
    env["LD_PRELOAD"] = ":".join(preload)
    return Server(model, args=args, env=env, preload=not launcher, launcher=launcher, timeout=timeout)


def witnessed(model, witness, args=(), names="", env=None):
    """A plain server that only the oracle looks at."""
    env = {"OMP_WAIT_POLICY": "passive", "LD_PRELOAD": str(oracle()), "ORACLE_OUT": str(witness), "ORACLE_NAMES": names, **(env or {})}
    return Server(model, args=args, env=env, preload=False)


def plain(model, args=(), env=None):
    return Server(model, args=args, env={"OMP_WAIT_POLICY": "passive", **(env or {})}, preload=False)


# --- What the oracle wrote ---

@dataclass
class Node:
    """One node of a graph run, as the oracle saw it."""
    index: int
    name: str
    op: str
    occurrence: int
    dtype: str
    ne: tuple
    is_view: bool
    contiguous: bool
    flags: int
    root: int  # index of the node whose memory it is or looks into, -1 if that is not in this graph
    source: str
    data: memoryview

    @property
    def taken(self):
        return len(self.data) > 0


@dataclass
class Run:
    """One graph run. `rows`: (seq, pos, token) of every token of the ubatch; `outputs`: of those with an output. None without ubatch."""
    number: int
    rows: list
    outputs: list
    shared: list  # number of sequences of each token
    inputs: dict
    nodes: list = field(default_factory=list)
    complete: bool = False

    @functools.cached_property
    def at(self):
        """Index in the graph -> node."""
        return {node.index: node for node in self.nodes}


def read_oracle(path):
    """All graph runs. The values stay in the file until they are looked at."""
    with open(path, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert content[:8] == b"ORACLE1\n", f"{path} is not the oracle's"
    runs, at = [], 8
    while at + 5 <= len(content):
        kind, length = struct.unpack_from("<cI", content, at)
        body = content[at + 5 : at + 5 + length]
        if len(body) < length:
            break  # the process was killed here
        at += 5 + length
        if kind == b"R":
            assert struct.unpack_from("<I", body)[0] == len(runs)
            runs.append(_run(body))
        elif kind == b"N":
            runs[-1].nodes.append(_node(body))
        else:
            runs[-1].complete = True
    return runs


def _run(body):
    number, _, _, n_tokens = struct.unpack_from("<IQii", body)
    values = np.frombuffer(body, np.int32, offset=20)
    at = max(n_tokens, 0) * 5
    table = values[:at].reshape(-1, 5)
    inputs = {}
    for name in ("inp_tokens", "inp_pos", "out_ids"):
        n = int(values[at])
        inputs[name] = None if n < 0 else values[at + 1 : at + 1 + n].tolist()
        at += 1 + max(n, 0)
    if n_tokens < 0:
        return Run(number, None, None, None, inputs)
    rows = [(int(seq), int(pos), int(token)) for token, pos, seq, _, _ in table]
    return Run(number, rows, [row for row, line in zip(rows, table) if line[4]], table[:, 3].tolist(), inputs)


_NODE = struct.Struct("<IIIi4qIIIiIIIQ")


def _node(body):
    _, index, occurrence, dtype, *rest = _NODE.unpack_from(body)
    ne, (flags, is_view, contiguous, root, n_name, n_op, n_source, n_bytes) = tuple(rest[:4]), rest[4:]
    texts, at = [], _NODE.size
    for length in (n_name, n_op, n_source):
        texts.append(bytes(body[at : at + length]).decode())
        at += length
    assert len(body) == at + n_bytes
    return Node(index, texts[0], texts[1], occurrence, GGML_TYPES.get(dtype, f"type {dtype}"), ne, bool(is_view), bool(contiguous), flags,
                root, texts[2], body[at:])


# --- What we wrote ---

def resource(*arguments, check=True, timeout=120):
    """Runs `llama-resource ARGUMENTS` and gives the result; fails with its stderr."""
    result = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    assert not check or result.returncode == 0, f"llama-resource {' '.join(map(str, arguments))}: {result.returncode}\n{result.stderr[-2000:]}"
    return result


@dataclass
class Part:
    """What one step gave of one tensor: values [rows, ne0] and, row by row, (seq, pos, token); -1 where not known."""
    step: int
    values: np.ndarray
    rows: np.ndarray
    meta: dict = field(default_factory=dict)  # of the packet; empty in an export
    table: list = None                        # (seq, pos, token) of each token, as the packet has it

    @property
    def bytes(self):
        return self.values.tobytes()


class Stream:
    """A stream: `parts` by store name, in order.

    Read by the Python reader that was written from the specification (tests/stream/reader.py) where the codec allows it, or, with
    `exported`, through `llama-resource stream export`.
    """

    def __init__(self, path, exported=False):
        self.path, self.parts = Path(path), defaultdict(list)
        for name, part in self._export() if exported else self._packets():
            mine = self.parts[name]
            if mine and mine[-1].step == part.step and mine[-1].values.shape[1:] == part.values.shape[1:]:
                # A tensor that was too large for one piece comes in several.
                before = mine[-1]
                mine[-1] = Part(part.step, np.concatenate([before.values, part.values]), np.concatenate([before.rows, part.rows]), part.meta,
                                (before.table or []) + (part.table or []))
            else:
                mine.append(part)
        for name, parts in self.parts.items():
            steps = [part.step for part in parts]
            if exported:  # where the widths of the rows differ, an array a width
                parts.sort(key=lambda part: part.step)
                steps.sort()
            assert steps == sorted(set(steps)), f"{name}: steps out of order: {steps}"

    def _packets(self):
        for kind, name, data, metadata in packets(self.path):
            if kind != "tensor":
                continue
            meta = reader._tensor(reader.Metadata(metadata))
            values = reader.Packet(0, name, kind, 0, data, meta).values()
            at = 0
            for part in meta["parts"]:
                ne, n = part["ne"], int(np.prod(part["ne"]))
                table = [row[:3] for row in part["rows"]]
                assert len(table) in (0, ne[part["token_dim"]]), f"{name}: {len(table)} rows, {ne}, token dimension {part['token_dim']}"
                yield name, Part(part["step"], values[at : at + n].reshape(-1, ne[0]), spread(part), meta, table)
                at += n
            assert at == len(values), f"{name}: {len(values)} values for {at}"

    def _export(self):
        path = self.path.with_suffix(".safetensors")
        resource("stream", "export", self.path, "--to", "safetensors", "--out", path)
        arrays = load_file(path)
        path.unlink()
        for name, values in arrays.items():
            if name.endswith(".rows") and name[: -len(".rows")] in arrays:
                continue
            rows = arrays[f"{name}.rows"]
            assert rows.dtype == np.int32 and rows.shape == (len(values), 4), f"{name}: rows {rows.dtype} {rows.shape}, values {values.shape}"
            cuts = np.flatnonzero(np.diff(rows[:, 0])) + 1
            # Rows of several lengths (attention scores, a convolution's input) come as one array a length: NAME.n256, NAME.n512.
            name = re.sub(r"\.n\d+(\.\d+)?$", "", name)
            for v, r in zip(np.split(values, cuts), np.split(rows, cuts)):
                if len(r):
                    yield name, Part(int(r[0, 0]), v, r[:, 1:])

    @property
    def steps(self):
        """step -> {name: part}, in order."""
        found = defaultdict(dict)
        for name, parts in self.parts.items():
            for part in parts:
                found[part.step][name] = part
        return dict(sorted(found.items()))


def spread(part):
    """The rows table of a part, for each row of values: row r belongs to token (r / product(ne[1..token_dim])) % ne[token_dim]."""
    ne, dim = part["ne"], part["token_dim"]
    n = int(np.prod(ne[1:]))
    if not part["rows"]:
        return np.full((n, 3), -1, np.int32)
    table = np.array([row[:3] for row in part["rows"]], np.int32)
    return table[(np.arange(n) // int(np.prod(ne[1:dim]))) % ne[dim]]


KINDS = ["header", "tensor", "tokens", "account", "checkpoint", "index", "end"]
END_MAGIC = b"LRS1"


def packets(path):
    """(kind, name, data, metadata) of every packet from the start to the first that is not whole, by the framing alone."""
    content, at = Path(path).read_bytes(), 0
    while at + 6 <= len(content):
        n_name, n_data = struct.unpack_from(">HI", content, at)
        end = at + 6 + n_name + n_data
        if n_name == 0 or end > len(content) or content[end - 4 : end] != END_MAGIC:
            return
        name, data = content[at + 6 : at + 6 + n_name].decode(), content[at + 6 + n_name : end]
        packet_len, trailer_len, _ = struct.unpack_from("<III", data, len(data) - 16)
        assert packet_len == end - at and 24 <= trailer_len <= len(data), f"{path}: odd trailer at {at}"
        metadata = data[len(data) - trailer_len + 8 : -16]
        assert metadata[0] == 1, f"version {metadata[0]}"
        yield KINDS[metadata[1]] if metadata[1] < len(KINDS) else "?", name, data[:-trailer_len], metadata[10:]
        at = end


def json_packets(path, kind):
    return [json.loads(metadata) for found, _, _, metadata in packets(path) if found == kind]


def account(path):
    """The last account of a stream: that of its end packet, else the last one written on the way."""
    ends = json_packets(path, "end")
    return (ends[-1].get("account", ends[-1]) if ends else json_packets(path, "account")[-1]), bool(ends)


def total(account, kind):
    """(tensors, bytes) of `seen`, `captured`, or all reasons of `skipped` or `dropped`."""
    entry = account.get(kind, {})
    entries = [entry] if "tensors" in entry else list(entry.values())
    return sum(e["tensors"] for e in entries), sum(e["bytes"] for e in entries)


def check_account(account):
    """captured + skipped + dropped = seen, in tensors and bytes; gives the account back."""
    sums = [total(account, kind) for kind in ("captured", "skipped", "dropped")]
    assert tuple(map(sum, zip(*sums))) == total(account, "seen"), account
    return account


# --- Both beside each other ---

def align(stream, runs):
    """[(step, parts by name, run)]: the last step belongs to the last graph run of tokens, and so on backwards.

    Captures start late (the host warms up first) but stop with the host, so the ends agree.
    """
    steps, tokens = list(stream.steps.items()), [run for run in runs if run.rows is not None]
    assert 0 < len(steps) <= len(tokens), f"{len(steps)} captured steps, {len(tokens)} graph runs of tokens"
    return [(step, parts, run) for (step, parts), run in zip(reversed(steps), reversed(tokens))][::-1]


MADE_UP = re.compile(r"(?:node_\d+|leaf_\d+)?(?: \(.*)?")  # names that ggml gives where the model gives none


def made_up(name):
    return MADE_UP.fullmatch(name) is not None


def resolve(part, run, used):
    """The node of `run` that a stored tensor is by its own description: ggml's name, operation, occurrence.

    Names that ggml makes up change from graph to graph, so there it is the node of that operation that has the bytes.
    """
    name, op = part.meta["tensor"], part.meta["op"]
    if made_up(name):
        candidates = [n for n in run.nodes if n.op == op and n.taken and n.index not in used and made_up(n.name)]
        return next((n for n in candidates if n.data == part.bytes), None)
    return next((n for n in run.nodes if n.name == name and n.op == op and n.occurrence == part.meta["occurrence"]), None)


def unmatched_rows(part, run):
    """What is wrong with the rows of a part, or None: each (seq, pos, token) must be the ubatch's, in its order."""
    if part.table and part.table != run.rows and part.table != run.outputs:
        return f"rows {part.table[:6]}..., ubatch {run.rows[:6]}..., outputs {run.outputs[:6]}..."
    return None


@dataclass
class Comparison:
    """What a comparison found: how much was equal, and the nodes of the oracle that the stream has not."""
    steps: int = 0
    tensors: int = 0
    bytes: int = 0
    names: set = field(default_factory=set)
    left: dict = field(default_factory=lambda: defaultdict(int))  # (name without layer, op, why) -> times
    without_rows: set = field(default_factory=set)


def compare(pairs):
    """Every captured tensor of every step must have the oracle's bytes and the ubatch's rows; gives a Comparison."""
    result, wrong, identities = Comparison(), [], {}
    for step, parts, run in pairs:
        stored = {}  # index in the graph -> name in the stream
        for name, part in parts.items():
            node = resolve(part, run, stored)
            where = f"step {step} (run {run.number}, {len(run.rows)} tokens) {name}"
            if node is None or not node.taken:
                wrong.append(f"{where}: {'no such node' if node is None else 'the oracle has no bytes'}: {part.meta['tensor']} {part.meta['op']}")
                continue
            if node.index in stored:
                wrong.append(f"{where}: stored twice, as {stored[node.index]} too")
            stored[node.index] = name
            identity = (node.op, None if made_up(node.name) else (node.name, node.occurrence))
            if identities.setdefault(name, identity) != identity:
                wrong.append(f"{where}: it is {identity}, before it was {identities[name]}")
            if node.data != part.bytes:
                wrong.append(f"{where}: {difference(node, part)}")
            bad = unmatched_rows(part, run)
            if bad:
                wrong.append(f"{where}: {bad}")
            if not part.table:
                result.without_rows.add(name)
            result.tensors += 1
            result.bytes += len(part.bytes)
            result.names.add(name)
        wrong += [f"step {step}: {name} is not the last of its name" for i, name in stored.items()
                  if name == run.at[i].name and any(j > i and run.at[j].name == name for j in stored)]
        for node in run.nodes:
            if node.index not in stored and (node.flags & 16 or node.op in VIEW_OPS):
                result.left[re.sub(r"-\d+(?=$| )", "", node.name), node.op, why_left(node, stored)] += 1
        result.steps += 1
    assert not wrong, f"{len(wrong)} of {result.tensors} are wrong:\n" + "\n".join(wrong[:20])
    return result


def why_left(node, stored):
    """Why a node need not be in a stream of everything; "?" if it should be."""
    if node.root < 0:
        return "external"
    if 0 in node.ne:
        return "empty"
    if node.dtype.startswith("type "):
        return "type"
    if node.op in VIEW_OPS and node.root in stored:
        return "view of what is stored"
    return "?"


def difference(node, part):
    theirs, ours = np.frombuffer(node.data, np.uint8), np.frombuffer(part.bytes, np.uint8)
    if len(theirs) != len(ours):
        return f"{len(ours)} bytes, the oracle has {len(theirs)} ({node.op} {node.ne})"
    at = np.flatnonzero(theirs != ours)
    row = part.values.shape[1] * part.values.itemsize
    return (f"{len(at)} of {len(ours)} bytes differ ({node.op} {node.ne}), first in row {at[0] // row}, last in row {at[-1] // row} of "
            f"{len(part.values)}")


def together(calls):
    """Runs all calls at once and gives their results in order."""
    import threading
    results = [None] * len(calls)

    def run(index, call):
        results[index] = call()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results), results
    return results
