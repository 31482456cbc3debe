//! The same code compiled once more for processors with AVX2 and for those with AVX-512, chosen when it is called. It
//! is plain Rust without reordering or fused operations, so all give the same bytes.

use super::measure::Errors;
use super::pack::Sink;
use super::{Undecodable, bounded, fast, narrow};

/// A set of instructions that this file has code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// What every processor of the target has.
    Baseline,
    /// AVX2 and the bit operations that came with it.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 as processors have it that do not slow down for it (Ice Lake, Zen 4 and newer, all with VBMI2).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best one of this processor.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi2")
            {
                return Self::Avx512;
            }
            return Self::Avx2;
        }
        Self::Baseline
    }
}

/// Makes a function that runs `$body` compiled for a given [`Isa`].
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:path) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "a call of a function that was compiled for the processor at hand")]
        #[allow(clippy::too_many_arguments, reason = "those of the body, and the instructions")]
        pub(super) fn $name(isa: Isa, $($arg: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
                #[allow(clippy::too_many_arguments, reason = "those of the body")]
                fn avx2($($arg: $type),*) -> $result {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")]
                #[allow(clippy::too_many_arguments, reason = "those of the body")]
                fn avx512($($arg: $type),*) -> $result {
                    $body($($arg),*)
                }
                match (isa, Isa::detect()) {
                    // SAFETY: the processor has what the function was compiled for, `detect` has just looked.
                    (Isa::Avx512, Isa::Avx512) => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above; what has AVX-512 has AVX2.
                    (Isa::Avx2, Isa::Avx2 | Isa::Avx512) => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}

for_each_isa! {
    /// [`bounded::encode`].
    encode_bounded(s: &mut bounded::Scratch, bound: f32, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors = bounded::encode
}
for_each_isa! {
    /// [`bounded::decode`].
    decode_bounded(row_len: usize, body: &[u8], out: &mut [u8]) -> Result<(), Undecodable> = bounded::decode
}
for_each_isa! {
    /// [`fast::encode`].
    encode_fast(sink: &mut Sink, bound: f32, bits: u32, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors = fast::encode
}
for_each_isa! {
    /// [`fast::decode`].
    decode_fast(row_len: usize, body: &[u8], out: &mut [u8]) -> Result<(), Undecodable> = fast::decode
}
for_each_isa! {
    /// [`narrow::halves`].
    halves(row_len: usize, data: &[u8], out: &mut Vec<u8>) -> (u64, Errors) = narrow::halves
}
for_each_isa! {
    /// [`narrow::bf16s`].
    bf16s(row_len: usize, data: &[u8], out: &mut Vec<u8>) -> (u64, Errors) = narrow::bf16s
}
for_each_isa! {
    /// [`narrow::widen`].
    widen(half: bool, data: &[u8], out: &mut [u8]) -> () = narrow::widen
}
