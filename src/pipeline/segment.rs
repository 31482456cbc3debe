//! Gathers jobs until they are worth encoding, then cuts them into packets: all steps of a tensor together, tensors in the order in which
//! they first came.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::cut::{self, Bundle, Cut};
use super::group::{Place, by_tensor};
use super::pool::MOST_OUT;
use super::share::Shares;
use super::start::ITEMS;
use super::worker::Task;
use super::writer::{Item, Progress, What};
use super::{Amount, Job, Reason, Shared, Spec};
use crate::format::stream::{Route, SampledToken};
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
    /// A step, and the bytes of its values.
    Job(Job, usize),
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
    /// Nobody looks into them before they are worth encoding: a look at each step's tables costs more than one at many.
    jobs: Vec<Job>,
    /// Jobs that came before, those of each bundle together: as many as may keep each other's memory.
    bundles: Vec<Bundle>,
    /// Bytes of the jobs that are in no bundle yet.
    unbundled: usize,
    /// Which tensors these are of. Steps of one graph have one table, and nearly always the same pieces: only the first of them is looked at.
    tensors: HashSet<String>,
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
                Ok(Message::Job(job, values)) => self.job(job, values),
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
        let enough = self.shares.segment.min(self.gathering.tensors.len().saturating_mul(self.shares.gather));
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

    fn job(&mut self, job: Job, values: usize) {
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
        let (g, bytes) = (&mut self.gathering, job.bytes());
        self.shared.unseen.fetch_sub(bytes, Ordering::AcqRel);
        if g.jobs.last().is_none_or(|last| !Arc::ptr_eq(&last.specs, &job.specs)) {
            for spec in job.pieces.iter().filter_map(|piece| job.spec(piece)) {
                if !g.tensors.contains(&spec.name) {
                    g.tensors.insert(spec.name.clone());
                }
            }
        }
        g.bytes = g.bytes.saturating_add(values.max(bytes));
        g.buffers += job.data.len();
        g.unbundled += bytes;
        g.jobs.push(job);
        if g.unbundled >= self.shares.segment / 4 {
            g.bundle();
        }
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
        self.gathering.bundle();
        let bundles = std::mem::take(&mut self.gathering.bundles);
        let groups = by_tensor(&bundles, |amount| self.shared.account.lost(Reason::Internal, amount));
        for places in groups {
            self.packets(places, &bundles);
        }
        drop(bundles);
        if !self.gathering.tokens.is_empty() {
            let tokens = std::mem::take(&mut self.gathering.tokens);
            self.send(What::Tokens(tokens));
        }
        let g = &mut self.gathering;
        g.tensors.clear();
        (g.bytes, g.buffers, g.since) = (0, 0, None);
    }

    /// The pieces of a tensor as packets that are neither too large nor too small.
    fn packets(&mut self, places: Vec<Place>, bundles: &[Bundle]) {
        // A loop of its own: each piece lies somewhere else in memory, and in a short one the processor fetches several at a time.
        let account = &self.shared.account;
        let sound = |place: Place| {
            let (job, piece) = place.of(bundles)?;
            let spec = job.spec(piece)?;
            let whole = cut::is_whole(piece, spec.dtype.size());
            match piece.len {
                _ if !whole => account.lost(Reason::Internal, piece.amount()),
                0 => account.captured(piece.amount()),
                _ => {}
            }
            (whole && piece.len > 0).then_some((place, spec, piece))
        };
        let pieces: Vec<_> = places.into_iter().filter_map(sound).collect();
        let mut open: Option<Open> = None;
        let mut cuts = Vec::new();
        for (place, spec, piece) in pieces {
            if !cut::cut(piece, spec.dtype.size(), self.shares.packet, &mut |c| cuts.push(c)) {
                self.shared.account.lost(Reason::TooLarge, piece.amount());
                continue;
            }
            for cut in cuts.drain(..) {
                let row_len = cut::row_len(&cut.ne, piece.token_dim);
                let fits = open.as_ref().is_some_and(|o| {
                    let t = &o.task;
                    t.row_len == row_len
                        && t.route == piece.route
                        && o.width == cut.ne[0]
                        && (Arc::ptr_eq(&t.spec, spec) || t.spec == *spec)
                        && t.amount.bytes as usize + cut.len <= self.shares.gather
                });
                if !fits && let Some(full) = open.take() {
                    self.task(full.task);
                }
                open.get_or_insert_with(|| Open::new(spec, piece.route, row_len, cut.ne[0])).add(cut, place, bundles);
            }
        }
        if let Some(last) = open {
            self.task(last.task);
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
    /// The jobs that are in no bundle make one.
    fn bundle(&mut self) {
        if !self.jobs.is_empty() {
            self.bundles.push(std::mem::take(&mut self.jobs).into());
        }
        self.unbundled = 0;
    }
}

/// A packet that takes more.
struct Open {
    task: Task,
    /// Of the first dimension.
    width: u32,
    /// Which of the segment's bundles is the task's last.
    bundle: Option<u32>,
}

impl Open {
    fn new(spec: &Arc<Spec>, route: Route, row_len: u32, width: u32) -> Self {
        let spec = Arc::clone(spec);
        let task = Task { order: 0, spec, route, row_len, bundles: vec![], chunks: vec![], amount: Amount::default() };
        Self { task, width, bundle: None }
    }

    fn add(&mut self, cut: Cut, place: Place, bundles: &[Bundle]) {
        if self.bundle.replace(place.bundle) != Some(place.bundle) {
            self.task.bundles.extend(bundles.get(place.bundle as usize).cloned());
        }
        self.task.amount += Amount::new(cut.tensors, cut.len as u64);
        let bundle = self.task.bundles.len() as u32 - 1;
        self.task.chunks.push(cut.at(bundle, place.job, place.piece));
    }
}
