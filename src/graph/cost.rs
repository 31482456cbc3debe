//! What a node costs: floating-point operations, and the bytes it cannot avoid to read and write.
//!
//! Bytes are what the op needs once, as if nothing was read twice and nothing came from a cache: packed bytes, without
//! the gaps of strided views. Real traffic is at least this where the data is larger than the caches, and may be less
//! where a backend fuses nodes. The FLOP formulas are in `flops`. Op names are compared, never their numbers: ggml
//! renumbers them.

use super::flops::{self, Rule, product};
use super::ops::is_view_op;
use super::{Node, Tensor};

/// The cost of one execution of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flops: u64,
    /// Bytes of the sources that the op uses.
    pub bytes_read: u64,
    /// Bytes of the result that the op changes.
    pub bytes_written: u64,
}

/// The cost of `node`. An unknown op has no FLOPs (see `known_op`), its bytes are those of all sources and the result.
#[must_use]
pub fn cost(node: &Node<'_>) -> Cost {
    let op = node.out.op;
    if is_view_op(op) {
        return Cost::default();
    }
    let flops = match flops::rule(op) {
        Some(Rule::Result(per_element)) => product(&[per_element, node.out.elements()]),
        Some(Rule::Source(per_element)) => product(&[per_element, node.source(0).elements()]),
        Some(Rule::Formula(formula)) => formula(node),
        Some(Rule::Opaque) | None => 0,
    };
    Cost { flops, bytes_read: bytes_read(node), bytes_written: bytes_written(node) }
}

/// The FLOPs of this op can be told. False for ops of a later ggml and for the host's own (`CUSTOM`, `MAP_CUSTOM*`).
#[must_use]
pub fn known_op(op: &str) -> bool {
    !matches!(flops::rule(op), None | Some(Rule::Opaque))
}

/// Bytes of the sources that the op has to see.
fn bytes_read(node: &Node<'_>) -> u64 {
    let source = |i| node.source(i);
    let packed = |i| node.source(i).packed_bytes();
    match node.out.op {
        // The picked rows and their numbers.
        "GET_ROWS" => sum(&[rows(&source(0), source(1).elements()), packed(1)]),
        // The rows and their numbers; the third source is the destination.
        "SET_ROWS" => sum(&[packed(0), packed(1)]),
        // The second source is the destination.
        "CPY" => packed(0),
        // As many experts as can be picked: an upper bound, tokens may share experts.
        "MUL_MAT_ID" => {
            let experts = source(0);
            let n_experts = experts.dim(2);
            let used = source(2).elements().min(n_experts);
            sum(&[part(experts.packed_bytes(), used, n_experts), packed(1), packed(2)])
        }
        // One bias row for each picked expert, each row once.
        "ADD_ID" => sum(&[packed(0), rows(&source(1), source(2).elements().min(source(1).rows())), packed(2)]),
        // The states of the sequences in this batch out of all that are kept.
        "SSM_SCAN" => {
            let states = source(0);
            let used = source(6).elements().min(states.dim(3));
            sum(&[part(states.packed_bytes(), used, states.dim(3)), (1..7).map(packed).fold(0, u64::saturating_add)])
        }
        // The kernel only lends its shape.
        "IM2COL" | "IM2COL_3D" => packed(1),
        "IM2COL_BACK" => packed(0),
        // The source only lends its shape.
        "FILL" | "ARANGE" => 0,
        _ => node.src.iter().fold(0, |bytes: u64, source| bytes.saturating_add(source.packed_bytes())),
    }
}

/// Bytes of the result that the op has to change.
fn bytes_written(node: &Node<'_>) -> u64 {
    match node.out.op {
        // The result is the whole cache, but only the given rows are set.
        "SET_ROWS" => rows(&node.out, node.source(0).rows()),
        // The weights and both moments.
        "OPT_STEP_ADAMW" => product(&[3, node.out.packed_bytes()]),
        _ => node.out.packed_bytes(),
    }
}

/// Bytes of `n` rows.
fn rows(tensor: &Tensor<'_>, n: u64) -> u64 {
    product(&[tensor.row_bytes(), n])
}

/// `used` of `all` equal parts.
fn part(bytes: u64, used: u64, all: u64) -> u64 {
    product(&[bytes / all.max(1), used])
}

fn sum(terms: &[u64]) -> u64 {
    terms.iter().fold(0, |sum: u64, &term| sum.saturating_add(term))
}

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
