//! `compare`: two results of `bench` against each other.

use std::process::ExitCode;

use llama_resource_instrumentation::analyze::bench::compare::{Comparison, Finding};
use llama_resource_instrumentation::export::text;

use crate::bench;
use crate::terminal::{eprint_line, print, stdout_style};

/// Exit status when something became slower.
const REGRESSION: u8 = 2;
/// Exit status when the two should not be compared.
const REFUSED: u8 = 3;

/// Runs the subcommand.
pub fn compare(args: &bench::args::Compare) -> Result<ExitCode, String> {
    let (base, new) = (bench::read(&args.base)?, bench::read(&args.new)?);
    let comparison = Comparison::of(&base, &new, args.threshold);
    if !args.force && !comparison.mismatches.is_empty() {
        eprint_line("refused: these are results of different things; --force compares them all the same");
        comparison.mismatches.iter().for_each(|m| eprint_line(&format!("  {m}")));
        return Ok(ExitCode::from(REFUSED));
    }
    if args.json {
        let json =
            serde_json::to_string_pretty(&comparison).map_err(|e| format!("cannot write the result as JSON: {e}"))?;
        print(&(json + "\n"))?;
    } else {
        print(&text::bench::comparison(&comparison, stdout_style()))?;
    }
    Ok(if comparison.count(Finding::Regression) > 0 { ExitCode::from(REGRESSION) } else { ExitCode::SUCCESS })
}
