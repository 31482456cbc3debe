//! One run of a graph, as the eval callback sees it node by node: which plan it follows, or the plan that it makes.
//!
//! The callback is told nothing of graphs: a run begins with the embedding look-up after the blocks of the one before
//! (or where the nodes of the one before come again) and is over when the next begins. A graph that ran before is
//! recognised by the running fingerprint of its nodes; where it leaves the plan that it followed, the nodes so far are
//! taken over and the rest is looked at anew. Nodes are read while they are computed, never later: their memory is used
//! again for the next graph.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ggml::view::TensorPtr;
use crate::graph::component::Component;
use crate::journal::rate::Permit;
use crate::observe::node::{Place, PlanNode};
use crate::observe::plan::{self, Plan};
use crate::observe::recording;
use crate::observe::timer::{Span, Sums};

use super::tensor;

/// Plans kept for graphs that may come again.
const KEPT: usize = 24;

/// A plan and the running fingerprint at each of its nodes.
#[derive(Clone, Debug)]
struct Known {
    plan: Arc<Plan>,
    prints: Arc<[u64]>,
}

/// Plans of this thread's graphs, most recent last.
#[derive(Debug, Default)]
pub struct Plans(Vec<Known>);

/// A run in progress.
#[derive(Debug)]
pub struct Run {
    /// When its first node was asked for.
    pub start_ns: u64,
    /// When its last node was done.
    pub end_ns: u64,
    /// Number of the ubatch.
    pub number: Option<u64>,
    /// It may be written event by event.
    pub permit: Option<Permit>,
    /// More than one token.
    pub prefill: bool,
    /// Times of the nodes, if it is sampled.
    pub spans: Vec<Span>,
    /// Their sums.
    pub sums: Sums,
    times: Vec<(u32, u64)>,
    follows: Option<Known>,
    nodes: Vec<PlanNode>,
    index: HashMap<*const std::ffi::c_void, usize>,
    addresses: Vec<*const std::ffi::c_void>,
    prints: Vec<u64>,
    in_blocks: bool,
}

// SAFETY: addresses are compared, never followed.
unsafe impl Send for Run {}

/// Where a node runs: on the device of its result's buffer.
fn place_of(t: &TensorPtr) -> Place {
    let place = tensor::place(t);
    let backend = place.device.or(place.buffer_type).unwrap_or("CPU");
    Place {
        backend,
        device: place.device,
        is_cpu: place.is_cpu,
        memory_type: if place.memory_type == "mmap" { "ram" } else { place.memory_type },
        // The callback is shown a node when it has been computed; no part is waited for.
        answers_late: false,
        backend_address: 0,
    }
}

impl Run {
    /// A run that begins now.
    #[must_use]
    pub fn new(start_ns: u64) -> Self {
        Self {
            start_ns,
            end_ns: start_ns,
            number: None,
            permit: None,
            prefill: false,
            spans: Vec::new(),
            sums: Sums::default(),
            times: Vec::new(),
            follows: None,
            nodes: Vec::new(),
            index: HashMap::new(),
            addresses: Vec::new(),
            prints: Vec::new(),
            in_blocks: false,
        }
    }

    /// Whether `t` begins another run.
    #[must_use]
    pub fn is_over_before(&self, t: &TensorPtr) -> bool {
        if !self.in_blocks {
            return false;
        }
        if self.addresses.first() == Some(&t.address()) && self.prints.first() == Some(&t.fingerprint(0)) {
            return true;
        }
        t.op() == "GET_ROWS" && t.src(0).is_some_and(|w| is_embedding(&w))
    }

    /// The next node. Gives its number.
    pub fn add(&mut self, t: &TensorPtr, plans: &Plans) -> usize {
        let at = self.addresses.len();
        let print = t.fingerprint(self.prints.last().copied().unwrap_or(0));
        self.prints.push(print);
        self.addresses.push(t.address());
        let fits = |k: &Known| k.prints.get(at) == Some(&print);
        if at == 0 || self.follows.as_ref().is_some_and(|k| !fits(k)) {
            let before = self.follows.take();
            // The fingerprint holds all nodes so far, so any plan that has it here has the same nodes before.
            self.follows = plans.0.iter().rev().find(|k| fits(k)).cloned();
            if let (None, Some(old)) = (&self.follows, before) {
                self.nodes = old.plan.nodes[..at].to_vec();
                self.index = self.addresses[..at].iter().enumerate().map(|(i, &a)| (a, i)).collect();
            }
        }
        if self.follows.is_none() {
            let node = plan::plan_node(place_of(t), t, &self.index, &self.nodes);
            self.in_blocks |= ends_the_head(&node);
            self.index.insert(t.address(), at);
            self.nodes.push(node);
        } else if let Some(n) = self.node(at) {
            self.in_blocks |= ends_the_head(n);
        }
        at
    }

    fn node(&self, at: usize) -> Option<&PlanNode> {
        match &self.follows {
            Some(k) => k.plan.nodes.get(at),
            None => self.nodes.get(at),
        }
    }

    /// Node `at` was computed.
    pub fn done(&mut self, at: usize, t: TensorPtr, start_ns: u64, end_ns: u64) {
        let ns = end_ns.saturating_sub(start_ns);
        self.end_ns = end_ns;
        self.sums.op_ns += ns;
        self.sums.ops += 1;
        self.times.push((at as u32, ns));
        if self.permit.is_some() {
            self.spans.push(Span { node: at as u32, until: at as u32 + 1, start_ns, end_ns, barrier_ns: 0 });
        }
        // The ids are a source, so they live until the node is done.
        if self.node(at).is_some_and(|n| n.counts_experts && n.place.is_cpu) {
            recording::current().routing.observe(t);
        }
    }

    /// Tokens of the run, once the node that shows it has come.
    #[must_use]
    pub fn tokens(t: &TensorPtr) -> Option<u64> {
        (t.op() == "GET_ROWS").then(|| u64::try_from(t.ne()[1]).ok()).flatten()
    }

    /// The run is over: its plan, and whether it is one that ran before. The plan has the run's times.
    #[must_use]
    pub fn plan(&mut self, plans: &mut Plans, key: usize) -> Option<(Arc<Plan>, bool)> {
        let n = self.addresses.len();
        let print = *self.prints.last()?;
        let follows = self.follows.take();
        let whole = follows.as_ref().filter(|k| k.plan.nodes.len() == n).cloned();
        let reused = whole.is_some();
        let known = match (whole, follows) {
            (Some(known), _) => {
                plans.0.retain(|k| !Arc::ptr_eq(&k.plan, &known.plan));
                known
            }
            (None, shorter) => {
                let nodes = shorter.map_or_else(|| std::mem::take(&mut self.nodes), |k| k.plan.nodes[..n].to_vec());
                let plan = Arc::new(plan::assemble((key, print), nodes, true));
                recording::current().hand_to_the_writer(&plan);
                Known { plan, prints: std::mem::take(&mut self.prints).into() }
            }
        };
        let plan = known.plan.clone();
        if plans.0.len() >= KEPT {
            plans.0.remove(0);
        }
        plans.0.push(known);
        for &(at, ns) in &self.times {
            plan.add_time(at as usize, at as usize + 1, ns);
        }
        Some((plan, reused))
    }
}

/// After this node, an embedding look-up begins another graph.
fn ends_the_head(node: &PlanNode) -> bool {
    node.class.layer.is_some() && node.class.component != Component::Embedding
}

fn is_embedding(weights: &TensorPtr) -> bool {
    crate::graph::class::classify_tensor(weights.name(), weights.op()).component == Component::Embedding
}
