//! Magnitudes and errors of blocks, and rounding to steps. Sums run over 16 lanes in one fixed order: the same bits on every machine.

use super::pack::BLOCK;

/// Greatest errors of a packet. Blocks that hold a NaN or an infinity are left out of both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Errors {
    /// Relative L2 error of a row.
    pub(super) row: f64,
    /// Error of a value against the greatest magnitude of its block.
    pub(super) block: f64,
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

/// Greatest magnitude (NaN if there is one) and sum of squares.
#[inline(always)]
pub(super) fn survey(values: &[f32; BLOCK]) -> (f32, f32) {
    let (mut sum, mut most) = ([0.0_f32; 16], [0_i32; 16]);
    for lanes in values.as_chunks::<16>().0 {
        for i in 0..16 {
            let size = (lanes[i].to_bits() & 0x7FFF_FFFF) as i32;
            sum[i] += lanes[i] * lanes[i];
            most[i] = if size > most[i] { size } else { most[i] };
        }
    }
    let most = most.into_iter().fold(0, |a, b| if b > a { b } else { a });
    (f32::from_bits(most as u32), tree(sum))
}

/// Rounds to whole steps (below 2^22 of them); returns the sum of squared errors and the greatest error of what a decoder will give.
#[inline(always)]
pub(super) fn quantise(values: &[f32; BLOCK], step: f32, steps: &mut [i32; BLOCK]) -> (f32, f32) {
    let inverse = 1.0 / step;
    let (mut sum, mut most) = ([0.0_f32; 16], [0.0_f32; 16]);
    for (values, steps) in values.as_chunks::<16>().0.iter().zip(steps.as_chunks_mut::<16>().0) {
        for i in 0..16 {
            let rounded = values[i] * inverse + ROUND;
            steps[i] = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            let error = (values[i] - (rounded - ROUND) * step).abs();
            sum[i] += error * error;
            most[i] = if error > most[i] { error } else { most[i] };
        }
    }
    (tree(sum), most.into_iter().fold(0.0, |a, b| if b > a { b } else { a }))
}

/// Sum of squares and greatest magnitude of the differences.
#[inline(always)]
pub(super) fn difference(values: &[f32; BLOCK], others: &[f32; BLOCK]) -> (f32, f32) {
    let mut differences = [0.0; BLOCK];
    for i in 0..BLOCK {
        differences[i] = values[i] - others[i];
    }
    let (most, sum) = survey(&differences);
    (sum, most)
}

/// Sum of 16 lanes, always in the same order.
#[inline(always)]
fn tree(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Error sums of a row, block by block, where the decoder's values are at hand.
#[derive(Default)]
pub(super) struct Row {
    squares: f64,
    missed: f64,
    /// Greatest magnitude.
    most: f32,
}

impl Row {
    /// Takes in a block: its greatest magnitude, its sum of squares, that of its errors.
    #[inline(always)]
    pub(super) fn add(&mut self, most: f32, squares: f32, missed: f32) {
        if most.is_finite() {
            self.squares += f64::from(squares);
            self.missed += f64::from(missed);
            self.most = if most > self.most { most } else { self.most };
        }
    }

    /// Relative L2 error; `exact` finds both sums in f64 for rows whose squares f32 cannot hold.
    #[inline(always)]
    pub(super) fn error(&self, exact: impl FnOnce() -> (f64, f64)) -> f64 {
        let in_range = self.most == 0.0 || SQUARES.contains(&self.most);
        let (squares, missed) = if in_range { (self.squares, self.missed) } else { exact() };
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
