//! Codecs of the activation stream: the values of one tensor to bytes and back. Pure functions on slices, the same
//! bytes on every machine.
//!
//! Before it: `capture` (encodes) and `format::stream` (names the codec of a packet). After it: `read` (decodes). A
//! bound that a lossy codec promises is checked while encoding: a row that would break it gets a finer step, and the
//! error that was measured is reported.

mod bounded;
mod fast;
mod lz4;
mod measure;
mod narrow;
mod pack;
mod rows;
mod shuffle;
mod simd;
mod unary;
mod zstandard;

pub use rows::Errors;

/// How the values of a packet are stored. The numbers are written to files: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codec {
    /// As they are, in an LZ4 frame of stored blocks.
    None = 0,
    /// Lossless: bytes shuffled by significance, one LZ4 frame.
    Lz4 = 1,
    /// Lossless: bytes shuffled by significance, one Zstandard frame.
    Zstd = 2,
    /// Narrowed to half precision, saturating, in an LZ4 frame of stored blocks.
    F16 = 3,
    /// Narrowed to bfloat16, in an LZ4 frame of stored blocks.
    Bf16 = 4,
    /// Both bounds: row L2 and block maximum; entropy-coded.
    Bounded = 5,
    /// Block maximum only; ten bits a value.
    Fast = 6,
}

impl Codec {
    /// Every codec, at its own number.
    pub const ALL: [Self; 7] = [Self::None, Self::Lz4, Self::Zstd, Self::F16, Self::Bf16, Self::Bounded, Self::Fast];

    /// The word used in settings and outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Bounded => "bounded",
            Self::Fast => "fast",
        }
    }

    /// The codec of a name, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name().eq_ignore_ascii_case(text))
    }

    /// The codec of a number from a file.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether decoding gives back every bit.
    #[must_use]
    pub const fn is_lossless(self) -> bool {
        matches!(self, Self::None | Self::Lz4 | Self::Zstd)
    }
}

/// Type of the captured values, as ggml held them. The numbers are written to files: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32 = 0,
    /// Half precision.
    F16 = 1,
    /// bfloat16.
    Bf16 = 2,
    /// 32-bit integer (expert numbers, positions).
    I32 = 3,
    /// 64-bit integer.
    I64 = 4,
    /// 16-bit integer.
    I16 = 5,
    /// 8-bit integer.
    I8 = 6,
    /// 64-bit float.
    F64 = 7,
}

impl DType {
    /// Every type, at its own number.
    pub const ALL: [Self; 8] = [Self::F32, Self::F16, Self::Bf16, Self::I32, Self::I64, Self::I16, Self::I8, Self::F64];

    /// ggml's name of the type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::F64 => "f64",
        }
    }

    /// The type of a ggml name; `None` for quantised types, which are not captured.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == text)
    }

    /// The type of a number from a file.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Bytes of a value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// What to encode with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The codec that was asked for; where it does not fit the type, [`Encoder::encode`] takes a lossless one
    /// and says so.
    pub codec: Codec,
    /// Bound of `bounded` (both norms) and of `fast` (block maximum).
    pub error_bound: f32,
}

impl Default for Params {
    fn default() -> Self {
        Self { codec: Codec::Zstd, error_bound: 1e-3 }
    }
}

/// What encoding did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// The codec that was used.
    pub codec: Codec,
    /// Largest relative L2 error of a row; 0 for lossless codecs.
    pub row_l2: f32,
    /// Largest error of a value against the largest magnitude of its block of 64; 0 for lossless codecs.
    pub block_max: f32,
    /// Values that did not fit the narrower type and were stored as its largest.
    pub saturated: u64,
}

/// Encodes; keeps its scratch memory (about twice the largest packet that it has seen), so one for each worker.
#[derive(Default)]
pub struct Encoder {
    /// Shuffled or narrowed values.
    values: Vec<u8>,
    lz4: lz4::Compressor,
    zstd: zstandard::Compressor,
    bounded: bounded::Scratch,
    fast: pack::Sink,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Sets the scratch memory aside that [`Self::encode`] needs for `bytes` of values. False if there is none.
    #[must_use]
    pub fn reserve(&mut self, params: &Params, bytes: usize) -> bool {
        let room = |list: &mut Vec<u8>, bytes: usize| list.try_reserve_exact(bytes.saturating_sub(list.len())).is_ok();
        match params.codec {
            Codec::None => true,
            Codec::Lz4 => room(&mut self.values, bytes) && self.lz4.reserve(bytes),
            // Where there is no memory for a context, LZ4 takes its place.
            _ => room(&mut self.values, bytes) && (self.zstd.has_context() || self.lz4.reserve(bytes)),
        }
    }

    /// Appends the encoded `data` (values of `dtype`, little-endian, rows of `row_len` values one after the
    /// other) to `out`.
    ///
    /// Lossy codecs take f32 only. Other types, rows that are too short for blocks, and a bound that leaves nothing to
    /// save are stored with [`Codec::Zstd`] instead; [`Encoded::codec`] says what was used.
    pub fn encode(&mut self, params: &Params, dtype: DType, row_len: usize, data: &[u8], out: &mut Vec<u8>) -> Encoded {
        self.encode_with(simd::Isa::detect(), params, dtype, row_len, data, out)
    }

    fn encode_with(
        &mut self,
        isa: simd::Isa,
        params: &Params,
        dtype: DType,
        row_len: usize,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Encoded {
        let codec = fitting(params, dtype, row_len, data.len());
        let mut done = Encoded { codec, row_l2: 0.0, block_max: 0.0, saturated: 0 };
        let mut errors = measure::Errors::default();
        match codec {
            Codec::None => lz4::store(data, out),
            Codec::Lz4 => {
                shuffle::shuffle(dtype.size(), data, &mut self.values);
                self.lz4.compress(&self.values, out);
            }
            Codec::Zstd => {
                shuffle::shuffle(dtype.size(), data, &mut self.values);
                if !self.zstd.compress(&self.values, out) {
                    // No memory for a context; LZ4 needs hardly any.
                    done.codec = Codec::Lz4;
                    self.lz4.compress(&self.values, out);
                }
            }
            Codec::F16 | Codec::Bf16 => {
                let narrow = if codec == Codec::F16 { simd::halves } else { simd::bf16s };
                (done.saturated, errors) = narrow(isa, row_len, data, &mut self.values);
                lz4::store(&self.values, out);
            }
            Codec::Bounded | Codec::Fast => {
                params.begin_rows(codec, out);
                errors = self.rows_with(isa, params, codec, row_len, data, out);
            }
        }
        (done.row_l2, done.block_max) = (errors.row as f32, errors.block as f32);
        done
    }
}

/// Bounds that are worth a lossy codec: below, a float has too few bits more than what would be stored; above,
/// nothing is left.
const LEAST_BOUND: f32 = 4e-6;
const MOST_BOUND: f32 = 0.5;

/// Rows below this many values are not cut into blocks: what is said of each block would outweigh what it saves.
const LEAST_ROW: usize = 16;

/// The codec that was asked for, or a lossless one where it does not fit.
fn fitting(params: &Params, dtype: DType, row_len: usize, bytes: usize) -> Codec {
    let fits = match params.codec {
        codec if codec.is_lossless() => true,
        _ if dtype != DType::F32 || !bytes.is_multiple_of(4) => false,
        Codec::F16 | Codec::Bf16 => true,
        _ => row_len >= LEAST_ROW && (LEAST_BOUND..=MOST_BOUND).contains(&params.error_bound),
    };
    if fits { params.codec } else { Codec::Zstd }
}

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable(pub String);

impl std::fmt::Display for Undecodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Appends the values of a packet body to `out`, as [`Encoder::encode`] got them (narrowed ones widened again).
/// `n_values` comes from the packet's metadata and is checked against the body; no bytes make this panic, or allocate
/// more than twice what the values need. After an error `out` is as it was.
///
/// # Errors
/// If the body is not one of that codec with that many values.
pub fn decode(
    codec: Codec,
    dtype: DType,
    row_len: usize,
    n_values: usize,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Undecodable> {
    let start = out.len();
    let decoded = decode_with(simd::Isa::detect(), codec, dtype, row_len, n_values, body, out);
    if decoded.is_err() {
        out.truncate(start);
    }
    decoded
}

fn decode_with(
    isa: simd::Isa,
    codec: Codec,
    dtype: DType,
    row_len: usize,
    n_values: usize,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Undecodable> {
    if !codec.is_lossless() && dtype != DType::F32 {
        return Err(Undecodable(format!("{} is a codec of f32 values, not of {}", codec.name(), dtype.name())));
    }
    if !can_hold(codec, dtype, row_len, n_values, body.len()) {
        return Err(Undecodable(format!("{}: {} bytes cannot hold {n_values} values", codec.name(), body.len())));
    }
    let start = out.len();
    let room = n_values.checked_mul(dtype.size()).filter(|&bytes| out.try_reserve(bytes).is_ok());
    let bytes = room.ok_or_else(|| Undecodable(format!("no memory for {n_values} values")))?;
    match codec {
        Codec::Lz4 | Codec::Zstd => {
            let mut planes = zeros(bytes)?;
            if codec == Codec::Lz4 {
                lz4::decompress(body, &mut planes)?;
            } else {
                zstandard::decompress(body, &mut planes)?;
            }
            shuffle::unshuffle(dtype.size(), &planes, out);
            return Ok(());
        }
        Codec::F16 | Codec::Bf16 => {
            let mut narrow = zeros(bytes / 2)?;
            lz4::decompress(body, &mut narrow)?;
            out.resize(start + bytes, 0);
            simd::widen(isa, codec == Codec::F16, &narrow, out.get_mut(start..).unwrap_or_default());
            return Ok(());
        }
        _ => {}
    }
    out.resize(start + bytes, 0);
    let values = out.get_mut(start..).unwrap_or_default();
    match codec {
        Codec::Bounded => simd::decode_bounded(isa, row_len, body, values),
        Codec::Fast => simd::decode_fast(isa, row_len, body, values),
        _ => lz4::decompress(body, values),
    }
}

/// Bytes that a Zstandard block gives at most, and the fewest that it takes: three of its header, one that is repeated.
const ZSTD_BLOCK: (usize, usize) = (128 << 10, 4);

/// Whether a body of `bytes` can hold so many values: what each codec makes of zeros, the shortest there is. Memory is
/// set aside only if so.
#[must_use]
pub const fn can_hold(codec: Codec, dtype: DType, row_len: usize, n_values: usize, bytes: usize) -> bool {
    let Some(size) = n_values.checked_mul(dtype.size()) else { return false };
    match codec {
        // These stand in an LZ4 frame, whose blocks other writers may compress. A byte of a run stands for 255 at most.
        Codec::None | Codec::Lz4 => size / 255 <= bytes,
        Codec::F16 | Codec::Bf16 => n_values / 255 <= bytes / 2,
        Codec::Zstd => size.div_ceil(ZSTD_BLOCK.0) <= bytes / ZSTD_BLOCK.1,
        // A block of 64 takes two bytes, a row of `bounded` does.
        Codec::Fast => n_values / 32 <= bytes,
        Codec::Bounded => n_values.div_ceil(if row_len == 0 { 1 } else { row_len }) <= bytes / 2,
    }
}

/// Zeros, or an error where there is no memory.
fn zeros(len: usize) -> Result<Vec<u8>, Undecodable> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).map_err(|_| Undecodable(format!("no memory for {len} bytes")))?;
    zeros.resize(len, 0);
    Ok(zeros)
}

#[cfg(test)]
mod tests;
