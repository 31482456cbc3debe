//! One line on a terminal that says how far long work is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use llama_resource_instrumentation::export::units;

/// Smaller files are done before anybody wonders.
const LEAST: u64 = 64 << 20;
/// Time between two pictures.
const EVERY: Duration = Duration::from_millis(200);

/// The line; it disappears with the value.
pub struct Progress {
    what: &'static str,
    total: u64,
    shown: Option<Instant>,
    began: Instant,
    wanted: bool,
}

impl Progress {
    /// For work over `total` bytes.
    pub fn new(what: &'static str, total: u64) -> Self {
        let wanted = total >= LEAST && std::io::stderr().is_terminal();
        Self { what, total, shown: None, began: Instant::now(), wanted }
    }

    /// Shows that `done` bytes are done.
    pub fn at(&mut self, done: u64) {
        if !self.wanted || self.shown.unwrap_or(self.began).elapsed() < EVERY {
            return;
        }
        self.shown = Some(Instant::now());
        let share = done as f64 / self.total.max(1) as f64;
        let rate = done as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let line = format!(
            "{} {:>3.0} %  {} of {}  {}/s",
            self.what,
            share * 100.0,
            units::bytes(done),
            units::bytes(self.total),
            units::bytes(rate as u64)
        );
        let _ = write!(std::io::stderr(), "\r{line:<79}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r{:79}\r", "");
        }
    }
}
