//! Codecs whose rows stand alone: rows can be encoded where they are made, and put behind each other later. The body is
//! the one that [`Encoder::encode`] makes of all of them at once, byte by byte.

use super::{Codec, DType, Encoder, Params, bounded, fast, fitting, simd};

pub use super::measure::Errors;

impl Params {
    /// The codec that values get, if it is one whose rows stand alone.
    #[must_use]
    pub fn row_codec(&self, dtype: DType, row_len: usize, bytes: usize) -> Option<Codec> {
        Some(fitting(self, dtype, row_len, bytes)).filter(|codec| matches!(codec, Codec::Bounded | Codec::Fast))
    }

    /// Appends what stands before the first row.
    pub fn begin_rows(&self, codec: Codec, out: &mut Vec<u8>) {
        match codec {
            Codec::Bounded => bounded::begin(out),
            Codec::Fast => fast::begin(fast::bits_for(self.error_bound), out),
            _ => {}
        }
    }
}

impl Encoder {
    /// Appends whole rows of `row_len` f32 values to a body that [`Params::begin_rows`] began with the same codec.
    pub fn rows(&mut self, params: &Params, codec: Codec, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Errors {
        self.rows_with(simd::Isa::detect(), params, codec, row_len, data, out)
    }

    pub(super) fn rows_with(
        &mut self,
        isa: simd::Isa,
        params: &Params,
        codec: Codec,
        row_len: usize,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Errors {
        let bound = params.error_bound;
        match codec {
            Codec::Bounded => simd::encode_bounded(isa, &mut self.bounded, bound, row_len, data, out),
            Codec::Fast => simd::encode_fast(isa, &mut self.fast, bound, fast::bits_for(bound), row_len, data, out),
            _ => Errors::default(),
        }
    }
}
