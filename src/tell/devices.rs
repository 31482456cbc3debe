//! Lines of a sampled step about its devices: the part that each was given, and what was copied between them.

use crate::format::figures::{known_memory, mib, round};
use crate::format::resource::{ComponentHandoff, SplitExecution};
use crate::format::{Level, Line};
use crate::graph::class;
use crate::graph::component::Component;
use crate::journal::stamp::resource_id;
use crate::observe::sample::StepSample;
use crate::observe::splits::{PartRun, Transfer};

/// The lines, each with the node ahead of which it stands, in order of them. None for a graph that runs on
/// the CPU alone.
#[must_use]
pub fn of(sample: &StepSample, level: Level) -> Vec<(u32, Line)> {
    if level < Level::Detailed || sample.plan.parts.iter().all(|p| p.place.is_cpu) {
        return Vec::new();
    }
    let mut lines: Vec<(u32, Line)> = sample.transfers.iter().map(|t| (reader(sample, t), copy(sample, t))).collect();
    lines.extend(sample.parts.iter().filter_map(|run| part(sample, run)));
    // Stable: what is copied for a part comes before the part.
    lines.sort_by_key(|(node, _)| *node);
    lines
}

/// When the device of node `node` was given its part; the step's start where that was not seen.
#[must_use]
pub fn given_at(sample: &StepSample, node: u32) -> u64 {
    let its =
        |run: &&PartRun| sample.plan.parts.get(run.part as usize).is_some_and(|p| (p.from..p.until).contains(&node));
    sample.parts.iter().find(its).map_or(sample.start_ns, |run| run.start_ns)
}

fn reader(sample: &StepSample, t: &Transfer) -> u32 {
    t.planned.and_then(|i| sample.plan.copies.get(i as usize)).map_or(0, |c| c.reader)
}

fn part(sample: &StepSample, run: &PartRun) -> Option<(u32, Line)> {
    let part = sample.plan.parts.get(run.part as usize)?;
    let nodes = sample.plan.nodes.get(part.from as usize..part.until as usize)?;
    let line = Line::SplitExecution(SplitExecution {
        timestamp: String::new(),
        session_id: String::new(),
        step: sample.step,
        t_ns: run.start_ns,
        split: run.part,
        backend: part.place.backend.to_owned(),
        device: part.place.device.map(str::to_owned),
        memory_type: known_memory(part.place.memory_type),
        operations: part.until - part.from,
        first_tensor: nodes.first()?.name.to_string(),
        last_tensor: nodes.last()?.name.to_string(),
        flops: part.flops,
        bytes: part.bytes,
        calls: run.calls,
        submit_us: us(run.call_ns),
        duration_us: run.end_ns.map(|end| us(end.saturating_sub(run.start_ns))),
        timing: run.serialized.then(|| "serialized".to_owned()),
    });
    Some((part.from, line))
}

fn copy(sample: &StepSample, t: &Transfer) -> Line {
    let planned = t.planned.and_then(|i| sample.plan.copies.get(i as usize));
    let tensor = planned.map_or_else(|| t.tensor.as_deref().unwrap_or_default(), |c| &c.tensor);
    let node = planned.and_then(|c| sample.plan.nodes.get(c.reader as usize));
    let from = planned.map_or_else(|| class::classify_tensor(tensor, "NONE").component, |c| c.made_by).name();
    let to = node.map_or(Component::Other, |n| n.class.component).name();
    let layer = node.and_then(|n| n.class.layer);
    let device = t.to.map(|d| d.name);
    let gbps = t.ns.filter(|&ns| ns > 0 && !t.waited).map(|ns| round(t.bytes as f64 / ns as f64));
    Line::ComponentHandoff(ComponentHandoff {
        resource_id: resource_id(device, "flow", layer, &format!("{from}_to_{to}"), t.start_ns),
        timestamp: String::new(),
        from_component: from.to_owned(),
        to_component: to.to_owned(),
        layer_id: layer,
        data_size_mb: Some(mib(t.bytes)),
        transfer_bandwidth_gbps: gbps,
        memory_pressure: None,
        session_id: String::new(),
        step: sample.step,
        t_ns: t.start_ns,
        backend: node.map(|n| n.place.backend.to_owned()),
        device: device.map(str::to_owned),
        tensor: Some(tensor.to_owned()),
        from_device: t.from.map(|d| d.name.to_owned()),
        bytes: Some(t.bytes),
        duration_us: t.ns.map(us),
        waited: t.ns.map(|_| t.waited),
    })
}

fn us(ns: u64) -> f64 {
    round(ns as f64 / 1e3)
}
