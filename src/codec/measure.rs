//! Magnitudes and errors of blocks, and rounding to steps. Sums run over 16 lanes in one fixed order: the same bits
//! on every machine.

use super::pack::BLOCK;

/// Greatest errors of a packet. Blocks that hold a NaN or an infinity are left out of both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Relative L2 error of a row.
    pub row: f64,
    /// Error of a value against the greatest magnitude of its block.
    pub block: f64,
}

impl Errors {
    /// Those of both.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        Self { row: self.row.max(other.row), block: self.block.max(other.block) }
    }
}

/// Rows whose greatest magnitude is outside this have squares that leave the range of f32.
pub(super) const SQUARES: std::ops::RangeInclusive<f32> = 9.313_226e-10..=1.152_921_5e18;

/// Adding it to a number below 2^22 rounds to the nearest integer, ties to even, which then is in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// The values of up to 64 little-endian floats, filled up with zeros.
#[inline(always)]
pub(super) fn load(raw: &[u8]) -> [f32; BLOCK] {
    let mut values = [0.0; BLOCK];
    match raw.first_chunk::<{ BLOCK * 4 }>() {
        Some(raw) => fill(&mut values, raw),
        None => fill(&mut values, raw),
    }
    values
}

#[inline(always)]
fn fill(values: &mut [f32; BLOCK], raw: &[u8]) {
    for (value, raw) in values.iter_mut().zip(raw.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*raw);
    }
}

/// Sums of a block, lane by lane.
pub(super) type Lanes = [f32; 16];

/// Greatest magnitude (infinite or NaN if a value is) and sums of squares.
#[inline(always)]
pub(super) fn survey(values: &[f32; BLOCK]) -> (f32, Lanes) {
    let (mut sums, mut most) = ([0.0; 16], [0_u32; 16]);
    for lanes in values.as_chunks::<16>().0 {
        for i in 0..16 {
            sums[i] += lanes[i] * lanes[i];
            most[i] = most[i].max(lanes[i].to_bits() & 0x7FFF_FFFF);
        }
    }
    (f32::from_bits(most.into_iter().fold(0, u32::max)), sums)
}

/// Rounds to whole steps (below 2^22 of them); the greatest error and sums of squared errors of what a
/// decoder will give.
#[inline(always)]
pub(super) fn quantise(values: &[f32; BLOCK], step: f32, steps: &mut [i32; BLOCK]) -> (f32, Lanes) {
    let inverse = 1.0 / step;
    let (mut sums, mut most) = ([0.0; 16], [0_u32; 16]);
    for (values, steps) in values.as_chunks::<16>().0.iter().zip(steps.as_chunks_mut::<16>().0) {
        for i in 0..16 {
            let rounded = values[i] * inverse + ROUND;
            steps[i] = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            let error = values[i] - (rounded - ROUND) * step;
            sums[i] += error * error;
            most[i] = most[i].max(error.to_bits() & 0x7FFF_FFFF);
        }
    }
    (f32::from_bits(most.into_iter().fold(0, u32::max)), sums)
}

/// Greatest magnitude and sums of squares of the differences.
#[inline(always)]
pub(super) fn difference(values: &[f32; BLOCK], others: &[f32; BLOCK]) -> (f32, Lanes) {
    let mut differences = [0.0; BLOCK];
    for i in 0..BLOCK {
        differences[i] = values[i] - others[i];
    }
    survey(&differences)
}

/// Sum of many blocks: lane by lane in f64, the lanes at the end.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum([f64; 16]);

impl Sum {
    #[inline(always)]
    pub(super) fn add(&mut self, lanes: &Lanes) {
        for (sum, lane) in self.0.iter_mut().zip(lanes) {
            *sum += f64::from(*lane);
        }
    }

    pub(super) fn total(&self) -> f64 {
        self.0.iter().sum()
    }
}

/// Error sums of a row, block by block, where the decoder's values are at hand.
#[derive(Default)]
pub(super) struct Row {
    squares: Sum,
    missed: Sum,
    /// Greatest magnitude.
    most: f32,
}

impl Row {
    /// Takes in a block: its greatest magnitude, its sums of squares, those of its errors.
    #[inline(always)]
    pub(super) fn add(&mut self, most: f32, squares: &Lanes, missed: &Lanes) {
        if most.is_finite() {
            self.squares.add(squares);
            self.missed.add(missed);
            self.most = if most > self.most { most } else { self.most };
        }
    }

    /// Relative L2 error; `exact` finds both sums in f64 for rows whose squares f32 cannot hold.
    #[inline(always)]
    pub(super) fn error(&self, exact: impl FnOnce() -> (f64, f64)) -> f64 {
        let in_range = self.most == 0.0 || SQUARES.contains(&self.most);
        let (squares, missed) = if in_range { (self.squares.total(), self.missed.total()) } else { exact() };
        if missed > 0.0 { (missed / squares).sqrt() } else { 0.0 }
    }
}

/// Sums of squares of values and of their errors, block by block like the quick way, in f64.
#[cold]
pub(super) fn exact_sums(values: &[u8], decoded: impl Fn(usize) -> f32) -> (f64, f64) {
    let (mut squares, mut missed) = (0.0, 0.0);
    for (b, block) in values.chunks(BLOCK * 4).enumerate() {
        let block = block.as_chunks::<4>().0;
        if block.iter().all(|v| f32::from_le_bytes(*v).is_finite()) {
            for (i, v) in block.iter().enumerate() {
                let v = f32::from_le_bytes(*v);
                squares += f64::from(v) * f64::from(v);
                missed += (f64::from(v) - f64::from(decoded(b * BLOCK + i))).powi(2);
            }
        }
    }
    (squares, missed)
}
