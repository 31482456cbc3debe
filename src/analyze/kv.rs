//! How full the KV cache was over time, and what was done to it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::stats::share;
use crate::format::Line;

/// A look at the cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the session began.
    pub t_s: f64,
    /// Cells in use; `null` for caches without one cell a token.
    pub used_cells: Option<u64>,
    /// Sequences in the cache.
    pub sequences: u32,
}

/// The cache of one context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cache {
    /// Number of the context within the session.
    pub context_id: u64,
    /// Cells of the cache, as last seen.
    pub size_cells: u64,
    /// Most cells in use.
    pub peak_used_cells: Option<u64>,
    /// `peak_used_cells / size_cells`.
    pub peak_share: Option<f64>,
    /// Cells in use at the last look.
    pub last_used_cells: Option<u64>,
    /// Every look.
    pub series: Vec<Point>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Kv {
    /// By context.
    pub caches: Vec<Cache>,
    /// Operations on the cache that were logged, by name: from DETAILED on, and of sampled steps only for `update`.
    pub logged_operations: BTreeMap<String, u64>,
}

/// Gathers [`Kv`].
#[derive(Debug, Default)]
pub struct Fold {
    caches: BTreeMap<u64, Cache>,
    operations: BTreeMap<String, u64>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        match line {
            Line::KvCacheUsage(e) => {
                let cache = self.caches.entry(e.context_id).or_insert_with(|| Cache {
                    context_id: e.context_id,
                    size_cells: 0,
                    peak_used_cells: None,
                    peak_share: None,
                    last_used_cells: None,
                    series: Vec::new(),
                });
                cache.size_cells = e.size_cells;
                cache.peak_used_cells = cache.peak_used_cells.max(e.used_cells);
                cache.last_used_cells = e.used_cells;
                cache.series.push(Point { t_s, used_cells: e.used_cells, sequences: e.sequences });
            }
            Line::KvCacheOperation(e) => {
                *self.operations.entry(e.cache_operation.clone()).or_default() += 1;
            }
            _ => {}
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Kv {
        let mut caches: Vec<Cache> = self.caches.into_values().collect();
        for cache in &mut caches {
            cache.peak_share = cache.peak_used_cells.and_then(|used| share(used as f64, cache.size_cells as f64));
        }
        Kv { caches, logged_operations: self.operations }
    }
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;

    fn usage(used: Option<u64>) -> Line {
        serde_json::from_value(serde_json::json!({
            "event": "kv_cache_usage", "timestamp": "0", "session_id": "s", "t_ns": 0, "context_id": 1,
            "used_cells": used, "size_cells": 100, "sequences": 1, "reason": "batch",
        }))
        .unwrap()
    }

    #[test]
    fn the_peak_outlives_a_clear_and_recurrent_models_have_none() {
        let mut fold = Fold::default();
        [Some(10), Some(80), Some(0)].iter().for_each(|&u| fold.add(&usage(u), 0.0));
        let cache = &fold.finish().caches[0];
        assert_eq!((cache.peak_used_cells, cache.peak_share, cache.last_used_cells), (Some(80), Some(0.8), Some(0)));
        let mut fold = Fold::default();
        fold.add(&usage(None), 0.0);
        assert_eq!(fold.finish().caches[0].peak_share, None);
    }
}
