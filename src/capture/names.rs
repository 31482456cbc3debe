//! The name under which a tensor is stored: ggml's, made unique within the graph and stable from graph to graph.

use std::collections::HashMap;

use crate::graph::name;

/// The name to select and store a node by. ggml's own, unless ggml made it up (`node_17` changes with the graph): then after the weight
/// that the node uses (`attn_output-3`), or its operation (`flash_attn_ext-3`).
#[must_use]
pub fn stable(ggml_name: &str, op: &str, source: Option<&str>, layer: Option<i32>) -> String {
    let base = name::parse(ggml_name).base;
    if !name::is_automatic(base) {
        return ggml_name.to_owned();
    }
    let weight = source.map(name::parse).filter(|p| p.weight).map(|p| p.base);
    let base = weight.map_or_else(|| op.to_ascii_lowercase(), str::to_owned);
    match layer {
        Some(layer) => format!("{base}-{layer}"),
        None => base,
    }
}

/// Makes `names` (with their operations, in graph order) unique: the last of equal ones keeps the name, since that is what the model goes on
/// with; those before it get their operation, and a number where even that is equal.
#[must_use]
pub fn unique(names: &[(String, &str)]) -> Vec<String> {
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (i, (n, _)) in names.iter().enumerate() {
        last.insert(n, i);
    }
    let mut times: HashMap<String, u32> = HashMap::new();
    names
        .iter()
        .enumerate()
        .map(|(i, (n, op))| {
            if last.get(n.as_str()) == Some(&i) {
                return n.clone();
            }
            let with_op = format!("{n}.{op}");
            let seen = times.entry(with_op.clone()).or_insert(0);
            *seen += 1;
            if *seen == 1 { with_op } else { format!("{with_op}.{}", *seen - 1) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{stable, unique};

    #[test]
    fn made_up_names_are_replaced() {
        assert_eq!(stable("l_out-3", "ADD", None, Some(3)), "l_out-3");
        assert_eq!(stable("node_812", "MUL_MAT", Some("blk.3.attn_output.weight"), Some(3)), "attn_output-3");
        assert_eq!(stable("node_811", "FLASH_ATTN_EXT", Some("Qcur-3 (view)"), Some(3)), "flash_attn_ext-3");
        assert_eq!(stable("", "GET_ROWS", None, None), "get_rows");
    }

    #[test]
    fn equal_names_are_told_apart_and_the_last_keeps_its_own() {
        let names = [
            ("Qcur-0", "MUL_MAT"),
            ("norm-0", "RMS_NORM"),
            ("Qcur-0", "ROPE"),
            ("norm-0", "RMS_NORM"),
            ("norm-0", "RMS_NORM"),
        ];
        let names: Vec<(String, &str)> = names.iter().map(|(n, o)| ((*n).to_owned(), *o)).collect();
        assert_eq!(unique(&names), ["Qcur-0.MUL_MAT", "norm-0.RMS_NORM", "Qcur-0", "norm-0.RMS_NORM.1", "norm-0"]);
    }
}
