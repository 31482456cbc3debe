//! `bench`: what the library costs real servers, measured in pairs.

pub mod args;
mod fingerprint;
mod http;
mod in_process;
mod measure;
mod mode;
mod progress;
mod server;
mod workload;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use llama_resource_instrumentation::analyze::bench::compare::mismatches;
use llama_resource_instrumentation::analyze::bench::summary::Summary;
use llama_resource_instrumentation::analyze::bench::{self, Build, Method, Report, Settings};
use llama_resource_instrumentation::export::{html, text};

use self::measure::{Measured, Task};
use self::mode::Parts;
use self::progress::Progress;
use self::workload::Workload;
use crate::terminal::{eprint_line, print, stdout_style};
use crate::{doctor, library, signals};

/// Exit status when a mode costs more than it may.
const OVER: u8 = 2;

/// Where `make` puts what is measured by default.
const SERVER: &str = "target/llama.cpp/bin/llama-server";
const PATCHED: &str = "target/llama.cpp-patched/bin/llama-server";
const MODEL: &str = "target/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Runs the subcommand.
pub fn bench(args: &args::Bench) -> Result<ExitCode, String> {
    let report = if args.from.is_empty() { measured(args)? } else { together(&args.from)? };
    let summary = Summary::of(&report);
    if let Some(file) = &args.json {
        let json =
            serde_json::to_string_pretty(&summary).map_err(|e| format!("cannot write the report as JSON: {e}"))?;
        write(file, &(json + "\n"))?;
    }
    if let Some(file) = &args.html {
        write(file, &html::bench::render(&summary))?;
    }
    print(&text::bench::render(&summary, stdout_style()))?;
    if report.pairs.is_empty() {
        return Err("nothing was measured".to_owned());
    }
    Ok(if args.check && summary.over().next().is_some() { ExitCode::from(OVER) } else { ExitCode::SUCCESS })
}

/// A report that was written earlier.
pub fn read(file: &Path) -> Result<Report, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("cannot read `{}`: {e}", file.display()))?;
    Report::parse(&text).map_err(|e| format!("cannot use `{}`: {e}", file.display()))
}

/// Reports of one machine, build and workload as one.
fn together(files: &[PathBuf]) -> Result<Report, String> {
    let mut reports = files.iter().map(|file| read(file).map(|report| (file, report)));
    let (_, first) = reports.next().ok_or("no file is named")??;
    reports.try_fold(first, |all, next| {
        let (file, report) = next?;
        match mismatches(&all, &report).first() {
            Some(why) => Err(format!("`{}` and those before it say nothing together: {why}", file.display())),
            None => Ok(all.joined(report)),
        }
    })
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|e| format!("cannot write `{}`: {e}", file.display()))?;
    eprint_line(&format!("wrote {}", file.display()));
    Ok(())
}

fn measured(args: &args::Bench) -> Result<Report, String> {
    let began = Instant::now();
    let folder = Folder::new()?;
    let task = task(args, &folder.0)?;
    // An hour of measuring is not to end at a folder that does not exist.
    for file in [&args.json, &args.html].into_iter().flatten() {
        if file.parent().is_some_and(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
            return Err(format!("cannot write `{}`: its folder does not exist", file.display()));
        }
    }
    let mut machine = fingerprint::machine();
    let settings = settings(&task, args);
    let build = Build {
        server: fingerprint::binary(&task.parts.server),
        patched: task.parts.patched.as_ref().ok().map(|p| fingerprint::binary(p)),
        model: fingerprint::model(&task.model),
        library: task.parts.library.as_ref().ok().map(|p| fingerprint::file(p)),
    };
    let created = fingerprint::now();
    signals::catch();
    let mut progress = Progress::new();
    let Measured { pairs, not_measured, notes } = match &task.in_process {
        Some(program) => in_process::measure(&task, program, &mut progress)?,
        None => measure::measure(&task, &mut progress)?,
    };
    machine.load_after = fingerprint::load();
    let took_s = began.elapsed().as_secs_f64().round();
    let bench_version = bench::BENCH_VERSION;
    Ok(Report { bench_version, created, took_s, machine, build, settings, not_measured, notes, pairs })
}

fn task(args: &args::Bench, folder: &Path) -> Result<Task, String> {
    let named = |file: &Option<PathBuf>, default: &str| {
        file.clone().or_else(|| Some(PathBuf::from(default)).filter(|p| p.is_file()))
    };
    let server = named(&args.server, SERVER).unwrap_or_else(|| "llama-server".into());
    let server = doctor::program(&server)
        .ok_or_else(|| format!("cannot find `{}`: name a llama-server with --server", server.display()))?;
    let model = named(&args.model, MODEL).ok_or("no model: name a GGUF file with --model")?;
    if !model.is_file() {
        return Err(format!("cannot find the model `{}`", model.display()));
    }
    let patched = match named(&args.patched_server, PATCHED) {
        Some(path) => doctor::program(&path).ok_or_else(|| format!("cannot find `{}`", path.display())),
        None => Err(format!(
            "no patched server: {PATCHED} is not there (`make llama-patched`), and --patched-server names none"
        )),
    };
    let usual = usual(args);
    let rounds = args.rounds.unwrap_or(usual.rounds);
    let pairs = args.pairs.unwrap_or(usual.pairs);
    let predict = args.predict.unwrap_or(usual.predict);
    let time = args.time.or(args.quick.then_some(270));
    Ok(Task {
        modes: args.modes.clone().unwrap_or_else(|| usual.modes.iter().map(|&m| m.to_owned()).collect()),
        parts: Parts { server, patched, library: library(folder), folder: folder.to_owned() },
        workload: Workload {
            contexts: args.contexts.unwrap_or(usual.contexts),
            predict,
            parallel: 4,
            // Requests at once take longer for each token.
            parallel_predict: predict * 2 / 3,
            by_cpu: args.fine,
        },
        model,
        threads: args.threads.unwrap_or(usual.threads),
        rounds: rounds.min(pairs),
        pairs_per_round: pairs.div_ceil(rounds.min(pairs)),
        limit: time.map(|s| Duration::from_secs(s.into())),
        in_process: args.in_process.clone(),
    })
}

/// What is taken where nothing else is said.
struct Usual {
    modes: Vec<&'static str>,
    rounds: u32,
    pairs: u32,
    contexts: [u32; 2],
    predict: u32,
    threads: u32,
}

fn usual(args: &args::Bench) -> Usual {
    let all = bench::modes();
    let off = all.iter().copied().filter(|m| *m == bench::PLAIN || bench::is_off(m)).collect();
    // Inside one process levels are measured by the CPU time of one thread, and captures are not.
    let levels = all.iter().copied().filter(|m| *m != bench::CAPTURE && !m.starts_with("patched")).collect();
    if args.fine {
        Usual { modes: off, rounds: 80, pairs: 480, contexts: [8, 64], predict: 32, threads: 1 }
    } else if args.in_process.is_some() {
        Usual { modes: levels, rounds: 40, pairs: 320, contexts: [8, 512], predict: 24, threads: 1 }
    } else if args.quick {
        Usual { modes: all, rounds: 10, pairs: 10, contexts: [32, 384], predict: 24, threads: 2 }
    } else {
        Usual { modes: all, rounds: 24, pairs: 48, contexts: [128, 1024], predict: 96, threads: 2 }
    }
}

/// A copy of the library: a build that goes on meanwhile must not change what is measured.
fn library(folder: &Path) -> Result<PathBuf, String> {
    let original = library::library()?;
    let copy = folder.join(original.file_name().unwrap_or(original.as_os_str()));
    fs::copy(&original, &copy).map_err(|e| format!("cannot copy `{}`: {e}", original.display()))?;
    Ok(copy)
}

fn settings(task: &Task, args: &args::Bench) -> Settings {
    let workload = &task.workload;
    Settings {
        threads: task.threads,
        contexts: workload.contexts.to_vec(),
        predict: workload.predict,
        parallel: [workload.parallel, workload.parallel_predict],
        rounds: task.rounds,
        pairs_per_round: task.pairs_per_round,
        time_limit_s: task.limit.map(|_| args.time.unwrap_or(270)),
        capture: bench::capture(bench::CAPTURE).unwrap_or_default().map(str::to_owned),
        method: match (&task.in_process, args.fine) {
            (Some(_), _) => Method::InProcess,
            (None, true) => Method::Fine,
            (None, false) => Method::Servers,
        },
    }
}

/// A folder of our own that goes when we go.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("llama-resource-bench-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| format!("cannot create the folder `{}`: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
