//! Times of the CPU backend's operations without cutting the graph: two clock reads an operation, on compute
//! thread 0 only.
//!
//! ggml's CPU backend runs every node between two barriers. The end of a barrier starts an operation and the beginning
//! of the next barrier ends it; what passes inside the barrier is waiting for the other threads. Which node it is,
//! `ggml_cpu_extra_compute_forward` tells (ggml calls it first for every node) or the one fused function that skips it.
//! So nothing is guessed and nothing is missing:
//!
//! ```text
//!   graph start │ other │ op │ barrier │ op (with barriers inside) │ barrier │ ... │ barrier │ other │ graph end
//! ```

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::plan::Plan;
use crate::clock;
use crate::ggml::view::TensorPtr;

const NONE: usize = usize::MAX;

/// What the hooks of operations and barriers need in every call of an untimed step, in one line of the cache: from one
/// operation to the next the host's weights go through the caches, so that each line that is touched is fetched anew.
#[repr(align(64))]
#[derive(Debug)]
pub struct Hot {
    /// Steps being timed: what the hooks of all other threads and of other steps look at first.
    timing: AtomicUsize,
    /// Steps in which the capture wants to know of operations.
    helping: AtomicUsize,
    /// The operation before which the capture has something to do (`capture::early`), null if there is none.
    pub station: AtomicPtr<c_void>,
    /// The functions of one copy of ggml, null until the first call of each (`hook::cpu`).
    pub forward: AtomicPtr<c_void>,
    /// See `forward`.
    pub fused: AtomicPtr<c_void>,
    /// See `forward`.
    pub barrier: AtomicPtr<c_void>,
    /// Where the code of the library lies that calls these three: they are that caller's. Set once; [`CLOSED`] when it
    /// may have gone.
    caller: AtomicUsize,
    /// Its bytes, 0 before it is known.
    caller_length: AtomicUsize,
}

/// No address: no caller's functions are kept any more.
const CLOSED: usize = usize::MAX;

/// The only one.
pub static HOT: Hot = Hot {
    timing: AtomicUsize::new(0),
    helping: AtomicUsize::new(0),
    station: AtomicPtr::new(std::ptr::null_mut()),
    forward: AtomicPtr::new(std::ptr::null_mut()),
    fused: AtomicPtr::new(std::ptr::null_mut()),
    barrier: AtomicPtr::new(std::ptr::null_mut()),
    caller: AtomicUsize::new(0),
    caller_length: AtomicUsize::new(0),
};

const _: () = assert!(size_of::<Hot>() == 64, "one line of the cache");

impl Hot {
    /// Whether a call that returns to `address` comes from the library whose functions are kept here.
    #[inline]
    #[must_use]
    pub fn is_called_by(&self, address: usize) -> bool {
        address.wrapping_sub(self.caller.load(Ordering::Relaxed)) < self.caller_length.load(Ordering::Relaxed)
    }

    /// Whether functions of the caller whose code begins at `start` are to be kept: of the first one that asks, and
    /// of no other.
    #[must_use]
    pub fn keep_caller(&self, start: usize, length: usize) -> bool {
        if start == 0 || length == 0 {
            return false;
        }
        let first = self.caller.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.caller_length.store(length, Ordering::Relaxed);
        }
        first.is_ok() || first == Err(start)
    }

    /// A library was closed: if it was the one whose functions are kept, nothing is kept from then on, and every call
    /// is looked up.
    pub fn forget_unless(&self, is_loaded: impl FnOnce(usize) -> bool) {
        let caller = self.caller.load(Ordering::Relaxed);
        if caller != 0 && caller != CLOSED && !is_loaded(caller) {
            self.caller_length.store(0, Ordering::Relaxed);
            self.caller.store(CLOSED, Ordering::Relaxed);
        }
    }

    /// Operations are told to the capture.
    pub fn listen(&self) {
        self.helping.fetch_add(1, Ordering::Relaxed);
    }

    /// The end of one [`Self::listen`].
    pub fn listen_no_more(&self) {
        self.helping.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether operations are told to the capture.
    #[inline]
    #[must_use]
    pub fn listens(&self) -> bool {
        self.helping.load(Ordering::Relaxed) > 0
    }
}

thread_local! {
    /// The running step of this thread, if it is compute thread 0 of a timed step: the thread that
    /// called the scheduler.
    static CURRENT: Cell<*const Timer> = const { Cell::new(std::ptr::null()) };
}

/// One timed operation of a sampled step.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Node of the plan.
    pub node: u32,
    /// One past the last node computed in the same call.
    pub until: u32,
    /// Start, monotonic ns.
    pub start_ns: u64,
    /// End, monotonic ns.
    pub end_ns: u64,
    /// Wait at the barrier after it.
    pub barrier_ns: u64,
}

/// Sums of one timed step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Time in operations.
    pub op_ns: u64,
    /// Time at barriers between operations.
    pub barrier_ns: u64,
    /// Operations timed.
    pub ops: u64,
    /// Calls for tensors that the plan does not have.
    pub strangers: u64,
}

/// The timer of one step. Lives on the stack of the scheduler hook, used by its own thread only.
#[derive(Debug)]
pub struct Timer {
    plan: Arc<Plan>,
    nodes: Arc<[TensorPtr]>,
    spans: RefCell<Vec<Span>>,
    sampled: bool,
    cursor: Cell<usize>,
    current: Cell<usize>,
    until: Cell<usize>,
    start_ns: Cell<u64>,
    enter_ns: Cell<u64>,
    leave_ns: Cell<u64>,
    sums: Cell<Sums>,
    /// Something of ours ran since the last barrier: the next operation begins with the clock.
    interrupted: Cell<bool>,
}

impl Timer {
    /// A timer for a step that runs `plan`, whose nodes are at the addresses `nodes` this time.
    #[must_use]
    pub fn new(plan: Arc<Plan>, nodes: Arc<[TensorPtr]>, sampled: bool, spans: Vec<Span>) -> Self {
        Self {
            plan,
            nodes,
            spans: RefCell::new(spans),
            sampled,
            cursor: Cell::new(0),
            current: Cell::new(NONE),
            until: Cell::new(NONE),
            start_ns: Cell::new(0),
            enter_ns: Cell::new(0),
            leave_ns: Cell::new(0),
            sums: Cell::new(Sums::default()),
            interrupted: Cell::new(false),
        }
    }

    /// Makes this the calling thread's running step until the guard goes - also when a C++ exception goes
    /// through the hook.
    #[must_use]
    pub fn run(&self) -> Running<'_> {
        let outer = CURRENT.replace(self);
        HOT.timing.fetch_add(1, Ordering::Relaxed);
        Running { outer, timer: self }
    }

    /// What the step's operations took.
    #[must_use]
    pub fn finish(&self) -> (Sums, Vec<Span>) {
        self.close();
        (self.sums.get(), self.spans.take())
    }

    fn begin(&self, tensor: *const c_void) {
        let nodes = &self.nodes;
        let from = self.cursor.get();
        // Nodes run in order, so the next one is nearly always at the cursor; the wrap-around serves
        // backends that reorder.
        let found = (from..nodes.len()).chain(0..from.min(nodes.len())).find(|&i| nodes[i].address() == tensor);
        let Some(i) = found else {
            let mut sums = self.sums.get();
            sums.strangers += 1;
            self.sums.set(sums);
            return;
        };
        let previous = self.current.get();
        // Nodes that were passed over between two neighbours on the CPU were computed with the first (fusion).
        if previous != NONE && i > previous {
            self.until.set(i);
        }
        let continued = previous != NONE;
        self.close();
        // The end of the barrier before it; for the first operation, and after a split on another backend, the clock.
        let unbroken = continued && !self.interrupted.replace(false) && self.leave_ns.get() > 0;
        let started = if unbroken { self.leave_ns.get() } else { clock::now_ns() };
        self.current.set(i);
        self.cursor.set(i + 1);
        self.until.set(i + 1);
        self.start_ns.set(started);
        self.enter_ns.set(0);
        self.leave_ns.set(0);
        if self.plan.counts_experts(i) {
            super::recording::current().routing.observe(nodes[i]);
        }
    }

    fn close(&self) {
        let i = self.current.replace(NONE);
        if i == NONE {
            return;
        }
        let now = if self.enter_ns.get() == 0 { clock::now_ns() } else { 0 };
        let end = if now > 0 { now } else { self.enter_ns.get() };
        let barrier_ns = if now > 0 { 0 } else { self.leave_ns.get().saturating_sub(end) };
        let ns = end.saturating_sub(self.start_ns.get());
        let plan = &self.plan;
        let until = fused_until(plan, i, self.until.get());
        plan.add_time(i, until, ns);
        let mut sums = self.sums.get();
        sums.op_ns += ns;
        sums.barrier_ns += barrier_ns;
        sums.ops += 1;
        self.sums.set(sums);
        if self.sampled {
            self.spans.borrow_mut().push(Span {
                node: i as u32,
                until: until as u32,
                start_ns: self.start_ns.get(),
                end_ns: end,
                barrier_ns,
            });
        }
    }
}

/// Only CPU nodes can have been computed together with node `i` without a call of their own.
fn fused_until(plan: &Plan, i: usize, until: usize) -> usize {
    let until = until.min(plan.nodes.len());
    (i + 1..until).find(|&j| !plan.nodes[j].place.is_cpu).unwrap_or(until.max(i + 1))
}

/// Ends the step's time on this thread.
#[derive(Debug)]
pub struct Running<'a> {
    outer: *const Timer,
    timer: &'a Timer,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.timer.close();
        CURRENT.set(self.outer);
        HOT.timing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether any step is being timed: the whole cost of the CPU hooks when not.
#[inline]
#[must_use]
pub fn timing() -> bool {
    HOT.timing.load(Ordering::Relaxed) > 0
}

#[inline]
fn with(f: impl FnOnce(&Timer)) {
    let timer = CURRENT.get();
    if !timer.is_null() {
        // SAFETY: `run` put it there, its guard takes it away before the timer dies, and only this thread looks.
        f(unsafe { &*timer });
    }
}

/// An operation begins on this thread.
#[inline]
pub fn op_begins(tensor: *const c_void) {
    with(|t| t.begin(tensor));
}

/// Whether this thread is thread 0 of a step that is timed.
#[inline]
#[must_use]
pub fn is_timed() -> bool {
    !CURRENT.get().is_null()
}

/// Before the next operation something else has run on this thread.
pub fn interrupted() {
    with(|t| t.interrupted.set(true));
}

/// This thread enters a barrier. True if it is a timed one: then [`barrier_leave`] must follow.
#[inline]
pub fn barrier_enter() -> bool {
    let timer = CURRENT.get();
    if timer.is_null() {
        return false;
    }
    with(|t| t.enter_ns.set(clock::now_ns()));
    true
}

/// This thread leaves the barrier.
#[inline]
pub fn barrier_leave() {
    with(|t| t.leave_ns.set(clock::now_ns()));
}

/// A split ends: whatever runs next on this thread starts with the clock.
pub fn split_ends() {
    with(Timer::close);
}
