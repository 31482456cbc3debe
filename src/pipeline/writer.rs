//! The writer's thread: packets and notes in the order of its queue, numbered; checkpoints; the end. On the first error
//! the file is cut back to its last whole packet, and everything else is counted as dropped.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use serde_json::{Value, json};

use super::account::{Amount, Reason};
use super::limits::{INDEX_EVERY, NAP, SETTLE};
use super::message::{Item, Made, Progress};
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::format::stream::{self, IndexBuilder, Kind};
use crate::store::checkpoint::{self, Checkpoint};
use crate::store::file::StreamFile;
use crate::store::tokens::History;
use crate::{clock, log};

/// The writer.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    /// Empty outputs, to the workers.
    pub(super) spare: Sender<Vec<u8>>,
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
    /// End and content of every packet that is not in the file yet.
    unsettled: VecDeque<(u64, Amount)>,
    /// End of the last packet that is, and the number behind its own.
    good_end: u64,
    good_sequence: u64,
    note: Vec<u8>,
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

    /// Until the end. True if the stream was closed in order.
    pub(super) fn run(mut self, items: &Receiver<Item>) -> bool {
        let _ = self.shared.writer.set(thread::current());
        loop {
            let next = match self.due() {
                Some(due) => items.recv_deadline(due),
                None => items.recv().map_err(RecvTimeoutError::from),
            };
            match next {
                Ok(item) => {
                    if let Some(in_order) = self.take(item) {
                        return in_order;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.attempt(Self::settle),
                // The collector is gone.
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// When everything appended goes into the file, if nothing else comes.
    fn due(&self) -> Option<Instant> {
        self.state.dirty_since.map(|since| since + SETTLE)
    }

    /// Whether the stream was closed in order, at its end.
    fn take(&mut self, item: Item) -> Option<bool> {
        match item {
            Item::Packet { made, spec, amount } => match self.wait_for(&made) {
                Some(Made { mut bytes, result }) => {
                    match result {
                        Err(reason) => self.shared.account.lost(reason, amount),
                        Ok(()) if self.state.failed => self.shared.account.lost(Reason::IoError, amount),
                        Ok(()) => self.attempt(|w| w.packet(&mut bytes, Kind::Tensor, &spec.name, amount)),
                    }
                    // The workers may be gone.
                    let _ = self.spare.send(bytes);
                }
                None => self.shared.account.lost(Reason::Internal, amount),
            },
            Item::Tokens(tokens) => {
                let sampled: Vec<_> = tokens.iter().map(|(t, _)| *t).collect();
                self.attempt(|w| w.note(Kind::Tokens, |out, n, _| stream::write_tokens(out, n, &sampled)));
                if !self.state.failed {
                    self.record(|history, now| history.add(&tokens, now));
                }
            }
            Item::Settle => self.attempt(Self::settle),
            Item::Checkpoint(progress) => self.attempt(|w| w.checkpoint(progress)),
            Item::Flush(done) => {
                self.attempt(Self::settle);
                let _ = done.send(!self.state.failed);
            }
            Item::Finish(progress) => {
                self.attempt(|w| w.close(progress));
                self.last_words(progress);
                return Some(!self.state.failed && !self.shared.failed());
            }
        }
        None
    }

    /// The packet that a worker makes; `None` if the worker has panicked. Sleeps until some are made: a thread that
    /// wakes for each takes a core from a host that computes on all of them.
    fn wait_for(&mut self, made: &Receiver<Made>) -> Option<Made> {
        loop {
            match made.try_recv() {
                Ok(made) => return Some(made),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            let nap_ends = Instant::now() + NAP;
            let until = self.due().map_or(nap_ends, |due| due.min(nap_ends));
            thread::park_timeout(until.saturating_duration_since(Instant::now()));
            if self.due().is_some_and(|due| due <= Instant::now()) {
                self.attempt(Self::settle);
            }
        }
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
