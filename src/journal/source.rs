//! What the writer asks of everything that has something to tell besides what was pushed.

use std::fmt::Debug;

use super::{Event, Sample};
use crate::format::{Level, Line};

/// A moment of the writer's work.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Monotonic ns.
    pub now_ns: u64,
    /// The level in force.
    pub level: Level,
    /// A flush waits, or the recording ends: nothing is kept back.
    pub all: bool,
    /// The recording ends.
    pub ends: bool,
}

/// A source of lines. It lives on the writer's thread for one recording; the session says which sources there are, and
/// in which order.
pub trait Source: Debug + Send {
    /// Hands over what has come in since the last call.
    fn drain(&mut self, _at: Moment, _out: &mut Vec<Event>) {}

    /// Whether `event` can be written: everything that completes it is known, or never will be.
    fn is_settled(&self, _event: &Event, _now_ns: u64) -> bool {
        true
    }

    /// Makes lines of a step, if it is one of this source's.
    fn expand(&mut self, _step: &dyn Sample, _level: Level, _out: &mut Vec<Line>) {}

    /// Fills in what only this source knows of a line that is about to be written. What goes to `before` is written
    /// ahead of it.
    fn complete(&mut self, _line: &mut Line, _before: &mut Vec<Line>) {}

    /// Adds what is told of an interval that ends, behind what the sources before this one have told.
    fn interval(&mut self, _at: Moment, _out: &mut Vec<Line>) {}

    /// Adds the last lines of the recording.
    fn close(&mut self, _now_ns: u64, _out: &mut Vec<Line>) {}
}
