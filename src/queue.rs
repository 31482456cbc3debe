//! From the host's threads to the writer: one wait-free ring a thread. A push never blocks, locks or allocates (but for
//! a thread's first); a full ring drops the newest event and counts it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rtrb::{Consumer, Producer, RingBuffer};

/// Events that one thread may be ahead of the writer.
pub const CAPACITY: usize = 4096;

/// The rings of all threads that ever pushed a `T`.
#[derive(Debug)]
pub struct Queue<T: 'static> {
    consumers: Mutex<Vec<Consumer<T>>>,
    /// Items of threads that are being torn down and have no ring any more.
    late: Mutex<Vec<T>>,
    dropped: AtomicU64,
}

/// The calling thread's end of its ring; lives in a thread-local of the user.
pub type Local<T> = RefCell<Option<Producer<T>>>;

impl<T> Queue<T> {
    /// A queue without rings.
    #[must_use]
    pub const fn new() -> Self {
        Self { consumers: Mutex::new(Vec::new()), late: Mutex::new(Vec::new()), dropped: AtomicU64::new(0) }
    }

    /// Puts `value` into the calling thread's ring. False if it was full and the value was dropped.
    pub fn push(&self, local: &Local<T>, value: T) -> bool {
        let Ok(mut local) = local.try_borrow_mut() else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let producer = local.get_or_insert_with(|| {
            let (producer, consumer) = RingBuffer::new(CAPACITY);
            self.consumers.lock().push(consumer);
            producer
        });
        let ok = producer.push(value).is_ok();
        if !ok {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        ok
    }

    /// Puts `value` into a list for threads without a ring. Their thread-locals are gone, as those of the main thread
    /// are when exit handlers run. This is never on the hot path. False if too many wait and the value was dropped.
    pub fn push_late(&self, value: T) -> bool {
        let mut late = self.late.lock();
        let fits = late.len() < CAPACITY;
        if fits {
            late.push(value);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// Takes everything out of all rings, in order within each thread; rings of ended threads go when they are empty.
    pub fn drain(&self, mut each: impl FnMut(T)) {
        // Only the writer drains; a thread that makes its first push waits at most for this loop's pops.
        let mut taken = Vec::new();
        self.consumers.lock().retain_mut(|c| {
            // Asked before the pops: a producer that ends in between leaves nothing behind that we would miss.
            let ended = c.is_abandoned();
            while let Ok(value) = c.pop() {
                taken.push(value);
            }
            !ended
        });
        // Behind what its threads pushed while they had rings.
        taken.append(&mut self.late.lock());
        taken.into_iter().for_each(&mut each);
    }

    /// Values dropped because there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, Local, Queue};

    #[test]
    fn full_ring_drops_the_newest_and_counts_it() {
        let (q, local) = (Queue::new(), Local::default());
        for i in 0..CAPACITY + 3 {
            assert_eq!(q.push(&local, i), i < CAPACITY);
        }
        let mut got = Vec::new();
        q.drain(|v| got.push(v));
        assert_eq!(got, (0..CAPACITY).collect::<Vec<_>>());
        assert_eq!(q.dropped(), 3);
    }

    #[test]
    fn a_thread_without_a_ring_pushes_all_the_same() {
        let (q, local) = (Queue::new(), Local::default());
        assert!(q.push(&local, 1) && q.push_late(2));
        drop(local);
        assert!(q.push_late(3));
        let mut got = Vec::new();
        q.drain(|v| got.push(v));
        assert_eq!((got, q.dropped()), (vec![1, 2, 3], 0));
        assert_eq!((0..=CAPACITY).filter(|&i| q.push_late(i)).count(), CAPACITY);
        assert_eq!(q.dropped(), 1);
    }

    #[test]
    fn every_push_of_every_thread_arrives_or_is_counted() {
        static Q: Queue<(u32, u32)> = Queue::new();
        let threads: Vec<_> = (0..4u32)
            .map(|t| {
                std::thread::spawn(move || {
                    let local = Local::default();
                    (0..50_000u32).filter(|&i| Q.push(&local, (t, i))).count()
                })
            })
            .collect();
        let (mut got, mut last) = (0usize, [None; 4]);
        let mut take = |got: &mut usize| {
            Q.drain(|(t, i)| {
                assert!(last[t as usize].is_none_or(|l| l < i), "order within a thread");
                last[t as usize] = Some(i);
                *got += 1;
            });
        };
        while threads.iter().any(|t| !t.is_finished()) {
            take(&mut got);
        }
        let pushed: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        take(&mut got);
        assert_eq!(got, pushed);
        assert_eq!(got as u64 + Q.dropped(), 200_000);
    }
}
