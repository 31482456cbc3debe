//! A step that is written event by event, as it was measured.

use std::sync::Arc;

use super::placement::Placement;
use super::plan::Plan;
use super::splits::{PartRun, Transfer};
use super::timer::{Span, Sums};
use crate::journal::Sample;
use crate::journal::rate::Permit;

/// Tokens of one sequence in a ubatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRange {
    /// Sequence.
    pub seq_id: i32,
    /// First position.
    pub first_pos: i32,
    /// One past the last position.
    pub end_pos: i32,
    /// Cached over prompt tokens of the sequence's request, in thousandths; `None` outside a request.
    pub hit_permille: Option<u32>,
}

/// One step, event by event.
#[derive(Debug)]
pub struct StepSample {
    /// What the graph's nodes are.
    pub plan: Arc<Plan>,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// That it may be written; it says whether the ubatch had more than one token a sequence.
    pub permit: Permit,
    /// When the compute call began, monotonic ns.
    pub start_ns: u64,
    /// When it returned.
    pub end_ns: u64,
    /// Timed operations in the order they ran; empty where the backend cannot be timed.
    pub spans: Vec<Span>,
    /// Their sums.
    pub sums: Sums,
    /// Parts of the graph by device, in order.
    pub parts: Vec<PartRun>,
    /// What was copied between devices.
    pub transfers: Vec<Transfer>,
    /// Busy time of the other compute threads (VERBOSE).
    pub workers_ns: Vec<u64>,
    /// Sequences of the ubatch; empty if they are not known.
    pub sequences: Vec<SeqRange>,
    /// Tensors that were placed for the step's graph, if they were not told before.
    pub placements: Vec<Placement>,
}

impl Sample for StepSample {
    fn t_ns(&self) -> u64 {
        self.start_ns
    }

    fn ended_on_gpu_ns(&self) -> Option<u64> {
        self.plan.nodes.iter().any(|n| !n.place.is_cpu).then_some(self.end_ns)
    }

    fn into_permit(self: Box<Self>) -> Permit {
        self.permit
    }
}
