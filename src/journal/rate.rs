//! The log's budget: which steps may be written event by event.
//!
//! The writer knows how many bytes a sampled step took and when that is paid off at the allowed rate; the host's
//! thread only compares the clock with that moment. Prompts and decodes have a budget of their own, so that a busy
//! server shows both.

use std::sync::atomic::{AtomicU64, Ordering};

use super::recording;
use crate::clock;

/// Share of the rate that sampled steps never give up to other events, so that there is always some detail.
const LEAST_SHARE: f64 = 0.25;

/// How long a gate stays closed behind a step that was lost on its way to the writer. Where it was lost because the
/// writer cannot keep up, the next one would be, too.
const AFTER_A_LOSS_NS: u64 = 100_000_000;

/// A gate that is closed until the writer has seen a step.
const CLOSED: u64 = u64::MAX;

static NEXT_NS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

const fn slot(prefill: bool) -> usize {
    if prefill { 0 } else { 1 }
}

/// A step may be written: travels with it to the writer. Wherever it goes instead - the host threw an exception through
/// the step, its ring was full, it came to nothing - the gate that it has closed opens again.
#[derive(Debug)]
pub struct Permit {
    slot: usize,
    /// The recording that it was given in.
    recording: u64,
    /// The writer has said when the gate opens.
    is_paid: bool,
}

impl Permit {
    /// Opens the gate at `due_ns`, if it is this permit that holds it closed.
    fn open_at(&self, due_ns: u64) {
        if self.recording == recording() {
            // Not after another recording has begun, whose gates are its own; nor without a limit, where it
            // is never closed.
            _ = NEXT_NS[self.slot].compare_exchange(CLOSED, due_ns, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_paid && NEXT_NS[self.slot].load(Ordering::Relaxed) == CLOSED {
            self.open_at(clock::now_ns().saturating_add(AFTER_A_LOSS_NS));
        }
    }
}

/// Whether a step that begins at `now_ns` is written. Gives one permit until the writer has seen the step.
pub fn may_sample(prefill: bool, now_ns: u64) -> Option<Permit> {
    let next = &NEXT_NS[slot(prefill)];
    let due = next.load(Ordering::Relaxed);
    // Unlimited is 0 and stays 0; otherwise closed until the writer knows what this one cost.
    let open =
        due == 0 || (due <= now_ns && next.compare_exchange(due, CLOSED, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    open.then(|| Permit { slot: slot(prefill), recording: recording(), is_paid: false })
}

/// Opens the gates when recording starts: a moment in the past if limited, 0 if not.
pub fn open(limited: bool) {
    for next in &NEXT_NS {
        next.store(u64::from(limited), Ordering::Relaxed);
    }
}

/// The writer's side: bytes written so far and what is allowed.
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: Option<f64>,
    interval_began_ns: u64,
    other_bytes: u64,
    /// What other events took while a phase's gate was closed, to be added when it is set.
    owed_ns: [u64; 2],
}

impl Budget {
    /// A budget of `bytes_per_second`, `None` for no limit; the gates are [`open`]ed by whoever starts recording.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, now_ns: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.map(|b| b as f64),
            interval_began_ns: now_ns,
            other_bytes: 0,
            owed_ns: [0; 2],
        }
    }

    /// Bytes of events that are no sampled step went out.
    pub fn spent_otherwise(&mut self, bytes: u64) {
        self.other_bytes += bytes;
    }

    /// An interval ends: the next steps wait until what other events took in it is paid off too - up to the share that
    /// steps never give up, so that the thousand lines of a model's load do not hold them back for a minute.
    pub fn interval(&mut self, now_ns: u64) {
        let seconds = now_ns.saturating_sub(self.interval_began_ns) as f64 / 1e9;
        let spent = std::mem::take(&mut self.other_bytes) as f64;
        self.interval_began_ns = now_ns;
        let Some(rate) = self.bytes_per_second else { return };
        let pays_off = (spent.min(rate * seconds * (1.0 - LEAST_SHARE)) / rate * 1e9) as u64;
        for (next, owed) in NEXT_NS.iter().zip(&mut self.owed_ns) {
            let later = |due: u64| (due != CLOSED).then(|| due.max(now_ns) + pays_off);
            if next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).is_err() {
                *owed += pays_off;
            }
        }
    }

    /// A sampled step took `bytes`: says when the next of its phase may come. Each phase has half of the rate.
    pub fn spent_on_step(&mut self, mut permit: Permit, bytes: u64, now_ns: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let owed = std::mem::take(&mut self.owed_ns[permit.slot]);
        let pays_off = (bytes as f64 / (rate / 2.0) * 1e9) as u64;
        permit.open_at(now_ns.saturating_add(pays_off).saturating_add(owed));
        // Another step may have closed the gate again; this permit has nothing to do with that.
        permit.is_paid = true;
    }

    /// Whether `bytes` of per-token events still fit (they are the only ones that a busy server could flood
    /// the log with).
    #[must_use]
    pub fn token_events_fit(&self, written_in_interval: u64, interval_s: f64) -> bool {
        self.bytes_per_second.is_none_or(|rate| written_in_interval as f64 <= rate * interval_s / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{AFTER_A_LOSS_NS, Budget, may_sample, open};
    use crate::clock;
    use crate::journal;

    /// The gates are the process's.
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

    #[test]
    fn a_step_is_written_then_none_until_it_is_paid_off() {
        let _alone = ONE_AT_A_TIME.lock();
        open(true);
        let mut budget = Budget::new(Some(10_000), 1);
        let first = may_sample(true, 100).unwrap();
        assert!(may_sample(true, 200).is_none(), "closed until the writer has seen the first");
        let other = may_sample(false, 200).expect("the other phase has a budget of its own");
        budget.spent_on_step(first, 5_000, 1_000_000_000);
        assert!(may_sample(true, 1_900_000_000).is_none(), "5,000 bytes at 5,000 a second");
        let second = may_sample(true, 2_000_000_001).unwrap();
        // 5,000 bytes of other events in a second: half a second more for whoever waits, also if its step is
        // still being written.
        budget.spent_on_step(other, 5_000, 3_000_000_000);
        budget.interval_began_ns = 2_000_000_000;
        budget.spent_otherwise(5_000);
        budget.interval(3_000_000_000);
        budget.spent_on_step(second, 5_000, 3_000_000_000);
        for prefill in [true, false] {
            assert!(may_sample(prefill, 4_400_000_000).is_none(), "{prefill}");
            assert!(may_sample(prefill, 4_500_000_001).is_some(), "{prefill}");
        }
        open(false);
        assert!((0..3).all(|_| may_sample(true, 5).is_some()), "no limit");
    }

    #[test]
    fn a_step_that_never_reaches_the_writer_closes_nothing_for_good() {
        let _alone = ONE_AT_A_TIME.lock();
        open(true);
        let now = clock::now_ns();
        drop(may_sample(false, now).unwrap());
        assert!(may_sample(false, now + AFTER_A_LOSS_NS / 2).is_none(), "not at once");
        let late = may_sample(false, clock::now_ns() + AFTER_A_LOSS_NS).unwrap();
        // The next recording has begun before the end of a step of this one.
        journal::begin(true);
        let own = may_sample(false, now).unwrap();
        drop(late);
        assert!(may_sample(false, u64::MAX - 1).is_none(), "the gate is held by a step of this recording");
        drop(own);
        open(false);
    }
}
