//! The class of a node whose names, sources and operation say nothing: that of the data it works on.
//!
//! llama.cpp names the results that matter; what lies between (a scale, a sigmoid, the choice of the rows that have an
//! output) is called `node_17`, and so are its sources, often over several nodes. Before it: `class`, which looks at
//! one node alone.

use super::class::{Class, classify};
use super::component::Component;
use super::{Node, Tensor};

/// Tensors that are looked at for one node, at most: a graph without any names must not cost more than that.
const MOST_LOOKED_AT: usize = 32;
/// ggml's own limit for the sources of a node.
const MOST_SOURCES: usize = 10;

/// A tensor that can tell what it was made from.
pub trait Origin: Copy + PartialEq {
    /// The tensor itself; name and operation are enough.
    fn tensor(&self) -> Tensor<'_>;
    /// Sources up to the last one that is set.
    fn n_sources(&self) -> usize;
    /// One source; none for a gap.
    fn source(&self, i: usize) -> Option<Self>;
}

/// Classifies a graph node by itself and, where that says nothing, by the nearest of what it was made from that is
/// known. `t` is the node again: most nodes are known at once, and their sources are not read a second time.
#[must_use]
pub fn classify_by_origin(node: &Node<'_>, t: impl Origin) -> Class {
    match classify(node) {
        class if class.component != Component::Other => class,
        class => trace(node.out.op, class, t),
    }
}

/// Looks at the sources, then at theirs, and so on; the first source before the second.
fn trace<T: Origin>(op: &str, class: Class, t: T) -> Class {
    let mut queue = [t; MOST_LOOKED_AT];
    let (mut next, mut end) = (0, 1);
    // Inputs and caches are no part of the model that computes: what is made of a mask alone steers sparse attention,
    // and what is read from a cache alone serves attention.
    let (mut weak, mut layer) = (None, None);
    while next < end {
        let at = queue[next];
        let tensor = at.tensor();
        let n = at.n_sources();
        let sources: [Option<T>; MOST_SOURCES] = std::array::from_fn(|i| if i < n { at.source(i) } else { None });
        if next > 0 {
            let mut views = [Tensor::default(); MOST_SOURCES];
            for (view, source) in views.iter_mut().zip(&sources) {
                *view = source.as_ref().map_or_else(Tensor::default, Origin::tensor);
            }
            let made = classify(&Node { out: tensor, src: &views });
            // A node cannot stand before what it uses; what is nearer is more telling.
            layer = layer.or(made.layer);
            match made.component {
                Component::Other => {}
                Component::Input if tensor.name.contains("kq_mask") => weak = weak.or(Some(Component::AttentionIndex)),
                Component::Input => {}
                Component::KvCache => weak = Some(Component::Attention),
                component => {
                    return Class { component, layer: class.layer.or(layer), mtp: class.mtp || made.mtp };
                }
            }
        }
        for source in sources.into_iter().flatten() {
            // A cast names itself as its second source.
            if end < MOST_LOOKED_AT && !queue[..end].contains(&source) {
                queue[end] = source;
                end += 1;
            }
        }
        next += 1;
    }
    let component = weak.unwrap_or(match op {
        // Constants: llama.cpp counts positions with the one, and makes empty masks for sparse attention
        // with the other.
        "ARANGE" => Component::Attention,
        "FILL" => Component::AttentionIndex,
        _ => Component::Other,
    });
    Class { component, layer: class.layer.or(layer), ..class }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Component::{Attention, AttentionIndex, Moe, Norm, Other, Residual, Ssm};

    /// A graph by hand: name, operation, numbers of the sources.
    type Graph = [(&'static str, &'static str, &'static [usize])];

    #[derive(Clone, Copy)]
    struct At(&'static Graph, usize);

    impl PartialEq for At {
        fn eq(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    impl Origin for At {
        fn tensor(&self) -> Tensor<'_> {
            Tensor { name: self.0[self.1].0, op: self.0[self.1].1, ..Tensor::default() }
        }
        fn n_sources(&self) -> usize {
            self.0[self.1].2.len()
        }
        fn source(&self, i: usize) -> Option<Self> {
            self.0[self.1].2.get(i).map(|&number| At(self.0, number))
        }
    }

    fn class_of(graph: &'static Graph, number: usize) -> (Component, Option<i32>) {
        let at = At(graph, number);
        let made_from: Vec<_> = graph[number].2.iter().map(|&i| At(graph, i)).collect();
        let sources: Vec<_> = made_from.iter().map(Origin::tensor).collect();
        let class = classify_by_origin(&Node { out: at.tensor(), src: &sources }, at);
        (class.component, class.layer)
    }

    #[test]
    fn rows_with_an_output_are_of_what_they_are_chosen_from() {
        // Bloom's last block: attention's output has no name, and the choice of its rows uses only that and an input.
        static GRAPH: &Graph = &[
            ("blk.1.attn_output.weight", "NONE", &[]),
            ("kqv_out-1", "RESHAPE", &[]),
            ("node_64", "MUL_MAT", &[0, 1]),
            ("blk.1.attn_output.bias", "NONE", &[]),
            ("node_65", "ADD", &[2, 3]),
            ("out_ids", "NONE", &[]),
            ("node_66", "GET_ROWS", &[4, 5]),
        ];
        assert_eq!(class_of(GRAPH, 6), (Attention, Some(1)));
    }

    #[test]
    fn a_convolution_that_has_no_name_is_of_the_state_that_it_reads() {
        // Mamba: the state, the new columns behind it, the convolution, its activation, a contiguous part of that.
        static GRAPH: &Graph = &[
            ("cache_r_l3 (view)", "VIEW", &[]),
            ("node_17", "GET_ROWS", &[0]),
            ("node_17 (reshaped)", "RESHAPE", &[1]),
            ("blk.3.ssm_in.weight", "NONE", &[]),
            ("node_12", "MUL_MAT", &[3]),
            (" (reshaped) (view) (transposed)", "TRANSPOSE", &[4]),
            ("node_18", "CONCAT", &[2, 5]),
            ("blk.3.ssm_conv1d.weight", "NONE", &[]),
            ("node_27", "SSM_CONV", &[6, 7]),
            ("node_28", "SILU", &[8]),
            (" (view)", "VIEW", &[9]),
            (" (view) (cont)", "CONT", &[10]),
        ];
        for number in [6, 9, 10, 11] {
            assert_eq!(class_of(GRAPH, number), (Ssm, Some(3)), "{}", GRAPH[number].0);
        }
    }

    #[test]
    fn a_node_that_says_what_it_is_keeps_that() {
        static GRAPH: &Graph = &[
            ("ffn_moe_out-2", "ADD", &[]),
            ("node_5", "RMS_NORM", &[0]),
            ("l_out-2", "ADD", &[0, 1]),
            ("unheard_of-7", "SCALE", &[0]),
            ("node_6", "SCALE", &[3]),
        ];
        assert_eq!(class_of(GRAPH, 1), (Norm, Some(2)));
        assert_eq!(class_of(GRAPH, 2), (Residual, Some(2)));
        // A name of a later llama.cpp: the layer is its own, the component that of its data.
        assert_eq!(class_of(GRAPH, 3), (Moe, Some(7)));
        assert_eq!(class_of(GRAPH, 4), (Moe, Some(7)));
    }

    #[test]
    fn masks_and_caches_alone_belong_to_attention_and_are_no_inputs() {
        static GRAPH: &Graph = &[
            ("attn_inp_kq_mask", "NONE", &[]),
            ("node_41", "FILL", &[0]),
            ("leaf_9", "NONE", &[]),
            // Zeros for a mask.
            ("node_43", "FILL", &[2]),
            ("cache_k_l1", "NONE", &[]),
            (" (view)", "VIEW", &[4]),
            (" (view) (cont)", "CONT", &[5]),
        ];
        assert_eq!(class_of(GRAPH, 1), (AttentionIndex, None));
        assert_eq!(class_of(GRAPH, 3), (AttentionIndex, None));
        assert_eq!(class_of(GRAPH, 6), (Attention, Some(1)));
    }

    #[test]
    fn the_nearest_is_found_beside_a_long_chain() {
        // A sum over the heads of an indexer: each term is as near as the one before, the sum so far leads far away.
        let far = |n: usize| -> &'static Graph {
            let sum: Vec<_> = (0..n)
                .map(|i| ("node_9", "ADD", if i == 0 { &[][..] } else { Box::leak(Box::new([i - 1, n])) }))
                .chain([
                    (" (view)", "VIEW", Box::leak(Box::new([n + 1])) as &[usize]),
                    ("indexer_score-4", "MUL_MAT", &[]),
                ])
                .collect();
            Box::leak(sum.into_boxed_slice())
        };
        assert_eq!(class_of(far(60), 59), (AttentionIndex, Some(4)));
    }

    #[test]
    fn casts_do_not_use_up_what_may_be_looked_at() {
        static GRAPH: &Graph = &[
            ("msa_bs-1", "POOL_2D", &[]),
            ("node_1", "TOP_K", &[0]),
            (" (copy)", "CPY", &[1, 2]),
            ("node_3", "SCALE", &[2]),
            (" (copy)", "CPY", &[3, 4]),
            ("node_5", "SCALE", &[4]),
            (" (copy)", "CPY", &[5, 6]),
            ("node_7", "SCALE", &[6]),
            (" (copy)", "CPY", &[7, 8]),
            ("node_9", "ARANGE", &[]),
            ("node_10", "ADD", &[8, 9]),
        ];
        assert_eq!(class_of(GRAPH, 10), (AttentionIndex, Some(1)));
    }

    #[test]
    fn a_graph_without_names_ends() {
        static GRAPH: &Graph = &[("node_0", "ADD", &[1, 1, 1]), ("node_1", "ADD", &[0, 0, 0])];
        assert_eq!(class_of(GRAPH, 0), (Other, None));
    }
}
