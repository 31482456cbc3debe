//! docs/events.schema.json and docs/EVENTS.md are what the types of src/format say. Both are generated here;
//! `UPDATE=1 cargo test --features schema --test schema` writes them anew.
//!
//! The examples in docs/EVENTS.md are lines of real logs, kept in docs/examples.jsonl
//! (`UPDATE=1 pytest tests/server/test_schema.py`).
#![cfg(feature = "schema")]

mod text;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use llama_resource_instrumentation::format::{LOG_VERSION, Level, Line};
use serde_json::{Value, json};
use text::wrapped;

/// A group of events: title, what they have in common, and each kind with the least level that writes it.
type Group = (&'static str, &'static str, &'static [(&'static str, Level)]);

/// The parts of docs/EVENTS.md, events in the order of `format::Line`.
const GROUPS: [Group; 4] = {
    use Level::{Detailed as D, Minimal as M, Verbose as V};
    [
        (
            "Session events",
            "The frame of a log, and the frame of a sampled step. Their `timestamp` is local time, as people read it.",
            &[
                ("resource_session_start", M),
                ("resource_tracking_begin", M),
                ("resource_session_summary", M),
                ("resource_session_end", M),
                ("layer_begin", D),
                ("layer_end", D),
                ("component_begin", D),
                ("component_end", D),
            ],
        ),
        (
            "Resource events",
            "One operation, one tensor, one hand-off. Operations, hand-offs and writes into the KV cache are those of sampled steps \
             (see [the rate limit](#the-rate-limit)); allocations and what the host does to its cache are written whenever they happen.",
            &[
                ("memory_allocation", M),
                ("memory_deallocation", D),
                ("compute_execution", M),
                ("split_execution", D),
                ("component_handoff", D),
                ("mlp_operation", D),
                ("kv_cache_operation", D),
            ],
        ),
        (
            "Server events",
            "What the host is doing: models, buffers, requests, batches, cache cells. Never sampled, except `batch` (with its step) and \
             `request_token` (when a busy server would flood the log; counted in `events_dropped`).",
            &[
                ("model_load", M),
                ("buffer_allocation", M),
                ("buffer_free", M),
                ("request_start", M),
                ("request_token", V),
                ("request_progress", D),
                ("request_end", M),
                ("batch", D),
                ("kv_cache_usage", M),
            ],
        ),
        (
            "Summary events",
            "Exact totals of an interval (5 s at MINIMAL, 2 s at DETAILED, 1 s at VERBOSE), and the library's account of itself.",
            &[
                ("step_summary", M),
                ("moe_routing", D),
                ("host_sample", M),
                ("gpu_sample", M),
                ("gpu_summary", M),
                ("thread_imbalance", V),
                ("events_dropped", M),
                ("capture_summary", M),
                ("instrumentation_state", M),
            ],
        ),
    ]
};

const INTRODUCTION: &str = r#"# Events

<!-- Generated from src/format by tests/schema.rs: `UPDATE=1 cargo test --features schema --test schema` writes it anew. -->

The event log is JSON Lines: one object a line, UTF-8, each line complete. The field `event` names the kind. The same
reference for programs is [events.schema.json](events.schema.json) (JSON Schema, draft 2020-12; `x-level` is the lowest
level that writes the kind).

## Rules of the format

- **Measured, or absent.** A value that was not measured, or cannot be known here, is `null`. A field that is called
  `estimated_` holds an estimate computed from real shapes and measured rates. No field holds a made-up constant.
- **Every field of a kind is on every line of it**, as `null` where there is no value. The order of fields means
  nothing.
- **Fields and kinds are only ever added.** A reader must ignore what it does not know. A field that would change its
  meaning gets a new name. `log_version` on `resource_session_start` (here: {version}) counts the additions; the schema
  describes the lines of this version.
- **A log is appended to.** A file may hold several sessions, each from its `resource_session_start` on; `session_id`
  tells them apart. A session without `resource_session_end` was cut short, for instance because the host was killed.
  Its last events are lost: those of about 0.1 s, or of a longer time on a machine whose cores are all busy. A last line
  without a newline is no event.
- **Lines are nearly in order of time.** Each batch of lines is sorted by `t_ns`; a buffer's `buffer_allocation` may
  come later, when its use has become known. Sort by `t_ns` where order matters.

## Clocks

`t_ns` is the monotonic clock, in nanoseconds. `timestamp` is the same moment on the wall clock: a string of Unix
microseconds on most events, local time `YYYY-MM-DD HH:MM:SS.mmm` on session events, as in the older system. Both come
from one clock, and `t_ns` and `unix_us` of `resource_session_start` tie them together once. So a wall clock that is set
during a session does not break the order of the log.

## Steps

A *step* is one ubatch: one run of a graph that processes tokens. `step` counts them within the session, from 1.

## The rate limit

A small model runs tens of thousands of operations a second. A line for each would cost more than it tells. So whole
steps are *sampled*: either every event of a step is written, or none is. How often a step is written depends on the
level's budget (10, 50 or 200 KB/s, or `LLAMA_RESOURCE_LOG_RATE`). Prefill and decode steps have budgets of their own.
What is left out is counted in `events_dropped`, and `step_summary` holds the exact totals of all steps, sampled or not.
`unlimited` writes every step.

## Units

`_mb` is MiB (2^20 bytes), `_bytes` bytes. `compute_intensity_gflops` is a number of floating-point operations in 10^9,
as in the older system, not a rate; the rate is `gflops_per_s`. `_gbps` is 10^9 bytes a second. Shapes are in ggml's
order, fastest dimension first.

## Asking the log

    # where is the memory?
    jq 'select(.event=="memory_allocation") | {layer_id, allocation_size_mb, memory_type}' server.jsonl
    # which operations compute most?
    jq -s 'map(select(.event=="compute_execution") | {layer_id, compute_intensity_gflops}) | sort_by(.compute_intensity_gflops)' server.jsonl
    # what do the feed-forward blocks keep in memory at once?
    jq 'select(.event=="mlp_operation") | {layer_id, mlp_operation, activation_memory_peak_mb}' server.jsonl
    # how did each request fare?
    jq -c 'select(.event=="request_end") | {request_id, prompt_tokens, cached_tokens, generated_tokens, ttft_ms, tokens_per_second}' server.jsonl
    # is anything missing, and why?
    jq -c 'select(.event=="instrumentation_state" or .event=="events_dropped")' server.jsonl

The first three are those of the older LLaMA Resource Instrumentation System.
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn committed_schema_equals_the_types() {
    let text = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    compare(root().join("docs/events.schema.json"), &text);
}

#[test]
fn committed_event_reference_equals_the_types() {
    compare(root().join("docs/EVENTS.md"), &reference(&schema()));
}

#[test]
fn every_kind_has_its_place_in_the_reference_in_the_order_of_the_enum() {
    let kinds: Vec<String> = branches(&schema()).iter().map(|b| kind(b).to_owned()).collect();
    let placed: Vec<&str> = GROUPS.iter().flat_map(|(_, _, kinds)| kinds.iter().map(|(k, _)| *k)).collect();
    assert_eq!(kinds, placed);
}

#[test]
fn examples_are_lines_that_this_version_writes() {
    let kinds: Vec<String> = branches(&schema()).iter().map(|b| kind(b).to_owned()).collect();
    let mut places = Vec::new();
    for (found, raw) in examples() {
        let line: Line = serde_json::from_str(&raw).unwrap_or_else(|e| panic!("docs/examples.jsonl: {found}: {e}"));
        let again = serde_json::to_string(&line).expect("JSON");
        assert!(
            again == raw,
            "docs/examples.jsonl: {found} is not as this version writes it\nfound    {raw}\nexpected {again}"
        );
        places.push(kinds.iter().position(|k| *k == found).expect("a kind of the enum"));
    }
    assert!(
        places.is_sorted() && places.iter().collect::<HashSet<_>>().len() == places.len(),
        "one line a kind, in order"
    );
}

fn compare(path: PathBuf, made: &str) {
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, made).expect("write");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "{} does not match src/format: `UPDATE=1 cargo test --features schema --test schema && git diff docs`",
        path.display()
    );
}

fn schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<Line>().to_value();
    schema["title"] = json!("A line of the event log of llama-resource-instrumentation");
    for branch in schema["oneOf"].as_array_mut().expect("one branch a kind") {
        let level = GROUPS
            .iter()
            .flat_map(|(_, _, kinds)| kinds.iter())
            .find(|(k, _)| *k == kind(branch))
            .map(|(_, l)| l.name());
        branch["x-level"] = json!(level);
    }
    schema
}

fn branches(schema: &Value) -> &[Value] {
    schema["oneOf"].as_array().expect("one branch a kind")
}

fn kind(branch: &Value) -> &str {
    branch["properties"]["event"]["const"].as_str().expect("a kind")
}

/// The type that a `$ref` names.
fn follow<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"].as_str().map_or(value, |r| &schema["$defs"][r.trim_start_matches("#/$defs/")])
}

/// Lines of docs/examples.jsonl with their kinds.
fn examples() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("docs/examples.jsonl")).expect("docs/examples.jsonl");
    let kind = |line: &str| serde_json::from_str::<Value>(line).ok()?["event"].as_str().map(str::to_owned);
    text.lines().map(|l| (kind(l).expect("an event"), l.to_owned())).collect()
}

fn reference(schema: &Value) -> String {
    let mut out = INTRODUCTION.replace("{version}", &LOG_VERSION.to_string());
    out += "\n## All kinds\n\n| event | from level | meaning |\n|---|---|---|\n";
    for b in branches(schema) {
        let (k, level, text) = (kind(b), b["x-level"].as_str().unwrap_or_default(), meaning(b));
        writeln!(out, "| [`{k}`](#{k}) | {level} | {text} |").expect("a string");
    }
    let examples = examples();
    for (title, common, kinds) in GROUPS {
        write!(out, "\n## {title}\n\n{}\n", wrapped(common, 0)).expect("a string");
        for (k, level) in kinds {
            let b = branches(schema).iter().find(|b| kind(b) == *k).expect("a branch for each kind");
            let text = wrapped(&format!("{} From {}.", meaning(b), level.name()), 0);
            write!(out, "\n### {k}\n\n{text}\n\n").expect("a string");
            out += "| field | type | meaning |\n|---|---|---|\n";
            rows(schema, follow(schema, b), "", &mut out);
            match examples.iter().find(|(found, _)| found == k) {
                Some((_, raw)) => write!(out, "\n```\n{}\n```\n", shortened(raw)).expect("a string"),
                None => out += "\nNo example: a plain run of llama-server writes none.\n",
            }
        }
    }
    out
}

/// One row a field; the fields of an inner object follow it under `name.` or `name[].`.
fn rows(schema: &Value, object: &Value, prefix: &str, out: &mut String) {
    // `required` holds every field in the order of the struct; `properties` is sorted.
    for name in object["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let field = &object["properties"][name];
        let (words, inner) = type_of(schema, field);
        writeln!(out, "| `{prefix}{name}` | {words} | {} |", meaning(field)).expect("a string");
        if let Some((object, mark)) = inner {
            rows(schema, object, &format!("{prefix}{name}{mark}."), out);
        }
    }
}

/// A field's type in words, and its inner object with the mark that its fields get.
fn type_of<'a>(schema: &'a Value, field: &'a Value) -> (String, Option<(&'a Value, &'static str)>) {
    if let Some(either) = field["anyOf"].as_array() {
        // An optional object: the other branch is null.
        let (words, inner) = type_of(schema, &either[0]);
        return (format!("{words} or null"), inner);
    }
    let target = follow(schema, field);
    if let Some(values) = target["oneOf"].as_array() {
        let names: Vec<String> = values.iter().filter_map(|v| Some(format!("`{}`", v["const"].as_str()?))).collect();
        return (names.join(", "), None);
    }
    let (name, null) = match &target["type"] {
        Value::Array(either) => (either[0].as_str(), " or null"),
        one => (one.as_str(), ""),
    };
    match name {
        Some("array") => {
            let (words, inner) = type_of(schema, &target["items"]);
            (format!("array of {words}{null}"), inner.map(|(object, _)| (object, "[]")))
        }
        Some("object") => (format!("object{null}"), Some((target, ""))),
        Some(simple) => (format!("{simple}{null}"), None),
        None => unreachable!("no type: {field}"),
    }
}

fn meaning(value: &Value) -> String {
    value["description"].as_str().expect("every field and kind is documented").replace('\n', " ").replace('|', "\\|")
}

/// The line with each list of objects cut after its first.
fn shortened(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("[{") {
        let end = at + closing(&rest[at..]);
        let first = at + 1 + closing(&rest[at + 1..]);
        out += &rest[..=first];
        out += if rest[first + 1..].starts_with(',') { ", ...]" } else { "]" };
        rest = &rest[end + 1..];
    }
    out + rest
}

/// Where the bracket that `text` begins with is closed.
fn closing(text: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return i;
                }
            }
            _ => {}
        }
    }
    unreachable!("unclosed: {text}")
}
