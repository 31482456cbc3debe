//! The rows of a ubatch: which of the batch's rows llama.cpp computes now. It may split a batch, and group its rows by sequence.
//!
//! The graph's own inputs say token and position of each row; the batch says the sequence. A row of the ubatch is the first row of the batch
//! that has not been computed and has that token and position: llama.cpp keeps the order within a sequence.

use super::contexts::Row;

/// One row of a ubatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Sequence; -1 where the batch was not seen.
    pub seq: i32,
    /// Position; -1 where neither graph nor batch tells.
    pub pos: i32,
    /// Token id; -1 for an embedding.
    pub token: i32,
}

/// Which rows of the running batch are still to come.
#[derive(Debug, Default)]
pub struct Remaining(Vec<usize>);

impl Remaining {
    /// A batch of `n` rows begins.
    pub fn begin(&mut self, n: usize) {
        self.0.clear();
        // From the back: the next row is then taken off the end.
        self.0.extend((0..n).rev());
    }

    /// The next `n` rows to be computed.
    pub fn take(&mut self, rows: &[Row], n: usize, tokens: Option<&[i32]>, positions: Option<&[i32]>) -> Vec<Place> {
        (0..n)
            .map(|i| {
                let token = tokens.and_then(|t| t.get(i)).copied();
                let pos = positions.and_then(|p| p.get(i)).copied();
                let fits = |r: &Row| {
                    token.is_none_or(|t| r.token < 0 || r.token == t) && pos.is_none_or(|p| r.pos.is_none_or(|own| own == p))
                };
                let found = self.0.iter().rposition(|&k| rows.get(k).is_some_and(fits)).map(|at| self.0.remove(at));
                let row = found.and_then(|k| rows.get(k));
                Place {
                    seq: row.map_or(-1, |r| r.seq),
                    pos: pos.or_else(|| row.and_then(|r| r.pos)).unwrap_or(-1),
                    token: token.or_else(|| row.map(|r| r.token)).unwrap_or(-1),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, Remaining};
    use crate::observe::contexts::Row;

    fn row(seq: i32, pos: Option<i32>, token: i32) -> Row {
        Row { seq, more: Vec::new(), pos, token, output: false }
    }

    fn seqs(places: &[Place]) -> Vec<i32> {
        places.iter().map(|p| p.seq).collect()
    }

    #[test]
    fn a_batch_is_split_in_order() {
        let rows: Vec<Row> = (0..5).map(|i| row(7, Some(i), 100 + i)).collect();
        let mut left = Remaining::default();
        left.begin(5);
        let first = left.take(&rows, 3, Some(&[100, 101, 102]), Some(&[0, 1, 2]));
        assert_eq!(first[2], Place { seq: 7, pos: 2, token: 102 });
        let second = left.take(&rows, 2, Some(&[103, 104]), Some(&[3, 4]));
        assert_eq!(second[1], Place { seq: 7, pos: 4, token: 104 });
        assert_eq!(left.take(&rows, 1, Some(&[105]), Some(&[5]))[0], Place { seq: -1, pos: 5, token: 105 });
    }

    #[test]
    fn rows_grouped_by_sequence_find_their_own() {
        // Two equal prompts, and a third row of one of them: computed as (0,0,1,1) and then (1).
        let rows = vec![row(0, Some(0), 5), row(0, Some(1), 5), row(1, Some(0), 5), row(1, Some(1), 5), row(1, Some(2), 5)];
        let mut left = Remaining::default();
        left.begin(5);
        assert_eq!(seqs(&left.take(&rows, 4, Some(&[5; 4]), Some(&[0, 1, 0, 1]))), [0, 0, 1, 1]);
        assert_eq!(seqs(&left.take(&rows, 1, Some(&[5]), Some(&[2]))), [1]);
    }

    #[test]
    fn what_the_graph_does_not_say_comes_from_the_batch() {
        let rows = vec![row(3, Some(9), 42), row(3, None, -1)];
        let mut left = Remaining::default();
        left.begin(2);
        let places = left.take(&rows, 2, None, None);
        assert_eq!(places, [Place { seq: 3, pos: 9, token: 42 }, Place { seq: 3, pos: -1, token: -1 }]);
    }
}
