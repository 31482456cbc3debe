//! The writer's thread: takes events out of the rings, makes lines of them, writes whole lines, and adds
//! the interval's totals.
//!
//! It sleeps most of the time (every wake-up may cost a host that computes on all cores), has a low weight of the
//! scheduler and blocks all signals. On the first I/O error it says so once and the log ends; the host goes on, and so
//! does a capture.

use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::sink::Sink;
use crate::error::{Error, Result};
use crate::format::Line;
use crate::format::figures::round;
use crate::format::server::RequestToken;
use crate::format::session::{SessionEnd, SessionSummary};
use crate::format::summary::EventsDropped;
use crate::journal::rate::Budget;
use crate::journal::stamp::stamp;
use crate::journal::{self, Command, Event, Moment, Source, Token, dropped, level, queue};
use crate::mailbox::Inbox;
use crate::{boundary, clock, host, log};

/// How long the thread sleeps between two looks at the rings: what a killed host can lose.
const NAP: Duration = Duration::from_millis(100);

/// Bytes of lines that are made before they are written.
const MOST_BUFFERED: usize = 1 << 20;

/// Where and how to write.
#[derive(Debug)]
pub struct Options {
    /// The open log.
    pub sink: Sink,
    /// Session.
    pub session_id: String,
    /// Bytes a second, `None` for no limit.
    pub bytes_per_second: Option<u64>,
    /// Token ids may be written.
    pub text: bool,
    /// The first line.
    pub first: Line,
    /// The sources of lines, in the order in which the lines of an interval are written.
    pub sources: Vec<Box<dyn Source>>,
    /// Called once, when a step of the host has been written.
    pub at_first_step: fn(),
    /// Called once, when the log cannot be written any more. True if the hooks go on without it, for a capture.
    pub at_failure: fn() -> bool,
}

/// Writes the first line, which shows whether the log can be written at all, and starts the thread.
pub fn spawn(options: Options, commands: Inbox<Command>) -> Result<std::thread::JoinHandle<()>> {
    let (hand_over, take_over) = bounded::<Writer>(1);
    // The new thread inherits the mask: no signal meant for the host is ever delivered to us.
    let old = host::block_signals();
    let handle = std::thread::Builder::new().name("lri-writer".into()).stack_size(1 << 20).spawn(move || {
        boundary::mark_own_thread();
        host::become_background_thread(c"lri-writer");
        if let Ok(writer) = take_over.recv() {
            boundary::catching((), || writer.run(&commands));
        }
    });
    host::restore_signals(&old);
    let handle = handle
        .map_err(|e| Error::new("starting", "the writer's thread", e, "raise the limit of threads (ulimit -u)"))?;
    let writer = host::without_write_signals(|| Writer::new(options))?;
    // The thread waits for it.
    let _ = hand_over.send(writer);
    Ok(handle)
}

struct Writer {
    sink: Option<Sink>,
    session_id: String,
    text: bool,
    buffer: Vec<u8>,
    pending: Vec<Event>,
    budget: Budget,
    sources: Vec<Box<dyn Source>>,
    /// Lines, bytes and dropped events when the caller's session began.
    named_from: (u64, u64, u64),
    /// Events that a source will soon know more of.
    waiting: Vec<Event>,
    next_interval_ns: u64,
    interval_began_ns: u64,
    token_bytes: u64,
    lines: u64,
    bytes: u64,
    dropped: u64,
    ring_drops: u64,
    told_deleted: bool,
    at_first_step: Option<fn()>,
    at_failure: fn() -> bool,
}

impl Writer {
    fn new(options: Options) -> Result<Self> {
        let now = clock::now_ns();
        let mut writer = Self {
            sink: Some(options.sink),
            session_id: options.session_id,
            text: options.text,
            buffer: Vec::with_capacity(1 << 16),
            pending: Vec::new(),
            budget: Budget::new(options.bytes_per_second, now),
            sources: options.sources,
            named_from: (0, 0, 0),
            waiting: Vec::new(),
            next_interval_ns: now + level().summary_interval_ms() * 1_000_000,
            interval_began_ns: now,
            token_bytes: 0,
            lines: 0,
            bytes: 0,
            dropped: 0,
            ring_drops: queue().dropped(),
            told_deleted: false,
            at_first_step: Some(options.at_first_step),
            at_failure: options.at_failure,
        };
        writer.put(options.first);
        writer.try_write_out()?;
        if let Some(sink) = &writer.sink {
            sink.wait_from_now_on();
        }
        Ok(writer)
    }

    fn run(mut self, commands: &Inbox<Command>) {
        loop {
            let command = commands.take(Some(Instant::now() + NAP));
            let all = !matches!(command, Ok(Command::Wake) | Err(RecvTimeoutError::Timeout));
            let stopping = matches!(command, Ok(Command::Stop(_)) | Err(RecvTimeoutError::Disconnected));
            self.take_events(all, stopping);
            let now = clock::now_ns();
            if now >= self.next_interval_ns || stopping {
                self.interval(now, stopping);
            }
            if stopping {
                self.close();
            }
            self.write_out();
            if self.sink.is_none() {
                return;
            }
            match command {
                // The caller may have given up waiting.
                Ok(Command::Flush(done)) => _ = done.send(()),
                Ok(Command::Stop(done)) => {
                    _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Wake) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// With `all`, nothing is kept back.
    fn take_events(&mut self, all: bool, ends: bool) {
        let mut events = std::mem::take(&mut self.pending);
        events.append(&mut self.waiting);
        journal::awake();
        queue().drain(|e| events.push(e));
        let at = Moment { now_ns: clock::now_ns(), level: level(), all, ends };
        self.sources.iter_mut().for_each(|s| s.drain(at, &mut events));
        let now = clock::now_ns();
        // Rings are drained one after the other; the log is in order of time.
        events.sort_by_key(Event::t_ns);
        for event in events.drain(..) {
            if !all && !self.sources.iter().all(|s| s.is_settled(&event, now)) {
                self.waiting.push(event);
                continue;
            }
            match event {
                Event::Line(line) => {
                    self.put(*line);
                    if self.buffer.len() > MOST_BUFFERED {
                        self.write_out();
                    }
                }
                Event::Token(token) => self.token(token),
                Event::Step(sample) => {
                    let before = self.buffer.len();
                    let mut lines = Vec::new();
                    self.sources.iter_mut().for_each(|s| s.expand(&*sample, at.level, &mut lines));
                    lines.into_iter().for_each(|line| self.put_unbudgeted(line));
                    let bytes = (self.buffer.len() - before) as u64;
                    self.budget.spent_on_step(sample.into_permit(), bytes, clock::now_ns());
                    // A step may be a quarter of a megabyte: it must not pile up behind others.
                    self.write_out();
                    if let Some(call) = self.at_first_step.take() {
                        call();
                    }
                }
            }
        }
        self.pending = events;
    }

    fn token(&mut self, t: Token) {
        let interval_s = self.next_interval_ns.saturating_sub(self.interval_began_ns) as f64 / 1e9;
        if !self.budget.token_events_fit(self.token_bytes, interval_s) {
            dropped::count("rate_limit", "request_token", 1);
            return;
        }
        let before = self.buffer.len();
        self.put(Line::RequestToken(RequestToken {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: t.t_ns,
            request_id: t.request_id,
            seq_id: t.seq_id,
            index: t.index,
            token_id: self.text.then_some(t.token_id),
            since_previous_ms: round(t.since_previous_ns as f64 / 1e6),
        }));
        self.token_bytes += (self.buffer.len() - before) as u64;
    }

    fn interval(&mut self, now: u64, stopping: bool) {
        let level = level();
        clock::correct();
        self.budget.interval(now);
        let at = Moment { now_ns: now, level, all: stopping, ends: stopping };
        self.ask(|source, out| source.interval(at, out));
        let lost = queue().dropped();
        dropped::count("queue_full", "event", lost - std::mem::replace(&mut self.ring_drops, lost));
        for (reason, kind, count) in dropped::take() {
            self.dropped += count;
            self.put(Line::EventsDropped(EventsDropped {
                timestamp: String::new(),
                session_id: String::new(),
                t_ns: now,
                reason: reason.to_owned(),
                kind: kind.to_owned(),
                count,
            }));
        }
        self.tell_if_deleted();
        self.interval_began_ns = now;
        self.next_interval_ns = now + level.summary_interval_ms() * 1_000_000;
        self.token_bytes = 0;
    }

    fn close(&mut self) {
        let now = clock::now_ns();
        self.ask(|source, out| source.close(now, out));
        self.put(Line::ResourceSessionSummary(SessionSummary {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now,
            lines_written: self.lines,
            bytes_written: self.bytes + self.buffer.len() as u64,
            events_dropped: self.dropped,
            // The sources know.
            total_memory_mb: None,
            total_compute_gflops: 0.0,
            component_flows: 0,
            steps: 0,
            requests: 0,
        }));
        self.put(Line::ResourceSessionEnd(SessionEnd {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now,
        }));
    }

    /// Writes what the sources have to say, one after the other.
    fn ask(&mut self, mut question: impl FnMut(&mut dyn Source, &mut Vec<Line>)) {
        let mut lines = Vec::new();
        self.sources.iter_mut().for_each(|source| question(&mut **source, &mut lines));
        lines.into_iter().for_each(|line| self.put(line));
    }

    fn put(&mut self, line: Line) {
        let before = self.buffer.len();
        self.put_unbudgeted(line);
        self.budget.spent_otherwise((self.buffer.len() - before) as u64);
    }

    fn put_unbudgeted(&mut self, mut line: Line) {
        let mut ahead = Vec::new();
        self.sources.iter_mut().for_each(|s| s.complete(&mut line, &mut ahead));
        ahead.into_iter().for_each(|line| self.put(line));
        self.count_named(&mut line);
        stamp(&mut line, &self.session_id);
        let before = self.buffer.len();
        if serde_json::to_writer(&mut self.buffer, &line).is_err() {
            // Nothing in these types can fail to serialise; if it ever does, the line is lost and counted, not the log.
            self.buffer.truncate(before);
            dropped::count("internal", line.kind(), 1);
            return;
        }
        self.buffer.push(b'\n');
        self.lines += 1;
    }

    /// The summary of the caller's session says what was written while it lasted.
    fn count_named(&mut self, line: &mut Line) {
        let now = (self.lines, self.bytes + self.buffer.len() as u64, self.dropped);
        match line {
            Line::ResourceTrackingBegin(_) => self.named_from = now,
            Line::ResourceSessionSummary(s) if !s.session_id.is_empty() => {
                s.lines_written = now.0 - self.named_from.0;
                s.bytes_written = now.1 - self.named_from.1;
                s.events_dropped = now.2 - self.named_from.2;
            }
            _ => {}
        }
    }

    fn write_out(&mut self) {
        if let Err(e) = self.try_write_out() {
            self.sink = None;
            let what = if (self.at_failure)() {
                "No more events are recorded; the capture goes on, and the host"
            } else {
                "Recording has ended; the host goes on"
            };
            log::error(format!("{e}. {what}"));
        }
    }

    fn try_write_out(&mut self) -> Result<()> {
        if let Some(sink) = self.sink.as_mut().filter(|_| !self.buffer.is_empty()) {
            sink.write(&self.buffer)?;
            self.bytes += self.buffer.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }

    /// The file may have been deleted: what is written into it then is lost.
    fn tell_if_deleted(&mut self) {
        if let Some(sink) = self.sink.as_ref().filter(|s| !self.told_deleted && s.is_deleted()) {
            self.told_deleted = true;
            log::warn(format!(
                "the log {} was deleted while it was written; what is recorded from here on is lost. Restart the host to record again",
                sink.path().display()
            ));
        }
    }
}
