//! How much of the memory budget the host's allocator takes to keep tensors for us: as much as it is asked to, and only
//! that is left to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pipeline::Pipeline;

/// What the allocators of all schedulers keep.
#[derive(Debug, Default)]
pub struct Keeping {
    /// The most that any graph of a scheduler needed: allocators do not give memory back.
    by_sched: HashMap<usize, usize>,
    /// The same before the last graph that needed more.
    before: HashMap<usize, usize>,
    /// What the host's memory had no room for, by scheduler: its graphs that need as much are not asked to
    /// keep it again.
    too_much: HashMap<usize, usize>,
    /// All of it; the pipeline has the rest of the budget.
    total: Arc<AtomicUsize>,
}

impl Keeping {
    /// For the pipeline's options.
    #[must_use]
    pub fn total(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.total)
    }

    /// A graph of `sched` is about to be planned that keeps so many bytes. False if that is more than `limit` together
    /// with what the others keep, or if the pipeline, where it has started, uses the memory itself at this moment.
    pub fn keep(&mut self, sched: usize, bytes: usize, limit: usize, pipeline: Option<&Pipeline>) -> bool {
        let kept = self.by_sched.get(&sched).copied().unwrap_or(0);
        if bytes <= kept {
            return bytes <= limit;
        }
        let total = self.total.load(Ordering::Relaxed).saturating_add(bytes - kept);
        if total > limit || !self.leave(total, pipeline) {
            return false;
        }
        self.by_sched.insert(sched, bytes);
        self.before.insert(sched, kept);
        true
    }

    /// Whether the host's memory has not been found too small for so many.
    #[must_use]
    pub fn may_fit(&self, sched: usize, bytes: usize) -> bool {
        self.too_much.get(&sched).is_none_or(|&too_much| bytes < too_much)
    }

    /// The allocator of `sched` had no room for the bytes that it was to keep: they are the pipeline's again.
    pub fn refused(&mut self, sched: usize, bytes: usize, pipeline: Option<&Pipeline>) {
        let least = self.too_much.entry(sched).or_insert(bytes);
        *least = bytes.min(*least);
        if let Some(kept) = self.by_sched.get_mut(&sched).filter(|kept| **kept == bytes) {
            *kept = self.before.get(&sched).copied().unwrap_or(0);
            let total = self.total.load(Ordering::Relaxed).saturating_sub(bytes - *kept);
            self.leave(total, pipeline);
        }
    }

    /// A scheduler is gone, and its memory with it.
    pub fn freed(&mut self, sched: usize, pipeline: Option<&Pipeline>) {
        self.too_much.remove(&sched);
        self.before.remove(&sched);
        if let Some(kept) = self.by_sched.remove(&sched) {
            let total = self.total.load(Ordering::Relaxed).saturating_sub(kept);
            self.leave(total, pipeline);
        }
    }

    fn leave(&self, total: usize, pipeline: Option<&Pipeline>) -> bool {
        match pipeline {
            Some(pipeline) => pipeline.set_aside(total),
            // It looks when it starts, and at each buffer.
            None => {
                self.total.store(total, Ordering::Relaxed);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Keeping;
    use std::sync::atomic::Ordering;

    #[test]
    fn schedulers_share_the_limit_and_keep_their_most() {
        let mut keeping = Keeping::default();
        let total = keeping.total();
        let total = || total.load(Ordering::Relaxed);
        assert!(keeping.keep(1, 40, 100, None) && keeping.keep(1, 30, 100, None));
        assert_eq!(total(), 40, "a smaller graph finds room in what is there");
        assert!(keeping.keep(1, 60, 100, None) && keeping.keep(2, 40, 100, None));
        assert!(
            !keeping.keep(2, 41, 100, None)
                && !keeping.keep(3, 1, 100, None)
                && !keeping.keep(3, usize::MAX, 100, None)
        );
        assert_eq!(total(), 100);
        keeping.freed(1, None);
        keeping.freed(1, None);
        assert!(keeping.keep(3, 60, 100, None));
        assert_eq!(total(), 100);
    }

    #[test]
    fn what_the_host_has_no_room_for_is_the_pipelines_again_and_not_tried_twice() {
        let mut keeping = Keeping::default();
        let total = keeping.total();
        let total = || total.load(Ordering::Relaxed);
        assert!(keeping.keep(1, 10, 100, None) && keeping.keep(1, 40, 100, None));
        keeping.refused(1, 40, None);
        assert_eq!(total(), 10, "what it kept before it keeps on");
        assert!(keeping.may_fit(1, 39) && !keeping.may_fit(1, 40) && keeping.may_fit(2, 40));
        // A graph that was asked to keep less than the allocator had: nothing to give back.
        keeping.refused(1, 5, None);
        assert_eq!((total(), keeping.may_fit(1, 5)), (10, false));
        keeping.freed(1, None);
        assert!(total() == 0 && keeping.may_fit(1, 40));
    }
}
