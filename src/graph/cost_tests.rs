//! Checks of `cost` and `flops` against numbers worked out by hand.

use super::*;

/// The pinned ggml.c's GGML_OP_NAME without UNARY's and GLU's functions, which follow.
const OPS: &str = "NONE DUP ADD ADD_ID ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS SUM SUM_ROWS CUMSUM MEAN ARGMAX COUNT_EQUAL \
    REPEAT REPEAT_BACK CONCAT SILU_BACK NORM RMS_NORM RMS_NORM_BACK GROUP_NORM L2_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE \
    SET CPY CONT RESHAPE VIEW PERMUTE TRANSPOSE GET_ROWS GET_ROWS_BACK SET_ROWS DIAG DIAG_MASK_INF DIAG_MASK_ZERO \
    SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK CLAMP CONV_TRANSPOSE_1D IM2COL IM2COL_BACK IM2COL_3D COL2IM_1D CONV_2D CONV_3D \
    CONV_2D_DW CONV_TRANSPOSE_2D POOL_1D POOL_2D POOL_2D_BACK UPSCALE PAD PAD_REFLECT_1D ROLL ARANGE TIMESTEP_EMBEDDING \
    ARGSORT TOP_K LEAKY_RELU TRI FILL FLASH_ATTN_EXT FLASH_ATTN_BACK SSM_CONV SSM_SCAN WIN_PART WIN_UNPART GET_REL_POS \
    ADD_REL_POS RWKV_WKV6 GATED_LINEAR_ATTN RWKV_WKV7 SOLVE_TRI GATED_DELTA_NET LIGHTNING_INDEXER DSV4_HC_COMB \
    DSV4_HC_PRE DSV4_HC_POST UNARY CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK OPT_STEP_ADAMW OPT_STEP_SGD GLU";
/// Ops whose work is a function of the host: unknown on purpose.
const OPAQUE: &str = "MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CUSTOM";
/// GGML_UNARY_OP_NAME and GGML_GLU_OP_NAME.
const FUNCTIONS: &str = "ABS SGN NEG STEP TANH ELU RELU SIGMOID GELU GELU_QUICK SILU HARDSWISH HARDSIGMOID EXP EXPM1 SOFTPLUS \
    GELU_ERF XIELU FLOOR CEIL ROUND TRUNC REGLU GEGLU SWIGLU SWIGLU_OAI GEGLU_ERF GEGLU_QUICK SWIGLU_CLAMP";

/// A packed tensor; `q4` is Q4_0 (32 elements in 18 bytes).
fn tensor(type_name: &'static str, ne: [i64; 4]) -> Tensor<'static> {
    let (block_size, type_size) = match type_name {
        "q4" => (32, 18),
        "f16" => (1, 2),
        "i64" => (1, 8),
        _ => (1, 4),
    };
    Tensor { type_name, ne, block_size, type_size, ..Tensor::default() }
}

fn f32(ne: [i64; 4]) -> Tensor<'static> {
    tensor("f32", ne)
}

fn cost_of(op: &str, out: Tensor<'static>, src: &[Tensor<'static>]) -> Cost {
    cost(&Node { out: Tensor { op, ..out }, src })
}

fn flops_of(op: &str, out: [i64; 4], src: &[[i64; 4]]) -> u64 {
    let src: Vec<_> = src.iter().map(|&ne| f32(ne)).collect();
    cost_of(op, f32(out), &src).flops
}

#[test]
fn every_op_of_the_pinned_ggml_is_known() {
    // GGML_OP_COUNT, GGML_UNARY_OP_COUNT, GGML_GLU_OP_COUNT.
    assert_eq!(OPS.split(' ').filter(|op| !op.is_empty()).count() + OPAQUE.split(' ').count(), 101);
    assert_eq!(FUNCTIONS.split(' ').filter(|op| !op.is_empty()).count(), 22 + 7);
    for op in OPS.split(' ').chain(FUNCTIONS.split(' ')) {
        assert!(known_op(op), "{op}");
    }
    for op in OPAQUE.split(' ').chain(["A_LATER_OP", ""]) {
        assert!(!known_op(op), "{op}");
        assert_eq!(flops_of(op, [4, 1, 1, 1], &[[4, 1, 1, 1]]), 0, "{op}");
    }
}

#[test]
fn mul_mat_counts_two_for_each_multiply_add() {
    // SmolLM2's ffn_gate for 7 tokens: 576 -> 1536, Q4_0 weights.
    let cost = cost_of("MUL_MAT", f32([1536, 7, 1, 1]), &[tensor("q4", [576, 1536, 1, 1]), f32([576, 7, 1, 1])]);
    assert_eq!(cost.flops, 2 * 576 * 1536 * 7);
    assert_eq!(cost.bytes_read, 1536 * 18 * 18 + 576 * 7 * 4);
    assert_eq!(cost.bytes_written, 1536 * 7 * 4);
    // K [64, 256, 3 heads] broadcast to Q [64, 5, 9 heads, 2].
    assert_eq!(flops_of("MUL_MAT", [256, 5, 9, 2], &[[64, 256, 3, 1], [64, 5, 9, 2]]), 2 * 64 * 256 * 5 * 9 * 2);
    assert_eq!(flops_of("OUT_PROD", [3, 5, 1, 1], &[[3, 7, 1, 1], [5, 7, 1, 1]]), 2 * 7 * 15);
}

#[test]
fn mul_mat_id_counts_the_used_experts_only() {
    let experts = tensor("q4", [64, 128, 8, 1]);
    let expert_bytes = 128 * 2 * 18;
    // 3 tokens, 2 experts each: 6 of 8 at most.
    let cost = cost_of("MUL_MAT_ID", f32([128, 2, 3, 1]), &[experts, f32([64, 1, 3, 1]), tensor("i32", [2, 3, 1, 1])]);
    assert_eq!(cost.flops, 2 * 64 * 128 * 2 * 3);
    assert_eq!(cost.bytes_read, 6 * expert_bytes + 64 * 3 * 4 + 6 * 4);
    assert_eq!(cost.bytes_written, 128 * 6 * 4);
    // 100 tokens: all of them.
    let cost =
        cost_of("MUL_MAT_ID", f32([128, 2, 100, 1]), &[experts, f32([64, 2, 100, 1]), tensor("i32", [2, 100, 1, 1])]);
    assert_eq!(cost.bytes_read, 8 * expert_bytes + 64 * 200 * 4 + 200 * 4);
}

#[test]
fn flash_attention_counts_both_products_and_the_softmax() {
    // 7 tokens, 9 heads of 64 over 256 cached positions of 3 KV heads.
    let (q, k, v) = (f32([64, 7, 9, 1]), tensor("f16", [64, 256, 3, 1]), tensor("f16", [64, 256, 3, 1]));
    let mask = tensor("f16", [256, 7, 1, 1]);
    let cost = cost_of("FLASH_ATTN_EXT", f32([64, 9, 7, 1]), &[q, k, v, mask]);
    let scores = 7 * 9 * 256;
    assert_eq!(cost.flops, scores * (2 * 64 + 2 * 64 + 5) + 64 * 9 * 7);
    assert_eq!(cost.bytes_read, 64 * 7 * 9 * 4 + 2 * 64 * 256 * 3 * 2 + 256 * 7 * 2);
    assert_eq!(cost.bytes_written, 64 * 9 * 7 * 4);
    // MLA: keys of 576, values of 512, no mask.
    let flops = flops_of("FLASH_ATTN_EXT", [512, 16, 1, 1], &[[576, 1, 16, 1], [576, 32, 1, 1], [512, 32, 1, 1]]);
    assert_eq!(flops, 16 * 32 * (2 * (576 + 512) + 4) + 512 * 16);
}

#[test]
fn element_wise_ops_count_by_element() {
    let ne = [10, 3, 1, 1];
    for (op, per_element) in [
        ("ADD", 1),
        ("SCALE", 1),
        ("SQRT", 1),
        ("RMS_NORM", 3),
        ("NORM", 5),
        ("GROUP_NORM", 5),
        ("L2_NORM", 3),
        ("ROPE", 3),
        ("SILU", 4),
        ("GELU", 9),
        ("SWIGLU", 5),
        ("SWIGLU_OAI", 7),
        ("GEGLU", 10),
        ("REGLU", 1),
        ("RELU", 0),
        ("ARGSORT", 0),
        ("CONT", 0),
        ("IM2COL", 0),
        ("SUM_ROWS", 1),
        ("CUMSUM", 1),
        ("SOFT_MAX", 5),
    ] {
        assert_eq!(flops_of(op, ne, &[ne]), per_element * 30, "{op}");
    }
    assert_eq!(flops_of("SOFT_MAX", ne, &[ne, ne]), 6 * 30);
    assert_eq!(flops_of("SUM", [1, 1, 1, 1], &[ne]), 30);
    assert_eq!(flops_of("MEAN", [1, 3, 1, 1], &[ne]), 30 + 3);
    assert_eq!(flops_of("TOP_K", [2, 3, 1, 1], &[ne]), 0);
    let bias = cost_of("ADD", f32(ne), &[f32(ne), f32([10, 1, 1, 1])]);
    assert_eq!(bias, Cost { flops: 30, bytes_read: 120 + 40, bytes_written: 120 });
}

#[test]
fn recurrent_ops_count_their_state_updates() {
    // A window of 4 over 6 channels, 5 tokens.
    assert_eq!(flops_of("SSM_CONV", [6, 5, 1, 1], &[[8, 6, 1, 1], [4, 6, 1, 1]]), 2 * 4 * 30);
    // d_state 16, 8 values a head, 3 heads, 5 tokens, 2 sequences of 4 slots.
    let mamba =
        |a: i64| [[16, 8, 3, 4], [8, 3, 5, 2], [3, 5, 2, 1], [a, 3, 1, 1], [16, 1, 5, 2], [16, 1, 5, 2], [2, 1, 1, 1]];
    let (x, dt) = (8 * 3 * 5 * 2, 3 * 5 * 2);
    assert_eq!(flops_of("SSM_SCAN", [1008, 1, 1, 1], &mamba(1)), x * 16 * 5 + x + dt * 3 + dt * 2);
    assert_eq!(flops_of("SSM_SCAN", [1008, 1, 1, 1], &mamba(16)), x * 16 * 7 + x + dt * 3);
    let scan = cost_of("SSM_SCAN", f32([1008, 1, 1, 1]), &mamba(1).map(f32));
    assert_eq!(scan.bytes_read, 4 * (2 * 16 * 8 * 3 + x + dt + 3 + 2 * 160 + 2));
    // Heads of 64, 2 heads, 5 tokens.
    let k = [64, 2, 5, 1];
    assert_eq!(flops_of("RWKV_WKV6", [128, 69, 1, 1], &[k; 6]), 7 * 64 * 64 * 2 * 5);
    assert_eq!(flops_of("RWKV_WKV7", [128, 69, 1, 1], &[k; 7]), 9 * 64 * 64 * 2 * 5);
    assert_eq!(flops_of("GATED_LINEAR_ATTN", [128, 69, 1, 1], &[k; 5]), (5 * 64 * 64 + 64) * 2 * 5);
    let g = [1, 2, 5, 1];
    let delta = [k, k, k, g, g, [64, 64, 2, 1]];
    assert_eq!(flops_of("GATED_DELTA_NET", [128, 69, 1, 1], &delta), (7 * 64 * 64 + 3 * 64 + 1) * 2 * 5);
    // 4 unknowns, 3 right-hand sides, 2 systems: (0+2 + 2+2 + 4+2 + 6+2) each.
    assert_eq!(flops_of("SOLVE_TRI", [3, 4, 2, 1], &[[4, 4, 2, 1], [3, 4, 2, 1]]), 20 * 3 * 2);
}

#[test]
fn convolutions_count_their_kernels() {
    // 3x3, 8 -> 16 channels, 10x10 output, batch 2.
    assert_eq!(flops_of("CONV_2D", [10, 10, 16, 2], &[[3, 3, 8, 16], [12, 12, 8, 2]]), 2 * 9 * 8 * 3200);
    assert_eq!(flops_of("CONV_2D_DW", [10, 10, 8, 1], &[[3, 3, 1, 8], [12, 12, 8, 1]]), 2 * 9 * 800);
    // 2x2x2, 3 -> 5 channels, 2 images.
    assert_eq!(flops_of("CONV_3D", [4, 4, 4, 10], &[[2, 2, 2, 15], [5, 5, 5, 6]]), 2 * 8 * 3 * 640);
    // Kernel 4, 3 -> 2 channels, 10 steps.
    assert_eq!(flops_of("CONV_TRANSPOSE_1D", [22, 2, 1, 1], &[[4, 2, 3, 1], [10, 3, 1, 1]]), 2 * 4 * 2 * 3 * 10);
    assert_eq!(flops_of("CONV_TRANSPOSE_2D", [10, 10, 2, 1], &[[2, 2, 2, 3], [5, 5, 3, 1]]), 2 * 4 * 2 * 75);
}

#[test]
fn deepseek_ops_count_their_heads_and_streams() {
    // 32 positions, 3 tokens, 4 heads of 128.
    let indexer = [[128, 4, 3, 1], [128, 1, 32, 1], [4, 3, 1, 1], [32, 3, 1, 1]];
    assert_eq!(flops_of("LIGHTNING_INDEXER", [32, 3, 1, 1], &indexer), 96 * (4 * (2 * 128 + 2) + 1));
    let streams = [100, 4, 3, 1];
    assert_eq!(flops_of("DSV4_HC_PRE", [100, 3, 1, 1], &[streams, [4, 3, 1, 1]]), 300 * (2 * 4 + 1));
    assert_eq!(flops_of("DSV4_HC_PRE", [100, 3, 1, 1], &[streams, streams]), 300 * (6 * 4 + 1));
    let post = [[100, 3, 1, 1], streams, [4, 3, 1, 1], [4, 4, 3, 1]];
    assert_eq!(flops_of("DSV4_HC_POST", streams, &post), 1200 * 9);
    assert_eq!(flops_of("DSV4_HC_POST", streams, &post[..3]), 1200 * 2);
}

#[test]
fn only_touched_bytes_are_counted() {
    // 7 of 49152 Q4_0 rows.
    let cost =
        cost_of("GET_ROWS", f32([576, 7, 1, 1]), &[tensor("q4", [576, 49152, 1, 1]), tensor("i32", [7, 1, 1, 1])]);
    assert_eq!(cost, Cost { flops: 0, bytes_read: 7 * 18 * 18 + 28, bytes_written: 576 * 7 * 4 });
    // 7 rows into a cache of 4096.
    let cache = tensor("f16", [192, 4096, 1, 1]);
    let cost = cost_of("SET_ROWS", cache, &[f32([192, 7, 1, 1]), tensor("i64", [7, 1, 1, 1]), cache]);
    assert_eq!(cost, Cost { flops: 0, bytes_read: 192 * 7 * 4 + 56, bytes_written: 192 * 7 * 2 });
    let cost = cost_of("CPY", tensor("f16", [64, 2, 1, 1]), &[f32([64, 2, 1, 1]), tensor("f16", [64, 2, 1, 1])]);
    assert_eq!(cost, Cost { flops: 0, bytes_read: 512, bytes_written: 256 });
    let cost = cost_of("IM2COL", f32([27, 10, 1, 1]), &[f32([3, 3, 3, 8]), f32([12, 12, 3, 1])]);
    assert_eq!(cost, Cost { flops: 0, bytes_read: 432 * 4, bytes_written: 270 * 4 });
    for op in ["VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"] {
        assert_eq!(cost_of(op, f32([64, 2, 1, 1]), &[f32([64, 2, 1, 1])]), Cost::default(), "{op}");
    }
}

#[test]
fn nonsense_shapes_do_not_overflow() {
    let huge = f32([i64::MAX, i64::MAX, -1, 3]);
    let whole = f32([i64::MAX; 4]);
    for op in OPS.split(' ').chain(FUNCTIONS.split(' ')) {
        cost_of(op, huge, &[whole; 7]);
        cost_of(op, whole, &[huge, Tensor::default()]);
        cost_of(op, whole, &[]);
    }
}
