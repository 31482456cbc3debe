//! What the host hands over: the tensors of a step, and where their values are.

use std::sync::Arc;

use super::account::Amount;
use super::pool::Buffer;
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

/// One tensor of a step, as it is in each step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Which tensor: an index into the table's descriptions.
    pub spec: u32,
    /// Bytes of its values, however they lie in the buffer.
    pub len: usize,
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

impl Piece {
    pub(super) fn amount(&self) -> Amount {
        Amount::new(u64::from(self.completes), self.len as u64)
    }

    /// Whether it has the bytes that its shape says, in values of so many bytes each.
    fn is_whole(&self, size: usize) -> bool {
        let values = self.ne.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        values.and_then(|n| n.checked_mul(size)) == Some(self.len)
    }
}

/// Where a piece is in one step.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// In which of [`Job::data`].
    pub buffer: u8,
    /// Where it begins there.
    pub offset: usize,
    /// How it lies there.
    pub form: Form,
}

/// How a piece lies in its buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Its values as they are.
    Values,
    /// Its rows in so many bytes of this codec, with these errors: those of the pipeline's settings
    /// (`Pipeline::params`).
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

/// The tensors of a step. Steps of one graph share a table, so that nothing is looked up for each tensor of each of
/// them.
#[derive(Debug)]
pub struct Table {
    specs: Arc<[Arc<Spec>]>,
    pieces: Vec<Piece>,
    amount: Amount,
    /// Each piece has its description, and the bytes that its shape says.
    is_sound: bool,
}

impl Table {
    /// Of pieces that refer to `specs`.
    #[must_use]
    pub fn new(specs: Arc<[Arc<Spec>]>, pieces: Vec<Piece>) -> Self {
        let mut table = Self { specs, pieces, amount: Amount::default(), is_sound: true };
        table.pieces.iter().for_each(|piece| table.amount += piece.amount());
        table.is_sound = table.pieces.iter().all(|piece| table.is_sound(piece));
        table
    }

    /// Its tensors.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// All of them together.
    pub(super) const fn amount(&self) -> Amount {
        self.amount
    }

    /// What a piece of it is.
    pub(super) fn spec(&self, piece: &Piece) -> Option<&Arc<Spec>> {
        self.specs.get(piece.spec as usize)
    }

    fn is_sound(&self, piece: &Piece) -> bool {
        self.spec(piece).is_some_and(|spec| piece.is_whole(spec.dtype.size()))
    }
}

/// What a step of the host gave, or a part of it.
#[derive(Debug)]
pub struct Job {
    /// Number of the step in the event log.
    pub step: u64,
    /// When it was read, CLOCK_MONOTONIC.
    pub t_ns: u64,
    /// Its tensors; the same table from step to step costs least.
    pub table: Arc<Table>,
    /// Where each of them is.
    pub places: Vec<Place>,
    /// Tables of tokens that pieces refer to.
    pub row_sets: Vec<Arc<[Row]>>,
    /// The values.
    pub data: Vec<Buffer>,
    /// Tokens of the step, in one of its jobs only.
    pub tokens: u32,
}

impl Job {
    /// Bytes of its buffers.
    pub(super) fn bytes(&self) -> usize {
        self.data.iter().map(|buffer| buffer.len()).sum()
    }

    /// Bytes of its values that are not encoded.
    pub(super) fn raw(&self) -> usize {
        let raw = |(piece, at): (&Piece, &Place)| if at.form == Form::Values { piece.len } else { 0 };
        self.table.pieces.iter().zip(&self.places).map(raw).sum()
    }

    /// Leaves out what cannot be: pieces outside of their buffers, without a place, or of another size than their
    /// shape's. `lost`: each of them.
    pub(super) fn keep_sound(&mut self, mut lost: impl FnMut(Amount)) {
        let table = &self.table;
        let is_inside = |piece: &Piece, place: &Place| {
            let room = self.data.get(usize::from(place.buffer)).map_or(0, |buffer| buffer.len());
            place.offset.checked_add(place.form.stored(piece.len)).is_some_and(|end| end <= room)
        };
        let pairs = || table.pieces.iter().zip(&self.places);
        if table.is_sound && table.pieces.len() == self.places.len() && pairs().all(|(p, at)| is_inside(p, at)) {
            return;
        }
        let (mut pieces, mut places) = (Vec::new(), Vec::new());
        for (piece, place) in pairs() {
            if table.is_sound(piece) && is_inside(piece, place) {
                pieces.push(piece.clone());
                places.push(*place);
            } else {
                lost(piece.amount());
            }
        }
        table.pieces.iter().skip(self.places.len()).for_each(|piece| lost(piece.amount()));
        (self.table, self.places) = (Arc::new(Table::new(Arc::clone(&table.specs), pieces)), places);
    }
}
