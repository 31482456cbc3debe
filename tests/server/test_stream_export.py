"""`llama-resource stream` beside numpy, safetensors and DuckDB: streams written in Python (stream_writer.py), so every answer is known.

Also runs what docs/PYTHON.md tells its readers to run.
"""

import csv
import io
import json
import math
import os
import re
import subprocess
from pathlib import Path

import duckdb
import lz4.frame
import numpy as np
import pytest
import stream_writer
import zstandard
from safetensors import safe_open
from safetensors.numpy import load_file
from server import LIBRARY, REPOSITORY
from stream_writer import Part, Stream

PROGRAM = Path(os.environ.get("LLAMA_RESOURCE_TEST_PROGRAM", LIBRARY.parent / "llama-resource"))
N_EMBD, HEADS, HEAD = 96, 3, 32


def run(*arguments, code=0, folder=None):
    """Standard output of `llama-resource stream ARGUMENTS`, which must exit with `code`."""
    command = [str(PROGRAM), "stream", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert result.returncode == code, f"{arguments}: {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    run.stderr = result.stderr
    return result.stdout


def tokens(step, n, first=0, sequence=0):
    return [(sequence, first + i, 1000 * sequence + 10 * step + i, 1 + sequence) for i in range(n)]


def steps(rng, shape, token_dim=1, scale=1.0, dtype="<f4"):
    """A prompt of one sequence, one of another, then both decoding together: parts with values shaped `shape(n_tokens)`."""
    rows = [tokens(0, 7), tokens(1, 5, sequence=1), tokens(2, 1, first=7) + tokens(2, 1, first=5, sequence=1), tokens(3, 1, first=8)]
    make = lambda n: (rng.standard_normal(shape(n)) * scale).astype(dtype)
    return [Part(step, make(len(r)), token_dim, r, t_ns=1000 * step) for step, r in enumerate(rows)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A stream with every type, shape and codec that Python can write; `.path` is the file."""
    rng = np.random.default_rng(4)
    s = Stream(library_version="0.0.0", session_id="made", model={"name": "Made up", "arch": "llama"}, selection="FULL_TENSOR", codec="zstd")
    residual = {layer: steps(rng, lambda n: (n, N_EMBD), scale=10.0 ** layer) for layer in (0, 7)}
    # Decode rows come in packets of their own, and tensors interleave.
    for layer, parts in residual.items():
        s.tensor(f"l_out-{layer}", parts[:2], codec="zstd", layer=layer)
    heads = steps(rng, lambda n: (n, HEADS, HEAD), token_dim=2)
    s.tensor("Qcur-7.MUL_MAT", heads, codec="lz4", layer=7, op="MUL_MAT", component=1, tensor="Qcur-7")
    inside = steps(rng, lambda n: (HEADS, n, HEAD), token_dim=1)
    s.tensor("kqv-7", inside, codec="none", layer=7, component=1)
    for layer, parts in residual.items():
        s.tensor(f"l_out-{layer}", parts[2:], codec="lz4", layer=layer)
    # The last layer has rows for the tokens whose logits were asked for only.
    last = steps(rng, lambda n: (n, N_EMBD))
    s.tensor("l_out-29", [Part(p.step, p.values[-1:], 1, p.rows[-1:]) for p in last], codec="zstd", layer=29)
    s.tensor("ffn_moe_topk-3", [Part(5, rng.integers(0, 60, (6, 4)).astype("<i4"), 1, tokens(5, 6))], dtype="i32", codec="lz4", layer=3)
    s.checkpoint(skipped={"stride": {"tensors": 3, "bytes": 300}})
    # Lengths that grow with the cache.
    for step, n_kv in enumerate((32, 32, 64, 32)):
        s.tensor("kq-7", [Part(step, rng.random((HEADS, 2, n_kv)).astype("<f4"), 1, tokens(step, 2))], layer=7, op="SOFT_MAX")
    special = rng.standard_normal((4, 8)).astype("<f4")
    special[0, :5] = [np.nan, np.inf, -np.inf, -0.0, 1e-42]
    special[2] = 0
    s.tensor("norm", [Part(9, special, 1, tokens(9, 4))], codec="zstd", op="RMS_NORM", component=3)
    s.tensor("half", [Part(9, rng.standard_normal((4, 8)).astype("<f2"), 1, tokens(9, 4))], dtype="f16", codec="zstd", layer=2)
    brain = stream_writer.bf16_bits(rng.standard_normal((4, 8)))
    s.tensor("brain", [Part(9, brain, 1, tokens(9, 4))], dtype="bf16", codec="lz4", layer=2)
    s.tensor("wide", [Part(9, rng.standard_normal((4, 8)), 1, tokens(9, 4))], dtype="f64", codec="lz4", layer=2)
    big = (rng.standard_normal((4, 8)) * 1e5).astype("<f4")
    s.tensor("big", [Part(9, big, 1, tokens(9, 4))], codec="none", layer=2)
    narrowed = rng.standard_normal((4, 8)).astype("<f2").astype("<f4")
    s.tensor("narrowed", [Part(9, narrowed, 1, tokens(9, 4))], codec="f16", layer=2, lossy=(0, 2e-4, 5e-4))
    brained = stream_writer.from_bf16(brain)
    s.tensor("brained", [Part(9, brained, 1, tokens(9, 4))], codec="bf16", layer=2)
    s.tensor("sliced-2", [Part(9, narrowed[:, 1:], 1, tokens(9, 4))], layer=2, slice=(1, 12, 96))
    s.tensor("../odd name/\U0001f980", [Part(9, narrowed, 0)], layer=None)
    s.tensor("NARROWED", [Part(9, narrowed * 2, 1, tokens(9, 4))], layer=2)
    s.end(skipped={"stride": {"tensors": 3, "bytes": 300}}, dropped={"full": {"tensors": 1, "bytes": 9}})
    s.path = tmp_path_factory.mktemp("stream") / "whole.stream"
    s.path.write_bytes(s.bytes())
    return s


def assert_same(found, expected):
    """Equal to the bit, NaN included."""
    assert found.shape == expected.shape
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected, found.dtype).tobytes()


def wanted_as(name, values, dtype=None):
    """Values as an export gives them in numpy: bf16 as its float32 where numpy has no such type."""
    if name == "brain":
        values = stream_writer.from_bf16(values)
    if dtype == "f16" and values.dtype.kind == "f":
        finite = np.isfinite(values)
        return np.where(finite, np.clip(values, -65504, 65504, where=finite, out=values.astype("<f8")), values).astype("<f4").astype("<f2")
    if dtype == "f32" and values.dtype.kind == "f":
        return values.astype("<f4")
    return values


# --- Exports ---

@pytest.mark.parametrize("dtype", [None, "f32", "f16"])
def test_safetensors_holds_every_value_and_every_row(whole, tmp_path, dtype):
    out = tmp_path / "acts.safetensors"
    run("export", whole.path, "--to", "safetensors", "--out", out, *(["--dtype", dtype] if dtype else []))
    assert ("do not fit f16" in run.stderr) == (dtype == "f16")
    names = set()
    with safe_open(out, "numpy") as file:
        metadata = file.metadata()
        assert json.loads(metadata["model"])["name"] == "Made up"
        exactness = json.loads(metadata["tensors"])
        assert exactness["l_out-7"] == {"codec": "lz4,zstd", "error_bound": 0.0, "row_l2_max": 0.0, "block_max": 0.0}
        assert exactness["narrowed"]["codec"] == "f16" and abs(exactness["narrowed"]["row_l2_max"] - 2e-4) < 1e-9
        for name, (values, rows) in whole.arrays().items():
            names |= {name, f"{name}.rows"}
            assert_same(file.get_tensor(name), wanted_as(name, values, dtype))
            assert_same(file.get_tensor(f"{name}.rows"), rows)
        assert_same(file.get_tensor("sliced-2.columns"), 1 + 12 * np.arange(7, dtype=np.int32))
        assert set(file.keys()) == names | {"sliced-2.columns"}
        assert not dtype or file.get_tensor("l_out-0").dtype == {"f32": np.float32, "f16": np.float16}[dtype]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("dtype", [None, "f16"])
def test_npy_holds_every_value_and_every_row_under_safe_names(whole, tmp_path, dtype):
    out = tmp_path / "acts"
    run("export", whole.path, "--to", "npy", "--out", out, *(["--dtype", dtype] if dtype else []))
    index = json.loads((out / "index.json").read_text())
    arrays = whole.arrays()
    assert set(index["arrays"]) == set(arrays)
    assert len(list(out.iterdir())) == 2 * len(arrays) + 2, "values, rows, one columns file, the index"
    assert {p.parent for p in tmp_path.rglob("*.npy")} == {out}
    lower = [p.name.lower() for p in out.iterdir()]
    assert len(set(lower)) == len(lower), "some systems do not tell upper from lower case"
    for name, (values, rows) in arrays.items():
        entry = index["arrays"][name]
        found = np.load(out / entry["file"], mmap_mode="r")
        assert_same(found, wanted_as(name, values, dtype))
        assert entry["shape"] == list(values.shape)
        assert_same(np.load(out / entry["rows"]), rows)
    assert_same(np.load(out / index["arrays"]["sliced-2"]["columns"]), 1 + 12 * np.arange(7, dtype=np.int32))
    assert_same(np.load(out / "l_out-7.npy"), wanted_as("l_out-7", arrays["l_out-7"][0], dtype))


@pytest.mark.parametrize("dtype", [None, "f16"])
def test_parquet_is_one_table_for_duckdb(whole, tmp_path, dtype):
    out = tmp_path / "acts"
    run("export", whole.path, "--to", "parquet", "--out", out, *(["--dtype", dtype] if dtype else []))
    layers = {t["name"]: t["layer"] for t in json.loads(run("ls", whole.path, "--json"))}
    assert {p.name for p in out.iterdir()} == {f"layer={'__HIVE_DEFAULT_PARTITION__' if l is None else l}" for l in layers.values()}
    db = duckdb.connect()
    db.sql(f"CREATE VIEW acts AS SELECT * FROM read_parquet('{out}/*/*.parquet', hive_partitioning = true)")
    n = 0
    for name, rows in whole.expected.items():
        found = db.execute("SELECT layer, row, step, sequence, position, token, request, values FROM acts WHERE tensor = ? ORDER BY row", [name]).fetchall()
        assert [f[1] for f in found] == list(range(len(rows)))
        assert [f[2:6] for f in found] == [label for _, _, label in rows]
        assert {f[0] for f in found} == {layers[name]}
        assert all(f[6] == (0 if f[3] < 0 else 1 + f[3]) for f in found)
        for f, (_, values, _) in zip(found, rows):
            expected = wanted_as(name, values, dtype).astype("<f4")
            assert_same(np.array(f[7], "<f4"), expected)
        n += len(rows)
    assert db.execute("SELECT count(*) FROM acts").fetchall() == [(n,)]


def test_chosen_tensors_only_and_no_writing_over_things(whole, tmp_path):
    run("export", whole.path, "--to", "safetensors", "--out", tmp_path / "a", "--tensors", "l_out-*,norm")
    assert set(load_file(tmp_path / "a")) == {f"{n}{e}" for n in ("l_out-0", "l_out-7", "l_out-29", "norm") for e in ("", ".rows")}
    run("export", whole.path, "--to", "safetensors", "--out", tmp_path / "b", "--tensors", "nothing-*", code=1)
    assert "no tensor" in run.stderr and not (tmp_path / "b").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for to in ("npy", "parquet"):
        run("export", whole.path, "--to", to, "--out", tmp_path / "full", code=1)
        assert "not empty" in run.stderr and len(list((tmp_path / "full").iterdir())) == 1
    before = whole.path.read_bytes()
    run("export", whole.path, "--to", "safetensors", "--out", whole.path, code=1)
    run("recover", whole.path, "--out", whole.path, code=1)
    assert whole.path.read_bytes() == before
    run("export", whole.path, "--to", "safetensors", "--out", "/dev/full/x", "--tensors", "norm", code=1)
    assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1


# --- Looking into a stream ---

def test_info_says_what_is_there(whole):
    info = json.loads(run("info", whole.path, "--json"))
    assert info["clean_end"] is True and info["bytes"] == len(whole.bytes()) and info["packets"] == len(whole.packets)
    assert (info["steps"], info["tokens"], info["requests"], info["checkpoints"]) == (6, 15, 2, 1)
    assert info["damage"] == [] and info["header"]["session_id"] == "made"
    assert info["account"]["captured"]["bytes"] == whole.bytes_captured
    assert info["account"]["dropped"] == {"full": {"tensors": 1, "bytes": 9}}
    by_name = {t["name"]: t for t in info["tensors"]}
    assert list(by_name) == list(whole.expected)
    for name, rows in whole.expected.items():
        t = by_name[name]
        assert t["rows"] == len(rows) and t["values"] == sum(len(v) for _, v, _ in rows)
        assert t["bytes"] == sum(v.nbytes for _, v, _ in rows)
        assert t["ratio"] == t["bytes"] / t["stored_bytes"]
    assert by_name["l_out-7"]["packets"] == 2 and by_name["l_out-7"]["layers"] == [7] and by_name["l_out-7"]["routes"] == ["retain"]
    stored = sum(len(p) for p in whole.packets if b"llama-resource" not in p[:30])
    assert sum(t["stored_bytes"] for t in info["tensors"]) == stored
    text = run("info", whole.path)
    assert "Made up" in text and "dropped: full" in text and all(len(line) <= 80 for line in text.splitlines())


def test_ls_fits_a_terminal_and_takes_patterns(whole):
    listed = run("ls", whole.path)
    assert all(len(line) <= 80 for line in listed.splitlines()), listed
    assert "l_out-29" in listed and "32x3..64x3" in listed
    assert len(run("ls", whole.path, "l_out-?,norm").splitlines()) == 4
    run("ls", whole.path, "nothing", code=1)


@pytest.mark.parametrize("name", ["l_out-7", "Qcur-7.MUL_MAT", "kqv-7", "norm", "half", "wide", "ffn_moe_topk-3", "kq-7"])
def test_cat_prints_values_that_read_back_the_same(whole, name):
    rows = whole.expected[name]
    lines = run("cat", whole.path, name).splitlines()
    assert lines[0] == "# step sequence position token values" and len(lines) == 1 + len(rows)
    objects = [json.loads(line) for line in run("cat", whole.path, name, "--json").splitlines()]
    for line, object, (_, values, label) in zip(lines[1:], objects, rows):
        columns = line.split()
        assert tuple(map(int, columns[:4])) == label
        assert_same(np.array(list(map(float, columns[4:])), values.dtype), values)
        assert (object["step"], object["sequence"], object["position"], object["token"]) == label
        assert_same(np.array([float(v) for v in object["values"]], values.dtype), values)


def test_cat_takes_some_rows(whole):
    all_rows = run("cat", whole.path, "l_out-0").splitlines()
    assert run("cat", whole.path, "l_out-0", "--rows", "3-4").splitlines() == [all_rows[0], *all_rows[4:6]]
    assert run("cat", whole.path, "l_out-0", "--rows", "13-").splitlines() == [all_rows[0], *all_rows[14:]]
    run("cat", whole.path, "l_out-0", "--rows", "99", code=1)
    assert "has 15 rows" in run.stderr
    run("cat", whole.path, "l_out-1", code=1)


# --- Statistics ---

def figures(values):
    """What numpy (and math.fsum, where a sum is wanted exactly) says of these values."""
    x = values.astype(np.float64).reshape(-1)
    finite = x[np.isfinite(x)]
    mean = math.fsum(finite) / len(finite) if len(finite) else None
    return {
        "count": x.size, "nan": int(np.isnan(x).sum()), "inf": int(np.isinf(x).sum()), "bytes": values.nbytes,
        "mean": mean, "std": math.sqrt(math.fsum((finite - mean) ** 2) / len(finite)), "min": finite.min(), "max": finite.max(),
        "l2": math.sqrt(math.fsum(finite**2)), "sparsity": np.mean(x == 0),
    }


def assert_figures(line, values):
    for key, expected in figures(values).items():
        found = line[key]
        assert found == pytest.approx(expected, rel=1e-12, abs=0), (key, found, expected)
        if key in ("std", "mean") and not line["nan"] and not line["inf"]:
            x = values.astype(np.float64)
            assert found == pytest.approx(getattr(x, key)(), rel=1e-12, abs=1e-13 * np.abs(x).max())


def as_numbers(name, values):
    return stream_writer.from_bf16(values) if name == "brain" else values


def test_statistics_are_numpys(whole):
    lines = {line["tensor"]: line for line in json.loads(run("stats", whole.path, "--json"))["stats"]}
    assert list(lines) == list(whole.expected)
    for name, rows in whole.expected.items():
        values = np.concatenate([as_numbers(name, v) for _, v, _ in rows])
        line = lines[name] | {"bytes": values.nbytes} if name == "brain" else lines[name]
        assert_figures(line, values)
    text = run("stats", whole.path)
    assert "norm: 1 NaN and 2 infinite values, left out" in text and all(len(line) <= 80 for line in text.splitlines())


def test_statistics_by_layer_and_by_token_are_numpys(whole):
    names = "l_out-7,kqv-7,Qcur-7.MUL_MAT,norm"
    table = list(csv.DictReader(io.StringIO(run("stats", whole.path, "--by", "layer", "--tensors", names, "--csv"))))
    assert [line["layer"] for line in table] == ["", "7"]
    seven = np.concatenate([v for name in ("l_out-7", "Qcur-7.MUL_MAT", "kqv-7") for _, v, _ in whole.expected[name]])
    assert_figures({k: float(v) for k, v in table[1].items() if v}, seven)
    by_token = json.loads(run("stats", whole.path, "--by", "token", "--tensors", names, "--json"))["stats"]
    as_csv = list(csv.DictReader(io.StringIO(run("stats", whole.path, "--by", "token", "--tensors", names, "--csv"))))
    assert len(as_csv) == len(by_token) == 15 + 15 + 15 + 4
    for line, same in zip(by_token, as_csv):
        label = (line["step"], line["sequence"], line["position"], line["token"])
        assert label == tuple(int(same[k]) for k in ("step", "sequence", "position", "token"))
        values = np.concatenate([v for _, v, l in whole.expected[line["tensor"]] if l == label])
        assert_figures(line, values)
        assert float(same["l2"]) == line["l2"]
    text = run("stats", whole.path, "--by", "token", "--tensors", names)
    assert len(text.splitlines()) == 1 + len(by_token) and all(len(line) <= 80 for line in text.splitlines())


def test_statistics_of_many_values_stay_exact(tmp_path):
    rng = np.random.default_rng(1)
    s = Stream()
    parts = [Part(i, (rng.standard_normal((256, 768)) + 1e4).astype("<f4"), 1, tokens(i, 256)) for i in range(8)]
    for part in parts:
        s.tensor("l_out-0", [part], layer=0)
    s.end()
    (tmp_path / "s").write_bytes(s.bytes())
    line, = json.loads(run("stats", tmp_path / "s", "--json"))["stats"]
    assert_figures(line, np.concatenate([p.values for p in parts]))


# --- Damage ---

def damaged(whole, tmp_path, number=5):
    """The stream with one flipped bit in the values of packet `number`."""
    data = bytearray(whole.bytes())
    at = sum(map(len, whole.packets[:number]))
    data[at + 40] ^= 1
    path = tmp_path / "damaged.stream"
    path.write_bytes(data)
    return path, at


def test_verify_tells_good_from_damaged_from_unreadable(whole, tmp_path):
    assert "good" in run("verify", whole.path)
    good = json.loads(run("verify", whole.path, "--json"))
    assert (good["verdict"], good["decoded_bytes"], good["problems"]) == ("good", whole.bytes_captured, [])
    path, at = damaged(whole, tmp_path)
    text = run("verify", path, code=2)
    assert "damaged" in text and "packet 5 is missing" in text and f"bytes {at:,} to" in text
    bad = json.loads(run("verify", path, "--json", code=2))
    assert bad["damage"][0]["offset"] == at and bad["damage"][0]["len"] == len(whole.packets[5]) and bad["gaps"][0]["first"] == 5
    run("verify", tmp_path / "none.stream", code=1)
    assert run.stderr.startswith("error: ") and "No such file" in run.stderr and len(run.stderr.splitlines()) == 1
    # Killed: whole as far as it goes.
    cut = tmp_path / "cut.stream"
    cut.write_bytes(b"".join(whole.packets[:-1]))
    assert "not ended" in run("verify", cut)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(100_000))
    run("verify", tmp_path / "noise", code=2)


def lying(whole, tmp_path, change):
    """The stream with its packets changed and packed again: every checksum is right."""
    s = Stream()
    change(s)
    path = tmp_path / "lying.stream"
    path.write_bytes(s.bytes())
    return run("verify", path, code=2)


def test_verify_believes_no_description(whole, tmp_path):
    part = Part(0, np.ones((2, 8), "<f4"), 1, tokens(0, 2))

    def body_too_short(s):
        s.tensor("a", [part], body=stream_writer.lz4_frame(bytes(60)))
        s.end()

    def account_short(s):
        s.tensor("a", [part])
        s.bytes_captured -= 4
        s.end()

    def account_uneven(s):
        s.tensor("a", [part])
        account = s.account() | {"dropped": {"full": {"tensors": 1, "bytes": 64}}}
        s.add("end", "llama-resource-end", metadata=json.dumps({"account": account}).encode())

    assert "cannot be decoded" in lying(whole, tmp_path, body_too_short)
    assert "the account says 60 bytes were captured, the packets before it hold 64" in re.sub(r"\s+", " ", lying(whole, tmp_path, account_short))
    assert "does not add up" in lying(whole, tmp_path, account_uneven)


def test_recover_copies_what_is_good_and_counts_what_is_not(whole, tmp_path):
    path, _ = damaged(whole, tmp_path)
    lost_name = next(n for n in whole.expected if whole.packets[5][6:].startswith(n.encode()))
    data = path.read_bytes()
    path.write_bytes(data[:-len(whole.packets[-1]) // 2] + bytes(5000))
    out = tmp_path / "whole.stream"
    run("recover", path, "--out", out)
    verdict = json.loads(run("verify", out, "--json"))
    assert verdict["verdict"] == "good" and verdict["clean_end"] is True
    lost = len(whole.bytes()) - len(whole.packets[-1])
    account = verdict["account"]
    damaged_amount = account["dropped"]["damaged"]
    assert account["seen"] == {k: account["captured"][k] + damaged_amount[k] + whole.account()["captured"][k] * 0 + {"tensors": 3, "bytes": 300}[k] for k in account["seen"]}
    assert account["captured"]["bytes"] + damaged_amount["bytes"] == whole.bytes_captured and lost > 0
    run("export", out, "--to", "safetensors", "--out", tmp_path / "x", "--dtype", "f32")
    found = load_file(tmp_path / "x")
    for name, (values, rows) in whole.arrays().items():
        if name != lost_name:
            assert_same(found[name], wanted_as(name, values, "f32"))
            assert_same(found[f"{name}.rows"], rows)
    assert len(found[lost_name]) < len(whole.arrays()[lost_name][0])
    # The damaged file itself exports the same, and says what it left out.
    run("export", path, "--to", "safetensors", "--out", tmp_path / "y", "--dtype", "f32")
    assert "damaged place" in run.stderr
    assert all((found[k] == v).all() or np.isnan(v).any() for k, v in load_file(tmp_path / "y").items())


# --- The older system's files ---

@pytest.mark.parametrize("compress", [bytes, lz4.frame.compress, zstandard.ZstdCompressor().compress], ids=["none", "lz4", "zstd"])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_streams_of_the_older_system_are_imported(tmp_path, compress, codec):
    rng = np.random.default_rng(7)
    packets = [(name, rng.standard_normal((n, 16)).astype("<f2")) for n in (5, 1) for name in ("model.layers.0", "model.layers.11.mlp", "")]
    old, new = tmp_path / "old.stream", tmp_path / "new.stream"
    old.write_bytes(stream_writer.older(packets, compress))
    assert "older system" in run("info", old)
    run("ls", old, code=1)
    assert "import" in run.stderr
    run("import", old, "--dtype", "f16", "--codec", codec, "--width", "16", "--out", new)
    assert json.loads(run("verify", new, "--json"))["verdict"] == "good"
    run("export", new, "--to", "safetensors", "--out", tmp_path / "x")
    found = load_file(tmp_path / "x")
    for name in ("model.layers.0", "model.layers.11.mlp", ""):
        mine = [v for n, v in packets if n == name]
        assert_same(found[name or "<root>"], np.concatenate(mine))
        rows = np.array([(step, -1, -1, -1) for step, v in enumerate(mine) for _ in v], np.int32)
        assert_same(found[f"{name or '<root>'}.rows"], rows)
    assert [t["layer"] for t in json.loads(run("ls", new, "--json"))] == [0, 11, None]
    run("import", old, "--dtype", "f16", "--width", "7", "--out", tmp_path / "z", code=1)
    assert "another --width" in run.stderr and not (tmp_path / "z").exists()
    run("import", new, "--dtype", "f16", "--out", tmp_path / "z", code=1)
    assert "needs no import" in run.stderr


# --- The documentation ---

def blocks():
    """The fenced blocks of docs/PYTHON.md: language, code, line."""
    text = (REPOSITORY / "docs" / "PYTHON.md").read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        yield match[1], match[2], text.count("\n", 0, match.start()) + 2


def test_what_the_python_page_says_works(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acts.stream").write_bytes(whole.bytes())
    names = {"__name__": "page"}
    ran = []
    for language, code, line in blocks():
        if language == "sh":
            for command in filter(None, code.splitlines()):
                words = command.split()
                if words[:2] == ["llama-resource", "stream"]:
                    run(*words[2:], folder=tmp_path)
                    ran.append(words[2])
                else:
                    assert words[0] in ("llama-resource", "pip"), f"line {line}: who runs `{command}`?"
        elif language == "python":
            exec(compile(code, f"docs/PYTHON.md:{line}", "exec"), names)
            ran.append(language)
    assert ran.count("export") >= 3 and ran.count("python") >= 5
    arrays = whole.arrays()
    assert_same(np.asarray(names["X"]), arrays["l_out-7"][0])
    assert_same(np.asarray(names["tokens"]), arrays["l_out-7"][1][:, 3])
