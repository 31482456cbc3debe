#!/usr/bin/env python3
"""Write a GGUF model of a real size and of made-up weights: what a GPU of the size that people use spends on a token.

    python make_large.py OUT.gguf                 8 thousand million parameters, shaped like Llama 3 8B, Q4_0: 4.3 GB

Time, memory and energy of a token depend on shapes and types, not on values; the text is gibberish. Every tensor of a kind is the same
few random blocks over and over, so that writing takes seconds.
"""

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

import make_tiny

EMBD, HEADS, KV_HEADS, HEAD_DIM, FF, LAYERS, VOCAB = 4096, 32, 8, 128, 14336, 32, 32768
BLOCK, BLOCK_BYTES = 32, 18  # of Q4_0: a scale (f16), then 32 values of 4 bits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    arguments = parser.parse_args()
    writer = gguf.GGUFWriter(arguments.out, "llama")
    keys = {"context_length": 8192, "embedding_length": EMBD, "block_count": arguments.layers, "feed_forward_length": FF, "vocab_size": VOCAB,
            "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM}
    for key, value in keys.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    pieces = make_tiny.VOCABULARY + [(f"<{i}>", -1e6, gguf.TokenType.NORMAL) for i in range(VOCAB - len(make_tiny.VOCABULARY))]
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    for add, token in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token)

    random = np.random.RandomState(0)

    def matrix(name, inputs, outputs):
        blocks = inputs // BLOCK * min(outputs, 512)
        data = random.randint(0, 256, (blocks, BLOCK_BYTES), dtype=np.uint8)
        data[:, :2] = np.frombuffer(np.float16(0.2 / np.sqrt(inputs)).tobytes(), np.uint8)
        rows = data.reshape(min(outputs, 512), inputs // BLOCK * BLOCK_BYTES)
        writer.add_tensor(name, np.tile(rows, (outputs // len(rows), 1)), raw_dtype=Type.Q4_0)

    def norm(name):
        writer.add_tensor(name, np.ones(EMBD, np.float32))

    matrix("token_embd.weight", EMBD, VOCAB)
    norm("output_norm.weight")
    matrix("output.weight", EMBD, VOCAB)
    for block in (f"blk.{layer}" for layer in range(arguments.layers)):
        norm(f"{block}.attn_norm.weight")
        for part, outputs in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM), ("output", EMBD)):
            matrix(f"{block}.attn_{part}.weight", EMBD, outputs)
        norm(f"{block}.ffn_norm.weight")
        for part, inputs, outputs in (("gate", EMBD, FF), ("up", EMBD, FF), ("down", FF, EMBD)):
            matrix(f"{block}.ffn_{part}.weight", inputs, outputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{arguments.out}  {arguments.out.stat().st_size / 1e9:.2f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
