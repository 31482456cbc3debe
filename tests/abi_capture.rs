//! Capturing from a program that is linked with the library: settings by name, the running account, tokens of its own,
//! and the eval callback in place of the hooks. The truth is the same program under LD_PRELOAD.
#![allow(clippy::print_stdout, clippy::panic, reason = "says what is not tested here, and figures; a test fails by it")]

#[path = "c/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use llama_resource_instrumentation::format::stream::{Content, Packet, Route, TensorMeta};
use llama_resource_instrumentation::read::stream::{self, Item, StreamReader};
use serde_json::Value;
use support::{Folder, checkers, command, events, llama, model, of, run};

const STEPS: usize = 5;

/// What the graph says of a tensor, as told by its packets.
#[derive(Clone, Debug, PartialEq)]
struct About {
    tensor: String,
    op: String,
    layer: Option<i32>,
    component: u8,
    occurrence: u16,
    dtype: &'static str,
    ne0: u32,
    token_dim: u8,
}

/// A tensor of a step.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    about: About,
    values: Vec<u8>,
    /// Position and token.
    rows: Vec<(i32, i32)>,
}

/// A stream: by tensor and step. Every route must be `route`, every sequence as `seq`.
fn pieces(path: &Path, route: Route, seq: i32) -> BTreeMap<(String, u64), Piece> {
    let mut reader = StreamReader::open(path).expect("a stream");
    let mut found: BTreeMap<(String, u64), Piece> = BTreeMap::new();
    while let Some(item) = reader.next_item().expect("readable") {
        let Item::Packet { packet: Packet { name, content: Content::Tensor { meta, body }, .. }, .. } = item else {
            continue;
        };
        assert_eq!(meta.route, route);
        let (name, mut values) = (name.to_owned(), Vec::new());
        stream::decode(&meta, body, &mut values).expect("good values");
        let mut rest = values.as_slice();
        for part in &meta.parts {
            let (own, behind) = rest.split_at(part.n_values() as usize * meta.dtype.size());
            rest = behind;
            assert!(part.rows.iter().all(|r| r.seq == seq), "{name}, step {}", part.step);
            let about = about(&meta, part.ne[0], part.token_dim);
            let piece = found.entry((name.clone(), part.step)).or_insert_with(|| Piece {
                about: about.clone(),
                values: Vec::new(),
                rows: Vec::new(),
            });
            assert_eq!(piece.about, about, "one name, two tensors: {name}, step {}", part.step);
            piece.values.extend_from_slice(own);
            piece.rows.extend(part.rows.iter().map(|r| (r.pos, r.token)));
        }
        assert!(rest.is_empty());
    }
    let account = reader.account();
    assert!(account.is_undamaged() && account.ended, "{account:?}");
    found
}

fn about(meta: &TensorMeta, ne0: u32, token_dim: u8) -> About {
    About {
        tensor: meta.tensor.clone(),
        op: meta.op.clone(),
        layer: meta.layer,
        component: meta.component,
        occurrence: meta.occurrence,
        dtype: meta.dtype.name(),
        ne0,
        token_dim,
    }
}

fn line(out: &Output, n: usize) -> String {
    String::from_utf8_lossy(&out.stdout).lines().nth(n).unwrap_or_default().to_owned()
}

/// The numbers of the program's second line: seen, captured, skipped, dropped; tensors and bytes of each.
fn account(out: &Output) -> Vec<u64> {
    line(out, 1).split_whitespace().filter_map(|w| w.parse().ok()).collect()
}

struct Host<'a> {
    folder: &'a Folder,
    program: std::path::PathBuf,
    model: std::path::PathBuf,
}

impl Host<'_> {
    /// The program captures by itself.
    fn linked(&self, name: &str, settings: &[(&str, &str)]) -> Output {
        let stream = self.folder.path(&format!("{name}.stream"));
        let mut c = Command::new(&self.program);
        c.current_dir(&self.folder.0).arg(&self.model).arg(self.folder.path(&format!("{name}.jsonl")));
        c.arg(STEPS.to_string()).arg(format!("LLAMA_RESOURCE_CAPTURE={}", stream.display()));
        run(c.args(settings.iter().map(|(n, v)| format!("LLAMA_RESOURCE_{n}={v}"))))
    }

    /// It is preloaded, and the hooks capture through the scheduler's callback.
    fn preloaded(&self, name: &str, settings: &[(&str, &str)]) -> Output {
        let mut c = Command::new(&self.program);
        c.current_dir(&self.folder.0).arg(&self.model).arg("-").arg(STEPS.to_string());
        c.env("LD_PRELOAD", self.folder.path("libllama_resource_instrumentation.so.1"));
        c.env("LLAMA_RESOURCE_LOG_PATH", self.folder.path(&format!("{name}.jsonl")));
        c.env("LLAMA_RESOURCE_CAPTURE", self.folder.path(&format!("{name}.stream")));
        c.env("LLAMA_RESOURCE_ROUTE", "callback");
        run(c.envs(settings.iter().map(|(n, v)| (format!("LLAMA_RESOURCE_{n}"), *v))))
    }
}

fn host(folder: &Folder) -> Option<Host<'_>> {
    let (llama, model) = llama().zip(model())?;
    let program = folder.compile("gcc", "capture.c", "capture", &[], Some(&llama));
    Some(Host { folder, program, model })
}

#[test]
fn a_linked_host_captures_through_its_eval_callback_what_the_hooks_capture() {
    let folder = Folder::new("capture");
    let Some(host) = host(&folder) else { return };
    for (selection, codec) in [("residual", "zstd"), ("FULL_TENSOR", "none")] {
        let chosen = [("TENSORS", selection), ("CODEC", codec)];
        let b = host.preloaded(&format!("{selection}-hooks"), &chosen);
        let theirs = pieces(&folder.path(&format!("{selection}-hooks.stream")), Route::Callback, 0);
        // The second budget cannot hold the prompt's graph: it goes on its way in parts.
        for memory in ["1G", "32M"] {
            let name = format!("{selection}-{memory}");
            let a = host.linked(&name, &[chosen.as_slice(), &[("MAX_MEMORY", memory)]].concat());
            assert_eq!(line(&a, 0), line(&b, 0), "{name}: the host's output");
            let ours = pieces(&folder.path(&format!("{name}.stream")), Route::Callback, -1);
            let keys = |all: &BTreeMap<(String, u64), Piece>| all.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&ours), keys(&theirs), "{name}: tensors and steps");
            for (key, own) in &ours {
                let their = &theirs[key];
                assert_eq!((&own.about, &own.rows), (&their.about, &their.rows), "{name}: {key:?}");
                assert!(own.values == their.values, "{name}: values of {key:?}");
            }
            let n = account(&a);
            assert_eq!(n.len(), 8, "{}", line(&a, 1));
            assert_eq!((n[0], n[1]), (n[2] + n[4] + n[6], n[3] + n[5] + n[7]), "{name}: seen is the sum");
            assert_eq!((n[2] as usize, n[6], n[7]), (ours.len(), 0, 0), "{name}");
            assert_eq!(n[3] as usize, ours.values().map(|p| p.values.len()).sum::<usize>(), "{name}");
            println!("{name}: {} tensors, {} bytes", n[2], n[3]);
            check_log(&folder.path(&format!("{name}.jsonl")), &n);
            check_tokens(&folder.path(&format!("{name}_tokens.json")), &line(&a, 0));
        }
    }
}

/// The log says the same, and lost nothing.
fn check_log(log: &Path, n: &[u64]) {
    let all = events(log);
    let [summary] = of(&all, "capture_summary")[..] else { panic!("one summary") };
    for (what, at) in [("seen", 0), ("captured", 2)] {
        assert_eq!((&summary[what]["tensors"], &summary[what]["bytes"]), (&n[at].into(), &n[at + 1].into()));
    }
    assert_eq!(summary["clean"], true);
    assert!(of(&all, "events_dropped").iter().all(|e| e["reason"] != "internal" && e["reason"] != "queue_full"));
}

/// The tokens that the program tracked.
fn check_tokens(path: &Path, printed: &str) {
    let doc: Value = serde_json::from_slice(&std::fs::read(path).expect("tokens")).expect("JSON");
    let tokens = doc["tokens"].as_array().expect("a list");
    let ids: Vec<String> = tokens.iter().map(|t| t["token_id"].to_string()).collect();
    assert_eq!(ids, printed.split_whitespace().collect::<Vec<_>>());
    for (i, t) in tokens.iter().enumerate() {
        assert_eq!((&t["sequence"], t["request"].is_null()), (&0.into(), true));
        assert_eq!(t["position"].as_u64(), tokens[0]["position"].as_u64().map(|p| p + i as u64));
        let known = i % 2 == 0;
        assert_eq!((t["token_text"].is_string(), t["probability"].as_f64()), (known, known.then_some(0.5)));
    }
}

#[test]
fn a_linked_host_goes_on_with_its_stream() {
    let folder = Folder::new("capture-resume");
    let Some(host) = host(&folder) else { return };
    let chosen = [("TENSORS", "residual"), ("CHECKPOINT_TOKENS", "1"), ("CAPTURE_RESUME", "1")];
    let outs = [host.linked("acts", &chosen), host.linked("acts", &chosen)];
    assert_eq!(line(&outs[0], 0), line(&outs[1], 0));
    let all = pieces(&folder.path("acts.stream"), Route::Callback, -1);
    let n = STEPS as u64;
    let steps: std::collections::BTreeSet<u64> = all.keys().map(|(_, step)| *step).collect();
    assert_eq!(steps, (1..=2 * n).collect(), "steps are numbered on");
    for ((name, step), piece) in all.iter().filter(|((_, step), _)| *step <= n) {
        assert_eq!(Some(piece), all.get(&(name.clone(), step + n)), "{name}, step {step}: the same run twice");
    }
}

#[test]
fn graphs_are_told_apart_where_nobody_says_where_one_begins() {
    let Some(llama) = llama() else { return };
    let folder = Folder::new("graphs");
    let program = folder.compile("gcc", "graphs.c", "graphs", &[], Some(&llama));
    for name in ["plain", "flush"] {
        let (log, stream) = (folder.path(&format!("{name}.jsonl")), folder.path(&format!("{name}.stream")));
        let mut c = Command::new(&program);
        c.current_dir(&folder.0).args([&log, &stream]).args((name == "flush").then_some(name));
        run(&mut c);
        check_graphs(&events(&log), &pieces(&stream, Route::Callback, -1));
    }
}

/// The graphs of tests/c/graphs.c, as log and stream have them.
fn check_graphs(all: &[Value], values: &BTreeMap<(String, u64), Piece>) {
    let of_tokens =
        ["embd", "norm-0", "ffn_out-0", "inp_per_layer", "per_layer-0", "l_out-0", "result_output"].as_slice();
    let of_embeddings = ["norm-0", "ffn_out-0", "l_out-0", "result_output"].as_slice();
    let expected = [
        (of_tokens, [5, 6, 7].as_slice()),
        (of_tokens, &[5, 6, 7]),
        (of_tokens, &[5]),
        (of_embeddings, &[-1, -1]),
        (of_embeddings, &[-1, -1]),
        (of_embeddings, &[-1]),
        (of_tokens, &[5]),
    ];
    let operations = of(all, "compute_execution");
    for (step, (names, tokens)) in (1_u64..).zip(expected) {
        let timed: Vec<_> = operations.iter().filter(|e| e["step"] == step).map(|e| e["tensor"].as_str()).collect();
        assert_eq!(timed, names.iter().map(|n| Some(*n)).collect::<Vec<_>>(), "step {step}");
        let read: Vec<_> = values.iter().filter(|((_, s), _)| *s == step).map(|(_, piece)| piece).collect();
        assert_eq!(read.len(), names.len(), "step {step}");
        for piece in read {
            assert!(names.contains(&piece.about.tensor.as_str()), "step {step}: {piece:?}");
            assert_eq!(
                piece.rows.iter().map(|(_, token)| *token).collect::<Vec<_>>(),
                tokens,
                "step {step}: {piece:?}"
            );
        }
    }
    assert_eq!(values.keys().map(|(_, step)| *step).max(), Some(expected.len() as u64));
    let told = of(all, "resource_session_summary")[0];
    assert_eq!(told["steps"], expected.len());
    // Those of no tokens are no steps, and counted all the same.
    let shifts = operations.iter().filter(|e| e["tensor"] == "k_shifted-0").count();
    let runs = of(all, "step_summary").into_iter().filter_map(|s| s["ops"].as_array()).flatten();
    let scaled: u64 = runs.filter(|op| op["name"] == "scale").filter_map(|op| op["count"].as_u64()).sum();
    assert_eq!((shifts, scaled), (0, 2));
}

#[test]
fn misuse_of_settings_and_captures_is_a_status_and_a_message() {
    let folder = Folder::new("capture-misuse");
    for (name, flags, wrapper) in checkers() {
        let program = folder.compile("gcc", "capture_misuse.c", &format!("capture-misuse-{name}"), &flags, None);
        let here = folder.path(name);
        std::fs::create_dir(&here).expect("a folder");
        run(command(&wrapper, &program).arg(&here).current_dir(&here));
        let doc = std::fs::read(here.join("acts_tokens.json")).expect("tokens");
        let doc: Value = serde_json::from_slice(&doc).expect("JSON");
        let field =
            |key: &str| doc["tokens"].as_array().into_iter().flatten().map(|t| t[key].clone()).collect::<Value>();
        assert_eq!(field("token_id"), serde_json::json!([-1, i32::MAX, 7]), "{name}");
        assert_eq!(field("position"), serde_json::json!([null, i32::MAX, 0]), "{name}");
        assert_eq!(field("sequence"), serde_json::json!([null, 3, 0]), "{name}");
        assert_eq!(field("probability"), serde_json::json!([null, null, 0.25]), "{name}");
        // LLAMA_RESOURCE_LOG_TEXT is not needed: the program hands over what it wants written.
        assert_eq!(field("token_text"), serde_json::json!([null, "a\"b\\c\n\u{1}", "\u{fffd} not UTF-8"]), "{name}");
        assert_eq!(of(&events(&here.join("with.jsonl")), "resource_session_end").len(), 1, "{name}");
    }
}
