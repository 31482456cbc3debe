//! Counts by exponential buckets, as OpenTelemetry's exponential histograms have them: they can be added up over
//! requests, hosts and time.

use serde::{Deserialize, Serialize};

/// Buckets in each doubling are two to the power of this: 8, each 9 per cent wide.
pub const SCALE: i32 = 3;

/// Counts by exponential buckets. Bucket `i` of the scale holds the values above `b^i`, up to `b^(i+1)`, with
/// `b = 2^(2^-scale)`; values are seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Buckets {
    /// Buckets in each doubling, as a power of two.
    pub scale: i32,
    /// Number of the bucket that the first count is of.
    pub offset: i32,
    /// Values in it and in those that follow.
    pub bucket_counts: Vec<u64>,
}

/// Number of the bucket that holds `seconds`, which is above 0.
#[must_use]
pub fn bucket_of(seconds: f64, scale: i32) -> i32 {
    (seconds.log2() * 2f64.powi(scale)).ceil() as i32 - 1
}

/// The largest value that bucket `index` holds, in seconds.
#[must_use]
pub fn upper_bound(index: i32, scale: i32) -> f64 {
    2f64.powf(f64::from(index + 1) * 2f64.powi(-scale))
}

impl Buckets {
    /// Counts `sorted` microseconds, in rising order; none of them below one. `None` where there are none.
    #[must_use]
    pub fn of_sorted_us(sorted: &[u32]) -> Option<Self> {
        let bucket = |us: u32| bucket_of(f64::from(us.max(1)) / 1e6, SCALE);
        let (first, last) = (bucket(*sorted.first()?), bucket(*sorted.last()?));
        let mut counts = vec![0; usize::try_from(last - first + 1).unwrap_or(1)];
        for &us in sorted {
            if let Some(count) = usize::try_from(bucket(us) - first).ok().and_then(|i| counts.get_mut(i)) {
                *count += 1;
            }
        }
        Some(Self { scale: SCALE, offset: first, bucket_counts: counts })
    }

    /// Each bucket's upper bound in seconds and its count.
    pub fn iter(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        (self.offset..).zip(&self.bucket_counts).map(|(index, &count)| (upper_bound(index, self.scale), count))
    }
}

#[cfg(test)]
mod tests {
    use super::{Buckets, SCALE, bucket_of, upper_bound};

    #[test]
    fn every_value_lies_in_its_bucket_and_every_value_is_counted() {
        let mut values: Vec<u32> = (0..5_000).map(|i| 1 + i * i % 900_001).collect();
        values.sort_unstable();
        for &us in &values {
            let seconds = f64::from(us) / 1e6;
            let bucket = bucket_of(seconds, SCALE);
            let (above, most) = (upper_bound(bucket - 1, SCALE), upper_bound(bucket, SCALE));
            assert!(above < seconds * (1.0 + 1e-12) && seconds <= most * (1.0 + 1e-12), "{above} {seconds} {most}");
            assert!(most / above < 1.0906, "9 per cent wide");
        }
        let buckets = Buckets::of_sorted_us(&values).unwrap();
        assert_eq!(buckets.bucket_counts.iter().sum::<u64>(), values.len() as u64);
        assert!(*buckets.bucket_counts.first().unwrap() > 0 && *buckets.bucket_counts.last().unwrap() > 0);
        assert_eq!(Buckets::of_sorted_us(&[]), None);
    }

    #[test]
    fn powers_of_two_end_a_bucket() {
        assert_eq!(bucket_of(1.0, SCALE), -1);
        assert_eq!(bucket_of(2.0, SCALE), 7);
        assert!((upper_bound(7, SCALE) - 2.0).abs() < 1e-12);
    }
}
