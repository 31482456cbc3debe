//! `export`: a log as files of other programs.

pub mod args;
mod perfetto;

/// Runs the subcommand.
pub fn export(args: &args::Export) -> Result<(), String> {
    match &args.format {
        args::Format::Perfetto(args) => perfetto::perfetto(args),
    }
}
