//! f32 to half precision and bfloat16 and back, in integer arithmetic: the same bits on every machine, whatever its
//! rounding or flush mode.

use super::measure::{self, Errors, Row};
use super::pack::BLOCK;

/// Magnitude bits of an infinite f32; greater ones are NaN.
const INFINITE: u32 = 0x7F80_0000;
/// From here on (65,520) half precision would round to infinity.
const HALF_OVERFLOW: u32 = 0x477F_F000;
/// Smallest normal half.
const HALF_NORMAL: u32 = 0x3880_0000;

/// Nearest half, ties to even; finite values that are too large become the largest half, infinities stay, a NaN stays
/// one and keeps its upper payload bits.
#[inline(always)]
pub(super) fn to_half(value: u32) -> u16 {
    let sign = (value >> 16) & 0x8000;
    let size = value & 0x7FFF_FFFF;
    let normal = (size + 0xFFF + ((size >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    // A sum with 0.5 has the subnormal half in its lowest bits, rounded by the addition.
    let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if size < HALF_NORMAL { subnormal } else { normal };
    let large = if size < INFINITE { 0x7BFF } else { 0x7C00 };
    let number = if size < HALF_OVERFLOW { finite } else { large };
    let nan = 0x7E00 | ((size >> 13) & 0x3FF);
    (sign | if size > INFINITE { nan } else { number }) as u16
}

/// Whether [`to_half`] stores a finite value as the largest half although that is not the nearest.
#[inline(always)]
pub(super) fn half_saturates(value: u32) -> bool {
    let size = value & 0x7FFF_FFFF;
    (HALF_OVERFLOW..INFINITE).contains(&size)
}

/// The f32 that is equal to a half.
#[inline(always)]
pub(super) fn from_half(half: u16) -> u32 {
    let half = u32::from(half);
    let (sign, size) = ((half & 0x8000) << 16, half & 0x7FFF);
    let normal = (size << 13) + (112 << 23);
    // 2^-24 units; below 1024 of them the conversion is exact.
    let subnormal = (size as i32 as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let special = (size << 13) | INFINITE;
    let size = if size < 0x400 {
        subnormal
    } else if size < 0x7C00 {
        normal
    } else {
        special
    };
    sign | size
}

/// Nearest bfloat16, ties to even, with the same rules as [`to_half`].
#[inline(always)]
pub(super) fn to_bf16(value: u32) -> u16 {
    let sign = (value >> 16) & 0x8000;
    let size = value & 0x7FFF_FFFF;
    let rounded = (size + 0x7FFF + ((size >> 16) & 1)) >> 16;
    let finite = if rounded > 0x7F7F { 0x7F7F } else { rounded };
    let special = if size > INFINITE { (size >> 16) | 0x40 } else { 0x7F80 };
    (sign | if size < INFINITE { finite } else { special }) as u16
}

/// Whether [`to_bf16`] stores a finite value as the largest bfloat16 although that is not the nearest.
#[inline(always)]
pub(super) fn bf16_saturates(value: u32) -> bool {
    let size = value & 0x7FFF_FFFF;
    (0x7F7F_8000..INFINITE).contains(&size)
}

/// Narrows every value of `data` over `out`; returns how many were saturated, and the errors.
#[inline(always)]
fn narrow(
    row_len: usize,
    data: &[u8],
    out: &mut Vec<u8>,
    to: impl Fn(u32) -> u16,
    from: impl Fn(u16) -> u32,
    saturates: impl Fn(u32) -> bool,
) -> (u64, Errors) {
    let (mut saturated, mut errors) = (0, Errors::default());
    out.resize(data.len() / 2, 0);
    let bytes = row_len.max(1) * 4;
    for (raw, out) in data.chunks(bytes).zip(out.chunks_mut(bytes / 2)) {
        let mut row = Row::default();
        for (raw, out) in raw.chunks(BLOCK * 4).zip(out.chunks_mut(BLOCK * 2)) {
            let values = measure::load(raw);
            let (mut narrowed, mut wide, mut count) = ([0; BLOCK * 2], [0.0; BLOCK], 0);
            for ((v, n), w) in values.iter().zip(narrowed.as_chunks_mut::<2>().0).zip(&mut wide) {
                let bits = v.to_bits();
                let half = to(bits);
                *n = half.to_le_bytes();
                *w = f32::from_bits(from(half));
                count += u32::from(saturates(bits));
            }
            if let Some(narrowed) = narrowed.get(..out.len()) {
                out.copy_from_slice(narrowed);
            }
            saturated += u64::from(count);
            let (most, squares) = measure::survey(&values);
            let (error, missed) = measure::difference(&values, &wide);
            row.add(most, &squares, &missed);
            if most > 0.0 && most < f32::INFINITY {
                errors.block = errors.block.max(f64::from(error) / f64::from(most));
            }
        }
        let exact = || {
            let out = out.as_chunks::<2>().0;
            let value = |n: &[u8; 2]| f32::from_bits(from(u16::from_le_bytes(*n)));
            measure::exact_sums(raw, |i| out.get(i).map_or(f32::NAN, value))
        };
        errors.row = errors.row.max(row.error(exact));
    }
    (saturated, errors)
}

/// Halves of the f32 values in `data`, over `out`; returns how many were saturated, and the errors.
#[inline(always)]
pub(super) fn halves(row_len: usize, data: &[u8], out: &mut Vec<u8>) -> (u64, Errors) {
    narrow(row_len, data, out, to_half, from_half, half_saturates)
}

/// bfloat16s of the f32 values in `data`, over `out`; returns how many were saturated, and the errors.
#[inline(always)]
pub(super) fn bf16s(row_len: usize, data: &[u8], out: &mut Vec<u8>) -> (u64, Errors) {
    narrow(row_len, data, out, to_bf16, |n| u32::from(n) << 16, bf16_saturates)
}

/// f32 values of narrow ones; `out` is twice as long.
#[inline(always)]
pub(super) fn widen(half: bool, data: &[u8], out: &mut [u8]) {
    let (narrow, _) = data.as_chunks::<2>();
    let (wide, _) = out.as_chunks_mut::<4>();
    for (n, w) in narrow.iter().zip(wide) {
        let n = u16::from_le_bytes(*n);
        *w = if half { from_half(n) } else { u32::from(n) << 16 }.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Bits near every place where the rules change, and a spread of all others.
    fn interesting() -> impl Iterator<Item = u32> {
        let edges =
            [0, 0x3300_0000, HALF_NORMAL, HALF_OVERFLOW, 0x7F7F_8000, INFINITE, 0x7FC0_0000, 0x7FFF_FFFF, 1 << 23];
        let near =
            edges.into_iter().flat_map(|e: u32| (0..20_000).map(move |i| e.wrapping_sub(10_000).wrapping_add(i)));
        near.chain((0..1 << 22).map(|i: u32| i.wrapping_mul(0x9E37_79B9))).flat_map(|b| [b, b ^ 0x8000_0000])
    }

    #[test]
    fn agrees_with_the_half_crate_where_that_does_not_overflow() {
        for bits in interesting() {
            let x = f32::from_bits(bits);
            let (h, b) = (f16::from_bits(to_half(bits)), bf16::from_bits(to_bf16(bits)));
            if x.is_nan() {
                assert!(h.is_nan() && b.is_nan(), "{bits:08x}");
                continue;
            }
            assert_eq!(half_saturates(bits), x.is_finite() && f16::from_f32(x).is_infinite(), "{bits:08x}");
            assert_eq!(bf16_saturates(bits), x.is_finite() && bf16::from_f32(x).is_infinite(), "{bits:08x}");
            let expected = if half_saturates(bits) { f16::MAX.copysign(f16::from_f32(x)) } else { f16::from_f32(x) };
            assert_eq!(h.to_bits(), expected.to_bits(), "{bits:08x}");
            let expected = if bf16_saturates(bits) { bf16::MAX.copysign(bf16::from_f32(x)) } else { bf16::from_f32(x) };
            assert_eq!(b.to_bits(), expected.to_bits(), "{bits:08x}");
        }
    }

    #[test]
    fn widening_is_exact_for_every_half_and_narrows_back() {
        for half in 0..=u16::MAX {
            let wide = from_half(half);
            let theirs = f16::from_bits(half).to_f32();
            if theirs.is_nan() {
                assert!(f32::from_bits(wide).is_nan());
            } else {
                assert_eq!(wide, theirs.to_bits(), "{half:04x}");
                assert_eq!(to_half(wide), half);
            }
            let brain = u32::from(half) << 16;
            if !f32::from_bits(brain).is_nan() {
                assert_eq!(to_bf16(brain), half);
            }
        }
    }
}
