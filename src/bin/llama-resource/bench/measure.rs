//! Rounds of pairs: a plain server for the whole round, one of each mode beside it, the same requests to both in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use llama_resource_instrumentation::analyze::bench::statistics::Random;
use llama_resource_instrumentation::analyze::bench::{NotMeasured, PLAIN, Pair};

use super::mode::{Parts, Start};
use super::progress::Progress;
use super::server::{Plan, Server};
use super::workload::Workload;
use crate::signals;

/// How long a start or a request may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is to be measured.
#[derive(Debug)]
pub struct Task {
    /// Modes.
    pub modes: Vec<String>,
    /// What they are made of.
    pub parts: Parts,
    /// The requests.
    pub workload: Workload,
    /// The model, as an argument.
    pub model: std::path::PathBuf,
    /// Threads of each server.
    pub threads: u32,
    /// Rounds.
    pub rounds: u32,
    /// Pairs in each.
    pub pairs_per_round: u32,
    /// The program that makes the pairs of a round inside one process, where there are to be no servers.
    pub in_process: Option<std::path::PathBuf>,
    /// When nothing further is begun.
    pub limit: Option<Duration>,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// Every pair.
    pub pairs: Vec<Pair>,
    /// Modes that could not be measured at all.
    pub not_measured: Vec<NotMeasured>,
    /// What else happened.
    pub notes: Vec<String>,
}

/// The measuring itself.
struct Run<'a> {
    task: &'a Task,
    began: Instant,
    done: Measured,
    /// Texts of the single requests by kind and mode: they must be the same.
    texts: BTreeMap<(usize, String), BTreeSet<String>>,
    /// The longest step so far, for the decision whether another one fits.
    longest: Duration,
    servers: u32,
}

/// Measures everything. Fails only if the plain server does.
pub fn measure(task: &Task, progress: &mut Progress) -> Result<Measured, String> {
    let mut run = Run {
        task,
        began: Instant::now(),
        done: Measured::default(),
        texts: BTreeMap::new(),
        longest: Duration::ZERO,
        servers: 0,
    };
    let mut modes = Vec::new();
    for mode in &task.modes {
        match Start::of(mode, &task.parts, "") {
            Ok(_) => modes.push(mode.clone()),
            Err(reason) => run.done.not_measured.push(NotMeasured { mode: mode.clone(), reason }),
        }
    }
    for round in 0..task.rounds {
        if modes.is_empty() {
            break;
        }
        // Another order each time: what follows what should not matter, so it should not be the same.
        let n = modes.len();
        modes.rotate_left(usize::from(round > 0 && n > 1));
        if !run.round(round, &mut modes, progress)? {
            let told = format!("the time ended in round {} of {}", round + 1, task.rounds);
            run.done.notes.push(told);
            break;
        }
    }
    progress.end();
    for mode in modes {
        if !run.done.pairs.iter().any(|p| p.mode == mode) {
            run.done.not_measured.push(NotMeasured { mode, reason: "the time ended before its first pair".to_owned() });
        }
    }
    run.compare_texts();
    Ok(run.done)
}

impl Run<'_> {
    /// One round; `false` when the time is over.
    fn round(&mut self, round: u32, modes: &mut Vec<String>, progress: &mut Progress) -> Result<bool, String> {
        if !self.has_time() {
            return Ok(false);
        }
        let began = Instant::now();
        let (plain, _) = self.start(PLAIN)?;
        self.task.workload.warm_up(&plain)?;
        let start_of_plain = began.elapsed();
        let mut failed = Vec::new();
        let mut in_time = true;
        for mode in modes.iter() {
            in_time = self.has_time();
            if !in_time {
                break;
            }
            let began = Instant::now();
            let before = self.done.pairs.len();
            progress.step(round, self.task.rounds, mode);
            if let Err(why) = self.step(round, mode, &plain) {
                interrupted()?;
                self.done.pairs.truncate(before);
                self.give_up(mode, round, why);
                failed.push(mode.clone());
            }
            // The first step of the next round starts a plain server too.
            self.longest = self.longest.max(began.elapsed() + start_of_plain);
        }
        modes.retain(|m| !failed.contains(m));
        plain.stop()?;
        Ok(in_time)
    }

    /// One mode beside the plain server.
    fn step(&mut self, round: u32, mode: &str, plain: &Server) -> Result<(), String> {
        let (other, start) = self.start(mode)?;
        start.check_running(&other)?;
        self.task.workload.warm_up(&other)?;
        std::thread::sleep(start.aftermath());
        for pair in 0..self.task.pairs_per_round {
            let plain_first = (pair + round).is_multiple_of(2);
            for (number, kind) in self.task.workload.kinds().iter().enumerate() {
                interrupted()?;
                if self.is_over() {
                    break;
                }
                let at_s = self.began.elapsed().as_secs_f64();
                let send = |server: &Server| self.task.workload.send(*kind, server);
                let send_other = || {
                    let answer = send(&other);
                    std::thread::sleep(start.aftermath());
                    answer
                };
                let (of_plain, of_mode) = if plain_first {
                    let first = send(plain)?;
                    (first, send_other()?)
                } else {
                    let first = send_other()?;
                    (send(plain)?, first)
                };
                let both = of_plain.phases.into_iter().zip(of_mode.phases);
                self.done.pairs.extend(both.map(|((phase, plain_ms), (_, mode_ms))| Pair {
                    mode: mode.to_owned(),
                    round,
                    phase,
                    at_s: (at_s * 1e3).round() / 1e3,
                    plain_ms,
                    mode_ms,
                }));
                for (name, text) in [(PLAIN, of_plain.text), (mode, of_mode.text)] {
                    self.texts.entry((number, name.to_owned())).or_default().extend(text);
                }
            }
        }
        other.stop()?;
        start.check_written()
    }

    fn start(&mut self, mode: &str) -> Result<(Server, Start), String> {
        self.servers += 1;
        // A mode may have a path in it.
        let name = format!("{}-{}", mode.replace(|c: char| !c.is_ascii_alphanumeric(), "-"), self.servers);
        let start = Start::of(mode, &self.task.parts, &name)?;
        let mut arguments = vec!["-m".into(), self.task.model.clone().into_os_string()];
        arguments.extend(self.task.workload.arguments(self.task.threads).into_iter().map(Into::into));
        // A name of any length, so that the heap lies elsewhere in every server: what that is worth would pass for a
        // cost of the mode.
        let alias = "x".repeat(1 + Random::new(self.servers.into()).bits() as usize % 4096);
        arguments.extend(["--alias".into(), alias.into()]);
        let plan = Plan {
            binary: &start.binary,
            arguments,
            environment: start.environment.clone(),
            output: self.task.parts.folder.join(format!("{name}.txt")),
            patience: PATIENCE,
        };
        Server::start(&plan).map(|server| (server, start))
    }

    /// Whether another step is likely to end in time. The first is always begun.
    fn has_time(&self) -> bool {
        self.task.limit.is_none_or(|limit| self.longest.is_zero() || self.began.elapsed() + self.longest <= limit)
    }

    /// Whether the time is over in the middle of a step: what it has shown so far stays.
    fn is_over(&self) -> bool {
        self.task.limit.is_some_and(|limit| self.began.elapsed() > limit)
    }

    /// A mode that fails is left out from here on; what it has shown before stays.
    fn give_up(&mut self, mode: &str, round: u32, why: String) {
        if self.done.pairs.iter().any(|p| p.mode == mode) {
            self.done.notes.push(format!("{mode} failed in round {}: {why}", round + 1));
        } else {
            self.done.not_measured.push(NotMeasured { mode: mode.to_owned(), reason: why });
        }
    }

    fn compare_texts(&mut self) {
        let mut different = BTreeSet::new();
        for ((kind, mode), found) in &self.texts {
            if self.texts.get(&(*kind, PLAIN.to_owned())).is_some_and(|plain| plain != found) {
                different.insert(mode.clone());
            }
        }
        for mode in different {
            self.done.notes.push(format!("{mode}: other text than the plain server's"));
        }
    }
}

/// Ctrl-C ends the measuring, and with it every server.
pub fn interrupted() -> Result<(), String> {
    if signals::caught() { Err("interrupted; nothing was written".to_owned()) } else { Ok(()) }
}
