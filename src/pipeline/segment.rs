//! Gathers jobs until they are worth encoding, then cuts them into packets: all steps of a tensor together, tensors in
//! the order in which they first came.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::cut::{self, Bundle, Chunk};
use super::group::{Stretch, by_tensor};
use super::job::Form;
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
    /// A step, and the bytes of its values that are not encoded.
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
    /// Tasks so far.
    tasks: u64,
    jobs: Vec<Job>,
    /// Jobs that came before, those of each bundle together: as many as may keep each other's memory.
    bundles: Vec<Bundle>,
    /// Bytes of the jobs that are in no bundle yet.
    unbundled: usize,
    /// Which tensors these are of.
    tensors: HashSet<String>,
    tokens: Vec<Told>,
    /// Bytes of values that are not encoded.
    raw: usize,
    /// Buffers of the jobs, and their bytes.
    buffers: usize,
    bytes: usize,
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
                Ok(Message::Job(job, raw)) => self.job(job, raw),
                Ok(Message::Token(token, text)) => {
                    self.shared.tokens_queued.fetch_sub(1, Ordering::AcqRel);
                    self.gathering.tokens.push((token, text));
                    self.gathering.since.get_or_insert_with(Instant::now);
                }
                Ok(Message::Pressed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Flush(done)) => {
                    // Nobody else may come to do it.
                    self.shared.courtesy.hurry(u64::MAX);
                    self.seal();
                    self.shared.courtesy.hurry(self.gathering.tasks);
                    self.send(What::Flush(done));
                }
                Ok(Message::Finish) | Err(RecvTimeoutError::Disconnected) => {
                    self.shared.courtesy.hurry(u64::MAX);
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
            || self.gathering.raw >= enough.max(1)
            || self.gathering.bytes >= self.shares.gathered
            || self.gathering.tokens.len() >= MOST_TOKENS
            || idle_workers()
        {
            self.seal();
        } else if since.elapsed() >= PATIENCE {
            self.seal();
            self.send(What::Settle);
        }
    }

    fn job(&mut self, job: Job, raw: usize) {
        if job.step != self.progress.last_step {
            // Between two steps, so that a resumed stream goes on with a whole one.
            self.checkpoint_if_due();
        }
        self.progress.last_step = job.step;
        self.gathering.last_job = Some(Instant::now());
        self.progress.step_tokens += u64::from(job.tokens);
        self.gathering.unchecked += u64::from(job.tokens);
        #[cfg(test)]
        {
            let any_is =
                |op: &str| job.table.pieces().iter().any(|p| job.table.spec(p).is_some_and(|spec| spec.op == op));
            assert!(!any_is("panic in the collector"), "asked for");
        }
        let (g, bytes) = (&mut self.gathering, job.bytes());
        self.shared.unseen.fetch_sub(bytes, Ordering::AcqRel);
        if g.jobs.last().is_none_or(|last| !Arc::ptr_eq(&last.table, &job.table)) {
            for spec in job.table.pieces().iter().filter_map(|piece| job.table.spec(piece)) {
                if !g.tensors.contains(&spec.name) {
                    g.tensors.insert(spec.name.clone());
                }
            }
        }
        g.raw = g.raw.saturating_add(raw);
        g.bytes += bytes;
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
        for stretches in by_tensor(&bundles) {
            self.packets(&stretches, &bundles);
        }
        drop(bundles);
        if !self.gathering.tokens.is_empty() {
            let tokens = std::mem::take(&mut self.gathering.tokens);
            self.send(What::Tokens(tokens));
        }
        let g = &mut self.gathering;
        g.tensors.clear();
        (g.raw, g.buffers, g.bytes, g.since) = (0, 0, 0, None);
    }

    /// The pieces of a tensor as packets that are neither too large nor too small.
    fn packets(&mut self, stretches: &[Stretch], bundles: &[Bundle]) {
        let mut open: Option<Open> = None;
        for stretch in stretches {
            let Some(table) = stretch.table(bundles) else { continue };
            let Some(piece) = table.pieces().get(stretch.piece as usize) else { continue };
            let Some(spec) = table.spec(piece) else { continue };
            let count = stretch.jobs.len() as u64;
            let all = Amount::new(piece.amount().tensors * count, piece.amount().bytes.saturating_mul(count));
            if piece.len == 0 {
                self.shared.account.captured(all);
            } else if !cut::fits(piece, spec.dtype.size(), self.shares.packet) {
                self.shared.account.lost(Reason::TooLarge, all);
            } else if piece.len <= self.shares.packet {
                let mut jobs = stretch.jobs.clone();
                while !jobs.is_empty() {
                    let kind = Kind { spec, route: piece.route, ne: piece.ne, token_dim: piece.token_dim };
                    let open = self.room_in(&mut open, &kind, piece.len);
                    let more = (self.shares.gather.saturating_sub(open.bytes()) / piece.len).clamp(1, jobs.len());
                    let taken = jobs.start..jobs.start + more as u32;
                    jobs.start = taken.end;
                    let amount = Amount::new(piece.amount().tensors * more as u64, (piece.len * more) as u64);
                    open.add(stretch, taken, None, amount, bundles);
                }
            } else {
                self.parts(&mut open, stretch, bundles);
            }
        }
        if let Some(last) = open {
            self.task(last.task);
        }
    }

    /// Pieces that are too large for a packet.
    fn parts(&mut self, open: &mut Option<Open>, stretch: &Stretch, bundles: &[Bundle]) {
        let Some(jobs) = bundles.get(stretch.bundle as usize) else { return };
        for number in stretch.jobs.clone() {
            let Some(job) = jobs.get(number as usize) else { continue };
            let (place, piece) =
                (job.places.get(stretch.piece as usize), job.table.pieces().get(stretch.piece as usize));
            let (Some(place), Some(piece)) = (place, piece) else { continue };
            let Some(spec) = job.table.spec(piece) else { continue };
            if place.form != Form::Values {
                // Where one row ends is not known any more.
                self.shared.account.lost(Reason::TooLarge, piece.amount());
                continue;
            }
            let mut runs = Vec::new();
            cut::cut(piece, self.shares.packet, &mut |run| runs.push(run));
            for run in runs {
                let kind = Kind { spec, route: piece.route, ne: run.ne, token_dim: piece.token_dim };
                let amount = Amount::new(if run.last { piece.amount().tensors } else { 0 }, run.len as u64);
                let open = self.room_in(open, &kind, run.len);
                open.add(stretch, number..number + 1, Some(Box::new(run)), amount, bundles);
            }
        }
    }

    /// The packet that takes `len` more bytes of this kind: the open one, or a new one.
    fn room_in<'a>(&mut self, open: &'a mut Option<Open>, kind: &Kind<'_>, len: usize) -> &'a mut Open {
        let fits = open.as_ref().is_some_and(|o| o.is_of(kind) && o.bytes() + len <= self.shares.gather);
        if !fits && let Some(full) = open.take() {
            self.task(full.task);
        }
        open.get_or_insert_with(|| Open::new(kind))
    }

    fn task(&mut self, mut task: Task) {
        task.order = self.next_order();
        self.gathering.tasks += 1;
        if task.is_large() {
            self.shared.large_tasks.fetch_add(1, Ordering::Relaxed);
        }
        // Workers end after us only; after a panic of theirs the stream has failed, and what is lost is counted
        // at its end.
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

/// What all of a packet have in common.
struct Kind<'a> {
    spec: &'a Arc<Spec>,
    route: Route,
    ne: [u32; 4],
    token_dim: u8,
}

impl Kind<'_> {
    fn row_len(&self) -> u32 {
        cut::row_len(&self.ne, self.token_dim)
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
    fn new(kind: &Kind<'_>) -> Self {
        let task = Task {
            order: 0,
            spec: Arc::clone(kind.spec),
            route: kind.route,
            row_len: kind.row_len(),
            bundles: Vec::new(),
            chunks: Vec::new(),
            amount: Amount::default(),
        };
        Self { task, width: kind.ne[0], bundle: None }
    }

    const fn bytes(&self) -> usize {
        self.task.amount.bytes as usize
    }

    fn is_of(&self, kind: &Kind<'_>) -> bool {
        let t = &self.task;
        let same = Arc::ptr_eq(&t.spec, kind.spec) || t.spec == *kind.spec;
        same && t.row_len == kind.row_len() && t.route == kind.route && self.width == kind.ne[0]
    }

    /// Takes so many jobs of a stretch, or a part of their piece.
    fn add(&mut self, of: &Stretch, jobs: Range<u32>, part: Option<Box<cut::Run>>, amount: Amount, bundles: &[Bundle]) {
        if self.bundle.replace(of.bundle) != Some(of.bundle) {
            self.task.bundles.extend(bundles.get(of.bundle as usize).cloned());
        }
        self.task.amount += amount;
        let bundle = self.task.bundles.len() as u32 - 1;
        self.task.chunks.push(Chunk { bundle, jobs, piece: of.piece, part });
    }
}
