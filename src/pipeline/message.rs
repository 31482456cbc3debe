//! What the threads of the pipeline hand to each other.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::account::{Amount, Reason};
use super::cut::Chunk;
use super::job::{Job, Spec};
use crate::format::stream::{Route, SampledToken};
use crate::store::tokens::Told;

/// What the collector can be told.
#[derive(Debug)]
pub(super) enum Message {
    /// A step, and the bytes of its values that are not encoded.
    Job(Job, usize),
    /// A token was chosen.
    Token(SampledToken, Option<Box<str>>),
    /// A host waits for memory.
    Pressed,
    /// Write everything that came before, then answer.
    Flush(Sender<bool>),
    /// The same, and end the stream.
    Finish,
}

/// A packet that a worker is to make.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) spec: Arc<Spec>,
    pub(super) route: Route,
    pub(super) row_len: u32,
    pub(super) chunks: Vec<Chunk>,
    /// Of its chunks.
    pub(super) amount: Amount,
    /// Where the writer waits for this one packet.
    pub(super) done: Sender<Made>,
}

/// What a worker gives for a task.
#[derive(Debug)]
pub(super) struct Made {
    /// The packet, all but its number. The writer gives the memory back.
    pub(super) bytes: Vec<u8>,
    /// Why there is none.
    pub(super) result: Result<(), Reason>,
}

/// Where the host is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Tokens of all steps.
    pub(super) step_tokens: u64,
    /// The last step that was handed over.
    pub(super) last_step: u64,
}

/// What the writer does, in the order of its queue.
#[derive(Debug)]
pub(super) enum Item {
    /// Writes a packet, which comes when its worker has made it. Nothing comes from a worker that panics.
    Packet { made: Receiver<Made>, spec: Arc<Spec>, amount: Amount },
    /// Chosen tokens.
    Tokens(Vec<Told>),
    /// Everything before goes into the file now.
    Settle,
    /// A point to resume from.
    Checkpoint(Progress),
    /// The same as settle, and an answer.
    Flush(Sender<bool>),
    /// The end.
    Finish(Progress),
}
