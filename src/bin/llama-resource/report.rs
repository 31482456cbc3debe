//! `report`: a log to text, JSON or HTML. Also prints the report at the end of `run --report`.

use std::io::Write;
use std::path::Path;

use llama_resource_instrumentation::analyze::{self, Report, Which};
use llama_resource_instrumentation::export::units::{printable, printable_json};
use llama_resource_instrumentation::export::{html, json, text};
use llama_resource_instrumentation::read::Log;

use crate::args;
use crate::terminal::{eprint_line, print, stdout_style, style};

/// Sessions that a message names.
const MOST_NAMED: usize = 20;

/// Runs the subcommand.
pub fn report(args: &args::Report) -> Result<(), String> {
    let which = match args.session.as_deref() {
        None => Which::Last,
        Some("all") => Which::All,
        Some(id) => Which::Id(id.to_owned()),
    };
    let report = read(&args.log, &which)?;
    if let (Which::Id(id), true) = (&which, report.sessions.is_empty()) {
        return Err(no_such_session(id, &report));
    }
    let left_out = report.account.sessions.len().saturating_sub(report.sessions.len());
    if which == Which::All && left_out > 0 {
        let shown = report.sessions.len();
        eprint_line(&format!(
            "the newest {shown} sessions; {left_out} older ones are left out, --session ID shows one"
        ));
    }
    if let Some(file) = &args.html {
        std::fs::write(file, html::render(&report)).map_err(|e| format!("cannot write `{}`: {e}", file.display()))?;
        eprint_line(&format!("wrote {}", file.display()));
    }
    if args.json {
        let json = json::render(&report).map_err(|e| format!("cannot write the report as JSON: {e}"))?;
        print(&printable_json(&json))
    } else if args.html.is_none() {
        print(&text::render(&report, stdout_style()))
    } else {
        Ok(())
    }
}

/// The report of what begins at or behind `from`, on standard error: standard output is the command's.
pub fn after_run(log: &Path, from: u64) -> Result<(), String> {
    let report = read(log, &Which::From(from))?;
    if report.sessions.is_empty() {
        return Err(format!(
            "the library wrote no session to `{}`: the command did not load it (llama-resource doctor says why)",
            log.display()
        ));
    }
    let mut out = std::io::stderr();
    let style = style(&out);
    out.write_all(text::render(&report, style).as_bytes()).map_err(|e| format!("cannot print the report: {e}"))
}

fn read(path: &Path, which: &Which) -> Result<Report, String> {
    let log = Log::open(path).map_err(|e| e.to_string())?;
    analyze::report(log, &path.display().to_string(), which).map_err(|e| e.to_string())
}

fn no_such_session(id: &str, report: &Report) -> String {
    let sessions = &report.account.sessions;
    let known: Vec<String> = sessions.iter().rev().take(MOST_NAMED).map(|s| printable(&s.session_id)).collect();
    let known = match sessions.len() {
        0 => "it holds none".to_owned(),
        n if n > known.len() => format!("it holds {n}, the last of them: {}", known.join(", ")),
        _ => format!("it holds: {}", known.join(", ")),
    };
    format!("no session `{id}` in the log `{}` ({known})", report.file)
}
