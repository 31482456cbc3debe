//! What one recording has seen of steps: made when it starts, dropped when the next one does and the last step of
//! it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::cadence::Cadence;
use super::plan::Plan;
use super::state::Told;
use super::{device_totals, routing};
use crate::journal;

/// Totals of one phase.
#[derive(Debug, Default)]
pub struct Phase {
    /// Ubatches.
    pub steps: AtomicU64,
    /// Tokens.
    pub tokens: AtomicU64,
    /// Nanoseconds in the compute call.
    pub graph_ns: AtomicU64,
    /// FLOPs.
    pub flops: AtomicU64,
}

/// Exact totals of all steps of the recording.
#[derive(Debug, Default)]
pub struct Totals {
    /// Prefill, decode.
    pub phases: [Phase; 2],
    /// Number of the last ubatch.
    pub last_step: AtomicU64,
    /// Graphs built, reused.
    pub built: AtomicU64,
    /// Graphs that ran again as they were.
    pub reused: AtomicU64,
    /// Timed steps.
    pub timed: AtomicU64,
    /// Steps written event by event.
    pub sampled: AtomicU64,
    /// Compute call time of timed graphs, those without tokens too.
    pub timed_graph_ns: AtomicU64,
    /// Their operations.
    pub op_ns: AtomicU64,
    /// Their barriers.
    pub barrier_ns: AtomicU64,
    /// Hand-offs.
    pub flows: AtomicU64,
}

impl Totals {
    /// The sum over both phases.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Phase) -> &AtomicU64) -> u64 {
        self.phases.iter().map(|phase| of(phase).load(Ordering::Relaxed)).sum()
    }

    /// Number of the last ubatch, `None` ahead of the first.
    #[must_use]
    pub fn last_step(&self) -> Option<u64> {
        Some(self.last_step.load(Ordering::Relaxed)).filter(|&step| step > 0)
    }

    /// Number of the ubatch that begins.
    pub fn next_step(&self) -> u64 {
        self.last_step.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The steps of one recording.
#[derive(Debug, Default)]
pub struct Recording {
    /// Exact totals.
    pub totals: Totals,
    /// Plans whose counters the writer reads; it forgets those that cannot run any more.
    pub plans: Mutex<Vec<Arc<Plan>>>,
    /// Which steps are timed: of prompts, of decodes.
    pub(super) cadence: [Cadence; 2],
    /// Devices and copies since the writer asked last.
    pub devices: device_totals::Shared,
    /// Expert choices since the writer asked last.
    pub routing: routing::Layers,
    /// What works in this process, as far as it was told.
    pub(super) told: Told,
}

impl Recording {
    /// The writer reads the counters of `plan` until it cannot run any more; without a writer it would
    /// never be forgotten.
    pub(crate) fn hand_to_the_writer(&self, plan: &Arc<Plan>) {
        if !journal::is_over() {
            self.plans.lock().push(plan.clone());
        }
    }
}

static CURRENT: RwLock<Option<Arc<Recording>>> = RwLock::new(None);

/// A call of llama.cpp arrived. Asked at every call of the host, so it is no part of [`Recording`];
/// [`begin`] resets it.
static CALL_SEEN: AtomicBool = AtomicBool::new(false);

/// The hooks have seen a graph of this recording. Asked at every node of an eval callback; [`begin`] resets it.
static SEEN_BY_HOOKS: AtomicBool = AtomicBool::new(false);

/// The recording that is on, or was last.
#[must_use]
pub fn current() -> Arc<Recording> {
    if let Some(recording) = CURRENT.read().as_ref() {
        return Arc::clone(recording);
    }
    Arc::clone(CURRENT.write().get_or_insert_with(Arc::default))
}

/// A recording begins, and nothing of the one before is in it.
pub(super) fn begin() {
    *CURRENT.write() = Some(Arc::default());
    CALL_SEEN.store(false, Ordering::Relaxed);
    SEEN_BY_HOOKS.store(false, Ordering::Relaxed);
}

/// A call of llama.cpp arrived.
#[inline]
pub fn call_seen() {
    if !CALL_SEEN.load(Ordering::Relaxed) {
        CALL_SEEN.store(true, Ordering::Relaxed);
    }
}

/// Whether any call of llama.cpp arrived.
#[must_use]
pub fn any_call_seen() -> bool {
    CALL_SEEN.load(Ordering::Relaxed)
}

/// Whether the hooks see this process' graphs: then the eval callback leaves them to the hooks.
#[must_use]
pub fn seen_by_hooks() -> bool {
    SEEN_BY_HOOKS.load(Ordering::Relaxed)
}

/// The hooks see a graph.
pub(super) fn graph_seen() {
    SEEN_BY_HOOKS.store(true, Ordering::Relaxed);
}
