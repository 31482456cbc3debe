//! What a description may claim: no more values than the packet's bytes can hold, and no more than a reader
//! can be asked to set memory aside for. Everything behind this check may count on it: a row has values, and
//! values have bytes.

use super::TensorMeta;
use super::varint::Malformed;
use crate::codec;

/// Bytes of values that a packet may have however far they shrank: four times what the writer puts into one.
pub const FREE_BYTES: u64 = 64 << 20;
/// Beyond that, bytes of values for each byte of the body. Real values shrink to a tenth, zeros to nothing.
pub const MOST_SHRUNK: u64 = 256;
/// Bytes of values beyond which no packet is read.
pub const MOST_BYTES: u64 = 1 << 32;

/// Most bytes of values that are read out of `stored` bytes.
#[must_use]
pub const fn most_bytes(stored: usize) -> u64 {
    let shrunk = (stored as u64).saturating_mul(MOST_SHRUNK);
    let most = if shrunk > FREE_BYTES { shrunk } else { FREE_BYTES };
    if most < MOST_BYTES { most } else { MOST_BYTES }
}

impl TensorMeta {
    /// Whether a body of `stored` bytes can hold what is described.
    ///
    /// # Errors
    /// When it cannot, or should not be asked to.
    pub fn check(&self, stored: usize) -> Result<(), Malformed> {
        if self.parts.iter().any(|part| part.ne[0] == 0 && part.n_rows() > 0) {
            return Err(Malformed::new("rows without values"));
        }
        let values = self.n_values();
        if values.saturating_mul(self.dtype.size() as u64) > most_bytes(stored) {
            return Err(Malformed::new(format!(
                "{values} values are more than this library reads out of {stored} bytes"
            )));
        }
        if values > 0 && !codec::can_hold(self.codec, self.dtype, self.row_len as usize, values as usize, stored) {
            let codec = self.codec.name();
            return Err(Malformed::new(format!("{values} values cannot stand in {stored} bytes of codec {codec}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::most_bytes;
    use crate::codec::{Codec, DType, Encoder, Params};
    use crate::format::stream::{TensorMeta, meta};

    /// A description of `rows` rows of `width` values.
    fn described(codec: Codec, dtype: DType, row_len: u32, width: u32, rows: u32) -> TensorMeta {
        let mut meta = TensorMeta { codec, dtype, row_len, slice: None, ..meta::tests::meta() };
        meta.parts.truncate(1);
        meta.parts[0].rows.clear();
        (meta.parts[0].ne, meta.parts[0].token_dim) = ([width, rows, 1, 1], 1);
        meta
    }

    #[test]
    fn whatever_a_codec_makes_of_zeros_is_believed() {
        let mut encoder = Encoder::default();
        for (width, rows) in [(1, 1), (1, 5000), (16, 1), (64, 3), (576, 40), (100_003, 7), (4_000_000, 1)] {
            let zeros = vec![0; (width * rows * 4) as usize];
            for codec in Codec::ALL {
                let mut body = Vec::new();
                let params = Params { codec, error_bound: 1e-3 };
                let done = encoder.encode(&params, DType::F32, width as usize, &zeros, &mut body);
                let meta = described(done.codec, DType::F32, width, width, rows);
                assert_eq!(meta.check(body.len()), Ok(()), "{} of {width} x {rows}", codec.name());
            }
        }
        // No values need no bytes.
        assert_eq!(described(Codec::Bounded, DType::F32, 576, 576, 0).check(0), Ok(()));
    }

    #[test]
    fn what_cannot_be_there_is_refused() {
        let why = |meta: &TensorMeta, stored| meta.check(stored).unwrap_err().to_string();
        assert_eq!(why(&described(Codec::Zstd, DType::F32, 1, 0, u32::MAX), 100), "rows without values");
        for (codec, row_len) in [(Codec::Zstd, 1), (Codec::Bounded, u32::MAX), (Codec::Lz4, 1), (Codec::None, 1)] {
            let bomb = described(codec, DType::F32, row_len, 1 << 15, 1 << 15);
            assert!(why(&bomb, 400).contains("more than this library reads out of 400 bytes"), "{}", codec.name());
        }
        // Within what is read in any case, but not what the codec can make.
        for (codec, row_len) in
            [(Codec::Zstd, 1), (Codec::Bounded, 64), (Codec::Lz4, 1), (Codec::None, 1), (Codec::Fast, 64)]
        {
            let bomb = described(codec, DType::F32, row_len, 1 << 12, 1 << 12);
            assert!(why(&bomb, 400).contains("cannot stand in 400 bytes"), "{}", codec.name());
        }
        let over = described(Codec::None, DType::F64, 1, u32::MAX, u32::MAX);
        assert!(why(&over, usize::MAX).contains("more than this library reads"));
        assert_eq!((most_bytes(0), most_bytes(1 << 20), most_bytes(usize::MAX)), (64 << 20, 256 << 20, 1 << 32));
    }
}
