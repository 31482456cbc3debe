//! What a host does now, and what it has done since its log began: a fold whose memory does not grow with the log.
//!
//! Before it: `read::follow`. After it: metrics, the summary of `serve`, the terminal's view. Sums go on over restarts
//! of the host in the same log; what is true of now only (buffers, cells, running requests) begins anew with each.

pub mod histogram;
pub mod ids;

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::format::Line;
use crate::format::gpu::GpuSample;
use crate::format::server::{ModelLoad, RequestEnd};
use crate::format::session::SessionStart;
use crate::format::summary::{HostSample, InstrumentationState, StepSummary, Totals};
use histogram::{Exemplar, Histogram};

/// Requests that ended which are kept to be looked at.
const RECENT: usize = 200;

/// Requests that run at one time which are kept; a log in which none ends must not fill the memory.
const MOST_ACTIVE: usize = 4096;

/// Names of operations, components or layers that are kept apart.
const MOST_NAMES: usize = 4096;

/// A request that runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// Number within the session.
    pub request_id: u64,
    /// Sequence; in llama-server the slot.
    pub seq_id: i32,
    /// Number of the context.
    pub context_id: u64,
    /// `prefill` or `decode`; `null` until the log tells.
    pub phase: Option<String>,
    /// Prompt tokens that are in the cache by now.
    pub prompt_tokens_done: Option<u64>,
    /// Tokens of the whole prompt.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that were cached.
    pub cached_tokens: Option<u64>,
    /// Tokens sampled so far, as the log told last.
    pub generated_tokens: Option<u64>,
    /// When it began, on the monotonic clock.
    pub start_ns: u64,
    /// When the log told of it last.
    pub told_ns: u64,
}

/// A request that ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ended {
    /// Session that it was of.
    pub session_id: String,
    /// Trace that its span belongs to.
    pub trace_id: String,
    /// When, Unix seconds; `null` where the log does not tell when its session began.
    pub ended_unix_s: Option<f64>,
    /// The event.
    #[serde(flatten)]
    pub end: RequestEnd,
}

/// Requests: those that run, and sums of those that ended.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    /// By number.
    #[serde(serialize_with = "values")]
    pub active: BTreeMap<u64, Active>,
    /// The last that ended, the newest last.
    pub recent: VecDeque<Ended>,
    /// Ended, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Those that were cached.
    pub cached_tokens: u64,
    /// Tokens sampled.
    pub generated_tokens: u64,
    /// Tokens drafted by speculative decoding, and those accepted.
    pub drafted: u64,
    /// See `drafted`.
    pub accepted: u64,
    /// Seconds to the first token.
    pub time_to_first_token: Histogram,
    /// Seconds between tokens, of requests whose log has buckets.
    pub inter_token: Histogram,
    /// Seconds from start to end.
    pub duration: Histogram,
    /// Seconds from the task's creation to its launch; of patched servers.
    pub queue: Histogram,
    /// Seconds of work on the prompt.
    pub prefill: Histogram,
    /// Seconds from the first token to the last.
    pub decode: Histogram,
    /// Tokens of the prompt.
    pub prompt_size: Histogram,
    /// Tokens sampled.
    pub generated_size: Histogram,
}

/// A buffer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Device, or the buffer type where the build does not tell.
    pub device: String,
    /// `weights`, `kv_cache`, ...
    pub kind: String,
    /// `vram`, `ram`, `mmap`.
    pub memory: String,
}

/// The KV cache of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cells {
    /// In use; `null` for caches without one cell a token.
    pub used: Option<u64>,
    /// All.
    pub size: u64,
    /// Sequences with tokens.
    pub sequences: u32,
}

/// Sums of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Phase {
    /// Ubatches.
    pub steps: u64,
    /// Tokens.
    pub tokens: u64,
    /// Seconds in the compute call.
    pub graph_s: f64,
    /// FLOPs.
    pub flops: u64,
}

/// Sums of steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Steps {
    /// Of prompts.
    pub prefill: Phase,
    /// Of generation.
    pub decode: Phase,
    /// Graphs built.
    pub graphs_built: u64,
    /// Graphs that ran again.
    pub graphs_reused: u64,
    /// Steps whose operations were timed.
    pub timed_steps: u64,
    /// Compute call seconds of these.
    pub timed_graph_s: f64,
    /// Seconds at barriers, of these.
    pub barrier_s: f64,
    /// By component.
    pub components: BTreeMap<String, Totals>,
    /// By operation.
    pub ops: BTreeMap<String, Totals>,
    /// By layer.
    pub layers: BTreeMap<i32, Totals>,
    /// Bytes copied between devices, from and to.
    #[serde(skip)]
    pub copies: BTreeMap<(String, String), u64>,
    /// The last interval, for rates: its milliseconds, prompt and generated tokens.
    pub last_interval: Option<(f64, u64, u64)>,
}

/// What a log tells of its host.
#[derive(Clone, Debug, Serialize)]
pub struct Live {
    /// How the recording began; `null` until the log tells.
    pub session: Option<SessionStart>,
    /// The recording is over.
    pub ended: bool,
    /// The model that was loaded last.
    pub model: Option<ModelLoad>,
    /// Moment of the newest event, monotonic ns.
    pub last_ns: u64,
    /// Requests.
    pub requests: Requests,
    /// Live buffers, by number.
    #[serde(skip)]
    pub buffers: BTreeMap<u64, (Place, u64)>,
    /// KV caches, by context.
    pub contexts: BTreeMap<u64, Cells>,
    /// Operations on the KV cache that were told, by name.
    pub kv_operations: BTreeMap<String, u64>,
    /// Steps.
    pub steps: Steps,
    /// How often each expert was chosen, by layer and expert.
    #[serde(skip)]
    pub experts: BTreeMap<(i32, usize), u64>,
    /// The last sample of each GPU.
    pub gpus: BTreeMap<u32, GpuSample>,
    /// The last sample of the machine.
    pub host: Option<HostSample>,
    /// Events that were not written, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Parts of the instrumentation that do not work here, or in part.
    pub conditions: BTreeMap<String, InstrumentationState>,
}

fn values<T: Serialize, S: serde::Serializer>(map: &BTreeMap<u64, T>, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(map.values())
}

impl Default for Live {
    fn default() -> Self {
        let requests = Requests {
            active: BTreeMap::new(),
            recent: VecDeque::new(),
            outcomes: BTreeMap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            drafted: 0,
            accepted: 0,
            time_to_first_token: Histogram::new(histogram::TIME_TO_FIRST_TOKEN),
            inter_token: Histogram::new(histogram::INTER_TOKEN),
            duration: Histogram::new(histogram::DURATION),
            queue: Histogram::new(histogram::TIME_TO_FIRST_TOKEN),
            prefill: Histogram::new(histogram::TIME_TO_FIRST_TOKEN),
            decode: Histogram::new(histogram::DURATION),
            prompt_size: Histogram::new(histogram::TOKENS),
            generated_size: Histogram::new(histogram::TOKENS),
        };
        Self {
            session: None,
            ended: false,
            model: None,
            last_ns: 0,
            requests,
            buffers: BTreeMap::new(),
            contexts: BTreeMap::new(),
            kv_operations: BTreeMap::new(),
            steps: Steps::default(),
            experts: BTreeMap::new(),
            gpus: BTreeMap::new(),
            host: None,
            dropped: BTreeMap::new(),
            conditions: BTreeMap::new(),
        }
    }
}

impl Live {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        if let Line::ResourceSessionStart(start) = line {
            self.begins(start);
        }
        self.last_ns = self.last_ns.max(line.t_ns());
        match line {
            Line::ResourceSessionEnd(end) if self.session.as_ref().is_none_or(|s| s.session_id == end.session_id) => {
                self.forget_now();
                self.ended = true;
            }
            Line::ModelLoad(load) if load.outcome == "load" => self.model = Some(load.clone()),
            Line::RequestStart(e) => {
                self.active(e.request_id, e.seq_id, e.context_id, e.t_ns);
            }
            Line::RequestProgress(e) => {
                if let Some(active) = self.active(e.request_id, e.seq_id, e.context_id, e.t_ns) {
                    active.phase = Some(e.phase.clone());
                    active.prompt_tokens_done = Some(e.prompt_tokens_done);
                    active.prompt_tokens = e.prompt_tokens;
                    active.cached_tokens = Some(e.cached_tokens);
                    active.generated_tokens = Some(e.generated_tokens);
                    active.told_ns = e.t_ns;
                }
            }
            Line::RequestToken(e) => {
                if let Some(active) = self.requests.active.get_mut(&e.request_id) {
                    active.phase = Some("decode".to_owned());
                    active.generated_tokens = Some(e.index + 1);
                    active.told_ns = e.t_ns;
                }
            }
            Line::RequestEnd(e) => self.request_ended(e),
            Line::BufferAllocation(e) => {
                let place = Place {
                    device: e.device.clone().unwrap_or_else(|| e.backend.clone()),
                    kind: e.kind.clone(),
                    memory: e.memory_type.clone(),
                };
                self.buffers.insert(e.buffer_id, (place, e.size_bytes));
            }
            Line::BufferFree(e) => _ = self.buffers.remove(&e.buffer_id),
            Line::KvCacheUsage(e) => {
                let cells = Cells { used: e.used_cells, size: e.size_cells, sequences: e.sequences };
                self.contexts.insert(e.context_id, cells);
            }
            Line::KvCacheOperation(e) if e.layer_id.is_none() => {
                *self.kv_operations.entry(e.cache_operation.clone()).or_default() += 1;
            }
            Line::StepSummary(e) => self.steps.add(e),
            Line::MoeRouting(e) => {
                for (expert, &n) in e.counts.iter().enumerate() {
                    if self.experts.len() < MOST_NAMES * 16 || self.experts.contains_key(&(e.layer_id, expert)) {
                        *self.experts.entry((e.layer_id, expert)).or_default() += n;
                    }
                }
            }
            Line::GpuSample(e) => _ = self.gpus.insert(e.device, e.clone()),
            Line::HostSample(e) => self.host = Some(e.clone()),
            Line::EventsDropped(e) => *self.dropped.entry(e.reason.clone()).or_default() += e.count,
            Line::InstrumentationState(e) => {
                self.conditions.insert(e.component.clone(), e.clone());
            }
            _ => {}
        }
    }

    /// When a moment of the current recording was, Unix seconds.
    #[must_use]
    pub fn unix_s(&self, t_ns: u64) -> Option<f64> {
        let start = self.session.as_ref()?;
        Some(start.unix_us as f64 / 1e6 + (t_ns as f64 - start.t_ns as f64) / 1e9)
    }

    /// Name of the model: as its file names itself, or else the file.
    #[must_use]
    pub fn model_name(&self) -> Option<String> {
        let model = self.model.as_ref()?;
        let file = || model.path.as_deref()?.rsplit('/').next().map(str::to_owned);
        model.name.clone().filter(|n| !n.is_empty()).or_else(file)
    }

    /// Bytes of the live buffers, by where they are and what they are for.
    #[must_use]
    pub fn memory(&self) -> BTreeMap<&Place, u64> {
        let mut sums: BTreeMap<&Place, u64> = BTreeMap::new();
        for (place, bytes) in self.buffers.values() {
            *sums.entry(place).or_default() += bytes;
        }
        sums
    }

    fn begins(&mut self, start: &SessionStart) {
        self.forget_now();
        self.last_ns = start.t_ns;
        self.model = None;
        self.ended = false;
        self.session = Some(start.clone());
    }

    /// What is true of now is true no more.
    fn forget_now(&mut self) {
        self.requests.active.clear();
        self.buffers.clear();
        self.contexts.clear();
        self.gpus.clear();
        self.host = None;
        self.conditions.clear();
    }

    fn active(&mut self, request_id: u64, seq_id: i32, context_id: u64, t_ns: u64) -> Option<&mut Active> {
        let active = &mut self.requests.active;
        if active.len() >= MOST_ACTIVE && !active.contains_key(&request_id) {
            return None;
        }
        Some(active.entry(request_id).or_insert_with(|| Active {
            request_id,
            seq_id,
            context_id,
            phase: None,
            prompt_tokens_done: None,
            prompt_tokens: None,
            cached_tokens: None,
            generated_tokens: None,
            start_ns: t_ns,
            told_ns: t_ns,
        }))
    }

    fn request_ended(&mut self, e: &RequestEnd) {
        let session_id = self.session.as_ref().map_or_else(|| e.session_id.clone(), |s| s.session_id.clone());
        let trace_id = ids::hex(&ids::trace_id(&session_id, e.request_id));
        let ended_unix_s = self.unix_s(e.t_ns);
        let exemplar = |value| Some(Exemplar { trace_id: trace_id.clone(), value, unix_s: ended_unix_s? });
        let r = &mut self.requests;
        r.active.remove(&e.request_id);
        *r.outcomes.entry(e.outcome.clone()).or_default() += 1;
        r.prompt_tokens += e.prompt_tokens;
        r.cached_tokens += e.cached_tokens;
        r.generated_tokens += e.generated_tokens;
        r.drafted += e.drafted.unwrap_or(0);
        r.accepted += e.accepted.unwrap_or(0);
        let seconds = |ms: f64| ms / 1e3;
        r.duration.observe(seconds(e.duration_ms), exemplar(seconds(e.duration_ms)));
        if let Some(ttft) = e.ttft_ms.map(seconds) {
            r.time_to_first_token.observe(ttft, exemplar(ttft));
        }
        if let Some(queue) = e.queue_ms {
            r.queue.observe(seconds(queue), None);
        }
        if let Some(prompt) = e.prompt_ms {
            r.prefill.observe(seconds(prompt), None);
        }
        r.prompt_size.observe(e.prompt_tokens as f64, None);
        r.generated_size.observe(e.generated_tokens as f64, None);
        if let Some(times) = &e.inter_token_ms {
            let gaps = e.generated_tokens.saturating_sub(1) as f64;
            r.decode.observe(seconds(times.mean) * gaps, None);
            if let Some(buckets) = &e.inter_token_buckets {
                r.inter_token.sum += seconds(times.mean) * gaps;
                for (upper, count) in buckets.iter().filter(|(_, count)| *count > 0) {
                    r.inter_token.count(upper, count);
                }
            }
        }
        if r.recent.len() >= RECENT {
            r.recent.pop_front();
        }
        r.recent.push_back(Ended { session_id, trace_id, ended_unix_s, end: e.clone() });
    }
}

impl Steps {
    fn add(&mut self, e: &StepSummary) {
        for (sum, new) in [(&mut self.prefill, &e.prefill), (&mut self.decode, &e.decode)] {
            sum.steps += new.steps;
            sum.tokens += new.tokens;
            sum.graph_s += new.graph_us / 1e6;
            sum.flops = sum.flops.saturating_add(new.flops);
        }
        self.graphs_built += e.graphs_built;
        self.graphs_reused += e.graphs_reused;
        self.timed_steps += e.timed_steps;
        self.timed_graph_s += e.timed_graph_us / 1e6;
        self.barrier_s += e.barrier_us / 1e6;
        for (sums, new) in [(&mut self.components, &e.components), (&mut self.ops, &e.ops)] {
            for n in new {
                if sums.len() < MOST_NAMES || sums.contains_key(&n.name) {
                    add(sums.entry(n.name.clone()).or_default(), &n.totals);
                }
            }
        }
        for l in &e.layers {
            if self.layers.len() < MOST_NAMES || self.layers.contains_key(&l.layer_id) {
                add(self.layers.entry(l.layer_id).or_default(), &l.totals);
            }
        }
        for copy in e.copies.iter().flatten() {
            let name = |d: &Option<String>| d.clone().unwrap_or_else(|| "unknown".to_owned());
            *self.copies.entry((name(&copy.from_device), name(&copy.to_device))).or_default() += copy.bytes;
        }
        self.last_interval = Some((e.interval_ms, e.prefill.tokens, e.decode.tokens));
    }
}

fn add(sum: &mut Totals, new: &Totals) {
    sum.count = sum.count.saturating_add(new.count);
    sum.flops = sum.flops.saturating_add(new.flops);
    sum.bytes = sum.bytes.saturating_add(new.bytes);
    sum.timed_count = sum.timed_count.saturating_add(new.timed_count);
    sum.timed_us += new.timed_us;
    sum.timed_flops = sum.timed_flops.saturating_add(new.timed_flops);
    sum.timed_bytes = sum.timed_bytes.saturating_add(new.timed_bytes);
}
