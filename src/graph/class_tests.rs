//! Checks of `class` against every literal name of the pinned llama.cpp and a real node order.

use super::*;

/// component, name, whether calls give a layer (`yes`, `no`, `both`); extracted from llama.cpp's `cb(...)` calls.
const NAMES: &str = include_str!("../../tests/data/tensor-names.tsv");

/// Rows where we say something else than the table, and why.
const DEVIATIONS: &[(&str, Component, &str)] = &[
    ("ffn_inp", Component::Residual, "the sum after attention, not part of the feed-forward"),
    ("mtp_ffn_inp", Component::Residual, "as ffn_inp"),
    ("pe_in", Component::Residual, "gemma4: the sum after the feed-forward"),
    ("modalities", Component::Residual, "gemma3n: altup's router, mixes residual streams"),
    ("predictions", Component::Residual, "gemma3n: altup's residual streams"),
    ("inp_tokens", Component::Input, "filled by the host"),
    ("inp_pos", Component::Input, "filled by the host"),
    ("inp_attn_scale", Component::Input, "filled by the host"),
    ("inp_scale_rows", Component::Input, "filled by the host"),
    ("inp_mixed_slots", Component::Input, "filled by the host"),
    ("inp_mixed_tokens", Component::Input, "filled by the host"),
    ("adapter_ids", Component::Input, "filled by the host"),
    ("pos_bucket_1d", Component::Input, "a reshape of an input"),
    ("self_kq_mask", Component::Input, "filled by the host"),
    ("gate", Component::Ssm, "decay of the gated delta net; only models with linear attention use it"),
    ("b_in", Component::Ssm, "delta net only"),
    ("k_in", Component::Ssm, "delta net only"),
    ("q_in", Component::Ssm, "delta net only"),
    ("v_in", Component::Ssm, "delta net only"),
    ("k_b", Component::Ssm, "delta net only"),
    ("v_b", Component::Ssm, "delta net only"),
    ("key_flat", Component::Ssm, "qwen3next: linear attention only"),
    ("query_flat", Component::Ssm, "qwen3next: linear attention only"),
    ("value_flat", Component::Ssm, "qwen3next: linear attention only"),
    ("g1 f_b(f_a(cur))", Component::Ssm, "kimi-linear: decay of linear attention"),
    ("g2 g_b(g_a(cur_2d))", Component::Ssm, "kimi-linear: gate of linear attention"),
    ("q_s", Component::Ssm, "minimax-01: lightning attention only"),
    ("q_s_trans", Component::Ssm, "minimax-01: lightning attention only"),
    ("q_trans", Component::Ssm, "minimax-01: lightning attention only"),
    ("qk_s", Component::Ssm, "minimax-01: lightning attention only"),
    ("qkv_permuted", Component::Ssm, "minimax-01: lightning attention only"),
    ("kv_cur", Component::Ssm, "minimax-01: lightning attention's state, nothing is compressed"),
    ("g", Component::Ssm, "minimax-01: gate of lightning attention"),
    ("g_norm", Component::Norm, "eagle3: build_norm of the draft's input"),
    ("a", Component::Ssm, "qwen3next: linear attention"),
    ("b", Component::Ssm, "qwen3next: linear attention"),
    ("pre_proj", Component::Embedding, "gemma4-assistant: projects the joined embeddings"),
    ("model.layers.{}.self_attn.out_proj", Component::Attention, "lfm2: output of attention"),
];

/// The table's word in ours.
fn expected(word: &str) -> Component {
    match word.strip_prefix("mtp:").unwrap_or(word) {
        "attention" => Component::Attention,
        "attn-index" => Component::AttentionIndex,
        // DeepSeek 4's compressors only feed its sparse attention.
        "kv-compress" => Component::AttentionIndex,
        "embedding" => Component::Embedding,
        "mlp" => Component::Mlp,
        "moe" => Component::Moe,
        "norm" => Component::Norm,
        "output" => Component::Output,
        "residual" => Component::Residual,
        "ssm/linear-attn" => Component::Ssm,
        other => panic!("the table has a component that the test does not know: {other}"),
    }
}

fn tensor<'a>(name: &'a str, op: &'a str) -> Tensor<'a> {
    Tensor { name, op, ..Tensor::default() }
}

fn class_of(name: &str, op: &str, sources: &[&str]) -> (Component, Option<i32>) {
    let src: Vec<_> = sources.iter().map(|name| tensor(name, "")).collect();
    let class = classify(&Node { out: tensor(name, op), src: &src });
    (class.component, class.layer)
}

#[test]
fn every_name_of_llama_cpp_is_classified_as_the_table_says() {
    let mut n_rows = 0;
    let mut wrong = Vec::new();
    let mut deviated = Vec::new();
    for row in NAMES.lines().skip(1) {
        let mut fields = row.split('\t');
        let (Some(word), Some(name), Some(layer)) = (fields.next(), fields.next(), fields.next()) else {
            panic!("the row has not three fields: {row}");
        };
        n_rows += 1;
        let deviation = DEVIATIONS.iter().find(|(deviant, ..)| *deviant == name);
        let component = deviation.map_or_else(|| expected(word), |(_, component, _)| *component);
        if deviation.is_some() {
            assert!(word == "other" || expected(word) != component, "{name} agrees with the table");
            deviated.push(name);
        }
        let mtp = word.starts_with("mtp:");
        let forms = [(layer != "yes", name.to_owned(), None), (layer != "no", format!("{name}-7"), Some(7))];
        for (_, full, layer) in forms.into_iter().filter(|(used, ..)| *used) {
            let class = classify(&Node { out: tensor(&full, "MUL_MAT"), src: &[] });
            if class != (Class { component, layer, mtp }) {
                wrong.push(format!("{full}: {class:?}, not {component:?}"));
            }
            assert_eq!(class, classify_tensor(&full, "ADD"));
        }
    }
    assert_eq!(n_rows, 588);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(deviated.len(), DEVIATIONS.len(), "a deviation names no row: found only {deviated:?}");
}

#[test]
fn smollm2_layer_0_is_classified_in_graph_order() {
    use Component::{Attention, Embedding, KvCache, Mlp, Norm, Output, Residual};
    let flash =
        ["Qcur-0 (view) (permuted)", "cache_k_l0 (view) (permuted)", "cache_v_l0 (view) (permuted)", "self_kq_mask"];
    type Row<'a> = (&'a str, &'a str, &'a [&'a str], Component, Option<i32>);
    let nodes: &[Row<'_>] = &[
        ("embd", "GET_ROWS", &["token_embd.weight", "inp_tokens"], Embedding, None),
        ("norm-0", "RMS_NORM", &["embd"], Norm, Some(0)),
        ("attn_norm-0", "MUL", &["norm-0", "blk.0.attn_norm.weight"], Norm, Some(0)),
        ("Qcur-0", "MUL_MAT", &["blk.0.attn_q.weight", "attn_norm-0"], Attention, Some(0)),
        ("Qcur-0", "RESHAPE", &["Qcur-0"], Attention, Some(0)),
        ("Qcur-0", "ROPE", &["Qcur-0", "inp_pos"], Attention, Some(0)),
        ("Vcur-0", "MUL_MAT", &["blk.0.attn_v.weight", "attn_norm-0"], Attention, Some(0)),
        ("Vcur-0", "RESHAPE", &["Vcur-0"], Attention, Some(0)),
        ("Kcur-0", "MUL_MAT", &["blk.0.attn_k.weight", "attn_norm-0"], Attention, Some(0)),
        ("Kcur-0", "ROPE", &["Kcur-0", "inp_pos"], Attention, Some(0)),
        ("Kcur-0 (view)", "VIEW", &["Kcur-0"], Attention, Some(0)),
        ("cache_k_l0 (view)", "SET_ROWS", &["Kcur-0 (view)", "attn_inp_k_idxs", "cache_k_l0"], KvCache, Some(0)),
        ("Vcur-0 (view)", "VIEW", &["Vcur-0"], Attention, Some(0)),
        ("cache_v_l0 (view)", "SET_ROWS", &["Vcur-0 (view)", "attn_inp_v_idxs", "cache_v_l0"], KvCache, Some(0)),
        ("cache_v_l0 (view)", "VIEW", &["cache_v_l0"], KvCache, Some(0)),
        ("cache_v_l0 (view) (permuted)", "PERMUTE", &["cache_v_l0 (view)"], KvCache, Some(0)),
        ("Qcur-0 (view) (permuted)", "PERMUTE", &["Qcur-0 (view)"], Attention, Some(0)),
        ("node_21", "FLASH_ATTN_EXT", &flash, Attention, Some(0)),
        ("kqv_out-0", "RESHAPE", &["node_21"], Attention, Some(0)),
        ("attn_out-0", "MUL_MAT", &["blk.0.attn_output.weight", "kqv_out-0"], Attention, Some(0)),
        ("ffn_inp-0", "ADD", &["attn_out-0", "embd"], Residual, Some(0)),
        ("norm-0", "RMS_NORM", &["ffn_inp-0"], Norm, Some(0)),
        ("ffn_norm-0", "MUL", &["norm-0", "blk.0.ffn_norm.weight"], Norm, Some(0)),
        ("ffn_gate-0", "MUL_MAT", &["blk.0.ffn_gate.weight", "ffn_norm-0"], Mlp, Some(0)),
        ("ffn_up-0", "MUL_MAT", &["blk.0.ffn_up.weight", "ffn_norm-0"], Mlp, Some(0)),
        ("ffn_swiglu-0", "SWIGLU", &["ffn_gate-0", "ffn_up-0"], Mlp, Some(0)),
        ("ffn_out-0", "MUL_MAT", &["blk.0.ffn_down.weight", "ffn_swiglu-0"], Mlp, Some(0)),
        ("l_out-0", "ADD", &["ffn_out-0", "ffn_inp-0"], Residual, Some(0)),
        ("norm", "RMS_NORM", &["l_out-29"], Norm, None),
        ("result_norm", "MUL", &["norm", "output_norm.weight"], Output, None),
        ("result_output", "MUL_MAT", &["token_embd.weight", "result_norm"], Output, None),
    ];
    for (name, op, sources, component, layer) in nodes {
        assert_eq!(class_of(name, op, sources), (*component, *layer), "{name} {op}");
    }
}

#[test]
fn a_node_without_a_name_is_known_by_its_sources() {
    use Component::{Attention, Embedding, KvCache, Mlp, Moe, Norm, Other, Residual, Ssm};
    let cases: &[(&str, &[&str], Component, Option<i32>)] = &[
        ("MUL_MAT", &["blk.5.attn_output.weight", "kqv_out-5"], Attention, Some(5)),
        ("ADD", &["node_33", "blk.5.attn_output.bias"], Attention, Some(5)),
        ("MUL_MAT", &["CUDA0#blk.5.ffn_down.weight#0", "node_7"], Mlp, Some(5)),
        ("MUL", &["node_8", "blk.5.post_attention_norm.weight"], Norm, Some(5)),
        ("GET_ROWS", &["token_embd.weight", "inp_tokens"], Embedding, None),
        ("GET_ROWS", &["l_out-28", "out_ids"], Residual, Some(28)),
        ("ROPE", &["node_1", "inp_pos", "rope_freqs.weight"], Attention, None),
        ("ROPE", &["Kcur-2", "inp_pos", "rope_freqs.weight"], Attention, Some(2)),
        // Layers that share an earlier layer's cache.
        ("FLASH_ATTN_EXT", &["Qcur-25 (permuted)", "cache_k_l22 (view)", "cache_v_l22 (view)"], Attention, Some(25)),
        ("MUL_MAT", &["cache_k_l3 (view) (permuted)", "node_9"], Attention, Some(3)),
        ("CPY", &["node_9", "cache_k_l3 (view)"], KvCache, Some(3)),
        ("SSM_SCAN", &["cache_s_l4 (view)", "node_2"], Ssm, Some(4)),
        ("MUL_MAT_ID", &["node_2", "node_3", "ffn_moe_topk-6"], Moe, Some(6)),
        ("RMS_NORM", &["Qcur-1"], Norm, Some(1)),
        ("SWIGLU", &["node_1"], Mlp, None),
        ("MUL", &["node_1", "node_2"], Other, None),
        ("ADD", &[], Other, None),
    ];
    for (op, sources, component, layer) in cases {
        assert_eq!(class_of("node_40", op, sources), (*component, *layer), "{op} of {sources:?}");
        assert_eq!(class_of("", op, sources), (*component, *layer), "{op} of {sources:?}");
    }
    assert_eq!(class_of("brand_new-9", "MUL_MAT", &["blk.8.ffn_up.weight"]), (Mlp, Some(9)));
}

#[test]
fn single_tensors_are_classified_by_name() {
    use Component::{
        Attention, AttentionIndex, Embedding, Input, KvCache, Mlp, Moe, Norm, Output, Residual, Sampling, Ssm,
    };
    let cases = [
        ("blk.3.ffn_gate.weight", Mlp, Some(3)),
        ("blk.3.ffn_gate_inp.weight", Moe, Some(3)),
        ("blk.3.ffn_gate_exps.weight", Moe, Some(3)),
        ("blk.3.ffn_up.11.weight", Moe, Some(3)),
        ("blk.3.exp_probs_b.bias", Moe, Some(3)),
        ("blk.3.attn_kv_a_mqa.weight", Attention, Some(3)),
        ("blk.3.attn_kv_a_norm.weight", Norm, Some(3)),
        ("blk.3.some_new_norm.weight", Norm, Some(3)),
        ("blk.3.indexer.k_norm.weight", AttentionIndex, Some(3)),
        ("blk.3.ssm_norm.weight", Ssm, Some(3)),
        ("blk.3.time_mix_w1.weight", Ssm, Some(3)),
        ("blk.3.hc_attn_fn.weight", Residual, Some(3)),
        ("token_embd.weight", Embedding, None),
        ("output.weight", Output, None),
        ("output_norm.weight", Output, None),
        ("cache_k_l3", KvCache, Some(3)),
        ("cache_idx_v_l3", KvCache, Some(3)),
        ("cache_r_l3", Ssm, Some(3)),
        ("cache_ple_r_l3", Ssm, Some(3)),
        ("dsv4_csa_state_kv_l3", KvCache, Some(3)),
        ("dsv4_csa_kq_mask", Input, None),
        ("leaf_7", Input, None),
        ("inp_embd", Input, None),
        ("attn_inp_kq_mask", Input, None),
        ("top_k", Sampling, None),
        ("logits_seq_0_1", Sampling, None),
        ("temp_ext_entropy", Sampling, None),
    ];
    for (name, component, layer) in cases {
        assert_eq!(classify_tensor(name, "NONE"), Class { component, layer, mtp: false }, "{name}");
    }
    assert!(classify_tensor("blk.61.nextn.eh_proj.weight", "NONE").mtp);
    let h_input = Class { component: Input, layer: None, mtp: true };
    assert_eq!(classify_tensor("mtp_h_input", "NONE"), h_input);
}

#[test]
fn feed_forward_multiplications_have_a_role() {
    let role = |name, op, weight| {
        let src = [tensor(weight, "NONE"), tensor("ffn_norm-1", "MUL")];
        mlp_role(&Node { out: tensor(name, op), src: &src })
    };
    assert_eq!(role("node_3", "MUL_MAT", "blk.1.ffn_gate.weight"), Some("gate_proj"));
    assert_eq!(role("ffn_out-1", "MUL_MAT", "blk.1.ffn_down.weight"), Some("down_proj"));
    assert_eq!(role("node_3", "MUL_MAT_ID", "blk.1.ffn_up_exps.weight"), Some("up_proj"));
    assert_eq!(role("node_3", "MUL_MAT_ID", "blk.1.ffn_gate_up_exps.weight"), Some("gate_up_proj"));
    assert_eq!(role("node_3", "MUL_MAT", "blk.1.ffn_down_shexp.weight"), Some("down_proj"));
    assert_eq!(role("node_3", "MUL_MAT", "blk.1.ffn_gate.12.weight"), Some("gate_proj"));
    assert_eq!(role("node_3", "MUL_MAT", "dec.blk.1.ffn_up.weight"), Some("up_proj"));
    assert_eq!(role("ffn_moe_gate_up-1", "MUL_MAT_ID", "node_2"), Some("gate_up_proj"));
    assert_eq!(role("ffn_moe_logits-1", "MUL_MAT", "blk.1.ffn_gate_inp.weight"), None);
    assert_eq!(role("node_3", "MUL_MAT", "blk.1.ffn_latent_up.weight"), None);
    assert_eq!(role("node_3", "MUL_MAT", "blk.1.ffn_up.weight.lora_a"), None);
    assert_eq!(role("Qcur-1", "MUL_MAT", "blk.1.attn_q.weight"), None);
    assert_eq!(role("ffn_up-1", "ADD", "blk.1.ffn_up.weight"), None);
}

#[test]
fn components_survive_the_way_through_a_file() {
    for component in Component::ALL {
        assert_eq!(Component::from(component as u8), component);
    }
    assert_eq!(Component::from_u8(200), Component::Other);
}

/// `cargo test --release -- --ignored --nocapture classify_is_fast`
#[test]
#[ignore = "a timing, for a release build on a quiet machine"]
#[expect(clippy::print_stdout, reason = "the number is the point")]
fn classify_is_fast() {
    let flash = [
        "Qcur-12 (view) (permuted)",
        "cache_k_l12 (view) (permuted)",
        "cache_v_l12 (view) (permuted)",
        "attn_inp_kq_mask",
    ]
    .map(|name| tensor(name, "VIEW"));
    let dense = [tensor("blk.12.ffn_gate.weight", "NONE"), tensor("ffn_norm-12", "MUL")];
    let nodes = [
        Node { out: tensor("node_321", "FLASH_ATTN_EXT"), src: &flash },
        Node { out: tensor("node_322", "MUL_MAT"), src: &dense },
        Node { out: tensor("ffn_gate-12", "MUL_MAT"), src: &dense },
        Node { out: tensor("cache_k_l12 (view)", "SET_ROWS"), src: &flash },
        Node { out: tensor("l_out-12", "ADD"), src: &dense },
    ];
    for node in &nodes {
        let start = std::time::Instant::now();
        for _ in 0..1_000_000 {
            std::hint::black_box(classify(std::hint::black_box(node)));
        }
        println!("{} {}: {} ns", node.out.name, node.out.op, start.elapsed().as_nanos() / 1_000_000);
    }
}
