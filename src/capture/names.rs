//! The name under which a tensor is stored: ggml's, made unique within the graph and stable from graph to graph.

use std::collections::{HashMap, HashSet};

use crate::graph::name;

/// Names that a capture may have in all. Those of a model are some thousands, each again for every length that its
/// rows take (attention scores grow with the cache); a host that makes up new ones for every graph must not fill the
/// memory with them.
pub(super) const MOST_NAMES: usize = 1 << 16;

/// The name to select and store a node by. ggml's own, unless ggml made it up (`node_17` changes with the graph): then
/// after the weight that the node uses (`attn_output-3`), or its operation (`flash_attn_ext-3`).
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

/// Makes `names` (with their operations, in graph order) unique: the last of equal ones keeps the name, since that is
/// what the model goes on with; those before it get their operation, and a number where even that is equal.
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

/// Name, operation, and which of the graph's nodes with both it is.
pub type Node = (String, &'static str, u32);

/// The names that were given where a graph is seen in parts: a node keeps its first one in all graphs, and no two nodes
/// have the same.
#[derive(Debug, Default)]
pub struct Given {
    by_node: HashMap<Node, String>,
    used: HashSet<String>,
}

impl Given {
    /// Names for `nodes`, in graph order: those of [`unique`] where all that share a name come together.
    pub fn names(&mut self, nodes: &[Node]) -> Vec<String> {
        let alone = unique(&nodes.iter().map(|(n, op, _)| (n.clone(), *op)).collect::<Vec<_>>());
        nodes.iter().zip(alone).map(|(node, name)| self.name(node, name)).collect()
    }

    fn name(&mut self, node: &Node, wish: String) -> String {
        if let Some(name) = self.by_node.get(node) {
            return name.clone();
        }
        // Without end only for a host that makes up names: none of these is stored (`graph::Memory`).
        if self.by_node.len() >= MOST_NAMES {
            return wish;
        }
        let (name, op, _) = node;
        let further = (0_u32..).map(|i| if i == 0 { format!("{name}.{op}") } else { format!("{name}.{op}.{i}") });
        let free = std::iter::once(wish).chain(further).find(|n| !self.used.contains(n)).unwrap_or_default();
        self.used.insert(free.clone());
        self.by_node.insert(node.clone(), free.clone());
        free
    }
}

#[cfg(test)]
mod tests {
    use super::{Given, stable, unique};

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

    #[test]
    fn a_graph_in_parts_has_the_names_of_the_whole_one_and_keeps_them() {
        let q = |op, n| ("Qcur-0".to_owned(), op, n);
        let mut given = Given::default();
        let whole = [q("MUL_MAT", 0), q("ADD", 0), q("ROPE", 0), q("MUL_MAT", 1)];
        let expected = ["Qcur-0.MUL_MAT", "Qcur-0.ADD", "Qcur-0.ROPE", "Qcur-0"];
        assert_eq!(given.names(&whole), expected);
        // Later graphs in other parts, and one that has fewer nodes.
        assert_eq!([given.names(&whole[..1]), given.names(&whole[1..])].concat(), expected);
        assert_eq!(given.names(&whole[2..3]), ["Qcur-0.ROPE"]);
        // Parts from the first graph on: other names, but never one for two nodes.
        let mut given = Given::default();
        let parts = [given.names(&whole[..2]), given.names(&whole[2..])].concat();
        assert_eq!(parts, ["Qcur-0.MUL_MAT", "Qcur-0", "Qcur-0.ROPE", "Qcur-0.MUL_MAT.1"]);
        assert_eq!(given.names(&whole), parts);
    }
}
