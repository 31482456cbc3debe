//! One ring of words a thread: marks of any length, pushed whole or not at all, without waiting. The
//! writer empties them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::journal;

/// Words that one thread may be ahead of the writer: 256 KiB.
pub const CAPACITY: usize = 1 << 15;

/// What one thread has marked. Written by that thread alone, so plain loads and stores do.
#[derive(Debug, Default)]
pub struct Counts {
    seen: AtomicU64,
    left_out: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Ring {
    number: u64,
    words: Consumer<u64>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Rings {
    live: Vec<Ring>,
    next: u64,
    ended: Statistics,
}

static RINGS: Mutex<Rings> =
    Mutex::new(Rings { live: Vec::new(), next: 0, ended: Statistics { seen: 0, written: 0, dropped: 0, left_out: 0 } });
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static DROPPED_BY_WRITER: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicBool = AtomicBool::new(false);
static WITHOUT_RING: AtomicU64 = AtomicU64::new(0);

/// Counts of all threads since recording began. Once everything is written, `seen` is the sum of the other three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Marks that were in order.
    pub seen: u64,
    /// Lines of marks.
    pub written: u64,
    /// Full ring, rate limit, internal.
    pub dropped: u64,
    /// Below the level.
    pub left_out: u64,
}

/// A thread's end of its ring.
#[derive(Debug)]
pub struct Local {
    words: Producer<u64>,
    counts: Arc<Counts>,
}

fn add(to: &AtomicU64) {
    to.store(to.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Local {
    /// A new ring for the calling thread.
    #[must_use]
    pub fn new() -> Self {
        let (words, consumer) = RingBuffer::new(CAPACITY);
        let counts = Arc::new(Counts::default());
        let mut rings = RINGS.lock();
        rings.next += 1;
        let number = rings.next;
        rings.live.push(Ring { number, words: consumer, counts: counts.clone() });
        Self { words, counts }
    }

    /// Puts a mark into the ring if there is room for it and `reserve` words more. True if it went in.
    #[inline]
    pub fn push(&mut self, mark: &[u64], reserve: usize) -> bool {
        add(&self.counts.seen);
        // Half full: the writer would otherwise sleep on. Asked before the push, so that it is asked once
        // a crossing, mostly.
        let mut free = self.words.slots();
        if free < CAPACITY / 2 {
            journal::wake();
            if free < mark.len() + reserve && WAITS.load(Ordering::Relaxed) {
                free = self.wait_for(mark.len() + reserve);
            }
        }
        let fits = free >= mark.len() + reserve && self.words.push_entire_slice(mark).is_ok();
        if !fits {
            add(&self.counts.dropped);
        }
        fits
    }

    /// Waits until the writer has made room, as the caller of `init` asked for; a second at most, for a disk
    /// may be dead.
    #[cold]
    fn wait_for(&mut self, words: usize) -> usize {
        for _ in 0..5000 {
            std::thread::sleep(std::time::Duration::from_micros(200));
            journal::wake();
            if self.words.slots() >= words || !crate::boundary::recording() {
                break;
            }
        }
        self.words.slots()
    }

    /// Counts an end whose begin was dropped.
    pub fn drop_end(&self) {
        add(&self.counts.seen);
        add(&self.counts.dropped);
    }

    /// Counts a mark that the level leaves out.
    pub fn leave_out(&self) {
        add(&self.counts.seen);
        add(&self.counts.left_out);
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a full ring waits for the writer instead of dropping.
pub fn set_waits(on: bool) {
    WAITS.store(on, Ordering::Relaxed);
}

/// Counts a mark that has no ring: a thread that is being torn down, or a call from within our own.
pub fn lost() {
    WITHOUT_RING.fetch_add(1, Ordering::Relaxed);
}

/// Counts `n` lines written and `dropped` marks left out by the rate limit, by the writer.
pub fn count(written: u64, dropped: u64) {
    WRITTEN.fetch_add(written, Ordering::Relaxed);
    DROPPED_BY_WRITER.fetch_add(dropped, Ordering::Relaxed);
}

/// Counts marks that do not go through a ring: seen and written.
pub fn count_direct(n: u64) {
    RINGS.lock().ended.seen += n;
    WRITTEN.fetch_add(n, Ordering::Relaxed);
}

fn of(counts: &Counts) -> Statistics {
    let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
    Statistics { seen: get(&counts.seen), written: 0, dropped: get(&counts.dropped), left_out: get(&counts.left_out) }
}

fn sum(a: Statistics, b: Statistics) -> Statistics {
    Statistics {
        seen: a.seen + b.seen,
        written: a.written + b.written,
        dropped: a.dropped + b.dropped,
        left_out: a.left_out + b.left_out,
    }
}

/// The counts.
#[must_use]
pub fn statistics() -> Statistics {
    let rings = RINGS.lock();
    let lost = WITHOUT_RING.load(Ordering::Relaxed);
    let own = Statistics {
        seen: lost,
        written: WRITTEN.load(Ordering::Relaxed),
        dropped: lost + DROPPED_BY_WRITER.load(Ordering::Relaxed),
        left_out: 0,
    };
    rings.live.iter().map(|r| of(&r.counts)).fold(sum(rings.ended, own), sum)
}

/// Marks that found a ring full, since recording began.
#[must_use]
pub fn dropped_full() -> u64 {
    let rings = RINGS.lock();
    let live: u64 = rings.live.iter().map(|r| r.counts.dropped.load(Ordering::Relaxed)).sum();
    rings.ended.dropped + live + WITHOUT_RING.load(Ordering::Relaxed)
}

/// Starts counting anew. What is still in a ring belongs to a recording that is over and is thrown away when
/// it is read.
pub fn reset_counts() {
    let mut rings = RINGS.lock();
    rings.ended = Statistics::default();
    for r in &rings.live {
        for n in [&r.counts.seen, &r.counts.left_out, &r.counts.dropped] {
            n.store(0, Ordering::Relaxed);
        }
    }
    for n in [&WRITTEN, &DROPPED_BY_WRITER, &WITHOUT_RING] {
        n.store(0, Ordering::Relaxed);
    }
}

/// Hands all words of each ring, in order, to `each` with the ring's number, then tells through `gone` which rings
/// are no more.
pub fn drain(buffer: &mut Vec<u64>, mut each: impl FnMut(u64, &[u64]), mut gone: impl FnMut(u64)) {
    // The lock is held for the copy alone: a thread that makes its first mark waits for that at most.
    let numbers: Vec<u64> = RINGS.lock().live.iter().map(|r| r.number).collect();
    for number in numbers {
        buffer.clear();
        let mut rings = RINGS.lock();
        let Some(at) = rings.live.iter().position(|r| r.number == number) else { continue };
        // Asked before the reading: a thread that ends in between leaves nothing behind that we would miss.
        let ended = rings.live[at].words.is_abandoned();
        let words = &mut rings.live[at].words;
        if let Ok(chunk) = words.read_chunk(words.slots()) {
            let (a, b) = chunk.as_slices();
            buffer.extend_from_slice(a);
            buffer.extend_from_slice(b);
            chunk.commit_all();
        }
        if ended {
            let ring = rings.live.swap_remove(at);
            rings.ended = sum(rings.ended, of(&ring.counts));
        }
        drop(rings);
        if !buffer.is_empty() {
            each(number, buffer);
        }
        if ended {
            gone(number);
        }
    }
}
