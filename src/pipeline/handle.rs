//! A stream as its caller holds it: memory to fill, steps and tokens to hand over, an account, an end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, TrySendError, bounded};
use parking_lot::Mutex;

use super::account::{Account, Counts, Reason};
use super::budget::Budget;
use super::cut::Chunk;
use super::job::{Job, Piece, Place};
use super::limits::{LOOK, ROOM_FOR_COMMANDS, ROOM_FOR_TOKENS, STANDSTILL};
use super::message::Message;
use super::pool::{Buffer, Refused, most_aside};
use super::shared::Shared;
use crate::codec;
use crate::config::Policy;
use crate::error::Error;
use crate::format::stream::{Row, SampledToken};
use crate::mailbox::Outbox;

/// What to write, and at what cost.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stream. A file with content is refused unless `resume` is set.
    pub path: PathBuf,
    /// Fields of the header packet beyond format and version: a JSON object.
    pub header: serde_json::Value,
    /// Codec and bound.
    pub params: codec::Params,
    /// Bytes that the pipeline may use, everything included.
    pub max_memory: usize,
    /// Of these, what the caller uses elsewhere, at most [`Options::most_aside`]. Once the pipeline has started,
    /// [`Pipeline::set_aside`] changes it.
    pub aside: Arc<AtomicUsize>,
    /// What to do when they are used up.
    pub policy: Policy,
    /// Threads that encode; 0 is taken as 1.
    pub workers: usize,
    /// Threads of the host that may encode rows before they hand them over: each has an encoder in the budget.
    pub helpers: usize,
    /// A checkpoint every so many tokens of the steps.
    pub checkpoint_tokens: Option<u64>,
    /// Go on where the last checkpoint of an existing stream stands.
    pub resume: bool,
    /// Where the chosen tokens go; `None` derives it from `path`: `X.stream` has `X_tokens.json`.
    pub tokens_path: Option<PathBuf>,
}

impl Options {
    /// Bytes of such a budget that the caller may use elsewhere.
    #[must_use]
    pub fn most_aside(max_memory: usize, workers: usize, helpers: usize) -> usize {
        Budget::of(max_memory, workers, helpers).map_or(0, |budget| most_aside(budget.pool))
    }
}

/// What a finished stream holds.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// What became of everything seen, over all runs of the stream.
    pub account: Counts,
    /// Packets in the file.
    pub packets: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Chosen tokens that found no room in the queue.
    pub tokens_lost: u64,
    /// Whether the stream was closed in order.
    pub clean: bool,
    /// What went wrong.
    pub problem: Option<Error>,
}

/// Where a resumed stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The last step that the stream has, as the earlier run numbered it.
    pub last_step: u64,
    /// Tokens of its steps.
    pub tokens: u64,
    /// Chosen tokens.
    pub chosen_tokens: u64,
    /// How often it was resumed, this time included.
    pub count: u64,
}

/// A stream that is being written.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Outbox<Message>,
    /// Bytes of jobs after which the collector is to look at them.
    pub(super) worth_a_look: usize,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) closed: Receiver<bool>,
    pub(super) finished: Mutex<Option<Totals>>,
    pub(super) resumed: Option<Resumed>,
    pub(super) params: codec::Params,
    pub(super) helpers: usize,
}

impl Pipeline {
    /// Whether this step should be captured. False only under [`Policy::Sample`] while memory is short; the caller then
    /// counts the step as dropped, [`Reason::Sampled`].
    #[must_use]
    pub fn admit(&self) -> bool {
        if self.shared.policy != Policy::Sample {
            return true;
        }
        let step = self.shared.steps.fetch_add(1, Ordering::Relaxed);
        // The fuller, the fewer: every step up to half of the budget, none beyond seven eighths.
        match self.shared.pool.fill() {
            0..512 => true,
            512..640 => step.is_multiple_of(2),
            640..768 => step.is_multiple_of(4),
            768..896 => step.is_multiple_of(8),
            _ => false,
        }
    }

    /// A buffer of `bytes`. Its content is left over from its last use. Hold one at a time: under [`Policy::Block`] a
    /// second one may wait for the first.
    ///
    /// # Errors
    /// [`Refused`] says why there is none. Only [`Policy::Block`] waits.
    pub fn reserve(&self, bytes: usize) -> std::result::Result<Buffer, Refused> {
        let result = match self.shared.pool.take(bytes) {
            Err(Refused::Full) if self.shared.policy == Policy::Block => {
                // What is being gathered holds memory that we wait for. A full queue means that the collector is awake.
                self.shared.pool.wait(bytes, || {
                    let _ = self.inbox.try_put(Message::Pressed);
                    self.inbox.ring();
                })
            }
            Err(Refused::Full) => {
                // So does what lies in the queue, for the next step. No message: a host that does not wait would fill
                // the queue.
                self.inbox.ring();
                Err(Refused::Full)
            }
            result => result,
        };
        if result.as_ref().is_err_and(|refused| *refused == Refused::NoMemory) {
            self.shared.pool.tell_no_memory(bytes);
        }
        result
    }

    /// The same, but never waits: the caller may hold others.
    #[must_use]
    pub fn reserve_now(&self, bytes: usize) -> Option<Buffer> {
        self.shared.pool.take(bytes).ok()
    }

    /// The caller uses so many bytes of the budget elsewhere from now on. False, and nothing is changed, if they are in
    /// use here.
    #[must_use]
    pub fn set_aside(&self, bytes: usize) -> bool {
        self.shared.pool.set_aside(bytes)
    }

    /// The codec and its bound.
    #[must_use]
    pub const fn params(&self) -> &codec::Params {
        &self.params
    }

    /// Threads of the host that may encode rows before they are handed over, 0 if they are not asked to.
    #[must_use]
    pub const fn helpers(&self) -> usize {
        self.helpers
    }

    /// Bytes of the largest buffer that can be had; the caller splits what is larger.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.shared.pool.largest()
    }

    /// Hands a step over. Its tensors are captured or counted as dropped from here on. Never waits: the pool bounds the
    /// queue.
    pub fn push(&self, mut job: Job) {
        // The end waits for whoever is here: what was entered stands in the queue ahead of it.
        let Some(_open) = self.shared.account.open() else { return };
        self.shared.account.enter(job.table.amount());
        job.keep_sound(|amount| self.shared.account.lost(Reason::Internal, amount));
        let amount = job.table.amount();
        let rows: usize = job.row_sets.iter().map(|r| size_of_val::<[Row]>(r)).sum();
        let own_table = if Arc::strong_count(&job.table) == 1 { job.table.pieces().len() } else { 0 };
        // The collector and the packets name each piece once.
        let each = size_of::<Place>() + size_of::<(u32, u32)>() + size_of::<Chunk>();
        let mut beside = rows + job.places.capacity() * each + own_table * size_of::<Piece>();
        job.data.iter_mut().for_each(|buffer| buffer.handed_over(std::mem::take(&mut beside)));
        let bytes = job.bytes();
        let before = self.shared.unseen.fetch_add(bytes, Ordering::AcqRel);
        let raw = job.raw();
        if self.inbox.try_put(Message::Job(job, raw)).is_err() {
            // Only when the collector is gone.
            self.shared.account.lost(if self.shared.failed() { Reason::IoError } else { Reason::Internal }, amount);
        } else if before < self.worth_a_look && before + bytes >= self.worth_a_look {
            self.inbox.ring();
        }
    }

    /// A token was chosen; `text` where it may be written. Under [`Policy::Block`] it waits for room, under the others
    /// it is lost and counted when there is none.
    pub fn token(&self, token: SampledToken, text: Option<Box<str>>) {
        let Some(open) = self.shared.account.open() else { return };
        let queued = self.shared.tokens_queued.fetch_add(1, Ordering::AcqRel);
        let mut message = Message::Token(token, text);
        if queued < ROOM_FOR_TOKENS - ROOM_FOR_COMMANDS {
            match self.inbox.try_put(message) {
                Ok(()) => return,
                Err(TrySendError::Full(m) | TrySendError::Disconnected(m)) => message = m,
            }
        }
        drop(open);
        while self.shared.policy == Policy::Block
            && !self.shared.failed()
            && let Some(_open) = self.shared.account.open()
        {
            match self.inbox.put_within(message, LOOK) {
                Ok(()) => return,
                Err(SendTimeoutError::Timeout(m)) => message = m,
                Err(SendTimeoutError::Disconnected(_)) => break,
            }
        }
        self.shared.tokens_queued.fetch_sub(1, Ordering::AcqRel);
        self.shared.tokens_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// The running account: the caller counts what it sees, skips and drops.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.shared.account
    }

    /// Where this stream went on, if it did.
    #[must_use]
    pub fn resumed(&self) -> Option<Resumed> {
        self.resumed
    }

    /// Packets and bytes in the file so far.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        (self.shared.packets.load(Ordering::Relaxed), self.shared.bytes.load(Ordering::Relaxed))
    }

    /// Whether the stream has ended early; [`Totals::problem`] says why.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.failed()
    }

    /// Waits until everything pushed before is in the file (the kernel has it; a checkpoint also waits for the disk).
    /// False after a failure, or when it takes longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        if self.shared.failed() {
            return false;
        }
        let (done, answer) = bounded(1);
        let until = Instant::now() + patience;
        let told = self.inbox.put_within(Message::Flush(done), patience).is_ok();
        self.inbox.ring();
        told && answer.recv_deadline(until) == Ok(true)
    }

    /// Ends the stream: everything pushed is written, then account, index and end. A disk that takes longer than
    /// `patience`, or takes nothing for five seconds, is left alone, and what is still on its way is counted as
    /// dropped. A second call finds nothing to do.
    pub fn finish(&self, patience: Duration) -> Totals {
        let mut finished = self.finished.lock();
        if let Some(totals) = finished.as_ref() {
            return totals.clone();
        }
        self.shared.account.end_begins();
        let began = Instant::now();
        let told = self.inbox.put_within(Message::Finish, patience.min(STANDSTILL)).is_ok();
        self.inbox.ring();
        let clean = match if told { self.wait_for_the_end(began + patience) } else { Err(RecvTimeoutError::Timeout) } {
            Ok(clean) => {
                for thread in std::mem::take(&mut *self.threads.lock()) {
                    let _ = thread.join();
                }
                clean
            }
            // All threads have ended without an answer: one of them panicked.
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                let problem = format!("not closed within {:.1} s", began.elapsed().as_secs_f64());
                self.shared.fail(Error::new("closing", "the stream", problem, "check the disk"));
                false
            }
        };
        // Nobody gets a buffer any more; what has not come into the file is counted.
        self.shared.pool.fail();
        self.shared.account.close(if clean { Reason::Stopped } else { Reason::IoError });
        finished
            .insert(Totals {
                account: self.shared.account.totals(),
                packets: self.shared.packets.load(Ordering::Relaxed),
                bytes: self.shared.bytes.load(Ordering::Relaxed),
                tokens_lost: self.shared.tokens_lost.load(Ordering::Relaxed),
                clean,
                problem: self.shared.problem(),
            })
            .clone()
    }

    /// Whether the stream was closed in order; an error after `until`, or when the disk has stood still for too long.
    fn wait_for_the_end(&self, until: Instant) -> std::result::Result<bool, RecvTimeoutError> {
        let (mut written, mut since) = (self.written(), Instant::now());
        loop {
            let now = Instant::now();
            match self.closed.recv_deadline(until.min(now + LOOK)) {
                Err(RecvTimeoutError::Timeout) => {}
                ended => return ended,
            }
            let so_far = self.written();
            if so_far != written || self.shared.keeping.load(Ordering::Relaxed) {
                (written, since) = (so_far, now);
            }
            if now >= until || since.elapsed() >= STANDSTILL {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }
}
