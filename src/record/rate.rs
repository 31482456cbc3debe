//! The log's budget: which steps may be written event by event.
//!
//! The writer knows how many bytes a sampled step took and when that is paid off at the allowed rate; the host's thread only compares
//! the clock with that moment. Prompts and decodes have a budget of their own, so that a busy server shows both.

use std::sync::atomic::{AtomicU64, Ordering};

/// Share of the rate that sampled steps never give up to other events, so that there is always some detail.
const LEAST_SHARE: f64 = 0.25;

static NEXT_NS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

const fn slot(prefill: bool) -> usize {
    if prefill { 0 } else { 1 }
}

/// Whether a step that begins at `now_ns` is written. Says yes at most once until the writer has seen the step.
pub fn may_sample(prefill: bool, now_ns: u64) -> bool {
    let next = &NEXT_NS[slot(prefill)];
    let due = next.load(Ordering::Relaxed);
    // Unlimited is 0 and stays 0; otherwise closed until the writer knows what this one cost.
    if due == 0 {
        return true;
    }
    due <= now_ns && next.compare_exchange(due, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

    /// An interval ends: the next steps wait until what other events took in it is paid off too - up to the share that steps never give
    /// up, so that the thousand lines of a model's load do not hold them back for a minute.
    pub fn interval(&mut self, now_ns: u64) {
        let seconds = now_ns.saturating_sub(self.interval_began_ns) as f64 / 1e9;
        let spent = std::mem::take(&mut self.other_bytes) as f64;
        self.interval_began_ns = now_ns;
        let Some(rate) = self.bytes_per_second else { return };
        let pays_off = (spent.min(rate * seconds * (1.0 - LEAST_SHARE)) / rate * 1e9) as u64;
        for (next, owed) in NEXT_NS.iter().zip(&mut self.owed_ns) {
            let later = |due: u64| (due != u64::MAX).then(|| due.max(now_ns) + pays_off);
            if next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).is_err() {
                *owed += pays_off;
            }
        }
    }

    /// A sampled step took `bytes`: says when the next of its phase may come. Each phase has half of the rate.
    pub fn spent_on_step(&mut self, prefill: bool, bytes: u64, now_ns: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let owed = std::mem::take(&mut self.owed_ns[slot(prefill)]);
        let pays_off = (bytes as f64 / (rate / 2.0) * 1e9) as u64;
        NEXT_NS[slot(prefill)].store(now_ns + pays_off + owed, Ordering::Relaxed);
    }

    /// Whether `bytes` of per-token events still fit (they are the only ones that a busy server could flood the log with).
    #[must_use]
    pub fn token_events_fit(&self, written_in_interval: u64, interval_s: f64) -> bool {
        self.bytes_per_second.is_none_or(|rate| written_in_interval as f64 <= rate * interval_s / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, may_sample, open};

    #[test]
    fn a_step_is_written_then_none_until_it_is_paid_off() {
        open(true);
        let mut budget = Budget::new(Some(10_000), 1);
        assert!(may_sample(true, 100));
        assert!(!may_sample(true, 200), "closed until the writer has seen the first");
        assert!(may_sample(false, 200), "the other phase has a budget of its own");
        budget.spent_on_step(true, 5_000, 1_000_000_000);
        assert!(!may_sample(true, 1_900_000_000), "5,000 bytes at 5,000 a second");
        assert!(may_sample(true, 2_000_000_001));
        // 5,000 bytes of other events in a second: half a second more for whoever waits, also if its step is still being written.
        budget.spent_on_step(false, 5_000, 3_000_000_000);
        budget.interval_began_ns = 2_000_000_000;
        budget.spent_otherwise(5_000);
        budget.interval(3_000_000_000);
        budget.spent_on_step(true, 5_000, 3_000_000_000);
        for prefill in [true, false] {
            assert!(!may_sample(prefill, 4_400_000_000) && may_sample(prefill, 4_500_000_001), "{prefill}");
        }
        open(false);
        assert!((0..3).all(|_| may_sample(true, 5)), "no limit");
    }
}
