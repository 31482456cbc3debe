//! The writer's thread: takes events out of the rings, makes lines of them, writes whole lines, and adds the interval's totals.
//!
//! It sleeps most of the time (every wake-up may cost a host that computes on all cores), has a low weight of the scheduler and
//! blocks all signals. On the first I/O error it says so once and the log ends; the host goes on, and so does a capture.

use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::event::{Event, Token};
use super::expand::{self, BestRates};
use super::host_sample::Sampler;
use super::rate::Budget;
use super::sink::Sink;
use super::summary::{self, Collector};
use super::{dropped, level, line_time, queue, stamp};
use crate::error::{Error, Result};
use crate::format::server::RequestToken;
use crate::format::session::{SessionEnd, SessionSummary};
use crate::format::summary::EventsDropped;
use crate::format::{Level, Line, round};
use crate::mailbox::Inbox;
use crate::mark::expand::Marks;
use crate::mark::sessions;
use crate::observe;
use crate::observe::steps::TOTALS;
use crate::{boundary, clock, gpu, host, log};

/// How long the thread sleeps between two looks at the rings: what a killed host can lose.
const NAP: Duration = Duration::from_millis(100);

/// Bytes of lines that are made before they are written.
const MOST_BUFFERED: usize = 1 << 20;

/// What the thread can be told.
#[derive(Debug)]
pub enum Command {
    /// Write everything that was pushed before, then answer.
    Flush(Sender<()>),
    /// The same, then close the log in order and answer.
    Stop(Sender<()>),
    /// A ring is half full: write what there is.
    Wake,
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
            boundary::guard((), || writer.run(&commands));
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

/// Whether the GPUs are still to be read behind the end of what the event tells.
fn waits_for_gpu(event: &Event, now: u64) -> bool {
    match event {
        Event::Line(line) => match &**line {
            Line::RequestEnd(end) => !gpu::energy_is_settled(end.t_ns, now),
            Line::ResourceSessionSummary(s) if !s.session_id.is_empty() => !gpu::energy_is_settled(s.t_ns, now),
            _ => false,
        },
        Event::Step(step) => {
            gpu::measures_sm() && step.plan.nodes.iter().any(|n| !n.place.is_cpu) && !gpu::is_settled(step.end_ns, now)
        }
        Event::Token(_) => false,
    }
}

struct Writer {
    sink: Option<Sink>,
    session_id: String,
    text: bool,
    buffer: Vec<u8>,
    pending: Vec<Event>,
    budget: Budget,
    collector: Collector,
    marks: Marks,
    /// Lines, bytes and dropped events when the caller's session began.
    named_from: (u64, u64, u64),
    /// When it began, and the tokens generated before.
    named_began: (u64, u64),
    gpu: gpu::Lines,
    /// Events that wait until the GPUs were read behind them.
    waiting: Vec<Event>,
    /// Tokens of the requests that ended.
    generated: u64,
    began_ns: u64,
    sampler: Sampler,
    rates: BestRates,
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
            collector: Collector::new(now),
            marks: Marks::new(options.bytes_per_second, options.text, now),
            named_from: (0, 0, 0),
            named_began: (now, 0),
            gpu: gpu::Lines::default(),
            waiting: Vec::new(),
            generated: 0,
            began_ns: now,
            sampler: Sampler::default(),
            rates: BestRates::default(),
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
            self.take_events(!matches!(command, Ok(Command::Wake) | Err(RecvTimeoutError::Timeout)));
            let now = clock::now_ns();
            let stopping = matches!(command, Ok(Command::Stop(_)) | Err(RecvTimeoutError::Disconnected));
            if stopping {
                let mut ends = Vec::new();
                self.marks.close(now, |line| ends.push(line));
                ends.into_iter().for_each(|line| self.put(line));
            }
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
                // Nobody may be waiting any more.
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
    fn take_events(&mut self, all: bool) {
        let mut events = std::mem::take(&mut self.pending);
        events.append(&mut self.waiting);
        super::awake();
        self.marks.drain(clock::now_ns(), |line| events.push(Event::Line(Box::new(line))));
        queue().drain(|e| events.push(e));
        if all {
            gpu::refresh();
        }
        let now = clock::now_ns();
        events.extend(self.gpu_lines(false).map(|line| Event::Line(Box::new(line))));
        // Rings are drained one after the other; the log is in order of time.
        events.sort_by_key(Event::t_ns);
        for event in events.drain(..) {
            if !all && waits_for_gpu(&event, now) {
                self.waiting.push(event);
                continue;
            }
            match event {
                Event::Line(line) => {
                    if matches!(*line, Line::RequestStart(_) | Line::ResourceTrackingBegin(_)) {
                        gpu::mark_energy();
                    }
                    self.gpu_summary_of(&line);
                    self.put(*line);
                    if self.buffer.len() > MOST_BUFFERED {
                        self.write_out();
                    }
                }
                Event::Token(token) => self.token(token),
                Event::Step(sample) => {
                    let before = self.buffer.len();
                    for line in expand::expand(&sample, level(), &mut self.rates) {
                        self.put_unbudgeted(line);
                    }
                    let bytes = (self.buffer.len() - before) as u64;
                    self.budget.spent_on_step(sample.permit, bytes, clock::now_ns());
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
        if let Some((summary, missing)) = self.collector.collect(now, level) {
            dropped::count("rate_limit", "step_events", missing.left_out);
            dropped::count("warm_up", "step_events", missing.warm_ups);
            self.put(Line::StepSummary(summary));
            // The steps' own totals: those of the marks would count the same work again.
            _ = self.marks.summary(now);
        } else if let Some(summary) = self.marks.summary(now) {
            self.put(Line::StepSummary(summary));
        }
        if level >= Level::Detailed {
            summary::moe_lines(now).for_each(|m| self.put(Line::MoeRouting(m)));
        }
        let sample = self.sampler.sample(now);
        self.put(Line::HostSample(sample));
        let lines: Vec<Line> = self.gpu_lines(stopping || level == Level::Minimal).collect();
        lines.into_iter().for_each(|line| self.put(line));
        let lost = queue().dropped();
        dropped::count("queue_full", "gpu_sample", gpu::take_overflowed());
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
        let (memory, requests) = {
            let host = observe::host();
            (host.buffers.peak_bytes(), host.requests.ended())
        };
        let sum = |f: fn(&observe::steps::Phase) -> &std::sync::atomic::AtomicU64| {
            TOTALS.phases.iter().map(|p| f(p).load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>()
        };
        let now = clock::now_ns();
        gpu::summaries(self.began_ns, now, self.generated).into_iter().for_each(|line| self.put(line));
        self.put(Line::ResourceSessionSummary(SessionSummary {
            timestamp: String::new(),
            session_id: String::new(),
            total_memory_mb: memory.map(|bytes| round(bytes as f64 / 1024.0 / 1024.0)),
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
        self.complete(&mut line);
        self.count_named(&mut line);
        let named = if matches!(line, Line::ResourceSessionSummary(_) | Line::ResourceSessionEnd(_)) {
            None
        } else {
            sessions::at(line_time(&line))
        };
        stamp(&mut line, named.as_deref().unwrap_or(&self.session_id));
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

    /// Lines of the GPUs that are due; with `all`, whatever there is.
    fn gpu_lines(&mut self, all: bool) -> impl Iterator<Item = Line> + use<> {
        let mut lines = self.gpu.take(level(), all);
        if super::paused() {
            let before = lines.len();
            lines.retain(|l| !matches!(l, Line::GpuSample(_)));
            dropped::count("disabled", "gpu_sample", (before - lines.len()) as u64);
        }
        lines.into_iter()
    }

    /// The summary of the caller's session comes with those of the GPUs.
    fn gpu_summary_of(&mut self, line: &Line) {
        match line {
            Line::ResourceTrackingBegin(b) => self.named_began = (b.t_ns, self.generated),
            Line::ResourceSessionSummary(s) if !s.session_id.is_empty() => {
                let (from_ns, generated) = self.named_began;
                for mut line in gpu::summaries(from_ns, s.t_ns, self.generated - generated) {
                    if let Line::GpuSummary(g) = &mut line {
                        g.session_id.clone_from(&s.session_id);
                    }
                    self.put(line);
                }
            }
            _ => {}
        }
    }

    /// Fills in what only the GPUs' readings tell.
    fn complete(&mut self, line: &mut Line) {
        match line {
            Line::RequestEnd(end) => {
                self.generated += end.generated_tokens;
                let start_ns = end.t_ns.saturating_sub((end.duration_ms * 1e6) as u64);
                end.gpu = gpu::use_between(start_ns, end.t_ns, end.generated_tokens);
            }
            Line::ComputeExecution(op) if op.sm_utilization_percent.is_none() => {
                op.sm_utilization_percent = gpu::sm_utilization(op.device.as_deref(), op.t_ns);
            }
            _ => {}
        }
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

    /// Nobody will find what is written into a deleted file.
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
