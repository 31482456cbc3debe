//! The eval callback: handed to `llama_context_params.cb_eval`, it sees and times every node of every graph,
//! without any hook.
//!
//! The scheduler asks for each node whether it is wanted (`ask`), computes up to a wanted one, synchronises, and shows
//! it. So each node runs alone and its time is its own, start and synchronisation included; that costs speed, and the
//! events say `eval_callback`. Where the hooks see the graphs, they time operations without cutting: then this callback
//! only passes on what the caller's own callback says.
//!
//! What is answered: to `ask`, ours or theirs; after the node, theirs if they asked for it, otherwise "carry on". Never
//! "cancel" of our own.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::graph_run::{Plans, Run};
use super::{tell, tensor};
use crate::ggml::view::TensorPtr;
use crate::graph::class::is_view_op;
use crate::journal::{self, Event, rate};
use crate::observe::recording;
use crate::observe::sample::StepSample;
use crate::{boundary, clock};

/// A thread's graphs. Locked by that thread, and by the thread that ends the recording.
#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    plans: Plans,
    /// The node that was asked for last and not yet shown: number, when.
    asked: Option<(usize, u64)>,
    /// This build marks the nodes that are computed.
    uses_flag: bool,
    epoch: u32,
}

static ALL: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

/// What a thread keeps between the calls.
#[derive(Debug, Default)]
struct Local {
    state: Option<Arc<Mutex<State>>>,
    theirs_asked: bool,
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local { state: None, theirs_asked: false }) };
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            boundary::catching((), || state.lock().finish());
        }
    }
}

fn with<T>(none: T, f: impl FnOnce(&mut State) -> T) -> T {
    LOCAL
        .try_with(|l| {
            let state = l.borrow_mut().state.get_or_insert_with(register).clone();
            let mut state = state.lock();
            let epoch = super::spans::epoch();
            if state.epoch != epoch {
                *state = State { epoch, uses_flag: state.uses_flag, ..State::default() };
            }
            f(&mut state)
        })
        .unwrap_or(none)
}

#[cold]
fn register() -> Arc<Mutex<State>> {
    let new = Arc::new(Mutex::new(State { epoch: super::spans::epoch(), ..State::default() }));
    let mut all = ALL.lock();
    all.retain(|s| s.strong_count() > 0);
    all.push(Arc::downgrade(&new));
    new
}

/// The scheduler asks whether node `t` is wanted.
///
/// # Safety
/// `t` is null or a node of the graph that runs.
#[must_use]
pub unsafe fn ask(t: *const c_void) -> bool {
    if !boundary::recording() || journal::paused() || recording::seen_by_hooks() {
        return false;
    }
    // SAFETY: the caller's promise.
    let t = match unsafe { tensor::checked(t) } {
        Ok(t) => t,
        Err(refusal) => {
            tell("llama_resource_eval_callback", refusal);
            return false;
        }
    };
    if is_view_op(t.op()) {
        return false;
    }
    with(false, |s| s.ask(&t))
}

/// Node `t` was computed.
///
/// # Safety
/// As for [`ask`].
pub unsafe fn observe(t: *const c_void) {
    let end_ns = clock::now_ns();
    if !boundary::recording() {
        return;
    }
    // SAFETY: the caller's promise.
    if let Ok(t) = unsafe { tensor::checked(t) } {
        with((), |s| s.observe(t, end_ns));
    }
}

/// Remembers whether the caller's own callback wants the node, for when it was computed.
pub fn set_theirs(asked: bool) {
    _ = LOCAL.try_with(|l| l.borrow_mut().theirs_asked = asked);
}

/// Whether the caller's own callback wanted the node that was just computed.
#[must_use]
pub fn theirs() -> bool {
    LOCAL.try_with(|l| std::mem::take(&mut l.borrow_mut().theirs_asked)).unwrap_or(false)
}

/// Time begins to count for the node that was asked for last: the caller's own callback may have taken its time since.
pub fn starts() {
    with((), |s| {
        if let Some((_, t_ns)) = &mut s.asked {
            *t_ns = clock::now_ns();
        }
    });
}

impl State {
    fn ask(&mut self, t: &TensorPtr) -> bool {
        self.uses_flag |= t.has_compute_flag();
        if !t.is_computed(self.uses_flag) {
            return false;
        }
        if self.run.as_ref().is_some_and(|r| r.is_over_before(t)) {
            self.finish();
        }
        let now = clock::now_ns();
        let run = self.run.get_or_insert_with(|| Run::new(now));
        if run.number.is_none()
            && let Some(tokens) = Run::tokens(t)
        {
            run.number = Some(recording::current().totals.next_step());
            run.prefill = tokens > 1;
            run.permit = rate::may_sample(run.prefill, now);
        }
        let at = run.add(t, &self.plans);
        self.asked = Some((at, now));
        true
    }

    fn observe(&mut self, t: TensorPtr, end_ns: u64) {
        let (Some((at, start_ns)), Some(run)) = (self.asked.take(), &mut self.run) else { return };
        run.done(at, t, start_ns, end_ns);
    }

    /// The graph is over: its totals, and its events if it is sampled.
    fn finish(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        self.asked = None;
        if self.epoch != super::spans::epoch() {
            // Of a recording that is over.
            return;
        }
        let key = std::ptr::from_ref(self) as usize;
        let Some((plan, reused)) = run.plan(&mut self.plans, key) else { return };
        let fate = if run.permit.is_some() {
            crate::observe::plan::Fate::Written
        } else {
            crate::observe::plan::Fate::LeftOut
        };
        let recording = recording::current();
        recording.account(&plan, run.prefill, reused, run.end_ns.saturating_sub(run.start_ns), &run.sums, fate);
        if let Some(permit) = run.permit.take() {
            recording.totals.sampled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            journal::push(Event::Step(Box::new(StepSample {
                plan,
                step: run.number,
                permit,
                start_ns: run.start_ns,
                end_ns: run.end_ns,
                spans: run.spans,
                sums: run.sums,
                parts: Vec::new(),
                transfers: Vec::new(),
                workers_ns: Vec::new(),
                sequences: Vec::new(),
                placements: Vec::new(),
            })));
        }
    }
}

/// The calling thread's last graph is over: it asks for a flush, so it computes nothing.
pub fn finish_here() {
    // A flush from within a graph (the caller's own callback) must not end it.
    _ = LOCAL.try_with(|l| {
        if let Some(state) = l.try_borrow().ok().and_then(|l| l.state.clone())
            && let Some(mut state) = state.try_lock()
            && state.asked.is_none()
        {
            state.finish();
        }
    });
}

/// Recording ends: the last graph of every thread is over.
pub fn finish_all() {
    let all: Vec<_> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    for state in all {
        if let Some(mut state) = state.try_lock_for(std::time::Duration::from_secs(1)) {
            state.finish();
        }
    }
}

/// Recording begins anew: what a thread knew of the last one it forgets at its next node.
pub fn reset() {
    ALL.lock().retain(|s| s.strong_count() > 0);
}
