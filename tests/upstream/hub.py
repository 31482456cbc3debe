"""A Hugging Face cache of generated models under the names that llama.cpp's server tests ask for, so that nothing is downloaded.

Every model is one of tests/models/make_tiny.py, or made here of the same parts: an encoder with and without a classifier, a model with
fill-in-the-middle tokens, a vision projector, a LoRA adapter.
"""

import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

from common import TARGET, make_tiny
from gguf import GGMLQuantizationType as Type

HUB = TARGET / "upstream/hub"
COMMIT = "0" * 40
EMBD, FF = make_tiny.EMBD, make_tiny.FF
CONTEXT = 2048
IMAGE, PATCH, MERGE = 32, 8, 2  # pixels a side, pixels of a patch, patches that become one token, each way


def bert(model, classifier=False):
    """An encoder; with a classifier it ranks."""
    model.put(attention__head_count=make_tiny.HEADS, attention__layer_norm_epsilon=1e-5, feed_forward_length=FF, attention__causal=False,
              pooling_type=4 if classifier else 1)
    model.writer.add_token_type_count(2)
    model.writer.add_add_bos_token(True)
    model.writer.add_add_eos_token(True)
    model.writer.add_sep_token_id(2)
    model.add("token_embd.weight", EMBD, len(make_tiny.VOCABULARY))
    model.add("token_types.weight", EMBD, 2)
    model.add("position_embd.weight", EMBD, CONTEXT)
    model.add_norm("token_embd_norm", bias=True)
    if classifier:
        model.add_linear("cls", EMBD, EMBD, bias=True)
        model.add_linear("cls.output", EMBD, 1, bias=True)
    for block in model.blocks():
        for part in ("q", "k", "v", "output"):
            model.add_linear(f"{block}.attn_{part}", EMBD, EMBD, bias=True)
        model.add_norm(f"{block}.attn_output_norm", bias=True)
        model.add_linear(f"{block}.ffn_up", EMBD, FF, bias=True)
        model.add_linear(f"{block}.ffn_down", FF, EMBD, bias=True)
        model.add_norm(f"{block}.layer_output_norm", bias=True)


def infill(model):
    """Like llama, with tokens for filling a gap."""
    make_tiny.llama(model)
    for number, part in enumerate(("prefix", "suffix", "middle", "pad", "rep", "sep")):
        short = {"prefix": "pre", "suffix": "suf", "middle": "mid"}.get(part, part)
        model.writer.add_uint32(f"tokenizer.ggml.fim_{short}_token_id", 300 + number)


def write(path, name, arch, build, weight_type=Type.F16):
    model = make_tiny.TinyModel(name, arch, path, weight_type)
    build(model)
    model.finish()


def values(name, *ne):
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return (random.standard_normal(ne[::-1]) / np.sqrt(ne[0])).astype(np.float32)


def write_projector(path):
    """A vision tower of one block whose tokens have the width of the tiny gemma3."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    for key, value in {"image_size": IMAGE, "patch_size": PATCH, "embedding_length": EMBD, "feed_forward_length": FF, "block_count": 1,
                       "attention.head_count": make_tiny.HEADS, "projection_dim": EMBD, "projector.scale_factor": MERGE}.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    writer.add_bool("clip.use_gelu", True)
    shapes = {"v.patch_embd.weight": (PATCH, PATCH, 3, EMBD), "v.patch_embd.bias": (EMBD,), "v.position_embd.weight": (EMBD, (IMAGE // PATCH) ** 2),
              "v.post_ln.weight": (EMBD,), "v.post_ln.bias": (EMBD,), "mm.input_projection.weight": (EMBD, EMBD), "mm.soft_emb_norm.weight": (EMBD,)}
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        shapes |= {f"v.blk.0.{part}.weight": (EMBD, EMBD), f"v.blk.0.{part}.bias": (EMBD,)}
    for part in ("ln1", "ln2"):
        shapes |= {f"v.blk.0.{part}.weight": (EMBD,), f"v.blk.0.{part}.bias": (EMBD,)}
    shapes |= {"v.blk.0.ffn_up.weight": (EMBD, FF), "v.blk.0.ffn_up.bias": (FF,), "v.blk.0.ffn_down.weight": (FF, EMBD), "v.blk.0.ffn_down.bias": (EMBD,)}
    for name, ne in shapes.items():
        writer.add_tensor(name, values(name, *ne))
    finish(writer)


def write_adapter(path, arch, rank=4):
    """A LoRA adapter of the attention of every block."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(make_tiny.LAYERS):
        for part, outputs in (("q", make_tiny.Q_DIM), ("v", make_tiny.KV_DIM)):
            name = f"blk.{layer}.attn_{part}.weight"
            writer.add_tensor(f"{name}.lora_a", 4 * values(f"{name}.a", EMBD, rank))
            writer.add_tensor(f"{name}.lora_b", 4 * values(f"{name}.b", rank, outputs))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def picture(seed):
    """A PNG of colours that only the seed decides."""
    side = IMAGE
    pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Repository -> file in it -> what writes it.
FILES = {
    "ggml-org/test-model-stories260K": {"stories260K-F32.gguf": lambda path: write(path, "llama", "llama", make_tiny.llama)},
    "ggml-org/test-model-stories260K-infill": {"stories260K-infill-F32.gguf": lambda path: write(path, "llama-infill", "llama", infill)},
    "ggml-org/stories15M_MOE": {"stories15M_MOE-F16.gguf": lambda path: write(path, "qwen3moe", "qwen3moe", make_tiny.qwen3moe)},
    "ggml-org/tinygemma3-GGUF": {"tinygemma3-Q8_0.gguf": lambda path: write(path, "gemma3", "gemma3", make_tiny.gemma3, Type.BF16),
                                 "mmproj-tinygemma3.gguf": write_projector},
    "ggml-org/models": {"bert-bge-small/ggml-model-f16.gguf": lambda path: write(path, "bert", "bert", bert, Type.F32),
                        "jina-reranker-v1-tiny-en/ggml-model-f16.gguf": lambda path: write(path, "rank", "bert", lambda model: bert(model, True), Type.F32),
                        "tinyllamas/stories260K.gguf": lambda path: write(path, "llama", "llama", make_tiny.llama)},
}
# What the tests fetch by address, by the end of the address.
DOWNLOADS = {
    "moe_shakespeare15M.gguf": lambda path: write_adapter(path, "qwen3moe"),
    "stories15M-q4_0.gguf": lambda path: write(path, "llama-q4_0", "llama", make_tiny.llama, Type.Q4_0),
    "11_truck.png": lambda path: path.write_bytes(picture(11)),
    "91_cat.png": lambda path: path.write_bytes(picture(91)),
}


def fill(folder=HUB):
    """Writes the cache, once a generator; gives its path. A copy of it is what a run may change."""
    mark = folder / ".whole"
    key = f"{make_tiny.GENERATOR} {zlib.crc32(Path(__file__).read_bytes())}"
    if mark.exists() and mark.read_text() == key:
        return folder
    for repository, files in FILES.items():
        base = folder / "hub" / f"models--{repository.replace('/', '--')}"
        (base / "refs").mkdir(parents=True, exist_ok=True)
        (base / "refs/main").write_text(COMMIT)
        for name, build in files.items():
            path = base / "snapshots" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            build(path)
    (folder / "downloads").mkdir(exist_ok=True)
    for name, build in DOWNLOADS.items():
        build(folder / "downloads" / name)
    mark.write_text(key)
    return folder


if __name__ == "__main__":
    print(fill())
