//! Busy time of the other compute threads in a sampled step (VERBOSE): each adds up its time outside barriers into a
//! slot of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::clock;

/// Threads that we can tell apart; more share nothing and are left out, visibly: the list is then shorter than
/// the thread count.
const SLOTS: usize = 256;

static ON: AtomicBool = AtomicBool::new(false);
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// Steps that run now, on all threads, and that ever began.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// See `RUNNING`.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);
static BUSY: [Slot; SLOTS] = [const { Slot { epoch: AtomicU64::new(0), busy_ns: AtomicU64::new(0) } }; SLOTS];

#[derive(Debug)]
struct Slot {
    epoch: AtomicU64,
    busy_ns: AtomicU64,
}

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static EPOCH_HERE: Cell<u64> = const { Cell::new(0) };
    static LEFT_AT: Cell<u64> = const { Cell::new(0) };
    static IS_MAIN: Cell<bool> = const { Cell::new(false) };
}

/// A step that runs, until this goes - also by a C++ exception.
#[derive(Debug)]
pub struct Running(());

impl Running {
    /// A step begins.
    #[must_use]
    pub fn begin() -> Self {
        BEGUN.fetch_add(1, Ordering::Relaxed);
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A step that is measured. Threads of ggml do not say whose they are, so it is one that runs alone.
#[derive(Debug)]
pub struct Measured {
    begun: u64,
}

impl Measured {
    /// Starts measuring the step that has just begun, if no other one runs; the calling thread is thread 0, which
    /// the timer measures.
    #[must_use]
    pub fn begin() -> Option<Self> {
        let begun = BEGUN.load(Ordering::Relaxed);
        let alone = RUNNING.load(Ordering::Relaxed) == 1;
        if !alone || ON.compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return None;
        }
        IS_MAIN.set(true);
        EPOCH.fetch_add(1, Ordering::Relaxed);
        Some(Self { begun })
    }

    /// Ends the measurement: busy nanoseconds of the other threads; none if another step has begun meanwhile, whose
    /// threads count as well.
    #[must_use]
    pub fn end(self) -> Vec<u64> {
        ON.store(false, Ordering::Relaxed);
        if BEGUN.load(Ordering::Relaxed) != self.begun {
            return Vec::new();
        }
        let epoch = EPOCH.load(Ordering::Relaxed);
        let used = NEXT_SLOT.load(Ordering::Relaxed).min(SLOTS);
        BUSY[..used]
            .iter()
            .filter(|s| s.epoch.load(Ordering::Acquire) == epoch)
            .map(|s| s.busy_ns.load(Ordering::Relaxed))
            .collect()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        ON.store(false, Ordering::Relaxed);
        IS_MAIN.set(false);
    }
}

/// Whether a step is being measured.
#[inline]
#[must_use]
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A worker begins an operation: only the first one of a step matters, later ones begin where a barrier ended.
pub fn op_begins() {
    if !IS_MAIN.get() && EPOCH_HERE.get() != EPOCH.load(Ordering::Relaxed) {
        start_here();
    }
}

fn start_here() {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if SLOT.get() == usize::MAX {
        SLOT.set(NEXT_SLOT.fetch_add(1, Ordering::Relaxed));
    }
    if let Some(slot) = BUSY.get(SLOT.get()) {
        slot.busy_ns.store(0, Ordering::Relaxed);
        slot.epoch.store(epoch, Ordering::Release);
    }
    EPOCH_HERE.set(epoch);
    LEFT_AT.set(clock::now_ns());
}

/// A worker enters a barrier. True if it is measured.
pub fn barrier_enter() -> bool {
    if IS_MAIN.get() || EPOCH_HERE.get() != EPOCH.load(Ordering::Relaxed) {
        return false;
    }
    if let Some(slot) = BUSY.get(SLOT.get()) {
        let busy = clock::now_ns().saturating_sub(LEFT_AT.get());
        slot.busy_ns.store(slot.busy_ns.load(Ordering::Relaxed) + busy, Ordering::Relaxed);
    }
    true
}

/// A worker leaves a barrier.
pub fn barrier_leave() {
    LEFT_AT.set(clock::now_ns());
}

#[cfg(test)]
mod tests {
    use super::{Measured, Running};

    #[test]
    fn a_step_is_measured_only_while_it_runs_alone() {
        let alone = Running::begin();
        let measured = Measured::begin().expect("nobody else runs");
        assert!(super::on());
        assert!(Measured::begin().is_none(), "one at a time");
        let other = Running::begin();
        assert!(measured.end().is_empty(), "another one has begun");
        assert!(!super::on());
        assert!(Measured::begin().is_none(), "two run");
        drop(other);
        // An exception takes the step away.
        drop(Measured::begin().expect("alone again"));
        assert!(!super::on());
        drop(alone);
    }
}
