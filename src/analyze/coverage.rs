//! What of the truth is in the log: steps timed and sampled, events dropped, features that do not work here, and why.

use std::collections::BTreeMap;

use serde::Serialize;

use super::SessionAccount;
use crate::format::Line;
use crate::format::summary::CaptureSummary;

/// Events that were not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// `rate_limit`, `warm_up`, `queue_full`, `io_error`, `internal`.
    pub reason: String,
    /// What was left out.
    pub kind: String,
    /// How many.
    pub count: u64,
}

/// The last state of one part of the library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// Part of the library.
    pub component: String,
    /// `ok`, `unavailable`, `degraded`, `warning`, `stopped`.
    pub state: String,
    /// What was found.
    pub reason: String,
    /// What is missing from the log because of it.
    pub lost: Option<String>,
}

/// Totals that the library itself wrote at the end, to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Declared {
    /// Ubatches computed.
    pub steps: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Lines written.
    pub lines_written: u64,
    /// Events that were not written.
    pub events_dropped: u64,
    /// Largest sum of live buffers, MiB.
    pub total_memory_mb: Option<f64>,
    /// Floating-point operations, 10^9.
    pub total_compute_gflops: f64,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Ubatches in all summaries.
    pub steps: u64,
    /// Those of them with timed operations.
    pub timed_steps: u64,
    /// Those of them that were written event by event.
    pub sampled_steps: u64,
    /// What was dropped, by reason and kind.
    pub dropped: Vec<Dropped>,
    /// Everything dropped.
    pub dropped_events: u64,
    /// Activation streams that were closed.
    pub captures: Vec<CaptureSummary>,
    /// Last state of each part, and every state that cost something.
    pub states: Vec<State>,
    /// The library's own totals; `null` when the log was not closed in order.
    pub declared: Option<Declared>,
    /// Steps that the library counted but no summary in this file covers: lines are lost.
    /// `null` without [`Self::declared`].
    pub unsummarized_steps: Option<u64>,
    /// The session's start is in the file.
    pub has_start: bool,
    /// The session's end is in the file.
    pub has_end: bool,
    /// Events under ids that no session line announced.
    pub foreign_ids: u64,
}

/// Gathers [`Coverage`].
#[derive(Debug, Default)]
pub struct Fold {
    steps: u64,
    timed_steps: u64,
    sampled_steps: u64,
    dropped: BTreeMap<(String, String), u64>,
    captures: Vec<CaptureSummary>,
    states: Vec<State>,
    declared: Option<Declared>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        match line {
            Line::StepSummary(e) => {
                self.steps = self.steps.saturating_add(e.steps);
                self.timed_steps = self.timed_steps.saturating_add(e.timed_steps);
                self.sampled_steps = self.sampled_steps.saturating_add(e.sampled_steps);
            }
            Line::EventsDropped(e) => {
                let count = self.dropped.entry((e.reason.clone(), e.kind.clone())).or_default();
                *count = count.saturating_add(e.count);
            }
            Line::CaptureSummary(e) => self.captures.push(e.clone()),
            Line::InstrumentationState(e) => {
                let state = State {
                    component: e.component.clone(),
                    state: e.state.clone(),
                    reason: e.reason.clone(),
                    lost: e.lost.clone(),
                };
                // A part that says "ok" again and again is said once; every different trouble is kept.
                if state.state == "ok" {
                    self.states.retain(|s| s.component != state.component || s.state != "ok");
                }
                if !self.states.contains(&state) {
                    self.states.push(state);
                }
            }
            Line::ResourceSessionSummary(e) => {
                self.declared = Some(Declared {
                    steps: e.steps,
                    requests: e.requests,
                    lines_written: e.lines_written,
                    events_dropped: e.events_dropped,
                    total_memory_mb: e.total_memory_mb,
                    total_compute_gflops: e.total_compute_gflops,
                });
            }
            _ => {}
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self, account: &SessionAccount) -> Coverage {
        let dropped_events = self.dropped.values().fold(0, |a: u64, &n| a.saturating_add(n));
        let mut dropped: Vec<Dropped> =
            self.dropped.into_iter().map(|((reason, kind), count)| Dropped { reason, kind, count }).collect();
        dropped.sort_by_key(|d| std::cmp::Reverse(d.count));
        Coverage {
            steps: self.steps,
            timed_steps: self.timed_steps,
            sampled_steps: self.sampled_steps,
            dropped,
            dropped_events,
            captures: self.captures,
            states: self.states,
            declared: self.declared,
            unsummarized_steps: self.declared.map(|d| d.steps.saturating_sub(self.steps)),
            has_start: account.started,
            has_end: account.ended,
            foreign_ids: account.foreign_ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;
    use crate::read::SessionAccount;

    fn state(component: &str, state: &str, reason: &str) -> Line {
        serde_json::from_value(serde_json::json!({
            "event": "instrumentation_state", "timestamp": "0", "session_id": "s", "t_ns": 0,
            "component": component, "state": state, "reason": reason, "lost": null,
        }))
        .unwrap()
    }

    #[test]
    fn troubles_are_kept_and_repeated_good_news_is_not() {
        let mut fold = Fold::default();
        for line in [
            state("hooks", "ok", "42 hooks"),
            state("hooks", "ok", "43 hooks"),
            state("op_times", "unavailable", "no PLT"),
            state("op_times", "unavailable", "no PLT"),
        ] {
            fold.add(&line);
        }
        let coverage = fold.finish(&SessionAccount::default());
        assert_eq!(coverage.states.len(), 2);
        assert_eq!(coverage.states[0].reason, "43 hooks");
        assert_eq!(coverage.unsummarized_steps, None);
    }
}
