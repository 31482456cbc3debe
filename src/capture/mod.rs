//! Activations: finds the wanted nodes in the host's graphs, reads their values, and hands them to the pipeline.
//!
//! Before it: `hook` (graphs allocated, graphs run). After it: `pipeline` (codec workers, file). Two routes give
//! the same bytes:
//!
//! - **retain**: the nodes are flagged as outputs while the graph's memory is planned, so the allocator keeps them, and
//!   all are read after one synchronise. The graph is not cut.
//! - **callback**: the scheduler is given an eval callback that is shown each wanted node right after it was computed.
//!   That cuts the graph at every one, and needs no memory.
//!
//! `auto` takes the first where it is safe and fits the memory budget, node by node.

pub mod allocator;
pub mod copy;
pub mod early;
pub mod graph;
pub mod helpers;
pub mod keep;
pub mod list;
pub mod live;
pub mod names;
pub mod ran;
pub mod rows;
pub mod run;
pub mod serial;
pub mod shape;
pub mod start;
pub mod step;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard, RwLock};

use crate::config::CaptureConfig;
use crate::format::stream::SampledToken;
use crate::ggml::api::{self, EvalCallback, Ptr};
use crate::observe::recent::Recent;
use crate::observe::sampling::Accepted;
use crate::pipeline::{Counts, Pipeline, Reason};

use graph::{GraphPlan, Memory, Wish};
use keep::Keeping;
use live::Live;

/// Plans of graphs that are kept in case they come again.
const KEPT_PLANS: usize = 64;

/// A capture that is on.
#[derive(Debug)]
pub struct Capture {
    /// The settings.
    pub config: CaptureConfig,
    /// Which tensors.
    pub wish: Wish,
    /// Bytes that the host's allocator may keep for us.
    pub retain_limit: usize,
    /// Text of tokens may be written.
    pub text: bool,
    /// Only tell what would be captured, into this file.
    pub list: Option<PathBuf>,
    /// What became of the graphs that ran.
    ran: ran::Ran,
    start: start::Start,
    graphs: Mutex<Graphs>,
}

/// Graphs by scheduler, and what was learned from them.
#[derive(Debug, Default)]
struct Graphs {
    memory: Memory,
    plans: Recent<u64, Option<Arc<GraphPlan>>, KEPT_PLANS>,
    live: HashMap<usize, Arc<Live>>,
    keeping: Keeping,
}

static ON: AtomicBool = AtomicBool::new(false);
static CURRENT: RwLock<Option<Arc<Capture>>> = RwLock::new(None);

/// How long the table below is waited for, which is locked for a look at most.
const THEIRS_PATIENCE: Duration = Duration::from_secs(1);

/// The callback that the host itself has set on each scheduler.
static THEIRS: Mutex<Option<HashMap<usize, (EvalCallback, usize)>>> = Mutex::new(None);

impl Capture {
    /// Where the values go; started at the first step. `None` if that failed.
    #[must_use]
    pub fn pipeline(&self) -> Option<&Pipeline> {
        self.start.pipeline(self)
    }

    /// What was learned of the graphs so far.
    fn memory(&self) -> MappedMutexGuard<'_, Memory> {
        MutexGuard::map(self.graphs.lock(), |g| &mut g.memory)
    }

    /// Why rows are left out: the one of the two filters that is set, the requests if both are.
    #[must_use]
    pub fn row_reason(&self) -> Reason {
        if self.config.requests.is_all() { Reason::Stride } else { Reason::Request }
    }

    /// Whether a graph with tokens was planned.
    #[must_use]
    pub fn has_seen_a_graph(&self) -> bool {
        self.graphs.lock().plans.values().any(Option::is_some)
    }

    /// Terms of the selection that have matched nothing so far.
    #[must_use]
    pub fn unmatched(&self) -> Vec<String> {
        let matched = self.graphs.lock().memory.matched;
        self.wish.selection.unmatched(matched).map(str::to_owned).collect()
    }
}

/// Whether a capture is on: one load.
#[inline]
#[must_use]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The capture that is on.
#[must_use]
pub fn current() -> Option<Arc<Capture>> {
    // Recursive: a message that is told while it is read may lead here again, through the callback of whoever
    // asked for messages.
    if is_on() { CURRENT.read_recursive().clone() } else { None }
}

/// Begins to capture.
pub fn begin(capture: Capture) {
    let before = CURRENT.write().replace(Arc::new(capture));
    // Not while it is locked: what ends may have something to say.
    drop(before);
    ON.store(true, Ordering::Release);
}

/// Ends the capture; the last one to let go of it closes the stream.
pub fn end() -> Option<Arc<Capture>> {
    ON.store(false, Ordering::Release);
    CURRENT.write().take()
}

/// The host sets its own callback on a scheduler (null: none). To be told whether or not anything is captured.
pub fn theirs_set(sched: Ptr, callback: Option<EvalCallback>, user_data: Ptr) {
    // In a forked child the thread that holds the lock may be gone.
    let Some(mut theirs) = THEIRS.try_lock_for(THEIRS_PATIENCE) else { return };
    let theirs = theirs.get_or_insert_default();
    match callback {
        Some(f) => _ = theirs.insert(sched as usize, (f, user_data as usize)),
        None => _ = theirs.remove(&(sched as usize)),
    }
}

/// The host's own callback on a scheduler.
#[must_use]
pub fn theirs(sched: Ptr) -> Option<(EvalCallback, Ptr)> {
    THEIRS.lock().as_ref()?.get(&(sched as usize)).map(|&(f, data)| (f, data as Ptr))
}

/// A scheduler is gone. To be told whether or not anything is captured.
pub fn sched_freed(sched: Ptr) {
    theirs_set(sched, None, std::ptr::null_mut());
    if let Some(capture) = current() {
        let mut graphs = capture.graphs.lock();
        graphs.live.remove(&(sched as usize));
        graphs.keeping.freed(sched as usize, capture.start.started());
    }
}

/// A token was chosen for a request.
pub fn token(accepted: &Accepted, token: i32) {
    let Accepted { sampled, probability, t_ns, vocab } = *accepted;
    let Some(capture) = current().filter(|c| c.list.is_none()) else { return };
    if !capture.config.requests.wants(sampled.request) {
        return;
    }
    let text = capture.text.then(|| piece(vocab, token)).flatten();
    let chosen = SampledToken {
        seq: sampled.seq,
        pos: sampled.pos.unwrap_or(-1),
        token,
        request: sampled.request,
        probability,
        t_ns,
    };
    if let Some(pipeline) = capture.pipeline() {
        pipeline.token(chosen, text);
    }
}

/// A token that the caller of the C API chose. False if nothing is captured.
pub fn track(seq: i32, pos: i32, token: i32, probability: Option<f32>, t_ns: u64, text: Option<Box<str>>) -> bool {
    let Some(capture) = current().filter(|c| c.list.is_none()) else { return false };
    let Some(pipeline) = capture.pipeline() else { return false };
    pipeline.token(SampledToken { seq, pos: pos.max(-1), token, request: 0, probability, t_ns }, text);
    true
}

/// Waits until everything captured so far is in the file. False if that fails or takes too long.
#[must_use]
pub fn flush(patience: Duration) -> bool {
    let Some(capture) = current() else { return true };
    capture.start.started().is_none_or(|p| p.flush(patience))
}

/// The running account, and the bytes of the stream; zeros before the first step. `None` while nothing is captured.
#[must_use]
pub fn account() -> Option<(Counts, u64)> {
    let capture = current().filter(|c| c.list.is_none() && !c.start.has_failed())?;
    let of = |p: &Pipeline| (p.account().totals(), p.written().1);
    Some(capture.start.started().map(of).unwrap_or_default())
}

/// Text of a token.
fn piece(vocab: Ptr, token: i32) -> Option<Box<str>> {
    if vocab.is_null() || token < 0 {
        return None;
    }
    let mut bytes = [0_u8; 128];
    let size = bytes.len() as i32;
    // SAFETY: the vocabulary of a live model, and a buffer of `size` bytes.
    let n = unsafe { api::llama_token_to_piece(vocab, token, bytes.as_mut_ptr().cast(), size, 0, true) }?;
    let text = bytes.get(..usize::try_from(n).ok()?)?;
    Some(String::from_utf8_lossy(text).into())
}
