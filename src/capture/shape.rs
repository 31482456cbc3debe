//! Which dimension of a node counts the tokens of the ubatch, and whether its rows are all tokens or only those
//! with an output.

use std::collections::HashMap;

use super::names::MOST_NAMES;

/// What the rows of a tensor stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every token of the ubatch.
    Tokens,
    /// The tokens whose output was asked for: behind the last layer's row selection.
    Outputs,
    /// Neither: a recurrent state, a pooled vector, a mask.
    Other,
}

/// A tensor's shape as it is stored, and what its rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// ggml's shape; two neighbouring dimensions that count the tokens together (tokens of a sequence,
    /// sequences) are one.
    pub ne: [u32; 4],
    /// The dimension that counts tokens, 0 if none does.
    pub token_dim: u8,
    /// What it counts.
    pub rows: Rows,
}

/// The dimension of each tensor that was once found beyond doubt: with as many tokens as heads, a shape alone
/// does not tell.
pub type Known = HashMap<Box<str>, u8>;

/// Finds the tokens in `ne`. `selected`: the node lies behind the row selection, so its rows are outputs.
#[must_use]
pub fn of(
    name: &str,
    op: &str,
    ne: [i64; 4],
    n_tokens: u64,
    n_outputs: u64,
    selected: bool,
    known: &mut Known,
) -> Option<Shape> {
    let mut dims = [0u32; 4];
    for (to, from) in dims.iter_mut().zip(ne) {
        *to = u32::try_from(from).ok()?;
    }
    let (count, rows) = if selected { (n_outputs, Rows::Outputs) } else { (n_tokens, Rows::Tokens) };
    let other = Shape { ne: dims, token_dim: 0, rows: Rows::Other };
    // Their results are outputs and the new state, one behind the other.
    if matches!(op, "SSM_SCAN" | "RWKV_WKV6" | "RWKV_WKV7" | "GATED_LINEAR_ATTN" | "GATED_DELTA_NET") {
        return Some(other);
    }
    if let Some(dim) = token_dim(name, dims, count, known) {
        return Some(Shape { ne: dims, token_dim: dim as u8, rows });
    }
    // Recurrent layers see [.., tokens of a sequence, sequences]: one after the other that is the order of the ubatch.
    for dim in [2, 1].into_iter().filter(|_| !is_score(name)) {
        if u64::from(dims[dim]) * u64::from(dims[dim + 1]) == count && dims[dim + 1] > 1 {
            let mut merged = dims;
            merged[dim] *= merged[dim + 1];
            merged[dim + 1] = if dim == 1 { dims[3] } else { 1 };
            merged[3] = 1;
            return Some(Shape { ne: merged, token_dim: dim as u8, rows });
        }
    }
    if count > 1 {
        remember(known, name, 0);
    }
    Some(other)
}

/// Of names without end (`names::MOST_NAMES`) the first are remembered; the others go by their shape alone.
fn remember(known: &mut Known, name: &str, dim: u8) {
    if known.len() < MOST_NAMES || known.contains_key(name) {
        known.insert(name.into(), dim);
    }
}

fn token_dim(name: &str, ne: [u32; 4], count: u64, known: &mut Known) -> Option<usize> {
    if count > 1 && known.get(name) == Some(&0) && !is_score(name) {
        // A graph of another size has shown that it has none: a state of two rows is not two tokens.
        return None;
    }
    let fits = |d: &usize| u64::from(ne[*d]) == count;
    let mut candidates: Vec<usize> = (1..4).filter(fits).collect();
    if is_score(name) && ne[3] > 1 {
        // Caches of their own: [cells, tokens of a sequence, heads, sequences]. One dimension counts the tokens only if
        // each has one.
        candidates.retain(|&d| d == 3 && ne[1] == 1);
    }
    if let ([one], true) = (candidates.as_slice(), count > 1) {
        remember(known, name, *one as u8);
        return Some(*one);
    }
    match known.get(name).map(|&d| usize::from(d)) {
        Some(0) if count == 1 => return None,
        Some(dim) if candidates.contains(&dim) => return Some(dim),
        _ => {}
    }
    if count == 1 {
        // One token: its dimension is the first of length 1, behind those that make up a row.
        return candidates.first().copied();
    }
    // As many tokens as heads: attention scores are [cells, tokens, heads], everything else has its tokens last.
    if is_score(name) { candidates.first().copied() } else { candidates.last().copied() }
}

/// `kq-3`, `kq_soft_max-3`: a row of cells for each token and head. `kqv` is not.
fn is_score(name: &str) -> bool {
    name.strip_prefix("kq").is_some_and(|rest| rest.starts_with(['-', '_', '.']))
}

#[cfg(test)]
mod tests {
    use super::{Known, Rows, Shape, of};

    fn shape(name: &str, ne: [i64; 4], tokens: u64, known: &mut Known) -> (u8, [u32; 4]) {
        let Shape { ne, token_dim, rows } = of(name, "ADD", ne, tokens, 1, false, known).unwrap();
        assert_eq!(rows == Rows::Other, token_dim == 0);
        (token_dim, ne)
    }

    #[test]
    fn tokens_are_found_by_their_number() {
        let known = &mut Known::new();
        assert_eq!(shape("l_out-0", [576, 5, 1, 1], 5, known).0, 1);
        assert_eq!(shape("Qcur-0", [64, 9, 5, 1], 5, known).0, 2);
        assert_eq!(shape("kq-0", [256, 5, 9, 1], 5, known).0, 1);
        // One token.
        assert_eq!(shape("l_out-1", [576, 1, 1, 1], 1, known).0, 1);
        assert_eq!(shape("Qcur-1", [64, 9, 1, 1], 1, known).0, 2);
        assert_eq!(shape("kq-1", [256, 1, 9, 1], 1, known).0, 1);
        // Recurrent: two sequences of three tokens.
        assert_eq!(shape("conv-0", [128, 3, 2, 1], 6, known), (1, [128, 6, 1, 1]));
        assert_eq!(shape("ssm-0", [16, 8, 3, 2], 6, known), (2, [16, 8, 6, 1]));
        assert_eq!(shape("state-0", [16, 128, 2, 1], 7, known).0, 0);
        assert_eq!(shape("state-0", [16, 128, 1, 1], 1, known).0, 0, "what has no tokens has none when there is one");
        assert_eq!(shape("state-0", [2, 7, 1, 1], 7, known).0, 0, "nor when there are as many tokens as it has rows");
        assert_eq!(shape("kqv_out-1", [16, 4, 1, 4], 4, known).0, 3);
        assert_eq!(shape("kq-3", [256, 1, 4, 4], 4, known).0, 3);
        assert_eq!(shape("kq-4", [256, 2, 4, 4], 8, known).0, 0);
        assert_eq!(shape("heads-0", [16, 4, 3, 2], 6, known), (2, [16, 4, 6, 1]));
        let glued = of("node_36", "SSM_SCAN", [2176, 1, 1, 1], 1, 1, false, known).unwrap();
        assert_eq!(glued.rows, Rows::Other);
    }

    #[test]
    fn as_many_tokens_as_heads_is_decided_by_what_was_seen_before() {
        let known = &mut Known::new();
        assert_eq!(shape("x-0", [64, 9, 9, 1], 9, known).0, 2);
        assert_eq!(shape("kq-0", [256, 9, 9, 1], 9, known).0, 1);
        assert_eq!(shape("odd-0", [64, 4, 9, 1], 4, known).0, 1);
        assert_eq!(shape("odd-0", [64, 9, 9, 1], 9, known).0, 1);
    }
}
