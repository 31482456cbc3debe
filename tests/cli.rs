//! The companion program as a user meets it: on the golden log, on every damage that can be done to it, on
//! broken command lines.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "cli/sample.rs"]
mod sample;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use llama_resource_instrumentation::analyze::{self, Report, Which};
use llama_resource_instrumentation::export::table::{Style, WIDTH};
use llama_resource_instrumentation::export::{html, json, text};
use llama_resource_instrumentation::read::{Account, Log};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2").join(name)
}

/// Under `UPDATE=1` the sample must be new before any test reads it, whatever their order.
fn update_sample() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(golden("sample.jsonl"), sample::log()).unwrap();
        }
    });
}

/// Compares with the golden file; `UPDATE=1` writes it instead.
fn assert_golden(name: &str, actual: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden(name), actual).unwrap();
    }
    let expected = std::fs::read_to_string(golden(name)).unwrap();
    assert!(expected == actual, "tests/golden/v2/{name} differs; UPDATE=1 rewrites it. Now it is:\n{actual}");
}

fn program() -> Command {
    update_sample();
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
    command.env_remove("LLAMA_RESOURCE_LIBRARY").env_remove("LLAMA_RESOURCE_LOG_PATH").env_remove("LD_PRELOAD");
    command.current_dir(golden("").as_path());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn report_of(bytes: &[u8], which: &Which) -> Report {
    analyze::report(Log::new(bytes), "test", which).unwrap()
}

/// Everything that is done with a log, done to these bytes.
fn account_of(bytes: &[u8]) -> Account {
    let report = report_of(bytes, &Which::All);
    assert!(report.account.balances(), "{:?}", report.account);
    let shown = text::render(&report, Style::default());
    assert!(shown.lines().all(|l| l.chars().count() <= WIDTH), "wider than {WIDTH}:\n{shown}");
    assert!(!shown.contains('\x1b'));
    json::render(&report).unwrap();
    assert!(html::render(&report).ends_with("</html>\n"));
    report.account
}

#[test]
fn sample_log_is_what_the_generator_writes() {
    update_sample();
    assert_eq!(std::fs::read_to_string(golden("sample.jsonl")).unwrap(), sample::log(), "UPDATE=1 rewrites it");
}

#[test]
fn a_log_of_the_first_version_says_what_it_said() {
    let old = std::fs::read(golden("../v1/sample.jsonl")).unwrap();
    let (then, now) = (report_of(&old, &Which::All), report_of(sample::log().as_bytes(), &Which::All));
    assert_eq!((then.account.bad_lines, then.account.unknown_lines()), (0, 0));
    assert_eq!((then.account.events, then.sessions.len()), (now.account.events, now.sessions.len()));
    for (then, now) in then.sessions.iter().zip(&now.sessions) {
        assert_eq!((&then.requests, &then.memory, &then.kv), (&now.requests, &now.memory, &now.kv));
    }
}

#[test]
fn report_of_the_last_session() {
    let output = run(&["report", "sample.jsonl"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_golden("report.txt", &stdout(&output));
}

#[test]
fn report_of_a_killed_session_says_so() {
    let output = run(&["report", "sample.jsonl", "--session", "resource_sess_20261122_010000_000000"]);
    assert_golden("report-killed.txt", &stdout(&output));
    assert!(stdout(&output).contains("NOT CLOSED"));
}

#[test]
fn json_holds_every_session_and_nothing_invented() {
    let output = run(&["report", "sample.jsonl", "--json", "--session", "all"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(json["account"]["events"], json["account"]["lines"]);
    let (killed, whole) = (&json["sessions"][0], &json["sessions"][1]);
    assert_eq!(killed["requests"]["requests"][0]["outcome"], serde_json::Value::Null);
    assert_eq!(killed["requests"]["totals"]["ttft_ms"], serde_json::Value::Null);
    assert_eq!(killed["host"], serde_json::Value::Null);
    assert_eq!(whole["requests"]["totals"]["generated_tokens"], 200 + 220 + 96);
    assert_eq!(whole["requests"]["totals"]["outcomes"]["eog"], 2);
    assert_eq!(whole["memory"]["peak_bytes"], 256_901_120_u64 + 50_331_648 + 15_204_352 + 786_432 + 30_408_704);
    assert_eq!(whole["coverage"]["unsummarized_steps"], 0);
    assert_eq!(whole["coverage"]["dropped_events"], 248);
    assert_eq!(whole["moe"][3]["idle_experts"], 1);
}

#[test]
fn html_is_one_escaped_page_without_network() {
    let file = std::env::temp_dir().join(format!("llama-resource-cli-{}.html", std::process::id()));
    let output = run(&["report", "sample.jsonl", "--session", "all", "--html", file.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let page = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(page.starts_with("<!doctype html>"));
    assert!(page.contains("Tiny &lt;MoE&gt; &amp; Co") && !page.contains("<MoE>"));
    assert!(!page.contains("://") && !page.contains("<script") && !page.contains("<link") && !page.contains("url("));
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn wrong_use_is_one_error_line_and_status_1() {
    for (args, expected) in [
        (&["report", "no-such.jsonl"][..], "error: cannot open the log `no-such.jsonl`"),
        (&["report", "."], "error: cannot read the log `.`"),
        (
            &["report", "sample.jsonl", "--session", "x"],
            "error: no session `x` in the log `sample.jsonl` (it holds: resource",
        ),
        (&["report", "sample.jsonl", "--html", "/no/such/dir/x"], "error: cannot write `/no/such/dir/x`"),
        (&["doctor", "sample.jsonl"], "error: `sample.jsonl` is no ELF file"),
        (&["doctor", "no-such-program"], "error: cannot find `no-such-program`"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).starts_with(expected), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1);
    }
}

#[test]
fn colour_is_for_terminals_only() {
    let report = report_of(sample::log().as_bytes(), &Which::Last);
    let (plain, colour) = (text::render(&report, Style::default()), text::render(&report, Style { colour: true }));
    assert!(colour.contains("\x1b[1;36mMEMORY\x1b[0m"));
    let mut stripped = colour;
    for code in ["\x1b[1;36m", "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
    assert!(!stdout(&run(&["report", "sample.jsonl"])).contains('\x1b'));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = program()
        .args(["report", "sample.jsonl", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_log_cut_anywhere_in_its_last_lines_is_read_up_to_the_cut() {
    let log = sample::log();
    let lines = log.lines().count() as u64;
    let last = log[..log.len() - 1].rfind('\n').unwrap() + 1;
    let before = log[..last - 1].rfind('\n').unwrap() + 1;
    for cut in before..=log.len() {
        let account = account_of(&log.as_bytes()[..cut]);
        let (start, whole) = if cut >= last { (last, lines - 1) } else { (before, lines - 2) };
        // A line that lacks nothing but its line break is whole.
        let is_whole = log.as_bytes().get(cut) == Some(&b'\n') || cut == log.len();
        assert_eq!(account.events, whole + u64::from(is_whole), "cut at {cut}");
        assert_eq!(account.truncated_last_line.is_some(), cut > start && !is_whole, "cut at {cut}");
        assert_eq!(account.bad_lines, 0);
        assert_eq!(account.sessions[1].ended, is_whole && start == last);
    }
}

#[test]
fn nuls_from_a_lost_page_cost_the_lines_they_cover() {
    let mut log = sample::log().into_bytes();
    let end = log.len();
    log[end - 4096..].fill(0);
    let account = account_of(&log);
    assert_eq!((account.bad_lines, account.truncated_last_line.is_some()), (0, true));
    let mut log = sample::log().into_bytes();
    log.extend(std::iter::repeat_n(0, 4096));
    log.push(b'\n');
    let account = account_of(&log);
    assert_eq!((account.bad_lines, account.unread_lines()), (1, 1));
    assert!(account.sessions[1].ended);
}

#[test]
fn random_damage_never_panics_and_every_line_stays_accounted_for() {
    let log = sample::log().into_bytes();
    // xorshift64*: a fixed sequence, so that a failure can be repeated by its seed.
    for seed in 1..=2_000_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
        };
        let mut damaged = log.clone();
        for _ in 0..=random(8) {
            let at = random(damaged.len());
            damaged[at] = match random(4) {
                0 => random(256) as u8,
                // Numbers that stay numbers do most harm behind the parser.
                1 => b'9',
                2 => b'\n',
                _ => damaged[at] ^ (1 << random(8)),
            };
        }
        let which = if seed % 2 == 0 { Which::All } else { Which::Last };
        let report = report_of(&damaged, &which);
        assert!(report.account.balances(), "seed {seed}: {:?}", report.account);
        assert!(!text::render(&report, Style::default()).is_empty());
        if seed % 20 == 0 {
            account_of(&damaged);
        }
    }
}

#[test]
fn a_report_on_any_number_of_sessions_is_about_the_newest() {
    let start = sample::log().lines().next().unwrap().to_owned();
    let id = serde_json::from_str::<serde_json::Value>(&start).unwrap()["session_id"].as_str().unwrap().to_owned();
    let log: String = (0..3000).map(|i| start.replace(&id, &format!("s{i}")) + "\n").collect();
    let report = report_of(log.as_bytes(), &Which::All);
    let shown: Vec<&str> = report.sessions.iter().map(|s| s.session.session_id.as_str()).collect();
    assert_eq!((shown.len(), shown.first(), shown.last()), (1000, Some(&"s2000"), Some(&"s2999")));
    assert_eq!(report.account.sessions.len(), 3000);
    let from = report.account.sessions[2998].first_byte;
    assert_eq!(report_of(log.as_bytes(), &Which::From(from)).sessions.len(), 2);
    assert_eq!(report_of(log.as_bytes(), &Which::Id("s7".to_owned())).sessions.len(), 1);
}

#[test]
fn huge_lines_and_text_that_is_markup_are_harmless() {
    let mut log = Vec::new();
    writeln!(log, "{}", "x".repeat(9 << 20)).unwrap();
    log.extend_from_slice(sample::log().replace("llama-server", "<script>\\u001b[2J\\\"&").as_bytes());
    let account = account_of(&log);
    assert_eq!(account.bad_lines, 1);
    assert!(account.bad[0].reason.contains("longer than"));
    let page = html::render(&report_of(&log, &Which::All));
    assert!(!page.contains("<script>\u{1b}") && page.contains("&lt;script&gt;"));
}

#[test]
fn run_passes_the_exit_status_and_the_environment_on() {
    let library = std::env::current_exe().unwrap();
    let mut command = program();
    command.env("LLAMA_RESOURCE_LIBRARY", &library).env("LLAMA_RESOURCE_LOG_LEVEL", "MINIMAL");
    command.args(["run", "--level", "verbose", "--rate", "1M", "--log", "/tmp/x.jsonl", "--", "sh", "-c"]);
    command.arg("echo $LLAMA_RESOURCE_LOG_LEVEL $LLAMA_RESOURCE_LOG_RATE $LLAMA_RESOURCE_LOG_PATH $LD_PRELOAD; exit 7");
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim(), format!("VERBOSE 1M /tmp/x.jsonl {}", library.display()));
}

#[test]
fn run_with_report_shows_this_runs_session_only() {
    let log = std::env::temp_dir().join(format!("llama-resource-cli-run-{}.jsonl", std::process::id()));
    // Another run's session is in the file already; this run's is appended by the command.
    std::fs::write(&log, sample::log().replace("resource_sess_2026", "older_sess_2026")).unwrap();
    let mut command = program();
    command.env("LLAMA_RESOURCE_LIBRARY", std::env::current_exe().unwrap());
    command.args(["run", "--report", "--log", log.to_str().unwrap(), "--", "sh", "-c"]);
    command.arg("cat sample.jsonl >> $LLAMA_RESOURCE_LOG_PATH; echo out; exit 3");
    let output = command.output().unwrap();
    std::fs::remove_file(&log).unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(3), "out\n"));
    let shown = stderr(&output);
    assert!(shown.contains("resource_sess_20261122_010000_000000") && !shown.contains("older_sess"), "{shown}");
}

#[test]
fn run_preloads_from_a_path_that_ld_preload_would_take_apart() {
    let folder = std::env::temp_dir().join(format!("llama-resource: my tools {}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let library = folder.join("ours.so");
    std::fs::write(&library, "").unwrap();
    let mut command = program();
    command.env("LLAMA_RESOURCE_LIBRARY", &library).env_remove("LD_PRELOAD");
    let output = command.args(["run", "--", "sh", "-c", "echo \"$LD_PRELOAD\""]).output().unwrap();
    let path = stdout(&output).trim().to_owned();
    assert!(!path.is_empty() && !path.contains([' ', ':']), "{path} {}", stderr(&output));
    assert_eq!(std::fs::canonicalize(&path).unwrap(), std::fs::canonicalize(&library).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn run_with_report_finds_logs_by_their_placeholders() {
    let folder = std::env::temp_dir().join(format!("llama-resource-cli-places-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // Two processes of the command wrote logs, and another one is an older run's.
    std::fs::write(folder.join("log.1.jsonl"), sample::log().replace("resource_sess_2026", "older_sess_2026")).unwrap();
    let mut command = program();
    command.env("LLAMA_RESOURCE_LIBRARY", std::env::current_exe().unwrap());
    command.args(["run", "--report", "--log"]).arg(folder.join("log.%p.jsonl")).args(["--", "sh", "-c"]);
    command.arg(format!(
        "cat sample.jsonl > {0}/log.$$.jsonl; sed s/resource_sess/second_sess/ sample.jsonl > {0}/log.4711.jsonl",
        folder.display()
    ));
    let output = command.output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let shown = stderr(&output);
    for id in ["resource_sess_20261122_010000_000000", "second_sess_20261122_010000_000000"] {
        assert!(shown.contains(id), "{shown}");
    }
    assert!(!shown.contains("older_sess") && !shown.contains("no report"), "{shown}");
}

#[test]
fn run_with_report_passes_sigterm_on_and_waits() {
    let log = std::env::temp_dir().join(format!("llama-resource-cli-term-{}.jsonl", std::process::id()));
    let mut command = program();
    command.env("LLAMA_RESOURCE_LIBRARY", std::env::current_exe().unwrap());
    command.args(["run", "--report", "--log", log.to_str().unwrap(), "--", "sh", "-c"]);
    command.arg("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert!(stderr(&output).contains("no report: no log"), "{}", stderr(&output));
}

#[test]
fn run_without_the_library_says_where_it_looked() {
    let output = program().env("LLAMA_RESOURCE_LIBRARY", "/no/such.so").args(["run", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: LLAMA_RESOURCE_LIBRARY names `/no/such.so`, which is no file\n");
}

#[test]
fn doctor_on_a_program_without_ggml_exits_2() {
    let output = run(&["doctor", "/bin/true"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).contains("no ggml"), "{}", stdout(&output));
    let output = run(&["doctor", "/bin/true", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["verdict"], &json["usable"]), (&"no_ggml".into(), &false.into()));
}
