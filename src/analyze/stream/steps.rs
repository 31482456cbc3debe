//! A set of numbers that mostly follow each other, kept as ranges.

use std::collections::BTreeMap;

/// Steps that were seen: first to last of each run without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps(BTreeMap<u64, u64>);

impl Steps {
    /// Adds a step.
    pub fn add(&mut self, step: u64) {
        let before = self.0.range(..=step).next_back().map(|(&first, &last)| (first, last));
        if before.is_some_and(|(_, last)| step <= last) {
            return;
        }
        // One run more, one longer, or two that have met.
        let first = before.filter(|&(_, last)| last.checked_add(1) == Some(step)).map_or(step, |(first, _)| first);
        let behind = step.checked_add(1).and_then(|next| self.0.remove(&next));
        self.0.insert(first, behind.unwrap_or(step));
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |n, (first, last)| n + (last - first).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::Steps;

    #[test]
    fn runs_meet_whatever_the_order() {
        let mut steps = Steps::default();
        for step in [5, 3, 9, 4, 5, 10, 3, 0, u64::MAX] {
            steps.add(step);
        }
        assert_eq!(steps.0.into_iter().collect::<Vec<_>>(), [(0, 0), (3, 5), (9, 10), (u64::MAX, u64::MAX)]);
        let mut steps = Steps::default();
        (0..1000).rev().for_each(|s| steps.add(s));
        assert_eq!((steps.count(), steps.0.len()), (1000, 1));
    }
}
