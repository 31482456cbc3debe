//! `stream ls`: the tensors of a stream.

use llama_resource_instrumentation::analyze::stream::{Globs, Inventory};
use llama_resource_instrumentation::export::stream::text;

use super::args;
use super::out::{Out, Stop};
use super::source::Source;
use crate::terminal::stdout_style;

/// Runs the subcommand.
pub fn ls(args: &args::Ls) -> Result<(), Stop> {
    let mut inventory = Inventory::default();
    Source::open(&args.file, "reading")?.each_description(&Globs::new(&args.pattern), |name, meta, at| {
        inventory.add(name, meta, at.len);
        Ok(())
    })?;
    let tensors = inventory.tensors();
    if tensors.is_empty() && !Globs::new(&args.pattern).is_all() {
        return Err(Stop::Failed(format!(
            "no tensor of `{}` fits `{}`: `stream ls` lists them",
            args.file.display(),
            args.pattern
        )));
    }
    let mut out = Out::new();
    if args.json {
        let json = serde_json::to_string_pretty(tensors).map_err(|e| format!("cannot write the list as JSON: {e}"))?;
        out.json(&json)?;
    } else {
        out.print(format_args!("{}", text::tensors(tensors.iter(), stdout_style())))?;
    }
    out.finish()
}
