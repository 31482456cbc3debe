//! Interval totals: what every step of an interval did, exactly, from the counters that the host's threads keep.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::step::events_of;
use crate::format::Level;
use crate::format::figures::{known_memory, round};
use crate::format::summary::{
    CopyTotals, DeviceTotals, LayerTotals, MoeRouting, NamedTotals, PhaseTotals, StepSummary, Totals,
};
use crate::observe::device_totals;
use crate::observe::plan::{Plan, Reading};
use crate::observe::recording::{self, Recording};
use crate::observe::splits::{Device, device_of_place};

/// Operation events of steps that were not written event by event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// To keep the log's rate.
    pub left_out: u64,
    /// Those of warm-ups.
    pub warm_ups: u64,
}

/// Reads the counters and keeps what the last reading was.
#[derive(Debug)]
pub struct Collector {
    recording: Arc<Recording>,
    /// Last reading by the plan's address; removed with the plan, so that no later plan is taken for an older one.
    plans: HashMap<usize, Reading>,
    last: Vec<u64>,
    last_ns: u64,
}

impl Collector {
    /// Starts counting now.
    #[must_use]
    pub fn new(recording: &Arc<Recording>, now_ns: u64) -> Self {
        Self {
            recording: Arc::clone(recording),
            plans: HashMap::new(),
            last: counters(&recording.totals).iter().map(|c| c.load(Ordering::Relaxed)).collect(),
            last_ns: now_ns,
        }
    }

    /// The summary of the interval up to now and the number of operation events of steps that were not sampled; `None`
    /// if nothing ran.
    pub fn collect(&mut self, now_ns: u64, level: Level) -> Option<(StepSummary, Missing)> {
        let recording = Arc::clone(&self.recording);
        let now: Vec<u64> = counters(&recording.totals).iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let d: Vec<u64> = now.iter().zip(&self.last).map(|(n, l)| n.saturating_sub(*l)).collect();
        let (mut ops, mut components, mut layers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut devices = BTreeMap::new();
        let mut missing = Missing::default();
        let mut ran = false;
        recording.plans.lock().retain(|plan| {
            let (steps, of_plan) = self.add_plan(plan, level, &mut ops, &mut components, &mut layers);
            add_devices(plan, steps, &mut devices);
            missing.left_out += of_plan.left_out;
            missing.warm_ups += of_plan.warm_ups;
            ran |= steps > 0;
            // Ours is the last reference: no scheduler can run it any more, and its last counts have just been read.
            let alive = steps > 0 || Arc::strong_count(plan) > 1;
            if !alive {
                self.plans.remove(&(Arc::as_ptr(plan) as usize));
            }
            alive
        });
        let interval_ms = now_ns.saturating_sub(self.last_ns) as f64 / 1e6;
        (self.last, self.last_ns) = (now, now_ns);
        let phase = |i: usize| PhaseTotals {
            steps: d[i],
            tokens: d[i + 1],
            graph_us: round(d[i + 2] as f64 / 1e3),
            flops: d[i + 3],
        };
        let (prefill, decode) = (phase(0), phase(4));
        let steps = prefill.steps + decode.steps;
        if !ran && steps == 0 {
            return None;
        }
        let us = |ns: u64| round(ns as f64 / 1e3);
        let seen = self.recording.devices.take();
        let named = |m: BTreeMap<&'static str, Totals>| {
            m.into_iter().map(|(n, totals)| NamedTotals { name: n.to_owned(), totals: rounded(totals) }).collect()
        };
        let summary = StepSummary {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now_ns,
            interval_ms: round(interval_ms),
            step: self.recording.totals.last_step(),
            steps,
            timed_steps: d[10],
            sampled_steps: d[11],
            graphs_reused: d[9],
            graphs_built: d[8],
            prefill,
            decode,
            timed_graph_us: us(d[12]),
            barrier_us: us(d[14]),
            other_us: us(d[12].saturating_sub(d[13] + d[14])),
            component_flows: d[15],
            ops: named(ops),
            components: named(components),
            layers: layers
                .into_iter()
                .map(|(layer_id, totals)| LayerTotals { layer_id, totals: rounded(totals) })
                .collect(),
            devices: Some(device_totals(devices, &seen)),
            copies: Some(copy_totals(&seen)),
        };
        Some((summary, missing))
    }

    fn add_plan(
        &mut self,
        plan: &Arc<Plan>,
        level: Level,
        ops: &mut BTreeMap<&'static str, Totals>,
        components: &mut BTreeMap<&'static str, Totals>,
        layers: &mut BTreeMap<i32, Totals>,
    ) -> (u64, Missing) {
        let now = plan.read();
        let old = self.plans.get(&(Arc::as_ptr(plan) as usize));
        let (steps, timed) =
            (now.steps - old.map_or(0, |o| o.steps), now.timed_steps - old.map_or(0, |o| o.timed_steps));
        if steps == 0 {
            return (0, Missing::default());
        }
        for (i, n) in plan.nodes.iter().enumerate() {
            let bytes = n.cost.bytes_read + n.cost.bytes_written;
            let ns = now.ns[i] - old.map_or(0, |o| o.ns[i]);
            let counted =
                Totals { count: steps, flops: n.cost.flops * steps, bytes: bytes * steps, ..Totals::default() };
            add_to(ops, components, layers, n, &counted);
            if timed == 0 || !n.place.is_cpu {
                continue;
            }
            // Work that the backend fused into another node's call goes where that call's time is, or its rate
            // would be wrong.
            let leader = plan.leader(i);
            let timed_part = Totals {
                timed_count: if leader == i { timed } else { 0 },
                timed_us: ns as f64 / 1e3,
                timed_flops: n.cost.flops * timed,
                timed_bytes: bytes * timed,
                ..Totals::default()
            };
            add_to(ops, components, layers, &plan.nodes[leader], &timed_part);
        }
        let events = events_of(plan, level);
        let since = |get: fn(&Reading) -> u64| (get(&now) - old.map_or(0, get)) * events;
        let missing = Missing { left_out: since(|r| r.left_out), warm_ups: since(|r| r.warm_ups) };
        self.plans.insert(Arc::as_ptr(plan) as usize, now);
        (steps, missing)
    }
}

fn add_to(
    ops: &mut BTreeMap<&'static str, Totals>,
    components: &mut BTreeMap<&'static str, Totals>,
    layers: &mut BTreeMap<i32, Totals>,
    n: &crate::observe::node::PlanNode,
    part: &Totals,
) {
    let add = |t: &mut Totals| {
        t.count += part.count;
        t.flops += part.flops;
        t.bytes += part.bytes;
        t.timed_count += part.timed_count;
        t.timed_us += part.timed_us;
        t.timed_flops += part.timed_flops;
        t.timed_bytes += part.timed_bytes;
    };
    add(ops.entry(n.op).or_default());
    add(components.entry(n.class.component.name()).or_default());
    if let Some(layer) = n.class.layer {
        add(layers.entry(layer).or_default());
    }
}

/// Operations, FLOPs and bytes of one device.
type Work = (u64, u64, u64);

fn add_devices(plan: &Plan, steps: u64, devices: &mut BTreeMap<Device, Work>) {
    for part in plan.parts.iter().filter(|_| steps > 0) {
        let work = devices.entry(device_of_place(part.place)).or_default();
        work.0 += u64::from(part.until - part.from) * steps;
        work.1 += part.flops * steps;
        work.2 += part.bytes * steps;
    }
}

fn device_totals(devices: BTreeMap<Device, Work>, seen: &device_totals::Totals) -> Vec<DeviceTotals> {
    let totals = |(device, (operations, flops, bytes)): (Device, Work)| {
        let runs = seen.parts.get(device.name).copied().unwrap_or_default();
        DeviceTotals {
            device: device.name.to_owned(),
            memory_type: known_memory(device.memory_type),
            operations,
            flops,
            bytes,
            splits: runs.parts,
            timed_splits: runs.timed,
            serialized_splits: runs.serialized,
            split_us: round(runs.ns as f64 / 1e3),
        }
    };
    devices.into_iter().map(totals).collect()
}

fn copy_totals(seen: &device_totals::Totals) -> Vec<CopyTotals> {
    let totals = |((from, to), t): (&(Option<&str>, Option<&str>), &device_totals::CopyTotals)| CopyTotals {
        from_device: from.map(str::to_owned),
        to_device: to.map(str::to_owned),
        count: t.count,
        bytes: t.bytes,
        timed_count: t.timed,
        timed_bytes: t.timed_bytes,
        timed_us: round(t.ns as f64 / 1e3),
    };
    seen.copies.iter().map(totals).collect()
}

fn rounded(t: Totals) -> Totals {
    Totals { timed_us: round(t.timed_us), ..t }
}

/// All counters of the totals, in the order that `collect` takes them apart.
fn counters(totals: &recording::Totals) -> [&AtomicU64; 16] {
    let [p, d] = &totals.phases;
    [
        &p.steps,
        &p.tokens,
        &p.graph_ns,
        &p.flops,
        &d.steps,
        &d.tokens,
        &d.graph_ns,
        &d.flops,
        &totals.built,
        &totals.reused,
        &totals.timed,
        &totals.sampled,
        &totals.timed_graph_ns,
        &totals.op_ns,
        &totals.barrier_ns,
        &totals.flows,
    ]
}

/// Expert choices since the last call, one line a layer.
pub fn moe_lines(recording: &Recording, now_ns: u64) -> impl Iterator<Item = MoeRouting> {
    recording.routing.take().into_iter().map(move |(layer_id, l)| MoeRouting {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns: now_ns,
        layer_id,
        tokens: l.tokens,
        experts_used: l.used,
        counts: l.counts,
    })
}
