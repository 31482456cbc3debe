//! The C API from C and C++: misuse, threads, the older system's Quick Start and macros, under valgrind and
//! AddressSanitizer where they are installed. The programs are in tests/c.
#![allow(clippy::print_stdout, reason = "says what is not tested here, and figures")]

#[path = "c/support.rs"]
mod support;

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use support::{Folder, checkers, command, events, is_installed, kinds, llama, of, run};

/// Programs under valgrind take a core for a minute, and the writer of a library that is being measured beside them
/// would get too little.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The calling test runs alone until this goes.
fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an event is the session's own. Threads of ours tell of drivers and of the host when they come to it,
/// under valgrind late.
fn is_of(event: &Value, session: &str) -> bool {
    event["session_id"] == session && event["event"] != "instrumentation_state" && event["event"] != "host_sample"
}

#[test]
fn misuse_is_a_status_and_never_a_crash() {
    let _alone = alone();
    let folder = Folder::new("misuse");
    for (name, flags, wrapper) in checkers() {
        let program = folder.compile("gcc", "misuse.c", &format!("misuse-{name}"), &flags, None);
        let log = folder.path(&format!("misuse-{name}.jsonl"));
        run(command(&wrapper, &program).arg(&log).current_dir(&folder.0));
        let events = events(&log);
        // 22 recordings: each closed in order, and every layer and component that began has ended.
        assert_eq!(of(&events, "resource_session_end").len(), 22, "{name}");
        for kind in ["layer", "component"] {
            let (begun, ended) =
                (of(&events, &format!("{kind}_begin")).len(), of(&events, &format!("{kind}_end")).len());
            assert_eq!(begun, ended, "{name}: {kind}");
        }
        let odd = "a\"b\\c\n\t\u{1}/ä€🦙";
        assert!(of(&events, "component_handoff").iter().any(|e| e["from_component"] == odd), "{name}");
        let deep = of(&events, "layer_begin").iter().filter(|e| e["session_id"] == "deep").count();
        assert_eq!(deep, 1024, "{name}: 10,000 were begun");
    }
}

#[test]
fn every_event_of_every_thread_is_written_or_counted() {
    let _alone = alone();
    // Debug builds are ten times slower; `cargo test --release` runs the whole million.
    let per_thread = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    let folder = Folder::new("threads");
    let program = folder.compile("gcc", "threads.c", "threads", &["-O2"], None);
    for (threads, wait) in [(1, false), (8, false), (8, true)] {
        let log = folder.path(&format!("threads-{threads}-{wait}.jsonl"));
        let mut c = Command::new(&program);
        c.arg(&log).args([threads.to_string(), per_thread.to_string()]).args(wait.then_some("wait"));
        let out = run(&mut c);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        println!("{threads} threads, wait {wait}: seen, written, dropped, left out, ns per event: {}", text.trim());
        let n: Vec<f64> = text.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        let (seen, written, dropped) = (n[0] as u64, n[1] as u64, n[2] as u64);
        assert_eq!(seen, threads * per_thread + 2);
        assert_eq!(seen, written + dropped);
        if wait {
            assert_eq!(dropped, 0, "a caller that waits loses nothing");
        }
        let mut of_kind: HashMap<String, u64> = HashMap::new();
        let mut told = 0;
        for e in events(&log) {
            let kind = e["event"].as_str().expect("a kind").to_owned();
            if kind == "events_dropped" && e["kind"] == "mark" {
                told += e["count"].as_u64().expect("a number");
            }
            *of_kind.entry(kind).or_default() += 1;
        }
        let marks =
            ["layer_begin", "layer_end", "component_begin", "component_end", "kv_cache_operation", "component_handoff"];
        let lines: u64 = marks.iter().map(|k| of_kind.get(*k).copied().unwrap_or(0)).sum();
        // Begin and summary of the session are the two that go beside.
        assert_eq!(lines + 2, written, "{of_kind:?}");
        assert_eq!(told, dropped, "the log itself says what it lacks");
        for kind in ["layer", "component"] {
            assert_eq!(of_kind.get(&format!("{kind}_begin")), of_kind.get(&format!("{kind}_end")), "{kind}");
        }
    }
}

#[test]
fn the_quick_start_of_the_older_system_compiles_and_logs_what_it_describes() {
    let _alone = alone();
    let Some(llama) = llama() else { return };
    for compiler in ["g++", "clang++"] {
        if !is_installed(compiler) {
            continue;
        }
        let folder = Folder::new(&format!("quick-start-{compiler}"));
        std::fs::create_dir(folder.path("logs")).expect("a folder");
        let program = folder.compile(compiler, "quick_start.cpp", "quick_start", &[], Some(&llama));
        run(Command::new(&program).current_dir(&folder.0));
        let all = events(&folder.path("logs/resource_instrumentation.jsonl"));
        let session: Vec<Value> =
            all.iter().filter(|e| is_of(e, "inference_sess_20240101_143022_123456")).cloned().collect();
        let layer = [
            "layer_begin",
            "component_begin",
            "compute_execution",
            "component_end",
            "component_begin",
            "mlp_operation",
            "mlp_operation",
            "mlp_operation",
            "component_end",
            "layer_end",
        ];
        let mut expected = vec!["resource_tracking_begin"];
        expected.extend(layer);
        expected.extend(layer);
        expected.extend(["memory_allocation", "memory_allocation", "compute_execution", "component_handoff"]);
        expected.push("resource_session_summary");
        assert_eq!(kinds(&session), expected);
        let names: Vec<&str> =
            of(&session, "mlp_operation").iter().filter_map(|e| e["mlp_operation"].as_str()).collect();
        assert_eq!(names[..3], ["gate_proj", "up_proj", "down_proj"]);
        assert_eq!(of(&all, "resource_session_start")[0]["level"], "DETAILED");
        assert!(
            all.iter().any(|e| e["operation"] == "softmax") && all.iter().any(|e| e["session_id"] == "debug_session")
        );
        // The second init of "Performance Impact" is ignored, as the older system did it.
        assert_eq!(of(&events(&folder.path("minimal.jsonl")), "resource_session_start")[0]["level"], "MINIMAL");
        assert!(!folder.path("detailed.jsonl").exists());
    }
}

#[test]
fn all_19_macros_log_the_tensors_as_they_are() {
    let _alone = alone();
    let Some(llama) = llama() else { return };
    let header =
        std::fs::read_to_string(support::root().join("include/llama-resource-instrumentation.h")).expect("the header");
    let source = std::fs::read_to_string(support::root().join("tests/c/quick_start.cpp")).expect("the program");
    let called = source
        .split("static void all_macros")
        .nth(1)
        .and_then(|s| s.split("static void structures").next())
        .expect("a part");
    let macros = [
        "RESOURCE_TRACK_MEMORY_ALLOC",
        "RESOURCE_TRACK_COMPUTE_OP",
        "RESOURCE_TRACK_COMPONENT_BEGIN",
        "RESOURCE_TRACK_COMPONENT_END",
        "RESOURCE_TRACK_LAYER_BEGIN",
        "RESOURCE_TRACK_LAYER_END",
        "RESOURCE_TRACK_MLP_OP",
        "RESOURCE_TRACK_KV_CACHE",
        "RESOURCE_TRACK_HANDOFF",
        "LLAMA_RESOURCE_BEGIN_SESSION",
        "LLAMA_RESOURCE_END_SESSION",
        "LLAMA_RESOURCE_BEGIN_LAYER",
        "LLAMA_RESOURCE_END_LAYER",
        "LLAMA_RESOURCE_BEGIN_COMPONENT",
        "LLAMA_RESOURCE_END_COMPONENT",
        "LLAMA_RESOURCE_LOG_MEMORY_ALLOCATION",
        "LLAMA_RESOURCE_LOG_COMPUTE_OPERATION",
        "LLAMA_RESOURCE_LOG_MLP_OPERATION",
        "LLAMA_RESOURCE_LOG_COMPONENT_HANDOFF",
    ];
    for name in macros {
        assert!(header.contains(&format!("#define {name}(")), "{name} is not in the header");
        assert_eq!(called.matches(&format!(" {name}(")).count(), 1, "{name} is not called once");
    }
    for (name, flags, wrapper) in checkers() {
        let folder = Folder::new(&format!("macros-{name}"));
        std::fs::create_dir(folder.path("logs")).expect("a folder");
        let program = folder.compile("g++", "quick_start.cpp", "quick_start", &flags, Some(&llama));
        let out = run(command(&wrapper, &program).arg("macros").current_dir(&folder.0));
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let v: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("to_json: {line}: {e}"));
            assert!(v.is_string() || v["resource_id"].as_str().is_some_and(|id| id.starts_with("gpu_0_")), "{line}");
        }
        let all = events(&folder.path("logs/all.jsonl"));
        let session: Vec<Value> = all.into_iter().filter(|e| is_of(e, "all_macros")).collect();
        assert_eq!(
            kinds(&session),
            [
                "resource_tracking_begin",
                "layer_begin",
                "component_begin",
                "memory_allocation",
                "compute_execution",
                "mlp_operation",
                "component_end",
                "component_handoff",
                "layer_end",
                "layer_begin",
                "component_begin",
                "memory_allocation",
                "compute_execution",
                "mlp_operation",
                "kv_cache_operation",
                "component_end",
                "component_handoff",
                "layer_end",
                "resource_session_summary",
            ]
        );
        let fields = |e: &Value, names: &[&str]| names.iter().map(|n| e[*n].clone()).collect::<Value>();
        let memory = &session[3];
        assert_eq!(
            fields(
                memory,
                &["tensor", "tensor_shape", "tensor_strides", "precision", "allocation_size_mb", "compression_ratio"]
            ),
            json!(["weight_tensor", [1024, 1024], [2, 2048], "f16", 2.0, 2.0])
        );
        assert_eq!(fields(memory, &["memory_type", "backend", "device", "layer_id"]), json!(["ram", "CPU", "CPU", 3]));
        let compute = &session[4];
        // 2 * 64 * 96 * 3; q4_1 takes 20 bytes for 32 elements.
        assert_eq!(compute["compute_intensity_gflops"], json!(36_864.0 / 1e9));
        assert_eq!(
            fields(
                compute,
                &["bytes_read", "bytes_written", "output_shape", "input_tensors", "precision", "duration_us", "source"]
            ),
            json!([64 * 96 / 32 * 20 + 64 * 3 * 4, 96 * 3 * 4, [96, 3], ["qkv_weights", "input"], "f32", null, "mark"])
        );
        assert_eq!(fields(&session[5], &["weight_shape", "activation_shape"]), json!([[64, 256], [256, 3]]));
        // The last result in the component: the up projection's, 256 * 3 * 4 bytes.
        assert_eq!(
            fields(&session[7], &["from_component", "tensor", "data_size_mb"]),
            json!(["mlp", "up_activations", 0.00293])
        );
        assert_eq!(fields(&session[14], &["layer_id", "cache_size_mb", "cache_hit_ratio"]), json!([4, 1.0, null]));
        assert_eq!(fields(&session[8], &["compute_operations", "memory_operations"]), json!([2, 1]));
    }
}

#[test]
fn a_process_that_never_calls_init_does_nothing() {
    let _alone = alone();
    let folder = Folder::new("idle");
    std::fs::write(folder.path("idle.c"), "#include \"llama-resource-instrumentation.h\"\nint main(void) { LLAMA_RESOURCE_BEGIN_SESSION(\"s\"); LLAMA_RESOURCE_BEGIN_LAYER(1); LLAMA_RESOURCE_END_LAYER(1); return llama_resource_instrumentation_is_recording(); }\n").expect("write");
    let program = folder.compile("gcc", folder.path("idle.c").to_str().expect("UTF-8"), "idle", &[], None);
    let out = run(Command::new(&program).current_dir(&folder.0));
    assert!(out.stdout.is_empty() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let left: Vec<_> =
        std::fs::read_dir(&folder.0).expect("the folder").filter_map(|e| Some(e.ok()?.file_name())).collect();
    assert_eq!(left.len(), 3, "library, source and program: {left:?}");
    // Preloaded, too: its one recording is that of LD_PRELOAD, and ends with the program.
    let preload = folder.path("libllama_resource_instrumentation.so.1");
    run(Command::new(&program).current_dir(&folder.0).env("LD_PRELOAD", preload));
}
