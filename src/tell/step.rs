//! A sampled step becomes lines: layers, components, operations, hand-offs, cache writes - as many as the
//! level asks for.

use std::collections::HashMap;

use super::devices;
use crate::format::figures::{known_memory, mib, round, shape};
use crate::format::resource::{ComponentHandoff, ComputeExecution, KvCacheOperation, MlpOperation};
use crate::format::session::{ComponentBegin, ComponentEnd, LayerBegin, LayerEnd};
use crate::format::summary::ThreadImbalance;
use crate::format::{Level, Line};
use crate::graph::component::Component;
use crate::journal::stamp::resource_id;
use crate::observe::node::PlanNode;
use crate::observe::plan::Plan;
use crate::observe::sample::{SeqRange, StepSample};

/// Best rates seen so far by operation: what `estimated_duration_us` is computed from.
#[derive(Debug, Default)]
pub struct BestRates(HashMap<&'static str, (f64, f64)>);

impl BestRates {
    fn estimate_us(&self, op: &str, flops: u64, bytes: u64) -> Option<f64> {
        let (flops_per_us, bytes_per_us) = *self.0.get(op)?;
        let by = |n: u64, rate: f64| if rate > 0.0 { n as f64 / rate } else { 0.0 };
        Some(by(flops, flops_per_us).max(by(bytes, bytes_per_us))).filter(|&us| us > 0.0)
    }

    fn learn(&mut self, op: &'static str, flops: u64, bytes: u64, us: f64) {
        if us > 0.0 {
            let best = self.0.entry(op).or_insert((0.0, 0.0));
            *best = (best.0.max(flops as f64 / us), best.1.max(bytes as f64 / us));
        }
    }
}

/// A node, or several that the backend computed in one call, with their measured time.
struct Group<'a> {
    nodes: &'a [PlanNode],
    start_ns: u64,
    end_ns: u64,
    barrier_us: Option<f64>,
    timed: bool,
}

impl Group<'_> {
    fn lead(&self) -> &PlanNode {
        &self.nodes[0]
    }

    fn duration_us(&self) -> Option<f64> {
        self.timed.then(|| round(self.end_ns.saturating_sub(self.start_ns) as f64 / 1e3))
    }
}

/// The lines of `sample` at `level`, in order of time.
pub fn expand(sample: &StepSample, level: Level, rates: &mut BestRates) -> Vec<Line> {
    let groups = groups(sample);
    let mut out = Vec::with_capacity(groups.len() * 2);
    out.extend(sample.placements.iter().map(|p| p.line(sample.step)));
    let mut marks = Marks { sample, on: level >= Level::Detailed, layer: None, component: None };
    let mut split_lines = devices::of(sample, level).into_iter().peekable();
    for (first, g) in &groups {
        while let Some((_, line)) = split_lines.next_if(|(node, _)| node <= first) {
            out.push(line);
        }
        let n = g.lead();
        marks.enter(g, &mut out);
        if wanted(n, level) {
            out.push(compute(sample, g, rates));
        }
        if let (Some(us), op) = (g.duration_us(), n.op) {
            let (flops, bytes) = costs(g);
            rates.learn(op, flops, bytes, us);
        }
        if level >= Level::Detailed {
            out.extend(mlp(sample, g));
            out.extend(g.nodes.iter().flat_map(|n| handoffs(sample, g, n)));
            out.extend(cache_write(sample, g));
        }
    }
    out.extend(split_lines.map(|(_, line)| line));
    marks.leave(&mut out);
    if level >= Level::Verbose && !sample.workers_ns.is_empty() && !sample.spans.is_empty() {
        out.push(imbalance(sample));
    }
    out
}

/// Groups with the number of their first node, in graph order.
fn groups(sample: &StepSample) -> Vec<(u32, Group<'_>)> {
    let nodes = &sample.plan.nodes;
    let timed = sample.spans.iter().map(|s| {
        let range = s.node as usize..(s.until as usize).min(nodes.len());
        (
            s.node,
            Group {
                nodes: &nodes[range],
                start_ns: s.start_ns,
                end_ns: s.end_ns,
                barrier_us: Some(round(s.barrier_ns as f64 / 1e3)),
                timed: true,
            },
        )
    });
    let covered: std::collections::HashSet<u32> = sample.spans.iter().flat_map(|s| s.node..s.until).collect();
    // Nodes of a backend that we cannot time carry the time at which it was given its part, and no duration.
    let untimed = (0..nodes.len() as u32).filter(|i| !covered.contains(i)).map(|i| {
        let one = &nodes[i as usize..=i as usize];
        let at = devices::given_at(sample, i);
        (i, Group { nodes: one, start_ns: at, end_ns: at, barrier_us: None, timed: false })
    });
    let mut all: Vec<(u32, Group<'_>)> = timed.chain(untimed).collect();
    all.sort_by_key(|(i, _)| *i);
    all
}

/// Operations that a level writes.
fn wanted(n: &PlanNode, level: Level) -> bool {
    match level {
        Level::Minimal => is_matmul(n),
        Level::Detailed => {
            is_matmul(n) || (!n.moves_only && n.cost.flops > 0 && !matches!(n.op, "add" | "mul" | "scale"))
        }
        Level::Verbose => true,
    }
}

fn is_matmul(n: &PlanNode) -> bool {
    matches!(n.op, "mul_mat" | "mul_mat_id" | "out_prod")
}

/// Operations of this plan that would be written at `level`: what a step that is not sampled leaves out. Fused ones
/// are one event.
#[must_use]
pub fn events_of(plan: &Plan, level: Level) -> u64 {
    plan.nodes.iter().enumerate().filter(|(i, n)| plan.leader(*i) == *i && wanted(n, level)).count() as u64
}

fn costs(g: &Group<'_>) -> (u64, u64) {
    g.nodes.iter().fold((0, 0), |(f, b), n| (f + n.cost.flops, b + n.cost.bytes_read + n.cost.bytes_written))
}

fn compute(sample: &StepSample, g: &Group<'_>, rates: &BestRates) -> Line {
    let n = g.lead();
    let component = n.class.component.name();
    let (flops, bytes) = costs(g);
    let us = g.duration_us().filter(|&us| us > 0.0);
    let written: u64 = g.nodes.iter().map(|n| n.cost.bytes_written).sum();
    let gbps = us.map(|us| round(bytes as f64 / us / 1e3));
    Line::ComputeExecution(ComputeExecution {
        resource_id: resource_id(
            n.place.device.or(Some(n.place.backend)),
            "compute",
            n.class.layer,
            component,
            g.start_ns,
        ),
        timestamp: String::new(),
        operation: n.op.to_owned(),
        component_type: component.to_owned(),
        layer_id: n.class.layer,
        input_tensors: n.inputs.iter().map(|i| i.to_string()).collect(),
        output_shape: shape(&n.shape),
        compute_intensity_gflops: Some(flops as f64 / 1e9),
        estimated_duration_us: rates.estimate_us(n.op, flops, bytes).map(round),
        parallelism_factor: (!sample.workers_ns.is_empty()).then(|| sample.workers_ns.len() as u32 + 1),
        memory_throughput_gbps: gbps,
        sm_utilization_percent: None,
        session_id: String::new(),
        step: sample.step,
        t_ns: g.start_ns,
        backend: Some(n.place.backend.to_owned()),
        device: n.place.device.map(str::to_owned),
        tensor: n.name.to_string(),
        precision: n.precision.to_owned(),
        duration_us: g.duration_us(),
        barrier_us: g.barrier_us,
        gflops_per_s: us.map(|us| round(flops as f64 / us / 1e3)),
        bytes_read: bytes - written,
        bytes_written: written,
        gbps,
        fused_with: g.nodes[1..].iter().map(|n| n.name.to_string()).collect(),
        source: sample.plan.serialized.then(|| "eval_callback".to_owned()),
        memory_type: known_memory(n.place.memory_type),
        timing: sample.plan.serialized.then(|| "serialized".to_owned()),
    })
}

fn mlp(sample: &StepSample, g: &Group<'_>) -> Option<Line> {
    let n = g.lead();
    let role = n.mlp_role?;
    Some(Line::MlpOperation(MlpOperation {
        resource_id: resource_id(n.place.device.or(Some(n.place.backend)), "mlp", n.class.layer, role, g.start_ns),
        timestamp: String::new(),
        mlp_operation: role.to_owned(),
        layer_id: n.class.layer,
        weight_shape: shape(&n.src0_shape),
        activation_shape: shape(&n.shape),
        intermediate_size_mb: mib(n.out_bytes),
        activation_memory_peak_mb: mib(n.out_bytes + n.src1_bytes),
        activation_function: sample.plan.activations.get(&n.class.layer).map(|&a| a.to_owned()),
        session_id: String::new(),
        step: sample.step,
        t_ns: g.start_ns,
        backend: Some(n.place.backend.to_owned()),
        device: n.place.device.map(str::to_owned),
        duration_us: g.duration_us(),
    }))
}

fn handoffs<'a>(sample: &'a StepSample, g: &'a Group<'_>, n: &'a PlanNode) -> impl Iterator<Item = Line> + 'a {
    n.flows.iter().map(move |f| {
        let (from, to) = (f.from.name(), n.class.component.name());
        Line::ComponentHandoff(ComponentHandoff {
            resource_id: resource_id(
                n.place.device.or(Some(n.place.backend)),
                "flow",
                n.class.layer,
                &format!("{from}_to_{to}"),
                g.start_ns,
            ),
            timestamp: String::new(),
            from_component: from.to_owned(),
            to_component: to.to_owned(),
            layer_id: n.class.layer,
            data_size_mb: Some(mib(f.bytes)),
            transfer_bandwidth_gbps: None,
            memory_pressure: None,
            session_id: String::new(),
            step: sample.step,
            t_ns: g.start_ns,
            backend: Some(n.place.backend.to_owned()),
            device: n.place.device.map(str::to_owned),
            tensor: Some(f.tensor.to_string()),
            from_device: None,
            bytes: Some(f.bytes),
            duration_us: None,
            waited: None,
        })
    })
}

fn cache_write(sample: &StepSample, g: &Group<'_>) -> Option<Line> {
    let n = g.lead();
    let (is_key, bytes) = n.kv_write?;
    let one: Option<&SeqRange> = if let [one] = sample.sequences.as_slice() { Some(one) } else { None };
    let first = sample.sequences.iter().map(|s| s.first_pos).min();
    let end = sample.sequences.iter().map(|s| s.end_pos).max();
    Some(Line::KvCacheOperation(KvCacheOperation {
        resource_id: resource_id(
            n.place.device.or(Some(n.place.backend)),
            "cache",
            n.class.layer,
            "update",
            g.start_ns,
        ),
        timestamp: String::new(),
        cache_type: "key_value".to_owned(),
        layer_id: n.class.layer,
        seq_id: one.map(|s| s.seq_id),
        cache_start_pos: first,
        cache_end_pos: end,
        key_cache_size_mb: is_key.then(|| mib(bytes)),
        value_cache_size_mb: (!is_key).then(|| mib(bytes)),
        cache_hit_ratio: one.and_then(|s| s.hit_permille).map(|p| f64::from(p) / 1e3),
        cache_operation: "update".to_owned(),
        session_id: String::new(),
        step: sample.step,
        t_ns: g.start_ns,
        backend: Some(n.place.backend.to_owned()),
        device: n.place.device.map(str::to_owned),
        cache_size_mb: None,
    }))
}

fn imbalance(sample: &StepSample) -> Line {
    let busy: Vec<f64> = std::iter::once(sample.sums.op_ns)
        .chain(sample.workers_ns.iter().copied())
        .map(|ns| round(ns as f64 / 1e3))
        .collect();
    let mean = busy.iter().sum::<f64>() / busy.len() as f64;
    let most = busy.iter().copied().fold(0.0, f64::max);
    Line::ThreadImbalance(ThreadImbalance {
        timestamp: String::new(),
        session_id: String::new(),
        step: sample.step.unwrap_or(0),
        t_ns: sample.start_ns,
        imbalance: if mean > 0.0 { round(most / mean) } else { 1.0 },
        busy_us: busy,
    })
}

/// The open layer and component while the operations go by.
struct Marks<'a> {
    sample: &'a StepSample,
    on: bool,
    layer: Option<OpenLayer>,
    component: Option<OpenComponent>,
}

struct OpenLayer {
    id: i32,
    start_ns: u64,
    end_ns: u64,
    timed: bool,
    bytes: u64,
    flops: u64,
    moves: u32,
    computes: u32,
}

struct OpenComponent {
    component: Component,
    layer: Option<i32>,
    start_ns: u64,
    end_ns: u64,
    timed: bool,
}

impl Marks<'_> {
    fn enter(&mut self, g: &Group<'_>, out: &mut Vec<Line>) {
        if !self.on {
            return;
        }
        let class = &g.lead().class;
        if self.component.as_ref().is_some_and(|c| c.component != class.component || c.layer != class.layer) {
            self.end_component(out);
        }
        if self.layer.as_ref().is_some_and(|l| Some(l.id) != class.layer) {
            self.end_layer(out);
        }
        if let (Some(id), None) = (class.layer, &self.layer) {
            self.layer = Some(OpenLayer {
                id,
                start_ns: g.start_ns,
                end_ns: g.end_ns,
                timed: true,
                bytes: 0,
                flops: 0,
                moves: 0,
                computes: 0,
            });
            out.push(Line::LayerBegin(LayerBegin {
                timestamp: String::new(),
                layer_id: id,
                session_id: String::new(),
                step: self.sample.step,
                t_ns: g.start_ns,
            }));
        }
        if self.component.is_none() {
            self.component = Some(OpenComponent {
                component: class.component,
                layer: class.layer,
                start_ns: g.start_ns,
                end_ns: g.end_ns,
                timed: true,
            });
            out.push(Line::ComponentBegin(ComponentBegin {
                timestamp: String::new(),
                component_type: class.component.name().to_owned(),
                layer_id: class.layer,
                session_id: String::new(),
                step: self.sample.step,
                t_ns: g.start_ns,
            }));
        }
        if let Some(c) = &mut self.component {
            c.end_ns = g.end_ns;
            c.timed &= g.timed;
        }
        if let Some(l) = &mut self.layer {
            l.end_ns = g.end_ns;
            l.timed &= g.timed;
            for n in g.nodes {
                l.bytes += n.out_bytes;
                l.flops += n.cost.flops;
                l.moves += u32::from(n.moves_only);
                l.computes += u32::from(!n.moves_only);
            }
        }
    }

    fn leave(&mut self, out: &mut Vec<Line>) {
        self.end_component(out);
        self.end_layer(out);
    }

    fn end_component(&mut self, out: &mut Vec<Line>) {
        let Some(c) = self.component.take() else { return };
        out.push(Line::ComponentEnd(ComponentEnd {
            timestamp: String::new(),
            component_type: c.component.name().to_owned(),
            layer_id: c.layer,
            duration_us: c.timed.then(|| round(c.end_ns.saturating_sub(c.start_ns) as f64 / 1e3)),
            session_id: String::new(),
            step: self.sample.step,
            t_ns: c.end_ns,
        }));
    }

    fn end_layer(&mut self, out: &mut Vec<Line>) {
        let Some(l) = self.layer.take() else { return };
        out.push(Line::LayerEnd(LayerEnd {
            timestamp: String::new(),
            layer_id: l.id,
            duration_us: l.timed.then(|| round(l.end_ns.saturating_sub(l.start_ns) as f64 / 1e3)),
            layer_memory_mb: mib(l.bytes),
            layer_compute_gflops: l.flops as f64 / 1e9,
            memory_operations: l.moves,
            compute_operations: l.computes,
            session_id: String::new(),
            step: self.sample.step,
            t_ns: l.end_ns,
        }));
    }
}
