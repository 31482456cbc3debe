//! What works in this process and what does not: told once each, as `instrumentation_state` and, if it is a
//! loss, on stderr.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::plan::Plan;
use super::recording;
use crate::clock;
use crate::format::Line;
use crate::format::summary::{Condition, InstrumentationState};

use crate::journal;

/// Timed steps without a timed operation after which it is told that there are none.
const UNTIMED_STEPS: u8 = 4;

/// Ubatches without a decode call around them after which it is told that none is seen. A few may be running when
/// a recording starts.
const STEPS_WITHOUT_DECODE: u8 = 8;

/// What was told in a recording, and what it takes to tell.
#[derive(Debug, Default)]
pub struct Told {
    states: Mutex<BTreeSet<(&'static str, String)>>,
    /// Timed steps without a timed operation; all of its bits are set when it is known that operations are seen.
    untimed: AtomicU8,
    /// Ubatches without a decode call around them; all of its bits are set when one was seen.
    without_decode: AtomicU8,
}

/// Tells a state once for each (component, reason).
pub fn tell(component: &'static str, state: Condition, reason: impl Into<String>, lost: Option<&str>) {
    let reason = reason.into();
    if !recording::current().told.states.lock().insert((component, reason.clone())) {
        return;
    }
    if state.is_a_loss() {
        let consequence = lost.map(|l| format!("; not recorded: {l}")).unwrap_or_default();
        crate::log::warn(format!("{component} {}: {reason}{consequence}", state.name()));
    }
    journal::push_line(Line::InstrumentationState(InstrumentationState {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns: clock::now_ns(),
        component: component.to_owned(),
        state: state.name().to_owned(),
        reason,
        lost: lost.map(str::to_owned),
    }));
}

/// The host called a function that exists nowhere any more (its library was unloaded): the call had no effect.
#[cold]
pub fn missing(name: &'static str) {
    tell(
        "hooks",
        Condition::Degraded,
        format!("{name} was called, but no loaded library defines it; the call returned 0"),
        None,
    );
}

/// A step with the timer running is over: tells once whether the CPU hooks see its operations.
pub(super) fn after_timed_step(told: &Told, plan: &Plan, ops_seen: u64) {
    if told.untimed.load(Ordering::Relaxed) >= UNTIMED_STEPS {
        return;
    }
    let on_cpu = plan.nodes.iter().filter(|n| n.place.is_cpu).count();
    if ops_seen > 0 {
        told.untimed.store(u8::MAX, Ordering::Relaxed);
        tell(
            "op_times",
            Condition::Ok,
            format!("the CPU backend's operations are timed ({ops_seen} calls for {on_cpu} nodes in the first step)"),
            None,
        );
        tell_untimed(plan);
    } else if told.untimed.fetch_add(1, Ordering::Relaxed) + 1 == UNTIMED_STEPS {
        let reason = if on_cpu > 0 {
            "the CPU backend's own calls do not go through the PLT in this build (static, LTO or -fno-semantic-interposition)"
        } else {
            "all operations run on a backend that cannot be timed without cutting the graph"
        };
        tell(
            "op_times",
            Condition::Unavailable,
            reason,
            Some("times of operations, layers and components; expert routing"),
        );
    }
}

/// Devices that a graph with timed operations runs on besides: their operations have no times.
fn tell_untimed(plan: &Plan) {
    let others: BTreeSet<&str> =
        plan.parts.iter().filter(|p| !p.place.is_cpu).map(|p| p.place.device.unwrap_or(p.place.backend)).collect();
    if !others.is_empty() {
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        let reason = format!("operations on {names} cannot be timed without cutting the graph; see split_execution");
        tell("op_times", Condition::Warning, reason, Some("times of these operations; expert routing there"));
    }
}

/// A ubatch runs. Without a decode call around any of the first ones, requests cannot be seen.
pub(super) fn before_step(told: &Told, in_decode: bool) {
    if told.without_decode.load(Ordering::Relaxed) > STEPS_WITHOUT_DECODE {
        return;
    }
    if in_decode {
        told.without_decode.store(u8::MAX, Ordering::Relaxed);
    } else if told.without_decode.fetch_add(1, Ordering::Relaxed) == STEPS_WITHOUT_DECODE {
        let reason = "graphs of tokens run, but none of llama_process, llama_decode and llama_encode is seen: the program makes \
                      others, or its calls do not go through the PLT";
        tell("requests", Condition::Unavailable, reason, Some("requests, batches, KV cells"));
    }
}
