//! `fast`: every block of 64 values with as many bits a value as the bound needs (10 for 1e-3), one step a block,
//! nothing variable but blocks of zeros and blocks stored as they are.

use super::Undecodable;
use super::measure::{self, Errors, Row};
use super::pack::{self, BLOCK, Sink};
use crate::prefetch;

/// How far before it is needed memory is asked for: some twelve blocks, which take longer than memory does. Values come
/// from memory, not from a cache, where a capture runs at full speed.
const AHEAD: usize = 3072;

/// First byte of a body.
const VERSION: u8 = 1;
/// Steps with a meaning of their own; others are the upper half of an f32.
const ZERO: u16 = 0;
const RAW: u16 = 0xFFFF;
/// Blocks that are collected before they are appended.
const PIECE: usize = 64;
/// Blocks whose greatest magnitude is below it are stored as they are: the step would be subnormal.
const LEAST: f32 = 7.888_609e-31;
/// Most bits a value.
const MOST_BITS: u8 = 18;
/// Bits a value for the default bound, 1e-3.
const USUAL_BITS: u32 = 10;

/// Bits a value with which every block keeps the bound (blocks that should not are stored as they are).
pub(super) fn bits_for(bound: f32) -> u32 {
    // Half a step, the step rounded up to 8 significant bits, against the greatest number of steps.
    let keeps = |bits: &u32| 0.5 * (1.0 + 1.0 / 128.0) / f64::from(greatest(*bits)) <= f64::from(bound);
    (2..=u32::from(MOST_BITS)).find(keeps).unwrap_or(u32::from(MOST_BITS))
}

/// Appends what stands before the first row.
pub(super) fn begin(bits: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, bits as u8]);
}

/// Appends the rows of f32 values in `data` with `bits` bits each; returns the errors that this makes.
#[inline(always)]
pub(super) fn encode(sink: &mut Sink, bound: f32, bits: u32, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors {
    if bits == USUAL_BITS {
        // Compiled for itself, with its shifts and widths as constants.
        encode_with(sink, bound, USUAL_BITS, row_len, data, out)
    } else {
        encode_with(sink, bound, bits, row_len, data, out)
    }
}

#[inline(always)]
fn encode_with(sink: &mut Sink, bound: f32, bits: u32, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors {
    let mut errors = Errors::default();
    for raw in data.chunks(row_len.max(1) * 4) {
        let mut row = Row::default();
        let start = out.len();
        // In pieces, so that the buffer stays near.
        for piece in raw.chunks(PIECE * BLOCK * 4) {
            sink.clear(piece.len() + PIECE * 2);
            for raw in piece.chunks(BLOCK * 4) {
                prefetch::read_beyond(raw, AHEAD);
                encode_block(sink, bound, bits, raw, &mut row, &mut errors);
            }
            out.extend_from_slice(sink.written());
        }
        let exact = || {
            let mut back = vec![0; raw.len()];
            let written = out.get(start..).unwrap_or_default();
            _ = decode_row(bits, written, &mut back);
            let back = back.as_chunks::<4>().0;
            measure::exact_sums(raw, |i| back.get(i).map_or(f32::NAN, |v| f32::from_le_bytes(*v)))
        };
        errors.row = errors.row.max(row.error(exact));
    }
    errors
}

#[inline(always)]
fn encode_block(sink: &mut Sink, bound: f32, bits: u32, raw: &[u8], row: &mut Row, errors: &mut Errors) {
    let values = measure::load(raw);
    let (most, squares) = measure::survey(&values);
    if most == 0.0 {
        return sink.extend(&ZERO.to_le_bytes());
    }
    if most.is_finite() && most >= LEAST {
        // Upwards, so that the greatest value is within the range of numbers.
        let code = ((most / greatest(bits)).to_bits() + 0xFFFF) >> 16;
        let step = f32::from_bits(code << 16);
        let mut numbers = [0; BLOCK];
        let (error, missed) = measure::quantise(&values, step, &mut numbers);
        if f64::from(error) <= f64::from(bound) * f64::from(most) {
            sink.extend(&(code as u16).to_le_bytes());
            let numbers = numbers.map(|n| n as u32);
            match raw.len() / 4 {
                BLOCK => pack::put(&numbers, BLOCK, bits as usize, sink),
                n => pack::put(&numbers, n, bits as usize, sink),
            }
            row.add(most, &squares, &missed);
            errors.block = errors.block.max(f64::from(error) / f64::from(most));
            return;
        }
    }
    sink.extend(&RAW.to_le_bytes());
    sink.extend(raw);
    row.add(most, &squares, &[0.0; 16]);
}

/// Greatest number of steps.
const fn greatest(bits: u32) -> f32 {
    ((1_u32 << (bits - 1)) - 1) as f32
}

/// Writes the f32 values of `body` over `out`.
#[inline(always)]
pub(super) fn decode(row_len: usize, body: &[u8], out: &mut [u8]) -> Result<(), Undecodable> {
    let (bits, mut from) = match body {
        [VERSION, bits @ 2..=MOST_BITS, rest @ ..] => (u32::from(*bits), rest),
        _ => return Err(Undecodable("fast: no body of a known version".to_owned())),
    };
    for (i, row) in out.chunks_mut(row_len.max(1).saturating_mul(4)).enumerate() {
        from = decode_row(bits, from, row).ok_or_else(|| Undecodable(format!("fast: row {i} is damaged")))?;
    }
    if from.is_empty() { Ok(()) } else { Err(Undecodable("fast: bytes behind the last row".to_owned())) }
}

#[inline(always)]
fn decode_row<'a>(bits: u32, mut from: &'a [u8], row: &mut [u8]) -> Option<&'a [u8]> {
    for block in row.chunks_mut(BLOCK * 4) {
        from = decode_block(bits, from, block)?;
    }
    Some(from)
}

#[inline(always)]
fn decode_block<'a>(bits: u32, from: &'a [u8], out: &mut [u8]) -> Option<&'a [u8]> {
    let (code, from) = from.split_first_chunk::<2>()?;
    let n = out.len() / 4;
    match u16::from_le_bytes(*code) {
        ZERO => {
            out.fill(0);
            Some(from)
        }
        RAW => {
            let (raw, from) = from.split_at_checked(out.len())?;
            out.copy_from_slice(raw);
            Some(from)
        }
        code => {
            let step = f32::from_bits(u32::from(code) << 16);
            let mut numbers = [0; BLOCK];
            if !pack::get(from, n, bits as usize, &mut numbers) {
                return None;
            }
            let mut values = [0; BLOCK * 4];
            for (value, number) in values.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
                // Sign of the highest of the bits.
                let number = (number << (32 - bits)) as i32 >> (32 - bits);
                *value = (number as f32 * step).to_le_bytes();
            }
            out.copy_from_slice(values.get(..out.len())?);
            from.get(pack::packed_len(n, bits as usize)..)
        }
    }
}
