//! Buffers between the host's thread and the workers, inside one budget. A steady state allocates nothing: buffers come
//! back and are handed out again by size class; a class that is no longer used gives its memory to another.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::limits::{MOST_OUT, SMALLEST_BUFFER, STANDSTILL};
use crate::host::Pages;
use crate::log;

/// Why there is no buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The budget is used up at this moment.
    Full,
    /// More than the pipeline's largest: never.
    TooLarge,
    /// The stream can no longer be written, or is being closed.
    Failed,
    /// The system has no memory, and nothing of ours will come back.
    NoMemory,
}

/// Bytes of such a budget that may be set aside: two of the largest buffers are left.
pub(super) const fn most_aside(budget: usize) -> usize {
    budget / 2
}

/// All buffers of a pipeline.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    freed: Condvar,
    budget: usize,
    largest: usize,
    /// Of the budget, what somebody else uses at this moment ([`Pool::set_aside`]).
    aside: Arc<AtomicUsize>,
    /// That the system has no memory was told.
    told: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of buffers, out or free.
    allocated: usize,
    /// Bytes that came with jobs beside their buffers.
    beside: usize,
    free: BTreeMap<usize, Vec<Pages>>,
    out: usize,
    /// Of those out, the ones that a host's thread still fills.
    filling: usize,
    waiting: usize,
    failed: bool,
}

impl State {
    fn free_bytes(&self) -> usize {
        self.free.iter().map(|(class, list)| class * list.len()).sum()
    }

    /// Bytes that are out.
    fn used(&self) -> usize {
        self.allocated - self.free_bytes() + self.beside
    }

    /// Gives free memory back to the system until `more` bytes fit into the budget.
    fn shrink(&mut self, budget: usize, more: usize) -> bool {
        while self.allocated + self.beside + more > budget {
            if !self.shrink_by_one() {
                return false;
            }
        }
        true
    }

    /// The largest free one first: the fewest calls.
    fn shrink_by_one(&mut self) -> bool {
        let Some((&freed, list)) = self.free.iter_mut().rev().find(|(_, list)| !list.is_empty()) else {
            return false;
        };
        list.pop();
        self.allocated -= freed;
        true
    }
}

impl Pool {
    pub(super) fn new(budget: usize, largest: usize, aside: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), freed: Condvar::new(), budget, largest, aside, told: false.into() })
    }

    fn budget(&self) -> usize {
        self.budget.saturating_sub(self.aside.load(Ordering::Relaxed))
    }

    /// So much of the budget is somebody else's from now on. False, and nothing is changed, if that is in use.
    pub(super) fn set_aside(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let budget = self.budget.saturating_sub(bytes);
        let fewer = bytes <= self.aside.load(Ordering::Relaxed);
        if !fewer && (bytes > most_aside(self.budget) || state.used() > budget) {
            return false;
        }
        self.aside.store(bytes, Ordering::Relaxed);
        let fits = state.shrink(budget, 0);
        drop(state);
        if fewer {
            self.freed.notify_all();
        }
        fewer || fits
    }

    /// The largest buffer that can ever be had.
    pub(super) const fn largest(&self) -> usize {
        self.largest
    }

    /// Share of the budget that is out, in 1/1024, or of the buffers that there may be: small steps use these up first.
    pub(super) fn fill(&self) -> usize {
        let state = self.state.lock();
        let bytes = state.used() * 1024 / self.budget().max(1);
        bytes.max(state.out * 1024 / MOST_OUT)
    }

    /// Whether a host's thread waits for memory.
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// A buffer of `bytes`, now or not at all.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Buffer, Refused> {
        if bytes > self.largest {
            return Err(Refused::TooLarge);
        }
        let mut state = self.state.lock();
        self.take_locked(&mut state, bytes)
    }

    /// A buffer of `bytes`, when there is one. `announce` is called when it is known that somebody waits.
    pub(super) fn wait(self: &Arc<Self>, bytes: usize, announce: impl FnOnce()) -> Result<Buffer, Refused> {
        if bytes > self.largest {
            return Err(Refused::TooLarge);
        }
        let mut state = self.state.lock();
        state.waiting += 1;
        announce();
        let result = loop {
            match self.take_locked(&mut state, bytes) {
                Err(Refused::Full) => {}
                result => break result,
            }
            let timed_out = self.freed.wait_for(&mut state, STANDSTILL).timed_out();
            if timed_out && state.out == state.filling && state.out > 0 {
                break self.take_locked(&mut state, bytes);
            }
        };
        state.waiting -= 1;
        result
    }

    fn take_locked(self: &Arc<Self>, state: &mut State, bytes: usize) -> Result<Buffer, Refused> {
        if state.failed {
            return Err(Refused::Failed);
        }
        if state.out >= MOST_OUT {
            return Err(Refused::Full);
        }
        let class = class_of(bytes);
        let pages = match Self::reuse(state, class) {
            Some(pages) => pages,
            None => self.allocate(state, class)?,
        };
        state.out += 1;
        state.filling += 1;
        Ok(Buffer { pages: Some(pages), len: bytes, beside: 0, filling: true, pool: Arc::clone(self) })
    }

    /// The one that came back last is warm in the caches. One of up to twice the size will do.
    fn reuse(state: &mut State, class: usize) -> Option<Pages> {
        state.free.range_mut(class..=class * 2).find_map(|(_, list)| list.pop())
    }

    fn allocate(&self, state: &mut State, class: usize) -> Result<Pages, Refused> {
        let budget = self.budget();
        if state.used() + class > budget || !state.shrink(budget, class) {
            return Err(Refused::Full);
        }
        let mut pages = Pages::new(class);
        while pages.is_err() && state.shrink_by_one() {
            pages = Pages::new(class);
        }
        let Ok(pages) = pages else {
            // What is out comes back, and then there is some.
            let handed_over = state.out > state.filling;
            return Err(if handed_over { Refused::Full } else { Refused::NoMemory });
        };
        state.allocated += class;
        Ok(pages)
    }

    /// Tells, once, that the system has no memory for what the budget allows.
    pub(super) fn tell_no_memory(&self, bytes: usize) {
        if !self.told.swap(true, Ordering::Relaxed) {
            log::warn(format!(
                "the system has no memory for {bytes} bytes that the budget of the capture allows: what finds none is counted as no_memory. Allow \
                 the host more memory, or set LLAMA_RESOURCE_MAX_MEMORY to less"
            ));
        }
    }

    /// No buffer is given any more; who waits is told.
    pub(super) fn fail(&self) {
        self.state.lock().failed = true;
        self.freed.notify_all();
    }

    fn give_back(&self, pages: Pages, beside: usize, filling: bool) {
        let mut state = self.state.lock();
        state.out -= 1;
        state.filling -= usize::from(filling);
        state.beside -= beside;
        state.free.entry(pages.len()).or_default().push(pages);
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.freed.notify_all();
        }
    }
}

/// Sizes in quarters of a power of two, whole pages: at most a fifth of a buffer is unused.
fn class_of(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST_BUFFER);
    let step = (bytes.next_power_of_two() / 8).max(SMALLEST_BUFFER);
    bytes.div_ceil(step) * step
}

/// The largest size that fits into `budget` as a whole class.
pub(super) fn largest_class(budget: usize) -> usize {
    let step = (budget.next_power_of_two() / 8).max(SMALLEST_BUFFER);
    let class = budget / step * step;
    if class_of(class) <= budget { class } else { class.saturating_sub(step) }
}

/// Memory of the pool that the caller fills and hands over with a job. Its content is whatever was in it before.
#[derive(Debug)]
pub struct Buffer {
    pages: Option<Pages>,
    len: usize,
    beside: usize,
    filling: bool,
    pool: Arc<Pool>,
}

impl Buffer {
    /// The host has filled it. `beside` more bytes of the budget are in use until it comes back.
    pub(super) fn handed_over(&mut self, beside: usize) {
        let mut state = self.pool.state.lock();
        state.filling -= usize::from(std::mem::take(&mut self.filling));
        state.beside += beside;
        self.beside += beside;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_deref().and_then(|p| p.get(..self.len)).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.as_deref_mut().and_then(|p| p.get_mut(..self.len)).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.pool.give_back(pages, self.beside, self.filling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, Refused, SMALLEST_BUFFER, class_of, largest_class};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const MB: usize = 1 << 20;

    fn pool(budget: usize, largest: usize) -> Arc<Pool> {
        Pool::new(budget, largest, Arc::default())
    }

    fn allocated(pool: &Pool) -> usize {
        pool.state.lock().allocated
    }

    #[test]
    fn classes_hold_their_sizes_and_waste_little() {
        for bytes in (1..5 * MB).step_by(977) {
            let class = class_of(bytes);
            assert!(class >= bytes && class.is_multiple_of(SMALLEST_BUFFER));
            assert!(bytes < 16 * SMALLEST_BUFFER || class - bytes <= class / 4, "{bytes} in {class}");
            assert_eq!(class_of(class), class);
            let largest = largest_class(bytes.max(SMALLEST_BUFFER));
            assert!(class_of(largest) <= bytes.max(SMALLEST_BUFFER) && largest * 4 + 4 * SMALLEST_BUFFER >= bytes * 3);
        }
    }

    #[test]
    fn the_budget_is_never_passed_and_sizes_share_it() {
        let pool = pool(8 * MB, 2 * MB);
        let held: Vec<_> = (0..4).map(|_| pool.take(2 * MB).unwrap()).collect();
        assert_eq!(pool.take(1).unwrap_err(), Refused::Full);
        assert_eq!(pool.take(2 * MB + 1).unwrap_err(), Refused::TooLarge);
        drop(held);
        // The memory of the large ones is taken for small ones, and back.
        let small: Vec<_> = (0..256).map(|_| pool.take(20_000).unwrap()).collect();
        assert!(allocated(&pool) <= 8 * MB);
        drop(small);
        let held: Vec<_> = (0..4).map(|_| pool.take(2 * MB).unwrap()).collect();
        assert!(allocated(&pool) <= 8 * MB && held.len() == 4);
        assert!(pool.fill() >= 1024);
    }

    #[test]
    fn what_comes_with_a_job_counts_as_well() {
        let pool = pool(MB, MB / 4);
        let mut one = pool.take(MB / 4).unwrap();
        one.handed_over(MB / 2 + 1);
        assert_eq!(pool.take(MB / 4).unwrap_err(), Refused::Full);
        drop(one);
        assert_eq!((0..4).map(|_| pool.take(MB / 4)).collect::<Vec<_>>().iter().filter(|b| b.is_ok()).count(), 4);
    }

    #[test]
    fn what_is_set_aside_is_nobodys_until_it_is_given_back() {
        let pool = pool(8 * MB, 2 * MB);
        let held: Vec<_> = (0..2).map(|_| pool.take(2 * MB).unwrap()).collect();
        assert!(!pool.set_aside(4 * MB + 1), "more than half");
        assert!(pool.set_aside(4 * MB));
        assert_eq!(pool.take(1).unwrap_err(), Refused::Full);
        assert_eq!((pool.fill(), pool.set_aside(MB)), (1024, true));
        let more = pool.take(2 * MB).unwrap();
        // It is in use, and then free: memory that nobody uses goes back to the system.
        assert!(!pool.set_aside(4 * MB));
        drop((held, more));
        assert_eq!(allocated(&pool), 6 * MB);
        assert!(pool.set_aside(4 * MB));
        assert_eq!(allocated(&pool), 4 * MB);
    }

    #[test]
    fn a_waiting_host_gets_what_was_set_aside() {
        let pool = pool(4 * MB, 2 * MB);
        assert!(pool.set_aside(2 * MB));
        let _held = pool.take(2 * MB).unwrap();
        std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.wait(2 * MB, || {}).map(|b| b.len()));
            while !pool.is_awaited() {
                std::thread::yield_now();
            }
            assert!(pool.set_aside(0));
            assert_eq!(waiter.join().unwrap(), Ok(2 * MB));
        });
    }

    #[test]
    fn a_buffer_is_used_again() {
        let pool = pool(MB, MB / 2);
        let mut first = pool.take(100_000).unwrap();
        assert_eq!(first.len(), 100_000);
        first[99_999] = 7;
        let at = first.as_ptr();
        drop(first);
        let again = pool.take(99_000).unwrap();
        assert_eq!(again.as_ptr(), at);
    }

    #[test]
    fn a_waiting_host_gets_what_comes_back_or_the_failure() {
        let pool = pool(MB, MB);
        let mut held = pool.take(MB).unwrap();
        held.handed_over(0);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.wait(MB, || {}).map(|b| b.len()));
            while !pool.is_awaited() {
                std::thread::yield_now();
            }
            drop(held);
            assert_eq!(waiter.join().unwrap(), Ok(MB));
        });
        let held = pool.take(MB).unwrap();
        std::thread::scope(|s| {
            let waiter = s.spawn(|| pool.wait(MB, || {}).map(|b| b.len()));
            while !pool.is_awaited() {
                std::thread::yield_now();
            }
            pool.fail();
            assert_eq!(waiter.join().unwrap(), Err(Refused::Failed));
        });
        drop(held);
        assert_eq!(pool.take(1).unwrap_err(), Refused::Failed);
    }

    #[test]
    fn hosts_that_wait_for_each_other_are_let_go() {
        let pool = pool(MB, MB);
        let _filling = pool.take(MB).unwrap();
        let began = Instant::now();
        assert_eq!(pool.wait(MB, || {}).unwrap_err(), Refused::Full);
        assert!(began.elapsed() < Duration::from_secs(8));
    }
}
