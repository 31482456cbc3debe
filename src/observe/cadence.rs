//! Which steps are timed at DETAILED: all where that costs next to nothing, one in so many where a step is short.
//!
//! Timing takes about as long for a node of a small model as for one of a large one, so what it costs is a question of
//! the step's length. Steps are taken at a steady pace, and `timed_steps` says how many there were: a total of times is
//! of these, all other totals are whole.

use std::sync::atomic::{AtomicU64, Ordering};

/// What timing takes a node, nanoseconds: two looks at the clock, and lines of the cache that the host's weights have
/// pushed out (docs/OVERHEAD.md). It decides only how often.
const NODE_NS: u64 = 80;

/// One in so many of the host's nanoseconds may go to timing: 0.2 per cent, but for steps so short
/// that [`MOST`] decides.
const SHARE: u64 = 500;

/// At least one step in so many is timed, however short.
const MOST: u64 = 16;

/// Steps of a phase.
#[derive(Debug, Default)]
pub struct Cadence {
    /// How long the last one took.
    last_ns: AtomicU64,
    /// Those since the last timed one.
    untimed: AtomicU64,
}

impl Cadence {
    /// Whether the step that begins now, of so many nodes that can be timed, is to be. `wanted`: it is timed anyway.
    pub fn is_due(&self, nodes: usize, wanted: bool) -> bool {
        let (last_ns, untimed) = (self.last_ns.load(Ordering::Relaxed), self.untimed.load(Ordering::Relaxed));
        // Nothing is known before the first step, which is timed.
        let every = if last_ns == 0 { 1 } else { (nodes as u64 * NODE_NS * SHARE).div_ceil(last_ns).min(MOST) };
        let due = wanted || untimed + 1 >= every;
        self.untimed.store(if due { 0 } else { untimed + 1 }, Ordering::Relaxed);
        due
    }

    /// A step took so long.
    pub fn took(&self, ns: u64) {
        self.last_ns.store(ns, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cadence, MOST, NODE_NS, SHARE};

    /// Of a hundred steps so long, how many are timed after the first.
    fn timed(nodes: usize, ns: u64) -> usize {
        let cadence = Cadence::default();
        assert!(cadence.is_due(nodes, false), "the first");
        cadence.took(ns);
        (0..100).filter(|_| cadence.is_due(nodes, false)).count()
    }

    #[test]
    fn timing_keeps_its_share() {
        let cost = 500 * NODE_NS;
        assert_eq!(timed(500, cost * SHARE), 100, "a long step: every one");
        assert_eq!(timed(500, cost * SHARE - 1), 50);
        assert_eq!(timed(500, cost * SHARE / 4), 25);
        assert_eq!(timed(500, 1000), 100 / MOST as usize, "never less");
    }

    #[test]
    fn a_step_that_is_timed_anyway_counts() {
        let cadence = Cadence::default();
        assert!(cadence.is_due(1000, true));
        cadence.took(1000 * NODE_NS * SHARE / 2);
        assert!(!cadence.is_due(1000, false) && cadence.is_due(1000, false) && !cadence.is_due(1000, false));
        assert!(cadence.is_due(1000, true));
        assert!(!cadence.is_due(1000, false), "counted from the last timed one");
    }
}
