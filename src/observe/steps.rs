//! Steps: one run of a graph by the scheduler. Finds the graph's plan, decides whether the step is timed and written
//! event by event, and keeps the exact totals.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::{self, Fate, Plan};
use super::recent::Recent;
use super::recording::{self, Recording};
use super::splits::{self, Splits};
use super::timer::{Span, Timer};
use super::{host, models, state, workers};
use crate::clock;
use crate::format::Level;
use crate::format::summary::Condition;
use crate::ggml::api::{self, Ptr};
use crate::ggml::layout;
use crate::ggml::view::{TensorPtr, graph_nodes};
use crate::journal::rate::Permit;
use crate::journal::{self, Event, rate};
use crate::observe::sample::StepSample;

thread_local! {
    /// The context whose decode call runs on this thread.
    static CONTEXT: std::cell::Cell<Ptr> = const { std::cell::Cell::new(std::ptr::null_mut()) };
}

/// Marks the context of the calls that follow on this thread; null when the call is over.
pub fn set_context(ctx: Ptr) {
    CONTEXT.set(ctx);
}

/// The context whose decode call runs on this thread, or null.
#[must_use]
pub fn context() -> Ptr {
    CONTEXT.get()
}

#[derive(Debug)]
struct Scheduler {
    plan: Arc<Plan>,
    nodes: Arc<[TensorPtr]>,
    graph: usize,
    /// A new graph was allocated since the last run.
    changed: bool,
}

/// Schedulers that have run, and the plans of their graphs.
#[derive(Debug, Default)]
pub struct Schedulers {
    live: HashMap<usize, Scheduler>,
    plans: Recent<(usize, u64), Arc<Plan>, { plan::KEPT }>,
}

impl Schedulers {
    /// The scheduler allocated a graph: the next run needs a new look at the nodes.
    pub fn graph_allocated(&mut self, sched: Ptr) {
        if let Some(s) = self.live.get_mut(&(sched as usize)) {
            s.changed = true;
        }
    }

    /// A scheduler was freed.
    pub fn remove(&mut self, sched: Ptr) {
        self.live.remove(&(sched as usize));
        self.plans.retain(|key| key.0 != sched as usize);
    }

    /// The plan and the nodes of the graph that `sched` runs now, and whether it ran before as it is.
    fn find(&mut self, recording: &Recording, sched: Ptr, graph: Ptr) -> Option<(Arc<Plan>, Arc<[TensorPtr]>, bool)> {
        if let Some(s) = self.live.get(&(sched as usize)).filter(|s| !s.changed && s.graph == graph as usize) {
            return Some((s.plan.clone(), s.nodes.clone(), true));
        }
        let nodes = graph_nodes(graph)?;
        let (executed, fingerprint) = plan::executed_nodes(&nodes);
        let key = (sched as usize, fingerprint);
        let plan = self.plans.get_or_make(key, || {
            let plan = Arc::new(plan::build(sched, fingerprint, &executed));
            if !plan.unknown_ops.is_empty() {
                let names = plan.unknown_ops.join(", ");
                state::tell(
                    "op_times",
                    Condition::Warning,
                    format!("no FLOP rule for {names}; counted as 0"),
                    Some("FLOPs of these operations"),
                );
            }
            recording.hand_to_the_writer(&plan);
            plan
        });
        let nodes: Arc<[TensorPtr]> = executed.into();
        self.live.insert(
            sched as usize,
            Scheduler { plan: plan.clone(), nodes: nodes.clone(), graph: graph as usize, changed: false },
        );
        Some((plan, nodes, false))
    }
}

/// A step that runs.
#[derive(Debug)]
pub struct Step {
    plan: Arc<Plan>,
    nodes: Arc<[TensorPtr]>,
    timer: Option<Timer>,
    splits: Splits,
    number: Option<u64>,
    begun_ns: u64,
    /// The recording that it began in.
    recording: Arc<Recording>,
    /// That it may be written event by event. An exception that takes the step away gives it back.
    permit: Option<Permit>,
    may_be_sampled: bool,
    measured: Option<workers::Measured>,
    _running: workers::Running,
    reused: bool,
    prefill: bool,
}

impl Step {
    /// Number of the ubatch; `None` for a graph that processes no tokens.
    #[must_use]
    pub const fn number(&self) -> Option<u64> {
        self.number
    }

    /// The timer that must run while the host computes, if the step is timed.
    #[must_use]
    pub fn timer(&self) -> Option<&Timer> {
        self.timer.as_ref()
    }

    /// Whether its operations are written one by one.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.permit.is_some()
    }

    /// Tokens of the ubatch, if the CPU alone computes it: then its threads are busy from the first operation
    /// to the last.
    #[must_use]
    pub fn tokens_on_the_cpu(&self) -> Option<u64> {
        self.plan.n_tokens.filter(|_| self.plan.parts.iter().all(|part| part.place.is_cpu))
    }

    /// What must watch the devices while the host computes.
    #[must_use]
    pub const fn splits(&self) -> &Splits {
        &self.splits
    }
}

/// The scheduler is about to run `graph`.
#[must_use]
pub fn begin(sched: Ptr, graph: Ptr) -> Option<Step> {
    recording::graph_seen();
    let recording = recording::current();
    if layout::check().is_err() {
        models::tell_layout();
        return None;
    }
    let mut host = host();
    let (plan, nodes, reused) = host.schedulers.find(&recording, sched, graph)?;
    let number = plan.n_tokens.map(|_| recording.totals.next_step());
    let ctx = context();
    let others_serve = host.contexts.any_serving();
    // A graph without a decode call around it is as good as any: a host whose calls we do not see.
    let (sequences, may_be_sampled) = if ctx.is_null() {
        (1, true)
    } else {
        match host.contexts.known(ctx) {
            Some(context) => (context.sequences_in_batch(), context.may_be_sampled(others_serve)),
            None => (1, true),
        }
    };
    let prefill = plan.n_tokens.is_some_and(|n| n > sequences);
    drop(host);
    // Whoever computes with ggml alone has no requests.
    if number.is_some() && (!ctx.is_null() || api::has_llama()) {
        state::before_step(&recording.told, !ctx.is_null());
    }
    let now = clock::now_ns();
    let level = journal::level();
    let may = number.is_some() && may_be_sampled && !journal::paused();
    let permit = if may { rate::may_sample(prefill, now) } else { None };
    let sampled = permit.is_some();
    // MINIMAL times only what it writes; VERBOSE every step, so that its totals of times are whole. Experts are counted
    // where steps are timed, so DETAILED times all of theirs.
    let timed = match level {
        Level::Minimal => sampled,
        Level::Detailed => recording.cadence[phase_of(prefill)].is_due(plan.nodes_on_the_cpu(), sampled || plan.routes),
        Level::Verbose => true,
    };
    let running = workers::Running::begin();
    let measured = if sampled && level >= Level::Verbose { workers::Measured::begin() } else { None };
    let timer = timed.then(|| {
        Timer::new(plan.clone(), nodes.clone(), sampled, Vec::with_capacity(if sampled { plan.nodes.len() } else { 0 }))
    });
    Some(Step {
        splits: Splits::new(plan.clone()),
        plan,
        nodes,
        timer,
        number,
        begun_ns: clock::now_ns(),
        recording,
        permit,
        may_be_sampled,
        measured,
        _running: running,
        reused,
        prefill,
    })
}

/// Index of a phase among its totals.
const fn phase_of(prefill: bool) -> usize {
    if prefill { 0 } else { 1 }
}

fn add(a: &AtomicU64, n: u64) {
    a.fetch_add(n, Ordering::Relaxed);
}

impl Recording {
    /// Adds a step that is over to the totals.
    pub fn account(
        &self,
        plan: &Plan,
        prefill: bool,
        reused: bool,
        graph_ns: u64,
        sums: &super::timer::Sums,
        fate: Fate,
    ) {
        // A backend other than the CPU was not seen by the timer at all.
        let timed = sums.ops > 0;
        plan.count(timed, fate);
        if let Some(tokens) = plan.n_tokens {
            let phase = &self.totals.phases[phase_of(prefill)];
            add(&phase.steps, 1);
            add(&phase.tokens, tokens);
            add(&phase.graph_ns, graph_ns);
            add(&phase.flops, plan.flops);
            add(if reused { &self.totals.reused } else { &self.totals.built }, 1);
            add(&self.totals.timed, u64::from(timed));
        }
        // The times of operations, components and layers are those of all timed graphs, so the whole is theirs, too: an
        // encoder of pictures or of speech has graphs without tokens.
        if timed {
            add(&self.totals.timed_graph_ns, graph_ns);
            add(&self.totals.op_ns, sums.op_ns);
            add(&self.totals.barrier_ns, sums.barrier_ns);
        }
        add(&self.totals.flows, plan.flows);
    }
}

/// The scheduler has returned.
pub fn end(step: Step) {
    let end_ns = clock::now_ns();
    let graph_ns = end_ns.saturating_sub(step.begun_ns);
    let workers_ns = step.measured.map(workers::Measured::end).unwrap_or_default();
    if !Arc::ptr_eq(&step.recording, &recording::current()) {
        return;
    }
    let sampled = step.permit.is_some();
    let (sums, spans): (_, Vec<Span>) = step.timer.as_ref().map(Timer::finish).unwrap_or_default();
    let (parts, transfers) = step.splits.finish();
    step.recording.devices.account(&step.plan, &parts, &transfers);
    let fate = match (sampled, step.may_be_sampled) {
        (true, _) => Fate::Written,
        (false, true) => Fate::LeftOut,
        (false, false) => Fate::WarmUp,
    };
    step.recording.account(&step.plan, step.prefill, step.reused, graph_ns, &sums, fate);
    step.recording.cadence[phase_of(step.prefill)].took(graph_ns);
    if step.timer.is_some() {
        state::after_timed_step(&step.recording.told, &step.plan, sums.ops);
    }
    let ctx = context();
    let mut ranges = Vec::new();
    let placements =
        if sampled { host().buffers.graph_of(step.plan.key.0, journal::level(), &step.nodes) } else { Vec::new() };
    if !ctx.is_null() {
        let mut host = host();
        let host = &mut *host;
        if let Some(context) = host.contexts.known(ctx) {
            context.step_done(step.number, step.reused, sampled);
            if sampled {
                let id = context.id;
                ranges = context.ranges(step.plan.n_tokens.unwrap_or(0), |seq| host.requests.hit_permille(id, seq));
            }
        }
    }
    if let Some(permit) = step.permit {
        add(&step.recording.totals.sampled, 1);
        journal::push(Event::Step(Box::new(StepSample {
            plan: step.plan,
            step: step.number,
            permit,
            start_ns: step.begun_ns,
            end_ns,
            spans,
            sums,
            parts,
            transfers,
            workers_ns,
            sequences: ranges,
            placements,
        })));
    } else {
        splits::keep_for_next(parts, transfers);
    }
}
