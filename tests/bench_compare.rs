//! `bench --from`, `bench --check` and `compare` on results that are made here: real noise, resampled, with and without
//! a slow-down, and files that are none. tests/server/test_bench.py measures real servers.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use llama_resource_instrumentation::analyze::bench::statistics::Random;
use llama_resource_instrumentation::analyze::bench::summary::{Summary, Verdict};
use llama_resource_instrumentation::analyze::bench::{
    Binary, Build, File, Machine, Method, Model, Pair, Report, Settings,
};
use llama_resource_instrumentation::export::table::{Style, WIDTH};
use llama_resource_instrumentation::export::{html, text};
use serde_json::Value;

const MODES: [&str; 6] = ["plain", "disabled", "minimal", "detailed", "verbose", "capture"];
const ROUNDS: u32 = 24;

/// Slow-downs of a plain server against a plain server, per cent: [round][pair], measured
/// (tests/data/bench-noise.json says where).
fn noise(phase: &str) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bench-noise.json"));
    let all: Value = serde_json::from_str(&text.unwrap()).unwrap();
    serde_json::from_value(all[phase].clone()).unwrap()
}

/// A result whose noise is real and whose mode `slow.0` is slower by `slow.1` per cent.
fn made(seed: u64, rounds: u32, slow: (&str, f64)) -> Report {
    let mut random = Random::new(seed);
    let mut pairs = Vec::new();
    let phases = ["decode", "prefill"].map(|p| (p, noise(p)));
    for round in 0..rounds {
        for mode in MODES {
            for (phase, noise) in &phases {
                let of_round = random.pick(noise).unwrap().clone();
                for _ in 0..2 {
                    let percent = random.pick(&of_round).unwrap();
                    let slower = if mode == slow.0 { 1.0 + slow.1 / 100.0 } else { 1.0 };
                    pairs.push(Pair {
                        mode: mode.to_owned(),
                        round,
                        phase: (*phase).to_owned(),
                        at_s: f64::from(round),
                        plain_ms: 7.0,
                        mode_ms: 7.0 * (1.0 + percent / 100.0) * slower,
                    });
                }
            }
        }
    }
    let file = |name: &str, letter: &str| File { name: name.to_owned(), sha256: Some(letter.repeat(64)) };
    Report {
        bench_version: 1,
        created: "2026-11-22 05:43 UTC".to_owned(),
        took_s: 600.0,
        machine: Machine {
            cpu: "Processor".to_owned(),
            cores: 2,
            memory_gib: 24,
            kernel: "6.18".to_owned(),
            arch: "x86_64".to_owned(),
            load_before: 0.1,
            load_after: 2.0,
        },
        build: Build {
            server: Binary {
                path: "/x/llama-server".to_owned(),
                version: Some("1 (abc)".to_owned()),
                files: vec![file("llama-server", "a"), file("libllama.so.0", "b")],
            },
            patched: None,
            model: Model { name: "m.gguf".to_owned(), size_bytes: 98, sha256_of_16_mib: Some("c".repeat(64)) },
            library: Some(file("libx.so", "d")),
        },
        settings: Settings {
            threads: 2,
            contexts: vec![128, 1024],
            predict: 96,
            parallel: [4, 64],
            rounds,
            pairs_per_round: 2,
            time_limit_s: None,
            capture: ["residual".to_owned(), "bounded".to_owned()],
            method: Method::Servers,
        },
        not_measured: Vec::new(),
        notes: Vec::new(),
        pairs,
    }
}

/// Makes a result another one.
type Change<'a> = &'a dyn Fn(&mut Report);

/// A folder with results, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("llama-resource-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, report: &Report) {
        std::fs::write(self.0.join(name), serde_json::to_string(report).unwrap()).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_llama-resource")).args(args).current_dir(&self.0).output().unwrap()
    }

    /// Compares base.json with new.json.
    fn compare(&self, base: &Report, new: &Report, more: &[&str]) -> Output {
        self.write("base.json", base);
        self.write("new.json", new);
        self.run(&[&["compare", "base.json", "new.json"], more].concat())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// (mode, finding) of every row of `compare --json`.
fn findings(output: &Output) -> Vec<(String, String)> {
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)));
    let rows = json["changes"].as_array().unwrap();
    rows.iter().map(|r| (r["mode"].as_str().unwrap().to_owned(), r["finding"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn twenty_comparisons_of_the_same_with_itself_find_nothing() {
    let folder = Folder::new("same");
    for seed in 0..20 {
        let output = folder.compare(&made(seed, ROUNDS, ("", 0.0)), &made(seed + 1000, ROUNDS, ("", 0.0)), &["--json"]);
        assert_eq!(output.status.code(), Some(0), "seed {seed}: {}", stdout(&output));
        assert!(findings(&output).iter().all(|(_, f)| f != "regression" && f != "improved"), "{:?}", findings(&output));
    }
}

#[test]
fn five_per_cent_are_found_each_time_and_in_the_right_mode() {
    let folder = Folder::new("slower");
    for seed in 0..20 {
        let (base, slow) = (made(seed, ROUNDS, ("", 0.0)), made(seed + 1000, ROUNDS, ("detailed", 5.0)));
        let output = folder.compare(&base, &slow, &["--json"]);
        assert_eq!(output.status.code(), Some(2), "seed {seed}: {}", stdout(&output));
        let called = findings(&output).into_iter().filter(|(_, f)| f == "regression");
        assert!(called.map(|c| c.0).all(|mode| mode == "detailed"), "seed {seed}");
        // The other way round it is an improvement. (A few times are enough.)
        if seed % 5 > 0 {
            continue;
        }
        let output = folder.compare(&slow, &base, &["--json"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(findings(&output).contains(&("detailed".to_owned(), "improved".to_owned())), "seed {seed}");
    }
}

#[test]
fn few_rounds_decide_nothing_and_say_so() {
    let folder = Folder::new("few");
    let (base, new) = (made(1, 1, ("", 0.0)), made(2, 1, ("verbose", 40.0)));
    let output = folder.compare(&base, &new, &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stdout(&output).contains("0 regressions, 0 improved, 0 without a difference, 10 undecided"),
        "{}",
        stdout(&output)
    );
    let summary = Summary::of(&base);
    assert!(summary.rows.iter().all(|r| r.interval.is_none() && r.verdict != Verdict::Over));
    assert!(summary.warnings.iter().any(|w| w.starts_with("only 1 round:")));
}

#[test]
fn the_threshold_is_what_the_interval_must_exceed() {
    let folder = Folder::new("threshold");
    let (base, new) = (made(1, ROUNDS, ("", 0.0)), made(1, ROUNDS, ("minimal", 5.0)));
    assert_eq!(folder.compare(&base, &new, &["--threshold", "0.5"]).status.code(), Some(2));
    assert_eq!(folder.compare(&base, &new, &["--threshold", "50"]).status.code(), Some(0));
    let output = folder.compare(&base, &new, &["--threshold", "50"]);
    assert!(stdout(&output).contains("none seen (<"), "{}", stdout(&output));
    assert_eq!(folder.compare(&base, &new, &["--threshold", "-1"]).status.code(), Some(1));
}

#[test]
fn other_machines_builds_and_requests_are_refused() {
    let folder = Folder::new("refused");
    let base = made(1, 4, ("", 0.0));
    let changed = |change: &dyn Fn(&mut Report)| {
        let mut new = made(2, 4, ("", 0.0));
        change(&mut new);
        new
    };
    let cases: [(Change<'_>, &str); 10] = [
        (&|r| r.machine.cpu = "Another".into(), "processor: Processor then, Another now"),
        (&|r| r.machine.cores = 3, "cores: 2 then, 3 now"),
        (&|r| r.machine.kernel = "6.19".into(), "kernel"),
        (
            &|r| r.build.server.files[1].sha256 = Some("e".repeat(64)),
            "libllama.so.0: bbbbbbbbbbbb then, eeeeeeeeeeee now",
        ),
        (&|r| r.build.server.files[0].sha256 = None, "llama-server: aaaaaaaaaaaa then, unknown now"),
        (&|r| r.build.server.files.truncate(1), "libllama.so.0 is gone"),
        (&|r| r.build.model.sha256_of_16_mib = Some("f".repeat(64)), "model: cccccccccccc then, ffffffffffff now"),
        (&|r| r.settings.method = Method::Fine, "method: the servers' clocks then, CPU time of short requests now"),
        (&|r| r.settings.threads = 1, "threads: 2 then, 1 now"),
        (&|r| r.settings.contexts = vec![32, 384], "prompts, tokens: [128, 1024] then, [32, 384] now"),
    ];
    for (change, expected) in cases {
        let output = folder.compare(&base, &changed(change), &[]);
        assert_eq!(output.status.code(), Some(3), "{expected}");
        assert!(stdout(&output).is_empty() && stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
        let forced = folder.compare(&base, &changed(change), &["--force"]);
        assert_eq!(forced.status.code(), Some(0), "{expected}");
        assert!(stdout(&forced).starts_with("! "), "{}", stdout(&forced));
    }
    // What is tested may differ.
    let library = changed(&|r| r.build.library.as_mut().unwrap().sha256 = Some("9".repeat(64)));
    let output = folder.compare(&base, &library, &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with("library: dddddddddddd then, 999999999999 now\n"), "{}", stdout(&output));
}

#[test]
fn damaged_files_are_one_clear_error() {
    let folder = Folder::new("damaged");
    let whole = serde_json::to_string(&made(1, 4, ("", 0.0))).unwrap();
    std::fs::write(folder.0.join("good.json"), &whole).unwrap();
    for (text, expected) in [
        (String::new(), "no report of `llama-resource bench --json`: EOF"),
        ("not json".to_owned(), "expected ident at line 1"),
        ("[]".to_owned(), "it is no report"),
        ("{}".to_owned(), "it has no `bench_version`"),
        (whole[..whole.len() / 2].to_owned(), "EOF while parsing"),
        (whole.replace("\"bench_version\":1", "\"bench_version\":9"), "its version is 9"),
        (whole.replace("\"plain_ms\":7.0", "\"plain_ms\":0.0"), "pair 0: expected times above 0"),
        (whole.replace("\"plain_ms\":7.0", "\"plain_ms\":-7.0"), "pair 0: expected times above 0"),
        (whole.replace("\"plain_ms\":7.0", "\"plain_ms\":1e999"), "number out of range"),
        (whole.replace("\"cores\":2", "\"cores\":\"two\""), "expected u32"),
        ("{\"x\":".to_owned() + &"[".repeat(100_000), "EOF while parsing a list"),
    ] {
        std::fs::write(folder.0.join("bad.json"), text).unwrap();
        for args in [
            &["compare", "good.json", "bad.json"][..],
            &["compare", "bad.json", "good.json"],
            &["bench", "--from", "bad.json"],
        ] {
            let output = folder.run(args);
            assert_eq!(output.status.code(), Some(1), "{expected}");
            let error = stderr(&output);
            assert!(
                error.starts_with("error: cannot use `bad.json`: ") && error.contains(expected),
                "{expected}: {error}"
            );
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    let output = folder.run(&["compare", "good.json", "no-such.json"]);
    assert!(stderr(&output).starts_with("error: cannot read `no-such.json`: "), "{}", stderr(&output));
    let mut empty = made(1, 4, ("", 0.0));
    empty.pairs.clear();
    assert!(stderr(&folder.compare(&empty, &empty, &[])).contains("it holds no pair"));
}

#[test]
fn check_fails_beyond_doubt_and_only_then() {
    let folder = Folder::new("check");
    for (slow, expected) in [(("", 0.0), 0), (("minimal", 0.3), 0), (("minimal", 8.0), 2), (("capture", 10.0), 2)] {
        folder.write("r.json", &made(7, ROUNDS, slow));
        let output = folder.run(&["bench", "--from", "r.json", "--check"]);
        assert_eq!(output.status.code(), Some(expected), "{slow:?}: {}", stdout(&output));
        assert_eq!(stdout(&output).contains(&format!("OVER ITS CEILING: {},", slow.0)), expected == 2);
        // Without --check the figures are shown and nothing else.
        assert_eq!(folder.run(&["bench", "--from", "r.json"]).status.code(), Some(0));
    }
}

#[test]
fn reports_fit_a_terminal_and_a_page() {
    let mut report = made(3, ROUNDS, ("verbose", 30.0));
    report.build.model.name = "<b>&\u{1b}[31m".to_owned() + &"long ".repeat(30);
    report.not_measured.push(llama_resource_instrumentation::analyze::bench::NotMeasured {
        mode: "patched-on".to_owned(),
        reason: "no patched server".to_owned(),
    });
    let summary = Summary::of(&report);
    let shown = text::bench::render(&summary, Style::default());
    assert!(shown.lines().all(|l| l.chars().count() <= WIDTH), "{shown}");
    assert!(!shown.contains('\x1b') && shown.contains("patched-on: not measured: no patched server"));
    let page = html::bench::render(&summary);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n") && page.contains("<svg"));
    assert!(!page.contains("<b>&") && !page.contains("://") && !page.contains("<script") && !page.contains("NaN"));
    assert!(page.contains("patched-on: not measured"));

    let folder = Folder::new("shown");
    let output = folder.compare(&made(1, ROUNDS, ("", 0.0)), &report, &["--force"]);
    assert!(stdout(&output).lines().all(|l| l.chars().count() <= WIDTH), "{}", stdout(&output));
    assert!(stdout(&output).contains("REGRESSION") && output.status.code() == Some(2));
}

#[test]
fn a_written_report_says_the_same_again() {
    let folder = Folder::new("again");
    folder.write("r.json", &made(5, ROUNDS, ("", 0.0)));
    let first = folder.run(&["bench", "--from", "r.json", "--json", "s.json", "--html", "s.html"]);
    let second = folder.run(&["bench", "--from", "s.json"]);
    assert_eq!(stdout(&first), stdout(&second));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.0.join("s.json")).unwrap()).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 12);
    assert_eq!(json["pairs"].as_array().unwrap().len(), 12 * 48);
}

#[test]
fn runs_together_are_all_their_pairs_in_all_their_rounds() {
    let folder = Folder::new("together");
    let mut second = made(6, 8, ("", 0.0));
    second.pairs.retain(|p| p.mode != "verbose");
    second.build.library = None;
    folder.write("a.json", &made(5, ROUNDS, ("", 0.0)));
    folder.write("b.json", &second);
    let output = folder.run(&["bench", "--from", "a.json", "b.json", "--json", "both.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("the runs were of different libraries"), "{}", stdout(&output));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.0.join("both.json")).unwrap()).unwrap();
    for row in json["rows"].as_array().unwrap() {
        let rounds = if row["mode"] == "verbose" { ROUNDS } else { ROUNDS + 8 };
        assert_eq!((&row["rounds"], &row["pairs"]), (&rounds.into(), &(2 * rounds).into()), "{row}");
    }
    // The drift is that of the whole: the second run is later than the first.
    assert!(json["pairs"].as_array().unwrap().last().unwrap()["at_s"].as_f64().unwrap() > 600.0);

    second.machine.cores = 4;
    folder.write("b.json", &second);
    let output = folder.run(&["bench", "--from", "a.json", "b.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`b.json` and those before it say nothing together: cores: 2 then, 4 now"));
}

#[test]
fn captures_have_the_ceiling_of_what_they_capture() {
    let folder = Folder::new("captures");
    let mut report = made(7, ROUNDS, ("capture", 12.0));
    for pair in report.pairs.iter_mut().filter(|p| p.mode == "capture") {
        pair.mode = "capture:FULL_TENSOR:fast".to_owned();
    }
    folder.write("r.json", &report);
    let output = folder.run(&["bench", "--from", "r.json", "--check"]);
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    assert!(stdout(&output).contains("OVER ITS CEILING: capture:FULL_TENSOR:fast,"), "{}", stdout(&output));
    assert!(stdout(&output).lines().any(|l| l.contains("  FULL_TENSOR:fast") && l.contains(" 8.7 ")));
}

#[test]
fn wrong_use_is_status_1_and_never_2() {
    let folder = Folder::new("use");
    for args in [
        &["compare", "only-one.json"][..],
        &["bench", "--modes", "loud"],
        &["bench", "--contexts", "9,3"],
        &["bench", "--rounds", "0"],
        &["bench", "--server", "/no/such/server"],
        &["bench", "--server", "/bin/true", "--model", "/no/such/model"],
        &["bench", "--from", "x", "--quick"],
    ] {
        assert_eq!(folder.run(args).status.code(), Some(1), "{args:?}");
    }
    for args in [&["bench", "--help"], &["compare", "--help"]] {
        let output = folder.run(args);
        assert!(output.status.success() && stdout(&output).contains("Exit status: 0"));
        assert!(stdout(&output).lines().all(|l| l.chars().count() <= 100), "{}", stdout(&output));
    }
}
