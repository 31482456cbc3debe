//! `stream verify`: everything that a stream claims, checked.

use std::process::ExitCode;

use llama_resource_instrumentation::analyze::stream::Survey;
use llama_resource_instrumentation::export::stream::json as export;
use llama_resource_instrumentation::export::table::wrap;
use llama_resource_instrumentation::export::units::{bytes, count, printable};
use llama_resource_instrumentation::format::stream::Content;
use llama_resource_instrumentation::read::stream::decode;
use serde_json::json;

use super::out::{Out, Stop, quiet};
use super::source::Source;
use super::{args, info};
use crate::terminal::stdout_style;

/// Exit status of a damaged stream.
const DAMAGED: u8 = 2;

/// Problems that the text lists; JSON has more.
const MOST_SHOWN: usize = 20;

/// Runs the subcommand: 0 good, 2 damaged.
pub fn verify(args: &args::Verify) -> Result<ExitCode, String> {
    let mut good = false;
    quiet(check(args, &mut good))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

fn check(args: &args::Verify, good: &mut bool) -> Result<(), Stop> {
    let mut source = Source::open(&args.file, "verifying")?;
    let (mut survey, mut values, mut decoded) = (Survey::default(), Vec::new(), 0_u64);
    let account = source.each(|packet, at| {
        survey.add(packet, at.len);
        if let Content::Tensor { meta, body } = &packet.content {
            values.clear();
            match decode(meta, body, &mut values) {
                Ok(()) => decoded += values.len() as u64,
                Err(e) => survey.undecodable(packet, &e.0),
            }
        }
        Ok(())
    })?;
    let headless = survey.header.is_none();
    // A killed writer leaves its last packet unfinished: nothing that was written before it is lost.
    let torn = account.damaged.iter().filter(|d| d.cut).count() as u64;
    *good = account.damaged_ranges == torn && account.gaps == 0 && survey.n_problems == 0 && !headless;
    let verdict = if *good { "good" } else { "damaged" };
    let mut out = Out::new();
    if args.json {
        let mut json = export::survey(&args.file.display().to_string(), source.len(), &survey, &account, true);
        if let Some(object) = json.as_object_mut() {
            object.insert("verdict".to_owned(), verdict.into());
            object.insert("decoded_bytes".to_owned(), decoded.into());
            object.insert("problems".to_owned(), json!(survey.problems));
            object.insert("n_problems".to_owned(), survey.n_problems.into());
        }
        out.json(&format!("{json:#}"))?;
        return out.finish();
    }
    let style = stdout_style();
    let shown = if *good { style.strong(verdict) } else { style.warning(verdict) };
    out.print(format_args!("{}: {shown}\n", printable(&args.file.display().to_string())))?;
    let end = if survey.end.is_some() { "cleanly ended" } else { "not ended (its writer runs or was killed)" };
    let text = format!(
        "{} packets, {}, {} of values decoded, {end}",
        count(survey.packets),
        bytes(source.len()),
        bytes(decoded)
    );
    out.print(format_args!("{}", wrap("  ", "  ", &text)))?;
    if headless {
        out.print(format_args!("  the header is missing or damaged\n"))?;
    }
    out.print(format_args!("{}", info::damage(&account)))?;
    for p in survey.problems.iter().take(MOST_SHOWN) {
        let line = format!("packet {} `{}`: {}", p.sequence, p.name, p.problem);
        out.print(format_args!("{}", wrap("  ", "    ", &line)))?;
    }
    let more = survey.n_problems.saturating_sub(MOST_SHOWN as u64);
    if more > 0 {
        out.print(format_args!("  and {} more (--json has up to a hundred)\n", count(more)))?;
    }
    if !*good {
        let remedy = "`llama-resource stream recover` copies what is whole into a new stream";
        out.print(format_args!("  {remedy}\n"))?;
    }
    out.finish()
}
