#!/usr/bin/env python3
"""Write tiny random GGUF models of many architectures, so that the library can be tried on every kind of compute graph.

    python make_tiny.py OUT_DIR [--only NAME ...]

A real checkpoint of each architecture would be gigabytes; what the library sees - graph shape, tensor names, operations,
cache kind - depends only on hyperparameters and tensor names, so random weights of width 64 serve as well. The files are
the same bytes on every run (NumPy's frozen `RandomState` stream, seeded by model and tensor name), so a failing case can
be reproduced from its name alone. They carry random weights: their text is gibberish, by design.
"""

import argparse
import hashlib
import os
import re
import zlib
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

# The generator is its own version: any edit of this file makes the models again.
GENERATOR = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
GENERATOR_KEY = "tiny.generator"

EMBD, HEADS, KV_HEADS, HEAD_DIM, FF, LAYERS = 64, 4, 2, 16, 128, 3
Q_DIM, KV_DIM = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
EXPERTS, EXPERTS_USED, EXPERT_FF = 4, 2, 64
CONV, STATE, INNER = 4, 16, 2 * EMBD
SLIDING_WINDOW = 32  # shorter than the tests' prompts, so that the window really slides

COMMON_WORDS = ("the and of to in is that for it as was with be by on not he this are or his from at which but have an they you "
                "were her all their one we when there can more would who if what time water people light small house").split()

# Parameters that llama.cpp's operators take only as float32, whatever the type of the model is.
ALWAYS_F32 = re.compile(r"norm|bias|sinks|ssm_a$|ssm_d$|conv1d|shortconv\.conv|ffn_gate_inp|lerp|time_mix_[wav]0|time_mix_[kr]_[ka]")


def vocabulary():
    """A SentencePiece vocabulary of a few hundred pieces: (text, score, type), in id order.

    Byte pieces make any text encodable. SentencePiece merges only through pieces that exist, hence every prefix of a word.
    """
    pieces = [("<unk>", 0.0, gguf.TokenType.UNKNOWN), ("<s>", 0.0, gguf.TokenType.CONTROL), ("</s>", 0.0, gguf.TokenType.CONTROL),
              ("<|endoftext|>", 0.0, gguf.TokenType.CONTROL)]  # llama.cpp looks the last one up in every phi-3
    pieces += [(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE) for byte in range(256)]
    texts = dict.fromkeys(["▁"] + ["▁" + word[:end] for word in COMMON_WORDS for end in range(1, len(word) + 1)]
                          + [chr(code) for code in range(0x21, 0x7F)])
    pieces += [(text, -float(rank), gguf.TokenType.NORMAL) for rank, text in enumerate(texts)]
    return pieces


VOCABULARY = vocabulary()
UNPRINTABLE = sum(kind != gguf.TokenType.NORMAL for _, _, kind in VOCABULARY)  # they come first


class TinyModel:
    """One GGUF file under construction: `put` for hyperparameters, `add` for tensors (dimensions in ggml's order)."""

    def __init__(self, name, arch, path, weight_type):
        self.name, self.arch, self.weight_type = name, arch, weight_type
        self.tied = False
        self.writer = gguf.GGUFWriter(path, arch)
        self.writer.add_name(f"tiny-{name}")
        self.writer.add_string(GENERATOR_KEY, GENERATOR)
        self.writer.add_tokenizer_model("llama")
        self.writer.add_tokenizer_pre("default")
        self.writer.add_token_list([text for text, _, _ in VOCABULARY])
        self.writer.add_token_scores([score for _, score, _ in VOCABULARY])
        self.writer.add_token_types([kind for _, _, kind in VOCABULARY])
        self.writer.add_unk_token_id(0)
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.put(vocab_size=len(VOCABULARY), context_length=2048, embedding_length=EMBD, block_count=LAYERS,
                 attention__layer_norm_rms_epsilon=1e-5)

    def put(self, **values):
        """Hyperparameters `ARCH.KEY`; `__` in a keyword stands for the dot."""
        for key, value in values.items():
            key = f"{self.arch}.{key.replace('__', '.')}"
            add = {bool: self.writer.add_bool, int: self.writer.add_uint32, float: self.writer.add_float32, list: self.writer.add_array}
            add[type(value)](key, value)

    def put_attention(self, kv_heads=KV_HEADS, **more):
        self.put(attention__head_count=HEADS, attention__head_count_kv=kv_heads, attention__key_length=HEAD_DIM,
                 attention__value_length=HEAD_DIM, rope__dimension_count=HEAD_DIM, rope__freq_base=10000.0, **more)

    def put_ssm(self, **more):
        self.put(ssm__conv_kernel=CONV, ssm__inner_size=INNER, ssm__state_size=STATE, **more)

    def add(self, name, *ne):
        """A random tensor whose scale follows from its role, so that activations neither vanish nor explode."""
        random = np.random.RandomState(zlib.crc32(f"{self.name}/{name}".encode()))
        values = random.standard_normal(ne[::-1]).astype(np.float32)
        if name.endswith("ssm_a"):
            values = -0.2 - np.abs(values)  # a state must decay
        elif name.endswith("ssm_d") or re.search(r"norm(_2)?(\.weight)?$|time_mix_ln\.weight", name):
            values = 1 + 0.1 * values
            if self.tied and name == "output_norm.weight":
                values *= 5  # stands in for the larger scale of an output matrix of its own
        elif name.endswith("ssm_dt.bias"):
            values = -2 + 0.5 * values
        elif name.endswith("bias") or len(ne) == 1:
            values *= 0.1
        elif name == "token_embd.weight":
            values *= 0.1  # below the layers' contribution, or every token would be followed by itself
            values[:UNPRINTABLE] *= 0.01  # matters where the output shares this tensor, as below
        elif name == "output.weight":
            values *= 4 / np.sqrt(ne[0])  # logits far enough apart for a clear winner
            values[:UNPRINTABLE] *= 0.01  # control and byte pieces never win: no early stop, no broken UTF-8
        else:
            gain = 2.0 if ".attn_" in name else 1.4  # pointed attention, so that text depends on more than the last token
            values *= gain / np.sqrt(ne[0])
        kind = Type.F32 if len(ne) == 1 or ALWAYS_F32.search(name) else self.weight_type
        self.writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def add_ends(self, norm="output_norm", norm_bias=False, tied=False):
        """Token embedding, final norm and output matrix, which is the embedding again where `tied`."""
        self.tied = tied
        self.add("token_embd.weight", EMBD, len(VOCABULARY))
        self.add_norm(norm, EMBD, norm_bias)
        if not tied:
            self.add("output.weight", EMBD, len(VOCABULARY))

    def add_norm(self, name, size=EMBD, bias=False):
        self.add(f"{name}.weight", size)
        if bias:
            self.add(f"{name}.bias", size)

    def add_linear(self, name, inputs, outputs, bias=False):
        self.add(f"{name}.weight", inputs, outputs)
        if bias:
            self.add(f"{name}.bias", outputs)

    def add_attention(self, block, qkv_bias=False, out_bias=False, qk_norm=False, fused=False, q_dim=Q_DIM):
        self.add_norm(f"{block}.attn_norm")
        if fused:
            self.add_linear(f"{block}.attn_qkv", EMBD, q_dim + 2 * KV_DIM, qkv_bias)
        else:
            for part, outputs in (("q", q_dim), ("k", KV_DIM), ("v", KV_DIM)):
                self.add_linear(f"{block}.attn_{part}", EMBD, outputs, qkv_bias)
        if qk_norm:
            self.add_norm(f"{block}.attn_q_norm", HEAD_DIM)
            self.add_norm(f"{block}.attn_k_norm", HEAD_DIM)
        self.add_linear(f"{block}.attn_output", Q_DIM, EMBD, out_bias)

    def add_gated_mlp(self, block, suffix="", size=FF):
        for part, inputs, outputs in (("gate", EMBD, size), ("up", EMBD, size), ("down", size, EMBD)):
            self.add(f"{block}.ffn_{part}{suffix}.weight", inputs, outputs)

    def add_experts(self, block, bias=False, size=EXPERT_FF):
        self.add_linear(f"{block}.ffn_gate_inp", EMBD, EXPERTS, bias)
        for part, inputs, outputs in (("gate", EMBD, size), ("up", EMBD, size), ("down", size, EMBD)):
            self.add(f"{block}.ffn_{part}_exps.weight", inputs, outputs, EXPERTS)
            if bias:
                self.add(f"{block}.ffn_{part}_exps.bias", outputs, EXPERTS)

    def add_mamba2(self, block, heads=4, groups=1):
        channels = INNER + 2 * groups * STATE
        self.add(f"{block}.ssm_in.weight", EMBD, INNER + channels + heads)
        self.add(f"{block}.ssm_conv1d.weight", CONV, channels)
        self.add(f"{block}.ssm_conv1d.bias", channels)
        self.add(f"{block}.ssm_dt.bias", heads)
        self.add(f"{block}.ssm_a", 1, heads)
        self.add(f"{block}.ssm_d", 1, heads)
        self.add(f"{block}.ssm_norm.weight", INNER // groups, groups)
        self.add(f"{block}.ssm_out.weight", INNER, EMBD)

    def blocks(self):
        return [f"blk.{layer}" for layer in range(LAYERS)]

    def finish(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


# --- Architectures. Keys and tensors follow llama.cpp/src/models/*.cpp (load_arch_hparams, load_arch_tensors). ---


def llama(model):
    model.put_attention(feed_forward_length=FF)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block)
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)


def qwen2(model):
    """Like llama, with biases on q, k and v."""
    model.put_attention(feed_forward_length=FF)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, qkv_bias=True)
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)


def qwen3(model):
    """Norms on q and k."""
    model.put_attention(feed_forward_length=FF)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, qk_norm=True)
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)


def qwen3moe(model):
    """Mixture of experts in every layer."""
    model.put_attention(feed_forward_length=FF, expert_count=EXPERTS, expert_used_count=EXPERTS_USED,
                        expert_feed_forward_length=EXPERT_FF)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, qk_norm=True)
        model.add_norm(f"{block}.ffn_norm")
        model.add_experts(block)


def qwen35(model):
    """Hybrid: gated delta net in most layers, gated full attention in every second."""
    value_heads, key_heads, head = 4, 2, 32
    key_dim, value_dim = key_heads * head, value_heads * head
    model.put_attention(feed_forward_length=FF, full_attention_interval=2, rope__dimension_sections=[2, 3, 3, 0])
    model.put(ssm__conv_kernel=CONV, ssm__inner_size=value_dim, ssm__state_size=head, ssm__time_step_rank=value_heads,
              ssm__group_count=key_heads)
    model.add_ends()
    for layer, block in enumerate(model.blocks()):
        if layer % 2 == 1:
            model.add_attention(block, qk_norm=True, q_dim=2 * Q_DIM)
        else:
            model.add_norm(f"{block}.attn_norm")
            model.add(f"{block}.attn_qkv.weight", EMBD, 2 * key_dim + value_dim)
            model.add(f"{block}.attn_gate.weight", EMBD, value_dim)
            model.add(f"{block}.ssm_conv1d.weight", CONV, 2 * key_dim + value_dim)
            model.add(f"{block}.ssm_dt.bias", value_heads)
            model.add(f"{block}.ssm_a", value_heads)
            model.add(f"{block}.ssm_beta.weight", EMBD, value_heads)
            model.add(f"{block}.ssm_alpha.weight", EMBD, value_heads)
            model.add_norm(f"{block}.ssm_norm", head)
            model.add(f"{block}.ssm_out.weight", value_dim, EMBD)
        model.add_norm(f"{block}.post_attention_norm")
        model.add_gated_mlp(block)


def gemma2(model):
    """Sliding window in every second layer, soft-capped logits, output matrix shared with the embedding."""
    model.put_attention(feed_forward_length=FF, attention__sliding_window=SLIDING_WINDOW, attn_logit_softcapping=50.0,
                        final_logit_softcapping=30.0)
    model.add_ends(tied=True)
    for block in model.blocks():
        model.add_attention(block)
        model.add_norm(f"{block}.post_attention_norm")
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)
        model.add_norm(f"{block}.post_ffw_norm")


def gemma3(model):
    """Sliding window with its own rotary base, norms on q and k and after each half of a block."""
    model.put_attention(feed_forward_length=FF, attention__sliding_window=SLIDING_WINDOW, attention__sliding_window_pattern=2,
                        rope__freq_base_swa=1000.0)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, qk_norm=True)
        model.add_norm(f"{block}.post_attention_norm")
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)
        model.add_norm(f"{block}.post_ffw_norm")


def gpt_oss(model):
    """Mixture of experts with biases, sliding window in every second layer, attention sinks."""
    model.put_attention(feed_forward_length=FF, expert_count=EXPERTS, expert_used_count=EXPERTS_USED,
                        expert_feed_forward_length=EXPERT_FF, attention__sliding_window=SLIDING_WINDOW)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, qkv_bias=True, out_bias=True)
        model.add(f"{block}.attn_sinks.weight", HEADS)
        model.add_norm(f"{block}.post_attention_norm")
        model.add_experts(block, bias=True)


def phi3(model):
    """Fused q, k, v and fused gate and up."""
    model.put_attention(feed_forward_length=FF)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block, fused=True)
        model.add_norm(f"{block}.ffn_norm")
        model.add(f"{block}.ffn_up.weight", EMBD, 2 * FF)
        model.add(f"{block}.ffn_down.weight", FF, EMBD)


def gptneox(model):
    """Attention and MLP in parallel, layer norms with biases, ungated MLP."""
    model.put_attention(kv_heads=HEADS, feed_forward_length=FF, attention__layer_norm_epsilon=1e-5, use_parallel_residual=True)
    model.add_ends(norm_bias=True)
    for block in model.blocks():
        model.add_norm(f"{block}.attn_norm", bias=True)
        model.add_linear(f"{block}.attn_qkv", EMBD, 3 * EMBD, bias=True)
        model.add_linear(f"{block}.attn_output", EMBD, EMBD, bias=True)
        model.add_norm(f"{block}.ffn_norm", bias=True)
        model.add_linear(f"{block}.ffn_up", EMBD, FF, bias=True)
        model.add_linear(f"{block}.ffn_down", FF, EMBD, bias=True)


def deepseek2(model):
    """Multi-head latent attention; a dense first layer, then routed experts beside a shared one."""
    q_rank, kv_rank, rope, nope, value = 32, 32, 16, 16, 32
    model.put(attention__head_count=HEADS, attention__head_count_kv=1, attention__q_lora_rank=q_rank, attention__kv_lora_rank=kv_rank,
              attention__key_length=kv_rank + rope, attention__value_length=kv_rank, attention__key_length_mla=nope + rope,
              attention__value_length_mla=value, rope__dimension_count=rope, feed_forward_length=FF, leading_dense_block_count=1,
              expert_count=EXPERTS, expert_used_count=EXPERTS_USED, expert_feed_forward_length=EXPERT_FF, expert_shared_count=1,
              expert_weights_scale=1.0, expert_weights_norm=True, expert_gating_func=2)
    model.add_ends()
    for layer, block in enumerate(model.blocks()):
        model.add_norm(f"{block}.attn_norm")
        model.add(f"{block}.attn_q_a.weight", EMBD, q_rank)
        model.add_norm(f"{block}.attn_q_a_norm", q_rank)
        model.add(f"{block}.attn_q_b.weight", q_rank, HEADS * (nope + rope))
        model.add(f"{block}.attn_kv_a_mqa.weight", EMBD, kv_rank + rope)
        model.add_norm(f"{block}.attn_kv_a_norm", kv_rank)
        model.add(f"{block}.attn_k_b.weight", nope, kv_rank, HEADS)
        model.add(f"{block}.attn_v_b.weight", kv_rank, value, HEADS)
        model.add(f"{block}.attn_output.weight", HEADS * value, EMBD)
        model.add_norm(f"{block}.ffn_norm")
        if layer == 0:
            model.add_gated_mlp(block)
        else:
            model.add_experts(block)
            model.add(f"{block}.exp_probs_b.bias", EXPERTS)
            model.add_gated_mlp(block, "_shexp", EXPERT_FF)


def mamba(model):
    """Recurrent: state space layers only, no attention, no MLP."""
    rank = 8
    model.put(feed_forward_length=0, attention__head_count=0)
    model.put_ssm(ssm__time_step_rank=rank)
    model.add_ends()
    for block in model.blocks():
        model.add_norm(f"{block}.attn_norm")
        model.add(f"{block}.ssm_in.weight", EMBD, 2 * INNER)
        model.add(f"{block}.ssm_conv1d.weight", CONV, INNER)
        model.add(f"{block}.ssm_conv1d.bias", INNER)
        model.add(f"{block}.ssm_x.weight", INNER, rank + 2 * STATE)
        model.add(f"{block}.ssm_dt.weight", rank, INNER)
        model.add(f"{block}.ssm_dt.bias", INNER)
        model.add(f"{block}.ssm_a", STATE, INNER)
        model.add(f"{block}.ssm_d", INNER)
        model.add(f"{block}.ssm_out.weight", INNER, EMBD)


def rwkv7(model):
    """Recurrent: linear attention with token shift."""
    rank = 8
    # Heads of 64, as in the real models: with AVX-512, ggml's wkv7 kernel reads past the end of smaller ones.
    model.put(feed_forward_length=FF, attention__head_count=0, attention__layer_norm_epsilon=1e-5, wkv__head_size=64,
              attention__decay_lora_rank=rank, attention__iclr_lora_rank=rank, attention__value_residual_mix_lora_rank=rank,
              attention__gate_lora_rank=rank, token_shift_count=2)
    model.add_ends(norm_bias=True)
    model.add_norm("token_embd_norm", bias=True)
    for block in model.blocks():
        model.add_norm(f"{block}.attn_norm", bias=True)
        model.add_norm(f"{block}.attn_norm_2", bias=True)
        for part in "wav":
            model.add(f"{block}.time_mix_{part}0.weight", EMBD)
        for part in "wavg":
            model.add(f"{block}.time_mix_{part}1.weight", EMBD, rank)
            model.add(f"{block}.time_mix_{part}2.weight", rank, EMBD)
        model.add(f"{block}.time_mix_lerp_fused.weight", EMBD, 1, 1, 6)
        for part in ("k_k", "k_a", "r_k"):
            model.add(f"{block}.time_mix_{part}.weight", EMBD)
        for part in ("key", "value", "receptance", "output"):
            model.add(f"{block}.time_mix_{part}.weight", EMBD, EMBD)
        model.add(f"{block}.time_mix_ln.weight", EMBD)
        model.add(f"{block}.time_mix_ln.bias", EMBD)
        model.add(f"{block}.channel_mix_lerp_k.weight", EMBD, 1, 1)
        model.add(f"{block}.channel_mix_key.weight", EMBD, FF)
        model.add(f"{block}.channel_mix_value.weight", FF, EMBD)


def lfm2(model):
    """Hybrid: short convolutions, attention in the middle layer."""
    kv_heads = [KV_HEADS if layer == 1 else 0 for layer in range(LAYERS)]
    model.put_attention(kv_heads=kv_heads, feed_forward_length=FF, shortconv__l_cache=3)
    model.add_ends(norm="token_embd_norm")
    for block, heads in zip(model.blocks(), kv_heads):
        if heads:
            model.add_attention(block, qk_norm=True)
        else:
            model.add_norm(f"{block}.attn_norm")
            model.add(f"{block}.shortconv.conv.weight", 3, EMBD)
            model.add(f"{block}.shortconv.in_proj.weight", EMBD, 3 * EMBD)
            model.add(f"{block}.shortconv.out_proj.weight", EMBD, EMBD)
        model.add_norm(f"{block}.ffn_norm")
        model.add_gated_mlp(block)


def granitehybrid(model):
    """Hybrid: Mamba-2 layers and one attention layer, each with routed experts beside a shared one."""
    kv_heads = [KV_HEADS if layer == 1 else 0 for layer in range(LAYERS)]
    model.put_attention(kv_heads=kv_heads, feed_forward_length=EXPERT_FF, expert_count=EXPERTS, expert_used_count=EXPERTS_USED,
                        expert_shared_feed_forward_length=EXPERT_FF, residual_scale=0.5, embedding_scale=2.0, logit_scale=1.0)
    model.put_ssm(ssm__time_step_rank=4, ssm__group_count=1)
    model.add_ends()
    for block, heads in zip(model.blocks(), kv_heads):
        if heads:
            model.add_attention(block)
        else:
            model.add_norm(f"{block}.attn_norm")
            model.add_mamba2(block)
        model.add_norm(f"{block}.ffn_norm")
        model.add_experts(block)
        model.add_gated_mlp(block, "_shexp", EXPERT_FF)


def falcon_h1(model):
    """Hybrid: Mamba-2 and attention side by side in every layer."""
    model.put_attention(feed_forward_length=FF)
    model.put_ssm(ssm__time_step_rank=4, ssm__group_count=1)
    model.add_ends()
    for block in model.blocks():
        model.add_attention(block)
        model.add_mamba2(block)
        model.add(f"{block}.ffn_norm", EMBD)
        model.add_gated_mlp(block)


# File name -> (GGUF architecture, builder, type of the weight matrices).
MODELS = {
    "llama": ("llama", llama, Type.F16),
    "llama-q8_0": ("llama", llama, Type.Q8_0),
    "llama-q4_0": ("llama", llama, Type.Q4_0),
    "qwen2": ("qwen2", qwen2, Type.F16),
    "qwen3": ("qwen3", qwen3, Type.F32),
    "qwen3moe": ("qwen3moe", qwen3moe, Type.F16),
    "qwen35": ("qwen35", qwen35, Type.F16),
    "gemma2": ("gemma2", gemma2, Type.F16),
    "gemma3": ("gemma3", gemma3, Type.BF16),
    "gpt-oss": ("gpt-oss", gpt_oss, Type.F16),
    "phi3": ("phi3", phi3, Type.F16),
    "gptneox": ("gptneox", gptneox, Type.F16),
    "deepseek2": ("deepseek2", deepseek2, Type.F16),
    "mamba": ("mamba", mamba, Type.F16),
    "rwkv7": ("rwkv7", rwkv7, Type.F16),
    "lfm2": ("lfm2", lfm2, Type.F16),
    "granitehybrid": ("granitehybrid", granitehybrid, Type.F16),
    "falcon-h1": ("falcon-h1", falcon_h1, Type.F16),
}


def is_current(path):
    """Whether `path` was written by this very generator."""
    try:
        field = gguf.GGUFReader(path).get_field(GENERATOR_KEY)
    except (OSError, ValueError):
        return False
    return field is not None and field.contents() == GENERATOR


def make(name, out_dir):
    """Write tiny-NAME.gguf into `out_dir` unless a current one is there, and return its path."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"tiny-{name}.gguf"
    if not is_current(path):
        # Written beside and renamed, so that sessions running at the same time never see half a file.
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        arch, build, weight_type = MODELS[name]
        model = TinyModel(name, arch, unfinished, weight_type)
        build(model)
        model.finish()
        os.replace(unfinished, path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="NAME", default=list(MODELS), help="one of: " + ", ".join(MODELS))
    arguments = parser.parse_args()
    for name in arguments.only:
        path = make(name, arguments.out_dir)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
