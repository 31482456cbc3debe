//! Decoder of `bounded`: every length is checked before it is used.

use super::super::Undecodable;
use super::super::pack::{self, BLOCK};
use super::super::unary::{self, BitSource, ESCAPE};
use super::{VERSION, block, own_step, row, row_step};

/// Writes the f32 values of `body` over `out`.
#[inline(always)]
pub(in super::super) fn decode(row_len: usize, body: &[u8], out: &mut [u8]) -> Result<(), Undecodable> {
    let mut from = match body.split_first() {
        Some((&VERSION, rest)) => rest,
        Some((version, _)) => return Err(Undecodable(format!("bounded: version {version} of the body is not known"))),
        None => return Err(Undecodable("bounded: empty".to_owned())),
    };
    let mut rows = Row::default();
    for (i, out) in out.chunks_mut(row_len.max(1).saturating_mul(4)).enumerate() {
        from = rows.decode(from, out).ok_or_else(|| Undecodable(format!("bounded: row {i} is damaged")))?;
    }
    if from.is_empty() { Ok(()) } else { Err(Undecodable("bounded: bytes behind the last row".to_owned())) }
}

/// Memory kept between rows.
#[derive(Default)]
struct Row {
    plans: Vec<Plan>,
    runs: Vec<[u8; BLOCK]>,
    /// What did not fit into a run: block, value, how much more.
    escapes: Vec<(u32, u8, u32)>,
}

/// What the beginning of a row says of a block.
#[derive(Clone, Copy)]
enum Plan {
    Zero,
    Raw,
    Coded { step: f32, low: usize },
}

impl Row {
    /// Decodes a row from the beginning of `from`; returns what is behind it.
    #[inline(always)]
    fn decode<'a>(&mut self, from: &'a [u8], out: &mut [u8]) -> Option<&'a [u8]> {
        let (code, from) = from.split_first_chunk::<2>()?;
        let code = u16::from_le_bytes(*code);
        match code {
            row::ZERO => {
                out.fill(0);
                return Some(from);
            }
            row::RAW => {
                let (raw, from) = from.split_at_checked(out.len())?;
                out.copy_from_slice(raw);
                return Some(from);
            }
            _ => {}
        }
        let n = out.len() / 4;
        let from = self.read_plans(row_step(code), n.div_ceil(BLOCK), from)?;
        let fixed: usize = self.plans.iter().enumerate().map(|(i, p)| p.fixed_len(in_block(n, i))).sum();
        let (mut fixed, from) = from.split_at_checked(fixed)?;
        let from = self.read_runs(n, from)?;
        let mut escapes = self.escapes.iter().copied().peekable();
        for (i, ((out, plan), runs)) in out.chunks_mut(BLOCK * 4).zip(&self.plans).zip(&self.runs).enumerate() {
            let n = out.len() / 4;
            let (own, behind) = fixed.split_at_checked(plan.fixed_len(n))?;
            match *plan {
                Plan::Zero => out.fill(0),
                Plan::Raw => out.copy_from_slice(own),
                Plan::Coded { step, low } => {
                    let mut sizes = [0; BLOCK];
                    // The bits of the blocks behind may be read too, and are not used: this keeps reads whole.
                    if !pack::get(fixed, n, low + 1, &mut sizes) {
                        return None;
                    }
                    let mut signs = [0; BLOCK];
                    for j in 0..BLOCK {
                        signs[j] = sizes[j] << 31;
                        sizes[j] = sizes[j] >> 1 | u32::from(runs[j]) << low;
                    }
                    while let Some((_, value, more)) = escapes.next_if(|e| e.0 as usize == i) {
                        let size = sizes.get_mut(usize::from(value))?;
                        *size = size.wrapping_add(more << low);
                    }
                    let mut values = [0; BLOCK * 4];
                    for (j, value) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let number = sizes[j] as i32 as f32 * step;
                        *value = (number.to_bits() ^ signs[j]).to_le_bytes();
                    }
                    out.copy_from_slice(values.get(..out.len())?);
                }
            }
            fixed = behind;
        }
        Some(from)
    }

    /// Reads kinds and own steps.
    #[inline(always)]
    fn read_plans<'a>(&mut self, row: f32, blocks: usize, from: &'a [u8]) -> Option<&'a [u8]> {
        let (kinds, mut from) = from.split_at_checked(blocks.div_ceil(2))?;
        self.plans.clear();
        for i in 0..blocks {
            let plan = match (kinds.get(i / 2)? >> (i % 2 * 4)) & 0xF {
                block::ZERO => Plan::Zero,
                block::RAW => Plan::Raw,
                block::OWN => {
                    let (own, behind) = from.split_first_chunk::<2>()?;
                    from = behind;
                    let own = u16::from_le_bytes(*own);
                    let step = if own & 0xFFF == 0 { row } else { own_step(own) };
                    Plan::Coded { step, low: usize::from(own >> 12) }
                }
                kind => Plan::Coded { step: row, low: usize::from(kind - 1) },
            };
            self.plans.push(plan);
        }
        Some(from)
    }

    /// Reads the runs of all blocks, and what did not fit into them.
    #[inline(always)]
    fn read_runs<'a>(&mut self, n: usize, from: &'a [u8]) -> Option<&'a [u8]> {
        self.runs.resize(self.plans.len(), [0; BLOCK]);
        self.escapes.clear();
        let mut bits = BitSource::new(from);
        for (i, (plan, runs)) in self.plans.iter().zip(&mut self.runs).enumerate() {
            if let Plan::Coded { .. } = plan {
                let n = in_block(n, i);
                if unary::get(&mut bits, n, runs)? == ESCAPE {
                    for (j, run) in runs.iter().take(n).enumerate() {
                        if u32::from(*run) == ESCAPE {
                            self.escapes.push((i as u32, j as u8, 0));
                        }
                    }
                }
            }
        }
        let mut from = bits.rest()?;
        for (.., more) in &mut self.escapes {
            let mut shift = 0;
            loop {
                let (byte, behind) = from.split_first()?;
                from = behind;
                *more |= u32::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
                if shift > 21 {
                    return None;
                }
            }
        }
        Some(from)
    }
}

impl Plan {
    /// Bytes of the block before the runs.
    #[inline(always)]
    fn fixed_len(&self, n: usize) -> usize {
        match *self {
            Self::Zero => 0,
            Self::Raw => n * 4,
            Self::Coded { low, .. } => pack::packed_len(n, low + 1),
        }
    }
}

/// Values in block `i` of a row of `n`.
#[inline(always)]
fn in_block(n: usize, i: usize) -> usize {
    n.saturating_sub(i * BLOCK).min(BLOCK)
}
