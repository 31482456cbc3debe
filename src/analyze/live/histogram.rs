//! Classic histograms with fixed upper bounds, as Prometheus counts them.

use serde::Serialize;

/// Seconds: the buckets of OpenTelemetry's `gen_ai.server.time_to_first_token`, with more above them.
pub const TIME_TO_FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Seconds: those of `gen_ai.server.time_per_output_token`, with five below 10 ms, where small models lie.
pub const INTER_TOKEN: &[f64] =
    &[0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Seconds: those of `gen_ai.server.request.duration`.
pub const DURATION: &[f64] = &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Tokens of a request, in steps of 1, 2 and 5.
pub const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];

/// The request that was counted last in a bucket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exemplar {
    /// Trace that the request's span belongs to.
    pub trace_id: String,
    /// Its value.
    pub value: f64,
    /// When, Unix seconds.
    pub unix_s: f64,
}

/// Counts by upper bound.
#[derive(Clone, Debug, Serialize)]
pub struct Histogram {
    /// Upper bounds, rising.
    pub bounds: &'static [f64],
    /// Values in each bucket, and behind the last bound.
    pub counts: Vec<u64>,
    /// Sum of the values.
    pub sum: f64,
    /// The last request of each bucket, where requests are counted.
    #[serde(skip)]
    pub exemplars: Vec<Option<Exemplar>>,
}

impl Histogram {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0, exemplars: vec![None; bounds.len() + 1] }
    }

    /// Counts a value `n` times, but for the sum.
    pub fn count(&mut self, value: f64, n: u64) -> usize {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket] = self.counts[bucket].saturating_add(n);
        bucket
    }

    /// Counts a value.
    pub fn observe(&mut self, value: f64, exemplar: Option<Exemplar>) {
        let bucket = self.count(value, 1);
        self.sum += value;
        if exemplar.is_some() {
            self.exemplars[bucket] = exemplar;
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value that `share` of all do not exceed, between the bounds of its bucket as Prometheus estimates it; `None`
    /// where nothing was counted, and behind the last bound.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.total() as f64;
        let mut before = 0.0;
        for (i, &count) in self.counts.iter().enumerate() {
            let within = count as f64;
            if within > 0.0 && before + within >= rank {
                let upper = *self.bounds.get(i)?;
                let lower = if i == 0 { 0.0 } else { self.bounds[i - 1] };
                return Some(lower + (upper - lower) * ((rank - before) / within).clamp(0.0, 1.0));
            }
            before += within;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn a_value_at_a_bound_is_in_its_bucket_and_quantiles_lie_in_theirs() {
        let mut h = Histogram::new(&[1.0, 2.0, 4.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 3.0, 9.0] {
            h.observe(value, None);
        }
        assert_eq!((h.counts.as_slice(), h.total(), h.sum), (&[2, 2, 1, 1][..], 6, 17.0));
        let median = h.quantile(0.5).unwrap();
        assert!((1.0..=2.0).contains(&median), "{median}");
        assert_eq!(h.quantile(0.99), None, "behind the last bound nobody knows");
        assert_eq!(Histogram::new(&[1.0]).quantile(0.5), None);
    }
}
