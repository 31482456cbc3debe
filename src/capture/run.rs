//! What the hooks call: a graph gets its memory, a graph runs, a node is shown.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::Arc;

use super::allocator::{self, Allocating, Outcome};
use super::live::{self, Live};
use super::rows::StepRows;
use super::step::{self, Step};
use super::{Capture, early, graph, list, start};
use crate::config::RouteChoice;
use crate::format::stream::Route;
use crate::format::summary::Condition;
use crate::ggml::api::{self, EvalCallback, Ptr};
use crate::ggml::bindings::ggml_tensor;
use crate::ggml::layout;
use crate::ggml::view::{TensorPtr, graph_nodes};
use crate::observe::{self, recording, state, steps};
use crate::pipeline::{Pipeline, Reason};

thread_local! {
    static STEP: RefCell<Option<Step>> = const { RefCell::new(None) };
    static THEIRS_ASKED: Cell<bool> = const { Cell::new(false) };
}

/// A graph was built and is about to get its memory: flags what is to be kept. What it gives is to live until the
/// graph has it.
#[must_use]
pub fn graph_begins(sched: Ptr, graph: Ptr) -> Option<Allocating> {
    let capture = super::current()?;
    layout::check().ok()?;
    let nodes = graph_nodes(graph)?;
    let live = plan(&capture, graph, &nodes, allocator::is_seen().then_some(sched));
    let mut graphs = capture.graphs.lock();
    let mut flagged = Vec::new();
    match live {
        Some(live) => {
            if live.retains {
                flagged = live.flag(&nodes);
            }
            graphs.live.insert(sched as usize, Arc::new(live));
        }
        None => _ = graphs.live.remove(&(sched as usize)),
    }
    Some(allocator::begin(sched, flagged))
}

/// The graph has its memory, or the host has `failed` to give it any.
pub fn graph_allocated(sched: Ptr, failed: bool) {
    let Some(capture) = super::current() else { return };
    let outcome = allocator::outcome();
    let unseen = !allocator::is_seen() || outcome == Outcome::NotPlanned;
    if unseen && capture.config.route != RouteChoice::Callback {
        state::tell(
            "capture",
            Condition::Degraded,
            "the allocator's own calls do not go through the PLT in this build, so nothing can be kept for reading; the callback is used, which cuts the graph",
            None,
        );
    }
    let mut graphs = capture.graphs.lock();
    // What the host could give no memory to will not run, and its tensors are gone soon.
    let live = if failed { graphs.live.remove(&(sched as usize)) } else { graphs.live.get(&(sched as usize)).cloned() };
    let (Outcome::NotPlanned | Outcome::GaveUp, Some(live)) = (outcome, live) else { return };
    let (bytes, started) = (live::kept(&live.plan.wanted), capture.start.started());
    if !failed {
        graphs.live.insert(sched as usize, Arc::new(live.without_retention(capture.config.route)));
    }
    graphs.keeping.refused(sched as usize, bytes, started);
    drop(graphs);
    if outcome == Outcome::GaveUp {
        start::tell_no_room_to_keep(&capture, bytes);
    }
}

/// `keeps`: the scheduler whose allocator may keep what is wanted.
fn plan(capture: &Capture, graph: Ptr, nodes: &[TensorPtr], keeps: Option<Ptr>) -> Option<Live> {
    let fingerprint = nodes.iter().fold(nodes.len() as u64, |h, t| t.fingerprint(h));
    let mut graphs = capture.graphs.lock();
    let graphs = &mut *graphs;
    let memory = &mut graphs.memory;
    let make = || graph::plan(nodes, &capture.wish, start::n_layer(), memory).map(Arc::new);
    let plan = graphs.plans.get_or_make(fingerprint, make)?;
    let (choice, limit) = (capture.config.route, capture.retain_limit);
    let may_retain = keeps.is_some_and(|sched| {
        let bytes = live::kept(&plan.wanted);
        // What a forced route may keep is set aside from the start (`start::options`).
        graphs.keeping.may_fit(sched as usize, bytes)
            && (choice != RouteChoice::Auto
                || graphs.keeping.keep(sched as usize, bytes, limit, capture.start.started()))
    });
    Some(Live::new(graph as usize, plan, nodes, choice, limit, may_retain))
}

/// A graph is about to run. `number`: of the ubatch. True if a step of it is captured: `ends` must follow.
#[must_use]
pub fn begins(sched: Ptr, graph: Ptr, number: Option<u64>) -> bool {
    // A step that an exception of the host cut off.
    if let Some(old) = STEP.take() {
        // SAFETY: not computed, so nothing is read.
        unsafe { old.finish(false) };
    }
    let Some(capture) = super::current() else { return false };
    capture.ran.one();
    if let Err(reason) = layout::check() {
        capture.ran.unreadable(reason);
        return false;
    }
    let known = capture.graphs.lock().live.get(&(sched as usize)).filter(|l| l.graph == graph as usize).cloned();
    let live = match known {
        Some(live) => live,
        // Built before the capture began: its memory is planned, only the callback can read it.
        None => {
            let Some(live) = graph_nodes(graph).and_then(|n| plan(&capture, graph, &n, None)) else {
                capture.ran.without_tokens();
                return false;
            };
            let live = Arc::new(live);
            capture.graphs.lock().live.insert(sched as usize, live.clone());
            live
        }
    };
    if capture.list.is_some() {
        list::write(&capture, &live);
        return false;
    }
    if live.plan.wanted.is_empty() && live.plan.refused.is_empty() {
        return false;
    }
    step_begins(&capture, live, sched, number)
}

fn step_begins(capture: &Arc<Capture>, live: Arc<Live>, sched: Ptr, number: Option<u64>) -> bool {
    let Some(pipeline) = capture.pipeline() else { return false };
    let account = pipeline.account();
    let in_step = account.step_begins();
    let bytes = live.bytes;
    account.seen(live.plan.wanted.len() as u64, bytes);
    for r in &live.plan.refused {
        account.seen(1, r.bytes);
        account.skipped(r.reason, 1, r.bytes);
    }
    let ctx = steps::context();
    if let Some(reason) = not_a_request(ctx) {
        // The batch's rows are taken all the same, so that the next ubatch finds its own.
        if !ctx.is_null() {
            observe::host().contexts.get(ctx).ubatch(live.plan.n_tokens, None, None);
        }
        account.skipped(reason, live.plan.wanted.len() as u64, bytes);
        return false;
    }
    if let Some((n, bytes)) = live.too_large_to_keep() {
        start::tell_too_large_to_keep(capture, n, bytes, live.plan.n_tokens);
    }
    let rows = StepRows::new(&capture.config, &live, ctx);
    if !step::admit(pipeline, &live) {
        return false;
    }
    if !live.by_callback.is_empty() {
        // SAFETY: a live scheduler; the callback's state is this thread's, and it is taken off again in `ends`.
        unsafe { api::ggml_backend_sched_set_eval_callback(sched, Some(shown), sched) };
    }
    let number = number.unwrap_or_else(|| recording::current().totals.last_step().unwrap_or(0));
    // A resumed stream has steps of an earlier run: its numbers go on.
    let number = number + pipeline.resumed().map_or(0, |r| r.last_step);
    let step = Step::new(capture.clone(), live, sched, number, rows, in_step);
    STEP.set(Some(step));
    true
}

/// Why rows of this context belong to no request.
fn not_a_request(ctx: Ptr) -> Option<Reason> {
    if ctx.is_null() {
        return None;
    }
    let mut host = observe::host();
    let others_serve = host.contexts.any_serving();
    let context = host.contexts.get(ctx);
    if context.is_warming_up() || (context.serving().is_none() && is_server()) {
        // llama-server makes batches of its own before its first slot is ready.
        return Some(Reason::WarmUp);
    }
    (!context.counts(others_serve)).then_some(Reason::Draft)
}

/// Whether this process is llama-server, whose contexts say when they begin to serve.
fn is_server() -> bool {
    static IS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IS.get_or_init(|| {
        let name = std::env::current_exe().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        name.is_some_and(|n| n.starts_with("llama-server") || n.starts_with("llama_server"))
    })
}

/// The step that has begun on this thread lets the host's threads encode rows, if it can.
#[must_use]
pub(super) fn encode_early(pipeline: &Pipeline, threads: usize) -> Option<early::Working> {
    STEP.with_borrow_mut(|step| step.as_mut()?.encode_early(pipeline, threads))
}

/// The graph has run, with this status of ggml.
pub(crate) fn ends(sched: Ptr, status: i32) {
    let Some(step) = STEP.take() else { return };
    if !step.live.by_callback.is_empty() {
        let (callback, data) = match super::theirs(sched) {
            Some((f, data)) => (Some(f), data),
            None => (None, std::ptr::null_mut()),
        };
        // SAFETY: a live scheduler, and what the host had set on it.
        unsafe { api::ggml_backend_sched_set_eval_callback(sched, callback, data) };
    }
    // SAFETY: the hook calls this right after the graph has run.
    unsafe { step.finish(status == 0) };
}

/// The callback that we set: asked for each node, shown those that are wanted. `sched` is its user data.
unsafe extern "C-unwind" fn shown(t: *mut ggml_tensor, ask: bool, sched: Ptr) -> bool {
    let theirs = crate::boundary::catching(None, || super::theirs(sched));
    if ask {
        let ours = crate::boundary::guarded(false, || wanted(t.cast()).is_some());
        // SAFETY: the host's own callback, with ggml's own arguments; it may throw.
        let their = theirs.is_some_and(|(f, data)| unsafe { f(t, true, data) });
        THEIRS_ASKED.set(their);
        return ours || their;
    }
    crate::boundary::guarded((), || {
        if let Some(i) = wanted(t.cast()) {
            STEP.with_borrow_mut(|s| {
                if let Some(step) = s {
                    // SAFETY: ggml shows a node right after its backend has computed it.
                    unsafe { step.take(i, Route::Callback) };
                }
            });
        }
    });
    match theirs {
        // SAFETY: as above.
        Some((f, data)) if THEIRS_ASKED.get() => unsafe { f(t, false, data) },
        // Carry on: `false` would leave out the rest of the graph.
        _ => true,
    }
}

fn wanted(t: *const c_void) -> Option<usize> {
    STEP.with_borrow(|s| s.as_ref()?.live.by_callback.get(&(t as usize)).copied())
}

const _: EvalCallback = shown;
