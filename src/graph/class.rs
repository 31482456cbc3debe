//! Which component and layer a node belongs to, from its name, its op and the names of its sources.
//!
//! `name` takes the names apart, `rules` knows them. A node without a name of its own (`node_17`: flash attention, most
//! attention output projections) is known by the weight it uses, then by its other sources, then by its op.
//! Runs in the host at every graph build: no allocation.

use super::component::Component;
use super::name::{self, ParsedName};
use super::rules::{NODES, WEIGHTS};
use super::{Node, Tensor};

pub use super::ops::{activation, is_matmul, is_view_op, moves_data_only};

impl From<u8> for Component {
    fn from(number: u8) -> Self {
        Self::from_u8(number)
    }
}

/// Where a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The part of the model.
    pub component: Component,
    /// The block; none for what stands before, after or outside the blocks.
    pub layer: Option<i32>,
    /// Named as part of multi-token prediction (`mtp_…`, `nextn.…`). MTP blocks that reuse the ordinary names are not
    /// seen here; their layer is at least the model's number of layers.
    pub mtp: bool,
}

/// Classifies a graph node.
#[must_use]
pub fn classify(node: &Node<'_>) -> Class {
    let parsed = name::parse(node.out.name);
    if let Some(class) = classify_name(&parsed, node.out.op) {
        return class;
    }
    let mut class = classify_sources(node);
    // The name may be one that a later llama.cpp brought: its layer still counts.
    class.layer = parsed.layer.or(class.layer);
    class.mtp |= parsed.base.starts_with("mtp_");
    class
}

/// Classifies a tensor by itself: a weight, a cache, an input, or a node whose sources are not available.
#[must_use]
pub fn classify_tensor(name: &str, op: &str) -> Class {
    let parsed = name::parse(name);
    classify_name(&parsed, op).unwrap_or_else(|| Class {
        component: decisive_op(op).or_else(|| suggestive_op(op)).unwrap_or(Component::Other),
        layer: parsed.layer,
        mtp: parsed.base.starts_with("mtp_"),
    })
}

/// `gate_proj`, `up_proj`, `down_proj` or `gate_up_proj` for the matrix multiplications of a feed-forward part, experts
/// and shared experts included. A dense `ffn_up` that holds gate and up in one matrix (Phi-3, GLM-4) is `up_proj`: only
/// its use tells them apart. LoRA's own small multiplications have no role.
#[must_use]
pub fn mlp_role(node: &Node<'_>) -> Option<&'static str> {
    if !matches!(node.out.op, "MUL_MAT" | "MUL_MAT_ID") {
        return None;
    }
    let source = node.src.first().map_or("", |t| t.name);
    let weight = name::parse(source);
    if weight.weight {
        return if source.contains(".lora_") { None } else { ffn_role(weight.base) };
    }
    let base = name::parse(node.out.name).base;
    match base.strip_prefix("mtp_").unwrap_or(base) {
        "ffn_gate" | "ffn_moe_gate" => Some("gate_proj"),
        "ffn_up" | "ffn_moe_up" => Some("up_proj"),
        "ffn_moe_gate_up" => Some("gate_up_proj"),
        "ffn_down" | "ffn_out" | "ffn_moe_down" => Some("down_proj"),
        _ => None,
    }
}

/// The role of a feed-forward weight: `ffn_<role>`, alone or with one of the endings that experts use.
fn ffn_role(base: &str) -> Option<&'static str> {
    let key = base.strip_prefix("ffn_").or_else(|| base.strip_prefix("vis_"))?;
    let key = match key.rfind(['_', '.']).map(|at| key.split_at(at)) {
        Some((key, "_exps" | "_shexp" | "_chexps")) => key,
        // `ffn_gate.7`: one expert per tensor, in old files.
        Some((key, number)) if number.len() > 1 && number[1..].bytes().all(|b| b.is_ascii_digit()) => key,
        _ => key,
    };
    match key {
        "gate" => Some("gate_proj"),
        "up" => Some("up_proj"),
        "down" => Some("down_proj"),
        "gate_up" => Some("gate_up_proj"),
        _ => None,
    }
}

/// The class that the tensor's own name gives, if it gives one.
fn classify_name(parsed: &ParsedName<'_>, op: &str) -> Option<Class> {
    let base = parsed.base;
    if parsed.weight {
        let component = WEIGHTS.find(base).or_else(|| norm_by_ending(base)).unwrap_or(Component::Other);
        return Some(Class { component, layer: parsed.layer, mtp: base.starts_with("nextn.") });
    }
    if op == "NONE" && (base.starts_with("inp_") || base.starts_with("leaf_") || base == "mtp_h_input") {
        return Some(Class { component: Component::Input, layer: parsed.layer, mtp: base.starts_with("mtp_") });
    }
    if name::is_automatic(base) {
        return None;
    }
    let inner = base.strip_prefix("mtp_");
    let component = NODES.find(base).or_else(|| NODES.find(inner?)).or_else(|| norm_by_ending(base))?;
    // Two places call a tensor `top_k`: sparse attention inside a block, the sampler outside.
    let component = if base == "top_k" && parsed.layer.is_none() { Component::Sampling } else { component };
    Some(Class { component, layer: parsed.layer, mtp: inner.is_some() })
}

/// Names of a norm that no table has.
fn norm_by_ending(base: &str) -> Option<Component> {
    base.ends_with("_norm").then_some(Component::Norm)
}

/// The class of a node whose own name says nothing.
fn classify_sources(node: &Node<'_>) -> Class {
    let op = node.out.op;
    let decided = decisive_op(op);
    let mut weight: Option<Class> = None;
    let mut named: Option<Class> = None;
    let mut cache = false;
    let mut layer = None;
    for source in node.src {
        let Some((class, is_weight)) = classify_source(source) else { continue };
        // A node cannot stand before what it uses. Comparing also skips a KV cache shared with an earlier layer.
        layer = layer.max(class.layer);
        match class.component {
            _ if is_weight => weight = weight.or(Some(class)),
            Component::KvCache => cache = true,
            Component::Input | Component::Other => {}
            _ => named = named.or(Some(class)),
        }
        // Nothing that follows can change the answer.
        let only_layer_missing = weight.is_some() || (decided.is_some() && named.is_some());
        if only_layer_missing && class.layer.is_some() && class.component != Component::KvCache {
            break;
        }
    }
    if let Some(class) = weight {
        // RoPE's frequency factors and the like belong to no block themselves.
        return Class { layer: class.layer.or(layer), ..class };
    }
    let component = decided
        .or(named.map(|class| class.component))
        .or_else(|| match cache {
            true if is_matmul(op) => Some(Component::Attention),
            true => Some(Component::KvCache),
            false => suggestive_op(op),
        })
        .unwrap_or(Component::Other);
    Class { component, layer, mtp: named.is_some_and(|class| class.mtp) }
}

/// The class of one source and whether it is a weight; none for gaps and automatic names.
fn classify_source(source: &Tensor<'_>) -> Option<(Class, bool)> {
    let parsed = name::parse(source.name);
    Some((classify_name(&parsed, source.op)?, parsed.weight))
}

/// Ops that only one component uses.
fn decisive_op(op: &str) -> Option<Component> {
    Some(match op {
        "FLASH_ATTN_EXT" | "FLASH_ATTN_BACK" => Component::Attention,
        "RMS_NORM" | "NORM" | "GROUP_NORM" => Component::Norm,
        "MUL_MAT_ID" | "ADD_ID" => Component::Moe,
        "SSM_CONV" | "SSM_SCAN" | "RWKV_WKV6" | "RWKV_WKV7" | "GATED_LINEAR_ATTN" | "GATED_DELTA_NET" => Component::Ssm,
        "LIGHTNING_INDEXER" => Component::AttentionIndex,
        "DSV4_HC_COMB" | "DSV4_HC_PRE" | "DSV4_HC_POST" => Component::Residual,
        _ => return None,
    })
}

/// Ops that mostly one component uses: believed when nothing else is known.
fn suggestive_op(op: &str) -> Option<Component> {
    Some(match op {
        "ROPE" | "SOFT_MAX" | "DIAG_MASK_INF" => Component::Attention,
        "SWIGLU" | "SWIGLU_OAI" | "SWIGLU_CLAMP" | "GEGLU" | "GEGLU_ERF" | "GEGLU_QUICK" | "REGLU" => Component::Mlp,
        "SET_ROWS" => Component::KvCache,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "class_tests.rs"]
mod tests;
