//! One graph, as the eval callback sees it node by node: where another one begins, and which plan it follows, or the
//! plan that it makes.
//!
//! The callback is told nothing of graphs. A graph that ran before is recognised by the running fingerprint of its
//! nodes; where it leaves the plan that it followed, the nodes so far are taken over and the rest is looked at anew.
//! Nodes are read while they are computed, never later: their memory is used again for the next graph.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use crate::ggml::view::TensorPtr;
use crate::graph::class;
use crate::graph::component::Component;
use crate::observe::homes;
use crate::observe::inputs::{self, Role};
use crate::observe::node::{Place, PlanNode};
use crate::observe::plan::{self, Plan};
use crate::observe::recent::Recent;

/// A plan and the running fingerprint at each of its nodes.
#[derive(Clone, Debug)]
struct Known {
    plan: Arc<Plan>,
    prints: Arc<[u64]>,
}

/// Plans of this thread's graphs, by the fingerprint of all their nodes.
#[derive(Debug, Default)]
pub struct Plans(Recent<u64, Known, { plan::KEPT }>);

/// What the rows of a graph are made from.
#[derive(Clone, Copy, Debug)]
pub struct Intake {
    /// Token ids, or the embeddings in place of them.
    pub tensor: TensorPtr,
    /// They are token ids, looked up in this table.
    table: Option<TensorPtr>,
    /// Tokens of the ubatch.
    pub n_tokens: u64,
}

impl Intake {
    /// What node `t` takes in.
    #[must_use]
    pub fn of(t: TensorPtr) -> Option<Self> {
        inputs::of_node(t).find_map(|input| {
            let (table, dim) = match input.role {
                Role::Tokens => (t.src(0), 0),
                Role::Embeddings => (None, 1),
                Role::Positions | Role::Outputs => return None,
            };
            let n_tokens = u64::try_from(input.tensor.ne()[dim]).unwrap_or(0);
            Some(Self { tensor: input.tensor, table, n_tokens })
        })
    }

    /// The token ids, if it is those.
    #[must_use]
    pub fn tokens(&self) -> Option<TensorPtr> {
        self.table.map(|_| self.tensor)
    }

    /// Whether it is the same, looked up in a further table (embeddings of each block, as Gemma has them), or added
    /// again.
    fn goes_on(&self, first: &Self) -> bool {
        self.tensor == first.tensor && (self.table.is_none() || self.table != first.table)
    }
}

/// A graph that is being shown.
#[derive(Debug, Default)]
pub struct Graph {
    /// What its rows are made from, once a node has taken it in.
    pub intake: Option<Intake>,
    follows: Option<Known>,
    nodes: Vec<PlanNode>,
    index: HashMap<*const c_void, usize>,
    addresses: Vec<*const c_void>,
    prints: Vec<u64>,
    in_blocks: bool,
}

// SAFETY: addresses are compared, never followed.
unsafe impl Send for Graph {}

/// Where a node runs: on the device of its result's buffer.
fn place_of(t: &TensorPtr) -> Place {
    let (_, home) = homes::of(t);
    Place {
        backend: home.device.or(home.buffer_type).unwrap_or("CPU"),
        device: home.device,
        is_cpu: home.is_cpu,
        memory_type: if home.memory_type == "mmap" { "ram" } else { home.memory_type },
        // The callback is shown a node when it has been computed; no part is waited for.
        answers_late: false,
        backend_address: 0,
    }
}

impl Graph {
    /// Whether `t`, which takes in `intake`, begins another graph: the first node comes again, or other rows are taken
    /// in.
    #[must_use]
    pub fn is_over_before(&self, t: &TensorPtr, intake: Option<&Intake>) -> bool {
        if self.addresses.first() == Some(&t.address()) {
            return true;
        }
        match (intake, &self.intake) {
            (Some(new), Some(first)) => {
                let both_look_up = new.table.is_some() && first.table.is_some();
                (both_look_up || self.in_blocks) && !new.goes_on(first)
            }
            // Nodes ahead of the first look-up are of its graph, unless they are a whole one.
            (Some(_), None) => self.in_blocks,
            (None, _) => self.in_blocks && t.op() == "GET_ROWS" && t.src(0).is_some_and(|w| is_embedding(&w)),
        }
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
            self.follows = plans.0.values().find(|k| fits(k)).cloned();
            if let (None, Some(old)) = (&self.follows, before) {
                self.nodes = old.plan.nodes[..at].to_vec();
                self.index = self.addresses[..at].iter().enumerate().map(|(i, &a)| (a, i)).collect();
            }
        }
        if self.follows.is_none() {
            let node = plan::plan_node(place_of(t), t, &self.index, &self.nodes);
            self.index.insert(t.address(), at);
            self.nodes.push(node);
        }
        self.in_blocks |= self.node(at).is_some_and(is_in_a_block);
        at
    }

    /// Node number `at`.
    #[must_use]
    pub fn node(&self, at: usize) -> Option<&PlanNode> {
        match &self.follows {
            Some(k) => k.plan.nodes.get(at),
            None => self.nodes.get(at),
        }
    }

    /// The graph is over: its plan, and whether it is one that ran before. `made` gets a new one. `None` if it had no
    /// node.
    #[must_use]
    pub fn plan(self, plans: &mut Plans, key: usize, made: impl FnOnce(&Arc<Plan>)) -> Option<(Arc<Plan>, bool)> {
        let n = self.prints.len();
        let print = *self.prints.last()?;
        let mut reused = true;
        let known = plans.0.get_or_make(print, || {
            reused = false;
            // It may be the beginning of one that ran before.
            let nodes = self.follows.map_or(self.nodes, |k| k.plan.nodes[..n].to_vec());
            let plan = Arc::new(plan::assemble((key, print), nodes, true));
            made(&plan);
            Known { plan, prints: self.prints.into() }
        });
        Some((known.plan, reused))
    }
}

/// After this node, an embedding look-up begins another graph.
fn is_in_a_block(node: &PlanNode) -> bool {
    node.class.layer.is_some() && node.class.component != Component::Embedding
}

fn is_embedding(weights: &TensorPtr) -> bool {
    class::classify_tensor(weights.name(), weights.op()).component == Component::Embedding
}
