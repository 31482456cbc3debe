//! Takes a tensor name apart: which key, which layer. Borrowed from the name, nothing allocated.
//!
//! llama.cpp writes `<key>-<layer>` for graph nodes, `blk.<layer>.<key>.weight` for weights and
//! `cache_<kind>_l<layer>` for its caches; ggml appends ` (view)`, ` (cont)`, ... and the scheduler wraps the copies
//! between devices in `<backend>#<name>#<copy>`.

/// The parts of a tensor name that say what the tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedName<'a> {
    /// The key without layer, suffixes and wrapper: `Qcur`, `ffn_gate`, `cache_k`, `token_embd`.
    pub base: &'a str,
    /// The block that the name carries; none for what belongs to the whole model.
    pub layer: Option<i32>,
    /// The name is a weight's (`blk.…`, `….weight`, `….bias`): its key comes from the model file, not from a graph.
    pub weight: bool,
}

/// Takes `name` apart. A name of no known form is its own base.
#[must_use]
pub fn parse(name: &str) -> ParsedName<'_> {
    let name = plain(name);
    // The name of a node ends in a digit more often than not, that of a weight does only in a block: most names are
    // spared the search for a weight's endings.
    let ends_in_digit = name.bytes().next_back().is_some_and(|b| b.is_ascii_digit());
    if (!ends_in_digit || name.starts_with("blk."))
        && let Some(parsed) = parse_weight(name)
    {
        return parsed;
    }
    // `cache_k_l12`, and DeepSeek 4's `dsv4_csa_state_kv_l12`.
    if (name.starts_with("cache_") || name.starts_with("dsv4_"))
        && let Some((base, layer)) = split_number(name, "_l")
    {
        return ParsedName { base, layer: Some(layer), weight: false };
    }
    match split_number(name, "-") {
        Some((base, layer)) => ParsedName { base, layer: Some(layer), weight: false },
        None => ParsedName { base: name, layer: None, weight: false },
    }
}

/// The name is ggml's own (`node_17`, `leaf_3`, nothing): it says nothing about the tensor.
#[must_use]
pub fn is_automatic(base: &str) -> bool {
    let number = base.strip_prefix("node_").or_else(|| base.strip_prefix("leaf_"));
    base.is_empty() || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The name without split-copy wrapper and without what ggml appended.
fn plain(name: &str) -> &str {
    let bytes = name.as_bytes();
    let mut start = 0;
    let mut end = bytes.len();
    let mut i = 0;
    while i < end {
        match bytes[i] {
            // The wrapper's backend part is at the front, its copy number at the end; both or it is no wrapper.
            b'#' if start == 0 => {
                if let Some(last) = closing_hash(bytes, i) {
                    start = i + 1;
                    end = last;
                }
            }
            // A result of an unnamed tensor is called ` (view)`: the cut then leaves nothing.
            b' ' if bytes.get(i + 1) == Some(&b'(') => end = i,
            _ => {}
        }
        i += 1;
    }
    &name[start..end]
}

/// Position of the `#` before the copy number, when there is one after `first`.
fn closing_hash(bytes: &[u8], first: usize) -> Option<usize> {
    let last = bytes.iter().rposition(|&b| b == b'#')?;
    let copy = &bytes[last + 1..];
    (last > first && !copy.is_empty() && copy.iter().all(u8::is_ascii_digit)).then_some(last)
}

/// `blk.3.ffn_gate.weight`, `dec.blk.3.attn_q.weight`, `output.weight`, `blk.3.ssm_a`, with or without a LoRA suffix.
fn parse_weight(name: &str) -> Option<ParsedName<'_>> {
    let rest = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b")).unwrap_or(name);
    let key = strip_kind(rest);
    if let Some((layer, tensor)) = split_block(key.unwrap_or(rest)) {
        return Some(ParsedName { base: tensor, layer: Some(layer), weight: true });
    }
    key.map(|base| ParsedName { base, layer: None, weight: true })
}

/// The key of `<key>.weight`, `<key>.bias`, ...
fn strip_kind(name: &str) -> Option<&str> {
    name.strip_suffix(".weight")
        .or_else(|| name.strip_suffix(".bias"))
        .or_else(|| name.strip_suffix(".scale"))
        .or_else(|| name.strip_suffix(".input_scale"))
}

/// `[<part>.]blk.<layer>.<tensor>`; `<part>` is `enc`, `dec`, `v` (vision) or `a` (audio).
fn split_block(key: &str) -> Option<(i32, &str)> {
    let rest = key
        .strip_prefix("blk.")
        .or_else(|| ["enc.blk.", "dec.blk.", "v.blk.", "a.blk."].iter().find_map(|part| key.strip_prefix(part)))?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (layer, tensor) = rest.split_at(digits);
    Some((number(layer)?, tensor.strip_prefix('.')?))
}

/// `<base><mark><digits>` with the digits at the very end.
fn split_number<'a>(name: &'a str, mark: &str) -> Option<(&'a str, i32)> {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (head, tail) = name.split_at(name.len() - digits);
    Some((head.strip_suffix(mark)?, number(tail)?))
}

/// The value of a run of digits; none when there are none or too many.
fn number(digits: &str) -> Option<i32> {
    if digits.is_empty() {
        return None;
    }
    digits.bytes().try_fold(0_i32, |value, b| value.checked_mul(10)?.checked_add(i32::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str) -> (&str, Option<i32>) {
        let parsed = parse(name);
        (parsed.base, parsed.layer)
    }

    #[test]
    fn a_node_name_ends_in_its_layer() {
        assert_eq!(parts("Qcur-0"), ("Qcur", Some(0)));
        assert_eq!(parts("Qcur-post-rope-13"), ("Qcur-post-rope", Some(13)));
        assert_eq!(parts("model.layers.{}.ffn_norm-5"), ("model.layers.{}.ffn_norm", Some(5)));
        assert_eq!(parts("result_norm"), ("result_norm", None));
        assert_eq!(parts("node_21"), ("node_21", None));
        assert_eq!(parts("ends-"), ("ends-", None));
        assert_eq!(parts("g1 f_b(f_a(cur))-4"), ("g1 f_b(f_a(cur))", Some(4)));
        assert_eq!(parts("big-99999999999"), ("big-99999999999", None));
    }

    #[test]
    fn what_ggml_appended_is_cut() {
        assert_eq!(parts("Qcur-3 (view) (permuted)"), ("Qcur", Some(3)));
        assert_eq!(parts("cache_k_l7 (copy of Kcur-7)"), ("cache_k", Some(7)));
        assert_eq!(parts(" (view)"), ("", None));
        assert_eq!(parts(""), ("", None));
    }

    #[test]
    fn a_split_copy_is_unwrapped() {
        assert_eq!(parts("CUDA0#l_out-15#0"), ("l_out", Some(15)));
        assert_eq!(parts("Vulkan0#blk.2.ffn_up.weight#1"), ("ffn_up", Some(2)));
        assert_eq!(parts("CUDA0#Kcur-1 (view)#0"), ("Kcur", Some(1)));
        assert_eq!(parts("a#b"), ("a#b", None));
        assert_eq!(parts("#"), ("#", None));
    }

    #[test]
    fn weights_and_caches_carry_their_layer() {
        let gate = ParsedName { base: "ffn_gate", layer: Some(3), weight: true };
        assert_eq!(parse("blk.3.ffn_gate.weight"), gate);
        assert_eq!(parse("blk.3.ffn_gate.weight.lora_a"), gate);
        assert_eq!(parts("blk.12.attn_q.bias"), ("attn_q", Some(12)));
        assert_eq!(parts("dec.blk.1.cross_attn_q.weight"), ("cross_attn_q", Some(1)));
        assert_eq!(parts("blk.0.ssm_a"), ("ssm_a", Some(0)));
        assert_eq!(parts("blk.0.indexer.k_norm.weight"), ("indexer.k_norm", Some(0)));
        assert_eq!(parse("output.weight"), ParsedName { base: "output", layer: None, weight: true });
        assert_eq!(parts("cache_k_l12"), ("cache_k", Some(12)));
        assert_eq!(parts("cache_r_l3"), ("cache_r", Some(3)));
        assert_eq!(parts("cache_idx_k_l3 (view)"), ("cache_idx_k", Some(3)));
    }

    #[test]
    fn automatic_names_are_told_apart() {
        assert!(is_automatic("node_0") && is_automatic("leaf_12") && is_automatic(""));
        assert!(!is_automatic("node_") && !is_automatic("norm") && !is_automatic("node_x"));
    }
}
