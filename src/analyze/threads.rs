//! How evenly the compute threads were loaded, from the sampled steps of a VERBOSE log.

use serde::Serialize;

use super::stats::Distribution;
use crate::format::Line;

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Threads {
    /// Steps that were measured.
    pub steps: u64,
    /// Largest over mean busy time of a step: 1 is perfect balance.
    pub imbalance: Distribution,
    /// Mean busy time of each thread in microseconds a step, thread 0 first.
    pub mean_busy_us: Vec<f64>,
}

/// Gathers [`Threads`].
#[derive(Debug, Default)]
pub struct Fold {
    imbalance: Vec<f64>,
    /// Sum of the busy time and number of steps, for each thread: the number of threads may change between steps.
    busy: Vec<(f64, u64)>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        let Line::ThreadImbalance(e) = line else { return };
        self.imbalance.push(e.imbalance);
        if self.busy.len() < e.busy_us.len() {
            self.busy.resize(e.busy_us.len(), (0.0, 0));
        }
        for (sum, us) in self.busy.iter_mut().zip(&e.busy_us) {
            sum.0 += us;
            sum.1 += 1;
        }
    }

    /// The result, `None` when nothing was measured.
    #[must_use]
    pub fn finish(self) -> Option<Threads> {
        let steps = self.imbalance.len() as u64;
        let imbalance = Distribution::of(self.imbalance)?;
        let mean_busy_us = self.busy.iter().map(|&(sum, n)| sum / n.max(1) as f64).collect();
        Some(Threads { steps, imbalance, mean_busy_us })
    }
}
