//! What the caller of the C API marks: sessions, layers, components, operations, tokens.
//!
//! ```text
//!   abi ──► spans (order, times) ──► ring (one a thread, words) ──► writer: expand ──► lines
//!             │
//!             └─ tensor (shape, type, buffer of a ggml tensor, read on the caller's thread)
//! ```
//!
//! On the caller's thread a mark is: one load (is recording on?), the clock, and a few words into the thread's own
//! ring. Nothing locks, allocates (but for a thread's first mark) or formats; names are checked and copied. Lines are
//! made on the writer's thread.
//!
//! Marks are the caller's own events and say so (`source` is `mark`); steps come from the hooks or from the eval
//! callback, never from both, so nothing is told twice and no total counts a thing twice.
//!
//! Before it: `abi`. After it: `record`.

pub mod budget;
pub mod expand;
mod lines;
pub mod ring;
pub mod sessions;
mod source;
pub mod spans;
pub mod tensor;
pub mod totals;
pub mod words;

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::boundary::{self, Phase};
use crate::{clock, journal, log};

/// Longest name of a component or operation, bytes.
pub const MAX_NAME: usize = 127;
/// Longest id of a session or resource, bytes.
pub const MAX_ID: usize = 255;
/// Most inputs of one operation.
pub const MAX_INPUTS: usize = 1024;

/// What became of a mark that was in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// On its way to the log.
    Recorded,
    /// The level leaves it out.
    LeftOut,
    /// The thread's ring is full: counted, not written.
    Dropped,
}

/// Why a call was refused. Nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No recording is on.
    NotRunning,
    /// Switched off by the environment or by `disable`.
    Disabled,
    /// An argument is not what it should be.
    Invalid(&'static str),
    /// A call that the calls before it do not allow.
    WrongOrder(&'static str),
    /// More open spans than [`spans::MAX_DEPTH`].
    TooDeep,
    /// Tensors of this process' ggml cannot be read.
    Unreadable(&'static str),
    /// This process can never record (again): a forked child, or after an internal failure.
    Unavailable,
}

impl Refusal {
    fn text(self) -> &'static str {
        match self {
            Self::NotRunning => "no recording is on: call llama_resource_instrumentation_init first",
            Self::Disabled => "recording is switched off",
            Self::Invalid(what) | Self::WrongOrder(what) | Self::Unreadable(what) => what,
            Self::TooDeep => "too many open layers and components on this thread; is an end missing?",
            Self::Unavailable => {
                "this process cannot record: it is a forked child, or an internal failure ended recording"
            }
        }
    }
}

/// The answer to a mark.
pub type Answer = Result<Done, Refusal>;

/// Whether marks are recorded: what every mark asks first.
#[inline]
pub fn gate() -> Result<(), Refusal> {
    if boundary::recording() && !journal::paused() { Ok(()) } else { Err(refusal()) }
}

/// Why marks are not recorded now.
#[cold]
#[must_use]
pub fn refusal() -> Refusal {
    if boundary::in_forked_child() {
        return Refusal::Unavailable;
    }
    match boundary::phase() {
        Phase::Poisoned => Refusal::Unavailable,
        Phase::Running | Phase::Marking if !journal::is_over() => Refusal::Disabled,
        _ if journal::disabled() => Refusal::Disabled,
        _ => Refusal::NotRunning,
    }
}

static TOLD: Mutex<BTreeSet<(&'static str, &'static str)>> = Mutex::new(BTreeSet::new());

/// Tells a refusal, once for each function and reason until the next `init`.
#[cold]
pub fn tell(function: &'static str, refusal: Refusal) {
    // After a fork a lock may be held by a thread that is no more; then the status alone has to do.
    let Some(mut told) = TOLD.try_lock_for(std::time::Duration::from_millis(100)) else { return };
    let new = refusal != Refusal::Disabled && told.insert((function, refusal.text()));
    drop(told);
    if new {
        log::warn(format!("{function}: {}", refusal.text()));
    }
}

/// A recording begins: forgets sessions, open spans and what was told.
pub fn reset() {
    TOLD.lock().clear();
    spans::new_epoch();
    sessions::reset();
    ring::reset_counts();
}

/// A recording is about to end, in order: what is still open is closed.
pub fn before_the_end() {
    if sessions::open() {
        sessions::end(clock::now_ns());
    }
}
