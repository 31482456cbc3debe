//! The companion program: launches, checks, reports. One subcommand a file.

mod args;
mod bench;
mod compare;
mod doctor;
mod report;
mod run;
#[expect(unsafe_code, reason = "signal handlers need libc")]
mod signals;
mod stream;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match dispatch(&args::Cli::parse().command) {
        Ok(code) => code,
        Err(message) => {
            report::eprint(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &args::Command) -> Result<ExitCode, String> {
    match command {
        args::Command::Report(args) => report::report(args).map(|()| ExitCode::SUCCESS),
        args::Command::Run(args) => run::run(args),
        args::Command::Doctor(args) => doctor::doctor(args),
        args::Command::Stream(args) => stream::stream(args),
        args::Command::Bench(args) => bench::bench(args),
        args::Command::Compare(args) => compare::compare(args),
    }
}
