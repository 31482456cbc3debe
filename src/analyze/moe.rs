//! Mixture of experts: how the router spread the tokens, layer by layer.

use std::collections::BTreeMap;

use serde::Serialize;

use super::stats::share;
use crate::format::Line;

/// Routing of one layer over the whole log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Layer.
    pub layer_id: i32,
    /// Tokens routed.
    pub tokens: u64,
    /// Experts chosen for a token.
    pub experts_used: u32,
    /// Times each expert was chosen.
    pub counts: Vec<u64>,
    /// Load of the busiest expert over the mean load: 1 is perfect balance, the number of experts is the worst.
    pub max_over_mean: Option<f64>,
    /// Entropy of the choice over its largest value: 1 is perfect balance, 0 is one expert for all.
    pub normalized_entropy: Option<f64>,
    /// Experts that were never chosen.
    pub idle_experts: u64,
    /// The expert that was chosen most.
    pub busiest_expert: Option<usize>,
}

/// Gathers [`Layer`]s.
#[derive(Debug, Default)]
pub struct Fold(BTreeMap<i32, (u64, u32, Vec<u64>)>);

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        let Line::MoeRouting(e) = line else { return };
        let (tokens, used, counts) = self.0.entry(e.layer_id).or_default();
        *tokens = tokens.saturating_add(e.tokens);
        *used = e.experts_used;
        if counts.len() < e.counts.len() {
            counts.resize(e.counts.len(), 0);
        }
        for (sum, n) in counts.iter_mut().zip(&e.counts) {
            *sum = sum.saturating_add(*n);
        }
    }

    /// The result, in the order of the layers.
    #[must_use]
    pub fn finish(self) -> Vec<Layer> {
        let layer = |(layer_id, (tokens, experts_used, counts)): (i32, (u64, u32, Vec<u64>))| Layer {
            layer_id,
            tokens,
            experts_used,
            max_over_mean: max_over_mean(&counts),
            normalized_entropy: normalized_entropy(&counts),
            idle_experts: counts.iter().filter(|&&n| n == 0).count() as u64,
            busiest_expert: counts.iter().enumerate().max_by_key(|&(i, &n)| (n, std::cmp::Reverse(i))).map(|(i, _)| i),
            counts,
        };
        self.0.into_iter().map(layer).collect()
    }
}

fn max_over_mean(counts: &[u64]) -> Option<f64> {
    let sum: f64 = counts.iter().map(|&n| n as f64).sum();
    let max = *counts.iter().max()? as f64;
    share(max * counts.len() as f64, sum)
}

fn normalized_entropy(counts: &[u64]) -> Option<f64> {
    let sum: f64 = counts.iter().map(|&n| n as f64).sum();
    if counts.len() < 2 || sum <= 0.0 {
        return None;
    }
    let p = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / sum);
    Some((-p.map(|p| p * p.ln()).sum::<f64>() / (counts.len() as f64).ln()).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::{max_over_mean, normalized_entropy};

    #[test]
    fn balance_is_one_and_a_single_expert_is_the_worst() {
        assert_eq!(max_over_mean(&[5, 5, 5, 5]), Some(1.0));
        assert_eq!(normalized_entropy(&[5, 5, 5, 5]), Some(1.0));
        assert_eq!(max_over_mean(&[20, 0, 0, 0]), Some(4.0));
        assert_eq!(normalized_entropy(&[20, 0, 0, 0]), Some(0.0));
    }

    #[test]
    fn nothing_routed_is_unknown() {
        assert_eq!((max_over_mean(&[]), max_over_mean(&[0, 0])), (None, None));
        assert_eq!((normalized_entropy(&[3]), normalized_entropy(&[0, 0])), (None, None));
        assert!(normalized_entropy(&[u64::MAX, u64::MAX, 0]).is_some());
    }
}
