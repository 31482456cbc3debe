//! A graph on several devices: which part each of them gets, and what is copied for it. Worked out with the plan; what
//! a running step saw of it is in `splits`.

use std::collections::HashSet;

use super::node::{Place, PlanNode};
use crate::ggml::view::TensorPtr;
use crate::graph::class;
use crate::graph::component::Component;
use crate::graph::name;

/// Neighbouring nodes on one backend.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where.
    pub place: Place,
    /// First node.
    pub from: u32,
    /// One past the last node.
    pub until: u32,
    /// FLOPs.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// A source that the scheduler copies to the device of the nodes that read it.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Its name.
    pub tensor: Box<str>,
    /// Its bytes.
    pub bytes: u64,
    /// Component that made it.
    pub made_by: Component,
    /// Where that was; `None` for inputs and views.
    pub made_at: Option<Place>,
    /// First node that reads it.
    pub reader: u32,
    /// Weights: of experts, only those that were chosen are copied.
    pub is_weight: bool,
}

/// The parts of `nodes`, in the order in which they run.
#[must_use]
pub fn parts(nodes: &[PlanNode]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (i, n) in (0u32..).zip(nodes) {
        let (flops, bytes) = (n.cost.flops, n.cost.bytes_read + n.cost.bytes_written);
        match parts.last_mut().filter(|p| p.place == n.place) {
            Some(part) => {
                part.until = i + 1;
                part.flops += flops;
                part.bytes += bytes;
            }
            None => parts.push(Part { place: n.place, from: i, until: i + 1, flops, bytes }),
        }
    }
    parts
}

/// What is copied for `nodes`, whose tensors are `executed`. The scheduler has put the copies in the sources' place,
/// under names of its own.
#[must_use]
pub fn copies(executed: &[TensorPtr], nodes: &[PlanNode]) -> Vec<Copied> {
    let (mut seen, mut copies) = (HashSet::new(), Vec::new());
    for (i, (t, n)) in (0u32..).zip(executed.iter().zip(nodes)) {
        for s in (0..t.n_src()).filter_map(|k| t.src(k)) {
            let Some((backend, name)) = original(s.name()) else { continue };
            if backend == n.place.backend && s.view_src().is_none() && seen.insert(s.address()) {
                copies.push(copied(name, s.span_bytes() as u64, i, nodes));
            }
        }
    }
    copies
}

fn copied(tensor: &str, bytes: u64, reader: u32, nodes: &[PlanNode]) -> Copied {
    let maker = nodes[..reader as usize].iter().rfind(|n| &*n.name == tensor);
    Copied {
        tensor: tensor.into(),
        bytes,
        made_by: maker.map_or_else(|| class::classify_tensor(tensor, "NONE").component, |n| n.class.component),
        made_at: maker.map(|n| n.place),
        reader,
        is_weight: name::parse(tensor).weight,
    }
}

/// The backend that a copy of the scheduler's is for, and the name of the original: `RPC0#l_out-14#0`.
#[must_use]
pub fn original(copy: &str) -> Option<(&str, &str)> {
    let (backend, rest) = copy.split_once('#')?;
    let (name, number) = rest.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some((backend, name))
}

#[cfg(test)]
mod tests {
    use super::original;

    #[test]
    fn copies_are_told_by_their_names() {
        assert_eq!(original("RPC0#l_out-14#0"), Some(("RPC0", "l_out-14")));
        assert_eq!(original("CUDA0#Qcur-3 (view)#12"), Some(("CUDA0", "Qcur-3 (view)")));
        assert_eq!(original("CPU#a#b#1"), Some(("CPU", "a#b")));
        for other in ["l_out-14", "#", "CUDA0#l_out-14", "CUDA0#l_out-14#", "CUDA0#l_out-14#x"] {
            assert_eq!(original(other), None, "{other}");
        }
    }
}
