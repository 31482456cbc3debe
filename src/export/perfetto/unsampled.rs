//! The time in which steps ran that were not written: what a summary's interval holds beside the steps that were.

use std::collections::VecDeque;

/// Stretches that are remembered until their summary comes.
const MOST_BUSY: usize = 4096;

/// A stretch, never empty, in which steps were not sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) steps: u64,
}

/// One `step_summary`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Steps up to this one, which is the last.
    pub(super) step: u64,
    pub(super) steps: u64,
}

/// Steps and summaries as they come. A step's lines may come behind its summary, but not behind the one after that, so
/// each summary waits for the next.
#[derive(Debug, Default)]
pub(super) struct Unsampled {
    held: Option<Summary>,
    busy: VecDeque<(u64, u64, Option<u64>)>,
    /// No later slice may begin before.
    pub(super) closed_until: u64,
    /// Steps for which an interval had no time left, since a written step outlasted it: they count in the next gap.
    unplaced: u64,
}

impl Unsampled {
    /// The track is taken from `start` to `end`, by a step that has a number or by something else.
    pub(super) fn busy(&mut self, start: u64, end: u64, step: Option<u64>) {
        if self.busy.len() == MOST_BUSY {
            self.busy.pop_front();
        }
        self.busy.push_back((start, end, step));
    }

    /// The next summary; gives the gaps of the one before.
    pub(super) fn summary(&mut self, summary: Summary) -> Vec<Gap> {
        let held = self.held.replace(summary);
        held.map_or_else(Vec::new, |held| self.gaps(held))
    }

    /// The gaps of the last one.
    pub(super) fn finish(&mut self) -> Vec<Gap> {
        self.held.take().map_or_else(Vec::new, |held| self.gaps(held))
    }

    fn gaps(&mut self, of: Summary) -> Vec<Gap> {
        let first = of.step.saturating_sub(of.steps).saturating_add(1);
        let begin = of.start.max(self.closed_until);
        let (mut at, mut next, mut gaps) = (begin, first, Vec::new());
        self.busy.make_contiguous().sort_unstable();
        // A step may have run outside of the interval that counts it.
        let sampled = |from: u64, to: u64| {
            self.busy.iter().filter(|b| b.2.is_some_and(|step| (from..to).contains(&step))).count() as u64
        };
        let mut unplaced = self.unplaced;
        let mut add = |start: u64, end: u64, from: u64, to: u64| {
            let steps = to.saturating_sub(from).saturating_sub(sampled(from, to));
            if steps > 0 && start < end {
                gaps.push(Gap { start, end, steps: steps.saturating_add(std::mem::take(&mut unplaced)) });
            } else {
                unplaced = unplaced.saturating_add(steps);
            }
        };
        for &(start, end, step) in self.busy.iter().filter(|b| b.1 > begin && b.0 < of.end) {
            // What has no number splits a gap in two, and the steps stand with the second.
            if let Some(step) = step {
                add(at, start, next, step.min(of.step.saturating_add(1)));
                next = next.max(step.saturating_add(1));
            }
            at = at.max(end);
        }
        add(at, of.end, next, of.step.saturating_add(1));
        self.unplaced = unplaced;
        self.closed_until = self.closed_until.max(of.end);
        self.busy.retain(|b| b.1 > of.end || b.2.is_some_and(|step| step > of.step));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::{Gap, Summary, Unsampled};

    fn gaps(busy: &[(u64, u64, Option<u64>)], start: u64, end: u64, step: u64, steps: u64) -> Vec<(u64, u64, u64)> {
        let mut unsampled = Unsampled::default();
        busy.iter().for_each(|b| unsampled.busy(b.0, b.1, b.2));
        assert_eq!(unsampled.summary(Summary { start, end, step, steps }), []);
        unsampled.finish().iter().map(|Gap { start, end, steps }| (*start, *end, *steps)).collect()
    }

    #[test]
    fn steps_between_the_sampled_ones_are_counted_and_placed() {
        assert_eq!(gaps(&[], 0, 100, 5, 5), [(0, 100, 5)]);
        assert_eq!(gaps(&[(0, 10, Some(1)), (50, 60, Some(4))], 0, 100, 9, 9), [(10, 50, 2), (60, 100, 5)]);
        assert_eq!(gaps(&[(10, 20, Some(2))], 0, 100, 2, 2), [(0, 10, 1)]);
        assert_eq!(gaps(&[(10, 20, Some(1))], 0, 100, 1, 1), []);
    }

    #[test]
    fn a_step_that_reaches_over_the_end_of_an_interval_is_respected() {
        let mut unsampled = Unsampled::default();
        unsampled.busy(90, 120, Some(3));
        unsampled.summary(Summary { start: 0, end: 100, step: 2, steps: 2 });
        unsampled.busy(150, 160, Some(5));
        let first = unsampled.summary(Summary { start: 100, end: 200, step: 5, steps: 3 });
        assert_eq!(first, [Gap { start: 0, end: 90, steps: 2 }]);
        assert_eq!(unsampled.closed_until, 100);
        assert_eq!(unsampled.finish(), [Gap { start: 120, end: 150, steps: 1 }]);
    }

    #[test]
    fn a_step_that_ran_before_the_interval_that_counts_it_is_no_step_that_is_missing() {
        let mut unsampled = Unsampled::default();
        unsampled.busy(50, 60, Some(3));
        unsampled.summary(Summary { start: 0, end: 100, step: 2, steps: 2 });
        let first = unsampled.summary(Summary { start: 100, end: 200, step: 4, steps: 2 });
        assert_eq!(first, [Gap { start: 0, end: 50, steps: 2 }]);
        assert_eq!(unsampled.finish(), [Gap { start: 100, end: 200, steps: 1 }]);
    }

    #[test]
    fn steps_in_the_wrong_order_make_no_gap_of_nonsense() {
        assert_eq!(gaps(&[(50, 60, Some(4)), (70, 80, Some(2))], 0, 100, u64::MAX, 1), []);
        // Seven of nine are missing, and all of them have numbers below the one that comes first.
        assert_eq!(gaps(&[(50, 60, Some(9)), (70, 80, Some(2))], 0, 100, 9, 9), [(0, 50, 7)]);
    }
}
