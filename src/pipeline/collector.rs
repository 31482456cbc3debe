//! Gathers jobs until they are worth encoding, then cuts them into packets: all steps of a tensor together, tensors in
//! the order in which they first came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::account::{Amount, Reason};
use super::budget::Budget;
use super::cut::{self, Chunk};
use super::job::{Form, Job, Piece, Spec, Table};
use super::limits::{END_OF_STEP, GATHER, MOST_OUT, MOST_TOKENS, UNDER_PRESSURE};
use super::message::{Item, Message, Progress, Task};
use super::shared::Shared;
use crate::format::stream::Route;
use crate::mailbox::Inbox;
use crate::store::tokens::Told;

/// The collector's thread.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Inbox<Message>,
    pub(super) tasks: Sender<Task>,
    pub(super) out: Sender<Item>,
    pub(super) budget: Budget,
    pub(super) checkpoint_tokens: Option<u64>,
    pub(super) progress: Progress,
    pub(super) gathering: Gathering,
}

/// What is being gathered.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    jobs: Vec<Arc<Job>>,
    /// The pieces of each tensor, as numbers of jobs and of pieces in them, in the order in which they came.
    groups: Vec<Vec<(u32, u32)>>,
    /// Which group a tensor has.
    by_name: HashMap<String, u32>,
    /// The same for the pieces of the last table: steps of one graph share it.
    by_piece: Vec<u32>,
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
            let seal = self.gathering.since.map(|since| since + GATHER);
            let checkpoint =
                self.gathering.last_job.filter(|_| self.is_checkpoint_due()).map(|last| last + END_OF_STEP);
            let pressed =
                self.shared.pool.is_awaited().then(|| Instant::now() + UNDER_PRESSURE).filter(|_| seal.is_some());
            match self.inbox.take(seal.into_iter().chain(checkpoint).chain(pressed).min()) {
                Ok(Message::Job(job, raw)) => self.job(job, raw),
                Ok(Message::Token(token, text)) => {
                    self.shared.tokens_queued.fetch_sub(1, Ordering::AcqRel);
                    self.gathering.tokens.push((token, text));
                    self.gathering.since.get_or_insert_with(Instant::now);
                }
                Ok(Message::Pressed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Flush(done)) => {
                    self.seal();
                    self.send(Item::Flush(done));
                }
                Ok(Message::Finish) | Err(RecvTimeoutError::Disconnected) => {
                    self.seal();
                    self.send(Item::Finish(self.progress));
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
        let g = &self.gathering;
        let Some(since) = g.since else { return };
        let idle_workers = || self.tasks.is_empty() && self.inbox.is_empty() && self.shared.pool.is_awaited();
        // Tensors that make whole packets gain nothing by waiting, and what is encoded soon is still in the caches.
        let enough = self.budget.gathered_raw.min(g.groups.len().saturating_mul(self.budget.gather));
        let crowded = g.buffers >= MOST_OUT / 4;
        if crowded
            || g.raw >= enough.max(1)
            || g.bytes >= self.budget.gathered
            || g.tokens.len() >= MOST_TOKENS
            || idle_workers()
        {
            self.seal();
        } else if since.elapsed() >= GATHER {
            self.seal();
            self.send(Item::Settle);
        }
    }

    fn job(&mut self, job: Job, raw: usize) {
        if job.step != self.progress.last_step {
            // Between two steps, so that a resumed stream goes on with a whole one.
            self.checkpoint_if_due();
        }
        self.progress.last_step = job.step;
        self.progress.step_tokens += u64::from(job.tokens);
        self.shared.unseen.fetch_sub(job.bytes(), Ordering::AcqRel);
        self.gathering.add(job, raw);
    }

    fn is_checkpoint_due(&self) -> bool {
        self.checkpoint_tokens.is_some_and(|every| self.gathering.unchecked >= every)
    }

    fn checkpoint_if_due(&mut self) {
        if self.is_checkpoint_due() {
            self.seal();
            self.gathering.unchecked = 0;
            self.send(Item::Checkpoint(self.progress));
        }
    }

    /// Everything gathered goes to the workers.
    fn seal(&mut self) {
        let g = &mut self.gathering;
        let (jobs, groups) = (std::mem::take(&mut g.jobs), std::mem::take(&mut g.groups));
        let tokens = std::mem::take(&mut g.tokens);
        g.by_name.clear();
        g.by_piece.clear();
        (g.raw, g.buffers, g.bytes, g.since) = (0, 0, 0, None);
        for group in groups {
            let mut open = None;
            for (job, piece) in group {
                if let Some(job) = jobs.get(job as usize) {
                    self.piece(&mut open, job, piece);
                }
            }
            self.task(open);
        }
        if !tokens.is_empty() {
            self.send(Item::Tokens(tokens));
        }
    }

    /// A piece goes into packets that are neither too large nor too small.
    fn piece(&self, open: &mut Option<Open>, job: &Arc<Job>, number: u32) {
        let place = job.places.get(number as usize);
        let piece = job.table.pieces().get(number as usize);
        let Some((piece, place)) = piece.zip(place) else { return };
        let Some(spec) = job.table.spec(piece) else { return };
        let (is_small, all) = (piece.len <= self.budget.packet, piece.amount());
        let chunk = |part| Chunk { job: Arc::clone(job), piece: number, part };
        if piece.len == 0 {
            self.shared.account.captured(all);
        } else if !cut::fits(piece, spec.dtype.size(), self.budget.packet) || !(is_small || place.form == Form::Values)
        {
            // A row that is too long; or where one row ends is not known any more.
            self.shared.account.lost(Reason::TooLarge, all);
        } else if is_small {
            self.add(open, spec, Kind::of(piece, &piece.ne), all, chunk(None));
        } else {
            cut::cut(piece, self.budget.packet, &mut |run| {
                let amount = Amount::new(if run.last { all.tensors } else { 0 }, run.len as u64);
                self.add(open, spec, Kind::of(piece, &run.ne), amount, chunk(Some(Box::new(run))));
            });
        }
    }

    /// Adds a chunk to the open packet, or to a new one where it does not fit or is of another kind.
    fn add(&self, open: &mut Option<Open>, spec: &Arc<Spec>, kind: Kind, amount: Amount, chunk: Chunk) {
        let fits = |o: &Open| o.kind == kind && (o.amount.bytes + amount.bytes) as usize <= self.budget.gather;
        if !open.as_ref().is_some_and(fits) {
            self.task(open.take());
        }
        let new = || Open { spec: Arc::clone(spec), kind, chunks: Vec::new(), amount: Amount::default() };
        let open = open.get_or_insert_with(new);
        open.amount += amount;
        open.chunks.push(chunk);
    }

    /// The packet is full: a worker makes it, and the writer waits for it in its turn.
    fn task(&self, open: Option<Open>) {
        let Some(Open { spec, kind, chunks, amount }) = open else { return };
        let (done, made) = bounded(1);
        self.send(Item::Packet { made, spec: Arc::clone(&spec), amount });
        // Workers end after us only; after a panic of theirs the stream has failed, and what is lost is counted at its
        // end.
        let _ = self.tasks.send(Task { spec, route: kind.route, row_len: kind.row_len, chunks, amount, done });
    }

    fn send(&self, item: Item) {
        let _ = self.out.send(item);
    }
}

impl Gathering {
    fn add(&mut self, job: Job, raw: usize) {
        self.last_job = Some(Instant::now());
        self.since.get_or_insert_with(Instant::now);
        self.unchecked += u64::from(job.tokens);
        self.raw = self.raw.saturating_add(raw);
        self.bytes += job.bytes();
        self.buffers += job.data.len();
        if self.jobs.last().is_none_or(|last| !Arc::ptr_eq(&last.table, &job.table)) {
            self.look_up(&job.table);
        }
        let number = self.jobs.len() as u32;
        for (group, piece) in self.by_piece.iter().zip(0..) {
            if let Some(group) = self.groups.get_mut(*group as usize) {
                group.push((number, piece));
            }
        }
        self.jobs.push(Arc::new(job));
    }

    /// Which groups the pieces of `table` belong to.
    fn look_up(&mut self, table: &Table) {
        self.by_piece.clear();
        for piece in table.pieces() {
            // A table that is not sound does not come here.
            let Some(spec) = table.spec(piece) else { continue };
            let group = match self.by_name.get(&spec.name) {
                Some(group) => *group,
                None => {
                    let new = self.groups.len() as u32;
                    self.by_name.insert(spec.name.clone(), new);
                    self.groups.push(Vec::new());
                    new
                }
            };
            self.by_piece.push(group);
        }
    }
}

/// What all of a packet have in common, beside their tensor.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    route: Route,
    row_len: u32,
    /// Of the first dimension.
    width: u32,
}

impl Kind {
    /// Of values of a piece that have this shape.
    fn of(piece: &Piece, ne: &[u32; 4]) -> Self {
        Self { route: piece.route, row_len: cut::row_len(ne, piece.token_dim), width: ne[0] }
    }
}

/// A packet that takes more.
struct Open {
    spec: Arc<Spec>,
    kind: Kind,
    chunks: Vec<Chunk>,
    amount: Amount,
}
