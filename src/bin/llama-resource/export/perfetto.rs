//! `export perfetto`: a log as a timeline.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use llama_resource_instrumentation::export::gaps;
use llama_resource_instrumentation::export::perfetto::{Export, Written};
use llama_resource_instrumentation::export::units::{bytes, count};
use llama_resource_instrumentation::read::{Account, Log};

use super::args;
use crate::terminal::eprint_line;

/// Bytes that are written at once.
const BUFFER: usize = 1 << 18;

/// Runs the subcommand.
pub fn perfetto(args: &args::Perfetto) -> Result<(), String> {
    let same = matches!((args.log.canonicalize(), args.out.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same {
        return Err(format!("`{}` is both read and written: name another --out", args.out.display()));
    }
    let mut log = Log::open(&args.log).map_err(|e| e.to_string())?;
    let to_stdout = args.out == Path::new("-");
    let failed = |e: io::Error| format!("cannot write `{}`: {e}", args.out.display());
    let out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout().lock()),
        false => Box::new(File::create(&args.out).map_err(failed)?),
    };
    let mut export = Export::new(BufWriter::with_capacity(BUFFER, out));
    let (mut found, mut written) = (false, Ok(()));
    while let Some(entry) = log.next_entry().map_err(|e| e.to_string())? {
        let wanted = args.session.as_ref().is_none_or(|id| {
            log.account().sessions.get(entry.session).is_some_and(|s| s.session_id == *id || s.tracked.contains(id))
        });
        if wanted {
            found = true;
            written = export.add(entry.session, &entry.line);
            if written.is_err() {
                break;
            }
        }
    }
    match written.and_then(|()| export.finish()) {
        Ok(written) => tell(args, log.account(), found, &written),
        // A reader that went away is no error.
        Err(e) if to_stdout && e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// What was written, and what could not be read.
fn tell(args: &args::Perfetto, account: &Account, found: bool, written: &Written) -> Result<(), String> {
    if account.unread_lines() > 0 {
        eprint_line(&gaps::reading(account));
    }
    gaps::of_file(account).iter().for_each(|gap| eprint_line(&gap.text));
    if let (Some(id), false) = (&args.session, found) {
        return Err(format!("no session `{id}` in the log `{}`", args.log.display()));
    }
    if !found {
        eprint_line(&format!("the log `{}` holds no event: the trace is empty", args.log.display()));
    }
    if written.left_out > 0 {
        eprint_line(&format!("{} slices overlap too many others, and are left out", count(written.left_out)));
    }
    let Written { slices, steps, bytes: size, .. } = *written;
    let each = if slices > 0 { format!(", {:.1} bytes each", size as f64 / slices as f64) } else { String::new() };
    eprint_line(&format!(
        "wrote {}: {} slices{each}, {} sampled {}, {}",
        args.out.display(),
        count(slices),
        count(steps),
        if steps == 1 { "step" } else { "steps" },
        bytes(size)
    ));
    Ok(())
}
