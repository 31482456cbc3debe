#!/usr/bin/env python3
"""What other libraries make of the same activations as bench/codec.rs: size, speed of one core, errors by the same definitions.

    target/venv/bin/pip install numpy blosc2 pcodec zfpy pysz zipnn torch fpzip lz4    # any of them; what is not there is left out
    target/venv/bin/python bench/codecs.py [KIND ...]                                   # l_out and ffn_swiglu
    cargo bench --bench codec -- sample l_out ffn_swiglu                                # ours, on the same packets

Sixteen packets of about 1 MiB, spread evenly over a kind. Lossy libraries bound an absolute error, or one against the range of an array; what
that would do to rows of different size is not what anybody wants from them, so their rows are scaled to an RMS of 1 first (not timed,
four bytes a row counted), and the tolerance is what makes the L2 error of a row about 1e-3. `both` scales blocks of 64 instead, so that the
tolerance is the finer one of row L2 and block maximum, as `bounded` has it (two bytes a block counted).
"""

import importlib
import pathlib
import sys
import time

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "target" / "activations"
BOUND, BLOCK, PACKETS, PASSES = 1e-3, 64, 16, 3


def load(name):
    try:
        return importlib.import_module(name)
    except Exception:  # zipnn fails in its own ways where torch is missing
        return None


def row_scale(x):
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True))
    return np.maximum(rms, 1e-30).astype(np.float32), 4 * len(x)


def block_scale(x):
    """Tolerances that keep both bounds: uniform errors of half a step have an RMS of step / sqrt(12). Cut to 16 bits."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)))
    most = np.abs(padded).reshape(len(x), -1, BLOCK).max(axis=2)
    rows = np.sqrt(3 * np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True)) * BOUND * 0.97
    tolerance = np.maximum(np.minimum(rows, most * BOUND), 1e-30).astype(np.float32)
    tolerance = (tolerance.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.repeat(tolerance, BLOCK, axis=1)[:, : x.shape[1]], 2 * tolerance.size


def rivals():
    """(name, scale or None, encode, decode), as far as libraries are installed."""
    blosc2, pcodec, zfpy, pysz, zipnn, fpzip, lz4 = map(
        load, ["blosc2", "pcodec", "zfpy", "pysz", "zipnn", "fpzip", "lz4.frame"]
    )
    absent = []

    def have(module, name):
        if module is None:
            absent.append(name)
        return module is not None

    found = []
    if have(blosc2, "blosc2"):
        blosc2.set_nthreads(1)
        for name, filters in [
            ("blosc2 shuffle, zstd 1", [blosc2.Filter.SHUFFLE]),
            ("blosc2 bitshuffle, zstd 1", [blosc2.Filter.BITSHUFFLE]),
            ("blosc2 9 bits, bitshuffle", [blosc2.Filter.TRUNC_PREC, blosc2.Filter.BITSHUFFLE]),
        ]:
            params = {
                "codec": blosc2.Codec.ZSTD, "clevel": 1, "typesize": 4, "nthreads": 1,
                "filters": filters, "filters_meta": [9 if f == blosc2.Filter.TRUNC_PREC else 0 for f in filters],
            }
            found.append((
                name, None,
                lambda x, p=params: blosc2.compress2(x, **p),
                lambda c, x: np.frombuffer(blosc2.decompress2(c, nthreads=1), np.float32).reshape(x.shape),
            ))
    if have(pcodec, "pcodec"):
        from pcodec import ChunkConfig, standalone

        for level in (1, 4):
            found.append((
                f"pcodec level {level}", None,
                lambda x, n=level: standalone.simple_compress(x.ravel(), ChunkConfig(compression_level=n)),
                lambda c, x: standalone.simple_decompress(c).reshape(x.shape),
            ))
    if have(zipnn, "zipnn"):
        try:
            z = zipnn.ZipNN(input_format="byte", bytearray_dtype="float32", threads=1)
            z.compress(np.ones(1 << 18, np.float32).tobytes())
            found.append((
                "zipnn", None,
                lambda x: z.compress(x.tobytes()),
                lambda c, x: np.frombuffer(z.decompress(c), np.float32).reshape(x.shape),
            ))
        except Exception as error:  # old versions know no f32
            absent.append(f"zipnn ({type(error).__name__}: {error})")
    if have(fpzip, "fpzip"):
        found.append(("fpzip", None, lambda x: fpzip.compress(x, precision=0), lambda c, x: fpzip.decompress(c).reshape(x.shape)))
    if have(lz4, "lz4"):
        found.append((
            "f16 in LZ4 (older system)", None,
            lambda x: lz4.compress(np.clip(x, -65504, 65504).astype(np.float16).tobytes()),
            lambda c, x: np.frombuffer(lz4.decompress(c), np.float16).astype(np.float32).reshape(x.shape),
        ))
    if have(zfpy, "zfpy"):
        for name, options in [("zfp 2-D, tolerance 1.4e-2", {"tolerance": 1.4e-2}), ("zfp 2-D, 10 bits", {"rate": 10})]:
            found.append((
                name, row_scale,
                lambda x, o=options: zfpy.compress_numpy(x, write_header=True, **o),
                lambda c, x: zfpy.decompress_numpy(c),
            ))
    if have(pysz, "pysz"):
        for name, scale, algorithm, tolerance in [
            ("SZ3 without prediction", row_scale, pysz.szAlgorithm.NOPRED, BOUND * 3**0.5),
            ("SZ3 Lorenzo", row_scale, pysz.szAlgorithm.LORENZO_REG, BOUND * 3**0.5),
            ("SZ3, both bounds", block_scale, pysz.szAlgorithm.NOPRED, 1.0),
        ]:
            def encode(x, algorithm=algorithm, tolerance=tolerance):
                config = pysz.szConfig(x.shape)
                config.cmprAlgo = algorithm
                config.errorBoundMode = pysz.szErrorBoundMode.ABS
                config.absErrorBound = tolerance
                return pysz.sz.compress(x, config)[0]

            found.append((name, scale, encode, lambda c, x: pysz.sz.decompress(c, np.float32, x.shape)[0]))
    return found, absent


def errors(x, y):
    """Greatest row L2 and block errors, and the shares of rows and blocks within the bound."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    norms = np.maximum(np.linalg.norm(x, axis=1), 1e-300)
    row = np.linalg.norm(x - y, axis=1) / norms
    pad = ((0, 0), (0, -x.shape[1] % BLOCK))
    most = np.abs(np.pad(x, pad)).reshape(-1, BLOCK).max(axis=1)
    block = np.abs(np.pad(x - y, pad)).reshape(-1, BLOCK).max(axis=1) / np.maximum(most, 1e-300)
    return row, block


def best(function, *arguments):
    seconds = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        result = function(*arguments)
        seconds = min(seconds, time.perf_counter() - start)
    return result, seconds


def sample(kind, row_len):
    data = np.fromfile(FOLDER / f"{kind}.f32", np.float32).reshape(-1, row_len)
    rows = max((1 << 20) // (row_len * 4), 1)
    packets = range(len(data) // rows)
    step = max(len(packets) // PACKETS, 1)
    return [np.ascontiguousarray(data[i * rows : (i + 1) * rows]) for i in packets[::step][:PACKETS]]


def main():
    index = FOLDER / "index.tsv"
    if not index.exists():
        sys.exit(f"no activations in {FOLDER}: make them with bench/dump_activations.cpp")
    row_lens = {f[0]: int(f[1]) for f in (line.split("\t") for line in index.read_text().splitlines())}
    found, absent = rivals()
    for name in absent:
        print(f"not installed, left out: {name}")
    print(f"{'':28}       GB/s of f32  greatest error   % within 1e-3")
    print(f"{'':28} ratio  encode decode row L2  block    rows blocks")
    for kind in sys.argv[1:] or ["l_out", "ffn_swiglu"]:
        packets = sample(kind, row_lens[kind])
        print(kind)
        for name, scale, encode, decode in found:
            size = coded = encode_s = decode_s = 0
            rows, blocks = [], []
            for x in packets:
                factor, extra = scale(x) if scale else (np.float32(1), 0)
                scaled = np.ascontiguousarray(x / factor)
                code, seconds = best(encode, scaled)
                encode_s += seconds
                back, seconds = best(decode, code, scaled)
                decode_s += seconds
                size += x.nbytes
                coded += (code.nbytes if hasattr(code, "nbytes") else len(code)) + extra
                row, block = errors(x, back * factor)
                rows.append(row), blocks.append(block)
            row, block = np.concatenate(rows), np.concatenate(blocks)
            print(
                f"  {name:26} {size / coded:5.2f} {size / encode_s / 1e9:6.2f} {size / decode_s / 1e9:6.2f} "
                f"{row.max():8.1e} {block.max():8.1e} {100 * np.mean(row <= BOUND):5.1f} {100 * np.mean(block <= BOUND):5.1f}"
            )


if __name__ == "__main__":
    main()
