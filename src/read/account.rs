//! What a log file held: lines read, lines that could not be read and why, and the sessions.
//!
//! The account always balances, see [`Account::balances`]: a line is an event, unknown, bad, blank or the
//! truncated last one.

use std::collections::BTreeMap;

use serde::Serialize;

/// Bad lines that are kept with their reason; the rest are only counted.
pub const BAD_LINES_KEPT: usize = 20;
/// Unknown event names that are kept apart; the rest are counted under [`OTHER_KINDS`].
pub const UNKNOWN_KINDS_KEPT: usize = 50;
/// Name for unknown events beyond [`UNKNOWN_KINDS_KEPT`] names.
pub const OTHER_KINDS: &str = "(other)";

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// Number of the line in the file, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// One session of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionAccount {
    /// Its id.
    pub session_id: String,
    /// Line of its first event.
    pub first_line: u64,
    /// Byte offset of that line in the file.
    pub first_byte: u64,
    /// Events that belong to it.
    pub events: u64,
    /// Its `resource_session_start` is in the file.
    pub started: bool,
    /// Its `resource_session_end` is in the file. Without it the host was killed, or is still running.
    pub ended: bool,
    /// Events under an id that no session and no `resource_tracking_begin` announced, counted for the
    /// session before them.
    pub foreign_ids: u64,
    /// Names of the sessions that the host itself began within this one (C API, macros).
    pub tracked: Vec<String>,
}

/// What the file held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Bytes read.
    pub bytes: u64,
    /// Lines, the last one included even where it does not end.
    pub lines: u64,
    /// Events understood.
    pub events: u64,
    /// Events of these that stood behind the torso of another on the same line: a host that was killed in the middle of
    /// a write, and the next one appended to the file.
    pub recovered_events: u64,
    /// Empty lines.
    pub blank_lines: u64,
    /// Lines that are no event of this format.
    pub bad_lines: u64,
    /// The first of them, with the reason.
    pub bad: Vec<BadLine>,
    /// Lines that are well-formed events of a kind that this program does not know: name and number.
    pub unknown_kinds: BTreeMap<String, u64>,
    /// The last line, when it is cut off: the host was killed in the middle of a write, or is writing.
    pub truncated_last_line: Option<BadLine>,
    /// The sessions, in the order of their first event.
    pub sessions: Vec<SessionAccount>,
}

impl Account {
    /// Lines with an event of unknown kind.
    #[must_use]
    pub fn unknown_lines(&self) -> u64 {
        self.unknown_kinds.values().sum()
    }

    /// Lines that gave nothing, for whatever reason.
    #[must_use]
    pub fn unread_lines(&self) -> u64 {
        self.bad_lines + self.unknown_lines() + u64::from(self.truncated_last_line.is_some())
    }

    /// Whether every line is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.lines + self.recovered_events == self.events + self.blank_lines + self.unread_lines()
    }

    pub(super) fn add_bad(&mut self, line: u64, reason: String) {
        self.bad_lines += 1;
        if self.bad.len() < BAD_LINES_KEPT {
            self.bad.push(BadLine { line, reason });
        }
    }

    pub(super) fn add_unknown(&mut self, kind: &str) {
        let full = self.unknown_kinds.len() >= UNKNOWN_KINDS_KEPT && !self.unknown_kinds.contains_key(kind);
        let key = if full { OTHER_KINDS } else { kind };
        *self.unknown_kinds.entry(key.to_owned()).or_default() += 1;
    }
}
