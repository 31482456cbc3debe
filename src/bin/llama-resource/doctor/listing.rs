//! The library's list of what it would capture, and how it is shown: one line for the tensors of all layers
//! that are alike.

use std::collections::BTreeSet;

use llama_resource_instrumentation::export::table::{Style, Table, wrap};
use llama_resource_instrumentation::export::units::{bytes, count};
use serde::Deserialize;

/// The list, as the library writes it.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// Architecture of the model.
    #[serde(default)]
    pub arch: Option<String>,
    /// Blocks of the model.
    #[serde(default)]
    pub n_layer: Option<i32>,
    /// Every tensor that the selection took.
    pub nodes: Vec<Node>,
    /// Terms of the selection that took none.
    #[serde(default)]
    pub unmatched_terms: Vec<String>,
}

/// A tensor. What is refused may lack everything but its name.
#[derive(Debug, Default, Deserialize)]
pub struct Node {
    /// Name of its packets.
    pub store: String,
    /// Block.
    #[serde(default)]
    pub layer: Option<i32>,
    /// Type of the values.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Shape in this graph.
    #[serde(default)]
    pub ne: Vec<u64>,
    /// Which dimension counts tokens; 0 if none does.
    #[serde(default)]
    pub token_dim: usize,
    /// Elements of each row that are stored, where not all are.
    #[serde(default)]
    pub elements: Option<u64>,
    /// What its rows are: `tokens`, `outputs` or `other`.
    #[serde(default)]
    pub rows: Option<String>,
    /// Bytes of one token.
    #[serde(default)]
    pub bytes_per_token: u64,
    /// `retain`, `callback` or `refused`.
    pub route: String,
    /// Why not `retain`.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Tensors that differ in their layer only.
#[derive(Debug)]
struct Group<'a> {
    name: String,
    of: &'a Node,
    shape: String,
    layers: BTreeSet<i32>,
    tensors: u64,
    bytes_per_token: u64,
}

impl Listing {
    /// Tensors that would be captured.
    pub fn captured(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.route != "refused")
    }

    /// The list as text of at most 80 columns.
    pub fn render(&self, style: Style) -> String {
        let groups = self.groups();
        let mut out = String::new();
        let mut show = |title: &str, columns: &[&str], cells: &dyn Fn(&Group<'_>) -> Vec<String>, refused: bool| {
            let mut table = Table::new(columns);
            groups.iter().filter(|g| (g.of.route == "refused") == refused).for_each(|g| table.row(cells(g)));
            if !table.is_empty() {
                out += &format!("\n{}\n{}", style.heading(title), table.render(style));
            }
        };
        let last = |g: &Group<'_>| match &g.of.reason {
            Some(reason) => format!("{} ({reason})", g.of.route),
            None => g.of.route.clone(),
        };
        show(
            "would be captured",
            &["<tensor", "<layers", "n", "<shape", "<type", "bytes/token", "<route"],
            &|g| {
                let dtype = g.of.dtype.clone().unwrap_or_default();
                let per_token = if g.bytes_per_token == 0 { "-".to_owned() } else { count(g.bytes_per_token) };
                vec![g.name.clone(), ranges(&g.layers), count(g.tensors), g.shape.clone(), dtype, per_token, last(g)]
            },
            false,
        );
        show(
            "selected, but not captured",
            &["<tensor", "<layers", "n", "<why"],
            &|g| vec![g.name.clone(), ranges(&g.layers), count(g.tensors), g.of.reason.clone().unwrap_or_default()],
            true,
        );
        out + "\n" + &self.totals()
    }

    fn totals(&self) -> String {
        let of = |route: &str| self.nodes.iter().filter(|n| n.route == route).count() as u64;
        let (retained, called, refused) = (of("retain"), of("callback"), of("refused"));
        let tensors = |n: u64| format!("{} tensor{}", count(n), if n == 1 { "" } else { "s" });
        let sum = |of_outputs: bool| -> u64 {
            let rows = |n: &&Node| (n.rows.as_deref() == Some("outputs")) == of_outputs;
            self.captured().filter(rows).map(|n| n.bytes_per_token).sum()
        };
        let mut out = if retained + called == 0 {
            wrap("", "", "nothing would be captured")
        } else {
            let per_token = match (sum(false), sum(true)) {
                (tokens, 0) => format!("{} a token", bytes(tokens)),
                (0, outputs) => format!("{} a token with output", bytes(outputs)),
                (tokens, outputs) => format!("{} a token, {} more a token with output", bytes(tokens), bytes(outputs)),
            };
            let text = format!(
                "{} would be captured ({} kept until the graph has run, {} by callback), {per_token} before compression",
                tensors(retained + called),
                count(retained),
                count(called)
            );
            wrap("", "", &text)
        };
        if refused > 0 {
            out += &wrap(
                "",
                "",
                &format!("{} selected and not captured; each step counts them as skipped", tensors(refused)),
            );
        }
        for term in &self.unmatched_terms {
            out += &wrap("", "", &format!("`{term}` matched no tensor of this graph"));
        }
        out
    }

    /// In order of the first tensor of each.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for node in &self.nodes {
            let layer = node.layer.or_else(|| layer_in(&node.store));
            let (name, shape) = (name_without_layer(&node.store, layer), shape(node));
            let alike = |g: &&mut Group<'_>| {
                g.name == name
                    && g.shape == shape
                    && (&g.of.route, &g.of.reason, &g.of.dtype) == (&node.route, &node.reason, &node.dtype)
                    && g.layers.is_empty() == layer.is_none()
            };
            let group = match groups.iter_mut().find(alike) {
                Some(group) => group,
                None => {
                    groups.push(Group {
                        name,
                        of: node,
                        shape,
                        layers: BTreeSet::new(),
                        tensors: 0,
                        bytes_per_token: 0,
                    });
                    let Some(group) = groups.last_mut() else { continue };
                    group
                }
            };
            group.layers.extend(layer);
            group.tensors += 1;
            group.bytes_per_token += node.bytes_per_token;
        }
        groups
    }
}

/// `64x9xT`: T for the tokens of a graph, O for those of them that have an output; `64/576xT` where 64 of 576
/// elements are stored.
fn shape(node: &Node) -> String {
    let used = node.ne.len() - node.ne.iter().rev().take_while(|&&n| n == 1).count();
    let letter = if node.rows.as_deref() == Some("outputs") { "O" } else { "T" };
    let cell = |(dim, n): (usize, &u64)| match node.elements {
        _ if dim > 0 && dim == node.token_dim => letter.to_owned(),
        Some(stored) if dim == 0 => format!("{stored}/{n}"),
        _ => n.to_string(),
    };
    node.ne.iter().enumerate().map(cell).take(used.max(node.token_dim + 1)).collect::<Vec<_>>().join("x")
}

/// `Qcur.MUL_MAT` of `Qcur-3.MUL_MAT`.
fn name_without_layer(store: &str, layer: Option<i32>) -> String {
    let Some(mark) = layer.map(|layer| format!("-{layer}")) else { return store.to_owned() };
    match store.match_indices(&mark).find(|(at, _)| matches!(store.as_bytes().get(at + mark.len()), None | Some(b'.')))
    {
        Some((at, _)) => format!("{}{}", &store[..at], &store[at + mark.len()..]),
        None => store.to_owned(),
    }
}

/// 3 of `Qcur-3.MUL_MAT`: of what is refused only the name is known.
fn layer_in(store: &str) -> Option<i32> {
    let name = store.rfind('-').map(|at| &store[at + 1..])?;
    name.split('.').next()?.parse().ok()
}

/// `0-5,10`.
fn ranges(layers: &BTreeSet<i32>) -> String {
    let mut found: Vec<(i32, i32)> = Vec::new();
    for &layer in layers {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => found.push((layer, layer)),
        }
    }
    let text = |&(first, last): &(i32, i32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    found.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use llama_resource_instrumentation::export::table::{Style, WIDTH};

    use super::{Listing, layer_in, name_without_layer, ranges, shape};

    fn listing(nodes: &str) -> Listing {
        let text =
            format!(r#"{{"arch":"llama","n_layer":30,"n_tokens":2,"nodes":[{nodes}],"unmatched_terms":["l_uot"]}}"#);
        serde_json::from_str(&text).expect(&text)
    }

    fn node(store: &str, layer: &str, ne: &str, rest: &str) -> String {
        let bytes = if store.starts_with("result") { 196_608 } else { 2304 };
        format!(
            r#"{{"name":"x","store":"{store}","layer":{layer},"dtype":"f32","ne":{ne},"bytes_per_token":{bytes},{rest}}}"#
        )
    }

    #[test]
    fn tensors_of_all_layers_are_one_line() {
        let kept = r#""token_dim":1,"rows":"tokens","route":"retain","reason":null"#;
        let mut nodes: Vec<String> =
            (0..30).map(|il| node(&format!("l_out-{il}"), &il.to_string(), "[576,2,1,1]", kept)).collect();
        nodes.push(node("Qcur-3.MUL_MAT", "3", "[576,2,1,1]", kept));
        nodes.push(node(
            "Qcur-3",
            "3",
            "[64,9,2,1]",
            r#""token_dim":2,"rows":"tokens","route":"callback","reason":"in_place""#,
        ));
        nodes.push(node(
            "result_output",
            "null",
            "[49152,1,1,1]",
            r#""token_dim":1,"rows":"outputs","route":"retain","reason":null"#,
        ));
        let refused = |il| format!(r#"{{"name":"v","store":"kqv_out-{il}","route":"refused","reason":"view"}}"#);
        nodes.extend([refused(3), refused(4)]);
        let text = listing(&nodes.join(",")).render(Style::default());
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        let line = |start: &str| {
            let found = text.lines().map(str::trim).find(|l| l.starts_with(start));
            found.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("l_out"), "l_out 0-29 30 576xT f32 69,120 retain");
        assert_eq!(line("Qcur.MUL_MAT"), "Qcur.MUL_MAT 3 1 576xT f32 2,304 retain");
        assert_eq!(line("Qcur "), "Qcur 3 1 64x9xT f32 2,304 callback (in_place)");
        assert_eq!(line("result_output"), "result_output 1 49152xO f32 196,608 retain");
        assert_eq!(line("kqv_out"), "kqv_out 3-4 2 view");
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains("33 tensors would be captured (32 kept until the graph has run, 1 by callback)"),
            "{text}"
        );
        assert!(flat.contains("72.0 KiB a token, 192.0 KiB more a token with output"), "{text}");
        assert!(
            flat.contains("2 tensors selected and not captured") && flat.contains("`l_uot` matched no tensor"),
            "{text}"
        );
    }

    #[test]
    fn shapes_say_which_dimension_counts_tokens_and_what_is_stored() {
        for (ne, token_dim, rows, elements, expected) in [
            ("[32,2,4,1]", 1, "tokens", "null", "32xTx4"),
            ("[64,2,1,6]", 1, "tokens", "null", "64xTx1x6"),
            ("[1,2,1,1]", 2, "outputs", "null", "1x2xO"),
            ("[4,1,1,1]", 1, "tokens", "null", "4xT"),
            ("[576,2,1,1]", 1, "tokens", "64", "64/576xT"),
            ("[2304,1,1,1]", 0, "other", "null", "2304"),
            ("[1,1,1,1]", 0, "other", "null", "1"),
        ] {
            let rest = format!(r#""token_dim":{token_dim},"rows":"{rows}","elements":{elements},"route":"retain""#);
            assert_eq!(shape(&listing(&node("x", "0", ne, &rest)).nodes[0]), expected, "{ne}");
        }
    }

    #[test]
    fn an_empty_list_says_so() {
        let text = listing("").render(Style::default());
        assert!(text.contains("nothing would be captured"), "{text}");
    }

    #[test]
    fn layers_are_taken_out_of_names_and_joined() {
        assert_eq!(name_without_layer("l_out-3", Some(3)), "l_out");
        assert_eq!(name_without_layer("Qcur-post-rope-3.ROPE.1", Some(3)), "Qcur-post-rope.ROPE.1");
        assert_eq!(name_without_layer("x-30", Some(3)), "x-30");
        assert_eq!(name_without_layer("embd", None), "embd");
        assert_eq!((layer_in("l_out-12"), layer_in("Qcur-3.MUL_MAT.1")), (Some(12), Some(3)));
        assert_eq!((layer_in("embd"), layer_in("a-b"), layer_in("-")), (None, None, None));
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 7, 9, 10])), "0-2,7,9-10");
        assert_eq!(ranges(&BTreeSet::new()), "");
    }
}
