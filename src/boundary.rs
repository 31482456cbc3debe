//! The only guards: nothing of ours unwinds into the host, and nothing of ours is observed by ourselves.
//!
//! The state of the library as a whole lives here, because a guard must be able to switch it off:
//!
//! ```text
//!   Waiting ──first call──► Idle ──start──► Running ──stop──► Stopped ──start──► Running
//!                          │                  │
//!                          │                  └──panic, fork──► Poisoned   (hooks only forward, for the rest of the process)
//!                          └──start without hooks──► Marking ──stop──► Stopped   (hooks only forward; marks record)
//! ```

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// State of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing has started.
    Idle = 0,
    /// Hooks record.
    Running = 1,
    /// The log was closed in order.
    Stopped = 2,
    /// An internal failure, or a forked child: hooks only forward.
    Poisoned = 3,
    /// Preloaded into a program that is not linked against llama.cpp: recording starts when its first call arrives.
    Waiting = 4,
    /// Marks and the eval callback record, hooks only forward: the caller of `init` asked for no hooks.
    Marking = 5,
}

static PHASE: AtomicU8 = AtomicU8::new(Phase::Idle as u8);
/// The process that records, 0 before the first start.
static OWNER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// The current phase.
#[must_use]
pub fn phase() -> Phase {
    match PHASE.load(Ordering::Acquire) {
        0 => Phase::Idle,
        1 => Phase::Running,
        2 => Phase::Stopped,
        4 => Phase::Waiting,
        5 => Phase::Marking,
        _ => Phase::Poisoned,
    }
}

/// Enters `phase`; a poisoned library stays poisoned.
pub fn set_phase(phase: Phase) {
    let _ = PHASE
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| (old != Phase::Poisoned as u8).then_some(phase as u8));
}

/// Whether hooks record: one relaxed load, the whole cost of a hook that has nothing to do.
#[inline]
#[must_use]
pub fn active() -> bool {
    PHASE.load(Ordering::Relaxed) == Phase::Running as u8
}

/// Whether the calling thread is ours, or is in the middle of an observer: a signal handler of the host may run then.
#[must_use]
pub fn is_observing() -> bool {
    OBSERVING.get()
}

/// Whether a recording is on, with or without hooks: one load, the whole cost of a mark when it is not.
#[inline]
#[must_use]
pub fn recording() -> bool {
    let phase = PHASE.load(Ordering::Acquire);
    phase == Phase::Running as u8 || phase == Phase::Marking as u8
}

/// Marks the calling thread as ours: hooks that it runs into only forward.
pub fn mark_own_thread() {
    OBSERVING.set(true);
}

/// Runs an observer of a hook. `fallback` is what the hook goes on with when we are off, already observing on this
/// thread (a call that our own code made), or panic. It is an argument because no default is right for every hook.
#[inline]
pub fn guarded<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    if !active() && (phase() != Phase::Waiting || !wake()) {
        return fallback;
    }
    if OBSERVING.replace(true) {
        return fallback;
    }
    let result = catch_unwind(AssertUnwindSafe(body));
    OBSERVING.set(false);
    result.unwrap_or_else(|_| {
        poison();
        fallback
    })
}

/// Runs what must be known of the host even while nothing is recorded, because a recording that begins later needs it.
/// It is like [`guarded`], in every phase but [`Phase::Poisoned`].
pub fn tracked<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    if phase() == Phase::Poisoned || OBSERVING.replace(true) {
        return fallback;
    }
    let result = catch_unwind(AssertUnwindSafe(body));
    OBSERVING.set(false);
    result.unwrap_or_else(|_| {
        poison();
        fallback
    })
}

/// Runs the body of an exported function: a panic becomes `fallback`.
pub fn catching<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        poison();
        fallback
    })
}

/// What starts recording when the first call arrives; registered by `session`, which this module must not know.
static WAKE: OnceLock<fn()> = OnceLock::new();

/// Enters [`Phase::Waiting`]: `begin` runs at the first call of llama.cpp.
pub fn wait_for_first_call(begin: fn()) {
    let _ = WAKE.set(begin);
    set_phase(Phase::Waiting);
}

/// The first call of llama.cpp in a process that we waited in: recording starts. True if it did.
#[cold]
fn wake() -> bool {
    if !OBSERVING.replace(true) {
        // One of all threads that come at once: its messages are told once.
        let (waiting, idle) = (Phase::Waiting as u8, Phase::Idle as u8);
        if PHASE.compare_exchange(waiting, idle, Ordering::AcqRel, Ordering::Acquire).is_ok()
            && let Some(begin) = WAKE.get()
        {
            catching((), begin);
        }
        OBSERVING.set(false);
    }
    active()
}

fn poison() {
    // The panic hook that `session` sets has told the message and where.
    PHASE.store(Phase::Poisoned as u8, Ordering::Release);
}

/// An allocation that cannot fail has failed: hooks only forward from here on. True if that ended something: a
/// recording, or the wait for the first call.
pub fn end_for_want_of_memory() -> bool {
    let ends = |old| {
        (old != Phase::Poisoned as u8 && old != Phase::Idle as u8 && old != Phase::Stopped as u8)
            .then_some(Phase::Poisoned as u8)
    };
    PHASE.fetch_update(Ordering::AcqRel, Ordering::Acquire, ends).is_ok()
}

/// Says that this process records, and not a child that it forks later.
pub fn claim_process() {
    OWNER.store(std::process::id(), Ordering::Relaxed);
}

/// Whether this process was forked from one that recorded: locks may be held by threads that are gone, and the writer's
/// thread is not here.
#[must_use]
pub fn in_forked_child() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    owner != 0 && owner != std::process::id()
}

/// In a forked child: the threads are gone and may have held locks, so the child never records.
pub fn poison_child() {
    if PHASE.swap(Phase::Poisoned as u8, Ordering::AcqRel) == Phase::Running as u8 {
        CHILD_UNTOLD.store(true, Ordering::Release);
    }
}

/// This is a forked child of a recording process, and no message has said yet that it is not recorded.
static CHILD_UNTOLD: AtomicBool = AtomicBool::new(false);

/// Whether that message is due: once in a child. In all other processes this costs one load.
#[inline]
pub fn child_is_untold() -> bool {
    CHILD_UNTOLD.load(Ordering::Relaxed) && CHILD_UNTOLD.swap(false, Ordering::AcqRel)
}
