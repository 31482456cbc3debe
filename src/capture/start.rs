//! Begins and ends a capture: the settings are checked when recording starts, the stream begins with the first step,
//! when the model is known.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::graph::Wish;
use super::ran::Ran;
use super::{Capture, Graphs};
use crate::config::capture::LEAST_MEMORY;
use crate::config::{CaptureConfig, RouteChoice};
use crate::error::Result;
use crate::format::summary::Condition;
use crate::format::summary::{CaptureAmount, CaptureLoss, CaptureSummary};
use crate::ggml::api;
use crate::observe::models::About;
use crate::observe::{eval, recording, state, steps};
use crate::pipeline::{Amount, Options, Pipeline, Reason};
use crate::{clock, log};

/// What the stream's header says of the recording.
#[derive(Clone, Debug)]
pub struct Session {
    /// Id of the session in the event log.
    pub id: String,
    /// Name of the program.
    pub program: String,
}

/// The pipeline, from the first step on.
#[derive(Debug)]
pub(super) struct Start {
    path: PathBuf,
    session: Session,
    pipeline: OnceLock<Option<Pipeline>>,
    /// The warning of [`tell_too_large_to_keep`].
    told: AtomicBool,
    /// The warning of [`tell_no_room_to_keep`].
    told_no_room: AtomicBool,
}

impl Start {
    /// The pipeline, if there was a step.
    pub(super) fn started(&self) -> Option<&Pipeline> {
        self.pipeline.get()?.as_ref()
    }

    /// There was a step, and no stream could be begun.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.pipeline.get(), Some(None))
    }

    pub(super) fn pipeline(&self, capture: &Capture) -> Option<&Pipeline> {
        thread_local! {
            static STARTING: Cell<bool> = const { Cell::new(false) };
        }
        if let Some(started) = self.pipeline.get() {
            return started.as_ref();
        }
        // What the start has to say goes to the caller's callback, which may lead here again, and would
        // wait for itself.
        if STARTING.replace(true) {
            return None;
        }
        let started = self.pipeline.get_or_init(|| {
            let started = Pipeline::start(options(capture, self));
            started.inspect_err(|e| log::error(format!("{e}. No activations are captured; the host goes on"))).ok()
        });
        STARTING.set(false);
        started.as_ref()
    }
}

/// Threads of the host that encode at most; each has an encoder in the budget.
const MOST_HELPERS: usize = 4;

/// The least budget that has room for them, in bytes.
const LEAST_MEMORY_TO_HELP: u64 = 64 << 20;

/// Bytes of the memory budget that may be kept outside of the pipeline, which has what is not: by the host's allocator
/// for the route `retain`, and by us where the eval callback of the C API is all we have. A quarter, but what the
/// pipeline needs comes first.
fn retained(config: &CaptureConfig) -> u64 {
    (config.max_memory / 4).min(config.max_memory.saturating_sub(LEAST_MEMORY))
}

/// Bytes that the host's allocator may keep for us.
fn retain_limit(config: &CaptureConfig) -> usize {
    let bytes = |n| usize::try_from(n).unwrap_or(usize::MAX);
    let (limit, helpers) = (bytes(retained(config)), helpers(config));
    match config.route {
        // Set aside when it is needed, of what the pipeline has until then.
        RouteChoice::Auto => limit.min(Options::most_aside(bytes(config.max_memory), workers(config), helpers)),
        _ => limit,
    }
}

/// Threads of ours that encode.
fn workers(config: &CaptureConfig) -> usize {
    config.codec_threads.unwrap_or(1)
}

/// Threads of the host that may encode, as many as cores: none where the user has set how many of ours do, or with
/// little memory.
fn helpers(config: &CaptureConfig) -> usize {
    let may = config.codec_threads.is_none() && config.max_memory >= LEAST_MEMORY_TO_HELP;
    if may { cores().min(MOST_HELPERS) } else { 0 }
}

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// The least budget in which so many bytes may be kept: [`retained`] the other way round.
fn budget_to_keep(bytes: u64) -> u64 {
    bytes.saturating_mul(4).max(bytes.saturating_add(LEAST_MEMORY))
}

/// Tells, once for each capture, that a forced route finds no memory for a graph of so many tokens: `n` tensors, of
/// `bytes`, are skipped.
pub(super) fn tell_too_large_to_keep(capture: &Capture, n: usize, bytes: usize, tokens: usize) {
    if capture.start.told.swap(true, Ordering::Relaxed) {
        return;
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let (max, keep) = (capture.config.max_memory, retained(&capture.config));
    log::warn(format!(
        "LLAMA_RESOURCE_ROUTE=retain skips {n} tensors in a graph of {tokens} tokens: at most {keep} bytes may be kept of a \
         LLAMA_RESOURCE_MAX_MEMORY of {} MiB, they take {bytes}; set LLAMA_RESOURCE_MAX_MEMORY={}M, or LLAMA_RESOURCE_ROUTE=auto, or capture \
         fewer tensors, or use smaller batches (-ub). Told once; the account counts all of them as retain_memory",
        mib(max),
        mib(budget_to_keep(bytes as u64)),
    ));
}

/// Tells, once for each capture, that the host's memory had no room for `bytes` that its allocator was to keep.
pub(super) fn tell_no_room_to_keep(capture: &Capture, bytes: usize) {
    if capture.start.told_no_room.swap(true, Ordering::Relaxed) {
        return;
    }
    let instead = match capture.config.route {
        RouteChoice::Retain => {
            "such graphs are skipped and counted as not_retained; LLAMA_RESOURCE_ROUTE=auto reads them by the callback"
        }
        _ => "such graphs are read by the callback, which cuts them",
    };
    state::tell(
        "capture",
        Condition::Degraded,
        format!(
            "the host's memory has no room for {bytes} bytes that were to be kept for reading; the host has gone on without: {instead}. Capture \
             fewer tensors, or use smaller batches (-ub)"
        ),
        None,
    );
}

/// Begins to capture into `path` by `config`. Nothing is read before the first step.
pub fn begin(config: &CaptureConfig, path: PathBuf, session: Session, text: bool, list: Option<PathBuf>) -> Result<()> {
    if list.is_none() {
        // A path that cannot be written is told now, not after the model was loaded.
        Pipeline::check(&path, config.resume)?;
    }
    let capture = Capture {
        config: config.clone(),
        wish: Wish { selection: config.tensors.clone(), elements: config.sample_elements },
        retain_limit: retain_limit(config),
        text,
        list,
        start: Start {
            path,
            session,
            pipeline: OnceLock::new(),
            told: AtomicBool::new(false),
            told_no_room: AtomicBool::new(false),
        },
        ran: Ran::default(),
        graphs: parking_lot::Mutex::new(Graphs::default()),
    };
    super::begin(capture);
    Ok(())
}

fn options(capture: &Capture, start: &Start) -> Options {
    let config = &capture.config;
    let params = config.codec_params();
    let kept = match config.route {
        // What only our own callback reads needs nothing kept, and what is kept of some graphs is set aside as
        // they come (`keep`).
        RouteChoice::Callback | RouteChoice::Auto if recording::seen_by_hooks() => 0,
        _ => retained(config),
    };
    Options {
        path: start.path.clone(),
        header: header(config, start),
        params,
        max_memory: usize::try_from(config.max_memory - kept).unwrap_or(usize::MAX),
        aside: capture.graphs.lock().keeping.total(),
        policy: config.policy,
        workers: workers(config),
        helpers: helpers(config),
        checkpoint_tokens: config.checkpoint_tokens,
        resume: config.resume,
        tokens_path: None,
    }
}

fn header(config: &CaptureConfig, start: &Start) -> Value {
    let params = config.codec_params();
    let now = clock::now_ns();
    // SAFETY: no argument.
    let version = unsafe { api::text(api::ggml_version()) };
    // SAFETY: no argument.
    let commit = unsafe { api::text(api::ggml_commit()) };
    let model = about().map(|a| {
        json!({
            "architecture": a.architecture, "name": a.name, "description": a.description, "n_layer": a.n_layer,
            "n_embd": a.n_embd, "n_head": a.n_head, "n_head_kv": a.n_head_kv, "n_params": a.n_params,
            "size_bytes": a.size_bytes, "n_expert": a.n_expert, "n_expert_used": a.n_expert_used,
        })
    });
    json!({
        "library_version": env!("CARGO_PKG_VERSION"),
        "session_id": start.session.id,
        "created_unix_us": clock::unix_us(now),
        "t_ns": now,
        "model": model,
        "host": {
            "program": start.session.program, "pid": std::process::id(), "ggml_version": version, "ggml_commit": commit,
        },
        "selection": config.tensors.text(),
        "route": config.route.name(),
        "codec": params.codec.name(),
        "error_bound": params.error_bound,
        "max_memory": config.max_memory,
        "policy": config.policy.name(),
        "token_stride": config.token_stride.get(),
    })
}

/// The model of the context whose decode call runs on this thread.
fn about() -> Option<About> {
    let ctx = steps::context();
    if ctx.is_null() {
        return None;
    }
    // SAFETY: the context of the call that is running.
    let model = unsafe { api::llama_get_model(ctx) }.filter(|m| !m.is_null())?;
    // SAFETY: the model of a live context.
    Some(unsafe { About::of(model) })
}

/// Whether a capture is on that can still be written: it needs the hooks even where there is no log.
#[must_use]
pub fn goes_on() -> bool {
    super::current().is_some_and(|capture| {
        let start = &capture.start;
        capture.list.is_none() && !start.has_failed() && !start.started().is_some_and(Pipeline::has_failed)
    })
}

/// Blocks of the model that runs on this thread.
#[must_use]
pub fn n_layer() -> Option<i32> {
    let ctx = steps::context();
    // SAFETY: the context of the call that is running; null is not asked.
    let model = (!ctx.is_null()).then(|| unsafe { api::llama_get_model(ctx) })?.filter(|m| !m.is_null())?;
    // SAFETY: the model of a live context.
    unsafe { api::llama_model_n_layer(model) }.filter(|&n| n > 0)
}

/// Architecture of the model that runs on this thread.
#[must_use]
pub fn architecture() -> Option<String> {
    about()?.architecture
}

/// Ends the capture and closes its stream. Gives what became of everything, if there was a step to capture.
pub fn end(patience: Duration) -> Option<CaptureSummary> {
    let capture = super::end()?;
    // A list, or an idle server, has seen no graph to match anything in.
    if capture.has_seen_a_graph() {
        for term in capture.unmatched() {
            log::warn(format!("`{term}` in LLAMA_RESOURCE_TENSORS matched no tensor of any graph"));
        }
    }
    if capture.list.is_some() {
        return None;
    }
    eval::finish_all();
    let totals = capture.pipeline()?.finish(patience);
    if totals.account.seen.tensors == 0 {
        capture.ran.tell_nothing();
    }
    let amount = |a: Amount| CaptureAmount { tensors: a.tensors, bytes: a.bytes };
    let losses = |list: &[(Reason, Amount)]| {
        list.iter().map(|(r, a)| CaptureLoss { reason: r.name().to_owned(), amount: amount(*a) }).collect()
    };
    Some(CaptureSummary {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns: clock::now_ns(),
        path: capture.start.path.display().to_string(),
        selection: capture.config.tensors.text().to_owned(),
        seen: amount(totals.account.seen),
        captured: amount(totals.account.captured),
        skipped: losses(&totals.account.skipped),
        dropped: losses(&totals.account.dropped),
        file_bytes: totals.bytes,
        clean: totals.clean,
    })
}

#[cfg(test)]
mod tests {
    use super::{LEAST_MEMORY, budget_to_keep, retained};
    use crate::config::CaptureConfig;

    #[test]
    fn the_budget_that_a_warning_names_is_the_least_that_does() {
        for bytes in [1, 5 << 20, LEAST_MEMORY / 3 + 7, 300 << 20, 5 << 30] {
            let of = |max_memory| retained(&CaptureConfig { max_memory, ..CaptureConfig::default() });
            let budget = budget_to_keep(bytes);
            assert!(of(budget) >= bytes && of(budget - 1) < bytes, "{bytes}: {budget}");
        }
        assert_eq!(retained(&CaptureConfig { max_memory: LEAST_MEMORY, ..CaptureConfig::default() }), 0);
    }
}
