//! A shadow of the KV cache: which cells hold which sequence's positions, kept by replaying what the host does
//! to its memory.
//!
//! llama.cpp no longer exports the number of used cells. Positions alone do not give it, since sequences may
//! share cells (`llama_memory_seq_cp` in a unified cache); so the shadow keeps cells, not positions. Tests
//! compare it with LLAMA_KV_CACHE_DEBUG.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

type Cell = u64;

/// Cells by sequence.
#[derive(Debug, Default)]
pub struct Shadow {
    sequences: HashMap<i32, BTreeSet<(i32, Cell)>>,
    owners: HashMap<Cell, u32>,
    next_cell: Cell,
}

impl Shadow {
    /// Cells that hold something.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.owners.len() as u64
    }

    /// Sequences that hold something.
    #[must_use]
    pub fn sequences(&self) -> u32 {
        self.sequences.values().filter(|s| !s.is_empty()).count() as u32
    }

    /// A token at `pos` that belongs to all of `seqs` took a cell.
    pub fn place(&mut self, seqs: &[i32], pos: i32) {
        let cell = self.next_cell;
        self.next_cell += 1;
        for &s in seqs {
            if self.sequences.entry(s).or_default().insert((pos, cell)) {
                *self.owners.entry(cell).or_insert(0) += 1;
            }
        }
    }

    /// `llama_memory_seq_rm`: a negative sequence means all, negative bounds mean open.
    pub fn remove(&mut self, seq: i32, p0: i32, p1: i32) {
        let hit: Vec<i32> = if seq < 0 { self.sequences.keys().copied().collect() } else { vec![seq] };
        for s in hit {
            for (pos, cell) in self.range(s, p0, p1) {
                if let Some(set) = self.sequences.get_mut(&s) {
                    set.remove(&(pos, cell));
                }
                self.release(cell);
            }
        }
    }

    /// `llama_memory_seq_cp`. `shared`: both sequences live in one stream, so cells are shared and not copied.
    pub fn copy(&mut self, from: i32, to: i32, p0: i32, p1: i32, shared: bool) {
        if from == to {
            return;
        }
        if !shared {
            // Another stream: the whole stream is overwritten by a copy.
            self.remove(to, -1, -1);
        }
        for (pos, cell) in self.range(from, p0, p1) {
            if !shared {
                self.place(&[to], pos);
            } else if self.sequences.entry(to).or_default().insert((pos, cell)) {
                *self.owners.entry(cell).or_insert(0) += 1;
            }
        }
    }

    /// `llama_memory_seq_keep`.
    pub fn keep(&mut self, seq: i32) {
        let others: Vec<i32> = self.sequences.keys().copied().filter(|&s| s != seq).collect();
        others.into_iter().for_each(|s| self.remove(s, -1, -1));
    }

    /// `llama_memory_clear`.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.owners.clear();
    }

    /// `llama_memory_seq_add` and `_div`: moves positions in `[p0, p1)`; a cell that ends below zero is freed.
    pub fn map_positions(&mut self, seq: i32, p0: i32, p1: i32, f: impl Fn(i32) -> i32) {
        for (pos, cell) in self.range(seq, p0, p1) {
            // A shared cell moves for everybody who has it.
            let holders: Vec<i32> =
                self.sequences.iter().filter(|(_, set)| set.contains(&(pos, cell))).map(|(&s, _)| s).collect();
            for s in holders {
                let Some(set) = self.sequences.get_mut(&s) else { continue };
                set.remove(&(pos, cell));
                let moved = f(pos);
                if moved >= 0 {
                    set.insert((moved, cell));
                } else {
                    self.release(cell);
                }
            }
        }
    }

    /// The sequence was replaced by a restored state that covers `[p0, p1]`; `p0 < 0`: it is empty.
    pub fn restore(&mut self, seq: i32, p0: i32, p1: i32) {
        self.remove(seq, -1, -1);
        if p0 >= 0 {
            (p0..=p1).for_each(|pos| self.place(&[seq], pos));
        }
    }

    fn range(&self, seq: i32, p0: i32, p1: i32) -> Vec<(i32, Cell)> {
        let low = Bound::Included((p0.max(0), 0));
        let high = if p1 < 0 { Bound::Unbounded } else { Bound::Excluded((p1, 0)) };
        if p1 >= 0 && p1 <= p0.max(0) {
            return Vec::new();
        }
        self.sequences.get(&seq).map_or_else(Vec::new, |set| set.range((low, high)).copied().collect())
    }

    fn release(&mut self, cell: Cell) {
        if let Some(n) = self.owners.get_mut(&cell) {
            *n -= 1;
            if *n == 0 {
                self.owners.remove(&cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shadow;

    fn filled(seq: i32, n: i32) -> Shadow {
        let mut s = Shadow::default();
        (0..n).for_each(|p| s.place(&[seq], p));
        s
    }

    #[test]
    fn shared_cells_count_once_and_live_until_the_last_owner_goes() {
        let mut s = filled(0, 10);
        s.copy(0, 1, -1, -1, true);
        assert_eq!((s.used(), s.sequences()), (10, 2));
        s.place(&[1], 10);
        s.remove(0, 4, -1);
        assert_eq!(s.used(), 11, "sequence 1 still has all");
        s.remove(1, 0, -1);
        assert_eq!((s.used(), s.sequences()), (4, 1));
    }

    #[test]
    fn copies_into_another_stream_take_cells_of_their_own() {
        let mut s = filled(0, 10);
        s.copy(0, 1, -1, -1, false);
        assert_eq!(s.used(), 20);
    }

    #[test]
    fn context_shift_keeps_the_count_that_is_left() {
        let mut s = filled(0, 100);
        s.remove(0, 10, 50);
        s.map_positions(0, 50, 100, |p| p - 40);
        assert_eq!(s.used(), 60);
        s.remove(0, 59, -1);
        assert_eq!(s.used(), 59, "the last position is 59 now");
    }

    #[test]
    fn restore_replaces_and_empty_ranges_do_nothing() {
        let mut s = filled(3, 8);
        s.remove(3, 5, 5);
        s.remove(3, 6, 2);
        assert_eq!(s.used(), 8);
        s.restore(3, 0, 4);
        assert_eq!(s.used(), 5);
        s.restore(3, -1, -1);
        assert_eq!(s.used(), 0);
    }

    #[test]
    fn several_tokens_may_have_one_position() {
        let mut s = Shadow::default();
        (0..4).for_each(|_| s.place(&[0], 7));
        assert_eq!(s.used(), 4);
        s.remove(-1, 7, 8);
        assert_eq!(s.used(), 0);
    }
}
