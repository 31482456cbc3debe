//! What is missing from a report and why, as sentences: one wording for the terminal and the page.

use super::units::{bytes, count, percent};
use crate::analyze::stats::share;
use crate::analyze::{Account, Session};

/// How much a gap matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// As intended; worth knowing.
    Note,
    /// Something is lost.
    Loss,
}

/// One sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// How much it matters.
    pub weight: Weight,
    /// What is missing and why.
    pub text: String,
}

fn note(text: String) -> Gap {
    Gap { weight: Weight::Note, text }
}

fn loss(text: String) -> Gap {
    Gap { weight: Weight::Loss, text }
}

/// What is missing of one session.
#[must_use]
pub fn of_session(session: &Session) -> Vec<Gap> {
    let c = &session.coverage;
    let mut gaps = Vec::new();
    if !c.has_start {
        gaps.push(loss("The session's start is not in the file: level, program and clock are unknown.".to_owned()));
    }
    if !c.has_end {
        gaps.push(loss(
            "The session was not closed: the host was killed, or is still running. What came after its last summary is missing."
                .to_owned(),
        ));
    }
    if let Some(n @ 1..) = c.unsummarized_steps {
        gaps.push(loss(format!("{} steps that the library counted are in no summary of this file.", count(n))));
    }
    if c.foreign_ids > 0 {
        gaps.push(note(format!("{} events name a session that nobody announced.", count(c.foreign_ids))));
    }
    for d in &c.dropped {
        let kind = super::units::label(&d.kind);
        gaps.push(match d.reason.as_str() {
            "rate_limit" => note(format!(
                "{} {kind} left out to keep the log within its rate; their totals are in the summaries.",
                count(d.count)
            )),
            "warm_up" => {
                note(format!("{} {kind} of warm-ups left out; their totals are in the summaries.", count(d.count)))
            }
            reason => loss(format!("{} x {kind} lost: {}.", count(d.count), super::units::label(reason))),
        });
    }
    for capture in &c.captures {
        gaps.push(note(format!(
            "Activations: {} of {} tensors ({}) are in {} ({}).",
            count(capture.captured.tensors),
            count(capture.seen.tensors),
            bytes(capture.captured.bytes),
            capture.path,
            bytes(capture.file_bytes)
        )));
        for (verb, list) in [("left out", &capture.skipped), ("lost", &capture.dropped)] {
            for l in list {
                let text = format!(
                    "{} tensors ({}) were {verb}: {}.",
                    count(l.amount.tensors),
                    bytes(l.amount.bytes),
                    super::units::label(&l.reason)
                );
                gaps.push(if verb == "lost" { loss(text) } else { note(text) });
            }
        }
    }
    for s in c.states.iter().filter(|s| s.state != "ok") {
        let lost = s.lost.as_ref().map_or_else(String::new, |lost| format!(" Missing because of it: {lost}."));
        let text =
            format!("{} {}: {}.{lost}", super::units::label(&s.component), s.state, s.reason.trim_end_matches('.'));
        gaps.push(if s.state == "warning" && s.lost.is_none() { note(text) } else { loss(text) });
    }
    if session.memory.unmatched_frees > 0 {
        let n = count(session.memory.unmatched_frees);
        gaps.push(note(format!("{n} freed buffers were allocated before the log began; they are in no total.")));
    }
    gaps
}

/// How many steps were looked at closely, in one sentence; `None` when there were none.
#[must_use]
pub fn sampling(session: &Session) -> Option<String> {
    let c = &session.coverage;
    let part = |n: u64| share(n as f64, c.steps as f64).map(|s| format!("{} ({})", count(n), percent(s)));
    Some(format!(
        "Of {} steps {} were timed and {} written event by event; counts are of all, times of the timed ones.",
        count(c.steps),
        part(c.timed_steps)?,
        part(c.sampled_steps)?
    ))
}

/// What could not be read of the file.
#[must_use]
pub fn of_file(account: &Account) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if let Some(cut) = &account.truncated_last_line {
        gaps.push(loss(format!("Line {}, the last one, is cut off: the host was killed, or is writing.", cut.line)));
    }
    if account.bad_lines > 0 {
        gaps.push(loss(format!("{} lines are no event of this format:", count(account.bad_lines))));
        gaps.extend(account.bad.iter().map(|bad| loss(format!("line {}: {}", bad.line, bad.reason))));
    }
    if account.recovered_events > 0 {
        gaps.push(note(format!(
            "{} events stood behind the torso of another on their line, and were read.",
            count(account.recovered_events)
        )));
    }
    for (kind, n) in &account.unknown_kinds {
        gaps.push(note(format!(
            "{} x `{kind}`: an event that this version of llama-resource does not know.",
            count(*n)
        )));
    }
    gaps
}

/// What was read, in one sentence.
#[must_use]
pub fn reading(account: &Account) -> String {
    let sessions = account.sessions.len();
    format!(
        "{} lines, {}: {} events in {sessions} {}, {} lines unread.",
        count(account.lines),
        bytes(account.bytes),
        count(account.events),
        if sessions == 1 { "session" } else { "sessions" },
        count(account.unread_lines())
    )
}
