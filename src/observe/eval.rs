//! Graphs as ggml's eval callback shows them: node by node, without any hook, to whoever reads them.
//!
//! ```text
//!   abi ──► ask, shown ──► graph (which one, which plan) ──► times (totals, a step for the log)
//!                                                       └──► values (what a capture wants of it)
//! ```
//!
//! The scheduler asks for each node whether it is wanted (`ask`), computes up to a wanted one, synchronises, and shows
//! it. So each node runs alone and its time is its own, start and synchronisation included; that costs speed, and the
//! events say `eval_callback`. Where the hooks see the graphs, they read them without cutting: then this is not called.

mod graph;
mod times;

use std::cell::{Cell, OnceCell};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::recording::{self, Recording};
use crate::ggml::view::TensorPtr;
use crate::graph::class::is_view_op;
use crate::{boundary, clock};

pub use graph::Intake;
use graph::{Graph, Plans};
use times::Times;

/// Reads the values of one graph.
pub trait Values: std::fmt::Debug + Send {
    /// Whether node `t` is wanted, which is about to be computed; a view is never computed.
    fn ask(&mut self, t: TensorPtr) -> bool;
    /// The wanted node was computed.
    fn shown(&mut self, t: TensorPtr);
    /// What was read so far goes on its way; nothing follows if the graph is over.
    fn flush(&mut self, is_over: bool);
}

/// Who wants values.
pub trait Wants {
    /// Step `number` has begun, with this intake.
    fn begin(&self, number: u64, intake: &Intake) -> Box<dyn Values>;
    /// A node is asked for, and no graph of tokens has begun.
    fn unbegun(&self);
}

/// A graph and who reads it.
#[derive(Debug)]
struct Run {
    graph: Graph,
    /// Number of the ubatch, once it is known to be one.
    number: Option<u64>,
    times: Option<Times>,
    values: Option<Box<dyn Values>>,
}

/// The node that was asked for last, and not yet shown.
#[derive(Debug)]
struct Asked {
    node: TensorPtr,
    /// Its number in the graph, if it is timed.
    timed: Option<usize>,
    /// Its values are wanted.
    valued: bool,
    start_ns: u64,
}

/// A thread's graphs. Locked by that thread, and by whoever ends the recording.
#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    plans: Plans,
    asked: Option<Asked>,
    /// This build marks the nodes that are computed.
    uses_flag: bool,
    /// What all of this belongs to.
    recording: Weak<Recording>,
}

/// All threads' graphs. A thread takes its own with it; what is of an earlier recording it forgets at its next node.
static ALL: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

/// The longest that the end of a recording waits for threads that are in their callbacks.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a thread keeps between the calls.
#[derive(Debug, Default)]
struct Local {
    state: OnceCell<Arc<Mutex<State>>>,
    /// The caller's own callback runs.
    theirs_runs: Cell<bool>,
    /// It wants the node that was asked for last.
    theirs_asked: Cell<bool>,
}

thread_local! {
    static LOCAL: Local = const { Local { state: OnceCell::new(), theirs_runs: Cell::new(false), theirs_asked: Cell::new(false) } };
}

impl Drop for Local {
    /// The thread ends: its last graph is over.
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            boundary::catching((), || state.lock().finish());
        }
    }
}

fn with<T>(none: T, f: impl FnOnce(&mut State, &Arc<Recording>) -> T) -> T {
    LOCAL
        .try_with(|local| {
            let mut state = local.state.get_or_init(register).lock();
            let recording = recording::current();
            if !state.is_of(&recording) {
                let (uses_flag, recording) = (state.uses_flag, Arc::downgrade(&recording));
                *state = State { uses_flag, recording, ..State::default() };
            }
            f(&mut state, &recording)
        })
        .unwrap_or(none)
}

#[cold]
fn register() -> Arc<Mutex<State>> {
    let new = Arc::default();
    let mut all = ALL.lock();
    all.retain(|s| s.strong_count() > 0);
    all.push(Arc::downgrade(&new));
    new
}

/// The scheduler asks whether node `t` is wanted: for its time if `timed`, for its values by `wants`.
#[must_use]
pub fn ask(t: TensorPtr, timed: bool, wants: Option<&dyn Wants>) -> bool {
    with(false, |state, recording| state.ask(t, timed, wants, recording))
}

/// Node `t` was computed.
pub fn shown(t: TensorPtr, end_ns: u64) {
    with((), |state, recording| state.shown(t, end_ns, recording));
}

/// Whether the caller's own callback is called next: it is asked for each node, and shown those that it wanted.
#[must_use]
pub fn hand_over(is_shown: bool) -> bool {
    LOCAL
        .try_with(|local| {
            let runs = local.theirs_asked.take() || !is_shown;
            local.theirs_runs.set(runs);
            runs
        })
        .unwrap_or(!is_shown)
}

/// It has returned. `asked`: it wants the node that is about to be computed, whose time begins to count.
pub fn take_back(asked: bool) {
    _ = LOCAL.try_with(|local| {
        local.theirs_runs.set(false);
        local.theirs_asked.set(asked);
        let mut state = local.state.get().map(|state| state.lock());
        if let Some(asked) = state.as_mut().and_then(|state| state.asked.as_mut()) {
            asked.start_ns = clock::now_ns();
        }
    });
}

/// The calling thread asks for a flush. It computes nothing, so its last graph is over; or it is in its own callback,
/// and the graph goes on.
pub fn flush_here() {
    _ = LOCAL.try_with(|local| {
        // Locked by us: a message of ours has led here.
        let Some(mut state) = local.state.get().and_then(|state| state.try_lock()) else { return };
        if !local.theirs_runs.get() {
            state.finish();
        } else if let Some(values) = state.run.as_mut().and_then(|run| run.values.as_mut()) {
            values.flush(false);
        }
    });
}

/// The recording, or the capture, ends: the last graph of every thread is over.
pub fn finish_all() {
    let all: Vec<_> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    // All of them together: a thread that is held up in its callback is left alone.
    let until = Instant::now() + PATIENCE;
    for state in all {
        if let Some(mut state) = state.try_lock_until(until) {
            state.finish();
        }
    }
}

impl State {
    fn is_of(&self, recording: &Arc<Recording>) -> bool {
        std::ptr::eq(self.recording.as_ptr(), Arc::as_ptr(recording))
    }

    fn ask(&mut self, t: TensorPtr, timed: bool, wants: Option<&dyn Wants>, recording: &Recording) -> bool {
        self.uses_flag |= t.has_compute_flag();
        let is_view = is_view_op(t.op());
        if !is_view && !t.is_computed(self.uses_flag) {
            return false;
        }
        let intake = if is_view { None } else { Intake::of(t) };
        if !is_view && self.run.as_ref().is_some_and(|run| run.graph.is_over_before(&t, intake.as_ref())) {
            self.finish();
        }
        let now = clock::now_ns();
        let run = self.run.get_or_insert_with(|| Run {
            graph: Graph::default(),
            number: None,
            times: timed.then(|| Times::new(now)),
            values: None,
        });
        // A look-up whose ids are not known for tokens counts as well, but nobody can tell its rows.
        let looks_up = || (t.op() == "GET_ROWS").then(|| u64::try_from(t.ne()[1]).ok()).flatten();
        if run.number.is_none()
            && let Some(n_tokens) = intake.map(|i| i.n_tokens).or_else(looks_up)
        {
            run.number = Some(recording.totals.next_step());
            if let Some(times) = &mut run.times {
                times.is_a_step(n_tokens);
            }
        }
        if let (None, Some(intake), Some(number)) = (run.graph.intake, intake, run.number) {
            run.graph.intake = Some(intake);
            run.values = wants.map(|wants| wants.begin(number, &intake));
        }
        let at = (!is_view).then(|| run.graph.add(&t, &self.plans));
        let timed = at.filter(|_| timed && run.times.is_some());
        let valued = match (&mut run.values, wants) {
            (Some(values), _) => values.ask(t),
            (None, Some(wants)) => {
                wants.unbegun();
                false
            }
            (None, None) => false,
        };
        let wanted = timed.is_some() || valued;
        self.asked = wanted.then(|| Asked { node: t, timed, valued, start_ns: clock::now_ns() });
        wanted
    }

    fn shown(&mut self, t: TensorPtr, end_ns: u64, recording: &Recording) {
        let Some(asked) = self.asked.take_if(|asked| asked.node == t) else { return };
        let Some(run) = &mut self.run else { return };
        if let (Some(at), Some(times)) = (asked.timed, &mut run.times) {
            times.done(&run.graph, at, t, [asked.start_ns, end_ns], recording);
        }
        if let Some(values) = run.values.as_mut().filter(|_| asked.valued) {
            values.shown(t);
        }
    }

    /// The graph is over.
    fn finish(&mut self) {
        self.asked = None;
        let Some(run) = self.run.take() else { return };
        let recording = recording::current();
        // What is left of a recording that is over belongs to none.
        if !self.is_of(&recording) {
            return;
        }
        let key = std::ptr::from_ref(self) as usize;
        let plan = run.graph.plan(&mut self.plans, key, |made| recording.hand_to_the_writer(made));
        if let (Some(times), Some((plan, reused)), true) = (run.times, plan, boundary::recording()) {
            times.account(plan, reused, run.number, &recording);
        }
        if let Some(mut values) = run.values {
            values.flush(true);
        }
    }
}
