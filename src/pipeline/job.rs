//! What the host hands over: the tensors of a step, and where their values are.

use std::sync::Arc;

use super::{Amount, Buffer};
use crate::codec::{Codec, DType, Errors};
use crate::format::stream::{Route, Row, Slice};

/// A tensor of the host's graphs, described once.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Name of its packets, unique for the tensor.
    pub name: String,
    /// ggml's name.
    pub tensor: String,
    /// Operation (`ggml_op_desc`).
    pub op: String,
    /// Block of the model.
    pub layer: Option<i32>,
    /// `graph::class::Component` as a number.
    pub component: u8,
    /// Which of the nodes with this name and operation, from 0.
    pub occurrence: u16,
    /// Type of the values.
    pub dtype: DType,
    /// Elements of each row that are stored; `None` for all.
    pub slice: Option<Slice>,
}

/// One tensor of a step.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which tensor: an index into [`Job::specs`].
    pub spec: u32,
    /// In which of [`Job::data`] it is.
    pub buffer: u8,
    /// Where it begins there.
    pub offset: usize,
    /// Bytes of its values, however they lie there.
    pub len: usize,
    /// How they lie there.
    pub form: Form,
    /// Their shape.
    pub ne: [u32; 4],
    /// Which dimension counts tokens; 0 if none does.
    pub token_dim: u8,
    /// Whose rows they are: an index into [`Job::row_sets`]; `None` if that is not known.
    pub rows: Option<u8>,
    /// How they were read.
    pub route: Route,
    /// The last (or only) piece of its tensor in this step: a tensor that needs several counts once.
    pub completes: bool,
}

/// How a piece lies in its buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Its values as they are.
    Values,
    /// Its rows in so many bytes of this codec, with these errors: those of the pipeline's settings ([`super::Pipeline::params`]).
    Rows(usize, Codec, Errors),
}

impl Form {
    /// Bytes that values of `len` bytes take so.
    pub(super) const fn stored(&self, len: usize) -> usize {
        match *self {
            Self::Values => len,
            Self::Rows(stored, ..) => stored,
        }
    }
}

impl Piece {
    /// Bytes in the buffer.
    pub(super) const fn stored(&self) -> usize {
        self.form.stored(self.len)
    }

    pub(super) fn amount(&self) -> Amount {
        Amount::new(u64::from(self.completes), self.len as u64)
    }
}

/// What a step of the host gave, or a part of it.
#[derive(Debug)]
pub struct Job {
    /// Number of the step in the event log.
    pub step: u64,
    /// When it was read, CLOCK_MONOTONIC.
    pub t_ns: u64,
    /// Tensors that pieces refer to; the same table from step to step costs least.
    pub specs: Arc<[Arc<Spec>]>,
    /// Tables of tokens that pieces refer to.
    pub row_sets: Vec<Arc<[Row]>>,
    /// The tensors.
    pub pieces: Vec<Piece>,
    /// Their values.
    pub data: Vec<Buffer>,
    /// Tokens of the step, in one of its jobs only.
    pub tokens: u32,
}

impl Job {
    /// Which tensor a piece of it is.
    pub(super) fn spec(&self, piece: &Piece) -> Option<&Arc<Spec>> {
        self.specs.get(piece.spec as usize)
    }

    /// Bytes of its buffers.
    pub(super) fn bytes(&self) -> usize {
        self.data.iter().map(|buffer| buffer.len()).sum()
    }
}
