//! The language and the presets, on nodes as llama.cpp builds them and on every name that it has.

use super::*;
use crate::graph::class::classify;
use crate::graph::{Node, Tensor};

/// A graph node: name, op, names of its sources (what `classify` needs for unnamed ones).
type Row = (&'static str, &'static str, &'static [&'static str]);

/// Block 0 and the end of a llama-like model with flash attention, in the order of a real SmolLM2 graph.
const DENSE: &[Row] = &[
    ("embd", "GET_ROWS", &["token_embd.weight", "inp_tokens"]),
    ("norm-0", "RMS_NORM", &["embd"]),
    ("attn_norm-0", "MUL", &["norm-0", "blk.0.attn_norm.weight"]),
    ("Qcur-0", "MUL_MAT", &["blk.0.attn_q.weight", "attn_norm-0"]),
    ("Qcur-0", "RESHAPE", &["Qcur-0"]),
    ("Qcur-0", "ROPE", &["Qcur-0", "inp_pos"]),
    ("Vcur-0", "MUL_MAT", &["blk.0.attn_v.weight", "attn_norm-0"]),
    ("Vcur-0", "RESHAPE", &["Vcur-0"]),
    ("Kcur-0", "MUL_MAT", &["blk.0.attn_k.weight", "attn_norm-0"]),
    ("Kcur-0", "RESHAPE", &["Kcur-0"]),
    ("Kcur-0", "ROPE", &["Kcur-0", "inp_pos"]),
    ("Kcur-0 (view)", "VIEW", &["Kcur-0"]),
    ("cache_k_l0 (view)", "SET_ROWS", &["cache_k_l0", "Kcur-0 (view)"]),
    ("Vcur-0 (view)", "VIEW", &["Vcur-0"]),
    ("cache_v_l0 (view)", "SET_ROWS", &["cache_v_l0", "Vcur-0 (view)"]),
    ("Qcur-0 (view)", "VIEW", &["Qcur-0"]),
    ("Qcur-0 (view) (permuted)", "PERMUTE", &["Qcur-0 (view)"]),
    ("cache_k_l0 (view)", "VIEW", &["cache_k_l0"]),
    ("cache_k_l0 (view) (permuted)", "PERMUTE", &["cache_k_l0 (view)"]),
    ("node_21", "FLASH_ATTN_EXT", &["Qcur-0 (view) (permuted)", "cache_k_l0 (view) (permuted)"]),
    ("kqv_out-0", "RESHAPE", &["node_21"]),
    ("attn_out-0", "MUL_MAT", &["blk.0.attn_output.weight", "kqv_out-0"]),
    ("ffn_inp-0", "ADD", &["attn_out-0", "embd"]),
    ("norm-0", "RMS_NORM", &["ffn_inp-0"]),
    ("ffn_norm-0", "MUL", &["norm-0", "blk.0.ffn_norm.weight"]),
    ("ffn_gate-0", "MUL_MAT", &["blk.0.ffn_gate.weight", "ffn_norm-0"]),
    ("ffn_up-0", "MUL_MAT", &["blk.0.ffn_up.weight", "ffn_norm-0"]),
    ("ffn_swiglu-0", "SWIGLU", &["ffn_gate-0", "ffn_up-0"]),
    ("ffn_out-0", "MUL_MAT", &["blk.0.ffn_down.weight", "ffn_swiglu-0"]),
    ("l_out-0", "ADD", &["ffn_out-0", "ffn_inp-0"]),
    ("norm", "RMS_NORM", &["l_out-0"]),
    ("result_norm", "MUL", &["norm", "output_norm.weight"]),
    ("result_output", "MUL_MAT", &["output.weight", "result_norm"]),
];

/// The expert part of a block, as llama.cpp's build_moe_ffn makes it, and attention without flash attention.
const MOE: &[Row] = &[
    ("kq-1", "MUL_MAT", &["cache_k_l1 (view) (permuted)", "Qcur-1 (view) (permuted)"]),
    ("kq_soft_max-1", "SOFT_MAX", &["kq-1", "attn_inp_kq_mask"]),
    ("kqv-1", "MUL_MAT", &["cache_v_l1 (view) (permuted)", "kq_soft_max-1"]),
    ("kqv-1 (permuted)", "PERMUTE", &["kqv-1"]),
    ("kqv_out-1", "CONT", &["kqv-1 (permuted)"]),
    ("node_60", "MUL_MAT", &["blk.1.attn_output.weight", "kqv_out-1"]),
    ("ffn_inp-1", "ADD", &["node_60", "l_out-0"]),
    ("ffn_norm-1", "MUL", &["norm-1", "blk.1.ffn_norm.weight"]),
    ("ffn_moe_logits-1", "MUL_MAT", &["blk.1.ffn_gate_inp.weight", "ffn_norm-1"]),
    ("ffn_moe_probs-1", "SOFT_MAX", &["ffn_moe_logits-1"]),
    ("ffn_moe_argsort-1", "ARGSORT", &["ffn_moe_probs-1"]),
    ("ffn_moe_topk-1", "VIEW", &["ffn_moe_argsort-1"]),
    ("ffn_moe_probs-1 (reshaped)", "RESHAPE", &["ffn_moe_probs-1"]),
    ("ffn_moe_weights-1", "GET_ROWS", &["ffn_moe_probs-1 (reshaped)", "ffn_moe_topk-1"]),
    ("ffn_moe_weights-1 (reshaped)", "RESHAPE", &["ffn_moe_weights-1"]),
    ("ffn_moe_weights_sum-1", "SUM_ROWS", &["ffn_moe_weights-1 (reshaped)"]),
    ("ffn_moe_weights_norm-1", "DIV", &["ffn_moe_weights-1 (reshaped)", "ffn_moe_weights_sum-1"]),
    ("ffn_moe_gate-1", "MUL_MAT_ID", &["blk.1.ffn_gate_exps.weight", "ffn_norm-1", "ffn_moe_topk-1"]),
    ("ffn_moe_swiglu-1", "SWIGLU", &["ffn_moe_gate-1", "ffn_moe_up-1"]),
    ("ffn_moe_weighted-1", "MUL", &["ffn_moe_down-1", "ffn_moe_weights_norm-1 (reshaped)"]),
    ("ffn_moe_weighted-1 (view)", "VIEW", &["ffn_moe_weighted-1"]),
    ("ffn_moe_out-1", "ADD", &["ffn_moe_weighted-1 (view)", "ffn_moe_weighted-1 (view)"]),
    ("l_out-1", "ADD", &["ffn_moe_out-1", "ffn_inp-1"]),
    ("CUDA0#l_out-1#0", "NONE", &[]),
];

/// Recurrent block: states are written back into the cache.
const RECURRENT: &[Row] = &[
    ("cache_r_l2 (reshaped) (view)", "VIEW", &["cache_r_l2 (reshaped)"]),
    ("conv_states-2", "GET_ROWS", &["cache_r_l2 (reshaped)", "rs_s_copy"]),
    ("cache_r_l2 (view) (copy of last_conv_states-2)", "CPY", &["last_conv_states-2", "cache_r_l2 (view)"]),
    ("node_90", "SSM_SCAN", &["state-2"]),
    ("l_out-2", "ADD", &["node_90", "l_out-1"]),
];

fn candidates(graph: &[Row]) -> Vec<Candidate<'_>> {
    let tensor = |name, op| Tensor { name, op, ..Tensor::default() };
    let mut found: Vec<_> = graph
        .iter()
        .map(|&(name, op, sources)| {
            let src: Vec<_> = sources.iter().map(|s| tensor(s, "")).collect();
            Candidate::new(name, op, &classify(&Node { out: tensor(name, op), src: &src }), Some(3))
        })
        .collect();
    let computing: Vec<_> = found.iter().filter(|c| c.computes()).map(|c| c.name).collect();
    for node in found.iter_mut().filter(|c| !c.computes()) {
        node.twin = computing.contains(&node.name);
    }
    found
}

/// What the selection takes from the graph, as `name:OP` where the name is not the only one.
fn taken(selection: &str, graph: &[Row]) -> Vec<String> {
    let selection = Selection::parse(selection).expect(selection);
    let nodes = candidates(graph);
    let shown = |c: &Candidate<'_>| {
        let unique = nodes.iter().filter(|o| o.name == c.name).count() == 1;
        if unique { c.name.to_owned() } else { format!("{}:{}", c.name, c.op) }
    };
    nodes.iter().filter(|c| selection.wants(c).is_some()).map(shown).collect()
}

#[test]
fn presets_on_a_dense_model() {
    assert_eq!(taken("residual", DENSE), ["l_out-0"]);
    assert_eq!(taken("auto", DENSE), ["l_out-0"]);
    assert_eq!(taken("Logits", DENSE), ["result_output"]);
    assert_eq!(taken("routing", DENSE), [""; 0]);
    assert_eq!(taken("mlp_only", DENSE), ["ffn_gate-0", "ffn_up-0", "ffn_swiglu-0", "ffn_out-0"]);
    let attention =
        ["Qcur-0:MUL_MAT", "Qcur-0:ROPE", "Vcur-0:MUL_MAT", "Kcur-0:MUL_MAT", "Kcur-0:ROPE", "node_21", "attn_out-0"];
    assert_eq!(taken("ATTENTION_ONLY", DENSE), attention);
    assert_eq!(taken("attention_analysis", DENSE), attention);
    let computed: Vec<_> = DENSE.iter().filter(|(_, op, _)| !is_view_op(op) && *op != "SET_ROWS").collect();
    for everything in
        ["FULL_TENSOR", "SAMPLED_SLICES", "fast_capture", "balanced", "max_compression", "max", "*", "@0-,*"]
    {
        assert_eq!(taken(everything, DENSE).len(), computed.len(), "{everything}");
    }
}

#[test]
fn presets_on_experts_and_recurrent_states() {
    let routing = [
        "ffn_moe_logits-1",
        "ffn_moe_probs-1",
        "ffn_moe_topk-1",
        "ffn_moe_weights-1",
        "ffn_moe_weights_sum-1",
        "ffn_moe_weights_norm-1",
    ];
    assert_eq!(taken("routing", MOE), routing);
    assert_eq!(taken("auto", MOE), [&routing[..], &["l_out-1"]].concat());
    assert_eq!(taken("ATTENTION_ONLY", MOE), ["kq-1", "kq_soft_max-1", "kqv-1", "kqv_out-1", "node_60"]);
    let mlp = taken("MLP_ONLY", MOE);
    assert!(mlp.contains(&"ffn_moe_out-1".to_owned()) && !mlp.contains(&"ffn_moe_topk-1".to_owned()), "{mlp:?}");
    assert_eq!(taken("FULL_TENSOR", RECURRENT), ["conv_states-2", "node_90", "l_out-2"]);
    assert_eq!(taken("residual", RECURRENT), ["l_out-2"]);
}

#[test]
fn names_patterns_components_ops_and_layers() {
    for (selection, graph, expected) in [
        ("Qcur", DENSE, &["Qcur-0:MUL_MAT", "Qcur-0:ROPE"][..]),
        ("?cur-0,-Vcur", DENSE, &["Qcur-0:MUL_MAT", "Qcur-0:ROPE", "Kcur-0:MUL_MAT", "Kcur-0:ROPE"]),
        ("kqv_out", DENSE, &["kqv_out-0"]),
        ("kqv_out-1 l_out-1", MOE, &["kqv_out-1", "l_out-1"]),
        ("kqv_*", DENSE, &[]),
        ("component:norm", DENSE, &["norm-0:RMS_NORM", "attn_norm-0", "norm-0:RMS_NORM", "ffn_norm-0", "norm"]),
        ("op:swiglu", DENSE, &["ffn_swiglu-0"]),
        ("op:*GLU@1", MOE, &["ffn_moe_swiglu-1"]),
        ("OP:MUL_MAT !component:attention", DENSE, &["ffn_gate-0", "ffn_up-0", "ffn_out-0", "result_output"]),
        ("residual@last", RECURRENT, &["l_out-2"]),
        ("residual@last2+7", MOE, &["l_out-1"]),
        ("residual@0+5-9", MOE, &[]),
        ("FULL_TENSOR,-@0", DENSE, &["embd", "norm", "result_norm", "result_output"]),
        ("name:logits,l_out", DENSE, &["l_out-0"]),
        ("*l_out*", MOE, &["l_out-1"]),
        ("cache_*", DENSE, &[]),
        ("ffn_moe_topk", MOE, &["ffn_moe_topk-1"]),
    ] {
        assert_eq!(taken(selection, graph), expected, "{selection}");
    }
}

#[test]
fn no_selection_takes_inputs_weights_caches_or_copies_between_devices() {
    let texts = ["*", "FULL_TENSOR", "component:other,component:ssm,component:attention", "op:*", "name:*l*", "@0-"];
    for selection in texts.map(|t| Selection::parse(t).unwrap()) {
        for (name, op) in [
            ("inp_tokens", "NONE"),
            ("inp_pos", "NONE"),
            ("leaf_7", "NONE"),
            ("blk.0.ffn_up.weight", "NONE"),
            ("cache_k_l0", "NONE"),
            ("cache_k_l0 (view)", "SET_ROWS"),
            ("cache_v_l0 (copy of Vcur-0)", "CPY"),
            ("cache_s_l0 (view)", "SCALE"),
            ("CUDA0#l_out-3#0", "ADD"),
            ("Qcur-0 (view)", "VIEW"),
            ("kqv_out-0", "RESHAPE"),
        ] {
            let class = classify(&Node { out: Tensor { name, op, ..Tensor::default() }, src: &[] });
            assert_eq!(selection.wants(&Candidate::new(name, op, &class, None)), None, "{selection}: {name}");
        }
    }
}

/// One tensor a block for every architecture that names the output of its blocks, from its own names in its order.
#[test]
fn residual_is_one_tensor_a_block_whatever_the_architecture() {
    for (architecture, names, expected) in [
        (
            "llama, qwen3, gemma3, mamba, ...",
            &["ffn_inp-4 ADD", "ffn_out-4 MUL_MAT", "l_out-4 ADD"][..],
            &["l_out-4"][..],
        ),
        ("falcon-h1", &["layer_out-4 ADD", "ffn_inp-4 ADD", "l_out-4 ADD"], &["l_out-4"]),
        ("deepseek4", &["hc_pre-4 MUL", "ffn_out-4 ADD", "l_last-4 DSV4_HC_POST"], &["l_last-4"]),
        ("plamo2", &["attn_residual-4 ADD", "ffn_post_norm-4 MUL", "ffn_residual-4 ADD"], &["ffn_residual-4"]),
        ("eagle3", &["ffn_inp-0 ADD", "ffn_out-0 MUL_MAT", "eagle3_prenorm-0 ADD"], &["eagle3_prenorm-0"]),
        ("gemma4-assistant", &["ffn_post_norm-1 MUL", "out_scaled-1 MUL", "h_nextn MUL_MAT"], &["out_scaled-1"]),
        ("step35, mimo2", &["l_out-3 ADD", "h_nextn ADD", "result_norm MUL"], &["l_out-3", "h_nextn"]),
        ("qwen35, glm4-moe", &["l_out-3 ADD", "h_nextn MUL", "result_output MUL_MAT"], &["l_out-3"]),
        ("glm4-moe's MTP block", &["mtp_ffn_out-47 ADD", "mtp_post_ffn-47 ADD", "h_nextn MUL"], &["mtp_post_ffn-47"]),
        ("deepseek4's MTP block", &["mtp_ffn_out-61 ADD", "mtp_l_out-61 DSV4_HC_POST"], &["mtp_l_out-61"]),
        ("bert: no name", &["ffn_inp-4 ADD", "ffn_out-4 MUL_MAT", "node_77 ADD"], &[]),
    ] {
        let residual = Selection::parse("residual").unwrap();
        let found: Vec<_> = names
            .iter()
            .map(|row| row.split_once(' ').unwrap())
            .filter(|&(name, op)| {
                let class = classify(&Node { out: Tensor { name, op, ..Tensor::default() }, src: &[] });
                residual.wants(&Candidate::new(name, op, &class, None)).is_some()
            })
            .map(|(name, _)| name)
            .collect();
        assert_eq!(found, expected, "{architecture}");
    }
}

/// Every literal name of the pinned llama.cpp can be written as a term and finds itself, with and without layer.
#[test]
fn every_name_of_llama_cpp_can_be_selected() {
    let mut n_names = 0;
    for name in include_str!("../../tests/data/tensor-names.tsv").lines().skip(1).filter_map(|l| l.split('\t').nth(1)) {
        let term = format!("name:{}", name.replace(' ', "?"));
        let selection = Selection::parse(&term).unwrap_or_else(|e| panic!("{term}: {e}"));
        for full in [name.to_owned(), format!("{name}-12")] {
            let class = classify(&Node { out: Tensor { name: &full, op: "ADD", ..Tensor::default() }, src: &[] });
            let node = Candidate::new(&full, "ADD", &class, None);
            let input = matches!(class.component, Component::Input | Component::KvCache);
            assert_eq!(selection.wants(&node).is_some(), !input, "{full} by {term}");
        }
        n_names += 1;
    }
    assert!(n_names > 500, "{n_names}");
}

#[test]
fn terms_are_counted_and_whole_rows_win_over_samples() {
    let selection = Selection::parse("SAMPLED_SLICES, l_out, l_uot, auto, -ffn_moe*").unwrap();
    let nodes = candidates(DENSE);
    let of = |name: &str| nodes.iter().find(|c| c.name == name).and_then(|c| selection.wants(c));
    assert_eq!((of("l_out-0"), of("ffn_up-0")), (Some(1), Some(0)));
    assert!(selection.is_sampled(0) && !selection.is_sampled(1) && !selection.is_sampled(99));
    let seen = nodes.iter().fold(0, |seen, c| seen | selection.matches(c));
    assert_eq!(selection.unmatched(seen).collect::<Vec<_>>(), ["l_uot", "-ffn_moe*"]);
    assert_eq!(selection.term(2), Some("l_uot"));
    assert_eq!(Selection::default().unmatched(0).count(), 0);
}

#[test]
fn older_presets_bring_their_codec() {
    for (text, codec) in [
        ("fast_capture", Some(Codec::None)),
        ("BALANCED", Some(Codec::Lz4)),
        ("max_compression", Some(Codec::Zstd)),
        ("max", Some(Codec::Zstd)),
        ("attention_analysis@0-3", Some(Codec::Lz4)),
        ("residual,mlp_analysis", Some(Codec::Lz4)),
        ("FULL_TENSOR", None),
        ("l_out,-max", None),
    ] {
        assert_eq!(Selection::parse(text).unwrap().codec(), codec, "{text}");
    }
}

#[test]
fn bad_selections_say_what_was_expected() {
    for (text, expected) in [
        ("", "it is empty"),
        (" , ", "it is empty"),
        ("-logits", "it only takes away"),
        ("l_out;ffn_out", "ATTENTION_ONLY"),
        ("bogus!", "residual, routing"),
        ("%", "neither a preset nor a tensor name"),
        ("atention_only", "`ATTENTION_ONLY` is one"),
        ("component:mpl", "expected one of other, attention, mlp"),
        ("component:kv_cache", "`Kcur` and `Vcur`"),
        ("component:input", "not computed"),
        ("op:VIEW", "name the tensor instead"),
        ("op:", "`op:MUL_MAT`"),
        ("layer:3", "expected `component:`"),
        ("l_out@", "@0-5"),
        ("l_out@0,5", "a plus sign"),
        ("l_out@5-0", "@0-5"),
        ("name:", "neither"),
    ] {
        let why = Selection::parse(text).expect_err(text);
        assert!(why.contains(expected), "{text}: {why}");
    }
    assert!(Selection::parse(&"a,".repeat(65)).unwrap_err().contains("at most 64"));
    assert!(Selection::parse(&"a,".repeat(64)).is_ok());
}
