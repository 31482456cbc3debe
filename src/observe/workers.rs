//! Busy time of the other compute threads in a sampled step (VERBOSE): each adds up its time outside barriers into a slot of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::clock;

/// Threads that we can tell apart; more share nothing and are left out, visibly: the list is then shorter than the thread count.
const SLOTS: usize = 256;

static ON: AtomicBool = AtomicBool::new(false);
static EPOCH: AtomicU64 = AtomicU64::new(0);
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

/// Starts measuring a step; the calling thread is thread 0, which the timer measures.
pub fn begin() {
    IS_MAIN.set(true);
    EPOCH.fetch_add(1, Ordering::Relaxed);
    ON.store(true, Ordering::Relaxed);
}

/// Ends the measurement: busy nanoseconds of the other threads.
pub fn end() -> Vec<u64> {
    ON.store(false, Ordering::Relaxed);
    let epoch = EPOCH.load(Ordering::Relaxed);
    let used = NEXT_SLOT.load(Ordering::Relaxed).min(SLOTS);
    BUSY[..used]
        .iter()
        .filter(|s| s.epoch.load(Ordering::Acquire) == epoch)
        .map(|s| s.busy_ns.load(Ordering::Relaxed))
        .collect()
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
