//! Statistics of values in one pass: sums carry their rounding errors, so the order and the number of values
//! do not matter.

use serde::Serialize;

use super::values;
use crate::codec::DType;

/// Independent sums; so the processor need not wait for one addition to begin the next.
const LANES: usize = 4;
/// Values that are looked at together.
const BLOCK: usize = 256;

/// A sum with what its additions lost beside it (Knuth's two-sum): about 106 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        let sum = self.high + x;
        let part = sum - self.high;
        self.low += (self.high - (sum - part)) + (x - part);
        self.high = sum;
    }

    fn merge(&mut self, other: Self) {
        self.add(other.high);
        self.low += other.low;
    }

    /// As two numbers that do not overlap.
    fn normal(self) -> Self {
        let high = self.high + self.low;
        Self { high, low: (self.high - high) + self.low }
    }
}

/// A product and its rounding error.
fn product(a: f64, b: f64) -> (f64, f64) {
    let p = a * b;
    (p, a.mul_add(b, -p))
}

/// Accumulates values. NaN and infinities are counted and left out of everything else.
#[derive(Clone, Debug)]
pub struct Moments {
    count: u64,
    nan: u64,
    inf: u64,
    zeros: u64,
    min: [f64; LANES],
    max: [f64; LANES],
    sums: [Sum; LANES],
    squares: [Sum; LANES],
}

impl Default for Moments {
    fn default() -> Self {
        Self {
            count: 0,
            nan: 0,
            inf: 0,
            zeros: 0,
            min: [f64::INFINITY; LANES],
            max: [f64::NEG_INFINITY; LANES],
            sums: [Sum::default(); LANES],
            squares: [Sum::default(); LANES],
        }
    }
}

impl Moments {
    /// Adds `bytes`, little-endian values of `dtype`.
    pub fn add_bytes(&mut self, dtype: DType, bytes: &[u8]) {
        let mut block = [0.0; BLOCK];
        for bytes in bytes.chunks(BLOCK * dtype.size()) {
            let n = values::widen(dtype, bytes, &mut block);
            if matches!(dtype, DType::F64 | DType::I64 | DType::I32) {
                self.add_block::<false>(&block[..n]);
            } else {
                // At most 24 significant bits: squares are exact in f64.
                self.add_block::<true>(&block[..n]);
            }
        }
    }

    /// Adds values.
    pub fn add(&mut self, values: &[f64]) {
        values.chunks(BLOCK).for_each(|block| self.add_block::<false>(block));
    }

    fn add_block<const SHORT: bool>(&mut self, block: &[f64]) {
        self.count += block.len() as u64;
        if block.iter().fold(true, |all, x| all & x.is_finite()) {
            return self.add_finite::<SHORT>(block);
        }
        let (mut finite, mut n) = ([0.0; BLOCK], 0);
        for &x in block {
            if x.is_nan() {
                self.nan += 1;
            } else if x.is_infinite() {
                self.inf += 1;
            } else if let Some(place) = finite.get_mut(n) {
                *place = x;
                n += 1;
            }
        }
        self.add_finite::<SHORT>(&finite[..n]);
    }

    fn add_finite<const SHORT: bool>(&mut self, block: &[f64]) {
        self.zeros += block.iter().map(|&x| u64::from(x == 0.0)).sum::<u64>();
        let mut add = |lane: usize, x: f64| {
            self.min[lane] = if x < self.min[lane] { x } else { self.min[lane] };
            self.max[lane] = if x > self.max[lane] { x } else { self.max[lane] };
            self.sums[lane].add(x);
            if SHORT {
                self.squares[lane].add(x * x);
            } else {
                let (square, lost) = product(x, x);
                self.squares[lane].add(square);
                self.squares[lane].low += lost;
            }
        };
        let mut groups = block.chunks_exact(LANES);
        for group in &mut groups {
            (0..LANES).for_each(|lane| add(lane, group[lane]));
        }
        groups.remainder().iter().enumerate().for_each(|(lane, &x)| add(lane, x));
    }

    /// Adds everything that another one has seen.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.nan += other.nan;
        self.inf += other.inf;
        self.zeros += other.zeros;
        for lane in 0..LANES {
            self.min[lane] = self.min[lane].min(other.min[lane]);
            self.max[lane] = self.max[lane].max(other.max[lane]);
            self.sums[lane].merge(other.sums[lane]);
            self.squares[lane].merge(other.squares[lane]);
        }
    }

    /// The figures.
    #[must_use]
    pub fn finish(&self) -> Figures {
        let total = |lanes: &[Sum; LANES]| {
            let mut total = Sum::default();
            lanes.iter().for_each(|lane| total.merge(*lane));
            total.normal()
        };
        let (sum, squares) = (total(&self.sums), total(&self.squares));
        let n = self.count - self.nan - self.inf;
        let min = self.min.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.max.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let finite = |value: f64| (n > 0 && value.is_finite()).then_some(value);
        Figures {
            count: self.count,
            nan: self.nan,
            inf: self.inf,
            mean: finite((sum.high + sum.low) / n as f64),
            std: finite(if min == max { 0.0 } else { deviation(sum, squares, n as f64) }),
            min: finite(min),
            max: finite(max),
            l2: (squares.high.is_finite()).then(|| squares.high.sqrt()),
            sparsity: (self.count > 0).then(|| self.zeros as f64 / self.count as f64),
        }
    }
}

/// Population standard deviation: `sqrt((sum(x^2) - sum(x)^2 / n) / n)`. The difference cancels, so everything is kept
/// in two numbers.
fn deviation(sum: Sum, squares: Sum, n: f64) -> f64 {
    let (p, p_low) = product(sum.high, sum.high);
    let p_low = p_low + 2.0 * sum.high * sum.low;
    let quotient = p / n;
    let (back, back_low) = product(quotient, n);
    let quotient_low = ((p - back) - back_low + p_low) / n;
    let squared = (squares.high - quotient) + (squares.low - quotient_low);
    (squared.max(0.0) / n).sqrt()
}

/// What [`Moments`] found. `None` where nothing finite was seen, or where a figure does not fit a double.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Values, NaN and infinities included.
    pub count: u64,
    /// NaNs among them.
    pub nan: u64,
    /// Infinities among them.
    pub inf: u64,
    /// Mean of the finite values.
    pub mean: Option<f64>,
    /// Population standard deviation of the finite values.
    pub std: Option<f64>,
    /// Smallest finite value.
    pub min: Option<f64>,
    /// Largest finite value.
    pub max: Option<f64>,
    /// Euclidean norm of the finite values.
    pub l2: Option<f64>,
    /// Share of all values that are exactly zero.
    pub sparsity: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::Moments;
    use crate::codec::DType;

    fn of(values: &[f64]) -> super::Figures {
        let mut moments = Moments::default();
        moments.add(values);
        moments.finish()
    }

    #[test]
    fn figures_computed_by_hand() {
        // mean 5, squared deviations 9+1+1+1+0+0+4+16 = 32, 32/8 = 4; sum of squares 232.
        let f = of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((f.count, f.mean, f.std), (8, Some(5.0), Some(2.0)));
        assert_eq!((f.min, f.max, f.l2, f.sparsity), (Some(2.0), Some(9.0), Some(232_f64.sqrt()), Some(0.0)));
        // mean of -1, 0, -0, 3 is 0.5; deviations 2.25 + 0.25 + 0.25 + 6.25 = 9, 9/4.
        let f = of(&[-1.0, 0.0, -0.0, 3.0]);
        assert_eq!((f.mean, f.std, f.min, f.sparsity), (Some(0.5), Some(1.5), Some(-1.0), Some(0.5)));
    }

    #[test]
    fn what_is_not_finite_is_counted_apart() {
        let f = of(&[f64::NAN, 1.0, f64::INFINITY, 3.0, f64::NEG_INFINITY, 0.0, f64::NAN, 4.0]);
        assert_eq!((f.count, f.nan, f.inf), (8, 2, 2));
        assert_eq!((f.mean, f.min, f.max, f.sparsity), (Some(2.0), Some(0.0), Some(4.0), Some(0.125)));
        let none = of(&[f64::NAN]);
        assert_eq!((none.count, none.mean, none.std, none.min, none.l2), (1, None, None, None, Some(0.0)));
        assert_eq!(of(&[]).sparsity, None);
    }

    #[test]
    fn a_large_mean_does_not_drown_a_small_deviation() {
        // 1e8 + {0, 1, 2} in equal shares: variance 2/3.
        let values: Vec<f64> = (0..300_000).map(|i| 1e8 + f64::from(i % 3)).collect();
        let f = of(&values);
        assert_eq!(f.mean, Some(1e8 + 1.0));
        assert!((f.std.unwrap() - (2.0_f64 / 3.0).sqrt()).abs() < 1e-15, "{f:?}");
        assert_eq!(of(&[0.1; 1000]).std, Some(0.0));
    }

    #[test]
    fn sums_that_cancel_lose_nothing() {
        let f = of(&[1e16, 1.0, 1.0, 1.0, -1e16, 1.0, 1.0, 1.0]);
        assert_eq!(f.mean, Some(0.75));
        // Squares of integers with 31 bits do not fit a double: (2^31-1)^2 + 1, halved, minus 2^60 = (2^30 - 1)^2
        // for {2^31-1, 1}.
        let mut moments = Moments::default();
        moments.add_bytes(DType::I32, &[2_147_483_647_i32.to_le_bytes(), 1_i32.to_le_bytes()].concat());
        assert_eq!(moments.finish().std, Some(1_073_741_823.0));
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let values: Vec<f64> = (0..10_007).map(|i| f64::from((i * 7919) % 1009) / 64.0 - 7.0).collect();
        let mut parts = Moments::default();
        for piece in values.chunks(613) {
            let mut part = Moments::default();
            part.add(piece);
            parts.merge(&part);
        }
        assert_eq!(parts.finish(), of(&values));
    }

    #[test]
    fn every_type_is_widened() {
        let mut moments = Moments::default();
        moments.add_bytes(DType::F32, &1.5_f32.to_le_bytes());
        moments.add_bytes(DType::F16, &half::f16::from_f32(-2.0).to_le_bytes());
        moments.add_bytes(DType::Bf16, &half::bf16::from_f32(4.0).to_le_bytes());
        moments.add_bytes(DType::I8, &[0xFF]);
        moments.add_bytes(DType::I16, &(-3_i16).to_le_bytes());
        moments.add_bytes(DType::I64, &5_i64.to_le_bytes());
        moments.add_bytes(DType::F64, &0.5_f64.to_le_bytes());
        let f = moments.finish();
        assert_eq!((f.count, f.mean.map(|m| m * 7.0), f.min, f.max), (7, Some(5.0), Some(-3.0), Some(5.0)));
    }
}
