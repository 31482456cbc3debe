//! Threads of the host as helpers of the capture, where they fill every core: they encode rows while a step runs
//! (`early`).
//!
//! Before it: `hook::cpu`, on each of them, when an operation begins. What is measured stays the host's work alone: a
//! step that is written is not helped in, and in others that are timed the clock of the next operation starts behind
//! the rows.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use super::start::cores;
use super::{CURRENT, Capture, early, run};
use crate::ggml::api;
use crate::observe::steps;
use crate::observe::timer::{self, HOT};

/// A step runs whose threads help: one at a time.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Ends the help when the step does, also when an exception of the host ends it.
#[derive(Debug)]
pub struct Helping {
    /// Rows are encoded at some operations.
    rows: Option<early::Working>,
}

impl Drop for Helping {
    fn drop(&mut self) {
        if self.rows.take().is_some() {
            HOT.listen_no_more();
        }
        BUSY.store(false, Ordering::Release);
    }
}

/// Whether a thread that begins the operation `at` should [`help`]: one load.
#[inline]
#[must_use]
pub fn is_wanted(at: *mut c_void) -> bool {
    HOT.station.load(Ordering::Relaxed) == at
}

/// A step of `n_tokens`, which the CPU alone computes, is about to run on the calling thread. `None` if its threads are
/// not to help, or leave a core to spare: one that waits for a GPU is.
#[must_use]
pub fn begin(n_tokens: Option<u64>) -> Option<Helping> {
    let threads = threads(n_tokens?).filter(|&n| n >= cores())?;
    if BUSY.swap(true, Ordering::Acquire) {
        return None;
    }
    // Never waits; while this runs, the capture does not end.
    let rows = CURRENT.try_read().and_then(|current| {
        let pipeline = current.as_ref().and_then(|c: &std::sync::Arc<Capture>| c.start.started())?;
        run::encode_early(pipeline, threads)
    });
    if rows.is_some() {
        HOT.listen();
    }
    Some(Helping { rows })
}

/// A compute thread of the host begins the operation `at` of such a step.
pub fn help(at: *mut c_void) {
    early::stretch_ends(at, timer::is_timed());
    timer::interrupted();
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
