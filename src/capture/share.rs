//! The host's compute threads compress for a moment, all at once, where they fill every core (`pipeline::gang`).
//!
//! Before it: `hook::cpu`, on each of them, when the first operation of a step begins. What is measured stays the
//! host's work alone: the first operation is timed from there on, the wait for the others behind it is left out, and a
//! step that is written is not helped in.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{CURRENT, Capture, early, run};
use crate::ggml::api;
use crate::observe::steps;
use crate::observe::timer::{self, HOT};
use crate::pipeline::Pipeline;

/// Packets wait for the threads of the step that runs.
static WANTED: AtomicBool = AtomicBool::new(false);

/// A step runs whose threads help: one at a time.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Ends the help when the step does, also when an exception of the host ends it.
#[derive(Debug)]
pub struct Sharing {
    /// The first operation was asked to help with packets.
    gang: bool,
    /// The operations are told to us.
    listens: bool,
    /// Rows are encoded at some of them.
    rows: Option<early::Working>,
}

impl Sharing {
    /// Whether the threads may come late to the first operation.
    #[must_use]
    pub const fn delays_the_first(&self) -> bool {
        self.gang
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Relaxed);
        drop(self.rows.take());
        if self.listens {
            HOT.listen_no_more();
        }
        with(|p| {
            if self.gang {
                p.help_no_more();
            }
            p.host_rests();
        });
        BUSY.store(false, Ordering::Release);
    }
}

/// Whether a thread that begins the operation `at` should [`help`]: two loads.
#[inline]
#[must_use]
pub fn is_wanted(at: *mut c_void) -> bool {
    HOT.station.load(Ordering::Relaxed) == at || WANTED.load(Ordering::Relaxed)
}

/// A step of `n_tokens`, which the CPU alone computes, is about to run on the calling thread; its threads `may` help.
/// `None` if they leave a core to spare: one that waits for a GPU is.
#[must_use]
pub fn begin(n_tokens: Option<u64>, may: bool) -> Option<Sharing> {
    let threads = threads(n_tokens?).filter(|&n| n >= cores())?;
    if BUSY.swap(true, Ordering::Acquire) {
        return None;
    }
    let (mut gang, mut rows) = (false, None);
    with(|p| {
        p.host_computes();
        if may {
            gang = p.ask_for_help(threads);
            rows = run::encode_early(p, threads);
        }
    });
    let listens = gang || rows.is_some();
    WANTED.store(gang, Ordering::Relaxed);
    if listens {
        HOT.listen();
    }
    Some(Sharing { gang, listens, rows })
}

/// A compute thread of the host begins the operation `at` of such a step.
pub fn help(at: *mut c_void) {
    if WANTED.load(Ordering::Relaxed) {
        with(Pipeline::help);
        WANTED.store(false, Ordering::Relaxed);
    }
    if HOT.station.load(Ordering::Relaxed) == at {
        early::stretch_ends(at, timer::is_timed());
        timer::interrupted();
    }
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
