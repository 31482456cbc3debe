//! The command lines of `bench` and `compare`.

use std::path::PathBuf;

use clap::Args;

/// `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource bench --quick                                a look, within 5 minutes
  llama-resource bench --json new.json --html new.html        48 pairs a mode: about an hour
  llama-resource bench --modes plain,capture,capture:FULL_TENSOR:fast --rounds 12 --pairs 48
  llama-resource bench --fine                                 what costs next to nothing, by CPU time: half an hour
  llama-resource bench --in-process target/paired             plain and mode in turns inside one process
  llama-resource bench --quick --check                        fail if a mode costs more than it may
  llama-resource bench --from a.json b.json --html new.html   show results again, together

A round starts a plain server and then, beside it, one of each mode, warms both up and sends them the
same requests in turn, plain-mode-mode-plain. The clock is the server's own. `plain` as a mode is a
second plain server: what it shows is the error of the method. docs/BENCHMARK.md tells more.

Exit status: 0 measured, 1 an error, 2 with --check: the whole interval of a mode lies above its
ceiling (disabled, minimal and patched-off 0.5 %, capture 1.5, detailed and patched-on 2, verbose 5;
capture:MLP_ONLY and capture:ATTENTION_ONLY 4.2, capture:FULL_TENSOR 8.7).")]
pub struct Bench {
    /// At most 270 s: up to 10 rounds of one pair, shorter requests
    #[arg(long)]
    pub quick: bool,
    /// CPU time of short requests to servers of one thread: 480 pairs in 80 rounds, plain, disabled and patched-off
    #[arg(long, conflicts_with = "quick")]
    pub fine: bool,
    /// Steps inside one process a round, which this program runs (bench/paired.cpp, `make target/paired`)
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["quick", "fine"])]
    pub in_process: Option<PathBuf>,
    /// llama-server [default: target/llama.cpp/bin/llama-server, else from PATH]
    #[arg(long, value_name = "BIN")]
    pub server: Option<PathBuf>,
    /// The patched llama-server [default: target/llama.cpp-patched/bin/llama-server]
    #[arg(long, value_name = "BIN")]
    pub patched_server: Option<PathBuf>,
    /// GGUF file [default: target/models/SmolLM2-135M-Instruct.Q4_1.gguf]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Which modes: plain, disabled, minimal, detailed, verbose, capture, patched-off, patched-on [default: all];
    /// also capture:SELECTION:CODEC, and preload:PATH for another library in the place of ours
    #[arg(long, value_name = "LIST", value_parser = super::mode::parse)]
    pub modes: Option<ModeList>,
    /// Pairs of each mode, over all rounds [default: 48; --quick 10, --fine 480, --in-process 320]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pairs: Option<u32>,
    /// Rounds, each with new processes [default: 24; --quick 10, --fine 80, --in-process 40]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: Option<u32>,
    /// Threads of each server [default: 2; --fine and --in-process 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub threads: Option<u32>,
    /// Tokens of the short and of the long prompt [default: 128,1024; --quick 32,384]
    #[arg(long, value_name = "SHORT,LONG", value_parser = contexts)]
    pub contexts: Option<[u32; 2]>,
    /// Tokens generated behind each [default: 96; --quick 24]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub predict: Option<u32>,
    /// Begin nothing that would not end within so many seconds [default: no limit; --quick 270]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub time: Option<u32>,
    /// Write the report, every pair included
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a self-contained HTML page with plots
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
    /// Exit with 2 if a mode's whole interval lies above its ceiling
    #[arg(long)]
    pub check: bool,
    /// Show this result instead of measuring; several are shown as one
    #[arg(long, value_name = "IN", num_args = 1.., conflicts_with_all = ["quick", "fine", "in_process", "server",
        "patched_server", "model", "modes", "pairs", "rounds", "contexts", "predict", "time"])]
    pub from: Vec<PathBuf>,
}

/// Modes of one flag. An alias, because clap makes many flags of a plain `Vec`.
pub type ModeList = std::vec::Vec<String>;

/// `compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource compare base.json new.json
  llama-resource compare base.json new.json --threshold 2
  llama-resource compare base.json new.json --json | jq '.changes[] | select(.finding == \"regression\")'

Each mode's slow-down against the plain server then and now. A regression is one only if its whole
interval lies above the threshold. Results of another machine, llama.cpp, model or workload are
refused: --force compares them all the same. The library and the patched server may differ, they are
what is tested.

Exit status: 0 no regression (the output says what could not be decided), 1 an error, 2 a regression,
3 refused.")]
pub struct Compare {
    /// The result to compare with
    pub base: PathBuf,
    /// The result that is judged
    pub new: PathBuf,
    /// Per cent that a change must exceed
    #[arg(long, value_name = "PCT", default_value_t = 1.0, value_parser = threshold)]
    pub threshold: f64,
    /// Compare results of different machines, builds and workloads
    #[arg(long)]
    pub force: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

fn contexts(text: &str) -> Result<[u32; 2], String> {
    let sizes = text.split_once(',').and_then(|(a, b)| Some([a.trim().parse().ok()?, b.trim().parse().ok()?]));
    sizes
        .filter(|[a, b]| (1..1_000_000).contains(a) && a < b && *b < 1_000_000)
        .ok_or_else(|| "expected two numbers of tokens, the smaller one first: 128,1024".to_owned())
}

fn threshold(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0).ok_or_else(|| "expected a number from 0".to_owned())
}
