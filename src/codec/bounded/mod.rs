//! `bounded`: per row, relative L2 error at most the bound; per block of 64 values, greatest error at most the bound
//! times the block's greatest magnitude. Both are measured on the values that the decoder will give, and a row or block
//! that misses one is done again finer.
//!
//! A row has one step, from its L2 norm; a block whose magnitude asks for a finer one has its own. Numbers of steps are
//! stored as sign and low bits (as many as suit the block) and a run of zeros for the rest: about 0.1 bit a value above
//! the entropy of a Gaussian, with no table to send, so a packet of a single row is as small as any.

mod decode;
mod encode;

pub(super) use decode::decode;
pub(super) use encode::{Scratch, begin, encode};

/// First byte of a body.
const VERSION: u8 = 1;

/// Row steps with a meaning of their own; others are the upper half of an f32.
mod row {
    /// All values are zero, nothing follows.
    pub(super) const ZERO: u16 = 0;
    /// The values follow as they are.
    pub(super) const RAW: u16 = 0xFFFF;
}

/// Kinds of block, four bits each; others, 1 to 13, are row step and `kind - 1` low bits.
mod block {
    /// All values are zero, nothing follows.
    pub(super) const ZERO: u8 = 0;
    /// Own step: the upper 12 bits of a positive f32, or 0 for the row's, and 4 bits that say how many low bits.
    pub(super) const OWN: u8 = 14;
    /// The values follow as they are.
    pub(super) const RAW: u8 = 15;
    /// Most low bits with the row step.
    pub(super) const MOST_LOW: u32 = 12;
    /// Most low bits with a step of its own.
    pub(super) const MOST_LOW_OWN: u32 = 15;
}

/// The step of a row's number.
const fn row_step(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

/// The step of a block's number.
const fn own_step(code: u16) -> f32 {
    f32::from_bits((code as u32 & 0xFFF) << 19)
}

#[cfg(test)]
mod tests;
