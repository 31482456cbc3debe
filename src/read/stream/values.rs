//! Values of a tensor packet: decoded as the host had them, or widened to one float type.

use half::{bf16, f16};

use crate::codec::{self, DType};
use crate::format::stream::{Malformed, TensorMeta};

/// Appends the values of a packet, little-endian, type `meta.dtype`, to `out`.
///
/// # Errors
/// When description and body do not fit together.
pub fn decode(meta: &TensorMeta, body: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    meta.check(body.len())?;
    let before = out.len();
    let n = meta.n_values() as usize;
    let decoded = codec::decode(meta.codec, meta.dtype, meta.row_len as usize, n, body, out);
    decoded.map_err(|e| {
        out.truncate(before);
        Malformed(format!("the {} body cannot be decoded: {e}", meta.codec.name()))
    })
}

/// Applies `$f` to each value of `$bytes`.
macro_rules! each_value {
    ($dtype:expr, $bytes:expr, $out:expr, $to:ty) => {
        match $dtype {
            DType::F32 => extend($out, $bytes, |b| f32::from_le_bytes(b) as $to),
            DType::F16 => extend($out, $bytes, |b| <$to>::from(f16::from_le_bytes(b))),
            DType::Bf16 => extend($out, $bytes, |b| <$to>::from(bf16::from_le_bytes(b))),
            DType::I32 => extend($out, $bytes, |b| i32::from_le_bytes(b) as $to),
            DType::I64 => extend($out, $bytes, |b| i64::from_le_bytes(b) as $to),
            DType::I16 => extend($out, $bytes, |b| <$to>::from(i16::from_le_bytes(b))),
            DType::I8 => extend($out, $bytes, |b| <$to>::from(i8::from_le_bytes(b))),
            DType::F64 => extend($out, $bytes, |b| f64::from_le_bytes(b) as $to),
        }
    };
}

fn extend<const N: usize, T>(out: &mut Vec<T>, bytes: &[u8], value: impl Fn([u8; N]) -> T) {
    out.extend(bytes.as_chunks().0.iter().map(|b| value(*b)));
}

/// Appends decoded values as `f32`; integers and `f64` are rounded.
pub fn to_f32(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) {
    each_value!(dtype, bytes, out, f32);
}

/// Appends decoded values as `f64`, exactly but for 64-bit integers beyond 2^53.
pub fn to_f64(dtype: DType, bytes: &[u8], out: &mut Vec<f64>) {
    each_value!(dtype, bytes, out, f64);
}

#[cfg(test)]
mod tests {
    use super::{to_f32, to_f64};
    use crate::codec::DType;

    #[test]
    fn every_type_keeps_its_value() {
        let cases: [(DType, &[u8]); 8] = [
            (DType::F32, &(-2.5f32).to_le_bytes()),
            (DType::F16, &half::f16::from_f32(-2.5).to_le_bytes()),
            (DType::Bf16, &half::bf16::from_f32(-2.5).to_le_bytes()),
            (DType::I32, &(-70_000i32).to_le_bytes()),
            (DType::I64, &(-(1i64 << 40)).to_le_bytes()),
            (DType::I16, &(-300i16).to_le_bytes()),
            (DType::I8, &(-3i8).to_le_bytes()),
            (DType::F64, &(-2.5f64).to_le_bytes()),
        ];
        let expected = [-2.5, -2.5, -2.5, -70_000.0, -1_099_511_627_776.0, -300.0, -3.0, -2.5];
        for ((dtype, bytes), value) in cases.into_iter().zip(expected) {
            let (mut narrow, mut wide) = (vec![], vec![]);
            to_f32(dtype, bytes, &mut narrow);
            to_f64(dtype, bytes, &mut wide);
            assert_eq!((wide, narrow), (vec![value], vec![value as f32]), "{dtype:?}");
        }
    }
}
