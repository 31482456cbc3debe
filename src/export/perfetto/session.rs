//! One session of a log as one process of the trace.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::counters::Counters;
use super::requests::Requests;
use super::step::{Depth, Edge, Slice, Step, nest};
use super::trace::{Kind, Name, Notes, Sequence, Trace, Value};
use super::tracks::{Group, Tracks};
use super::unsampled::{Gap, Summary, Unsampled};
use crate::format::Line;
use crate::format::resource::{KvCacheOperation, SplitExecution};
use crate::format::server::{Batch, ModelLoad};
use crate::format::session::SessionStart;
use crate::format::summary::{EventsDropped, StepSummary};

/// Calls whose steps may still come.
const MOST_BATCHES: usize = 64;

/// Tracks of steps, at most: those of a log in which everything overlaps are left out.
const MOST_THREADS: usize = 8;

/// A track of steps.
#[derive(Debug)]
struct Thread {
    sequence: Sequence,
    busy_until: u64,
}

/// What is known of a session, in constant memory but for one step and the open requests.
#[derive(Debug)]
pub(super) struct Session {
    tracks: Tracks,
    /// From the log's clock to the trace's.
    offset: i64,
    /// Number of the session in the trace, for what belongs together.
    number: u64,
    program: String,
    named: bool,
    last_t: u64,
    threads: Vec<Thread>,
    step: Step,
    /// Steps written.
    pub(super) steps: u64,
    /// Slices that found no track.
    pub(super) left_out: u64,
    batches: VecDeque<Batch>,
    unsampled: Unsampled,
    requests: Requests,
    counters: Counters,
}

fn ns(us: f64) -> u64 {
    // A cast of a float ends at the limits of the integer.
    (us * 1e3).round() as u64
}

impl Session {
    /// Begins at `t_ns` of the log. `pid`: unless it is unknown, or another process of the trace has it.
    pub(super) fn new<W: Write>(
        trace: &mut Trace<W>,
        number: u64,
        (t_ns, offset): (u64, i64),
        start: Option<&SessionStart>,
        pid: Option<u32>,
    ) -> io::Result<Self> {
        let t = t_ns.saturating_add_signed(offset);
        let said = start.map_or_else(Vec::new, |s| {
            let words = [&s.session_id, s.level.name(), &s.mode, &s.library_version].map(str::to_owned);
            ["session_id", "level", "mode", "library_version"].into_iter().zip(words).collect()
        });
        let labels: Vec<String> = said.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let unix_ns = start.map(|s| s.unix_us.saturating_mul(1_000));
        let tracks = Tracks::new(trace, t, unix_ns, pid, &labels)?;
        let mut session = Self {
            tracks,
            offset,
            number,
            program: start.map_or_else(|| "host".to_owned(), |s| s.program.clone()),
            named: false,
            last_t: t,
            threads: Vec::new(),
            step: Step::default(),
            steps: 0,
            left_out: 0,
            batches: VecDeque::new(),
            unsampled: Unsampled::default(),
            requests: Requests::default(),
            counters: Counters::default(),
        };
        session.attributes(trace, t, &said)?;
        Ok(session)
    }

    fn attributes<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, said: &[(&str, String)]) -> io::Result<()> {
        let key = |key: &str| format!("llama_resource.{}.{key}", self.number);
        let said: Vec<_> = said.iter().map(|(k, value)| (key(k), value.clone())).collect();
        if said.is_empty() { Ok(()) } else { self.tracks.attributes(trace, t, &said) }
    }

    /// What a request and its steps have in common.
    fn correlation(session: u64, request: u64) -> u64 {
        session << 40 | request & ((1 << 40) - 1)
    }

    /// Takes the next line.
    pub(super) fn add<W: Write>(&mut self, trace: &mut Trace<W>, line: &Line) -> io::Result<()> {
        // The trace's times are signed.
        let t = line.t_ns().saturating_add_signed(self.offset).min(i64::MAX as u64);
        self.last_t = self.last_t.max(t);
        match line {
            Line::ComputeExecution(e) => {
                let end = e.duration_us.map(|us| t.saturating_add(ns(us)));
                self.step_of(trace, e.step)?.operation(t, end, &e.operation);
                Ok(())
            }
            Line::LayerBegin(e) => {
                let name = format!("layer {}", e.layer_id);
                self.step_of(trace, e.step)?.begin(t, Depth::Layer, name, Some(e.layer_id));
                Ok(())
            }
            Line::LayerEnd(e) => {
                let (name, took) = (format!("layer {}", e.layer_id), e.duration_us.map_or(0, ns));
                self.step_of(trace, e.step)?.end(t, Depth::Layer, name, Some(e.layer_id), took);
                Ok(())
            }
            Line::ComponentBegin(e) => {
                self.step_of(trace, e.step)?.begin(t, Depth::Component, e.component_type.clone(), e.layer_id);
                Ok(())
            }
            Line::ComponentEnd(e) => {
                let (name, took) = (e.component_type.clone(), e.duration_us.map_or(0, ns));
                self.step_of(trace, e.step)?.end(t, Depth::Component, name, e.layer_id, took);
                Ok(())
            }
            Line::ThreadImbalance(e) => {
                // It may come behind the next step, whose lines must stay together.
                if self.step.number.is_none_or(|current| current <= e.step) {
                    self.step_of(trace, Some(e.step))?.began = Some(t);
                }
                Ok(())
            }
            Line::Batch(e) => {
                if self.batches.len() == MOST_BATCHES {
                    self.batches.pop_front();
                }
                self.batches.push_back(e.clone());
                Ok(())
            }
            Line::StepSummary(e) => self.summary(trace, e, t),
            Line::RequestStart(e) => {
                self.requests.start(e, t);
                Ok(())
            }
            Line::RequestToken(e) => self.requests.token(trace, &mut self.tracks, e, t),
            Line::RequestEnd(e) => {
                let number = Self::correlation(self.number, e.request_id);
                self.requests.end(trace, &mut self.tracks, (e, t, number))
            }
            Line::ModelLoad(e) => self.model(trace, e, t),
            Line::SplitExecution(e) => self.split(trace, e, t),
            Line::KvCacheOperation(e) => self.kv_operation(trace, e, t),
            Line::EventsDropped(e) => self.dropped(trace, e, t),
            _ => self.counters.add(trace, &mut self.tracks, line, t),
        }
    }

    /// The step that a line is of; the one before is written when another begins.
    fn step_of<W: Write>(&mut self, trace: &mut Trace<W>, number: Option<u64>) -> io::Result<&mut Step> {
        if self.step.number != number || self.step.is_full() {
            self.flush_step(trace)?;
            self.step = Step::new(number);
        }
        Ok(&mut self.step)
    }

    fn flush_step<W: Write>(&mut self, trace: &mut Trace<W>) -> io::Result<()> {
        let step = std::mem::take(&mut self.step);
        let number = step.number;
        // The start of a step alone tells nothing.
        if step.is_empty() {
            return Ok(());
        }
        self.steps += u64::from(number.is_some());
        let (batches, requests, session) = (&self.batches, &self.requests, self.number);
        let mut rest = step.finish(|start| described(number.unwrap_or(0), start, batches, requests, session));
        for index in 0..MOST_THREADS {
            if rest.is_empty() {
                break;
            }
            if index == self.threads.len() {
                let t = rest.iter().map(|s| s.start).min().unwrap_or(0);
                let name = match index {
                    0 => "compute 0".to_owned(),
                    _ => format!("compute 0, overlapping {index}"),
                };
                let sequence = self.tracks.thread(trace, t, &name)?;
                self.threads.push(Thread { sequence, busy_until: 0 });
            }
            let closed = if index == 0 { self.unsampled.closed_until } else { 0 };
            let thread = &mut self.threads[index];
            let (edges, left) = nest(rest, thread.busy_until.max(closed));
            rest = left;
            thread.write(trace, &edges)?;
            if index == 0 {
                outermost(&edges).for_each(|(start, end)| self.unsampled.busy(start, end, number));
            }
        }
        self.left_out += rest.len() as u64;
        Ok(())
    }

    fn summary<W: Write>(&mut self, trace: &mut Trace<W>, e: &StepSummary, t: u64) -> io::Result<()> {
        // Lines of a step stand together, so a step that the summary knows of is whole.
        if self.step.number.is_none_or(|n| e.step.is_some_and(|last| n <= last)) {
            self.flush_step(trace)?;
        }
        let Some(step) = e.step else { return Ok(()) };
        let start = t.saturating_sub(ns(e.interval_ms * 1e3));
        let gaps = self.unsampled.summary(Summary { start, end: t, step, steps: e.steps });
        self.write_gaps(trace, &gaps)
    }

    fn write_gaps<W: Write>(&mut self, trace: &mut Trace<W>, gaps: &[Gap]) -> io::Result<()> {
        for gap in gaps {
            if self.threads.is_empty() {
                let sequence = self.tracks.thread(trace, gap.start, "compute 0")?;
                self.threads.push(Thread { sequence, busy_until: 0 });
            }
            let name = format!("not sampled ({} {})", gap.steps, if gap.steps == 1 { "step" } else { "steps" });
            let begin = Kind::Begin { name: Name::Once(&name), category: "not_sampled" };
            let notes = Notes { values: vec![("steps", Value::Uint(gap.steps))], ..Notes::default() };
            let sequence = &mut self.threads[0].sequence;
            sequence.event(trace, gap.start, None, begin, &notes)?;
            // Of what happens in one moment Perfetto takes first what is written first, and the step behind is written.
            sequence.event(trace, gap.end - 1, None, Kind::End, &Notes::default())?;
        }
        Ok(())
    }

    fn model<W: Write>(&mut self, trace: &mut Trace<W>, e: &ModelLoad, t: u64) -> io::Result<()> {
        let file = e.path.as_deref().and_then(|p| p.rsplit('/').next()).map(str::to_owned);
        let model = e.name.clone().or(file).unwrap_or_else(|| "model".to_owned());
        let start = t.saturating_sub(ns(e.duration_ms * 1e3));
        let row = self.tracks.row(trace, (Group::Model, "loads", 0), start, t)?;
        let mut values = vec![("outcome", Value::Text(e.outcome.clone())), ("model", Value::Text(model.clone()))];
        values.extend(e.description.clone().map(|d| ("description", Value::Text(d))));
        values.extend(e.size_bytes.map(|n| ("size_bytes", Value::Uint(n))));
        let notes = Notes { values, ..Notes::default() };
        self.tracks.slice(trace, row, (start, t), (Name::Common(&e.outcome), "model_load"), &notes)?;
        if e.outcome == "load" && !self.named {
            self.name(trace, t, Some(&model))?;
            let ggml = e.ggml_commit.clone().map(|commit| ("ggml_commit", commit));
            let said: Vec<_> = [("model", model)].into_iter().chain(ggml).collect();
            self.attributes(trace, t, &said)?;
        }
        Ok(())
    }

    fn name<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, model: Option<&str>) -> io::Result<()> {
        self.named = true;
        let name = match model {
            Some(model) => format!("{} {model}", self.program),
            None => self.program.clone(),
        };
        self.tracks.name(trace, t, &name)
    }

    fn split<W: Write>(&mut self, trace: &mut Trace<W>, e: &SplitExecution, t: u64) -> io::Result<()> {
        let device = e.device.as_deref().unwrap_or(&e.backend);
        let values = vec![
            ("step", Value::Uint(e.step.unwrap_or(0))),
            ("operations", Value::Uint(e.operations.into())),
            ("first_tensor", Value::Text(e.first_tensor.clone())),
            ("last_tensor", Value::Text(e.last_tensor.clone())),
        ];
        let notes = Notes { values, ..Notes::default() };
        let place = (Group::Devices, device, 0);
        match e.duration_us {
            Some(us) => {
                let end = t.saturating_add(ns(us));
                let row = self.tracks.row(trace, place, t, end)?;
                self.tracks.slice(trace, row, (t, end), (Name::Common("split"), "split"), &notes)
            }
            None => {
                let row = self.tracks.first_row(trace, place, t)?;
                let kind = Kind::Instant { name: Name::Common("split"), category: "split" };
                self.tracks.event(trace, t, row, kind, &notes)
            }
        }
    }

    /// What a graph writes into the cache is among its operations; this is what else is done to it.
    fn kv_operation<W: Write>(&mut self, trace: &mut Trace<W>, e: &KvCacheOperation, t: u64) -> io::Result<()> {
        if e.cache_operation == "update" {
            return Ok(());
        }
        let numbers = [("seq_id", e.seq_id), ("from", e.cache_start_pos), ("to", e.cache_end_pos)];
        let values = numbers.into_iter().filter_map(|(name, n)| Some((name, Value::Int(n?.into())))).collect();
        let row = self.tracks.first_row(trace, (Group::Kv, "operations", -1), t)?;
        let kind = Kind::Instant { name: Name::Common(&e.cache_operation), category: "kv_cache" };
        self.tracks.event(trace, t, row, kind, &Notes { values, ..Notes::default() })
    }

    /// Steps that are not sampled are no loss, and stand on the track of steps.
    fn dropped<W: Write>(&mut self, trace: &mut Trace<W>, e: &EventsDropped, t: u64) -> io::Result<()> {
        if matches!(e.reason.as_str(), "rate_limit" | "warm_up") {
            return Ok(());
        }
        let values = vec![("kind", Value::Text(e.kind.clone())), ("count", Value::Uint(e.count))];
        let row = self.tracks.first_row(trace, (Group::Losses, "lost", 0), t)?;
        let kind = Kind::Instant { name: Name::Common(&e.reason), category: "lost" };
        self.tracks.event(trace, t, row, kind, &Notes { values, ..Notes::default() })
    }

    /// Writes what waited for more.
    pub(super) fn finish<W: Write>(&mut self, trace: &mut Trace<W>) -> io::Result<()> {
        self.flush_step(trace)?;
        let gaps = self.unsampled.finish();
        self.write_gaps(trace, &gaps)?;
        let (end, session) = (self.last_t, self.number);
        self.requests.finish(trace, &mut self.tracks, end, |request| Self::correlation(session, request))?;
        if self.named { Ok(()) } else { self.name(trace, end, None) }
    }
}

impl Thread {
    fn write<W: Write>(&mut self, trace: &mut Trace<W>, edges: &[Edge]) -> io::Result<()> {
        for edge in edges {
            let (t, kind, notes) = match edge {
                Edge::End(t) => (*t, Kind::End, &Notes::default()),
                Edge::Begin(s) => {
                    (s.start, Kind::Begin { name: Name::Common(&s.name), category: s.depth.category() }, &s.notes)
                }
                Edge::Instant(s) => {
                    (s.start, Kind::Instant { name: Name::Common(&s.name), category: s.depth.category() }, &s.notes)
                }
            };
            self.busy_until = self.busy_until.max(t);
            self.sequence.event(trace, t, None, kind, notes)?;
        }
        Ok(())
    }
}

/// First and last moments of the outermost slices.
fn outermost(edges: &[Edge]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let (mut depth, mut began) = (0_usize, 0);
    edges.iter().filter_map(move |edge| match edge {
        Edge::Begin(Slice { start, .. }) => {
            if depth == 0 {
                began = *start;
            }
            depth += 1;
            None
        }
        Edge::End(t) => {
            depth = depth.saturating_sub(1);
            (depth == 0).then_some((began, *t))
        }
        Edge::Instant(_) => None,
    })
}

/// Name and notes of a step: what the call that it was part of says, and the requests that it served, where the number
/// of sequences leaves no doubt.
fn described(number: u64, start: u64, batches: &VecDeque<Batch>, requests: &Requests, session: u64) -> (String, Notes) {
    let of_step = |b: &&Batch| {
        b.first_step.is_some_and(|first| (first..first.saturating_add(b.ubatches.into())).contains(&number))
    };
    let batch = batches.iter().rev().find(of_step);
    let mut notes = Notes::default();
    notes.values.push(("step", Value::Uint(number)));
    let mut name = "step".to_owned();
    let served = requests.during(start);
    let mut certain = served.len() == 1;
    if let Some(batch) = batch {
        name = if batch.tokens > batch.sequences { "prefill step" } else { "decode step" }.to_owned();
        notes.values.push(("batch_tokens", Value::Uint(batch.tokens.into())));
        notes.values.push(("batch_sequences", Value::Uint(batch.sequences.into())));
        certain = served.len() as u64 == u64::from(batch.sequences);
    }
    if certain && !served.is_empty() {
        let numbers = served.iter().map(|&request| Session::correlation(session, request));
        notes.flows.extend(numbers);
        if let [only] = notes.flows[..] {
            notes.correlation = Some(only);
        }
        let ids: Vec<String> = served.iter().map(u64::to_string).collect();
        notes.values.push(("requests", Value::Text(ids.join(", "))));
    }
    (name, notes)
}
