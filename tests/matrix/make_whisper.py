"""A tiny model in whisper.cpp's ggml format with random weights: `make_whisper.py OUT`. Standard library and numpy.

Multilingual, two layers each of 64 values: it recognises nothing, but computes all that whisper computes, and the same each time.
"""
import struct
import sys

import numpy as np

N_VOCAB, N_AUDIO_CTX, N_TEXT_CTX, N_STATE, N_HEAD, N_LAYER, N_MELS, F16 = 51865, 1500, 448, 64, 2, 2, 80, 1
N_FFT = 201  # bins of a window of 400 samples
NAMED = {220: b" ", 532: b" -", 705: b" '"}  # whisper.cpp looks these up to suppress them
WORDS = 50257  # those before the special tokens, which whisper.cpp names itself


def tensors(random):
    def small(*shape):
        return random.standard_normal(shape, np.float32) * 0.05

    def norm(name):
        yield f"{name}.weight", np.ones(N_STATE, np.float32)
        yield f"{name}.bias", small(N_STATE)

    def linear(name, n_out, n_in, bias=True):
        yield f"{name}.weight", small(n_out, n_in).astype(np.float16)
        if bias:
            yield f"{name}.bias", small(n_out)

    def attention(name):
        yield from norm(f"{name}_ln")
        for part in ("query", "key", "value", "out"):
            yield from linear(f"{name}.{part}", N_STATE, N_STATE, bias=part != "key")

    yield "encoder.positional_embedding", small(N_AUDIO_CTX, N_STATE)
    for name, n_in in (("encoder.conv1", N_MELS), ("encoder.conv2", N_STATE)):
        yield f"{name}.weight", small(N_STATE, n_in, 3).astype(np.float16)
        yield f"{name}.bias", small(N_STATE, 1)
    yield from norm("encoder.ln_post")
    yield "decoder.positional_embedding", small(N_TEXT_CTX, N_STATE)
    yield "decoder.token_embedding.weight", small(N_VOCAB, N_STATE).astype(np.float16)
    yield from norm("decoder.ln")
    for side in ("encoder", "decoder"):
        for layer in range(N_LAYER):
            block = f"{side}.blocks.{layer}"
            yield from attention(f"{block}.attn")
            if side == "decoder":
                yield from attention(f"{block}.cross_attn")
            yield from norm(f"{block}.mlp_ln")
            yield from linear(f"{block}.mlp.0", 4 * N_STATE, N_STATE)
            yield from linear(f"{block}.mlp.2", N_STATE, 4 * N_STATE)


def main(path):
    random = np.random.default_rng(1)
    with open(path, "wb") as f:
        f.write(struct.pack("<I", 0x67676D6C))
        f.write(struct.pack("<11i", N_VOCAB, N_AUDIO_CTX, N_STATE, N_HEAD, N_LAYER, N_TEXT_CTX, N_STATE, N_HEAD, N_LAYER, N_MELS, F16))
        f.write(struct.pack("<2i", N_MELS, N_FFT) + np.abs(random.standard_normal((N_MELS, N_FFT), np.float32)).tobytes())
        f.write(struct.pack("<i", WORDS))
        for token in range(WORDS):
            word = NAMED.get(token) or b" w%d" % token
            f.write(struct.pack("<i", len(word)) + word)
        for name, values in tensors(random):
            kind = int(values.dtype == np.float16)
            f.write(struct.pack("<3i", values.ndim, len(name), kind) + struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode())
            f.write(values.tobytes())


main(sys.argv[1])
