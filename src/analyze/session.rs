//! Who wrote the session, when, in which process, and whether it was closed in order.

use serde::Serialize;

use super::SessionAccount;
use crate::format::{Level, Line};

/// The session. Fields of `resource_session_start` are `null` when that line is not in the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Info {
    /// Its id.
    pub session_id: String,
    /// Local time of the start.
    pub started: Option<String>,
    /// Unix time of the start, microseconds.
    pub started_unix_us: Option<u64>,
    /// From its first event to its last, seconds.
    pub duration_s: f64,
    /// Whether the log was closed in order. If not, the host was killed or is still running.
    pub closed: bool,
    /// Level at the start.
    pub level: Option<Level>,
    /// `preload`, `linked` or `api`.
    pub mode: Option<String>,
    /// File name of the host program.
    pub program: Option<String>,
    /// Process id of the host.
    pub pid: Option<u32>,
    /// Version of the library that wrote the log.
    pub library_version: Option<String>,
    /// Version of the log format.
    pub log_version: Option<u32>,
    /// Bytes a second that the log was allowed to grow; `null` is unlimited, or unknown without a start.
    pub rate_limit: Option<u64>,
    /// Names of the sessions that the host itself began.
    pub tracked: Vec<String>,
}

/// Gathers [`Info`].
#[derive(Debug, Default)]
pub struct Fold {
    start: Option<crate::format::session::SessionStart>,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        let now = line.t_ns();
        if let Line::ResourceSessionStart(start) = line {
            self.first_ns = Some(start.t_ns);
            self.start = Some(start.clone());
        }
        self.first_ns.get_or_insert(now);
        self.last_ns = self.last_ns.max(now);
    }

    /// Seconds since the session began. Events may be older than the start: what happened before the log was opened.
    #[must_use]
    pub fn seconds(&self, t_ns: u64) -> f64 {
        (i128::from(t_ns) - i128::from(self.first_ns.unwrap_or(t_ns))) as f64 / 1e9
    }

    /// The result.
    #[must_use]
    pub fn finish(self, account: &SessionAccount) -> Info {
        let start = self.start.as_ref();
        Info {
            session_id: account.session_id.clone(),
            started: start.map(|s| s.timestamp.clone()),
            started_unix_us: start.map(|s| s.unix_us),
            duration_s: self.seconds(self.last_ns).max(0.0),
            closed: account.ended,
            level: start.map(|s| s.level),
            mode: start.map(|s| s.mode.clone()),
            program: start.map(|s| s.program.clone()),
            pid: start.map(|s| s.pid),
            library_version: start.map(|s| s.library_version.clone()),
            log_version: start.map(|s| s.log_version),
            rate_limit: start.and_then(|s| s.rate_limit),
            tracked: account.tracked.clone(),
        }
    }
}
