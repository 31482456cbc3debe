//! Pieces of a step to chunks that fit a packet: whole tensors where they do, runs of rows where they do not.

use std::ops::Range;
use std::sync::Arc;

use super::job::{Form, Job, Piece};
use crate::format::stream::Row;

/// A piece of a job in a packet.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) job: Arc<Job>,
    /// Which of its pieces.
    pub(super) piece: u32,
    /// The run of rows, where it is not the whole piece.
    pub(super) part: Option<Box<Run>>,
}

/// A part of a piece.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Where it begins, in bytes of the piece.
    at: usize,
    pub(super) len: usize,
    pub(super) ne: [u32; 4],
    /// Of the tokens of the piece.
    tokens: Range<usize>,
    /// It is the last of its piece.
    pub(super) last: bool,
}

/// A piece of one job, or a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    /// The values, or their rows.
    pub(super) data: &'a [u8],
    /// How they lie there.
    pub(super) form: Form,
    pub(super) ne: [u32; 4],
    pub(super) token_dim: u8,
    /// The tokens along `token_dim`, or none.
    pub(super) rows: &'a [Row],
}

impl Chunk {
    /// What it refers to.
    pub(super) fn view(&self) -> Option<View<'_>> {
        let (job, part) = (&*self.job, self.part.as_deref());
        let (place, piece) = (job.places.get(self.piece as usize)?, job.table.pieces().get(self.piece as usize)?);
        let (at, len, ne) = part.map_or((0, piece.len, piece.ne), |p| (p.at, p.len, p.ne));
        let begin = place.offset + at;
        let rows = tokens(job, piece).unwrap_or_default();
        Some(View {
            job,
            data: job.data.get(usize::from(place.buffer))?.get(begin..begin + place.form.stored(len))?,
            form: place.form,
            ne,
            token_dim: piece.token_dim,
            rows: part.map_or(rows, |part| rows.get(part.tokens.clone()).unwrap_or_default()),
        })
    }
}

/// The tokens of a piece. A table of another length than the dimension that it describes says nothing that could be
/// trusted.
fn tokens<'a>(job: &'a Job, piece: &Piece) -> Option<&'a [Row]> {
    let count = piece.ne.get(usize::from(piece.token_dim)).map_or(0, |&n| n as usize);
    let rows = job.row_sets.get(usize::from(piece.rows?))?;
    (piece.token_dim > 0 && rows.len() == count).then_some(rows)
}

/// Values in a row as codecs see it: all of a token where tokens are the outermost dimension in use, else the innermost
/// dimension.
#[must_use]
pub fn row_len(ne: &[u32; 4], token_dim: u8) -> u32 {
    let t = usize::from(token_dim);
    let outermost = t > 0 && ne.iter().skip(t + 1).all(|&n| n == 1);
    let dims = if outermost { t } else { 1 };
    ne.iter().take(dims).product()
}

/// Whether a piece of values of `size` bytes can be in packets of `most`: each of its rows can.
pub(super) fn fits(piece: &Piece, size: usize, most: usize) -> bool {
    piece.ne.first().map_or(0, |&n| n as usize) * size <= most
}

/// Hands runs of a piece's rows to `each`, none with more than `most` bytes if its rows have not.
pub(super) fn cut(piece: &Piece, most: usize, each: &mut impl FnMut(Run)) {
    let tokens = piece.ne.get(usize::from(piece.token_dim)).map_or(0, |&n| n as usize);
    let whole = Run { at: 0, len: piece.len, ne: piece.ne, tokens: 0..tokens, last: true };
    cut_run(whole, usize::from(piece.token_dim), most, each);
}

fn cut_run(run: Run, token_dim: usize, most: usize, each: &mut impl FnMut(Run)) {
    let outer = (1..4).rev().find(|&d| run.ne.get(d).is_some_and(|&n| n > 1));
    let Some(outer) = outer.filter(|_| run.len > most) else { return each(run) };
    let count = run.ne.get(outer).map_or(1, |&n| n as usize);
    let one = run.len / count;
    // At least one; if that is still too much, the next dimension is cut as well.
    let step = (most / one).clamp(1, count);
    for first in (0..count).step_by(step) {
        let n = step.min(count - first);
        let mut part = run.clone();
        if let Some(d) = part.ne.get_mut(outer) {
            *d = n as u32;
        }
        (part.at, part.len) = (run.at + first * one, n * one);
        part.last = run.last && first + n == count;
        if outer == token_dim {
            part.tokens = run.tokens.start + first..run.tokens.start + first + n;
        }
        cut_run(part, token_dim, most, each);
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, cut, fits, row_len};
    use crate::codec::DType;
    use crate::format::stream::{Route, Row};
    use crate::pipeline::pool::Pool;
    use crate::pipeline::{Form, Job, Piece, Place, Spec, Table};
    use std::sync::Arc;

    fn job(ne: [u32; 4], token_dim: u8) -> Job {
        let len = ne.iter().product::<u32>() as usize * 4;
        let mut data = Pool::new(1 << 20, 1 << 20, Arc::default()).take(len).unwrap();
        data.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 4) as u8);
        let spec = Spec {
            name: "x".into(),
            tensor: "x".into(),
            op: "ADD".into(),
            layer: None,
            component: 0,
            occurrence: 0,
            dtype: DType::F32,
            slice: None,
        };
        let rows = (0..ne[usize::from(token_dim)]).map(|i| Row { seq: 0, pos: i as i32, token: -1, request: 0 });
        let (rows, route) = (Some(rows.collect()), Route::Retain);
        let piece = Piece { spec: 0, len, ne, token_dim, rows: Some(0), route, completes: true };
        let table = Arc::new(Table::new([Arc::new(spec)].into(), vec![piece]));
        let places = vec![Place { buffer: 0, offset: 0, form: Form::Values }];
        Job { step: 1, t_ns: 1, table, places, row_sets: rows.into_iter().collect(), data: vec![data], tokens: 1 }
    }

    /// (bytes, ne, first position, tensors) of each chunk; their values follow each other.
    fn chunks(ne: [u32; 4], token_dim: u8, most: usize) -> Vec<(usize, [u32; 4], i32, u64)> {
        let job = Arc::new(job(ne, token_dim));
        let (mut out, mut bytes) = (Vec::new(), Vec::new());
        assert!(fits(&job.table.pieces()[0], 4, most));
        cut(&job.table.pieces()[0], most, &mut |run| {
            let (len, last) = (run.len, run.last);
            let chunk = Chunk { job: Arc::clone(&job), piece: 0, part: Some(Box::new(run)) };
            let v = chunk.view().unwrap();
            assert_eq!(v.rows.len(), v.ne[usize::from(token_dim)] as usize);
            assert_eq!((v.ne.iter().product::<u32>() as usize * 4, v.data.len()), (len, len));
            bytes.extend_from_slice(v.data);
            out.push((len, v.ne, v.rows[0].pos, u64::from(last)));
        });
        assert_eq!(bytes, job.data[0].to_vec());
        assert!(out.iter().all(|c| c.0 <= most));
        out
    }

    #[test]
    fn a_tensor_that_fits_stays_whole() {
        assert_eq!(chunks([4, 3, 1, 1], 1, 48), [(48, [4, 3, 1, 1], 0, 1)]);
    }

    #[test]
    fn rows_are_cut_along_the_outermost_dimension() {
        let want = [(32, [4, 2, 1, 1], 0, 0), (32, [4, 2, 1, 1], 2, 0), (16, [4, 1, 1, 1], 4, 1)];
        assert_eq!(chunks([4, 5, 1, 1], 1, 40), want);
        // Heads of a token stay together as long as they fit.
        assert_eq!(chunks([2, 3, 4, 1], 2, 48), [(48, [2, 3, 2, 1], 0, 0), (48, [2, 3, 2, 1], 2, 1)]);
    }

    #[test]
    fn two_dimensions_are_cut_where_one_is_not_enough() {
        let got = chunks([2, 3, 2, 1], 1, 16);
        let want =
            [(16, [2, 2, 1, 1], 0, 0), (8, [2, 1, 1, 1], 2, 0), (16, [2, 2, 1, 1], 0, 0), (8, [2, 1, 1, 1], 2, 1)];
        assert_eq!(got, want);
        assert!(!fits(&job([8, 1, 1, 1], 1).table.pieces()[0], 4, 16), "a row that is too long");
    }

    #[test]
    fn a_row_is_a_token_where_tokens_are_outermost() {
        assert_eq!(row_len(&[64, 9, 512, 1], 2), 576);
        assert_eq!(row_len(&[64, 9, 1, 1], 2), 576, "a decode step has rows of the same length");
        assert_eq!(row_len(&[64, 512, 9, 1], 1), 64);
        assert_eq!(row_len(&[576, 512, 1, 1], 1), 576);
        assert_eq!(row_len(&[576, 3, 1, 1], 0), 576);
    }
}
