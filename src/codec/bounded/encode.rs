//! Encoder of `bounded`: finds the steps, measures, codes.

use super::super::measure::{self, Errors, Lanes, SQUARES, Sum};
use super::super::pack::{self, BLOCK, Sink};
use super::super::unary::{self, BitSink, ESCAPE};
use super::{VERSION, block, own_step, row, row_step};

/// Greatest number of steps.
const MOST_STEPS: f32 = 4_000_000.0;
/// Blocks whose greatest magnitude is below it are stored as they are: their steps would be subnormal.
const LEAST_BLOCK: f32 = 7.888_609e-31;
/// Errors are summed with rounding errors of at most this, relative to their square.
const SUM_SLACK: f64 = 1e-6;
/// What another number of low bits than the block before had must save, in bits.
const STAY: u32 = 6;
/// How often a row is tried with a finer step.
const TRIES: usize = 8;

/// Memory kept between rows and packets.
#[derive(Debug, Default)]
pub(in super::super) struct Scratch {
    steps: Vec<i32>,
    plans: Vec<Plan>,
    fixed: Sink,
    bits: BitSink,
    own: Vec<u8>,
    escapes: Vec<u8>,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    kind: Kind,
    /// Greatest magnitude.
    most: f32,
    /// Step, and its number if it is not the row's.
    step: f32,
    own: u16,
    /// Greatest error, and sums of squared errors.
    error: f32,
    missed: Lanes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Zero,
    Raw,
    Row,
    Own,
}

/// Appends what stands before the first row.
pub(in super::super) fn begin(out: &mut Vec<u8>) {
    out.push(VERSION);
}

/// Appends the rows of f32 values in `data`; `bound` is within what [`super::super::fitting`] allows.
#[inline(always)]
pub(in super::super) fn encode(s: &mut Scratch, bound: f32, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors {
    let mut errors = Errors::default();
    for row in data.chunks(row_len.max(1) * 4) {
        encode_row(s, bound, row, out, &mut errors);
    }
    errors
}

#[inline(always)]
fn encode_row(s: &mut Scratch, bound: f32, data: &[u8], out: &mut Vec<u8>, errors: &mut Errors) {
    let n = data.len() / 4;
    let blocks = n.div_ceil(BLOCK);
    s.steps.resize(blocks * BLOCK, 0);
    s.plans.resize(blocks, Plan::default());

    let (squares, most) = look(s, data);
    if most == 0.0 && s.plans.iter().all(|p| p.kind == Kind::Zero) {
        return out.extend_from_slice(&row::ZERO.to_le_bytes());
    }
    let code = if SQUARES.contains(&most) { fit(s, bound, data, squares) } else { None };
    let Some((code, missed)) = code else {
        out.extend_from_slice(&row::RAW.to_le_bytes());
        return out.extend_from_slice(data);
    };
    errors.row = errors.row.max((missed / squares).sqrt());
    for p in s.plans.iter().filter(|p| matches!(p.kind, Kind::Row | Kind::Own)) {
        errors.block = errors.block.max(f64::from(p.error) / f64::from(p.most));
    }
    out.extend_from_slice(&code.to_le_bytes());
    write(s, n, data, out);
}

/// Sum of squares and greatest magnitude of the row, without blocks that hold NaN or infinities; the kind
/// of every block.
#[inline(always)]
fn look(s: &mut Scratch, data: &[u8]) -> (f64, f32) {
    let (mut squares, mut greatest) = (Sum::default(), 0.0);
    for (raw, plan) in data.chunks(BLOCK * 4).zip(&mut s.plans) {
        let (most, sums) = measure::survey(&measure::load(raw));
        let kind = match most {
            0.0 => Kind::Zero,
            m if m.is_finite() && m >= LEAST_BLOCK => Kind::Row,
            _ => Kind::Raw,
        };
        if most.is_finite() {
            squares.add(&sums);
            greatest = if most > greatest { most } else { greatest };
        }
        *plan = Plan { kind, most, ..Plan::default() };
    }
    (squares.total(), greatest)
}

/// Finds steps with which the row keeps both bounds: the row's number and the sum of squared errors; `None` if
/// there are none.
#[inline(always)]
fn fit(s: &mut Scratch, bound: f32, data: &[u8], squares: f64) -> Option<(u16, f64)> {
    let budget = f64::from(bound) * f64::from(bound) * squares * (1.0 - SUM_SLACK);
    let n = data.len() / 4;
    let spread = 1.16 / (n as f64).sqrt();
    let mut step = first_step(s, bound, n, budget / (1.0 + spread));
    for _ in 0..TRIES {
        let code = (step.to_bits() >> 16) as u16;
        if !(f32::MIN_POSITIVE..=f32::MAX / 2.0).contains(&row_step(code)) {
            return None;
        }
        let missed = quantise_row(s, bound, data, row_step(code));
        if missed <= budget {
            return Some((code, missed));
        }
        let finer = (f64::from(row_step(code)) * (budget / missed).sqrt() * (1.0 - 0.25 * spread)) as f32;
        // At least one number less.
        step = finer.min(row_step(code - 1));
    }
    None
}

/// The step for which uniform errors would use up the budget, blocks that need finer ones taken out.
#[inline(always)]
fn first_step(s: &Scratch, bound: f32, n: usize, budget: f64) -> f32 {
    let mut step = (12.0 * budget / n as f64).sqrt() as f32;
    for _ in 0..2 {
        let (mut fine, mut others) = (0.0_f64, 0_usize);
        for p in &s.plans {
            let most = 2.0 * bound * p.most;
            match p.kind {
                Kind::Row if most < step => fine += BLOCK as f64 * f64::from(most) * f64::from(most),
                Kind::Row => others += BLOCK,
                _ => {}
            }
        }
        let left = 12.0 * budget - fine;
        if others == 0 || left <= 0.0 {
            break;
        }
        step = (left / others as f64).sqrt() as f32;
    }
    step
}

/// Quantises every block with the row's step, or a finer one where the block's bound asks for it; returns the sum
/// of squared errors.
#[inline(always)]
fn quantise_row(s: &mut Scratch, bound: f32, data: &[u8], row: f32) -> f64 {
    let mut sum = Sum::default();
    let (steps, _) = s.steps.as_chunks_mut::<BLOCK>();
    for ((raw, steps), p) in data.chunks(BLOCK * 4).zip(steps).zip(&mut s.plans) {
        if !matches!(p.kind, Kind::Row | Kind::Own) {
            continue;
        }
        let limit = 2.0 * bound * p.most;
        let (mut kind, mut own, mut step) = (Kind::Row, 0, row);
        if limit < row {
            own = (limit.to_bits() >> 19) as u16;
            (kind, step) = (Kind::Own, own_step(own));
        }
        if raw.len() < BLOCK * 4 && !shrinks(raw.len() / 4, p.most / step) {
            (p.kind, p.error, p.missed) = (Kind::Raw, 0.0, Lanes::default());
            continue;
        }
        // On a second try only blocks whose step is another one now.
        if p.step == step {
            sum.add(&p.missed);
            continue;
        }
        let mut tries = 4;
        loop {
            (p.kind, p.own, p.step) = (kind, own, step);
            let (error, missed) = measure::quantise(&measure::load(raw), step, steps);
            (p.error, p.missed) = (error, missed);
            if f64::from(error) <= f64::from(bound) * f64::from(p.most) && p.most < step * MOST_STEPS {
                // From the registers: what has just been written in one piece is read back slowly in others.
                sum.add(&missed);
                break;
            }
            tries -= 1;
            own = ((step.to_bits() >> 19) as u16).saturating_sub(1);
            (kind, step) = (Kind::Own, own_step(own));
            if tries == 0 || step < f32::MIN_POSITIVE {
                (p.kind, p.error, p.missed) = (Kind::Raw, 0.0, Lanes::default());
                break;
            }
        }
    }
    sum.total()
}

/// Whether the `n` values at the end of a row, the greatest of so many steps, are worth coding: words are
/// not full there.
fn shrinks(n: usize, steps: f32) -> bool {
    let bits = (steps as u32).max(1).ilog2() as usize + 1;
    pack::packed_len(n, bits) + n / 4 + 2 < n * 4
}

/// Writes a row's blocks.
#[inline(always)]
fn write(s: &mut Scratch, n: usize, data: &[u8], out: &mut Vec<u8>) {
    let blocks = s.plans.len();
    s.fixed.clear(blocks * BLOCK * 4);
    s.bits.clear(blocks);
    s.own.clear();
    s.escapes.clear();
    let mut kinds = [0_u8; 2];
    // Low bits of the last block with the row's step, and with its own.
    let mut last = [7; 2];
    let mut left = n;
    let raw = data.chunks(BLOCK * 4);
    let (steps, _) = s.steps.as_chunks::<BLOCK>();
    for (i, ((steps, raw), p)) in steps.iter().zip(raw).zip(&s.plans).enumerate() {
        let n = left.min(BLOCK);
        left -= n;
        kinds[i % 2] = match p.kind {
            Kind::Zero => block::ZERO,
            Kind::Raw => {
                s.fixed.extend(raw);
                block::RAW
            }
            Kind::Row | Kind::Own => {
                let low = code_block(
                    steps,
                    n,
                    &mut last[usize::from(p.kind == Kind::Own)],
                    &mut s.fixed,
                    &mut s.bits,
                    &mut s.escapes,
                );
                if p.kind == Kind::Row && low <= block::MOST_LOW {
                    low as u8 + 1
                } else {
                    // No step of its own is 0: that stands for the row's.
                    let code = if p.kind == Kind::Own { p.own } else { 0 };
                    s.own.extend_from_slice(&(code | (low as u16) << 12).to_le_bytes());
                    block::OWN
                }
            }
        };
        if i % 2 == 1 || i + 1 == blocks {
            out.push(kinds[0] | kinds[1] << 4);
            kinds = [0; 2];
        }
    }
    out.extend_from_slice(&s.own);
    out.extend_from_slice(s.fixed.written());
    out.extend_from_slice(s.bits.finish());
    out.extend_from_slice(&s.escapes);
}

/// Codes the numbers of a block; returns how many low bits it chose.
#[inline(always)]
fn code_block(
    steps: &[i32; BLOCK],
    n: usize,
    last: &mut u32,
    fixed: &mut Sink,
    bits: &mut BitSink,
    escapes: &mut Vec<u8>,
) -> u32 {
    let low = low_bits(steps, n, last);
    let (mut kept, mut runs, mut lengths) = ([0; BLOCK], [0; BLOCK], 0);
    let mask = (1 << low) - 1;
    for i in 0..BLOCK {
        let (size, sign) = (steps[i].unsigned_abs(), steps[i] as u32 >> 31);
        kept[i] = (size & mask) << 1 | sign;
        runs[i] = size >> low;
        lengths |= runs[i] + 1;
    }
    pack::put(&kept, n, low as usize + 1, fixed);
    if lengths > ESCAPE {
        for eight in runs.as_chunks_mut::<8>().0 {
            // Most of them hold none.
            if eight.iter().fold(0, |all, run| all | (run + 1)) > ESCAPE {
                for run in eight.iter_mut().filter(|run| **run >= ESCAPE) {
                    escape(*run - ESCAPE, escapes);
                    *run = ESCAPE;
                }
            }
        }
    }
    unary::put(&runs, n, bits);
    low
}

/// A number in groups of seven bits, lowest first, the eighth bit set where more follow.
fn escape(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number of low bits that makes the block about as short as it can be, beginning with what suited the block
/// before. Staying with that one is worth a few bits: branches that hang on it are then foreseen by the processor.
#[inline(always)]
fn low_bits(steps: &[i32; BLOCK], n: usize, last: &mut u32) -> u32 {
    let n = n as u32;
    loop {
        let low = *last;
        let mut runs = [0; 3];
        for step in steps {
            let size = step.unsigned_abs() >> (low - 1);
            runs[0] += size;
            runs[1] += size >> 1;
            runs[2] += size >> 2;
        }
        let (finer, same, coarser) = (runs[0] + STAY, runs[1] + n, runs[2] + 2 * n + STAY);
        if same <= finer && same <= coarser {
            return low;
        }
        let next = if coarser < finer { low + 1 } else { low - 1 };
        if !(1..=block::MOST_LOW_OWN).contains(&next) {
            return if next == 0 { 0 } else { low };
        }
        *last = next;
    }
}
