//! Pieces of a step to chunks that fit a packet: whole tensors where they do, runs of rows where they do not.

use std::ops::Range;
use std::sync::Arc;

use super::{Form, Job, Piece};
use crate::format::stream::Row;

/// Jobs whose buffers come back together. A chunk refers to one of them by its number, since there are thousands of chunks.
pub(super) type Bundle = Arc<[Job]>;

/// A run of a piece's rows, in one packet.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Which of the packet's bundles it is from.
    pub(super) bundle: u32,
    /// Which job there, and which of its pieces.
    pub(super) job: u32,
    pub(super) piece: u32,
    /// The run, where it is not the whole piece.
    part: Option<Box<Run>>,
}

/// A part of a piece.
#[derive(Clone, Debug)]
struct Run {
    /// Where it begins, in bytes of the piece.
    at: usize,
    len: usize,
    ne: [u32; 4],
    /// Of the tokens of the piece.
    tokens: Range<usize>,
    /// It is the last of its piece.
    last: bool,
}

/// What a chunk refers to.
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
    /// `None` if it is from no job of these bundles.
    pub(super) fn view<'a>(&self, bundles: &'a [Bundle]) -> Option<View<'a>> {
        let job = bundles.get(self.bundle as usize)?.get(self.job as usize)?;
        let piece = job.pieces.get(self.piece as usize)?;
        let (at, len, ne) = self.part.as_ref().map_or((0, piece.len, piece.ne), |p| (p.at, p.len, p.ne));
        let begin = piece.offset + at;
        let rows = tokens(job, piece).map_or(&[][..], |rows| match &self.part {
            Some(part) => rows.get(part.tokens.clone()).unwrap_or_default(),
            None => rows,
        });
        Some(View {
            job,
            data: job.data.get(usize::from(piece.buffer))?.get(begin..begin + piece.form.stored(len))?,
            form: piece.form,
            ne,
            token_dim: piece.token_dim,
            rows,
        })
    }
}

/// The tokens of a piece. A table of another length than the dimension that it describes says nothing that could be trusted.
fn tokens<'a>(job: &'a Job, piece: &Piece) -> Option<&'a [Row]> {
    let count = piece.ne.get(usize::from(piece.token_dim)).map_or(0, |&n| n as usize);
    let rows = job.row_sets.get(usize::from(piece.rows?))?;
    (piece.token_dim > 0 && rows.len() == count).then_some(rows)
}

/// Values in a row as codecs see it: all of a token where tokens are the outermost dimension in use, else the innermost dimension.
#[must_use]
pub fn row_len(ne: &[u32; 4], token_dim: u8) -> u32 {
    let t = usize::from(token_dim);
    let outermost = t > 0 && ne.iter().skip(t + 1).all(|&n| n == 1);
    let dims = if outermost { t } else { 1 };
    ne.iter().take(dims).product()
}

/// Whether a piece of values of so many bytes each has the bytes that its shape says.
pub(super) fn is_whole(piece: &Piece, size: usize) -> bool {
    let values = piece.ne.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    values.and_then(|n| n.checked_mul(size)) == Some(piece.len)
}

/// A chunk without its place among bundles: bytes of its values, their shape, and 1 if it is the last of its piece, so that a piece counts
/// as one tensor.
#[derive(Debug)]
pub(super) struct Cut {
    part: Option<Box<Run>>,
    pub(super) len: usize,
    pub(super) ne: [u32; 4],
    pub(super) tensors: u64,
}

impl Cut {
    /// The chunk, of piece `piece` of job `job` of the packet's bundle `bundle`.
    pub(super) fn at(self, bundle: u32, job: u32, piece: u32) -> Chunk {
        Chunk { bundle, job, piece, part: self.part }
    }
}

/// Hands the chunks of a piece of values of `size` bytes to `each`, none with more than `most` bytes. False if a single row is larger.
pub(super) fn cut(piece: &Piece, size: usize, most: usize, each: &mut impl FnMut(Cut)) -> bool {
    if piece.ne.first().map_or(0, |&n| n as usize) * size > most {
        return false;
    }
    let tensors = u64::from(piece.completes);
    if piece.len <= most {
        each(Cut { part: None, len: piece.len, ne: piece.ne, tensors });
        return true;
    }
    if piece.form != Form::Values {
        // Where one row ends is not known any more.
        return false;
    }
    let tokens = piece.ne.get(usize::from(piece.token_dim)).map_or(0, |&n| n as usize);
    let whole = Run { at: 0, len: piece.len, ne: piece.ne, tokens: 0..tokens, last: true };
    cut_run(whole, usize::from(piece.token_dim), most, &mut |run| {
        let (len, ne, last) = (run.len, run.ne, run.last);
        each(Cut { part: Some(Box::new(run)), len, ne, tensors: if last { tensors } else { 0 } });
    });
    true
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
    use super::{Bundle, cut, row_len};
    use crate::codec::DType;
    use crate::format::stream::{Route, Row};
    use crate::pipeline::pool::Pool;
    use crate::pipeline::{Form, Job, Piece, Spec};
    use std::sync::Arc;

    fn job(ne: [u32; 4], token_dim: u8) -> Job {
        let len = ne.iter().product::<u32>() as usize * 4;
        let mut data = Pool::new(1 << 20, 1 << 20).take(len).unwrap();
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
        let piece = Piece {
            spec: 0,
            buffer: 0,
            offset: 0,
            len,
            form: Form::Values,
            ne,
            token_dim,
            rows: Some(0),
            route: Route::Retain,
            completes: true,
        };
        let specs = [Arc::new(spec)].into();
        Job {
            step: 1,
            t_ns: 1,
            specs,
            row_sets: vec![rows.collect()],
            pieces: vec![piece],
            data: vec![data],
            tokens: 1,
        }
    }

    /// (bytes, ne, first position, tensors) of each chunk; their values follow each other.
    fn chunks(ne: [u32; 4], token_dim: u8, most: usize) -> Vec<(usize, [u32; 4], i32, u64)> {
        let bundles: [Bundle; 1] = [[job(ne, token_dim)].into()];
        let job = &bundles[0][0];
        let (mut out, mut bytes) = (Vec::new(), Vec::new());
        assert!(cut(&job.pieces[0], 4, most, &mut |c| {
            let (len, tensors) = (c.len, c.tensors);
            let chunk = c.at(0, 0, 0);
            let v = chunk.view(&bundles).unwrap();
            assert_eq!(v.rows.len(), v.ne[usize::from(token_dim)] as usize);
            assert_eq!((v.ne.iter().product::<u32>() as usize * 4, v.data.len()), (len, len));
            bytes.extend_from_slice(v.data);
            out.push((len, v.ne, v.rows[0].pos, tensors));
        }));
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
        assert!(!cut(&job([8, 1, 1, 1], 1).pieces[0], 4, 16, &mut |_| {}), "a row that is too long");
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
