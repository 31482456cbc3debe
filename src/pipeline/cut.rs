//! Pieces of a step to chunks that fit a packet: whole tensors where they do, runs of rows where they do not.

use std::ops::Range;
use std::sync::Arc;

use super::{Form, Job, Piece};
use crate::format::stream::Row;

/// A run of a piece's rows, in one packet.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) job: Arc<Job>,
    buffer: u8,
    pub(super) at: usize,
    /// Bytes of its values.
    pub(super) len: usize,
    /// How they lie there.
    pub(super) form: Form,
    pub(super) ne: [u32; 4],
    pub(super) token_dim: u8,
    rows: Option<(u8, Range<usize>)>,
    /// 1 in the last chunk of a piece, so that a piece counts as one tensor.
    pub(super) tensors: u64,
}

impl Chunk {
    /// The values, or their rows.
    pub(super) fn data(&self) -> &[u8] {
        let stored = self.form.stored(self.len);
        let buffer = self.job.data.get(usize::from(self.buffer));
        buffer.and_then(|b| b.get(self.at..self.at + stored)).unwrap_or_default()
    }

    /// The tokens along `token_dim`, or none.
    pub(super) fn rows(&self) -> &[Row] {
        let Some((set, range)) = &self.rows else { return &[] };
        self.job.row_sets.get(usize::from(*set)).and_then(|r| r.get(range.clone())).unwrap_or_default()
    }
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

/// Hands the chunks of piece `number` of `job`, values of `size` bytes, to `each`, none with more than `most` bytes. False if a single row
/// is larger.
pub(super) fn cut(job: &Arc<Job>, number: usize, size: usize, most: usize, each: &mut impl FnMut(Chunk)) -> bool {
    let Some(piece) = job.pieces.get(number) else { return false };
    // A table of another length than the dimension that it describes says nothing that could be trusted.
    let tokens = piece.ne.get(usize::from(piece.token_dim)).map_or(0, |&n| n as usize);
    let rows = piece
        .rows
        .filter(|&set| piece.token_dim > 0 && job.row_sets.get(usize::from(set)).is_some_and(|r| r.len() == tokens))
        .map(|set| (set, 0..tokens));
    let whole = Chunk {
        job: Arc::clone(job),
        buffer: piece.buffer,
        at: piece.offset,
        len: piece.len,
        form: piece.form,
        ne: piece.ne,
        token_dim: piece.token_dim,
        rows,
        tensors: u64::from(piece.completes),
    };
    if piece.ne.first().map_or(0, |&n| n as usize) * size > most {
        return false;
    }
    match piece.form {
        Form::Values => cut_chunk(whole, most, each),
        // Where one row ends is not known any more.
        Form::Rows(..) if piece.len > most => return false,
        Form::Rows(..) => each(whole),
    }
    true
}

fn cut_chunk(chunk: Chunk, most: usize, each: &mut impl FnMut(Chunk)) {
    let outer = (1..4).rev().find(|&d| chunk.ne.get(d).is_some_and(|&n| n > 1));
    let Some(outer) = outer.filter(|_| chunk.len > most) else { return each(chunk) };
    let count = chunk.ne.get(outer).map_or(1, |&n| n as usize);
    let one = chunk.len / count;
    // At least one; if that is still too much, the next dimension is cut as well.
    let run = (most / one).clamp(1, count);
    for first in (0..count).step_by(run) {
        let n = run.min(count - first);
        let mut ne = chunk.ne;
        if let Some(d) = ne.get_mut(outer) {
            *d = n as u32;
        }
        let rows = chunk.rows.clone().map(|(set, range)| {
            let own = outer == usize::from(chunk.token_dim);
            (set, if own { range.start + first..range.start + first + n } else { range })
        });
        let part = Chunk {
            job: Arc::clone(&chunk.job),
            buffer: chunk.buffer,
            form: Form::Values,
            at: chunk.at + first * one,
            len: n * one,
            ne,
            token_dim: chunk.token_dim,
            rows,
            tensors: if first + n == count { chunk.tensors } else { 0 },
        };
        cut_chunk(part, most, each);
    }
}

#[cfg(test)]
mod tests {
    use super::{cut, row_len};
    use crate::codec::DType;
    use crate::format::stream::{Route, Row};
    use crate::pipeline::pool::Pool;
    use crate::pipeline::{Form, Job, Piece, Spec};
    use std::sync::Arc;

    fn job(ne: [u32; 4], token_dim: u8) -> Arc<Job> {
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
        Arc::new(Job {
            step: 1,
            t_ns: 1,
            specs,
            row_sets: vec![rows.collect()],
            pieces: vec![piece],
            data: vec![data],
            tokens: 1,
        })
    }

    /// (bytes, ne, first position, tensors) of each chunk; their values follow each other.
    fn chunks(ne: [u32; 4], token_dim: u8, most: usize) -> Vec<(usize, [u32; 4], i32, u64)> {
        let job = job(ne, token_dim);
        let (mut out, mut bytes) = (Vec::new(), Vec::new());
        assert!(cut(&job, 0, 4, most, &mut |c| {
            assert_eq!(c.rows().len(), c.ne[usize::from(token_dim)] as usize);
            assert_eq!(c.ne.iter().product::<u32>() as usize * 4, c.len);
            bytes.extend_from_slice(c.data());
            out.push((c.len, c.ne, c.rows()[0].pos, c.tensors));
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
        assert!(!cut(&job([8, 1, 1, 1], 1), 0, 4, 16, &mut |_| {}), "a row that is too long");
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
