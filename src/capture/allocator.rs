//! The host's allocator, brought to keep what is wanted of a graph - and back again, where its memory has no
//! room for that.
//!
//! ggml's allocator places a graph by a plan that it has made of an earlier one, and only a plan heeds flags. So while
//! a scheduler allocates a graph of which something is flagged, and before it is placed, we have the allocator plan
//! that very graph, as the scheduler does itself where a plan does not fit. Where that fails, the flags are taken back
//! and it plans again, with its buffers in the sizes that they had: the host then has what it would have had without
//! us, and the graph is read by another route.
//!
//! Before it: `hook::capture`, which calls the host's functions, and `hook::buffer`. After it: `run`, which asks
//! how it went.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::ggml::api::{self, Ptr};
use crate::ggml::view::TensorPtr;

/// How long a lock is waited for: in a forked child the thread that holds it may be gone.
const PATIENCE: Duration = Duration::from_millis(10);

/// The arrays in which a scheduler says to its allocator which buffer each node and each leaf of the graph goes to.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Buffers of the nodes.
    pub nodes: Ptr,
    /// Buffers of the leafs.
    pub leafs: Ptr,
}

/// What is known of a live allocator.
struct Known {
    allocator: usize,
    /// [`Buffers`], as addresses. A scheduler has two of each array and swaps them for every graph. Where it has its
    /// graph placed without planning it anew, it has just found that both name the same kinds of buffers, so the one
    /// seen last is as good as the other.
    nodes: usize,
    leafs: usize,
    /// They are what its scheduler goes by. One with a single kind of buffer may plan by itself, and then goes
    /// by none (null).
    usable: bool,
    /// It plans graphs for us: its plan may be too small for a graph that would have fitted the host's own.
    ours: bool,
    /// Its last planning failed: it has lost memory that its plan, and a placing by it, take for granted.
    lacks_memory: bool,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// An allocator's function was called: its calls go through the PLT in this build.
static SEEN: AtomicBool = AtomicBool::new(false);

/// Some allocator has planned a graph for us.
static ANY_OURS: AtomicBool = AtomicBool::new(false);

/// A call of `ggml_backend_sched_alloc_graph` that runs on this thread.
#[derive(Debug)]
struct Call {
    sched: Ptr,
    /// What was flagged, and the flags before.
    flagged: Vec<(TensorPtr, i32)>,
    /// The allocator has planned the graph.
    planned: bool,
    gave_up: bool,
}

/// A planning that runs on this thread, in such a call.
#[derive(Debug, Default)]
struct Planning {
    /// Buffers that were there before and were freed: kind and size.
    freed: Vec<(usize, usize)>,
    /// Buffers that it has made.
    made: Vec<usize>,
    /// It is the second one, without flags.
    again: bool,
}

thread_local! {
    static CALL: RefCell<Option<Call>> = const { RefCell::new(None) };
    static PLANNING: RefCell<Option<Planning>> = const { RefCell::new(None) };
    /// [`PLANNING`] is set: all that other calls about buffers need to know.
    static PLANS: Cell<bool> = const { Cell::new(false) };
}

/// How an allocation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was flagged.
    Untouched,
    /// The allocator has planned the graph with its flags.
    Kept,
    /// It has placed the graph by a plan that may not know them.
    NotPlanned,
    /// There was no memory for what was to be kept: the flags were taken back.
    GaveUp,
}

/// Ends what is known of a call when it is over, also by an exception of the host.
#[derive(Debug)]
pub struct Allocating(());

impl Drop for Allocating {
    fn drop(&mut self) {
        PLANS.set(false);
        _ = PLANNING.try_with(|p| p.try_borrow_mut().map(|mut p| p.take()));
        _ = CALL.try_with(|c| c.try_borrow_mut().map(|mut c| c.take()));
    }
}

/// Whether any allocator was seen at work. One works before the first graph runs, since llama.cpp has it plan when a
/// context is made.
#[must_use]
pub fn is_seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// `sched` is about to allocate a graph of which this was flagged: tensors, and the flags that they had.
#[must_use]
pub fn begin(sched: Ptr, flagged: Vec<(TensorPtr, i32)>) -> Allocating {
    CALL.set(Some(Call { sched, flagged, planned: false, gave_up: false }));
    Allocating(())
}

/// [`begin`] where nothing is captured any more, as long as what was captured has left traces.
#[must_use]
pub fn begin_without(sched: Ptr) -> Option<Allocating> {
    ANY_OURS.load(Ordering::Relaxed).then(|| begin(sched, Vec::new()))
}

/// How the call that runs on this thread went so far.
#[must_use]
pub fn outcome() -> Outcome {
    CALL.with_borrow(|call| match call {
        None => Outcome::Untouched,
        Some(call) if call.gave_up => Outcome::GaveUp,
        Some(call) if call.flagged.is_empty() => Outcome::Untouched,
        Some(call) if call.planned => Outcome::Kept,
        Some(_) => Outcome::NotPlanned,
    })
}

/// `allocator` is about to place a graph: by what it must plan it before. `None`: it need not, or we do not know, and
/// its scheduler will.
#[must_use]
pub fn must_plan(allocator: Ptr) -> Option<Buffers> {
    SEEN.store(true, Ordering::Relaxed);
    CALL.with_borrow(|call| {
        let call = call.as_ref().filter(|c| !c.planned)?;
        let mut all = known()?;
        let known = all.iter_mut().find(|k| k.allocator == allocator as usize)?;
        if call.flagged.is_empty() && !known.lacks_memory {
            return None;
        }
        known.ours = true;
        ANY_OURS.store(true, Ordering::Relaxed);
        let buffers = known.buffers();
        drop(all);
        synchronize(call.sched);
        buffers
    })
}

/// `allocator` has refused to place a graph: by what it may plan it, if its own plan was replaced by one of ours
/// before. Its scheduler would do the same, but in some builds it aborts if that happens where it has never
/// happened without us.
#[must_use]
pub fn may_plan(allocator: Ptr) -> Option<Buffers> {
    CALL.with_borrow(|call| {
        let call = call.as_ref().filter(|c| !c.planned)?;
        let buffers = known()?.iter().find(|k| k.allocator == allocator as usize && k.ours)?.buffers();
        synchronize(call.sched);
        buffers
    })
}

impl Known {
    fn buffers(&self) -> Option<Buffers> {
        self.usable.then_some(Buffers { nodes: self.nodes as Ptr, leafs: self.leafs as Ptr })
    }
}

fn known() -> Option<MutexGuard<'static, Vec<Known>>> {
    KNOWN.try_lock_for(PATIENCE)
}

/// Planning may move what a backend still works on. Backend by backend, as the scheduler does it there: its own
/// synchronisation would count.
fn synchronize(sched: Ptr) {
    // SAFETY: a scheduler that is in the middle of a call, so a live one.
    let n = unsafe { api::ggml_backend_sched_get_n_backends(sched) };
    for i in 0..n.unwrap_or(0) {
        // SAFETY: as above; one of its `n` backends.
        if let Some(backend) = unsafe { api::ggml_backend_sched_get_backend(sched, i) }.filter(|b| !b.is_null()) {
            // SAFETY: a live backend.
            unsafe { api::ggml_backend_synchronize(backend) };
        }
    }
    if n.is_none() {
        // SAFETY: as above.
        unsafe { api::ggml_backend_sched_synchronize(sched) };
    }
}

/// `allocator` begins to plan a graph, of a scheduler or not.
pub fn plan_begins(allocator: Ptr, buffers: Buffers) {
    SEEN.store(true, Ordering::Relaxed);
    let (address, nodes, leafs) = (allocator as usize, buffers.nodes as usize, buffers.leafs as usize);
    let (in_call, keeps) = CALL.with_borrow(|c| (c.is_some(), c.as_ref().is_some_and(|c| !c.flagged.is_empty())));
    if let Some(mut all) = known() {
        let usable = nodes != 0 || in_call;
        match all.iter_mut().find(|k| k.allocator == address) {
            Some(known) if nodes != 0 || !known.usable => {
                (known.nodes, known.leafs, known.usable) = (nodes, leafs, usable);
            }
            Some(_) => {}
            None => all.push(Known { allocator: address, nodes, leafs, usable, ours: false, lacks_memory: false }),
        }
    }
    if keeps {
        PLANNING.set(Some(Planning::default()));
        PLANS.set(true);
    }
}

/// Planning has failed. True if that may be because of what was to be kept: nothing is any more, and it is to
/// be tried again.
#[must_use]
pub fn plan_failed() -> bool {
    CALL.with_borrow_mut(|call| {
        let Some(call) = call.as_mut().filter(|c| !c.flagged.is_empty()) else { return false };
        for (tensor, flags) in call.flagged.drain(..) {
            tensor.restore_flags(flags);
        }
        call.gave_up = true;
        PLANNING.with_borrow_mut(|p| p.as_mut().map(|p| p.again = true)).is_some()
    })
}

/// Planning is over.
pub fn plan_ended(allocator: Ptr, planned: bool) {
    PLANS.set(false);
    PLANNING.set(None);
    CALL.with_borrow_mut(|call| {
        if let Some(call) = call {
            call.planned = planned;
        }
    });
    if let Some(known) = known().as_mut().and_then(|all| all.iter_mut().find(|k| k.allocator == allocator as usize)) {
        known.lacks_memory = !planned;
    }
}

/// An allocator is freed, and its address may become another's.
pub fn freed(allocator: Ptr) {
    if let Some(mut all) = known() {
        all.retain(|k| k.allocator != allocator as usize);
    }
}

/// A buffer was made, by whomever.
pub fn buffer_made(buffer: Ptr) {
    with_planning(|p| p.made.push(buffer as usize));
}

/// A buffer is about to be freed, by whomever.
///
/// # Safety
/// `buffer` is a live buffer of the host's ggml.
pub unsafe fn buffer_freed(buffer: Ptr) {
    with_planning(|p| {
        if p.again || p.made.contains(&(buffer as usize)) {
            return;
        }
        // SAFETY: the caller's promise.
        let (buft, size) =
            unsafe { (api::ggml_backend_buffer_get_type(buffer), api::ggml_backend_buffer_get_size(buffer)) };
        if let (Some(buft), Some(size)) = (buft, size) {
            p.freed.push((buft as usize, size));
        }
    });
}

/// A buffer of this kind and size is about to be made. Gives the size of the one in whose place it comes, if that was
/// larger: planning for what did not fit has freed it, and the host counts on its size.
#[must_use]
pub fn size_before(buft: Ptr, size: usize) -> Option<usize> {
    with_planning(|p| {
        let i = p.freed.iter().position(|&(kind, _)| p.again && kind == buft as usize)?;
        Some(p.freed.remove(i).1).filter(|&before| before > size)
    })
    .flatten()
}

/// Buffers come and go on threads of all kinds, also while these end.
fn with_planning<T>(f: impl FnOnce(&mut Planning) -> T) -> Option<T> {
    if !PLANS.get() {
        return None;
    }
    PLANNING.try_with(|p| p.try_borrow_mut().ok()?.as_mut().map(f)).ok().flatten()
}
