//! What is wanted of a graph: worked out once when the graph is built, kept by the graph's fingerprint.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::sync::Arc;

use super::names::{self, MOST_NAMES};
use super::shape::{self, Known, Shape};
use crate::codec::DType;
use crate::format::stream::Slice;
use crate::ggml::view::TensorPtr;
use crate::graph::{Node, Tensor, class, name, origin};
use crate::observe::inputs::{self, At, Inputs, root_of};
use crate::pipeline::{Reason, Spec};
use crate::select::{Candidate, SAMPLED_ELEMENTS, Selection};

/// One wanted node.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its number among the graph's nodes.
    pub node: usize,
    /// The node whose memory it looks into, if it is a view.
    pub root: Option<usize>,
    /// What it is; shared by all graphs.
    pub spec: Arc<Spec>,
    /// Shape and tokens.
    pub shape: Shape,
    /// Bytes of the values, packed.
    pub bytes: usize,
    /// Bytes that keeping it takes (its root's).
    pub kept_bytes: usize,
    /// Why only the callback can read it.
    pub callback_only: Option<&'static str>,
}

/// A tensor that was wanted and cannot be captured.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Name that it would have.
    pub name: String,
    /// Operation.
    pub op: &'static str,
    /// Block.
    pub layer: Option<i32>,
    /// Bytes.
    pub bytes: u64,
}

/// What is wanted of a graph.
#[derive(Clone, Debug)]
pub struct GraphPlan {
    /// Tokens of the ubatch.
    pub n_tokens: usize,
    /// Where the token ids, the positions and the rows with an output are found.
    pub tokens_at: Option<At>,
    /// See above.
    pub positions_at: Option<At>,
    /// See above.
    pub outputs_at: Option<At>,
    /// In graph order.
    pub wanted: Vec<Wanted>,
    /// What each of them is.
    pub specs: Arc<[Arc<Spec>]>,
    /// What was wanted and is left out.
    pub refused: Vec<Refusal>,
}

/// What survives from graph to graph.
#[derive(Debug, Default)]
pub struct Memory {
    pub(super) known: Known,
    specs: HashMap<(String, u8), Arc<Spec>>,
    /// Length of a row by name, as first seen.
    widths: HashMap<String, u32>,
    /// Terms of the selection that matched something, as bits.
    pub matched: u64,
    /// Names of nodes that were seen one by one.
    pub(super) given: names::Given,
}

/// What the plan is made by.
#[derive(Debug)]
pub struct Wish {
    /// Which tensors.
    pub selection: Selection,
    /// Elements of each row that are stored, 0 for all; `None`: what the term of the selection says.
    pub elements: Option<u32>,
}

/// Makes the plan; `n_layer`: blocks of the model whose graph it is, where known. `None` if the graph
/// processes no tokens.
#[must_use]
pub fn plan(nodes: &[TensorPtr], wish: &Wish, n_layer: Option<i32>, memory: &mut Memory) -> Option<GraphPlan> {
    let uses_flag = nodes.iter().any(TensorPtr::has_compute_flag);
    let inputs = Inputs::find(nodes, uses_flag, n_layer.is_some())?;
    let index: HashMap<*const c_void, usize> = nodes.iter().enumerate().map(|(i, t)| (t.address(), i)).collect();
    let selected = inputs::behind(nodes, inputs.outputs.map(|(_, t)| t));
    let overwritten = overwritten(nodes, uses_flag);
    let mut out = GraphPlan {
        n_tokens: inputs.n_tokens,
        tokens_at: inputs.tokens.map(|(at, _)| at),
        positions_at: inputs.positions.map(|(at, _)| at),
        outputs_at: inputs.outputs.map(|(at, _)| at),
        wanted: Vec::new(),
        specs: [].into(),
        refused: Vec::new(),
    };
    let n_outputs = inputs.outputs.map_or(inputs.n_tokens as u64, |(_, t)| t.view().elements());
    let names = good_names(nodes, uses_flag);
    let computing: HashSet<&str> = nodes
        .iter()
        .filter(|t| t.is_computed(uses_flag) && !class::is_view_op(t.op()))
        .map(|t| names.get(&t.address()).copied().unwrap_or_else(|| t.name()))
        .collect();
    let hits: Vec<Hit> = nodes
        .iter()
        .enumerate()
        .filter(|(_, t)| t.is_computed(uses_flag) || class::is_view_op(t.op()))
        .filter_map(|(i, t)| {
            let name = names.get(&t.address()).copied().unwrap_or_else(|| t.name());
            hit(i, t, name, wish, n_layer, computing.contains(name), memory)
        })
        .collect();
    let hit_nodes: HashSet<*const c_void> = hits.iter().map(|h| nodes[h.node].address()).collect();
    let mut found: Vec<(Hit, Found)> = Vec::with_capacity(hits.len());
    let mut occurrences: HashMap<(&str, &str), u16> = HashMap::new();
    for h in hits {
        let t = &nodes[h.node];
        let occurrence = occurrences.entry((t.name(), h.op)).or_insert(0);
        let number = *occurrence;
        *occurrence += 1;
        let view = t.view();
        let root = root_of(*t);
        let is_view = class::is_view_op(h.op);
        let again = is_view && view.elements() == root.view().elements() && hit_nodes.contains(&root.address());
        let root_node = index.get(&root.address()).copied().filter(|&i| nodes[i].is_computed(uses_flag));
        let refusal = match (root_node, DType::parse(view.type_name)) {
            // The same values again under another shape.
            _ if again => Err(Reason::View),
            // A view into weights or into the cache: a flag would stick to what lives longer than the graph.
            (None, _) => Err(Reason::ExternalView),
            (_, None) => Err(Reason::Type),
            (_, Some(dtype)) if t.nb()[0] != dtype.size() => Err(Reason::NotContiguous),
            (Some(root_node), Some(dtype)) => Ok((root_node, dtype)),
        };
        match refusal {
            Err(reason) => out.refused.push(h.refused(reason, view.packed_bytes())),
            Ok((root_node, dtype)) => found.push((h, Found { number, root_node, dtype })),
        }
    }
    let stores = names::unique(&found.iter().map(|(h, _)| (h.name.clone(), h.op)).collect::<Vec<_>>());
    for ((h, f), store) in found.into_iter().zip(stores) {
        let t = nodes[h.node];
        let root = nodes[f.root_node];
        let behind = selected.contains(&t.address());
        let n_tokens = inputs.n_tokens as u64;
        let bytes = t.view().packed_bytes();
        // A last layer without outputs has empty tensors: they keep their names, so that the others keep theirs.
        if bytes == 0 {
            out.refused.push(h.refused(Reason::Empty, 0));
            continue;
        }
        let Some(shape) = shape::of(&store, h.op, t.ne(), n_tokens, n_outputs, behind, &mut memory.known) else {
            out.refused.push(h.refused(Reason::Type, bytes));
            continue;
        };
        let callback_only = if overwritten.contains(&root.address()) {
            Some("overwritten in place")
        } else if !class::is_view_op(h.op) && root.address() != t.address() {
            Some("computed into another tensor")
        } else {
            None
        };
        let slice = crate::select::slice(shape.ne[0], wish.elements_of(&h));
        let store = memory.of_width(store, shape.ne[0]);
        let spec = store.and_then(|store| memory.spec(store, &h, t.name(), f.number, f.dtype, slice));
        let Some(spec) = spec else {
            out.refused.push(h.refused(Reason::Full, bytes));
            continue;
        };
        out.wanted.push(Wanted {
            node: h.node,
            root: (root.address() != t.address()).then_some(f.root_node),
            spec,
            shape,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            kept_bytes: root.span_bytes(),
            callback_only,
        });
    }
    out.specs = out.wanted.iter().map(|w| w.spec.clone()).collect();
    Some(out)
}

/// Names for nodes that ggml named itself, from their views: the attention core has none of its own, and its reshaped
/// view is `kqv_out-3`.
fn good_names(nodes: &[TensorPtr], uses_flag: bool) -> HashMap<*const c_void, &str> {
    let mut names = HashMap::new();
    for view in nodes.iter().filter(|t| class::is_view_op(t.op())) {
        let root = root_of(*view);
        let automatic = |t: &TensorPtr| name::is_automatic(name::parse(t.name()).base);
        if automatic(&root)
            && !automatic(view)
            && !view.name().contains(" (")
            && root.is_computed(uses_flag)
            && root.view().elements() == view.view().elements()
        {
            names.entry(root.address()).or_insert_with(|| view.name());
        }
    }
    names
}

/// What [`plan`] knows of a hit that can be captured.
struct Found {
    number: u16,
    root_node: usize,
    dtype: DType,
}

/// A node that the selection names.
#[derive(Debug)]
pub(super) struct Hit {
    node: usize,
    pub(super) name: String,
    pub(super) op: &'static str,
    pub(super) class: class::Class,
    sampled: bool,
}

impl Hit {
    fn refused(self, reason: Reason, bytes: u64) -> Refusal {
        Refusal { reason, name: self.name, op: self.op, layer: self.class.layer, bytes }
    }
}

impl Wish {
    /// Elements of each row that are stored of this node, 0 for all.
    pub(super) fn elements_of(&self, hit: &Hit) -> u32 {
        self.elements.unwrap_or(if hit.sampled { SAMPLED_ELEMENTS } else { 0 })
    }
}

/// Whether the selection names node `t`, number `i` of its graph, whose good name is `name`.
pub(super) fn hit(
    i: usize,
    t: &TensorPtr,
    name: &str,
    wish: &Wish,
    n_layer: Option<i32>,
    twin: bool,
    memory: &mut Memory,
) -> Option<Hit> {
    let op = t.op();
    let sources: Vec<Option<TensorPtr>> = (0..t.n_src()).map(|k| t.src(k)).collect();
    let views: Vec<Tensor<'_>> =
        sources.iter().map(|s| s.as_ref().map_or_else(Tensor::default, TensorPtr::view)).collect();
    let node = Node { out: t.view(), src: &views };
    let class = origin::classify_by_origin(&node, *t);
    let stored = names::stable(name, op, views.first().map(|v| v.name), class.layer);
    let candidate = Candidate {
        name: &stored,
        base: crate::graph::name::parse(&stored).base,
        layer: class.layer,
        component: class.component,
        op,
        n_layer,
        twin,
    };
    let matches = wish.selection.matches(&candidate);
    memory.matched |= matches;
    let term = wish.selection.chosen(matches)?;
    let sampled = wish.selection.is_sampled(term);
    Some(Hit { node: i, name: stored, op, class, sampled })
}

impl Memory {
    /// The name of a tensor whose rows are so long: a second length gets a name of its own, since a stream holds one
    /// array for each name (attention scores grow with the cache). `None` if there are [`MOST_NAMES`] already.
    pub(super) fn of_width(&mut self, store: String, width: u32) -> Option<String> {
        let first = match self.widths.get(&store) {
            Some(&first) => first,
            None if self.widths.len() >= MOST_NAMES => return None,
            None => *self.widths.entry(store.clone()).or_insert(width),
        };
        Some(if first == width { store } else { format!("{store}@{width}") })
    }

    /// The tensor's description, shared by all graphs. `None` as above.
    pub(super) fn spec(
        &mut self,
        store: String,
        h: &Hit,
        tensor: &str,
        occurrence: u16,
        dtype: DType,
        slice: Option<Slice>,
    ) -> Option<Arc<Spec>> {
        let make = || {
            Arc::new(Spec {
                name: store.clone(),
                tensor: tensor.to_owned(),
                op: h.op.to_owned(),
                layer: h.class.layer,
                component: h.class.component as u8,
                occurrence,
                dtype,
                slice,
            })
        };
        let n = self.specs.len();
        let kept = match self.specs.entry((store.clone(), dtype as u8)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if n >= MOST_NAMES => return None,
            Entry::Vacant(new) => new.insert(make()),
        };
        if kept.slice != slice || kept.op != h.op || kept.occurrence != occurrence {
            *kept = make();
        }
        Some(kept.clone())
    }
}

/// Tensors that some node writes into after they were computed: kept memory would hold the later values.
fn overwritten(nodes: &[TensorPtr], uses_flag: bool) -> HashSet<*const c_void> {
    nodes
        .iter()
        .filter(|t| t.is_computed(uses_flag) && !class::is_view_op(t.op()) && t.view_src().is_some())
        .map(|t| root_of(*t).address())
        .collect()
}

impl Wanted {
    /// Tokens that it has.
    #[must_use]
    pub fn tokens(&self) -> usize {
        if self.shape.token_dim == 0 { 0 } else { self.shape.ne[usize::from(self.shape.token_dim)] as usize }
    }

    /// Whether a token's values lie together.
    #[must_use]
    pub fn tokens_are_outermost(&self) -> bool {
        self.shape.ne[usize::from(self.shape.token_dim) + 1..].iter().all(|&n| n == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_NAMES, Memory};

    #[test]
    fn names_that_a_host_makes_up_for_ever_do_not_fill_the_memory() {
        let mut memory = Memory::default();
        let named = (0..MOST_NAMES + 10).filter(|i| memory.of_width(format!("t{i}"), 8).is_some()).count();
        assert_eq!((named, memory.widths.len()), (MOST_NAMES, MOST_NAMES));
        assert_eq!(memory.of_width("t7".into(), 8).as_deref(), Some("t7"), "what has its name keeps it");
        assert_eq!(memory.of_width("t7".into(), 9).as_deref(), Some("t7@9"));
    }
}
