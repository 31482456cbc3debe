"""Activation streams made in Python from docs/STREAM-FORMAT.md alone: what the tools say about them is known beforehand.

Codecs: those that standard packages write (none, lz4, zstd, f16, bf16).
"""

import json
import struct

import lz4.frame
import numpy as np
import zstandard

END_MARK = b"LRS1"
TRAILER_MAGIC = 0x184D2A57
KINDS = {"header": 0, "tensor": 1, "tokens": 2, "account": 3, "checkpoint": 4, "index": 5, "end": 6}
DTYPES = ["f32", "f16", "bf16", "i32", "i64", "i16", "i8", "f64"]
CODECS = ["none", "lz4", "zstd", "f16", "bf16", "bounded", "fast"]
NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "i32": "<i4", "i64": "<i8", "i16": "<i2", "i8": "i1", "f64": "<f8"}


def _crc_table():
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        yield n


CRC_TABLE = list(_crc_table())


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit as the standard has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def signed(n):
    return varint(2 * n if n >= 0 else -2 * n - 1)


def text(s):
    data = s.encode()
    return varint(len(data)) + data


def packet(sequence, kind, name, body=b"", metadata=b""):
    """One packet with its trailer."""
    name = name.encode()
    content = bytes([1, KINDS[kind]]) + struct.pack("<Q", sequence) + metadata
    trailer_len = 8 + len(content) + 16
    data_len = len(body) + trailer_len
    out = struct.pack(">HI", len(name), data_len) + name + body
    out += struct.pack("<II", TRAILER_MAGIC, trailer_len - 8) + content
    out += struct.pack("<II", 6 + len(name) + data_len, trailer_len)
    return out + struct.pack("<I", crc32c(out)) + END_MARK


def shuffled(data, size):
    return np.frombuffer(data, np.uint8).reshape(-1, size).T.tobytes()


def bf16_bits(values):
    """float32 rounded to the nearest bfloat16, ties to even; the upper 16 bits."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bf16(bits):
    return (bits.astype("<u4") << 16).view("<f4")


def lz4_frame(data, **more):
    """As the format wants it: independent blocks, no checksums, no size."""
    return lz4.frame.compress(data, block_linked=False, store_size=False, **more)


def encode(codec, values, dtype):
    data = values.astype(NUMPY[dtype]).tobytes()
    if codec == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(shuffled(data, values.itemsize))
    if codec == "lz4":
        return lz4_frame(shuffled(data, values.itemsize))
    if codec == "f16":
        data = np.clip(values, -65504, 65504).astype("<f2").tobytes()
    if codec == "bf16":
        data = bf16_bits(values).tobytes()
    return lz4_frame(data)


class Part:
    """What one step gave: an array whose last axis is ne0, and its tokens' (sequence, position, token, request)."""

    def __init__(self, step, values, token_dim=1, rows=(), t_ns=0):
        self.step, self.values, self.token_dim, self.rows, self.t_ns = step, values, token_dim, list(rows), t_ns
        shape = values.shape[::-1]
        self.ne = list(shape) + [1] * (4 - len(shape))

    def labels(self):
        """(step, sequence, position, token) of each row of ne0 values."""
        n = int(np.prod(self.ne[1:]))
        stride = int(np.prod(self.ne[1:self.token_dim], dtype=int)) if self.token_dim else 1
        if not self.rows:
            return [(self.step, -1, -1, -1)] * n
        return [(self.step, *self.rows[r // stride % self.ne[self.token_dim]][:3]) for r in range(n)]


class Stream:
    """Gathers packets; `expected[name]` is what an export must give: list of (ne0, row, label)."""

    def __init__(self, **header):
        self.packets, self.expected, self.bytes_captured, self.tensors_captured = [], {}, 0, 0
        self.add("header", "llama-resource-stream", metadata=json.dumps({"format": "llama-resource-stream", "version": 1, **header}).encode())

    def add(self, kind, name, body=b"", metadata=b""):
        self.packets.append(packet(len(self.packets), kind, name, body, metadata))

    def tensor(self, name, parts, dtype="f32", codec="none", layer=None, op="ADD", component=9, slice=None, tensor=None, body=None, lossy=None):
        values = np.concatenate([p.values.reshape(-1) for p in parts])
        ne0 = parts[0].ne[0]
        meta = text(tensor or name) + text(op) + (varint(0) if layer is None else varint(2 * layer + 1))
        meta += bytes([component]) + varint(0) + bytes([DTYPES.index(dtype), CODECS.index(codec), 0]) + varint(ne0)
        meta += struct.pack("<fff", *(lossy or (0, 0, 0))) + varint(0)
        meta += bytes([0]) if slice is None else bytes([1]) + b"".join(map(varint, slice))
        meta += varint(len(parts)) + varint(ne0)
        for p in parts:
            meta += varint(1) + bytes([p.token_dim]) + b"".join(map(varint, p.ne[1:]))
        rows = self._rows(parts)
        meta += varint(len(rows)) + rows
        self.add("tensor", name, encode(codec, values, dtype) if body is None else body, meta)
        self.bytes_captured += values.size * int(NUMPY[dtype][-1])
        self.tensors_captured += len(parts)
        for p in parts:
            rows = p.values.reshape(-1, p.ne[0])
            self.expected.setdefault(name, []).extend(zip([p.ne[0]] * len(rows), rows, p.labels()))

    @staticmethod
    def _rows(parts):
        """Steps, times and rows as differences; every row spelled out against the one before, which is always allowed."""
        out, step, t_ns, last = b"", 0, 0, (0, -1, -1, 0)
        for p in parts:
            out += signed(p.step - step) + signed(p.t_ns - t_ns) + varint(len(p.rows))
            step, t_ns = p.step, p.t_ns
            for row in p.rows:
                seq, pos, token, request = row
                flags = 2 * (seq != last[0]) + 4 * (pos != last[1] + 1) + 8 * (request != last[3]) + 16 * (token == -1)
                out += bytes([flags])
                if flags & 2:
                    out += signed(seq - last[0])
                if flags & 4:
                    out += signed(pos - last[1] - 1)
                if flags & 8:
                    out += signed(request - last[3])
                if not flags & 16:
                    out += signed(token)
                last = row
        return out

    def account(self, skipped=None, dropped=None):
        captured = {"tensors": self.tensors_captured, "bytes": self.bytes_captured}
        lists = [skipped or {}, dropped or {}]
        seen = {k: captured[k] + sum(a[k] for reasons in lists for a in reasons.values()) for k in captured}
        return {"seen": seen, "captured": captured, "skipped": lists[0], "dropped": lists[1]}

    def checkpoint(self, **reasons):
        self.add("account", "llama-resource-account", metadata=json.dumps(self.account(**reasons)).encode())
        self.add("checkpoint", "llama-resource-checkpoint", metadata=json.dumps({"tokens": 1}).encode())

    def end(self, **reasons):
        end = {"account": self.account(**reasons), "packets": len(self.packets) + 1, "last_index": None}
        self.add("end", "llama-resource-end", metadata=json.dumps(end).encode())

    def bytes(self):
        return b"".join(self.packets)

    def arrays(self):
        """What an export must hold: name -> (values, rows), one array for each row length."""
        out = {}
        for name, rows in self.expected.items():
            widths = list(dict.fromkeys(width for width, _, _ in rows))
            for width in widths:
                mine = [(v, label) for w, v, label in rows if w == width]
                array = name if len(widths) == 1 else f"{name}.n{width}"
                out[array] = np.stack([v for v, _ in mine]), np.array([label for _, label in mine], np.int32)
        return out


def older(packets, compress):
    """A stream of the older system: (name, values) pairs, values as float16."""
    out = b""
    for name, values in packets:
        data = compress(values.astype("<f2").tobytes())
        out += struct.pack("!HI", len(name.encode()), len(data)) + name.encode() + data
    return out
