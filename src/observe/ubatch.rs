//! The rows of a ubatch: which of the batch's rows llama.cpp computes now. It may split a batch, and group its
//! rows by sequence.
//!
//! The graph's own inputs say token and position of each row; the batch says the sequence. Two sequences may have the
//! same token at the same position, so how llama.cpp splits matters: a unified cache is served in the batch's order,
//! any other one takes the same number of rows from several sequences and lays them side by side. Rows of a sequence
//! are never taken out of order.

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
    pub fn take(
        &mut self,
        rows: &[Row],
        n: usize,
        tokens: Option<&[i32]>,
        positions: Option<&[i32]>,
        unified: bool,
    ) -> Vec<Place> {
        let at = |values: Option<&[i32]>, i: usize| values.and_then(|v| v.get(i)).copied();
        let fits = |i: usize, k: usize| {
            rows.get(k).is_some_and(|r| {
                at(tokens, i).is_none_or(|t| r.token < 0 || r.token == t)
                    && at(positions, i).is_none_or(|p| r.pos.is_none_or(|own| own == p))
            })
        };
        let all_fit = |found: &Vec<usize>| found.len() == n && found.iter().enumerate().all(|(i, &k)| fits(i, k));
        let in_order: Vec<usize> = self.0.iter().rev().take(n).copied().collect();
        let found = if unified && all_fit(&in_order) {
            in_order.into_iter().map(Some).collect()
        } else if let Some(found) = self.neighbours(rows, n).filter(all_fit) {
            found.into_iter().map(Some).collect()
        } else if let Some(found) = self.side_by_side(rows, n).find(all_fit) {
            found.into_iter().map(Some).collect()
        } else if all_fit(&in_order) {
            in_order.into_iter().map(Some).collect()
        } else {
            self.one_by_one(rows, n, fits)
        };
        let used: std::collections::HashSet<usize> = found.iter().flatten().copied().collect();
        self.0.retain(|k| !used.contains(k));
        found
            .into_iter()
            .enumerate()
            .map(|(i, k)| {
                let row = k.and_then(|k| rows.get(k));
                Place {
                    seq: row.map_or(-1, |r| r.seq),
                    pos: at(positions, i).or_else(|| row.and_then(|r| r.pos)).unwrap_or(-1),
                    token: at(tokens, i).or_else(|| row.map(|r| r.token)).unwrap_or(-1),
                }
            })
            .collect()
    }

    /// Rows to come, by sequence, sequences in the order in which they appear.
    fn by_sequence(&self, rows: &[Row]) -> Vec<(i32, Vec<usize>)> {
        let mut by: Vec<(i32, Vec<usize>)> = Vec::new();
        for &k in self.0.iter().rev() {
            let Some(seq) = rows.get(k).map(|r| r.seq) else { continue };
            match by.iter_mut().find(|(s, _)| *s == seq) {
                Some((_, own)) => own.push(k),
                None => by.push((seq, vec![k])),
            }
        }
        by
    }

    /// How llama.cpp takes `n` rows of a cache with streams of their own, or of recurrent states: the same number from
    /// each of some sequences whose ids follow each other, the first of them that of the first row to come.
    fn neighbours(&self, rows: &[Row], n: usize) -> Option<Vec<usize>> {
        let mut chosen: Vec<i32> = Vec::new();
        for seq in self.0.iter().rev().filter_map(|&k| rows.get(k)).map(|r| r.seq) {
            if chosen.last().is_none_or(|last| seq == last + 1) {
                chosen.push(seq);
            }
        }
        let by: Vec<_> = self.by_sequence(rows).into_iter().filter(|(s, _)| chosen.contains(s)).collect();
        let each = n.checked_div(by.len()).filter(|each| each * by.len() == n)?;
        let of = |seq| by.iter().find(|(s, _)| *s == seq).map(|(_, own)| own.iter().take(each).copied());
        Some(chosen.into_iter().filter_map(of).flatten().collect())
    }

    /// The ways to take `n` rows, the same number from each of some sequences: from as many as there are,
    /// then from fewer.
    fn side_by_side(&self, rows: &[Row], n: usize) -> impl Iterator<Item = Vec<usize>> {
        let by = self.by_sequence(rows);
        (1..=by.len().min(n))
            .rev()
            .filter(move |s| n.is_multiple_of(*s))
            .map(move |s| by.iter().take(s).flat_map(|(_, own)| own.iter().take(n / s).copied()).collect())
    }

    /// Row by row: the next row of some sequence that fits, rather of the sequence of the row before.
    fn one_by_one(&self, rows: &[Row], n: usize, fits: impl Fn(usize, usize) -> bool) -> Vec<Option<usize>> {
        let mut by = self.by_sequence(rows);
        by.iter_mut().for_each(|(_, own)| own.reverse());
        let mut last = None;
        (0..n)
            .map(|i| {
                let next = |own: &Vec<usize>| own.last().copied().filter(|&k| fits(i, k));
                let same = last.filter(|&s: &usize| by.get(s).is_some_and(|(_, own)| next(own).is_some()));
                last = same.or_else(|| by.iter().position(|(_, own)| next(own).is_some()));
                by.get_mut(last?)?.1.pop()
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
        let first = left.take(&rows, 3, Some(&[100, 101, 102]), Some(&[0, 1, 2]), true);
        assert_eq!(first[2], Place { seq: 7, pos: 2, token: 102 });
        let second = left.take(&rows, 2, Some(&[103, 104]), Some(&[3, 4]), true);
        assert_eq!(second[1], Place { seq: 7, pos: 4, token: 104 });
        assert_eq!(left.take(&rows, 1, Some(&[105]), Some(&[5]), true)[0], Place { seq: -1, pos: 5, token: 105 });
    }

    #[test]
    fn rows_grouped_by_sequence_find_their_own() {
        // Two equal prompts, and a third row of one of them: computed as (0,0,1,1) and then (1).
        let rows =
            vec![row(0, Some(0), 5), row(0, Some(1), 5), row(1, Some(0), 5), row(1, Some(1), 5), row(1, Some(2), 5)];
        let mut left = Remaining::default();
        left.begin(5);
        assert_eq!(seqs(&left.take(&rows, 4, Some(&[5; 4]), Some(&[0, 1, 0, 1]), false)), [0, 0, 1, 1]);
        assert_eq!(seqs(&left.take(&rows, 1, Some(&[5]), Some(&[2]), false)), [1]);
    }

    #[test]
    fn a_row_is_never_taken_out_of_its_sequence_s_order() {
        // Token 7 at position 9 is the last row of both; the cache is not unified, so the ubatch has two rows of each,
        // side by side.
        let rows =
            vec![row(0, Some(8), 1), row(0, Some(9), 7), row(0, Some(10), 2), row(1, Some(8), 3), row(1, Some(9), 7)];
        let mut left = Remaining::default();
        left.begin(5);
        let first = left.take(&rows, 4, Some(&[1, 7, 3, 7]), Some(&[8, 9, 8, 9]), false);
        assert_eq!(seqs(&first), [0, 0, 1, 1]);
        assert_eq!(seqs(&left.take(&rows, 1, Some(&[2]), Some(&[10]), false)), [0]);
        // Of a unified cache they come in the batch's order.
        left.begin(5);
        assert_eq!(seqs(&left.take(&rows, 3, Some(&[1, 7, 2]), Some(&[8, 9, 10]), true)), [0, 0, 0]);
        assert_eq!(seqs(&left.take(&rows, 2, Some(&[3, 7]), Some(&[8, 9]), true)), [1, 1]);
    }

    #[test]
    fn sequences_of_a_ubatch_have_ids_that_follow_each_other() {
        // Without positions (a recurrent model), tokens of rows 1 and 2 are the same: after sequence 1 comes 2, not 0.
        let rows = vec![row(1, None, 320), row(0, None, 263), row(2, None, 263)];
        let mut left = Remaining::default();
        left.begin(3);
        assert_eq!(seqs(&left.take(&rows, 2, Some(&[320, 263]), None, false)), [1, 2]);
        assert_eq!(seqs(&left.take(&rows, 1, Some(&[263]), None, false)), [0]);
    }

    #[test]
    fn what_the_graph_does_not_say_comes_from_the_batch() {
        let rows = vec![row(3, Some(9), 42), row(3, None, -1)];
        let mut left = Remaining::default();
        left.begin(2);
        let places = left.take(&rows, 2, None, None, true);
        assert_eq!(places, [Place { seq: 3, pos: 9, token: 42 }, Place { seq: 3, pos: -1, token: -1 }]);
    }
}
