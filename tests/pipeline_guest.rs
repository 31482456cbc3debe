//! The pipeline as a guest in a process: memory within the budget, threads that sleep, limits of the process. Each in a
//! child of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "pipeline/child.rs"]
mod child;
#[path = "pipeline/feed.rs"]
mod feed;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use feed::{Feeder, PATIENCE, clear, options, read, scratch};
use llama_resource_instrumentation::codec::{Codec, DType};
use llama_resource_instrumentation::format::stream::{Route, Row};
use llama_resource_instrumentation::pipeline::{Form, Job, Piece, Pipeline, Place, Policy, Spec, Table};

/// The children measure memory and processor time: beside each other they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Anonymous memory of this process in KiB; the page cache is not in it.
fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Many sizes of steps, from one token to prompts near the largest buffer, as fast as they are taken.
fn feed_many_sizes(pipeline: &Pipeline, values: &[u8], seconds: f64, peak: &mut i64) -> u64 {
    let specs: Arc<[Arc<Spec>]> = (0..40)
        .map(|i| {
            let name = format!("l_out-{i}");
            Arc::new(Spec {
                tensor: name.clone(),
                name,
                op: "ADD".into(),
                layer: Some(i),
                component: 1,
                occurrence: 0,
                dtype: DType::F32,
                slice: None,
            })
        })
        .collect();
    let began = Instant::now();
    let (mut step, mut bytes) = (0, 0);
    while began.elapsed().as_secs_f64() < seconds {
        step += 1;
        let tokens = [1, 1, 1, 2, 7, 60, 1, 300][step as usize % 8] * (1 + feed::noise(step) as u32 % 3);
        let one = 576 * 4 * tokens as usize;
        let rows: Arc<[Row]> =
            (0..tokens).map(|i| Row { seq: 0, pos: i as i32, token: 1, request: 1 }).collect::<Vec<_>>().into();
        let numbers: Vec<u32> = (0..40).collect();
        for numbers in numbers.chunks((pipeline.largest() / one).clamp(1, specs.len())) {
            pipeline.account().seen(numbers.len() as u64, (one * numbers.len()) as u64);
            let mut data = pipeline.reserve(one * numbers.len()).unwrap();
            let (mut pieces, mut places) = (Vec::with_capacity(numbers.len()), Vec::with_capacity(numbers.len()));
            for (i, &spec) in numbers.iter().enumerate() {
                let from = (feed::noise(step + i as u64) as usize % (values.len() - one)) & !3;
                data[i * one..][..one].copy_from_slice(&values[from..from + one]);
                places.push(Place { buffer: 0, offset: i * one, form: Form::Values });
                pieces.push(Piece {
                    spec,
                    len: one,
                    ne: [576, tokens, 1, 1],
                    token_dim: 1,
                    rows: Some(0),
                    route: Route::Retain,
                    completes: true,
                });
            }
            bytes += data.len() as u64;
            let (table, row_sets) = (Arc::new(Table::new(Arc::clone(&specs), pieces)), vec![Arc::clone(&rows)]);
            pipeline.push(Job { step, t_ns: step, table, places, row_sets, data: vec![data], tokens });
        }
        let (sampled, text) = feed::token(step);
        pipeline.token(sampled, text);
        *peak = (*peak).max(resident_kib());
    }
    bytes
}

/// What the allocator keeps of a capture that is over is not the next one's.
fn give_back() {
    #[expect(unsafe_code, reason = "a call of libc")]
    // SAFETY: takes a number, and gives back what nothing uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[test]
#[ignore = "the child of the test below"]
fn captures_within_its_budget() {
    let mib: usize = std::env::var("LRI_MIB").expect("run by the test below").parse().unwrap();
    let values: Vec<u8> =
        (0..1_000_000u64).flat_map(|i| ((feed::noise(i) as i32 as f32) / 1e9).to_le_bytes()).collect();
    let seconds = std::env::var("LRI_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1.0);
    let before = resident_kib();
    let mut peak = before;
    let codecs = std::env::var("LRI_CODECS").unwrap();
    for codec in codecs.split(' ').filter_map(Codec::parse) {
        let path = scratch(&format!("budget-{}", codec.name()));
        let mut options = options(&path, codec, mib, Policy::Block);
        (options.workers, options.checkpoint_tokens) = (2, Some(5000));
        let pipeline = Pipeline::start(options).unwrap();
        let bytes = feed_many_sizes(&pipeline, &values, seconds, &mut peak);
        let totals = pipeline.finish(PATIENCE);
        assert!(totals.clean && totals.account.captured.bytes == bytes, "{totals:?}");
        println!("{}: {} MiB fed, at most {} KiB more than before", codec.name(), bytes >> 20, peak - before);
        clear(&path);
        give_back();
    }
    assert!(peak - before <= mib as i64 * 1024, "{} KiB of {mib} MiB", peak - before);
    // The pool is the kernel's again; of the workers' memory the allocator keeps some.
    let left = resident_kib() - before;
    assert!(left < 8 * 1024 + mib as i64 * 1024 / 5, "{left} KiB of {mib} MiB are left");
}

#[test]
fn memory_stays_within_the_budget() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (mib, codecs) in [("32", "none bounded"), ("64", "none lz4 zstd f16 bounded fast"), ("200", "none zstd")] {
        print!("{}", child::run("captures_within_its_budget", &[("LRI_MIB", mib), ("LRI_CODECS", codecs)]));
    }
}

#[test]
#[ignore = "the child of the test below"]
fn looks_at_its_own_threads() {
    let path = scratch("threads");
    let pipeline = Pipeline::start(options(&path, Codec::Zstd, 64, Policy::Block)).unwrap();
    assert!(Feeder::new(1).step(&pipeline, 1));
    std::thread::sleep(Duration::from_millis(2000));
    let threads = || -> Vec<(String, u64, String, String)> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut threads: Vec<_> = tasks
            .filter_map(|t| {
                let task = t.ok()?.path();
                let name = std::fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
                let status = std::fs::read_to_string(task.join("status")).ok()?;
                let field =
                    |n: &str| status.lines().find_map(|l| l.strip_prefix(n)).unwrap_or_default().trim().to_owned();
                let stat = std::fs::read_to_string(task.join("stat")).ok()?;
                let nice = stat.rsplit(')').next()?.split_whitespace().nth(16)?.to_owned();
                let switches = field("voluntary_ctxt_switches:").parse().ok()?;
                name.starts_with("lri-cap").then_some((name, switches, field("SigBlk:"), nice))
            })
            .collect();
        threads.sort();
        threads
    };
    let before = threads();
    assert_eq!(
        before.iter().map(|t| t.0.as_str()).collect::<Vec<_>>(),
        ["lri-cap-codec0", "lri-cap-collect", "lri-cap-write"]
    );
    for (name, _, blocked, nice) in &before {
        // All but SIGKILL and SIGSTOP, and the two signals that the C library keeps for itself.
        assert_eq!((blocked.as_str(), nice.as_str()), ("fffffffe7ffbfeff", "10"), "{name}");
    }
    // What was pushed last may still be settling, on a busy machine for a while: idle is a window without work.
    let mut before = before;
    let mut most = i64::MAX;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(3));
        let after = threads();
        most = before.iter().zip(&after).map(|(b, a)| a.1 as i64 - b.1 as i64).max().unwrap_or(0);
        if most <= 1 {
            break;
        }
        before = after;
    }
    assert!(most <= 1, "a thread woke up {most} times in three idle seconds, five times over");
    assert!(pipeline.finish(PATIENCE).clean);
    clear(&path);
}

#[test]
fn idle_threads_sleep_and_take_no_signals() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    child::run("looks_at_its_own_threads", &[]);
}

#[test]
#[ignore = "the child of the test below"]
fn writes_up_to_the_limit_of_file_sizes() {
    let path = std::env::var_os("LRI_LIMIT_PATH").expect("run by the test below");
    let mut options = options(Path::new(&path), Codec::None, 32, Policy::Drop);
    // Beside the stream there is nothing that the limit could hit.
    options.tokens_path = Some("/dev/null".into());
    let pipeline = Pipeline::start(options).unwrap();
    let mut feeder = Feeder::new(4);
    let mut step = 0;
    while !pipeline.has_failed() {
        step += 1;
        feeder.step(&pipeline, step);
        assert!(step < 100_000, "the limit was never met");
    }
    assert!(!feeder.step(&pipeline, step + 1), "refused from here on");
    let totals = pipeline.finish(PATIENCE);
    assert!(!totals.clean && totals.account.is_exact(), "{totals:?}");
    assert!(totals.problem.as_ref().is_some_and(|p| p.to_string().contains("ulimit -f")), "{totals:?}");
    let stream = read(Path::new(&path));
    assert_eq!(stream.torn, 0, "whole packets up to the end");
    let captured: u64 = stream.tensors.values().flatten().map(|(_, values)| values.len() as u64).sum();
    assert_eq!(captured, totals.account.captured.bytes);
    assert!(captured > 5 << 20, "{captured} bytes below the limit");
    feed::assert_reader_agrees(Path::new(&path), &stream, false);
    assert!(stream.end.is_some(), "the cut-off packet left room for the account");
}

#[test]
fn a_limit_of_file_sizes_costs_the_rest_of_the_stream_and_nothing_else() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let path = scratch("limit");
    let program = std::env::current_exe().unwrap();
    // The shell's limit is in blocks of 512 or of 1024 bytes: 8 or 16 MiB.
    let script = format!(
        "ulimit -f 16384; exec '{}' writes_up_to_the_limit_of_file_sizes --exact --ignored --nocapture",
        program.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).env("LRI_LIMIT_PATH", &path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    clear(&path);
}
