//! Exact totals of the marks of an interval, as a `step_summary`: what the report shows of a program whose steps
//! are not seen.

use std::collections::BTreeMap;

use crate::format::figures::round;
use crate::format::summary::{LayerTotals, NamedTotals, PhaseTotals, StepSummary, Totals};

/// Most different names that are kept apart in one interval; further ones are added up as `other`.
const MOST_NAMES: usize = 1024;

/// What ended or ran since the last summary.
#[derive(Debug, Default)]
pub struct Interval {
    ops: BTreeMap<String, Totals>,
    components: BTreeMap<String, Totals>,
    layers: BTreeMap<i32, Totals>,
    outermost_ns: u64,
    handoffs: u64,
    began_ns: u64,
}

/// Operations inside a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Bytes of the results.
    pub result_bytes: u64,
    /// Operations that only move data, and allocations.
    pub moves: u32,
    /// Operations that compute.
    pub computes: u32,
}

impl Work {
    /// Adds `other` to this.
    pub fn add(&mut self, other: Self) {
        self.flops = self.flops.saturating_add(other.flops);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.result_bytes = self.result_bytes.saturating_add(other.result_bytes);
        self.moves = self.moves.saturating_add(other.moves);
        self.computes = self.computes.saturating_add(other.computes);
    }
}

fn add(totals: &mut Totals, work: Work, ns: u64) {
    totals.count += 1;
    totals.flops = totals.flops.saturating_add(work.flops);
    totals.bytes = totals.bytes.saturating_add(work.bytes);
    if ns > 0 {
        totals.timed_count += 1;
        totals.timed_us += ns as f64 / 1e3;
        totals.timed_flops = totals.timed_flops.saturating_add(work.flops);
        totals.timed_bytes = totals.timed_bytes.saturating_add(work.bytes);
    }
}

fn named<'a>(map: &'a mut BTreeMap<String, Totals>, name: &str) -> &'a mut Totals {
    let name = if map.len() < MOST_NAMES || map.contains_key(name) { name } else { "other" };
    map.entry(name.to_owned()).or_default()
}

impl Interval {
    /// An empty interval from `now_ns` on.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Self { began_ns: now_ns, ..Self::default() }
    }

    /// An operation ran.
    pub fn operation(&mut self, name: &str, work: Work) {
        add(named(&mut self.ops, name), work, 0);
    }

    /// A hand-off.
    pub fn handoff(&mut self) {
        self.handoffs += 1;
    }

    /// A layer ended.
    pub fn layer(&mut self, id: i32, work: Work, ns: u64) {
        add(self.layers.entry(id).or_default(), work, ns);
    }

    /// A component ended.
    pub fn component(&mut self, name: &str, work: Work, ns: u64) {
        add(named(&mut self.components, name), work, ns);
    }

    /// A span that is in no other one ended.
    pub fn outermost(&mut self, ns: u64) {
        self.outermost_ns += ns;
    }

    /// The summary of the interval, which starts anew; `None` if nothing was marked.
    pub fn take(&mut self, now_ns: u64) -> Option<StepSummary> {
        let old = std::mem::replace(self, Self::new(now_ns));
        if old.ops.is_empty() && old.components.is_empty() && old.layers.is_empty() && old.handoffs == 0 {
            return None;
        }
        let rounded = |t: Totals| Totals { timed_us: round(t.timed_us), ..t };
        let list = |m: BTreeMap<String, Totals>| {
            m.into_iter().map(|(name, t)| NamedTotals { name, totals: rounded(t) }).collect()
        };
        Some(StepSummary {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now_ns,
            interval_ms: round(now_ns.saturating_sub(old.began_ns) as f64 / 1e6),
            step: None,
            steps: 0,
            timed_steps: 0,
            sampled_steps: 0,
            graphs_reused: 0,
            graphs_built: 0,
            prefill: PhaseTotals::default(),
            decode: PhaseTotals::default(),
            timed_graph_us: round(old.outermost_ns as f64 / 1e3),
            barrier_us: 0.0,
            other_us: 0.0,
            component_flows: old.handoffs,
            ops: list(old.ops),
            components: list(old.components),
            layers: old.layers.into_iter().map(|(layer_id, t)| LayerTotals { layer_id, totals: rounded(t) }).collect(),
            devices: None,
            copies: None,
        })
    }
}
