//! Programs on libllama with their own decode loop: through `cb_eval`, with layers of their own, linked and
//! preloaded at once.
#![allow(clippy::print_stdout, reason = "says what is not tested here, and figures")]

#[path = "c/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{Folder, events, llama, model, of, run};

const TOKENS: &str = "6";

/// Totals of all `step_summary` lines: (count, FLOPs, bytes) by name.
fn totals(all: &[Value], of_what: &str) -> BTreeMap<String, (u64, u64, u64)> {
    let mut sums = BTreeMap::new();
    for summary in of(all, "step_summary") {
        for row in summary[of_what].as_array().expect("a list") {
            let name = row.get("name").unwrap_or(&row["layer_id"]).to_string();
            let sum: &mut (u64, u64, u64) = sums.entry(name).or_default();
            let n = |key: &str| row[key].as_u64().expect("a number");
            *sum = (sum.0 + n("count"), sum.1 + n("flops"), sum.2 + n("bytes"));
        }
    }
    sums
}

/// Operations of one step, in order: what is the same however they were seen. Those that the backend fused into a
/// neighbour have only their names when the graph is not cut.
fn operations(all: &[Value], step: u64) -> Vec<(String, Value)> {
    let fields =
        ["operation", "component_type", "layer_id", "input_tensors", "output_shape", "precision", "backend", "device"];
    let mut found = Vec::new();
    for e in of(all, "compute_execution").into_iter().filter(|e| e["step"] == step) {
        let what: Value = fields.iter().map(|f| e[*f].clone()).collect();
        found.push((e["tensor"].as_str().expect("a name").to_owned(), what));
        let fused = e["fused_with"].as_array().expect("a list");
        found.extend(fused.iter().map(|f| (f.as_str().expect("a name").to_owned(), Value::Null)));
    }
    found
}

fn ready() -> Option<(PathBuf, PathBuf)> {
    llama().zip(model())
}

fn preloaded(folder: &Folder, program: &Path, log: &Path, level: &str) -> Command {
    let mut c = Command::new(program);
    c.current_dir(&folder.0);
    // `run` takes our settings out of the environment that it inherits, not those that are set here: it goes
    // by env_remove first.
    c.env("LD_PRELOAD", folder.path("libllama_resource_instrumentation.so.1"));
    c.env("LLAMA_RESOURCE_LOG_PATH", log)
        .env("LLAMA_RESOURCE_LOG_LEVEL", level)
        .env("LLAMA_RESOURCE_LOG_RATE", "unlimited");
    c
}

#[test]
fn the_eval_callback_sees_the_same_as_the_preload() {
    let Some((llama, model)) = ready() else { return };
    let folder = Folder::new("eval");
    let program = folder.compile("g++", "example_eval.cpp", "example_eval", &[], Some(&llama));
    let (by_callback, by_preload) = (folder.path("callback.jsonl"), folder.path("preload.jsonl"));
    let a = run(Command::new(&program).arg(&model).arg(&by_callback).arg(TOKENS));
    let b = run(preloaded(&folder, &program, &by_preload, "VERBOSE").arg(&model).arg("-").arg(TOKENS).arg("quiet"));
    let tokens = |out: &std::process::Output| String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned);
    assert_eq!(tokens(&a), tokens(&b), "the host's output is the same");
    let (a, b) = (events(&by_callback), events(&by_preload));
    for what in ["ops", "components", "layers"] {
        let (a, b) = (totals(&a, what), totals(&b, what));
        assert!(!a.is_empty());
        assert_eq!(a, b, "{what}: count, FLOPs and bytes");
    }
    // Steps that both wrote event by event: the preload leaves the first ones out while it warms up.
    let mut compared = 0;
    for step in 1..=6 {
        let (ours, theirs) = (operations(&a, step), operations(&b, step));
        if theirs.is_empty() {
            continue;
        }
        compared += 1;
        assert_eq!(ours.len(), theirs.len(), "step {step}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.0, theirs.0, "step {step}");
            assert!(theirs.1.is_null() || ours.1 == theirs.1, "step {step}, {}: {} {}", ours.0, ours.1, theirs.1);
        }
    }
    assert!(compared >= 2, "{compared} steps");
    let compute = of(&a, "compute_execution");
    assert!(
        compute.iter().all(|e| e["source"] == "eval_callback" && e["duration_us"].as_f64().is_some_and(|us| us > 0.0))
    );
    assert!(compute.iter().all(|e| e["session_id"] == "example_eval"));
    let per_step = |all: &[Value], kind: &str| of(all, kind).iter().filter(|e| e["step"] == 5).count();
    for kind in [
        "layer_begin",
        "layer_end",
        "component_begin",
        "component_end",
        "component_handoff",
        "mlp_operation",
        "kv_cache_operation",
    ] {
        assert_eq!(per_step(&a, kind), per_step(&b, kind), "{kind}");
    }
    assert_eq!(of(&a, "request_token").len(), 6);
    let summary =
        of(&a, "resource_session_summary").into_iter().find(|e| e["session_id"] == "example_eval").expect("a summary");
    assert_eq!(summary["steps"], 6);
}

#[test]
fn two_recordings_of_a_process_tell_each_of_their_own_steps() {
    let Some((llama, model)) = ready() else { return };
    let folder = Folder::new("two-recordings");
    let program = folder.compile("gcc", "two_recordings.c", "two_recordings", &[], Some(&llama));
    let logs = [folder.path("one.jsonl"), folder.path("two.jsonl")];
    run(Command::new(&program).arg(&model).args(&logs));
    let mut per_step = Vec::new();
    for (log, steps) in logs.iter().zip([6, 3]) {
        let all = events(log);
        let whole = of(&all, "resource_session_summary")[0];
        assert_eq!(whole["steps"], steps);
        let sum =
            |path: &str| -> u64 { of(&all, "step_summary").iter().filter_map(|s| s.pointer(path)?.as_u64()).sum() };
        assert_eq!(sum("/decode/steps") + sum("/prefill/steps"), steps, "the intervals have what the whole has");
        let flops = sum("/decode/flops") + sum("/prefill/flops");
        let told = whole["total_compute_gflops"].as_f64().expect("a number") * 1e9;
        assert!((told - flops as f64).abs() < 1.0, "{told} and {flops}");
        assert_eq!(whole["component_flows"], sum("/component_flows"));
        assert_eq!(of(&all, "compute_execution")[0]["step"], 1, "steps are counted from one");
        per_step.push(flops / steps);
        let told: Vec<&str> =
            of(&all, "instrumentation_state").iter().filter_map(|s| s["component"].as_str()).collect();
        assert!(told.contains(&"op_times"), "told in each recording: {told:?}");
    }
    // The same model token by token: attention grows by a little with each.
    assert!(per_step[0].abs_diff(per_step[1]) * 1000 < per_step[1], "{per_step:?}");
}

#[test]
fn a_program_marks_its_own_layers_and_the_report_shows_them() {
    let Some((llama, model)) = ready() else { return };
    let folder = Folder::new("layers");
    let program = folder.compile("gcc", "example_layers.c", "example_layers", &[], Some(&llama));
    let log = folder.path("layers.jsonl");
    run(Command::new(&program).arg(&model).arg(&log).arg(TOKENS));
    let all = events(&log);
    let ends: Vec<&Value> = of(&all, "layer_end").into_iter().filter(|e| e["session_id"] == "example_layers").collect();
    assert_eq!(ends.len(), 6 * 30, "30 layers in each of 6 steps");
    assert!(ends.iter().all(|e| e["duration_us"].as_f64().is_some_and(|us| us > 10.0) && e["compute_operations"] == 1));
    let report = run(Command::new(env!("CARGO_BIN_EXE_llama-resource")).args(["report", "--json"]).arg(&log));
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    let layers = report["sessions"][0]["time"]["layers"].as_array().expect("layers").clone();
    assert_eq!(layers.len(), 30);
    assert!(layers.iter().all(|l| l["count"] == 6 && l["timed_us"].as_f64().is_some_and(|us| us > 0.0)), "{layers:?}");
    let text = run(Command::new(env!("CARGO_BIN_EXE_llama-resource")).arg("report").arg(&log));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    println!("{text}");
    assert!(text.contains("example_layers") && text.contains("block"), "{text}");
}

#[test]
fn preloaded_and_linked_at_once_nothing_is_told_twice() {
    let Some((llama, model)) = ready() else { return };
    let folder = Folder::new("both");
    let program = folder.compile("g++", "example_eval.cpp", "example_eval", &[], Some(&llama));
    let (alone, both, unused) = (folder.path("alone.jsonl"), folder.path("both.jsonl"), folder.path("unused.jsonl"));
    run(preloaded(&folder, &program, &alone, "VERBOSE").arg(&model).arg("-").arg(TOKENS).arg("quiet"));
    // Now it calls init and hands over its eval callback as well: ALREADY_RUNNING, and the hooks see the graphs.
    run(preloaded(&folder, &program, &both, "VERBOSE").arg(&model).arg(&unused).arg(TOKENS));
    assert!(!unused.exists(), "the recording that was on already goes on; no second log");
    let (alone, both) = (events(&alone), events(&both));
    assert_eq!(of(&both, "resource_session_start").len(), 1);
    assert_eq!(totals(&alone, "ops"), totals(&both, "ops"));
    assert!(of(&both, "compute_execution").iter().all(|e| e["source"].is_null()));
    // The caller's session is on the events of the hooks.
    let named = of(&both, "batch").iter().filter(|e| e["session_id"] == "example_eval").count();
    assert_eq!(named, of(&both, "batch").len());
    // `free` in the program has not ended the recording of LD_PRELOAD: its end is the process' end.
    assert_eq!(both.last().expect("events")["event"], "resource_session_end");
}

#[test]
fn linked_ahead_of_libllama_the_hooks_see_the_graphs_and_the_callback_adds_nothing() {
    let Some((llama, model)) = ready() else { return };
    let folder = Folder::new("ahead");
    let library = folder.path("libllama_resource_instrumentation.so.1");
    let first = library.to_str().expect("UTF-8");
    let program =
        folder.compile("g++", "example_eval.cpp", "example_eval", &["-Wl,--no-as-needed", first], Some(&llama));
    let (log, by_preload) = (folder.path("linked.jsonl"), folder.path("preload.jsonl"));
    run(Command::new(&program).arg(&model).arg(&log).arg(TOKENS).arg("hooks"));
    run(preloaded(&folder, &program, &by_preload, "VERBOSE").arg(&model).arg("-").arg(TOKENS).arg("quiet"));
    let (linked, preloaded) = (events(&log), events(&by_preload));
    assert_eq!(of(&linked, "resource_session_start")[0]["mode"], "api");
    assert_eq!(totals(&linked, "ops"), totals(&preloaded, "ops"));
    assert!(of(&linked, "compute_execution").iter().all(|e| e["source"].is_null()));
    // `batch` goes with the sampled steps; requests, model and buffers are all there.
    for kind in ["model_load", "request_start", "request_end", "buffer_allocation"] {
        assert_eq!(of(&linked, kind).len(), of(&preloaded, kind).len(), "{kind}");
    }
}
