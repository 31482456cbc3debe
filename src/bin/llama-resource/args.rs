//! The command line and every help text.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod capture;

pub use self::capture::Capture;
use self::capture::checked;

/// Shows what llama.cpp really does - memory, compute, KV cache, requests - inside an unmodified llama-server.
#[derive(Debug, Parser)]
#[command(
    name = "llama-resource",
    version,
    max_term_width = 100,
    after_help = "\
First steps:
  llama-resource doctor llama-server                      can this build be instrumented?
  llama-resource run --report -- llama-server -m m.gguf   run it, and show a report when it ends
  llama-resource report llama.jsonl --html report.html    look at a log later"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a log says: memory, requests, KV cache, time by component, layer and operation
    Report(Report),
    /// Run a program with the library loaded into it
    Run(Box<Run>),
    /// Show what hosts do now: metrics for Prometheus, events, a summary and a page, over HTTP
    Serve(crate::serve::Serve),
    /// Say whether a binary can be instrumented, and what will work
    Doctor(Doctor),
    /// Turn a log into files of other programs: a timeline for Perfetto
    Export(crate::export::args::Export),
    /// Look into, check, repair and export activation streams
    Stream(crate::stream::args::Stream),
    /// Measure what the library costs real servers
    Bench(crate::bench::args::Bench),
    /// Say whether one result of `bench` is worse than another
    Compare(crate::bench::args::Compare),
}

/// `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource report llama.jsonl                     the session that began last
  llama-resource report llama.jsonl --session all       every session of the file
  llama-resource report llama.jsonl --html report.html  one page, to open in a browser or to send
  llama-resource report llama.jsonl --json | jq '.sessions[0].requests.totals'

A damaged or unfinished log is read as far as it goes; the end of the report says what is missing and why. Values that the
log does not hold are `-` in text and `null` in JSON.")]
pub struct Report {
    /// The log: the file that LLAMA_RESOURCE_LOG_PATH named in the host
    pub log: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Write a self-contained HTML page (text is then printed only with --json)
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Session to show: its id, the name that the host gave it, or `all` [default: the one that began last]
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
}

/// `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource run -- llama-server -m model.gguf
  llama-resource run --level verbose --log server.jsonl -- llama-server -m model.gguf
  llama-resource run --report -- llama-bench -m model.gguf -p 64 -n 32
  llama-resource run --serve 127.0.0.1:9464 -- llama-server -m model.gguf
  llama-resource run -- python my_script.py              hooks resolve when it loads llama.cpp

Activations, for numpy and others (`llama-resource stream --help`):
  llama-resource run --capture acts.stream --tensors residual -- llama-server -m model.gguf
      the residual stream, bit by bit; each row says its sequence, position and token
  llama-resource run --capture mlp.stream --tensors MLP_ONLY@0-7,logits --codec bounded \\
      --max-memory 256M --policy drop -- llama-server -m model.gguf
      eight feed-forward parts and the logits at a relative error of 1e-3, within 256 MiB, without
      ever making the server wait
What a selection takes from a model is shown by `llama-resource doctor --tensors`, before any run.
docs/CONFIGURATION.md has the selection language and every setting.

The library is looked for beside this program, in ../lib, and where LLAMA_RESOURCE_LIBRARY points.
Everything else is the same as `LD_PRELOAD=... LLAMA_RESOURCE_LOG_LEVEL=... CMD`: flags become the
environment variables that stand behind them. The exit status is the command's own.")]
pub struct Run {
    /// How much to log: minimal, detailed or verbose (LLAMA_RESOURCE_LOG_LEVEL)
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub level: Option<String>,
    /// Where to log (LLAMA_RESOURCE_LOG_PATH)
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// Bytes a second that the log may grow, e.g. 50K, or `unlimited` (LLAMA_RESOURCE_LOG_RATE)
    #[arg(long, value_name = "RATE", value_parser = checked("LLAMA_RESOURCE_LOG_RATE"))]
    pub rate: Option<String>,
    /// Record what the command starts as well (LLAMA_RESOURCE_FOLLOW_CHILDREN); a llama-server in router
    /// mode needs no asking
    #[arg(long)]
    pub follow_children: bool,
    /// When the command ends, show the report on standard error
    #[arg(long)]
    pub report: bool,
    /// While the command runs, serve metrics, events and a page here, e.g. 127.0.0.1:9464 (see `serve --help`)
    #[arg(long, value_name = "ADDR")]
    pub serve: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    /// The activation stream
    #[command(flatten)]
    pub capture: Capture,
}

/// `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource doctor llama-server                  found in PATH
  llama-resource doctor ./build/bin/llama-server --json
  llama-resource doctor site-packages/llama_cpp/lib/libllama.so
  llama-resource doctor --tensors residual,logits llama-server model.gguf
  llama-resource doctor --tensors 'ffn_*@last4' llama-server model.gguf -- -ngl 99 -c 8192

Without --tensors nothing is executed: the ELF files are read. --json has `predictions`: what a log
of this host will hold - yes, no or unknown, and why - for requests, kv_operations, memory,
operation_times, models, layout, capture and tensors.
With --tensors the binary is started with the model and the library, until the first graph with
tokens has run (the server's own warm-up), and ended again; nothing is captured. A server gets `-c 512 --port 0 -np 1` unless these are given
behind `--`.

Exit status: 0 usable (something would be captured), 2 not usable (nothing would be), 1 an error.")]
pub struct Doctor {
    /// The executable, or the shared library or extension module that a host loads
    pub binary: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// List what this selection would capture: tensors, bytes a token, route (as LLAMA_RESOURCE_TENSORS)
    #[arg(
        long,
        value_name = "SELECTION",
        requires = "model",
        value_parser = checked("LLAMA_RESOURCE_TENSORS"),
        allow_hyphen_values = true
    )]
    pub tensors: Option<String>,
    /// The model to list tensors of
    #[arg(requires = "tensors")]
    pub model: Option<PathBuf>,
    /// Seconds until the model must have run
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "tensors")]
    pub timeout: u64,
    /// Further arguments of the binary
    #[arg(last = true, requires = "tensors", value_name = "ARGS")]
    pub arguments: Vec<OsString>,
}

fn level(text: &str) -> Result<String, String> {
    use llama_resource_instrumentation::format::Level;
    let names = || Level::ALL.map(|l| l.name().to_lowercase()).join(", ");
    Level::parse(text).map(|l| l.name().to_owned()).ok_or_else(|| format!("expected one of: {}", names()))
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_behind_the_command_are_the_commands() {
        let cli = Cli::try_parse_from(["x", "run", "--level", "2", "--", "srv", "--log", "a", "--report"]).unwrap();
        let super::Command::Run(run) = cli.command else { unreachable!() };
        assert_eq!((run.level.as_deref(), run.log, run.report), (Some("VERBOSE"), None, false));
        assert_eq!(run.command.len(), 4);
        assert!(Cli::try_parse_from(["x", "run", "--level", "loud", "--", "srv"]).is_err());
        assert!(Cli::try_parse_from(["x", "run", "--rate", "fast", "--", "srv"]).is_err());
        assert!(Cli::try_parse_from(["x", "run"]).is_err());
    }

    #[test]
    fn tensors_need_a_model_and_a_model_needs_tensors() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["x", "doctor"], words].concat());
        let Ok(cli) = parse(&["--tensors", "-norm,@0-1", "srv", "m.gguf", "--", "-ngl", "0"]) else { unreachable!() };
        let super::Command::Doctor(doctor) = cli.command else { unreachable!() };
        assert_eq!((doctor.tensors.as_deref(), doctor.model), (Some("-norm,@0-1"), Some("m.gguf".into())));
        assert_eq!((doctor.arguments.len(), doctor.timeout), (2, 60));
        assert!(parse(&["srv"]).is_ok());
        for bad in
            [&["srv", "m.gguf"][..], &["--tensors", "auto", "srv"], &["srv", "--", "-ngl"], &["srv", "--timeout", "3"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
