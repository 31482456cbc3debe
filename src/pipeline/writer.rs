//! What writes, on one thread at a time (`desk`): packets in their order, numbered; notes between them;
//! checkpoints; the end. On the first error the file is cut back to its last whole packet, and everything else is
//! counted as dropped.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::{Value, json};

use super::checkpoint::{self, Checkpoint};
use super::file::StreamFile;
use super::segment::Told;
use super::tokens::History;
use super::worker::Maker;
use super::{Amount, Reason, Shared, Spec};
use crate::error::{Error, Result};
use crate::format::stream::{self, IndexBuilder, Kind};
use crate::{clock, log};

/// The longest that bytes stay in the block while nothing else comes.
const PATIENCE: Duration = Duration::from_millis(500);

/// Packets in an index.
const INDEX_EVERY: usize = 16_384;

/// Where the host is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Tokens of all steps.
    pub(super) step_tokens: u64,
    /// The last step that was handed over.
    pub(super) last_step: u64,
}

/// Something for the writer, and its place.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) order: u64,
    pub(super) what: What,
}

/// What the writer does.
#[derive(Debug)]
pub(super) enum What {
    /// A packet of a worker.
    Packet { bytes: Vec<u8>, maker: Maker, spec: Arc<Spec>, amount: Amount },
    /// A packet that there is not.
    Lost { output: Vec<u8>, maker: Maker, reason: Reason, amount: Amount },
    /// Chosen tokens.
    Tokens(Vec<Told>),
    /// Everything before goes into the file now.
    Settle,
    /// A point to resume from.
    Checkpoint(Progress),
    /// The same as settle, and an answer.
    Flush(Sender<bool>),
    /// The end.
    Finish(Progress),
}

/// The writer.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    /// Empty outputs, to our workers and to the host's threads.
    pub(super) spare: Sender<Vec<u8>>,
    pub(super) helpers_spare: Sender<Vec<u8>>,
    pub(super) file: StreamFile,
    pub(super) path: PathBuf,
    pub(super) history: Option<History>,
    /// The tokens' file is written even without a token.
    pub(super) history_asked: bool,
    pub(super) index: IndexBuilder,
    /// Number of the next packet.
    pub(super) sequence: u64,
    pub(super) began_s: f64,
    pub(super) resume_count: u64,
    pub(super) state: State,
}

/// What the writer keeps.
#[derive(Debug, Default)]
pub(super) struct State {
    early: BTreeMap<u64, What>,
    next: u64,
    /// End and content of every packet that is not in the file yet.
    unsettled: VecDeque<(u64, Amount)>,
    /// End of the last packet that is, and the number behind its own.
    good_end: u64,
    good_sequence: u64,
    note: Vec<u8>,
    /// The last output that was given back, for the thread of the host that is at the desk.
    kept: Option<Vec<u8>>,
    dirty_since: Option<Instant>,
    failed: bool,
    /// The error was one that leaves room for a few last bytes.
    full: bool,
}

/// Unix seconds.
pub(super) fn now_s() -> f64 {
    clock::unix_us(clock::now_ns()) as f64 / 1e6
}

impl Writer {
    /// The first packet of this run. Called before the thread exists, so that the caller gets the error.
    pub(super) fn header(&mut self, fields: &Value) -> Result<()> {
        (self.state.good_end, self.state.good_sequence) = (self.file.end(), self.sequence);
        self.note(Kind::Header, |out, n, _| stream::write_header(out, n, fields))?;
        self.settle()
    }

    /// Something has come.
    pub(super) fn put(&mut self, item: Item) {
        self.state.early.insert(item.order, item.what);
    }

    /// Everything appended goes into the file.
    pub(super) fn settle_now(&mut self) {
        self.attempt(Self::settle);
    }

    /// When that should happen.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state.dirty_since.map(|since| since + PATIENCE)
    }

    /// Does what has come, in its order. At the end, whether the stream was closed in order.
    pub(super) fn go_on(&mut self) -> Option<bool> {
        while let Some(what) = self.state.early.remove(&self.state.next) {
            self.state.next += 1;
            if let What::Finish(progress) = what {
                self.attempt(|w| w.close(progress));
                self.last_words(progress);
                return Some(!self.state.failed && !self.shared.failed());
            }
            self.take(what);
        }
        None
    }

    /// The same, up to the first thing that may need the disk, which is given back.
    pub(super) fn go_on_lightly(&mut self) -> Option<Item> {
        while let Some(next) = self.state.early.first_entry().filter(|next| *next.key() == self.state.next) {
            let (order, what) = next.remove_entry();
            if !self.is_light(&what) {
                return Some(Item { order, what });
            }
            self.state.next += 1;
            self.take(what);
        }
        None
    }

    /// Whether it can be done in memory alone. The first packet after a pause is for the writer's thread, which then
    /// knows when to look again.
    fn is_light(&self, what: &What) -> bool {
        match what {
            What::Packet { bytes, .. } => {
                !self.state.failed
                    && self.state.dirty_since.is_some()
                    && self.file.has_room(bytes.len())
                    && self.index.index().entries.len() + 1 < INDEX_EVERY
            }
            What::Lost { .. } => true,
            _ => false,
        }
    }

    fn take(&mut self, what: What) {
        match what {
            What::Packet { mut bytes, maker, spec, amount } => {
                if self.state.failed {
                    self.shared.account.lost(Reason::IoError, amount);
                } else {
                    self.attempt(|w| w.packet(&mut bytes, Kind::Tensor, &spec.name, amount));
                }
                self.give_back(bytes, maker);
            }
            What::Lost { output, maker, reason, amount } => {
                self.shared.account.lost(reason, amount);
                self.give_back(output, maker);
            }
            What::Tokens(tokens) => {
                let sampled: Vec<_> = tokens.iter().map(|(t, _)| *t).collect();
                self.attempt(|w| w.note(Kind::Tokens, |out, n, _| stream::write_tokens(out, n, &sampled)));
                if !self.state.failed {
                    self.record(|history, now| history.add(&tokens, now));
                }
            }
            What::Settle => self.attempt(Self::settle),
            What::Checkpoint(progress) => self.attempt(|w| w.checkpoint(progress)),
            What::Flush(done) => {
                self.attempt(Self::settle);
                let _ = done.send(!self.state.failed);
            }
            What::Finish(_) => {}
        }
    }

    fn give_back(&mut self, output: Vec<u8>, maker: Maker) {
        // The one that comes back last is warm in the caches.
        let output = if maker == Maker::Helper { self.state.kept.replace(output) } else { Some(output) };
        let spare = if maker == Maker::Worker { &self.spare } else { &self.helpers_spare };
        // The workers may be gone.
        output.into_iter().for_each(|output| _ = spare.send(output));
    }

    /// An output of the host's threads that has come back, if one has since the last call.
    pub(super) fn kept_output(&mut self) -> Option<Vec<u8>> {
        self.state.kept.take()
    }

    /// Does something with the file, unless that has failed before.
    fn attempt(&mut self, what: impl FnOnce(&mut Self) -> Result<()>) {
        if self.state.failed {
            self.state.dirty_since = None;
            return;
        }
        if let Err(e) = what(self) {
            self.fail(e);
        }
    }

    /// Cuts the file back to its last whole packet. What was not in it is lost.
    fn fail(&mut self, problem: Error) {
        self.state.failed = true;
        self.state.dirty_since = None;
        self.count_settled();
        for (_, amount) in self.state.unsettled.drain(..) {
            self.shared.account.lost(Reason::IoError, amount);
        }
        let _ = self.file.cut(self.state.good_end);
        self.sequence = self.state.good_sequence;
        self.shared.packets.store(self.sequence, Ordering::Relaxed);
        self.shared.bytes.store(self.state.good_end, Ordering::Relaxed);
        self.shared.fail(problem);
    }

    /// Numbers a packet and appends it.
    fn packet(&mut self, bytes: &mut [u8], kind: Kind, name: &str, amount: Amount) -> Result<()> {
        stream::set_sequence(bytes, self.sequence)?;
        // Whatever happens now, the packet is counted once: here, or when the file fails.
        self.state.unsettled.push_back((self.file.end() + bytes.len() as u64, amount));
        self.file.append(bytes).map_err(|e| self.io_error(e))?;
        self.sequence += 1;
        self.shared.packets.store(self.sequence, Ordering::Relaxed);
        self.state.dirty_since.get_or_insert_with(Instant::now);
        self.count_settled();
        if kind == Kind::Index {
            self.index.written(bytes.len() as u32);
        } else {
            self.index.push(kind, name, bytes.len() as u32);
            if self.index.index().entries.len() >= INDEX_EVERY {
                self.write_index()?;
            }
        }
        Ok(())
    }

    /// Writes a packet of ours.
    fn note(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>, u64, &IndexBuilder) -> Result<()>) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.state.note);
        bytes.clear();
        let result = write(&mut bytes, self.sequence, &self.index)
            .and_then(|()| self.packet(&mut bytes, kind, kind.packet_name().unwrap_or_default(), Amount::default()));
        self.state.note = bytes;
        result
    }

    fn write_index(&mut self) -> Result<()> {
        if self.index.is_empty() {
            return Ok(());
        }
        self.note(Kind::Index, |out, n, index| stream::write_index(out, n, index.index()))
    }

    /// Everything appended goes into the file.
    fn settle(&mut self) -> Result<()> {
        self.file.settle().map_err(|e| self.io_error(e))?;
        self.state.dirty_since = None;
        self.count_settled();
        Ok(())
    }

    fn count_settled(&mut self) {
        let settled = self.file.settled();
        let mut sum = Amount::default();
        while let Some((end, amount)) = self.state.unsettled.front().copied().filter(|(end, _)| *end <= settled) {
            sum += amount;
            self.state.good_end = end;
            self.state.good_sequence += 1;
            self.state.unsettled.pop_front();
        }
        if sum != Amount::default() {
            self.shared.account.captured(sum);
        }
        self.shared.bytes.store(self.state.good_end, Ordering::Relaxed);
    }

    /// Account, index and checkpoint packet, the disk waited for, the checkpoint's file replaced.
    fn checkpoint(&mut self, progress: Progress) -> Result<()> {
        let checkpoint = self.checkpoint_packets(progress)?;
        self.file.sync().map_err(|e| self.io_error(e))?;
        let path = checkpoint::path_of(&self.path);
        if let Err(e) = checkpoint.save(&path) {
            // The stream has the same in itself.
            log::warn(format!("the checkpoint {} could not be written: {e}", path.display()));
        }
        Ok(())
    }

    fn checkpoint_packets(&mut self, progress: Progress) -> Result<Checkpoint> {
        self.record(|history, now| {
            let result = if history.count() > 0 { history.write(now) } else { Ok(()) };
            history.sync();
            result
        });
        // First, so that the account knows what is in the file.
        self.settle()?;
        let account = self.shared.account.totals().to_json();
        self.note(Kind::Account, |out, n, _| stream::write_account(out, n, &account))?;
        self.write_index()?;
        let history = self.history.as_ref();
        let mut checkpoint = Checkpoint {
            stream_offset: 0,
            next_packet: self.sequence + 1,
            total_tokens: history.map_or(0, History::count),
            tokens_offset: history.map_or(0, History::offset),
            tokens_file: history.map(|h| h.path().to_string_lossy().into_owned()).unwrap_or_default(),
            step_tokens: progress.step_tokens,
            last_step: progress.last_step,
            account,
            last_index: self.index.previous(),
            start_s: self.began_s,
            now_s: now_s(),
            resume_count: self.resume_count,
        };
        let packet = checkpoint.to_packet();
        self.note(Kind::Checkpoint, |out, n, _| stream::write_checkpoint(out, n, &packet))?;
        self.settle()?;
        checkpoint.stream_offset = self.file.end();
        Ok(checkpoint)
    }

    /// The end in order.
    fn close(&mut self, progress: Progress) -> Result<()> {
        let asked = self.history_asked;
        self.record(|history, now| if asked || history.count() > 0 { history.write(now) } else { Ok(()) });
        self.checkpoint_packets(progress)?;
        self.end(progress)?;
        self.shared.keeping.store(true, Ordering::Relaxed);
        // Gives back what was reserved and never written.
        self.file.cut(self.file.end()).and_then(|()| self.file.sync()).map_err(|e| self.io_error(e))?;
        checkpoint::remove(&checkpoint::path_of(&self.path));
        Ok(())
    }

    fn end(&mut self, progress: Progress) -> Result<()> {
        let end = json!({
            "account": self.shared.account.totals().to_json(),
            "packets": self.sequence + 1,
            "tokens": progress.step_tokens,
            "steps": progress.last_step,
            "chosen_tokens": self.history.as_ref().map_or(0, History::count),
            "chosen_tokens_lost": self.shared.tokens_lost.load(Ordering::Relaxed),
        });
        let last = self.index.previous();
        self.note(Kind::End, |out, n, _| stream::write_end(out, n, &end, last))?;
        self.settle()
    }

    /// A full disk may have room for the account of what it had no room for: the space of the packet that was cut off.
    fn last_words(&mut self, progress: Progress) {
        if !std::mem::take(&mut self.state.full) || self.shared.account.totals().all_dropped() == Amount::default() {
            return;
        }
        self.state.failed = false;
        self.attempt(|w| {
            let account = w.shared.account.totals().to_json();
            // No index: one without the packets since the last would hide them. Readers step through the file.
            w.index = IndexBuilder::new(w.file.end(), None);
            w.note(Kind::Account, |out, n, _| stream::write_account(out, n, &account))?;
            w.end(progress)
        });
        self.state.failed = true;
    }

    /// Does something with the tokens' file; the first failure ends it, told once.
    fn record(&mut self, what: impl FnOnce(&mut History, f64) -> Result<()>) {
        if let Some(history) = &mut self.history
            && let Err(e) = what(history, now_s())
        {
            log::warn(format!("{e}. The stream goes on, and holds the tokens too"));
            self.history = None;
        }
    }

    fn io_error(&mut self, e: std::io::Error) -> Error {
        let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EFBIG | libc::EDQUOT));
        self.state.full |= full;
        let remedy = match e.raw_os_error() {
            Some(libc::EFBIG) => "raise the limit of file sizes (ulimit -f)",
            _ if full => "free space, or capture less",
            _ => "check the disk",
        };
        Error::new("writing the stream", self.path.display().to_string(), e, remedy)
    }
}
