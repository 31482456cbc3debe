//! Where the time went: by phase, component, layer and operation, from the exact totals of `step_summary`.

use std::collections::BTreeMap;
use std::hash::Hash;

use serde::Serialize;

use super::stats::{giga_per_second, per_second, share};
use crate::format::Line;
use crate::format::summary::{PhaseTotals, StepSummary, Totals};

/// Totals of one operation, component or layer over the whole log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row<N> {
    /// Operation, component or layer.
    pub name: N,
    /// Executions.
    pub count: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Executions that were timed.
    pub timed_count: u64,
    /// Their time on compute thread 0, microseconds; `null` when none was timed.
    pub timed_us: Option<f64>,
    /// Share of the timed steps' wall time.
    pub share: Option<f64>,
    /// Rate of the timed executions.
    pub gflops_per_s: Option<f64>,
    /// Bytes read and written by the timed executions a second, 10^9.
    pub gbps: Option<f64>,
}

/// A phase: prompt processing or generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Ubatches.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Wall time inside the compute call, microseconds; submission only on an asynchronous backend.
    pub graph_us: f64,
    /// Floating-point operations.
    pub flops: u64,
    /// Tokens a second while computing; waiting between requests does not count. `null` with [`Time::unseen_parts`].
    pub tokens_per_second: Option<f64>,
    /// Floating-point operations a second while computing, 10^9. `null` with [`Time::unseen_parts`].
    pub gflops_per_s: Option<f64>,
}

/// One summary interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// End, seconds since the session began.
    pub t_s: f64,
    /// Length.
    pub interval_ms: f64,
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Generated tokens computed.
    pub decode_tokens: u64,
    /// Share of the interval spent inside the compute call; `null` where a part was only submitted there.
    pub busy_share: Option<f64>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Time {
    /// `step_summary` lines found. With none, everything here is empty.
    pub summaries: u64,
    /// Parts of graphs that a device computed after the call had returned. With any, `graph_us` is no
    /// time of computing.
    pub unseen_parts: u64,
    /// Prompt processing.
    pub prefill: Phase,
    /// Generation.
    pub decode: Phase,
    /// Wall time of the timed steps, microseconds: operations + barriers + other.
    pub timed_graph_us: f64,
    /// Time at barriers between operations.
    pub barrier_us: f64,
    /// `barrier_us / timed_graph_us`.
    pub barrier_share: Option<f64>,
    /// Starting threads, scheduling, copies between backends.
    pub other_us: f64,
    /// `other_us / timed_graph_us`.
    pub other_share: Option<f64>,
    /// Ubatches that reused the graph of the one before.
    pub graphs_reused: u64,
    /// Graphs built.
    pub graphs_built: u64,
    /// Hand-offs between components.
    pub component_flows: u64,
    /// Operations, most time first.
    pub ops: Vec<Row<String>>,
    /// Components, most time first.
    pub components: Vec<Row<String>>,
    /// Layers, in order.
    pub layers: Vec<Row<i32>>,
    /// The intervals in order.
    pub intervals: Vec<Interval>,
    /// `batch` lines found (DETAILED and up, of sampled steps).
    pub logged_batches: u64,
    /// Those of them whose call returned anything but success.
    pub failed_batches: u64,
}

/// Gathers [`Time`].
#[derive(Debug, Default)]
pub struct Fold {
    summaries: u64,
    unseen_parts: u64,
    prefill: PhaseTotals,
    decode: PhaseTotals,
    timed_graph_us: f64,
    barrier_us: f64,
    other_us: f64,
    graphs_reused: u64,
    graphs_built: u64,
    component_flows: u64,
    ops: BTreeMap<String, Totals>,
    components: BTreeMap<String, Totals>,
    layers: BTreeMap<i32, Totals>,
    intervals: Vec<Interval>,
    batches: u64,
    failed_batches: u64,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        match line {
            Line::StepSummary(e) => self.add_summary(e, t_s),
            Line::Batch(e) => {
                self.batches += 1;
                self.failed_batches += u64::from(e.status != 0);
            }
            _ => {}
        }
    }

    fn add_summary(&mut self, e: &StepSummary, t_s: f64) {
        self.summaries += 1;
        let unseen = e.devices.iter().flatten().map(|d| d.splits.saturating_sub(d.timed_splits)).sum::<u64>();
        self.unseen_parts = self.unseen_parts.saturating_add(unseen);
        add_phase(&mut self.prefill, &e.prefill);
        add_phase(&mut self.decode, &e.decode);
        self.timed_graph_us += e.timed_graph_us;
        self.barrier_us += e.barrier_us;
        self.other_us += e.other_us;
        self.graphs_reused = self.graphs_reused.saturating_add(e.graphs_reused);
        self.graphs_built = self.graphs_built.saturating_add(e.graphs_built);
        self.component_flows = self.component_flows.saturating_add(e.component_flows);
        e.ops.iter().for_each(|n| add_totals(&mut self.ops, n.name.clone(), &n.totals));
        e.components.iter().for_each(|n| add_totals(&mut self.components, n.name.clone(), &n.totals));
        e.layers.iter().for_each(|n| add_totals(&mut self.layers, n.layer_id, &n.totals));
        self.intervals.push(Interval {
            t_s,
            interval_ms: e.interval_ms,
            prefill_tokens: e.prefill.tokens,
            decode_tokens: e.decode.tokens,
            busy_share: share(e.prefill.graph_us + e.decode.graph_us, e.interval_ms * 1e3).filter(|_| unseen == 0),
        });
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Time {
        let whole = self.timed_graph_us;
        let mut ops = rows(self.ops, whole);
        let mut components = rows(self.components, whole);
        ops.sort_by(most_time_first);
        components.sort_by(most_time_first);
        Time {
            summaries: self.summaries,
            unseen_parts: self.unseen_parts,
            prefill: phase(&self.prefill, self.unseen_parts == 0),
            decode: phase(&self.decode, self.unseen_parts == 0),
            timed_graph_us: whole,
            barrier_us: self.barrier_us,
            barrier_share: share(self.barrier_us, whole),
            other_us: self.other_us,
            other_share: share(self.other_us, whole),
            graphs_reused: self.graphs_reused,
            graphs_built: self.graphs_built,
            component_flows: self.component_flows,
            ops,
            components,
            layers: rows(self.layers, whole),
            intervals: self.intervals,
            logged_batches: self.batches,
            failed_batches: self.failed_batches,
        }
    }
}

fn add_phase(sum: &mut PhaseTotals, add: &PhaseTotals) {
    sum.steps = sum.steps.saturating_add(add.steps);
    sum.tokens = sum.tokens.saturating_add(add.tokens);
    sum.graph_us += add.graph_us;
    sum.flops = sum.flops.saturating_add(add.flops);
}

fn add_totals<N: Ord + Hash>(map: &mut BTreeMap<N, Totals>, name: N, add: &Totals) {
    let sum = map.entry(name).or_default();
    sum.count = sum.count.saturating_add(add.count);
    sum.flops = sum.flops.saturating_add(add.flops);
    sum.bytes = sum.bytes.saturating_add(add.bytes);
    sum.timed_count = sum.timed_count.saturating_add(add.timed_count);
    sum.timed_us += add.timed_us;
    sum.timed_flops = sum.timed_flops.saturating_add(add.timed_flops);
    sum.timed_bytes = sum.timed_bytes.saturating_add(add.timed_bytes);
}

/// Rates only where the end of everything was seen.
fn phase(totals: &PhaseTotals, seen: bool) -> Phase {
    Phase {
        steps: totals.steps,
        tokens: totals.tokens,
        graph_us: totals.graph_us,
        flops: totals.flops,
        tokens_per_second: per_second(totals.tokens, totals.graph_us).filter(|_| seen),
        gflops_per_s: giga_per_second(totals.flops, totals.graph_us).filter(|_| seen),
    }
}

fn rows<N>(map: BTreeMap<N, Totals>, whole_us: f64) -> Vec<Row<N>> {
    let row = |(name, t): (N, Totals)| {
        let timed_us = (t.timed_count > 0).then_some(t.timed_us);
        Row {
            name,
            count: t.count,
            flops: t.flops,
            bytes: t.bytes,
            timed_count: t.timed_count,
            timed_us,
            share: timed_us.and_then(|us| share(us, whole_us)),
            // An operation without arithmetic has no rate, rather than one of zero.
            gflops_per_s: if t.timed_flops > 0 { giga_per_second(t.timed_flops, t.timed_us) } else { None },
            gbps: if t.timed_bytes > 0 { giga_per_second(t.timed_bytes, t.timed_us) } else { None },
        }
    };
    map.into_iter().map(row).collect()
}

/// Untimed rows come last, by arithmetic.
fn most_time_first(a: &Row<String>, b: &Row<String>) -> std::cmp::Ordering {
    let time = |r: &Row<String>| r.timed_us.unwrap_or(-1.0);
    time(b).total_cmp(&time(a)).then(b.flops.cmp(&a.flops)).then(b.count.cmp(&a.count))
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;

    fn summary(op: &str, timed: u64) -> Line {
        let totals = serde_json::json!([{ "name": op, "count": 10, "flops": 4_000_000, "bytes": 2_000_000,
            "timed_count": timed, "timed_us": 500.0, "timed_flops": 2_000_000, "timed_bytes": 1_000_000 }]);
        let phase = serde_json::json!({"steps": 2, "tokens": 10, "graph_us": 1000.0, "flops": 4_000_000});
        serde_json::from_value(serde_json::json!({
            "event": "step_summary", "timestamp": "0", "session_id": "s", "t_ns": 0, "interval_ms": 2.0, "step": 3,
            "steps": 4, "timed_steps": 2, "sampled_steps": 0, "graphs_reused": 3, "graphs_built": 1, "prefill": phase,
            "decode": phase, "timed_graph_us": 1000.0, "barrier_us": 300.0, "other_us": 200.0, "component_flows": 1,
            "ops": totals, "components": totals, "layers": [],
        }))
        .unwrap()
    }

    #[test]
    fn summaries_add_up_and_rates_use_the_timed_part_only() {
        let mut fold = Fold::default();
        fold.add(&summary("mul_mat", 5), 1.0);
        fold.add(&summary("mul_mat", 5), 2.0);
        let time = fold.finish();
        let op = &time.ops[0];
        assert_eq!((op.count, op.timed_us, op.share), (20, Some(1000.0), Some(0.5)));
        assert_eq!((op.gflops_per_s, op.gbps), (Some(4.0), Some(2.0)));
        assert_eq!((time.barrier_share, time.other_share), (Some(0.3), Some(0.2)));
        assert_eq!(time.decode.tokens_per_second, Some(10_000.0));
        assert_eq!(time.intervals[1].busy_share, Some(1.0));
    }

    #[test]
    fn what_was_only_submitted_has_no_rate() {
        let Line::StepSummary(mut s) = summary("mul_mat", 5) else { unreachable!() };
        let device = |splits, timed| {
            serde_json::json!([{ "device": "CUDA0", "memory_type": "vram", "operations": 10, "flops": 1, "bytes": 1, "splits": splits,
                "timed_splits": timed, "serialized_splits": timed, "split_us": 1.0, "submit_us": 1.0 }])
        };
        for (timed, rate) in [(4, Some(10_000.0)), (3, None)] {
            s.devices = serde_json::from_value(device(4, timed)).unwrap();
            let mut fold = Fold::default();
            fold.add(&Line::StepSummary(s.clone()), 1.0);
            let time = fold.finish();
            assert_eq!((time.unseen_parts, time.decode.tokens_per_second), (4 - timed, rate));
            assert_eq!((time.intervals[0].busy_share.is_some(), time.decode.graph_us), (rate.is_some(), 1000.0));
        }
    }

    #[test]
    fn an_operation_that_was_never_timed_has_no_time_and_no_rate() {
        let mut fold = Fold::default();
        let Line::StepSummary(mut s) = summary("soft_max", 0) else { unreachable!() };
        (s.ops[0].totals.timed_us, s.ops[0].totals.timed_flops, s.ops[0].totals.timed_bytes) = (0.0, 0, 0);
        fold.add(&Line::StepSummary(s), 1.0);
        let op = fold.finish().ops.remove(0);
        assert_eq!((op.timed_us, op.share, op.gflops_per_s, op.gbps), (None, None, None, None));
    }
}
