//! What works in this process and what does not: told once each, as `instrumentation_state` and, if it is a loss, on stderr.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::clock;
use crate::format::Line;
use crate::format::summary::InstrumentationState;
use crate::observe::plan::Plan;
use crate::journal;

static TOLD: Mutex<BTreeSet<(&'static str, String)>> = Mutex::new(BTreeSet::new());

/// Tells a state once for each (component, reason).
pub fn tell(component: &'static str, state: &'static str, reason: impl Into<String>, lost: Option<&str>) {
    let reason = reason.into();
    if !TOLD.lock().insert((component, reason.clone())) {
        return;
    }
    if matches!(state, "unavailable" | "stopped" | "degraded") {
        let consequence = lost.map(|l| format!("; not recorded: {l}")).unwrap_or_default();
        crate::log::warn(format!("{component} {state}: {reason}{consequence}"));
    }
    journal::push_line(Line::InstrumentationState(InstrumentationState {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns: clock::now_ns(),
        component: component.to_owned(),
        state: state.to_owned(),
        reason,
        lost: lost.map(str::to_owned),
    }));
}

static CALL_SEEN: AtomicBool = AtomicBool::new(false);
/// Timed steps without a timed operation; all of its bits are set when it is known that operations are seen.
static DECIDED: AtomicU8 = AtomicU8::new(0);
/// Steps without a decode call around them.
static WITHOUT_DECODE: AtomicU8 = AtomicU8::new(0);

/// A call of llama.cpp arrived.
#[inline]
pub fn call_seen() {
    if !CALL_SEEN.load(Ordering::Relaxed) {
        CALL_SEEN.store(true, Ordering::Relaxed);
    }
}

/// Whether any call of llama.cpp arrived.
#[must_use]
pub fn any_call_seen() -> bool {
    CALL_SEEN.load(Ordering::Relaxed)
}

/// The host called a function that exists nowhere any more (its library was unloaded): the call had no effect.
#[cold]
pub fn missing(name: &'static str) {
    tell(
        "hooks",
        "degraded",
        format!("{name} was called, but no loaded library defines it; the call returned 0"),
        None,
    );
}

/// A step with the timer running is over: tells once whether the CPU hooks see its operations.
pub fn after_timed_step(plan: &Plan, ops_seen: u64) {
    if DECIDED.load(Ordering::Relaxed) > 3 {
        return;
    }
    let on_cpu = plan.nodes.iter().filter(|n| n.place.is_cpu).count();
    if ops_seen > 0 {
        DECIDED.store(u8::MAX, Ordering::Relaxed);
        tell(
            "op_times",
            "ok",
            format!("the CPU backend's operations are timed ({ops_seen} calls for {on_cpu} nodes in the first step)"),
            None,
        );
        tell_untimed(plan);
    } else if on_cpu > 0 && DECIDED.fetch_add(1, Ordering::Relaxed) == 3 {
        let reason = "the CPU backend's own calls do not go through the PLT in this build (static, LTO or -fno-semantic-interposition)";
        tell("op_times", "unavailable", reason, Some("times of operations, layers and components; expert routing"));
    } else if on_cpu == 0 && DECIDED.fetch_add(1, Ordering::Relaxed) == 3 {
        let reason = "all operations run on a backend that cannot be timed without cutting the graph";
        tell("op_times", "unavailable", reason, Some("times of operations, layers and components; expert routing"));
    }
}

/// Devices that a graph with timed operations runs on besides: their operations have no times.
fn tell_untimed(plan: &Plan) {
    let others: BTreeSet<&str> =
        plan.parts.iter().filter(|p| !p.place.is_cpu).map(|p| p.place.device.unwrap_or(p.place.backend)).collect();
    if !others.is_empty() {
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        let reason = format!("operations on {names} cannot be timed without cutting the graph; see split_execution");
        tell("op_times", "warning", reason, Some("times of these operations; expert routing there"));
    }
}

/// A ubatch ran, but no decode call of the host was seen around it.
pub fn step_without_decode() {
    /// A few may be running when we start; more are a host whose calls do not reach us.
    const PATIENCE: u8 = 8;
    if WITHOUT_DECODE.load(Ordering::Relaxed) <= PATIENCE && WITHOUT_DECODE.fetch_add(1, Ordering::Relaxed) == PATIENCE
    {
        let reason = "graphs run, but none of llama_process, llama_decode and llama_encode is seen: the host's calls do not go through the PLT";
        tell("requests", "unavailable", reason, Some("requests, batches, KV cells"));
    }
}

/// Forgets what was told and seen, when recording starts anew.
pub fn reset() {
    TOLD.lock().clear();
    CALL_SEEN.store(false, Ordering::Relaxed);
    DECIDED.store(0, Ordering::Relaxed);
    WITHOUT_DECODE.store(0, Ordering::Relaxed);
}
