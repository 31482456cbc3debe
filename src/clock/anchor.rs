//! How a counter becomes a clock: a moment of both, and the pace from there on, corrected from time to time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Further apart than this, the clocks have not drifted: the machine was suspended, or moved.
const JUMP_NS: f64 = 10e6;

/// Corrections closer together than this would correct by noise.
const LEAST_NS: u64 = 100_000_000;

/// Counter and clock at one moment, and the counter's pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Anchor {
    pub raw: u64,
    pub mono_ns: u64,
    /// What the clock itself showed then.
    pub shown_ns: u64,
    pub ns_per_tick: f64,
}

impl Anchor {
    /// The clock when the counter shows `raw`.
    pub fn at(self, raw: u64) -> u64 {
        // The counter of one processor may be some ticks behind that of another.
        let ticks = raw.wrapping_sub(self.raw).cast_signed();
        self.mono_ns.saturating_add_signed((ticks as f64 * self.ns_per_tick) as i64)
    }

    /// The next anchor, when the clock is found to show `mono_ns` at `raw`. It goes on where this one has arrived, and
    /// at such a pace that both agree when as much time has passed again. Only behind a jump it jumps.
    pub fn corrected(self, raw: u64, mono_ns: u64) -> Self {
        let ticks = raw.wrapping_sub(self.raw).cast_signed() as f64;
        let ours = self.at(raw);
        let behind = mono_ns as f64 - ours as f64;
        if behind.abs() > JUMP_NS || ticks <= 0.0 {
            return Self { raw, mono_ns, shown_ns: mono_ns, ..self };
        }
        if mono_ns.saturating_sub(self.shown_ns) < LEAST_NS {
            return self;
        }
        // The clock's own pace, and what makes good by then what is amiss now.
        let ns_per_tick = (mono_ns as f64 - self.shown_ns as f64 + behind) / ticks;
        Self { raw, mono_ns: ours, shown_ns: mono_ns, ns_per_tick }
    }
}

/// An anchor that one thread replaces and all others read.
#[derive(Debug)]
pub(super) struct Shared {
    /// Odd while it is replaced.
    version: AtomicU32,
    raw: AtomicU64,
    mono_ns: AtomicU64,
    shown_ns: AtomicU64,
    ns_per_tick: AtomicU64,
}

impl Shared {
    pub const fn new(anchor: Anchor) -> Self {
        Self {
            version: AtomicU32::new(0),
            raw: AtomicU64::new(anchor.raw),
            mono_ns: AtomicU64::new(anchor.mono_ns),
            shown_ns: AtomicU64::new(anchor.shown_ns),
            ns_per_tick: AtomicU64::new(anchor.ns_per_tick.to_bits()),
        }
    }

    /// What is there, for the thread that replaces it.
    pub fn load(&self) -> Anchor {
        Anchor {
            raw: self.raw.load(Ordering::Relaxed),
            mono_ns: self.mono_ns.load(Ordering::Relaxed),
            shown_ns: self.shown_ns.load(Ordering::Relaxed),
            ns_per_tick: f64::from_bits(self.ns_per_tick.load(Ordering::Relaxed)),
        }
    }

    /// What is there; `None` while it is replaced, since the thread that does may have lost its processor.
    #[inline]
    pub fn try_load(&self) -> Option<Anchor> {
        let version = self.version.load(Ordering::Acquire);
        let anchor = self.load();
        fence(Ordering::Acquire);
        (version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version).then_some(anchor)
    }

    /// Replaces it; nothing if another thread does so now.
    pub fn store(&self, anchor: Anchor) {
        let version = self.version.load(Ordering::Relaxed);
        let next = version.wrapping_add(1);
        let is_free = version.is_multiple_of(2);
        if !is_free || self.version.compare_exchange(version, next, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::Release);
        self.raw.store(anchor.raw, Ordering::Relaxed);
        self.mono_ns.store(anchor.mono_ns, Ordering::Relaxed);
        self.shown_ns.store(anchor.shown_ns, Ordering::Relaxed);
        self.ns_per_tick.store(anchor.ns_per_tick.to_bits(), Ordering::Relaxed);
        self.version.store(next.wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{Anchor, Shared};

    const SECOND: u64 = 1_000_000_000;
    /// Ticks of a second.
    const HZ: f64 = 2_600_000_000.0;

    /// A counter that was calibrated 40 millionths too fast.
    fn calibrated() -> Anchor {
        Anchor { raw: 1_000, mono_ns: SECOND, shown_ns: SECOND, ns_per_tick: 1e9 / HZ * 1.000_04 }
    }

    fn ticks(ns: u64) -> u64 {
        1_000 + (ns as f64 * (HZ / 1e9)) as u64
    }

    #[test]
    fn a_day_with_corrections_ends_where_the_clock_is_and_never_goes_back() {
        let uncorrected = calibrated();
        let mut anchor = calibrated();
        for s in 1..=86_400 {
            let (raw, mono) = (ticks(s * SECOND), SECOND + s * SECOND);
            let before = anchor.at(raw);
            anchor = anchor.corrected(raw, mono);
            assert!(anchor.at(raw) >= before, "second {s}");
            let off = anchor.at(raw).abs_diff(mono);
            assert!(off < if s < 10 { 100_000 } else { 1_000 }, "{off} ns in second {s}");
        }
        let day = ticks(86_400 * SECOND);
        assert!(uncorrected.at(day).abs_diff(SECOND * 86_401) > 3 * SECOND, "as it would be without");
    }

    #[test]
    fn behind_a_suspension_it_is_where_the_clock_is() {
        // The counter went on for ten minutes, CLOCK_MONOTONIC did not.
        let anchor = calibrated().corrected(ticks(SECOND), 2 * SECOND);
        let woken = anchor.corrected(ticks(602 * SECOND), 3 * SECOND);
        assert_eq!(woken.at(ticks(602 * SECOND)), 3 * SECOND);
        let reset = woken.corrected(5, 4 * SECOND);
        assert_eq!(reset.at(5), 4 * SECOND, "a counter that began anew");
    }

    #[test]
    fn a_reader_never_sees_half_of_a_correction() {
        let of = |n: u64| Anchor { raw: n, mono_ns: n, shown_ns: n, ns_per_tick: n as f64 };
        let shared = Shared::new(of(0));
        std::thread::scope(|s| {
            s.spawn(|| (1..200_000).for_each(|n| shared.store(of(n))));
            for _ in 0..200_000 {
                if let Some(seen) = shared.try_load() {
                    assert_eq!(seen, of(seen.raw));
                }
            }
        });
    }
}
