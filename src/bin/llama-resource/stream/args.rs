//! Command line and help of `stream`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `stream`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream info acts.stream
  llama-resource stream export acts.stream --to safetensors --out acts.safetensors
  llama-resource stream verify acts.stream && echo whole

A stream whose writer was killed is read as far as it goes, and behind damage again. Nothing is returned from a packet \
whose checksum is wrong.")]
pub struct Stream {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `stream`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What a stream holds: origin, account, codecs, how it ended
    Info(Info),
    /// List the tensors
    Ls(Ls),
    /// Check everything: checksums, values, sequence, account
    Verify(Verify),
    /// Print values as text
    Cat(Cat),
    /// Statistics of the values: mean, deviation, norm, zeros
    Stats(Stats),
    /// Copy every good packet of a damaged or unfinished stream into a new one
    Recover(Recover),
    /// Write arrays for NumPy, safetensors or Parquet readers
    Export(Export),
    /// Turn a stream of the older system into one of ours
    Import(Import),
}

/// `stream info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream info acts.stream
  llama-resource stream info acts.stream --json | jq .account")]
pub struct Info {
    /// The stream
    pub file: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `stream ls`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream ls acts.stream
  llama-resource stream ls acts.stream 'l_out-*,ffn_out-1?'
  llama-resource stream ls acts.stream --json | jq -r '.[].name'")]
pub struct Ls {
    /// The stream
    pub file: PathBuf,
    /// Names to list: `*` is any text, `?` any character; several patterns with commas
    #[arg(default_value = "*", hide_default_value = true)]
    pub pattern: String,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `stream verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  llama-resource stream verify acts.stream --json

Checks the checksum of every packet, decodes all values, looks for gaps in the sequence, compares the rows with the \
shapes and the account with what is there. A stream whose writer was killed is not damaged by that alone, even in the \
middle of its last packet: what was written before is whole.

Exit status: 0 good, 2 damaged, 1 an error.")]
pub struct Verify {
    /// The stream
    pub file: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `stream cat`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream cat acts.stream l_out-0 --rows 0-3
  llama-resource stream cat acts.stream l_out-0 > l_out-0.txt
  python -c \"import numpy; print(numpy.loadtxt('l_out-0.txt')[:, 4:].shape)\"

A row a line: step, sequence, position and token (-1 where not known), then the values, exactly.")]
pub struct Cat {
    /// The stream
    pub file: PathBuf,
    /// Name of the tensor, as `ls` shows it
    pub name: String,
    /// Rows to print, counted from 0, both ends included: `7`, `0-99`, `100-`
    #[arg(long, value_name = "A-B", value_parser = super::cat::rows)]
    pub rows: Option<(u64, u64)>,
    /// Print a JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
}

/// `stream stats`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream stats acts.stream
  llama-resource stream stats acts.stream --by token --tensors 'l_out-*' --csv > tokens.csv

Standard deviation is the population's; sparsity is the share of exact zeros. NaN and infinities are counted apart and \
are not in the other figures. --json and --csv also say the bytes. Values of lossy codecs are taken as they are stored.")]
pub struct Stats {
    /// The stream
    pub file: PathBuf,
    /// One line for each tensor, for each layer of the model, or for each token of each tensor
    #[arg(long, value_enum, default_value_t = By::Tensor)]
    pub by: By,
    /// Tensors to look at; `*` is any text, `?` any character, several patterns with commas [default: all]
    #[arg(long, value_name = "GLOB", default_value = "*", hide_default_value = true)]
    pub tensors: String,
    /// Print JSON instead of text
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV instead of text
    #[arg(long)]
    pub csv: bool,
}

/// What a line of `stats` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Each tensor
    Tensor,
    /// All tensors of a layer together
    Layer,
    /// Each token of each tensor
    Token,
}

/// `stream recover`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  llama-resource stream recover killed.stream --out whole.stream

Values, tokens and headers are copied as they are and numbered anew; account, index and end are made of what is there. \
What the old account counts as captured but is not there any more is dropped (`damaged`) in the new one; what was on \
its way, `unwritten`.")]
pub struct Recover {
    /// The damaged or unfinished stream; it is not changed
    pub file: PathBuf,
    /// The new stream
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `stream export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource stream export acts.stream --to safetensors --out acts.safetensors
  llama-resource stream export acts.stream --to npy --out acts --tensors 'l_out-*' --dtype f16
  llama-resource stream export acts.stream --to parquet --out acts

  safetensors  one file: NAME, [rows, ne0], and NAME.rows, int32 [rows, 4]:
               step, sequence, position, token
  npy          a folder: NAME.npy, NAME.rows.npy, index.json
  parquet      a folder: layer=N/part-0.parquet with tensor, row, step, sequence,
               position, token, request, values (a list of floats)

Where only some elements of each row were stored, NAME.columns says which. A tensor whose rows change their length \
becomes one array for each length: NAME.n256, NAME.n512. docs/PYTHON.md shows how to load all of them.")]
pub struct Export {
    /// The stream
    pub file: PathBuf,
    /// The format
    #[arg(long, value_enum)]
    pub to: Format,
    /// File (safetensors) or new folder (npy, parquet) to write
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Tensors to export; `*` is any text, `?` any character, several patterns with commas [default: all]
    #[arg(long, value_name = "GLOB", default_value = "*", hide_default_value = true)]
    pub tensors: String,
    /// Type of floating-point values; integers stay what they are [default: as captured, f32 for bf16; parquet: f32]
    #[arg(long, value_enum)]
    pub dtype: Option<Float>,
}

/// What to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One .safetensors file
    Safetensors,
    /// A folder of .npy files
    Npy,
    /// A folder of Parquet files
    Parquet,
}

/// Types of floating-point values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Float {
    /// 32-bit floats
    F32,
    /// Half precision; what does not fit becomes its largest value and is counted
    F16,
}

/// `stream import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  llama-resource stream import old.stream --dtype f16 --width 576 --out new.stream

The older system (llm-instrumentation) stored neither type nor shape nor step: the type and, if wanted, the length of \
a row are given here; steps count the packets of each name. Its LZ4 and Zstandard frames are recognised.")]
pub struct Import {
    /// The stream of the older system
    pub file: PathBuf,
    /// Type of its values
    #[arg(long, value_enum)]
    pub dtype: Type,
    /// How to store the values: none, lz4 or zstd
    #[arg(long, value_enum, default_value_t = Lossless::Zstd)]
    pub codec: Lossless,
    /// Values in a row, where that is known; without it every packet is one row
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub width: Option<u32>,
    /// The new stream
    #[arg(long, value_name = "NEW")]
    pub out: PathBuf,
}

/// Types that an older stream may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Type {
    /// Half precision: what the older system made of f32
    F16,
    /// 32-bit floats
    F32,
    /// 64-bit floats
    F64,
    /// 32-bit integers
    I32,
    /// 64-bit integers
    I64,
}

/// Codecs that keep every bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lossless {
    /// As they are
    None,
    /// Shuffled, LZ4
    Lz4,
    /// Shuffled, Zstandard
    Zstd,
}
