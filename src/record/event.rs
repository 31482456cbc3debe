//! What travels from the host's threads to the writer: one small value an event; big or rare ones are boxed.

use std::sync::Arc;

use super::rate::Permit;
use crate::format::Line;
use crate::observe::placement::Placement;
use crate::observe::plan::Plan;
use crate::observe::splits::{PartRun, Transfer};
use crate::observe::timer::{Span, Sums};

/// An event on its way to the writer.
#[derive(Debug)]
pub enum Event {
    /// A complete line (rare events: the host's thread has filled it, but for the session id and the wall-clock strings).
    Line(Box<Line>),
    /// A token was sampled.
    Token(Token),
    /// A step that is to be written event by event.
    Step(Box<StepSample>),
}

/// A sampled token.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Monotonic ns.
    pub t_ns: u64,
    /// Request.
    pub request_id: u64,
    /// Sequence.
    pub seq_id: i32,
    /// 0 for the request's first.
    pub index: u64,
    /// Token id.
    pub token_id: i32,
    /// Since the token before, or since the request's start.
    pub since_previous_ns: u64,
}

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

impl Event {
    /// When it happened, for ordering.
    #[must_use]
    pub fn t_ns(&self) -> u64 {
        match self {
            Self::Line(line) => super::line_time(line),
            Self::Token(t) => t.t_ns,
            Self::Step(s) => s.start_ns,
        }
    }
}
