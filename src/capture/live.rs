//! A graph that a scheduler holds: its plan, its nodes' addresses, and by which route each wanted node is read.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::graph::{GraphPlan, Wanted};
use super::rows::StepRows;
use super::{copy, early};
use crate::config::RouteChoice as Choice;
use crate::format::stream::Route;
use crate::ggml::view::TensorPtr;
use crate::pipeline::{Piece, Pipeline, Reason, Table};

/// How a wanted node is read in this graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By this route.
    By(Route),
    /// Not at all, for this reason.
    Refused(Reason),
}

/// A graph with its memory. Its tensors live until the scheduler gets another graph.
#[derive(Debug)]
pub struct Live {
    /// Address of the graph.
    pub graph: usize,
    /// What is wanted of it.
    pub plan: Arc<GraphPlan>,
    /// The wanted nodes.
    pub tensors: Vec<TensorPtr>,
    /// How each is read.
    pub ways: Vec<Way>,
    /// Token ids, positions, rows with an output.
    pub inputs: [Option<TensorPtr>; 3],
    /// Wanted nodes that are read in the callback, by address.
    pub by_callback: HashMap<usize, usize>,
    /// Some node is kept by the allocator.
    pub retains: bool,
    /// Bytes of all wanted nodes.
    pub bytes: u64,
    /// What those take in buffers that are read of a step all of whose rows are kept; `None` if nodes are left out.
    pub stored: Option<usize>,
    /// The nodes that all threads of the CPU backend begin together and do not fuse: number and address.
    stops: Vec<(usize, TensorPtr)>,
    early: OnceLock<Arc<early::Plan>>,
    /// Its tensors in a step of which nothing is left out.
    table: OnceLock<Arc<Table>>,
}

impl Live {
    /// Puts `plan` on the nodes of a graph that is about to be allocated. `limit`: bytes that the allocator may keep
    /// for us. `may_retain`: the flags come early enough.
    #[must_use]
    pub fn new(
        graph: usize,
        plan: Arc<GraphPlan>,
        nodes: &[TensorPtr],
        choice: Choice,
        limit: usize,
        may_retain: bool,
    ) -> Self {
        let at = |(node, source): (usize, usize)| nodes.get(node).and_then(|t| t.src(source));
        let tensors: Vec<TensorPtr> = plan.wanted.iter().filter_map(|w| nodes.get(w.node).copied()).collect();
        let ways = ways(&plan.wanted, choice, limit, may_retain);
        let by = |route| Way::By(route);
        let by_callback = tensors
            .iter()
            .zip(&ways)
            .enumerate()
            .filter(|(_, (_, way))| **way == by(Route::Callback))
            .map(|(i, (t, _))| (t.address() as usize, i))
            .collect();
        Self {
            graph,
            inputs: [plan.tokens_at, plan.positions_at, plan.outputs_at].map(|p| p.and_then(at)),
            stops: nodes.iter().copied().enumerate().filter(|(_, t)| t.op() == "MUL_MAT").collect(),
            early: OnceLock::new(),
            table: OnceLock::new(),
            retains: ways.contains(&by(Route::Retain)),
            bytes: plan.wanted.iter().map(|w| w.bytes as u64).sum(),
            stored: stored(&plan.wanted, &ways),
            plan,
            tensors,
            ways,
            by_callback,
        }
    }

    /// Flags what the allocator is to keep. Gives what was flagged, and the flags before, in the order in which they
    /// are to be put back.
    #[must_use]
    pub fn flag(&self, nodes: &[TensorPtr]) -> Vec<(TensorPtr, i32)> {
        let kept = self.plan.wanted.iter().zip(&self.ways).filter(|(_, way)| **way == Way::By(Route::Retain));
        let mut flagged: Vec<_> =
            kept.filter_map(|(w, _)| nodes.get(w.root.unwrap_or(w.node)).map(|t| (*t, t.set_output()))).collect();
        // One that is flagged twice had its own flags the first time.
        flagged.reverse();
        flagged
    }

    /// Tensors that are skipped because keeping them takes too much memory, and the bytes that it takes. `None` if
    /// there are none.
    #[must_use]
    pub fn too_large_to_keep(&self) -> Option<(usize, usize)> {
        let n = self.ways.iter().filter(|w| **w == Way::Refused(Reason::RetainMemory)).count();
        (n > 0).then(|| (n, kept(&self.plan.wanted)))
    }

    /// The same graph, when it turned out that the allocator did not heed the flags.
    #[must_use]
    pub fn without_retention(&self, choice: Choice) -> Self {
        let ways = ways(&self.plan.wanted, choice, 0, false);
        let by_callback = self
            .tensors
            .iter()
            .zip(&ways)
            .enumerate()
            .filter(|(_, (_, way))| **way == Way::By(Route::Callback))
            .map(|(i, (t, _))| (t.address() as usize, i))
            .collect();
        Self {
            graph: self.graph,
            plan: self.plan.clone(),
            tensors: self.tensors.clone(),
            bytes: self.bytes,
            stored: stored(&self.plan.wanted, &ways),
            ways,
            inputs: self.inputs,
            by_callback,
            retains: false,
            stops: Vec::new(),
            early: OnceLock::new(),
            table: OnceLock::new(),
        }
    }

    /// Its tensors in a step of which nothing is left out.
    pub fn table(&self) -> &Arc<Table> {
        self.table.get_or_init(|| {
            let piece = |(i, (w, way)): (usize, (&Wanted, &Way))| Piece {
                spec: i as u32,
                len: copy::bytes(w, None),
                ne: copy::shape(w, None),
                token_dim: w.shape.token_dim,
                rows: StepRows::set_of(w),
                route: if let Way::By(route) = way { *route } else { Route::Retain },
                completes: true,
            };
            let pieces = self.plan.wanted.iter().zip(&self.ways).enumerate().map(piece).collect();
            Arc::new(Table::new(self.plan.specs.clone(), pieces))
        })
    }

    /// What can be encoded while it runs. Call when it has its memory.
    pub fn early(&self, pipeline: &Pipeline) -> &Arc<early::Plan> {
        let is_kept = |i| self.ways.get(i) == Some(&Way::By(Route::Retain));
        let plan = || early::Plan::new(&self.plan.wanted, &self.tensors, is_kept, &self.stops, pipeline);
        self.early.get_or_init(|| Arc::new(plan()))
    }
}

fn stored(wanted: &[Wanted], ways: &[Way]) -> Option<usize> {
    let all = ways.iter().all(|way| matches!(way, Way::By(_))) && wanted.iter().all(|w| w.bytes > 0);
    all.then(|| wanted.iter().map(|w| copy::padded(copy::bytes(w, None))).sum())
}

/// Bytes that the allocator has to keep so that everything that can be retained is.
pub(super) fn kept(wanted: &[Wanted]) -> usize {
    let keepable = wanted.iter().filter(|w| w.callback_only.is_none());
    keepable.fold(0, |sum, w| sum.saturating_add(w.kept_bytes))
}

fn ways(wanted: &[Wanted], choice: Choice, limit: usize, may_retain: bool) -> Vec<Way> {
    // All or nothing: a graph that is cut for one big tensor is cut for all at little more cost.
    let retain = may_retain && kept(wanted) <= limit;
    wanted
        .iter()
        .map(|w| match (choice, w.callback_only) {
            (Choice::Callback, _) | (Choice::Auto, Some(_)) => Way::By(Route::Callback),
            (Choice::Auto, None) => Way::By(if retain { Route::Retain } else { Route::Callback }),
            (Choice::Retain, Some(_)) => Way::Refused(Reason::NeedsCallback),
            (Choice::Retain, None) if retain => Way::By(Route::Retain),
            (Choice::Retain, None) if !may_retain => Way::Refused(Reason::NotRetained),
            (Choice::Retain, None) => Way::Refused(Reason::RetainMemory),
        })
        .collect()
}
