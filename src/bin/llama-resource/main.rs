//! The companion program: launches, checks, reports. One subcommand a file.

mod args;
mod bench;
mod compare;
mod doctor;
mod export;
mod library;
mod report;
mod run;
mod serve;
#[expect(unsafe_code, reason = "signal handlers need libc")]
mod signals;
mod stream;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        // Their exit status 2 says that something became slower; a mistyped flag must not say so.
        Err(error) if error.use_stderr() && std::env::args().nth(1).is_some_and(|a| a == "bench" || a == "compare") => {
            let _ = error.print();
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    match dispatch(&cli.command) {
        Ok(code) => code,
        Err(message) => {
            terminal::eprint(&format!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &args::Command) -> Result<ExitCode, String> {
    match command {
        args::Command::Report(args) => report::report(args).map(|()| ExitCode::SUCCESS),
        args::Command::Run(args) => run::run(args),
        args::Command::Serve(args) => serve::serve(args),
        args::Command::Doctor(args) => doctor::doctor(args),
        args::Command::Export(args) => export::export(args).map(|()| ExitCode::SUCCESS),
        args::Command::Stream(args) => stream::stream(args),
        args::Command::Bench(args) => bench::bench(args),
        args::Command::Compare(args) => compare::compare(args),
    }
}
