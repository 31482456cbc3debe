//! Events on their way into the log: rings, rate, writer.
//!
//! Before it: `observe` and the C ABI (push events). After it: the file, as `format` describes it.

pub mod dropped;
pub mod event;
pub mod expand;
pub mod host_sample;
pub mod rate;
pub mod sink;
pub mod stamp;
pub mod summary;
pub mod writer;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub use event::Event;
pub use stamp::{line_time, stamp};

use crate::format::{Level, Line};
use crate::queue::{Local, Queue};

static QUEUE: Queue<Event> = Queue::new();
static LEVEL: AtomicU8 = AtomicU8::new(Level::Detailed as u8);
static SEEN: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LOCAL: Local<Event> = const { Local::new(None) };
}

/// The level in force.
#[inline]
#[must_use]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Minimal,
        1 => Level::Detailed,
        _ => Level::Verbose,
    }
}

/// Changes the level from the next event on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Hands an event to the writer. Never blocks; a full ring is counted.
pub fn push(event: Event) {
    // A thread that is being torn down has no ring any more; its event is counted as lost like any other.
    if LOCAL.try_with(|local| QUEUE.push(local, event)).is_err() {
        dropped::count("internal", "event", 1);
    }
}

/// Hands a rare event to the writer; the writer fills in session id and wall-clock strings.
pub fn push_line(line: Line) {
    SEEN.fetch_add(1, Ordering::Relaxed);
    push(Event::Line(Box::new(line)));
}

/// The queue, for the writer.
pub(crate) fn queue() -> &'static Queue<Event> {
    &QUEUE
}
