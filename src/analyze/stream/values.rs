//! Bytes of captured values as numbers.

use half::{bf16, f16};

use crate::codec::DType;

/// Values of `dtype` from little-endian `bytes` into `out`; the number of values written, which `out` limits.
pub fn widen(dtype: DType, bytes: &[u8], out: &mut [f64]) -> usize {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f64], value: impl Fn([u8; N]) -> f64) -> usize {
        let (values, _) = bytes.as_chunks::<N>();
        out.iter_mut().zip(values).map(|(out, bytes)| *out = value(*bytes)).count()
    }
    match dtype {
        DType::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
        DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
        DType::I32 => each(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        DType::I16 => each(bytes, out, |b| f64::from(i16::from_le_bytes(b))),
        DType::I8 => each(bytes, out, |[b]| f64::from(b.cast_signed())),
        DType::F64 => each(bytes, out, f64::from_le_bytes),
    }
}

/// Whether the type holds floating-point numbers.
#[must_use]
pub const fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::Bf16 | DType::F64)
}

#[cfg(test)]
mod tests {
    use super::widen;
    use crate::codec::DType;

    #[test]
    fn a_short_output_and_a_cut_value_are_no_panic() {
        let mut out = [0.0; 2];
        assert_eq!(widen(DType::I16, &[1, 0, 2, 0, 3, 0], &mut out), 2);
        assert_eq!(out, [1.0, 2.0]);
        assert_eq!(widen(DType::F32, &[0, 0, 128], &mut out), 0);
    }
}
