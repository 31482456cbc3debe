//! Gathers jobs until they are worth encoding, then cuts them into packets: all steps of a tensor together, tensors in the order in which
//! they first came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::cut::{self, Chunk};
use super::pool::MOST_OUT;
use super::share::Shares;
use super::start::ITEMS;
use super::worker::Task;
use super::writer::{Item, Progress, What};
use super::{Job, Piece, Reason, Shared, Spec};
use crate::format::stream::SampledToken;
use crate::mailbox::{Inbox, Outbox};

/// The longest that a job waits for others.
const PATIENCE: Duration = Duration::from_millis(800);

/// A step is over when nothing has come for so long; otherwise, when the next begins.
const END_OF_STEP: Duration = Duration::from_secs(3);

/// How often a waiting host is looked after. Only while one waits.
const UNDER_PRESSURE: Duration = Duration::from_millis(10);

/// Tokens of a segment.
const MOST_TOKENS: usize = 4096;

/// What the collector can be told.
#[derive(Debug)]
pub(super) enum Message {
    /// A step.
    Job(Job),
    /// A token was chosen.
    Token(SampledToken, Option<Box<str>>),
    /// A host waits for memory.
    Pressed,
    /// Write everything that came before, then answer.
    Flush(Sender<bool>),
    /// The same, and end the stream.
    Finish,
}

/// A chosen token with its text.
pub(super) type Told = (SampledToken, Option<Box<str>>);

/// One tensor's pieces: job and number of the piece.
#[derive(Debug)]
struct Group {
    pieces: Vec<(u32, u32)>,
}

/// The collector's thread.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Inbox<Message>,
    pub(super) tasks: Sender<Task>,
    pub(super) out: Outbox<Item>,
    pub(super) shares: Shares,
    pub(super) checkpoint_tokens: Option<u64>,
    pub(super) progress: Progress,
    pub(super) gathering: Gathering,
}

/// What is being gathered.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    order: u64,
    jobs: Vec<Arc<Job>>,
    groups: Vec<Group>,
    /// The table of the last job, and the group of each of its tensors, `usize::MAX` if it has none yet.
    specs: Option<Arc<[Arc<Spec>]>>,
    by_spec: Vec<usize>,
    by_name: HashMap<String, usize>,
    tokens: Vec<Told>,
    bytes: usize,
    /// Buffers of the jobs.
    buffers: usize,
    since: Option<Instant>,
    /// Tokens of steps since the last checkpoint.
    unchecked: u64,
    last_job: Option<Instant>,
}

impl Collector {
    pub(super) fn run(mut self) {
        loop {
            let seal = self.gathering.since.map(|since| since + PATIENCE);
            let checkpoint =
                self.gathering.last_job.filter(|_| self.is_checkpoint_due()).map(|last| last + END_OF_STEP);
            let pressed =
                self.shared.pool.is_awaited().then(|| Instant::now() + UNDER_PRESSURE).filter(|_| seal.is_some());
            let message = self.inbox.take(seal.into_iter().chain(checkpoint).chain(pressed).min());
            match message {
                Ok(Message::Job(job)) => self.job(job),
                Ok(Message::Token(token, text)) => {
                    self.shared.tokens_queued.fetch_sub(1, Ordering::AcqRel);
                    self.gathering.tokens.push((token, text));
                    self.gathering.since.get_or_insert_with(Instant::now);
                }
                Ok(Message::Pressed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Flush(done)) => {
                    // Nobody else may come to do it.
                    self.shared.courtesy.hurry();
                    self.seal();
                    self.send(What::Flush(done));
                }
                Ok(Message::Finish) | Err(RecvTimeoutError::Disconnected) => {
                    self.shared.courtesy.hurry();
                    self.seal();
                    self.send(What::Finish(self.progress));
                    return;
                }
            }
            self.seal_if_due();
            if self.gathering.last_job.is_some_and(|last| last.elapsed() >= END_OF_STEP) {
                self.checkpoint_if_due();
            }
        }
    }

    fn seal_if_due(&mut self) {
        let Some(since) = self.gathering.since else { return };
        let idle_workers = || self.tasks.is_empty() && self.inbox.is_empty() && self.shared.pool.is_awaited();
        // Tensors that make whole packets gain nothing by waiting, and what is encoded soon is still in the caches.
        let enough = self.shares.segment.min(self.gathering.groups.len().saturating_mul(self.shares.gather));
        let crowded = self.gathering.buffers >= MOST_OUT / 4;
        if crowded
            || self.gathering.bytes >= enough.max(1)
            || self.gathering.tokens.len() >= MOST_TOKENS
            || idle_workers()
        {
            self.seal();
        } else if since.elapsed() >= PATIENCE {
            self.seal();
            self.send(What::Settle);
        }
    }

    fn job(&mut self, job: Job) {
        if job.step != self.progress.last_step {
            // Between two steps, so that a resumed stream goes on with a whole one.
            self.checkpoint_if_due();
        }
        self.progress.last_step = job.step;
        self.gathering.last_job = Some(Instant::now());
        self.progress.step_tokens += u64::from(job.tokens);
        self.gathering.unchecked += u64::from(job.tokens);
        #[cfg(test)]
        assert!(job.specs.iter().all(|spec| spec.op != "panic in the collector"), "asked for");
        self.shared.unseen.fetch_sub(job.bytes(), Ordering::AcqRel);
        let job = Arc::new(job);
        let at = self.gathering.jobs.len() as u32;
        for (i, piece) in job.pieces.iter().enumerate() {
            let end = piece.offset.checked_add(piece.stored());
            let room = job.data.get(usize::from(piece.buffer)).map_or(0, |buffer| buffer.len());
            if end.is_none_or(|end| end > room) || !self.gathering.add(&job, piece, (at, i as u32)) {
                self.shared.account.lost(Reason::Internal, piece.amount());
            }
        }
        let values: usize = job.pieces.iter().map(|p| p.len).fold(0, usize::saturating_add);
        self.gathering.bytes = self.gathering.bytes.saturating_add(values.max(job.bytes()));
        self.gathering.buffers += job.data.len();
        self.gathering.jobs.push(job);
        self.gathering.since.get_or_insert_with(Instant::now);
    }

    fn is_checkpoint_due(&self) -> bool {
        self.checkpoint_tokens.is_some_and(|every| self.gathering.unchecked >= every)
    }

    fn checkpoint_if_due(&mut self) {
        if self.is_checkpoint_due() {
            self.seal();
            self.gathering.unchecked = 0;
            self.send(What::Checkpoint(self.progress));
        }
    }

    /// Everything gathered goes to the workers.
    fn seal(&mut self) {
        let jobs = std::mem::take(&mut self.gathering.jobs);
        let mut groups = std::mem::take(&mut self.gathering.groups);
        for group in &mut groups {
            self.packets(group, &jobs);
        }
        drop(jobs);
        if !self.gathering.tokens.is_empty() {
            let tokens = std::mem::take(&mut self.gathering.tokens);
            self.send(What::Tokens(tokens));
        }
        let g = &mut self.gathering;
        (g.specs, g.by_spec) = (None, Vec::new());
        g.by_name.clear();
        (g.bytes, g.buffers, g.since) = (0, 0, None);
    }

    /// The pieces of a tensor as packets that are neither too large nor too small.
    fn packets(&mut self, group: &mut Group, jobs: &[Arc<Job>]) {
        let mut open: Option<Task> = None;
        let mut open_bytes = 0;
        let mut chunks = Vec::new();
        for (at, number) in group.pieces.drain(..) {
            let Some(job) = jobs.get(at as usize) else { continue };
            let Some(piece) = job.pieces.get(number as usize) else { continue };
            let Some(spec) = job.spec(piece) else { continue };
            let size = spec.dtype.size();
            if !cut::is_whole(piece, size) {
                self.shared.account.lost(Reason::Internal, piece.amount());
                continue;
            }
            if piece.len == 0 {
                self.shared.account.captured(piece.amount());
                continue;
            }
            if !cut::cut(job, number as usize, size, self.shares.packet, &mut |c| chunks.push(c)) {
                self.shared.account.lost(Reason::TooLarge, piece.amount());
                continue;
            }
            for chunk in chunks.drain(..) {
                let row_len = cut::row_len(&chunk.ne, chunk.token_dim);
                let fits = open.as_ref().is_some_and(|t| {
                    t.row_len == row_len
                        && t.route == piece.route
                        && t.chunks.first().is_some_and(|c: &Chunk| c.ne.first() == chunk.ne.first())
                        && (Arc::ptr_eq(&t.spec, spec) || t.spec == *spec)
                        && open_bytes + chunk.len <= self.shares.gather
                });
                if !fits && let Some(task) = open.take() {
                    self.task(task);
                }
                if open.is_none() {
                    open_bytes = 0;
                }
                open_bytes += chunk.len;
                open.get_or_insert_with(|| Task {
                    order: 0,
                    spec: Arc::clone(spec),
                    route: piece.route,
                    row_len,
                    chunks: Vec::new(),
                })
                .chunks
                .push(chunk);
            }
        }
        if let Some(task) = open {
            self.task(task);
        }
    }

    fn task(&mut self, mut task: Task) {
        task.order = self.next_order();
        if task.is_large() {
            self.shared.large_tasks.fetch_add(1, Ordering::Relaxed);
        }
        // Workers end after us only; after a panic of theirs the stream has failed, and what is lost is counted at its end.
        let _ = self.tasks.send(task);
    }

    fn send(&mut self, what: What) {
        let order = self.next_order();
        // Room for packets is never taken up by notes.
        while self.out.queued() >= ITEMS && !self.shared.failed() {
            self.out.ring();
            std::thread::sleep(UNDER_PRESSURE);
        }
        let _ = self.out.put(Item { order, what });
        self.out.ring();
    }

    fn next_order(&mut self) -> u64 {
        let order = self.gathering.order;
        self.gathering.order += 1;
        order
    }
}

impl Gathering {
    /// Adds a piece of `job` to its tensor's. False if it belongs to none.
    fn add(&mut self, job: &Job, piece: &Piece, number: (u32, u32)) -> bool {
        if !self.specs.as_ref().is_some_and(|specs| Arc::ptr_eq(specs, &job.specs)) {
            self.by_spec.clear();
            self.by_spec.resize(job.specs.len(), usize::MAX);
            self.specs = Some(Arc::clone(&job.specs));
        }
        let (Some(known), Some(spec)) = (self.by_spec.get_mut(piece.spec as usize), job.spec(piece)) else {
            return false;
        };
        if *known == usize::MAX {
            *known = *self.by_name.entry(spec.name.clone()).or_insert(self.groups.len());
            if *known == self.groups.len() {
                self.groups.push(Group { pieces: Vec::new() });
            }
        }
        if let Some(group) = self.groups.get_mut(*known) {
            group.pieces.push(number);
        }
        true
    }
}
