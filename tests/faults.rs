//! Every call of the library that can fail, made to fail in turn, in a host that is the MOCK of llama.cpp: the host
//! says and does what it does alone, the log has whole lines, and the stream's account adds up or its end is missing.
//!
//! A few hundred of the allocations by default; LRI_FAULTS=all for each of them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "c/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use llama_resource_instrumentation::format::stream::{Content, Packet};
use llama_resource_instrumentation::read::stream::{Item, StreamReader};
use serde_json::Value;
use support::{Folder, root};

/// Runs at the same time: most of their time they sleep.
const AT_A_TIME: usize = 16;

/// A host is killed after that, which fails the test.
const PATIENCE: Duration = Duration::from_secs(40);

/// Allocations that fail alone, and from which on all fail.
const FEW: (usize, usize) = (350, 120);

/// The host, the library under test, and the shim.
struct Bench {
    folder: Folder,
    host: PathBuf,
    shim: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let compile = |source: &str, out: &str, flags: &[&str]| {
            let path = folder.path(out);
            let mut command = Command::new(if source.ends_with(".cpp") { "c++" } else { "cc" });
            command.args(["-g", "-O1", "-o"]).arg(&path).arg(root().join("tests/host").join(source)).args(flags);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
            path
        };
        compile("mock_llama.cpp", "libllama.so", &["-shared", "-fPIC", "-DMOCK_TOKENS"]);
        let here = format!("-L{}", folder.0.display());
        let rpath = format!("-Wl,-rpath,{}", folder.0.display());
        let host = compile("mock_host.cpp", "mock_host", &[&here, "-lllama", &rpath]);
        let shim = compile("faults.c", "faults.so", &["-shared", "-fPIC", "-ldl"]);
        Self { folder, host, shim }
    }

    /// Runs the host with everything recorded and captured, `name` being that of its files.
    fn run(&self, name: &str, environment: &[(&str, String)]) -> Outcome {
        let library = self.folder.path("libllama_resource_instrumentation.so.1");
        let log = self.folder.path(&format!("{name}.jsonl"));
        let stream = self.folder.path(&format!("{name}.stream"));
        let mut command = Command::new(&self.host);
        for (variable, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("LLAMA_RESOURCE_")) {
            command.env_remove(variable);
        }
        command.args(["plain"; 3]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("LD_PRELOAD", format!("{}:{}", self.shim.display(), library.display()));
        command.env("FAULT_OF", "libllama_resource_instrumentation");
        command.env("LLAMA_RESOURCE_LOG_PATH", &log).env("LLAMA_RESOURCE_LOG_LEVEL", "VERBOSE");
        command.env("LLAMA_RESOURCE_CAPTURE", &stream).env("LLAMA_RESOURCE_TENSORS", "l_out");
        command.env("LLAMA_RESOURCE_MAX_MEMORY", "64M").env("LLAMA_RESOURCE_CHECKPOINT_TOKENS", "2");
        command.envs(environment.iter().map(|(n, v)| (n, v)));
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                let output = child.wait_with_output().unwrap();
                panic!("{name}: the host hangs: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(4));
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.to_string();
        Outcome { name: name.to_owned(), status, out: text(&output.stdout), err: text(&output.stderr), log, stream }
    }

    /// A run in which the call number `at` of a kind fails, or all from it on; checked.
    fn with_fault(&self, alone: &Outcome, kind: &str, at: usize, lasts: bool) -> End {
        let mut environment = vec![("FAULT_KIND", kind.to_owned()), ("FAULT_AT", at.to_string())];
        if lasts {
            environment.push(("FAULT_LASTS", "1".to_owned()));
        }
        let outcome = self.run(&format!("{kind}-{at}-{}", if lasts { "on" } else { "once" }), &environment);
        let end = outcome.check(alone);
        for file in [&outcome.log, &outcome.stream] {
            let _ = std::fs::remove_file(file);
        }
        end
    }
}

/// How a run ended.
struct Outcome {
    name: String,
    status: String,
    out: String,
    err: String,
    log: PathBuf,
    stream: PathBuf,
}

/// What became of the recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    log_is_closed: bool,
    stream_is_closed: bool,
    lost: u64,
    captured: u64,
}

impl Outcome {
    fn check(&self, alone: &Self) -> End {
        let name = &self.name;
        let ours: Vec<&str> = self.err.lines().filter(|l| l.starts_with("llama-resource: ")).collect();
        assert_eq!((&self.status, &self.out), (&alone.status, &alone.out), "{name}: the host. {}", self.err);
        assert_eq!(ours.len(), self.err.lines().count(), "{name}: {}", self.err);
        assert!(ours.len() <= 6, "{name}: told more than once: {}", self.err);
        let log_is_closed = self.check_log();
        let (stream_is_closed, captured, lost) = check_stream(&self.stream, name);
        let whole = log_is_closed && stream_is_closed && lost == 0;
        assert!(whole || !ours.is_empty(), "{name}: something is missing, and nothing was said");
        End { log_is_closed, stream_is_closed, lost, captured }
    }

    /// Whole lines; the last one may be cut. Whether the log was closed in order.
    fn check_log(&self) -> bool {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        let parsed: Vec<Option<Value>> = lines.iter().map(|l| serde_json::from_slice(l).ok()).collect();
        let cut = parsed.iter().position(Option::is_none);
        assert!(cut.is_none_or(|at| at + 1 == lines.len()), "{}: a line within the log is broken", self.name);
        parsed.last().is_some_and(|l| l.as_ref().is_some_and(|l| l["event"] == "resource_session_end"))
    }
}

/// Whether the stream has its end; what that says was captured and lost.
fn check_stream(path: &Path, name: &str) -> (bool, u64, u64) {
    if std::fs::metadata(path).map_or(0, |m| m.len()) == 0 {
        return (false, 0, 0);
    }
    let mut reader = StreamReader::open(path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (mut end, mut parts) = (None, 0);
    while let Some(item) = reader.next_item().unwrap_or_else(|e| panic!("{name}: {e}")) {
        let Item::Packet { packet: Packet { content, .. }, .. } = item else { continue };
        match content {
            Content::Tensor { meta, .. } => parts += meta.parts.len() as u64,
            Content::End(body) => end = Some(body),
            _ => {}
        }
    }
    let Some(end) = end else { return (false, parts, 0) };
    let account = &end["account"];
    let of = |v: &Value, what: &str| v[what].as_u64().unwrap_or_default();
    let sum = |part: &str, what: &str| -> u64 {
        account[part].as_object().into_iter().flat_map(|reasons| reasons.values()).map(|a| of(a, what)).sum()
    };
    for what in ["tensors", "bytes"] {
        let became = of(&account["captured"], what) + sum("skipped", what) + sum("dropped", what);
        assert_eq!(of(&account["seen"], what), became, "{name}: {account}");
    }
    assert_eq!(of(&account["captured"], "tensors"), parts, "{name}: what is in the file is what was captured");
    (true, parts, sum("dropped", "tensors"))
}

/// Some of the numbers from 1 to `last`: the first ones, where everything begins, and the others at even distances.
fn some_of(last: usize, most: usize) -> Vec<usize> {
    if last <= most || std::env::var("LRI_FAULTS").is_ok_and(|v| v == "all") {
        return (1..=last).collect();
    }
    let first = most / 3;
    let step = (last - first).div_ceil(most - first);
    (1..=first).chain((first + 1..=last).step_by(step)).collect()
}

#[test]
fn a_call_of_ours_that_fails_ends_our_part_only() {
    let bench = Bench::new("faults");
    let counts = bench.folder.path("counts");
    let alone = bench.run("alone", &[("FAULT_COUNT", counts.display().to_string())]);
    assert!(alone.status.contains(": 0") && alone.out.ends_with("done\n"), "{}{}", alone.out, alone.err);
    let end = alone.check(&alone);
    assert!(end.log_is_closed && end.stream_is_closed && end.lost == 0 && end.captured >= 9, "{end:?} {}", alone.err);
    let counts: BTreeMap<String, usize> = std::fs::read_to_string(counts)
        .unwrap()
        .lines()
        .map(|l| l.split_once(' ').map(|(kind, n)| (kind.to_owned(), n.parse().unwrap())).unwrap())
        .collect();
    println!("calls of a run that nothing fails in: {counts:?}");
    assert!(counts["malloc"] > 200 && counts["thread"] >= 5 && counts["pwrite"] > 0 && counts["fdatasync"] > 0);
    let mut faults = Vec::new();
    for (kind, &n) in &counts {
        let few = if kind == "malloc" { FEW } else { (60, 60) };
        faults.extend(some_of(n, few.0).into_iter().map(|at| (kind.as_str(), at, false)));
        faults.extend(some_of(n, few.1).into_iter().map(|at| (kind.as_str(), at, true)));
    }
    let (next, ends, failures) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|s| {
        for _ in 0..AT_A_TIME {
            s.spawn(|| {
                while let Some(&(kind, at, lasts)) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = std::panic::AssertUnwindSafe(|| bench.with_fault(&alone, kind, at, lasts));
                    match std::panic::catch_unwind(run) {
                        Ok(end) => {
                            *ends
                                .lock()
                                .unwrap()
                                .entry((kind, lasts, end.log_is_closed, end.stream_is_closed))
                                .or_insert(0) += 1
                        }
                        Err(e) => {
                            failures.lock().unwrap().push(e.downcast_ref::<String>().cloned().unwrap_or_default())
                        }
                    }
                }
            });
        }
    });
    println!("{} runs in {:.1} s", faults.len(), began.elapsed().as_secs_f64());
    for ((kind, lasts, log, stream), n) in ends.lock().unwrap().iter() {
        println!(
            "{kind:>10} {}: log closed {log}, stream closed {stream}: {n}",
            if *lasts { "from then on" } else { "once" }
        );
    }
    let failures = failures.lock().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} runs: {:#?}",
        failures.len(),
        faults.len(),
        &failures[..failures.len().min(20)]
    );
}
