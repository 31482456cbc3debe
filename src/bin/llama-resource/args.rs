//! The command line and every help text.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    Run(Run),
    /// Say whether a binary can be instrumented, and what will work
    Doctor(Doctor),
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
  llama-resource run -- python my_script.py              llama-cpp-python and others: hooks resolve when it loads llama.cpp

The library is looked for beside this program, in ../lib, and where LLAMA_RESOURCE_LIBRARY points. Everything else is the same
as `LD_PRELOAD=... LLAMA_RESOURCE_LOG_LEVEL=... CMD`: flags become the environment variables of the same name. The exit status
is the command's own.")]
pub struct Run {
    /// How much to log: minimal, detailed or verbose (LLAMA_RESOURCE_LOG_LEVEL)
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub level: Option<String>,
    /// Where to log (LLAMA_RESOURCE_LOG_PATH)
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// Bytes a second that the log may grow, e.g. 50K, or `unlimited` (LLAMA_RESOURCE_LOG_RATE)
    #[arg(long, value_name = "RATE")]
    pub rate: Option<String>,
    /// When the command ends, show the report on standard error
    #[arg(long)]
    pub report: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource doctor llama-server                  found in PATH
  llama-resource doctor ./build/bin/llama-server --json
  llama-resource doctor site-packages/llama_cpp/lib/libllama.so

Nothing is executed: the ELF files are read. Exit status: 0 usable, 2 not usable, 1 an error.")]
pub struct Doctor {
    /// The executable, or the shared library or extension module that a host loads
    pub binary: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
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
        assert!(Cli::try_parse_from(["x", "run"]).is_err());
    }
}
