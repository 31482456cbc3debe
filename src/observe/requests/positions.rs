//! Where a sequence's rows were, and whether the next ones go back: then the host has begun anew, whatever it calls
//! the function by which it empties its cache (`llama_kv_cache_clear`, `llama_kv_self_seq_rm`, ... were names of a
//! few months each).

use super::Requests;
use crate::observe::contexts::Row;

/// The rows of a sequence that were computed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Last {
    /// Position of the first.
    pub first: i32,
    /// One past the largest.
    pub end: i32,
    /// Several of them had an output: a draft was verified, and what of it was refused is computed again.
    pub verified: bool,
    /// By an encoder, whose positions are not the decoder's.
    pub encoded: bool,
}

impl Last {
    /// Whether rows from `first` on are no continuation of these.
    fn is_left_by(self, first: i32, encodes: bool) -> bool {
        let goes_on = self.verified && first > self.first;
        self.encoded == encodes && first < self.end && !goes_on
    }
}

impl Requests {
    /// A call begins with these rows, of an encoder or not: which sequences begin anew.
    pub fn begins(&mut self, ctx: u64, rows: &[Row], encodes: bool) {
        let mut seen: Vec<i32> = Vec::new();
        for row in rows.iter().filter(|r| r.seq >= 0) {
            if seen.contains(&row.seq) {
                continue;
            }
            seen.push(row.seq);
            if let Some(s) = self.sequences.get_mut(&(ctx, row.seq)) {
                // Without a position llama.cpp goes on where the sequence ends.
                s.goes_back = s.last.zip(row.pos).is_some_and(|(last, pos)| last.is_left_by(pos, encodes));
            }
        }
    }

    /// Positions of a sequence were moved by `delta`: what comes next does not go back for that.
    pub fn moved(&mut self, ctx: u64, seq: i32, delta: i32) {
        if let Some(last) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.last.as_mut()) {
            (last.first, last.end) = (last.first.saturating_add(delta), last.end.saturating_add(delta));
        }
    }

    /// Nothing is known of a sequence's positions any more: they were divided, or restored.
    pub fn rearranged(&mut self, ctx: u64, seq: Option<i32>) {
        let is_meant = |(c, s): &(u64, i32)| *c == ctx && seq.is_none_or(|seq| seq < 0 || *s == seq);
        self.sequences.iter_mut().filter(|(key, _)| is_meant(key)).for_each(|(_, s)| s.last = None);
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;
    use crate::observe::contexts::{Processed, Row};

    const CTX: u64 = 1;
    const SEQ: i32 = 0;

    /// A call of rows from `first` on, of which the last `outputs` have an output.
    fn rows(all: &mut Requests, first: i32, n: i32, outputs: i32) {
        let row = |i: i32| Row { seq: SEQ, more: Vec::new(), pos: Some(first + i), token: 5, output: i >= n - outputs };
        let batch: Vec<Row> = (0..n).map(row).collect();
        all.begins(CTX, &batch, false);
        let done = Processed {
            seq: SEQ,
            rows: n as u64,
            outputs: outputs as u64,
            first_pos: Some(first),
            end_pos: Some(first + n),
            encoded: false,
        };
        all.processed(CTX, false, &done, 1_000, 0);
    }

    fn token(all: &mut Requests) {
        all.sampled(CTX, SEQ, 7, false, 2_000);
    }

    /// A prompt of 4 tokens and 3 generated ones: positions 0 to 6 are filled.
    fn answered(all: &mut Requests) -> u64 {
        rows(all, 0, 4, 1);
        token(all);
        for pos in 4..7 {
            rows(all, pos, 1, 1);
            token(all);
        }
        all.number(CTX, SEQ)
    }

    #[test]
    fn a_single_row_behind_what_was_there_begins_the_next_request() {
        let mut all = Requests::default();
        let first = answered(&mut all);
        // The same prompt again: all of it but its last token is cached, so one row is computed.
        rows(&mut all, 3, 1, 1);
        token(&mut all);
        assert_eq!((all.number(CTX, SEQ), all.ended()), (first + 1, 1));
        assert_eq!(all.hit_permille(CTX, SEQ), Some(750));
    }

    #[test]
    fn an_output_without_tokens_is_a_request_of_its_own_too() {
        let mut all = Requests::default();
        for n in 1..=3 {
            rows(&mut all, 0, 4, 4);
            all.output_read(CTX, SEQ);
            assert_eq!((all.number(CTX, SEQ), all.ended()), (n, n - 1), "embedding {n}");
        }
    }

    #[test]
    fn the_refused_part_of_a_draft_is_computed_again_in_the_same_request() {
        let mut all = Requests::default();
        let first = answered(&mut all);
        rows(&mut all, 7, 4, 4);
        token(&mut all);
        token(&mut all);
        // Two of the four were refused.
        rows(&mut all, 9, 1, 1);
        token(&mut all);
        assert_eq!((all.number(CTX, SEQ), all.ended()), (first, 0));
        rows(&mut all, 7, 1, 1);
        token(&mut all);
        assert_eq!(all.ended(), 1, "further back than the draft");
    }

    #[test]
    fn a_context_shift_is_no_new_request() {
        let mut all = Requests::default();
        let first = answered(&mut all);
        all.moved(CTX, SEQ, -3);
        rows(&mut all, 4, 1, 1);
        token(&mut all);
        all.rearranged(CTX, Some(SEQ));
        rows(&mut all, 2, 1, 1);
        token(&mut all);
        assert_eq!((all.number(CTX, SEQ), all.ended()), (first, 0));
    }
}
