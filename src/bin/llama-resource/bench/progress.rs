//! Where the benchmark is, on standard error: one line that changes for a person, one a round for a log file.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Says what is being measured.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    alive: bool,
    round: Option<u32>,
}

impl Progress {
    /// From now on.
    pub fn new() -> Self {
        Self { began: Instant::now(), alive: std::io::stderr().is_terminal(), round: None }
    }

    /// A step begins.
    pub fn step(&mut self, round: u32, rounds: u32, mode: &str) {
        let text = format!("round {} of {rounds}, {mode}, {} s", round + 1, self.began.elapsed().as_secs());
        let mut out = std::io::stderr();
        // If even stderr is closed, there is nobody to tell.
        if self.alive {
            let _ = write!(out, "\r\x1b[K{text}");
            let _ = out.flush();
        } else if self.round != Some(round) {
            let _ = writeln!(out, "{text}");
        }
        self.round = Some(round);
    }

    /// Nothing more is measured.
    pub fn end(&self) {
        if self.alive && self.round.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
