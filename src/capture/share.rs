//! The host's compute threads compress for a moment, all at once, where they fill every core (`pipeline::gang`).
//!
//! Before it: `hook::cpu`, on each of them, when the first operation of a step begins. What is measured stays the host's work alone: the first
//! operation is timed from there on, the wait for the others behind it is left out, and a step that is written is not helped in.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{CURRENT, Capture};
use crate::ggml::api;
use crate::observe::{steps, timer::HOT};
use crate::pipeline::Pipeline;

/// A step runs whose threads may help.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Ends the help when the step does, also when an exception of the host ends it.
#[derive(Debug)]
pub struct Sharing(());

impl Drop for Sharing {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Relaxed);
        HOT.listen_no_more();
        with(Pipeline::help_no_more);
    }
}

/// Whether a thread that begins an operation should [`help`]: one load.
#[inline]
#[must_use]
pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// A step of `n_tokens`, which the CPU alone computes, is about to run on the calling thread. `None` if there is nothing to compress, or a core
/// to spare for it: one that waits for a GPU is.
#[must_use]
pub fn begin(n_tokens: Option<u64>) -> Option<Sharing> {
    let threads = threads(n_tokens?)?;
    let mut asked = false;
    with(|p| asked = threads >= cores() && p.ask_for_help(threads));
    // One step at a time.
    (asked && WANTED.compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed).is_ok()).then(|| {
        HOT.listen();
        Sharing(())
    })
}

/// A compute thread of the host begins an operation of such a step.
pub fn help() {
    with(Pipeline::help);
}

/// The pipeline of the capture that is on. Never waits; while this runs, the capture does not end.
fn with(f: impl FnOnce(&Pipeline)) {
    if let Some(current) = CURRENT.try_read()
        && let Some(pipeline) = current.as_ref().and_then(|c: &std::sync::Arc<Capture>| c.start.started())
    {
        f(pipeline);
    }
}

/// Threads that compute a step of the context whose decode call runs on this thread.
fn threads(n_tokens: u64) -> Option<usize> {
    let ctx = steps::context();
    if ctx.is_null() {
        return None;
    }
    // SAFETY: the context of the call that is running.
    let n = unsafe { if n_tokens > 1 { api::llama_n_threads_batch(ctx) } else { api::llama_n_threads(ctx) } };
    usize::try_from(n?).ok()
}

/// Cores that this process may use.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}
