//! A log as a trace for Perfetto's UI: lines in, bytes out.
//!
//! A session becomes a process. It has one thread, whose slices are step, layer, component and operation of the sampled
//! steps, with the time between them in which steps were not sampled; a track for each slot, with its requests and
//! their prefill and decode; and counters for memory, KV cells, GPUs and the host. Lines may come in any order within
//! a few seconds: Perfetto sorts what it reads.

mod counters;
mod proto;
mod requests;
mod session;
mod step;
#[cfg(test)]
mod tests;
mod trace;
mod tracks;
mod unsampled;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use self::session::Session;
use self::trace::Trace;
use crate::format::Line;

/// Sessions of one machine's run agree on the difference of its clocks up to this, nanoseconds.
const SAME_CLOCK_NS: u64 = 1_000_000_000;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Slices and instants.
    pub slices: u64,
    /// Steps among them.
    pub steps: u64,
    /// Slices left out, because too many overlap.
    pub left_out: u64,
    /// Bytes of the trace.
    pub bytes: u64,
}

/// Writes a trace from the lines of a log.
#[derive(Debug)]
pub struct Export<W> {
    trace: Trace<W>,
    /// Open sessions by their index in the log, with their id.
    open: BTreeMap<usize, (String, Session)>,
    pids: BTreeSet<u32>,
    sessions: u64,
    /// Unix time minus the log's clock, of the first session.
    clock: Option<i128>,
    steps: u64,
    left_out: u64,
}

impl<W: Write> Export<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            trace: Trace::new(out),
            open: BTreeMap::new(),
            pids: BTreeSet::new(),
            sessions: 0,
            clock: None,
            steps: 0,
            left_out: 0,
        }
    }

    /// Takes the next line, of the session with this index in the log.
    ///
    /// # Errors
    /// Those of the output.
    pub fn add(&mut self, session: usize, line: &Line) -> io::Result<()> {
        let begins = matches!(line, Line::ResourceSessionStart(_));
        if begins || !self.open.contains_key(&session) {
            self.close(session)?;
            let begun = self.begin(line)?;
            self.open.insert(session, (line.session_id().to_owned(), begun));
        }
        let Some((id, open)) = self.open.get_mut(&session) else { return Ok(()) };
        open.add(&mut self.trace, line)?;
        // The host's own sessions within this one end too.
        let ends = matches!(line, Line::ResourceSessionEnd(e) if e.session_id == *id);
        if ends { self.close(session) } else { Ok(()) }
    }

    /// Writes what waited for more.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<Written> {
        while let Some(&session) = self.open.keys().next() {
            self.close(session)?;
        }
        self.trace.flush()?;
        let (slices, bytes) = (self.trace.slices, self.trace.bytes);
        Ok(Written { slices, steps: self.steps, left_out: self.left_out, bytes })
    }

    fn begin(&mut self, line: &Line) -> io::Result<Session> {
        self.sessions += 1;
        let start = if let Line::ResourceSessionStart(start) = line { Some(start) } else { None };
        let pid = start.map(|s| s.pid).filter(|pid| *pid > 0 && *pid <= i32::MAX as u32 && self.pids.insert(*pid));
        let offset = start.map_or(0, |s| {
            let clock = i128::from(s.unix_us) * 1_000 - i128::from(s.t_ns);
            let first = *self.clock.get_or_insert(clock);
            // The clock of the log begins anew with the machine; then Unix time places the session.
            let difference = clock - first;
            if difference.unsigned_abs() < SAME_CLOCK_NS.into() { 0 } else { i64::try_from(difference).unwrap_or(0) }
        });
        Session::new(&mut self.trace, self.sessions, (line.t_ns(), offset), start, pid)
    }

    fn close(&mut self, session: usize) -> io::Result<()> {
        if let Some((_, mut closed)) = self.open.remove(&session) {
            closed.finish(&mut self.trace)?;
            self.steps += closed.steps;
            self.left_out += closed.left_out;
        }
        Ok(())
    }
}
