//! The activation stream, byte by byte: packets of the older system's framing, each carrying its own description
//! behind its data.
//!
//! docs/STREAM-FORMAT.md is the specification; this is its one implementation, used by writer and reader. No thread, no
//! file, no clock.

mod index;
mod limits;
mod meta;
mod packet;
mod parse;
mod rows;
mod tokens;
mod varint;
mod write;

pub use index::{Entry as IndexEntry, Index, IndexBuilder, MOST_ENTRIES};
pub use limits::most_bytes;
pub use packet::{
    END_MARK, FRAME_LEN, Frame, LEAST_PACKET, LEAST_TRAILER, NO_VALUES, OpenPacket, RawPacket, TAIL_LEN, TRAILER_MAGIC,
    TRAILER_START_LEN, Tail, begin, read_trailer, set_sequence,
};
pub use parse::{Content, Packet, Unreadable};
pub use rows::RowsBlob;
pub use varint::Malformed;
pub use write::{
    FORMAT_NAME, finish_tensor, write_account, write_checkpoint, write_end, write_header, write_index, write_tensor,
    write_tokens,
};

use crate::codec::{Codec, DType};

/// Version of the format, in every packet.
pub const STREAM_VERSION: u8 = 1;

/// What a packet is. The numbers are written to files: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Begins a file, and each continuation of one.
    Header = 0,
    /// Values of one tensor.
    Tensor = 1,
    /// Chosen tokens.
    Tokens = 2,
    /// Running totals.
    Account = 3,
    /// Where a capture may go on.
    Checkpoint = 4,
    /// Where the packets are.
    Index = 5,
    /// The clean end.
    End = 6,
}

impl Kind {
    /// Every kind, at its own number.
    pub const ALL: [Self; 7] =
        [Self::Header, Self::Tensor, Self::Tokens, Self::Account, Self::Checkpoint, Self::Index, Self::End];

    /// The kind of a number from a file.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The word used in outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Tensor => "tensor",
            Self::Tokens => "tokens",
            Self::Account => "account",
            Self::Checkpoint => "checkpoint",
            Self::Index => "index",
            Self::End => "end",
        }
    }

    /// Name of its packets; those of a tensor have the tensor's.
    #[must_use]
    pub const fn packet_name(self) -> Option<&'static str> {
        match self {
            Self::Header => Some("llama-resource-stream"),
            Self::Tensor => None,
            Self::Tokens => Some("llama-resource-tokens"),
            Self::Account => Some("llama-resource-account"),
            Self::Checkpoint => Some("llama-resource-checkpoint"),
            Self::Index => Some("llama-resource-index"),
            Self::End => Some("llama-resource-end"),
        }
    }
}

/// How a tensor was read out of the host. The numbers are written to files: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// Kept by the allocator and read after the graph.
    Retain = 0,
    /// Read in the eval callback, right after it was computed.
    Callback = 1,
    /// Imported from a stream without metadata, or handed in through the C API.
    Imported = 2,
}

impl Route {
    /// Every route, at its own number.
    pub const ALL: [Self; 3] = [Self::Retain, Self::Callback, Self::Imported];

    /// The route of a number from a file.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The word used in settings and outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Callback => "callback",
            Self::Imported => "imported",
        }
    }
}

/// One token's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Sequence (the server's slot); -1 where the host did not tell.
    pub seq: i32,
    /// Position in the sequence; -1 where not known.
    pub pos: i32,
    /// Token id; -1 for an embedding, or where not known.
    pub token: i32,
    /// Number of the request in the event log; 0 where there is none.
    pub request: u64,
}

/// What one step (ubatch) gave of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of the ubatch in the event log.
    pub step: u64,
    /// When it was read, CLOCK_MONOTONIC.
    pub t_ns: u64,
    /// Shape in ggml's order, of what is stored (after row filter and slice); `ne[0]` is the same in all parts
    /// of a packet.
    pub ne: [u32; 4],
    /// Which dimension counts tokens, 1 to 3; 0 if none does (then `rows` is empty).
    pub token_dim: u8,
    /// The tokens along `token_dim`, `ne[token_dim]` of them, or none if they are not known.
    pub rows: Vec<Row>,
}

impl Part {
    /// Number of values of the step; saturating.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.ne.iter().fold(1, |product, &n| product.saturating_mul(u64::from(n)))
    }

    /// Number of rows of `ne[0]` values; saturating.
    #[must_use]
    pub fn n_rows(&self) -> u64 {
        self.ne[1..].iter().fold(1, |product, &n| product.saturating_mul(u64::from(n)))
    }

    /// The token that row `r` of [`Self::n_rows`] belongs to; `None` where it is not known.
    #[must_use]
    pub fn row(&self, r: u64) -> Option<&Row> {
        let dim = usize::from(self.token_dim);
        let tokens = u64::from(*self.ne.get(dim)?);
        let below = self.ne.get(1..dim)?.iter().fold(1u64, |product, &n| product.saturating_mul(u64::from(n)));
        let token = r.checked_div(below)?.checked_rem(tokens)?;
        self.rows.get(usize::try_from(token).ok()?)
    }
}

/// Which elements of each row are stored, where not all are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// First element.
    pub start: u32,
    /// Distance of the elements.
    pub step: u32,
    /// Length of the whole row in the host.
    pub full: u32,
}

/// Description of a packet of activations: everything but name and values.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMeta {
    /// ggml's name of the tensor. The packet's own name is the same, but for tensors that share a name within a graph.
    pub tensor: String,
    /// Operation (`ggml_op_desc`).
    pub op: String,
    /// Block of the model.
    pub layer: Option<i32>,
    /// `graph::component::Component` as a number.
    pub component: u8,
    /// Which of the nodes with this name and operation, from 0.
    pub occurrence: u16,
    /// Type of the values.
    pub dtype: DType,
    /// How the values are stored.
    pub codec: Codec,
    /// How they were read.
    pub route: Route,
    /// Values in one row as the codec saw it.
    pub row_len: u32,
    /// Bound that the codec kept; 0 for lossless codecs.
    pub error_bound: f32,
    /// Largest relative L2 error of a row.
    pub row_l2: f32,
    /// Largest error against the magnitude of a block of 64.
    pub block_max: f32,
    /// Values that did not fit the narrower type.
    pub saturated: u64,
    /// Elements of each row that are stored; `None` for all.
    pub slice: Option<Slice>,
    /// Steps, in capture order; their values follow each other.
    pub parts: Vec<Part>,
}

impl TensorMeta {
    /// Number of values in the packet; the largest number where a damaged or hostile description has more.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.n_values()))
    }
}

/// A token that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Sequence.
    pub seq: i32,
    /// Position that it will have; -1 where not known.
    pub pos: i32,
    /// Token id.
    pub token: i32,
    /// Request in the event log; 0 where there is none.
    pub request: u64,
    /// Its probability, where the sampler computed one.
    pub probability: Option<f32>,
    /// When, CLOCK_MONOTONIC.
    pub t_ns: u64,
}
