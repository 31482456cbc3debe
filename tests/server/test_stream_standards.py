"""Streams meet other people's tools: `lz4`, `zstandard`, a reader written from the document, and the older system's own code.

The golden streams are tied to our writer and reader by tests/stream_format.rs, byte for byte. `UPDATE=1` rewrites those of the older system.
"""

import io
import os
import re
import struct
import sys

import lz4.frame
import numpy as np
import pytest
import zstandard

import older
from capture import Stream, capturing, resource
from server import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "stream"))
import reader  # noqa: E402 (needs the path above)

GOLDEN = REPOSITORY / "tests" / "golden" / "stream"

# (step, t_ns, rows) as tests/stream/sample.rs has them; a row is (sequence, position, token, request).
STEPS = [
    (0, 1_000_000, [(0, 0, 1, 1), (0, 1, 49_151, 1), (0, 2, -1, 1)]),
    (1, 11_000_000, [(0, 3, 17, 1), (1, 0, 42, 2)]),
    (2, 21_500_000, [(0, 4, 18, 1), (1, 1, 43, 2)]),
]


@pytest.fixture(scope="module")
def golden():
    """Packets of the golden stream, read by the independent reader."""
    return reader.read(GOLDEN / "v1.stream")


@pytest.fixture(scope="module")
def older_system():
    """The older system's modules; PyTorch is a stand-in, see older.py."""
    return older.load()


def tensors(golden, name):
    return [p for p in golden if p.kind == "tensor" and p.name == name]


def parts(packet):
    return [(p["step"], p["t_ns"], p["rows"]) for p in packet.meta["parts"]]


def test_an_independent_reader_finds_every_packet(golden):
    kinds = "header tensor tensor tensor tensor tensor tokens account checkpoint index header tensor index end".split()
    assert [p.kind for p in golden] == kinds
    assert [p.sequence for p in golden] == list(range(len(golden)))
    assert golden[0].meta["format"] == "llama-resource-stream" and golden[0].meta["version"] == 1
    assert golden[10].meta["resumed"] is True
    assert golden[8].meta["tokens"] == 3
    assert golden[7].meta["seen"] == {"tensors": 13, "bytes": 768} and golden[7].meta["skipped"]["view"] == {"tensors": 2, "bytes": 64}


def test_an_independent_reader_gets_the_values(golden):
    expected = (np.arange(56, dtype="<f4") - 20) * 0.25
    expected.view("<u4")[5:9] = [0x7F800000, 0x80000000, 0x7FC00001, 1]
    first, resumed = tensors(golden, "l_out-0")
    assert first.values().tobytes() == expected.tobytes()
    assert resumed.values().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    (query,) = tensors(golden, "Qcur-3.MUL_MAT")
    assert query.values().tobytes() == (np.arange(70, dtype="<f4") * -1.5).tobytes()
    (experts,) = tensors(golden, "ffn_moe_topk-11")
    assert experts.values().dtype == np.int32 and experts.values().tolist() == [i * 5 % 8 - 1 for i in range(14)]
    (norm,) = tensors(golden, "norm")
    assert norm.values().tolist() == [i * 0.125 - 1 for i in range(24)]
    (scores,) = tensors(golden, "KQ-0")
    assert scores.values().tolist() == [2.0 * i for i in range(12)]


def test_an_independent_reader_gets_shapes_and_rows(golden):
    (query,) = tensors(golden, "Qcur-3.MUL_MAT")
    assert parts(query) == STEPS and parts(tensors(golden, "l_out-0")[0]) == STEPS
    assert [(p["ne"], p["token_dim"]) for p in query.meta["parts"]] == [([5, 2, 3, 1], 2), ([5, 2, 2, 1], 2), ([5, 2, 2, 1], 2)]
    want = {"tensor": "Qcur-3", "op": "MUL_MAT", "layer": 3, "component": 1, "occurrence": 0, "dtype": "<f4", "codec": "zstd"}
    want |= {"route": "retain", "row_len": 10, "slice": None, "saturated": 0, "error_bound": 0.0}
    assert {k: query.meta[k] for k in want} == want
    (norm,) = tensors(golden, "norm")
    assert parts(norm) == [(9, 77, [(5, 100, 7, 0), (5, 101, 8, 0), (-1, -1, -1, 0)])]
    assert norm.meta["layer"] is None and norm.meta["slice"] == (0, 2, 16) and norm.meta["route"] == "callback"
    assert (norm.meta["row_l2"], norm.meta["block_max"]) == (np.float32(0.0001), np.float32(0.0002)) and norm.meta["saturated"] == 1
    (experts,) = tensors(golden, "ffn_moe_topk-11")
    assert (experts.meta["layer"], experts.meta["component"], experts.meta["occurrence"]) == (11, 4, 2)
    (scores,) = tensors(golden, "KQ-0")
    assert scores.meta["parts"] == [{"ne": [3, 2, 2, 1], "token_dim": 0, "step": 2, "t_ns": 22_000_000, "rows": []}]
    assert tensors(golden, "l_out-0")[1].meta["parts"][0]["rows"] == [(0, 5, 19, 1)]


def test_an_independent_reader_gets_tokens_and_index(golden):
    assert golden[6].meta["tokens"] == [
        (0, 3, 17, 1, 0.75, 10_900_000),
        (1, 1, 43, 2, None, 21_000_000),
        (1, 2, 151_000, 2, 0.125, 20_900_000),
    ]
    end = golden[-1]
    last = next(p for p in golden if p.offset == end.meta["last_index"])
    first = next(p for p in golden if p.offset == last.meta["previous"])
    assert first.meta["previous"] is None and first.meta["first"] == 0
    listed = []
    for index in (first, last):
        offset = index.meta["first"]
        for length, kind, name in index.meta["entries"]:
            listed.append((offset, kind, name))
            offset += length
        assert offset == index.offset
    assert listed == [(p.offset, p.kind, p.name) for p in golden if p.kind not in ("index", "end")]


def raw_data(packet):
    """The packet's data as a tool sees them that knows nothing of trailers."""
    with open(GOLDEN / "v1.stream", "rb") as file:
        file.seek(packet.offset)
        name_len, data_len = struct.unpack(">HI", file.read(6))
        file.seek(name_len, io.SEEK_CUR)
        return file.read(data_len)


def test_lz4_and_zstd_decoders_step_over_the_trailer(golden):
    (norm,) = tensors(golden, "norm")
    assert np.frombuffer(lz4.frame.decompress(raw_data(norm)), "<f2").tolist() == [i * 0.125 - 1 for i in range(24)]
    with lz4.frame.open(io.BytesIO(raw_data(norm))) as file:
        assert np.frombuffer(file.read(), "<f2").size == 24
    (query,) = tensors(golden, "Qcur-3.MUL_MAT")
    planes = zstandard.ZstdDecompressor().decompress(raw_data(query))
    assert np.frombuffer(planes, "u1").reshape(4, -1).T.copy().view("<f4").ravel().tolist() == [-1.5 * i for i in range(70)]


def test_the_older_system_reads_our_f16_packets(golden, older_system):
    load = older_system["analysis.visualization"].load_stream_packets
    found = load(str(GOLDEN / "v1.stream"), "lz4")
    # Packets without values are errors to it, and left out; so is Zstandard where LZ4 was asked for.
    assert [p["layer_name"] for p in found] == ["l_out-0", "ffn_moe_topk-11", "norm", "KQ-0", "l_out-0"]
    assert [p["packet_index"] for p in found] == [1, 3, 4, 5, 11]
    values = np.array([i * 0.125 - 1 for i in range(24)])
    (norm,) = [p for p in found if p["layer_name"] == "norm"]
    assert norm["uncompressed_bytes"] == 48
    assert norm["l2_norm"] == pytest.approx(np.linalg.norm(values), rel=1e-6)
    assert norm["mean"] == pytest.approx(values.mean(), rel=1e-6) and norm["std"] == pytest.approx(values.std(), rel=1e-6)
    assert (norm["min"], norm["max"], norm["sparsity"]) == (-1, 1.875, pytest.approx(1 / 24))


def test_the_older_system_counts_our_packets(golden, older_system):
    framework = older_system["core.framework"].InstrumentationFramework
    config = type("Config", (), {"compression_algorithm": "lz4"})
    found = framework.analyze_activations(type("Self", (), {"config": config}), str(GOLDEN / "v1.stream"))
    assert found["packets"] == len(golden)
    counts = {name: stats["count"] for name, stats in found["per_layer"].items()}
    assert counts["norm"] == 1 and counts["l_out-0"] == 2 and counts["llama-resource-stream"] == 2


@pytest.mark.parametrize("algorithm", ["lz4", "zstd", "none"])
def test_the_golden_streams_of_the_older_system_are_what_it_writes(older_system, algorithm):
    tensors = [
        ("model.layers.0", (np.arange(24, dtype="<f4") * 0.25 - 3).reshape(4, 6)),
        ("", np.arange(10, dtype="<f4") * 1000),
    ]
    written = older.write(older_system, algorithm, tensors)
    path = GOLDEN / f"older-{algorithm}.stream"
    if os.environ.get("UPDATE"):
        path.write_bytes(written)
    # Compared by content: another release of a compressor may pack other bytes.
    assert contents(path.read_bytes(), algorithm) == contents(written, algorithm)
    found = older_system["analysis.visualization"].load_stream_packets(str(path), algorithm)
    assert [p["layer_name"] for p in found] == ["model.layers.0", "<root>"]


def contents(data, algorithm):
    unpack = {"lz4": lz4.frame.decompress, "zstd": zstandard.ZstdDecompressor().decompress, "none": bytes}[algorithm]
    found = []
    while data:
        name_len, data_len = struct.unpack(">HI", data[:6])
        name, body, data = data[6 : 6 + name_len], data[6 + name_len : 6 + name_len + data_len], data[6 + name_len + data_len :]
        found.append((name, unpack(body)))
    return found


def test_the_worked_example_of_the_document_is_in_the_golden_stream(golden):
    text = (REPOSITORY / "docs" / "STREAM-FORMAT.md").read_text()
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} )+)", text, re.MULTILINE)
    (norm,) = tensors(golden, "norm")
    offset, data = norm.offset, (GOLDEN / "v1.stream").read_bytes()
    for at, shown in lines:
        shown = bytes.fromhex(shown)
        assert int(at, 16) == offset, at
        assert data[offset : offset + len(shown)] == shown, at
        offset += len(shown)
    assert offset == norm.offset + norm.meta["packet_len"]


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("algorithm", ["lz4", "zstd", "none"])
def test_a_stream_of_the_older_system_becomes_one_of_ours_that_others_read(tmp_path, older_system, algorithm, codec):
    # The older system narrows to f16, so the truth is what numpy makes of that.
    values = np.random.default_rng(4).normal(0, 3, (40, 96)).astype("<f4")
    old, new = tmp_path / "old.stream", tmp_path / "new.stream"
    old.write_bytes(older.write(older_system, algorithm, [("model.layers.0", values), ("model.layers.1", values[:7] * 2)]))
    resource("stream", "import", old, "--dtype", "f16", "--width", 96, "--codec", codec, "--out", new)
    first, second = [p for p in reader.read(new) if p.kind == "tensor"]
    assert (first.name, second.name) == ("model.layers.0", "model.layers.1")
    assert first.meta["codec"] == codec and first.meta["route"] == "imported"
    assert first.values().tobytes() == values.astype("<f2").tobytes()
    assert second.values().tobytes() == (values[:7] * 2).astype("<f2").tobytes()
    assert first.meta["parts"][0]["ne"] == [96, 40, 1, 1]


def test_the_older_system_reads_a_capture_of_a_server(tmp_path, older_system, smollm2):
    streams = {codec: tmp_path / f"{codec}.stream" for codec in ("none", "f16")}
    for codec, path in streams.items():
        with capturing(smollm2, path, ["-c", "256"], tensors="residual", codec=codec) as server:
            server.post("/completion", {"prompt": "The sea is", "n_predict": 6, "temperature": 0, "seed": 1})
    # The truth: the same request, captured exactly, read without any code of ours and narrowed by numpy.
    exact = {name: np.concatenate([p.values.ravel() for p in parts]) for name, parts in Stream(streams["none"]).parts.items()}
    found = older_system["analysis.visualization"].load_stream_packets(str(streams["f16"]), "lz4")
    assert {p["layer_name"] for p in found} == set(exact) and len(exact) >= 30
    for name, values in exact.items():
        narrow = values.astype("<f2").astype("<f8")
        packets = [p for p in found if p["layer_name"] == name]
        assert sum(p["uncompressed_bytes"] for p in packets) == 2 * narrow.size, name
        assert (min(p["min"] for p in packets), max(p["max"] for p in packets)) == (narrow.min(), narrow.max()), name
        norm = np.sqrt(sum(p["l2_norm"] ** 2 for p in packets))
        assert norm == pytest.approx(np.linalg.norm(narrow), rel=1e-5), name
        mean = sum(p["mean"] * p["uncompressed_bytes"] for p in packets) / (2 * narrow.size)
        assert mean == pytest.approx(narrow.mean(), rel=1e-4, abs=1e-5), name
