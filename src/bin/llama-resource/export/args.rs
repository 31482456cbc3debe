//! Command line and help of `export`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource export perfetto llama.jsonl --out llama.pftrace
  llama-resource export perfetto llama.jsonl --out - | gzip > llama.pftrace.gz

A damaged or unfinished log is read as far as it goes; what could not be read is told at the end.")]
pub struct Export {
    /// What to write
    #[command(subcommand)]
    pub format: Format,
}

/// The formats of `export`.
#[derive(Debug, Subcommand)]
pub enum Format {
    /// A timeline of requests, steps, layers and operations, with memory, KV cells, GPUs and the host
    Perfetto(Perfetto),
}

/// `export perfetto`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource export perfetto llama.jsonl --out llama.pftrace
  llama-resource export perfetto llama.jsonl --session my-session --out one.pftrace

Open the file in Perfetto's UI. There it can be asked in SQL as well (docs/OUTLETS.md has more):
  SELECT name, count(*), sum(dur) FROM slice WHERE category = 'operation' GROUP BY 1 ORDER BY 3 DESC

Every operation is in logs of the level VERBOSE, layers and components from DETAILED on; matrix
multiplications, requests, memory and KV cells in all. Steps that the log's rate left out are shown
as `not sampled`. Times are the log's `t_ns`.")]
pub struct Perfetto {
    /// The log: the file that LLAMA_RESOURCE_LOG_PATH named in the host
    pub log: PathBuf,
    /// The file to write, or `-` for standard output
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Session to export: its id, or the name that the host gave it [default: all, each a process of the trace]
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
}
