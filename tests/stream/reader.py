"""A reader of activation streams written from docs/STREAM-FORMAT.md alone: standard library, numpy, lz4, zstandard; no code of ours.

It reads the codecs that general tools can decode: none, lz4, zstd, f16, bf16.
"""

import json
import struct
from dataclasses import dataclass, field

import lz4.frame
import numpy as np
import zstandard

KINDS = ["header", "tensor", "tokens", "account", "checkpoint", "index", "end"]
DTYPES = ["<f4", "<f2", "bf16", "<i4", "<i8", "<i2", "<i1", "<f8"]
CODECS = ["none", "lz4", "zstd", "f16", "bf16", "bounded", "fast"]
ROUTES = ["retain", "callback", "imported"]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _table():
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        yield n


_TABLE = list(_table())


class Metadata:
    """Bytes being read from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data), "metadata end early"
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self):
        return self.take(1)[0]

    def f32(self):
        return struct.unpack("<f", self.take(4))[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self):
        n = self.varint()
        return -(n + 1) // 2 if n & 1 else n // 2

    def text(self):
        return self.take(self.varint()).decode()


@dataclass
class Packet:
    offset: int
    name: str
    kind: str
    sequence: int
    body: bytes
    meta: dict = field(default_factory=dict)

    def values(self):
        """The values in one dimension, in the order of the parts."""
        dtype, codec = self.meta["dtype"], self.meta["codec"]
        if codec == "none":
            return np.frombuffer(lz4.frame.decompress(self.body), dtype)
        if codec == "f16":
            return np.frombuffer(lz4.frame.decompress(self.body), "<f2").astype("<f4")
        if codec == "bf16":
            narrow = np.frombuffer(lz4.frame.decompress(self.body), "<u2")
            return (narrow.astype("<u4") << 16).view("<f4")
        if codec == "lz4":
            planes = lz4.frame.decompress(self.body)
        elif codec == "zstd":
            planes = zstandard.ZstdDecompressor().decompress(self.body)
        else:
            raise ValueError(f"{codec} needs a decoder of its own")
        size = np.dtype(dtype).itemsize
        return np.frombuffer(planes, np.uint8).reshape(size, -1).T.copy().view(dtype).ravel()


def read(path, checksums=True):
    """Every packet of an undamaged stream. Checksums take most of the time, and may be left to another test."""
    with open(path, "rb") as file:
        data = file.read()
    offset, packets = 0, []
    while offset < len(data):
        packet = _packet(data, offset, checksums)
        packets.append(packet)
        offset += packet.meta["packet_len"]
    return packets


def _packet(data, offset, checksums):
    name_len, data_len = struct.unpack_from(">HI", data, offset)
    packet = data[offset : offset + 6 + name_len + data_len]
    packet_len, trailer_len, crc, mark = struct.unpack("<III4s", packet[-16:])
    assert mark == b"LRS1" and packet_len == len(packet) == 6 + name_len + data_len
    assert not checksums or crc == crc32c(packet[:-8])
    trailer = packet[-trailer_len:]
    magic, size = struct.unpack_from("<II", trailer)
    assert magic == 0x184D2A57 and size == trailer_len - 8
    version, kind, sequence = struct.unpack_from("<BBQ", trailer, 8)
    assert version == 1
    name = packet[6 : 6 + name_len].decode()
    found = Packet(offset, name, KINDS[kind], sequence, packet[6 + name_len : -trailer_len])
    meta = Metadata(trailer[18:-16])
    found.meta = {"tensor": _tensor, "tokens": _tokens, "index": _index}.get(found.kind, _json)(meta)
    found.meta["packet_len"] = packet_len
    return found


def _json(meta):
    return json.loads(meta.data)


def _tensor(meta):
    found = {"tensor": meta.text(), "op": meta.text()}
    layer = meta.varint()
    found["layer"] = None if layer == 0 else _unzigzag(layer - 1)
    found["component"] = meta.u8()
    found["occurrence"] = meta.varint()
    found["dtype"], found["codec"], found["route"] = DTYPES[meta.u8()], CODECS[meta.u8()], ROUTES[meta.u8()]
    found["row_len"] = meta.varint()
    found["error_bound"], found["row_l2"], found["block_max"] = meta.f32(), meta.f32(), meta.f32()
    found["saturated"] = meta.varint()
    found["slice"] = (meta.varint(), meta.varint(), meta.varint()) if meta.u8() else None
    n_parts, ne0 = meta.varint(), meta.varint()
    shapes = []
    while len(shapes) < n_parts:
        run, token_dim = meta.varint(), meta.u8()
        shapes += [{"ne": [ne0, meta.varint(), meta.varint(), meta.varint()], "token_dim": token_dim}] * run
    rows_len = meta.varint()
    rows = Metadata(meta.take(rows_len))
    found["parts"] = [dict(shape, **part) for shape, part in zip(shapes, _parts(rows, n_parts))]
    assert rows.at == rows_len
    return found


def _parts(meta, n):
    step = t_ns = 0
    last, before = (0, -1, -1, 0), []
    for _ in range(n):
        step += meta.signed()
        t_ns += meta.signed()
        rows = []
        for i in range(meta.varint()):
            flags = meta.u8()
            assert flags < 32
            seq, pos, _token, request = before[i] if flags & 1 else last
            pos += 1
            if flags & 2:
                seq += meta.signed()
            if flags & 4:
                pos += meta.signed()
            if flags & 8:
                request += meta.signed()
            last = (seq, pos, -1 if flags & 16 else meta.signed(), request)
            rows.append(last)
        before = rows
        yield {"step": step, "t_ns": t_ns, "rows": rows}


def _tokens(meta):
    seq, pos, request, t_ns, tokens = 0, -1, 0, 0, []
    for _ in range(meta.varint()):
        flags = meta.u8()
        assert flags < 16
        seq += meta.signed() if flags & 1 else 0
        pos += 1 + (meta.signed() if flags & 2 else 0)
        request += meta.signed() if flags & 4 else 0
        token = meta.signed()
        probability = meta.f32() if flags & 8 else None
        t_ns += meta.signed()
        tokens.append((seq, pos, token, request, probability, t_ns))
    return {"tokens": tokens}


def _index(meta):
    first, previous = meta.varint(), meta.varint() - 1
    names = [meta.text() for _ in range(meta.varint())]
    entries = []
    for _ in range(meta.varint()):
        length, kind = meta.varint(), meta.u8()
        entries.append((length, KINDS[kind], names[meta.varint()]))
    return {"first": first, "previous": previous if previous >= 0 else None, "entries": entries}


def _unzigzag(n):
    return -(n + 1) // 2 if n & 1 else n // 2
