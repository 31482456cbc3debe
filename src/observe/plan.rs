//! The plan of a graph: for each node that a backend computes, what it is, what it costs, where its data came from -
//! worked out once when a graph is built and shared by every step that runs it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::node::{Flow, Place, PlanNode};
use super::parts::{self, Copied, Part};
use crate::ggml::api::{self, Ptr};
use crate::ggml::device;
use crate::ggml::view::{TensorPtr, keep};
use crate::graph::class;
use crate::graph::component::Component;
use crate::graph::cost;
use crate::graph::{Node, Tensor, origin};

/// Plans kept for graphs that may come again. A plan takes about 200 bytes a node, so this is some megabytes at most.
pub const KEPT: usize = 24;

/// Kinds of devices with memory of their own, as ggml numbers them.
const GPU: i32 = 1;
/// See [`GPU`].
const INTEGRATED_GPU: i32 = 2;

/// A graph's nodes with their accumulated times.
#[derive(Debug)]
pub struct Plan {
    /// Scheduler and fingerprint that this plan belongs to.
    pub key: (usize, u64),
    /// Nodes in graph order.
    pub nodes: Vec<PlanNode>,
    /// Its parts by device, in order.
    pub parts: Vec<Part>,
    /// What is copied between devices.
    pub copies: Vec<Copied>,
    /// Tokens of the ubatch; `None` for graphs that process no tokens (K-shift, vision, state copies).
    pub n_tokens: Option<u64>,
    /// FLOPs of one execution.
    pub flops: u64,
    /// Hand-offs of one execution.
    pub flows: u64,
    /// Activation function by layer.
    pub activations: HashMap<Option<i32>, &'static str>,
    /// Operations whose FLOPs we cannot count.
    pub unknown_ops: Vec<&'static str>,
    /// Some node says which experts were chosen, which a timed step counts.
    pub routes: bool,
    /// Seen by the eval callback: every node runs alone.
    pub serialized: bool,
    /// Executions.
    pub steps: AtomicU64,
    /// Executions that were timed.
    pub timed_steps: AtomicU64,
    /// Executions that were not written event by event, to keep the log's rate.
    pub left_out: AtomicU64,
    /// Executions that were not, because they were a warm-up.
    pub warm_ups: AtomicU64,
    times: Box<[NodeTime]>,
}

/// Accumulated time of one node. Written by the one thread that runs the graph, read by the writer.
#[derive(Debug)]
struct NodeTime {
    ns: AtomicU64,
    /// The node that was timed in this one's place, because the backend fused them; itself otherwise.
    leader: AtomicU32,
    /// [`PlanNode::counts_experts`], here because a running step must not touch the nodes themselves: each is some
    /// cache lines away.
    counts_experts: bool,
}

/// What became of a step's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Written one by one.
    Written,
    /// Left out, to keep the log's rate.
    LeftOut,
    /// Left out: it was a warm-up, or no ubatch of a context that counts.
    WarmUp,
}

/// A moment's reading of a plan's counters, for differences.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Executions.
    pub steps: u64,
    /// Timed executions.
    pub timed_steps: u64,
    /// Executions left out.
    pub left_out: u64,
    /// Warm-ups.
    pub warm_ups: u64,
    /// Nanoseconds by node.
    pub ns: Vec<u64>,
}

impl Plan {
    /// Adds the time of node `i` (and of the nodes up to `until` that were computed with it).
    pub fn add_time(&self, i: usize, until: usize, ns: u64) {
        let Some(t) = self.times.get(i) else { return };
        // Load and store instead of fetch_add: one thread writes, and a locked add costs as much as the clock.
        t.ns.store(t.ns.load(Ordering::Relaxed) + ns, Ordering::Relaxed);
        for fused in i + 1..until.min(self.times.len()) {
            let leader = &self.times[fused].leader;
            if leader.load(Ordering::Relaxed) != i as u32 {
                leader.store(i as u32, Ordering::Relaxed);
            }
        }
    }

    /// Whether the ids of node `i` are where the experts of its layer are counted.
    #[must_use]
    pub fn counts_experts(&self, i: usize) -> bool {
        self.times.get(i).is_some_and(|t| t.counts_experts)
    }

    /// Nodes that are timed when the graph is.
    #[must_use]
    pub fn nodes_on_the_cpu(&self) -> usize {
        self.parts.iter().filter(|p| p.place.is_cpu).map(|p| (p.until - p.from) as usize).sum()
    }

    /// The node that carries the time of node `i`.
    #[must_use]
    pub fn leader(&self, i: usize) -> usize {
        self.times[i].leader.load(Ordering::Relaxed) as usize
    }

    /// Counts one execution.
    pub fn count(&self, timed: bool, fate: Fate) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if timed {
            self.timed_steps.fetch_add(1, Ordering::Relaxed);
        }
        match fate {
            Fate::Written => {}
            Fate::LeftOut => _ = self.left_out.fetch_add(1, Ordering::Relaxed),
            Fate::WarmUp => _ = self.warm_ups.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Reads the counters.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            steps: self.steps.load(Ordering::Relaxed),
            timed_steps: self.timed_steps.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
            warm_ups: self.warm_ups.load(Ordering::Relaxed),
            ns: self.times.iter().map(|t| t.ns.load(Ordering::Relaxed)).collect(),
        }
    }
}

/// The nodes of a graph that a backend computes, as pointers, and the graph's fingerprint.
#[must_use]
pub fn executed_nodes(nodes: &[TensorPtr]) -> (Vec<TensorPtr>, u64) {
    let uses_flag = nodes.iter().any(TensorPtr::has_compute_flag);
    let mut fingerprint = nodes.len() as u64;
    let executed = nodes
        .iter()
        .filter(|t| {
            fingerprint = t.fingerprint(fingerprint);
            t.is_computed(uses_flag) && !class::is_view_op(t.op())
        })
        .copied()
        .collect();
    (executed, fingerprint)
}

/// Builds the plan of `executed` for scheduler `sched`.
#[must_use]
pub fn build(sched: Ptr, fingerprint: u64, executed: &[TensorPtr]) -> Plan {
    let index: HashMap<*const std::ffi::c_void, usize> =
        executed.iter().enumerate().map(|(i, t)| (t.address(), i)).collect();
    let mut places: HashMap<usize, Place> = HashMap::new();
    let mut nodes: Vec<PlanNode> = Vec::with_capacity(executed.len());
    for t in executed {
        let place = place(sched, *t, &mut places);
        nodes.push(plan_node(place, t, &index, &nodes));
    }
    let copies = parts::copies(executed, &nodes);
    Plan { copies, ..assemble((sched as usize, fingerprint), nodes, false) }
}

/// The plan of a graph whose nodes have been looked at.
#[must_use]
pub fn assemble(key: (usize, u64), nodes: Vec<PlanNode>, serialized: bool) -> Plan {
    let (mut unknown_ops, mut activations) = (Vec::new(), HashMap::new());
    for node in &nodes {
        let op = node.op.to_ascii_uppercase();
        if !cost::known_op(&op) && !unknown_ops.contains(&node.op) {
            unknown_ops.push(node.op);
        }
        if let Some(f) = class::activation(&op) {
            activations.insert(node.class.layer, f);
        }
    }
    Plan {
        key,
        serialized,
        parts: parts::parts(&nodes),
        copies: Vec::new(),
        n_tokens: n_tokens(&nodes),
        flops: nodes.iter().map(|n| n.cost.flops).sum(),
        flows: nodes.iter().map(|n| n.flows.len() as u64).sum(),
        activations,
        unknown_ops,
        routes: nodes.iter().any(|n| n.counts_experts),
        steps: AtomicU64::new(0),
        timed_steps: AtomicU64::new(0),
        left_out: AtomicU64::new(0),
        warm_ups: AtomicU64::new(0),
        times: (0..)
            .zip(&nodes)
            .map(|(i, n)| NodeTime {
                ns: AtomicU64::new(0),
                leader: AtomicU32::new(i),
                counts_experts: n.counts_experts,
            })
            .collect(),
        nodes,
    }
}

/// What node `t` is, that runs at `place`. `before` are the graph's nodes ahead of it, `index` their
/// numbers by address.
#[must_use]
pub fn plan_node(
    place: Place,
    t: &TensorPtr,
    index: &HashMap<*const std::ffi::c_void, usize>,
    before: &[PlanNode],
) -> PlanNode {
    let sources: Vec<Option<TensorPtr>> = (0..t.n_src()).map(|i| t.src(i)).collect();
    let views: Vec<Tensor<'_>> =
        sources.iter().map(|s| s.as_ref().map_or_else(Tensor::default, TensorPtr::view)).collect();
    let out = t.view();
    let node = Node { out, src: &views };
    let mut class = origin::classify_by_origin(&node, *t);
    // The last layer picks the rows that have an output from the residual of the layer before: unnamed, so its source
    // gives it its layer, but it runs in the middle of the next.
    if let Some(last) = before.last().filter(|_| out.name.starts_with("node_"))
        && class.layer.is_some()
        && class.layer < last.class.layer
    {
        class.layer = last.class.layer;
    }
    let flows = sources
        .iter()
        .zip(&views)
        .filter_map(|(s, v)| {
            // A view's data was made by the node that it looks into.
            let mut maker = (*s)?;
            while let Some(inner) = maker.view_src() {
                maker = inner;
            }
            let from = &before.get(*index.get(&maker.address())?)?.class;
            (from.component != class.component).then(|| Flow {
                from: from.component,
                tensor: v.name.into(),
                bytes: v.packed_bytes(),
            })
        })
        .collect();
    let kv_write = (matches!(out.op, "SET_ROWS" | "CPY") && class.component == Component::KvCache).then(|| {
        let rows = views.first().map_or(0, |v| v.elements());
        (is_key_cache(out.name), rows / u64::from(out.block_size.max(1)) * u64::from(out.type_size))
    });
    PlanNode {
        op: lower(out.op),
        name: out.name.into(),
        inputs: views.iter().filter(|v| !v.name.is_empty()).map(|v| v.name.into()).collect(),
        class,
        cost: cost::cost(&node),
        precision: t.type_name(),
        shape: out.ne,
        src0_shape: views.first().map_or([0; 4], |v| v.ne),
        out_bytes: out.packed_bytes(),
        src1_bytes: views.get(1).map_or(0, Tensor::packed_bytes),
        place,
        mlp_role: class::mlp_role(&node),
        kv_write,
        flows,
        moves_only: class::moves_data_only(out.op),
        counts_experts: out.op == "MUL_MAT_ID" && views.first().is_some_and(|w| super::routing::counts(w.name)),
    }
}

/// `cache_k_l3 (view)` is a key cache, `cache_v_l3` a value cache.
fn is_key_cache(name: &str) -> bool {
    name.split(['_', ' ']).any(|part| part == "k")
}

fn lower(op: &str) -> &'static str {
    keep(&op.to_ascii_lowercase())
}

fn place(sched: Ptr, t: TensorPtr, known: &mut HashMap<usize, Place>) -> Place {
    // SAFETY: a live scheduler and a node of the graph that it has just split.
    let backend = unsafe { api::ggml_backend_sched_get_tensor_backend(sched, t.address().cast_mut().cast()) }
        .unwrap_or(std::ptr::null_mut());
    *known.entry(backend as usize).or_insert_with(|| {
        if backend.is_null() {
            return Place {
                backend: "unknown",
                device: None,
                is_cpu: false,
                memory_type: "unknown",
                answers_late: false,
                backend_address: 0,
            };
        }
        // SAFETY: a live backend.
        let name = unsafe { api::text(api::ggml_backend_name(backend)) };
        // SAFETY: as above.
        let device = unsafe { api::ggml_backend_get_device(backend) }.filter(|d| !d.is_null());
        // SAFETY: a live device.
        let kind = device.and_then(|d| unsafe { device::kind(d) });
        // SAFETY: as above.
        let device = device.and_then(|d| unsafe { device::name(d) });
        let name = keep(name.as_deref().unwrap_or("unknown"));
        Place {
            backend: name,
            device: device.map(|d| keep(&d)),
            is_cpu: name == "CPU",
            memory_type: match kind {
                Some(GPU | INTEGRATED_GPU) => "vram",
                Some(_) => "ram",
                None if name == "CPU" => "ram",
                None => "unknown",
            },
            answers_late: name.starts_with("RPC"),
            backend_address: backend as usize,
        }
    })
}

/// Tokens of the ubatch: the rows of the embedding look-up, or of the first norm where embeddings were given.
fn n_tokens(nodes: &[PlanNode]) -> Option<u64> {
    let rows = |n: &PlanNode| u64::try_from(n.shape[1]).ok();
    nodes
        .iter()
        .find(|n| n.op == "get_rows" && n.class.component == Component::Embedding)
        .or_else(|| nodes.iter().find(|n| matches!(n.op, "rms_norm" | "norm") && n.class.layer == Some(0)))
        .and_then(rows)
}
