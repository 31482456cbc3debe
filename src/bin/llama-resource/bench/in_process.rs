//! Rounds of pairs inside one process each, which bench/paired.cpp makes.

use std::path::Path;
use std::time::Instant;

use llama_resource_instrumentation::analyze::bench::statistics::Random;
use llama_resource_instrumentation::analyze::bench::{NotMeasured, Pair};
use serde::Deserialize;

use super::measure::{Measured, Task, interrupted};
use super::progress::Progress;
use super::server::cleaned;
use crate::signals;

/// A line of the program's.
#[derive(Debug, Deserialize)]
struct Line {
    mode: String,
    phase: String,
    plain_ms: f64,
    mode_ms: f64,
}

/// Measures everything.
pub fn measure(task: &Task, program: &Path, progress: &mut Progress) -> Result<Measured, String> {
    let mut done = Measured::default();
    let library = task.parts.library.as_ref().map_err(Clone::clone)?;
    let (mut modes, servers): (Vec<_>, Vec<_>) =
        task.modes.iter().cloned().partition(|m| !m.starts_with("patched") && !m.starts_with("preload"));
    let reason = "it cannot be switched on inside one process";
    done.not_measured.extend(servers.into_iter().map(|mode| NotMeasured { mode, reason: reason.to_owned() }));
    let mut random = Random::new(u64::from(task.threads));
    let began = Instant::now();
    for round in 0..task.rounds {
        if modes.is_empty() || task.limit.is_some_and(|limit| began.elapsed() > limit) {
            break;
        }
        progress.step(round, task.rounds, "one process");
        let at_s = began.elapsed().as_secs_f64();
        let mut command = cleaned(program);
        command
            .arg(&task.model)
            .args([task.pairs_per_round.to_string(), task.threads.to_string(), modes.join(",")])
            .env("LD_PRELOAD", library)
            .env("LD_BIND_NOW", "1")
            .env("LLAMA_RESOURCE_DISABLED", "1")
            .env("TMPDIR", &task.parts.folder)
            // The stack lies elsewhere in every process.
            .env("PADDING", "x".repeat(random.bits() as usize % 4096));
        signals::end_with_us(&mut command);
        let output = command.output().map_err(|e| format!("cannot start `{}`: {e}", program.display()))?;
        interrupted()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{}` ended with {}: {}", program.display(), output.status, said.trim()));
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Line { mode, phase, plain_ms, mode_ms } = serde_json::from_str(line)
                .map_err(|e| format!("`{}` wrote a line that is no pair: {e}", program.display()))?;
            done.pairs.push(Pair { mode, round, phase, at_s: (at_s * 1e3).round() / 1e3, plain_ms, mode_ms });
        }
        modes.rotate_left(1);
    }
    progress.end();
    Ok(done)
}
