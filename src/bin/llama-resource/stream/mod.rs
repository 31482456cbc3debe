//! `stream`: everything that is done with activation streams after the capture. One subcommand a file.

pub mod args;
mod cat;
mod export;
mod import;
mod info;
mod ls;
mod out;
mod progress;
mod recover;
mod source;
mod stats;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use args::Command;

/// Runs the subcommand.
pub fn stream(args: &args::Stream) -> Result<ExitCode, String> {
    let done = |result: Result<(), out::Stop>| out::quiet(result).map(|()| ExitCode::SUCCESS);
    match &args.command {
        Command::Info(args) => done(info::info(args)),
        Command::Ls(args) => done(ls::ls(args)),
        Command::Verify(args) => verify::verify(args),
        Command::Cat(args) => done(cat::cat(args)),
        Command::Stats(args) => done(stats::stats(args)),
        Command::Recover(args) => done(recover::recover(args)),
        Command::Export(args) => done(export::export(args)),
        Command::Import(args) => done(import::import(args)),
    }
}

/// Refuses to write over what is read.
fn refuse_same(input: &Path, output: &Path) -> Result<(), String> {
    let same = matches!((input.canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same { Err(format!("`{}` is both read and written: name another --out", output.display())) } else { Ok(()) }
}
