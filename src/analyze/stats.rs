//! Percentiles and safe sums, one definition for all questions.

use serde::Serialize;

/// Distribution of some values. Percentiles are nearest rank, as in the log itself: each is a value
/// that really occurred.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Values.
    pub n: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Distribution {
    /// The distribution of these values; `None` when there are none. Values that are no numbers are left out.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        let rank = |p: f64| sorted[((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
        Some(Self { n: sorted.len() as u64, mean, min, p50: rank(0.50), p95: rank(0.95), p99: rank(0.99), max })
    }
}

/// `part / whole`, unknown when there is no whole.
#[must_use]
pub fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0 && part.is_finite()).then(|| part / whole)
}

/// Amount per microsecond in 10^9 per second: flops and microseconds to GFLOP/s, bytes to GB/s.
#[must_use]
pub fn giga_per_second(amount: u64, us: f64) -> Option<f64> {
    share(amount as f64 / 1e3, us)
}

/// Amount per second over microseconds.
#[must_use]
pub fn per_second(amount: u64, us: f64) -> Option<f64> {
    share(amount as f64 * 1e6, us)
}

#[cfg(test)]
mod tests {
    use super::{Distribution, giga_per_second, share};

    #[test]
    fn percentiles_are_nearest_rank() {
        let d = Distribution::of((1..=100).map(f64::from)).unwrap();
        assert_eq!((d.min, d.p50, d.p95, d.p99, d.max, d.mean), (1.0, 50.0, 95.0, 99.0, 100.0, 50.5));
        let one = Distribution::of([7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.n), (7.0, 7.0, 1));
    }

    #[test]
    fn nothing_has_no_distribution_and_no_share() {
        assert_eq!(Distribution::of([]), None);
        assert_eq!(Distribution::of([f64::NAN]), None);
        assert_eq!(share(1.0, 0.0), None);
        assert_eq!(giga_per_second(2_000_000, 1_000.0), Some(2.0));
    }
}
