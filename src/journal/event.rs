//! What travels from the host's threads to the writer: one small value an event; big or rare ones are boxed.

use std::any::Any;
use std::fmt::Debug;

use super::rate::Permit;
use crate::format::Line;

/// An event on its way to the writer.
#[derive(Debug)]
pub enum Event {
    /// A complete line (rare events: the host's thread has filled it, but for the session id and
    /// the wall-clock strings).
    Line(Box<Line>),
    /// A token was sampled.
    Token(Token),
    /// A step that is to be written event by event.
    Step(Box<dyn Sample>),
}

/// A step as its producer measured it. The journal only carries it: the [`Source`](super::Source) that knows its type
/// makes lines of it.
pub trait Sample: Any + Debug + Send {
    /// When it began, monotonic ns.
    fn t_ns(&self) -> u64;
    /// When a device ended it that the GPUs' readings tell of; `None` if none took part.
    fn ended_on_gpu_ns(&self) -> Option<u64>;
    /// What let it be written.
    fn into_permit(self: Box<Self>) -> Permit;
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

impl Event {
    /// When it happened, for ordering.
    #[must_use]
    pub fn t_ns(&self) -> u64 {
        match self {
            Self::Line(line) => line.t_ns(),
            Self::Token(t) => t.t_ns,
            Self::Step(s) => s.t_ns(),
        }
    }
}
