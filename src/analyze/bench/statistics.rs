//! Medians and their intervals. Two-stage bootstrap: rounds are drawn, then pairs within each, because the pairs of a
//! round share two processes, and two processes of one program differ by a few per cent for as long as they live.
//!
//! A bootstrap of few rounds is too sure of itself: its spread is short by sqrt((k-1)/k), and it knows nothing of the
//! wide tails of a small sample. So each arm of the interval is stretched by sqrt(k/(k-1)) and by Student's quantile
//! with k-1 degrees of freedom over the normal one, k being the rounds. Two rounds then decide next to nothing, and
//! that is right.

use serde::Serialize;

/// Draws of a bootstrap. The interval's ends are the 100th and the 3,900th.
pub const RESAMPLES: usize = 4000;

/// The normal distribution's 97.5 % quantile.
const NORMAL: f64 = 1.959_963_984_540_054;

/// Where the true value is likely to lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether it spans `value`.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Turns an interval of logarithms of ratios into per cent.
    #[must_use]
    pub fn in_percent(self) -> Self {
        Self { low: super::percent(self.low), high: super::percent(self.high) }
    }

    /// How far it reaches from 0.
    #[must_use]
    pub fn reach(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }
}

/// A seeded generator (SplitMix64), so that a report says the same whenever it is read.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One of these, each as likely as the others.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        // The upper half of a product: for lists as short as ours the bias is below 1e-15.
        of.get(((u128::from(self.bits()) * of.len() as u128) >> 64) as usize)
    }
}

/// The median: the mean of the two in the middle where their number is even. `None` of nothing.
#[must_use]
pub fn median(values: &mut [f64]) -> Option<f64> {
    let n = values.len();
    if n == 0 {
        return None;
    }
    let (below, &mut upper, _) = values.select_nth_unstable_by(n / 2, f64::total_cmp);
    if n % 2 == 1 {
        return Some(upper);
    }
    let lower = below.iter().copied().max_by(f64::total_cmp)?;
    Some(f64::midpoint(lower, upper))
}

/// Lower and upper quartile, interpolated between the two nearest values.
#[must_use]
pub fn quartiles(values: &[f64]) -> Option<[f64; 2]> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| {
        let place = q * sorted.len().checked_sub(1)? as f64;
        let (low, high) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
        Some(low + (high - low) * place.fract())
    };
    Some([at(0.25)?, at(0.75)?])
}

/// Medians of samples drawn anew: as many rounds with replacement, from each as many pairs.
#[must_use]
pub fn resampled_medians(rounds: &[Vec<f64>], random: &mut Random) -> Vec<f64> {
    let mut drawn = Vec::new();
    let mut one = || {
        drawn.clear();
        for _ in rounds {
            let round = random.pick(rounds)?;
            for _ in round {
                drawn.push(*random.pick(round)?);
            }
        }
        median(&mut drawn)
    };
    (0..RESAMPLES).filter_map(|_| one()).collect()
}

/// The interval of `point` from draws of it, for `rounds` rounds and one of `tests` decisions: all of them together are
/// right in 95 of 100 cases. `None` of fewer than two rounds: one round cannot say how much rounds differ.
#[must_use]
pub fn interval(point: f64, mut draws: Vec<f64>, rounds: usize, tests: usize) -> Option<Interval> {
    if rounds < 2 || draws.is_empty() {
        return None;
    }
    draws.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| draws.get(((q * draws.len() as f64).round() as usize).min(draws.len() - 1)).copied();
    let stretch = stretch(rounds, tests);
    Some(Interval { low: point - (point - at(0.025)?) * stretch, high: point + (at(0.975)? - point) * stretch })
}

/// By how much the arms of the 95 % percentile interval are stretched.
#[must_use]
pub fn stretch(rounds: usize, tests: usize) -> f64 {
    let k = rounds.max(2) as f64;
    student(1.0 - 0.025 / tests.max(1) as f64, rounds.max(2) - 1) / NORMAL * (k / (k - 1.0)).sqrt()
}

/// Quantile of Student's t distribution, for `p` from 0.5 to below 1.
#[must_use]
pub fn student(p: f64, freedom: usize) -> f64 {
    let freedom = freedom.max(1);
    // In the angle atan(t / sqrt(freedom)) the distribution function is a finite sum; halving finds where it is p.
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if 0.5 + share_within(middle, freedom) / 2.0 < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high).tan() * (freedom as f64).sqrt()
}

/// Share of Student's distribution between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4).
fn share_within(angle: f64, freedom: usize) -> f64 {
    let (sin, cos) = angle.sin_cos();
    let odd = freedom % 2 == 1;
    let (mut term, mut sum) = if odd { (cos, cos) } else { (1.0, 1.0) };
    let first = if odd { 2 } else { 1 };
    for i in (first..freedom.saturating_sub(1)).step_by(2) {
        term *= i as f64 / (i + 1) as f64 * cos * cos;
        sum += term;
    }
    match (odd, freedom) {
        (true, 1) => angle * std::f64::consts::FRAC_2_PI,
        (true, _) => (angle + sin * sum) * std::f64::consts::FRAC_2_PI,
        (false, _) => sin * sum,
    }
}

#[cfg(test)]
mod tests {
    use super::{RESAMPLES, Random, interval, median, quartiles, resampled_medians, stretch, student};

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(quartiles(&[1.0, 2.0, 3.0, 4.0]), Some([1.75, 3.25]));
        assert_eq!(quartiles(&[7.0]), Some([7.0, 7.0]));
        assert_eq!(quartiles(&[]), None);
    }

    #[test]
    fn student_is_the_printed_table() {
        // Any statistics book, two-sided 5 %, 1 % and 0.1 %.
        for (freedom, table) in [
            (1, [12.706, 63.657, 636.62]),
            (2, [4.303, 9.925, 31.599]),
            (3, [3.182, 5.841, 12.924]),
            (5, [2.571, 4.032, 6.869]),
            (8, [2.306, 3.355, 5.041]),
            (30, [2.042, 2.750, 3.646]),
        ] {
            for (p, expected) in [0.975, 0.995, 0.9995].into_iter().zip(table) {
                let found = student(p, freedom);
                assert!((found / expected - 1.0).abs() < 5e-4, "{freedom} {p}: {found}, not {expected}");
            }
        }
        // 12.706205 / 1.959964 * sqrt(2), and 2.570582 / 1.959964 * sqrt(6/5).
        assert!((stretch(2, 1) - 9.168_1).abs() < 1e-3 && (stretch(6, 1) - 1.436_7).abs() < 1e-3);
        assert!((stretch(1000, 1) - 1.0).abs() < 2e-3);
    }

    /// How often each value occurs among the draws, as a share.
    fn share(draws: &[f64], value: f64) -> f64 {
        draws.iter().filter(|d| (**d - value).abs() < 1e-9).count() as f64 / RESAMPLES as f64
    }

    /// Within five standard deviations of a share that was counted in 4,000 draws.
    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 5.0 * (expected * (1.0 - expected) / RESAMPLES as f64).sqrt()
    }

    #[test]
    fn draws_follow_the_distribution_that_was_worked_out_by_hand() {
        // One round of 1, 2, 3: of 27 samples 7 have the median 1, 13 have 2, 7 have 3.
        let draws = resampled_medians(&[vec![1.0, 2.0, 3.0]], &mut Random::new(1));
        assert!(
            near(share(&draws, 1.0), 7.0 / 27.0) && near(share(&draws, 2.0), 13.0 / 27.0),
            "{}",
            share(&draws, 2.0)
        );
        // Two rounds of one pair each: 0 and 10 a quarter of the time each, 5 half of it.
        let draws = resampled_medians(&[vec![0.0], vec![10.0]], &mut Random::new(2));
        assert!(near(share(&draws, 0.0), 0.25) && near(share(&draws, 5.0), 0.5) && near(share(&draws, 10.0), 0.25));
        // Pairs of a round are drawn together: two rounds {0, 0} and {10, 10} do not become more sure by
        // having more pairs.
        let draws = resampled_medians(&[vec![0.0; 50], vec![10.0; 50]], &mut Random::new(3));
        assert!(near(share(&draws, 0.0), 0.25) && near(share(&draws, 5.0), 0.5));
    }

    #[test]
    fn intervals_stretch_with_few_rounds_and_many_decisions() {
        let draws = || resampled_medians(&[vec![0.0], vec![10.0]], &mut Random::new(4));
        // The percentiles are 0 and 10, each arm is 5 long.
        let one = interval(5.0, draws(), 2, 1).unwrap();
        assert!((one.low + 40.84).abs() < 0.02 && (one.high - 50.84).abs() < 0.02, "{one:?}");
        assert!(interval(5.0, draws(), 2, 10).unwrap().reach() > 9.0 * one.reach());
        assert_eq!(interval(5.0, draws(), 1, 1), None);
        assert_eq!(interval(5.0, Vec::new(), 2, 1), None);
        let same = interval(3.0, vec![3.0; 10], 4, 1).unwrap();
        assert!(same.contains(3.0) && same.reach() == 3.0 && !same.contains(3.1));
    }

    #[test]
    fn every_element_is_as_likely() {
        let mut random = Random::new(5);
        let mut counts = [0_u32; 3];
        for _ in 0..30_000 {
            counts[*random.pick(&[0, 1, 2]).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
        assert_eq!(Random::new(1).pick::<u8>(&[]), None);
    }
}
