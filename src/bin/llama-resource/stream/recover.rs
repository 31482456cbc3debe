//! `stream recover`: every good packet into a new stream.

use std::fs::File;
use std::os::unix::fs::FileExt;

use llama_resource_instrumentation::analyze::stream::Survey;
use llama_resource_instrumentation::export::stream::Rewrite;
use llama_resource_instrumentation::export::units::{bytes, count};
use llama_resource_instrumentation::format::stream::Content;
use llama_resource_instrumentation::read::stream::Location;
use serde_json::{Map, json};

use super::out::Stop;
use super::source::Source;
use super::{args, info, refuse_same};
use crate::terminal;

/// Runs the subcommand.
pub fn recover(args: &args::Recover) -> Result<(), Stop> {
    refuse_same(&args.file, &args.out)?;
    let mut source = Source::open(&args.file, "recovering")?;
    let failed = |e| Stop::Failed(format!("cannot read `{}`: {e}", args.file.display()));
    let file = File::open(&args.file).map_err(failed)?;
    let (mut survey, mut copy, mut buffer) = (Survey::default(), None::<Rewrite>, Vec::new());
    let account = source.each(|packet, at| {
        survey.add(packet, at.len);
        // They tell places and totals of the file as it was; the new file gets its own.
        if matches!(packet.content, Content::Index(_) | Content::End(_) | Content::Account(_) | Content::Checkpoint(_))
        {
            return Ok(());
        }
        let mut rewrite = match copy.take() {
            Some(rewrite) => rewrite,
            None if matches!(packet.content, Content::Header(_)) => Rewrite::open(&args.out)?,
            None => Rewrite::with_header(
                &args.out,
                &json!({ "library_version": env!("CARGO_PKG_VERSION"), "header_lost": true }),
            )?,
        };
        read(&file, at, &mut buffer).map_err(failed)?;
        rewrite.copy(&mut buffer)?;
        copy = Some(rewrite);
        Ok(())
    })?;
    let Some(copy) = copy else {
        return Err(Stop::Failed(format!("`{}` holds no whole packet: nothing can be recovered", args.file.display())));
    };
    let mut more = Map::new();
    more.insert(
        "recovered".to_owned(),
        json!({
            "damaged_ranges": account.damaged_ranges, "damaged_bytes": account.damaged_bytes,
            "missing_packets": account.missing_packets, "was_ended": survey.end.is_some(),
        }),
    );
    let kept = copy.packets();
    copy.finish(&survey.recovered_ledger(), more)?;
    terminal::eprint_line(&format!(
        "{} packets copied to `{}`; {} damaged places ({}) and {} missing packets left out",
        count(kept),
        args.out.display(),
        count(account.damaged_ranges),
        bytes(account.damaged_bytes),
        count(account.missing_packets)
    ));
    let lost = info::damage(&account);
    if !lost.is_empty() {
        terminal::eprint(lost.trim_end());
    }
    Ok(())
}

/// The bytes of a packet as they are in the file.
fn read(file: &File, at: Location, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    buffer.clear();
    buffer.resize(usize::try_from(at.len).unwrap_or(usize::MAX), 0);
    file.read_exact_at(buffer, at.offset)
}
