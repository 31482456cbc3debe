//! The writer's thread: takes events out of the rings, makes lines of them, writes whole lines, and adds the interval's totals.
//!
//! It sleeps most of the time (every wake-up may cost a host that computes on all cores), has the lowest weight of the scheduler and
//! blocks all signals. On the first I/O error it says so once and recording ends; the host goes on.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::event::{Event, Token};
use super::expand::{self, BestRates, round};
use super::host_sample::Sampler;
use super::rate::Budget;
use super::sink::Sink;
use super::summary::{self, Collector};
use super::{dropped, level, queue, stamp};
use crate::format::server::RequestToken;
use crate::format::session::{SessionEnd, SessionSummary};
use crate::format::summary::EventsDropped;
use crate::format::{Level, Line};
use crate::observe;
use crate::observe::steps::TOTALS;
use crate::{boundary, clock, host, log};

/// How long the thread sleeps between two looks at the rings: what a killed host can lose.
const NAP: Duration = Duration::from_millis(100);

/// What the thread can be told.
#[derive(Debug)]
pub enum Command {
    /// Write everything that was pushed before, then answer.
    Flush(Sender<()>),
    /// The same, then close the log in order and answer.
    Stop(Sender<()>),
}

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
}

/// Starts the thread.
pub fn spawn(options: Options, commands: Receiver<Command>) -> std::io::Result<std::thread::JoinHandle<()>> {
    // The new thread inherits the mask: no signal meant for the host is ever delivered to us.
    let old = host::block_signals();
    let handle = std::thread::Builder::new().name("lri-writer".into()).stack_size(1 << 20).spawn(move || {
        boundary::mark_own_thread();
        host::become_background_thread(c"lri-writer");
        boundary::guard((), || Writer::new(options).run(&commands));
    });
    host::restore_signals(&old);
    handle
}

struct Writer {
    sink: Option<Sink>,
    session_id: String,
    text: bool,
    buffer: Vec<u8>,
    pending: Vec<Event>,
    budget: Budget,
    collector: Collector,
    sampler: Sampler,
    rates: BestRates,
    next_interval_ns: u64,
    interval_began_ns: u64,
    token_bytes: u64,
    lines: u64,
    bytes: u64,
    dropped: u64,
    ring_drops: u64,
}

impl Writer {
    fn new(options: Options) -> Self {
        let now = clock::now_ns();
        let mut writer = Self {
            sink: Some(options.sink),
            session_id: options.session_id,
            text: options.text,
            buffer: Vec::with_capacity(1 << 16),
            pending: Vec::new(),
            budget: Budget::new(options.bytes_per_second, now),
            collector: Collector::new(now),
            sampler: Sampler::default(),
            rates: BestRates::default(),
            next_interval_ns: now + level().summary_interval_ms() * 1_000_000,
            interval_began_ns: now,
            token_bytes: 0,
            lines: 0,
            bytes: 0,
            dropped: 0,
            ring_drops: queue().dropped(),
        };
        writer.put(options.first);
        writer.write_out();
        writer
    }

    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let command = commands.recv_timeout(NAP);
            self.take_events();
            let now = clock::now_ns();
            let stopping = matches!(command, Ok(Command::Stop(_)) | Err(RecvTimeoutError::Disconnected));
            if now >= self.next_interval_ns || stopping {
                self.interval(now);
            }
            if stopping {
                self.close();
            }
            self.write_out();
            match command {
                // Nobody may be waiting any more.
                Ok(Command::Flush(done)) => _ = done.send(()),
                Ok(Command::Stop(done)) => {
                    _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn take_events(&mut self) {
        let mut events = std::mem::take(&mut self.pending);
        queue().drain(|e| events.push(e));
        // Rings are drained one after the other; the log is in order of time.
        events.sort_by_key(Event::t_ns);
        for event in events.drain(..) {
            match event {
                Event::Line(line) => self.put(*line),
                Event::Token(token) => self.token(token),
                Event::Step(sample) => {
                    let before = self.buffer.len();
                    for line in expand::expand(&sample, level(), &mut self.rates) {
                        self.put_unbudgeted(line);
                    }
                    let bytes = (self.buffer.len() - before) as u64;
                    let prefill = sample.plan.n_tokens.is_some_and(|n| n > sample.sequences.len().max(1) as u64);
                    self.budget.spent_on_step(prefill, bytes, clock::now_ns());
                    // A step may be a quarter of a megabyte: it must not pile up behind others.
                    self.write_out();
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

    fn interval(&mut self, now: u64) {
        let level = level();
        if let Some((summary, left_out)) = self.collector.collect(now, level) {
            dropped::count("rate_limit", "step_events", left_out);
            self.put(Line::StepSummary(summary));
        }
        if level >= Level::Detailed {
            summary::moe_lines(now).for_each(|m| self.put(Line::MoeRouting(m)));
        }
        let sample = self.sampler.sample(now);
        self.put(Line::HostSample(sample));
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
        self.interval_began_ns = now;
        self.next_interval_ns = now + level.summary_interval_ms() * 1_000_000;
        self.token_bytes = 0;
    }

    fn close(&mut self) {
        let (memory, requests) = {
            let host = observe::host();
            (host.buffers.peak_bytes(), host.requests.ended())
        };
        let sum = |f: fn(&observe::steps::Phase) -> &std::sync::atomic::AtomicU64| {
            TOTALS.phases.iter().map(|p| f(p).load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>()
        };
        let now = clock::now_ns();
        self.put(Line::ResourceSessionSummary(SessionSummary {
            timestamp: String::new(),
            session_id: String::new(),
            total_memory_mb: round(memory as f64 / 1024.0 / 1024.0),
            total_compute_gflops: sum(|p| &p.flops) as f64 / 1e9,
            component_flows: TOTALS.flows.load(std::sync::atomic::Ordering::Relaxed),
            t_ns: now,
            steps: sum(|p| &p.steps),
            requests,
            lines_written: self.lines,
            bytes_written: self.bytes + self.buffer.len() as u64,
            events_dropped: self.dropped,
        }));
        self.put(Line::ResourceSessionEnd(SessionEnd {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now,
        }));
    }

    fn put(&mut self, line: Line) {
        let before = self.buffer.len();
        self.put_unbudgeted(line);
        self.budget.spent_otherwise((self.buffer.len() - before) as u64);
    }

    fn put_unbudgeted(&mut self, mut line: Line) {
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

    fn write_out(&mut self) {
        let Some(sink) = &mut self.sink else {
            self.buffer.clear();
            return;
        };
        if self.buffer.is_empty() {
            return;
        }
        match sink.write(&self.buffer) {
            Ok(()) => self.bytes += self.buffer.len() as u64,
            Err(e) => {
                log::error(format!("{e}. Recording has ended; the host goes on"));
                self.sink = None;
                boundary::set_phase(boundary::Phase::Stopped);
            }
        }
        self.buffer.clear();
    }
}
