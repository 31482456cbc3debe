//! Element types of exported arrays and the way to them.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::analyze::stream::values;
use crate::codec::DType;
use crate::read::stream::to_f32;

/// The float type that was asked for; integers stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// 32-bit floats.
    F32,
    /// Half precision.
    F16,
}

/// The type that values of `source` get. Without a wish they keep theirs, but for bfloat16, which NumPy cannot name: a
/// file with one such array could not be loaded at all.
#[must_use]
pub fn target(source: DType, wanted: Option<Wanted>) -> DType {
    match wanted {
        _ if !values::is_float(source) => source,
        Some(Wanted::F32) => DType::F32,
        Some(Wanted::F16) => DType::F16,
        None if source == DType::Bf16 => DType::F32,
        None => source,
    }
}

/// Turns values of one float type into another's bytes; keeps the memory it needs.
#[derive(Debug, Default)]
pub struct Converter {
    floats: Vec<f32>,
    halves: Vec<f16>,
    bytes: Vec<u8>,
    /// Finite values that half precision could not hold; they became its largest.
    pub saturated: u64,
}

impl Converter {
    /// `bytes` (values of `source`) as values of `target`, which [`target`] chose.
    pub fn convert<'a>(&'a mut self, source: DType, target: DType, bytes: &'a [u8]) -> &'a [u8] {
        if source == target {
            return bytes;
        }
        self.floats.clear();
        to_f32(source, bytes, &mut self.floats);
        self.bytes.clear();
        if target == DType::F16 {
            self.halves.clear();
            self.halves.resize(self.floats.len(), f16::ZERO);
            self.halves.convert_from_f32_slice(&self.floats);
            for (half, float) in self.halves.iter_mut().zip(&self.floats) {
                if half.is_infinite() && float.is_finite() {
                    *half = if half.is_sign_negative() { f16::MIN } else { f16::MAX };
                    self.saturated += 1;
                }
            }
            self.bytes.extend(self.halves.iter().flat_map(|h| h.to_le_bytes()));
        } else {
            self.bytes.extend(self.floats.iter().flat_map(|f| f.to_le_bytes()));
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Converter, Wanted, target};
    use crate::codec::DType;
    use half::f16;

    #[test]
    fn integers_stay_and_floats_go_where_they_are_wanted() {
        assert_eq!(target(DType::I32, Some(Wanted::F16)), DType::I32);
        assert_eq!(target(DType::F32, Some(Wanted::F16)), DType::F16);
        assert_eq!(target(DType::F64, Some(Wanted::F32)), DType::F32);
        assert_eq!((target(DType::Bf16, None), target(DType::F16, None)), (DType::F32, DType::F16));
    }

    #[test]
    fn what_half_precision_cannot_hold_becomes_its_largest_and_is_counted() {
        let source: Vec<u8> = [1.0, 65504.0, 65520.0, -1e9, f32::INFINITY, f32::NAN, 1e-9]
            .iter()
            .flat_map(|f: &f32| f.to_le_bytes())
            .collect();
        let mut converter = Converter::default();
        let halves: Vec<f32> = converter
            .convert(DType::F32, DType::F16, &source)
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect();
        assert_eq!(halves[..5], [1.0, 65504.0, 65504.0, -65504.0, f32::INFINITY]);
        assert!(halves[5].is_nan() && halves[6] == 0.0);
        assert_eq!(converter.saturated, 2);
    }
}
