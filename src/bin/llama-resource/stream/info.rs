//! `stream info`: what a stream holds.

use std::path::Path;

use llama_resource_instrumentation::analyze::stream::Survey;
use llama_resource_instrumentation::export::stream::{json as export, text};
use llama_resource_instrumentation::export::units::{bytes, count};
use llama_resource_instrumentation::read::stream::{Damage, StreamAccount};
use serde_json::{Value, json};

use super::args;
use super::out::{Out, Stop};
use super::source::Source;
use crate::terminal::stdout_style;

/// Damaged places, and gaps, that the text lists; JSON has more.
const MOST_SHOWN: usize = 20;

/// Runs the subcommand.
pub fn info(args: &args::Info) -> Result<(), Stop> {
    let mut source = Source::open_any(&args.file, "reading")?;
    if source.is_legacy() {
        return legacy(args, &mut source);
    }
    let mut survey = Survey::default();
    let account = source.each_described(|packet, at| {
        survey.add(packet, at.len);
        Ok(())
    })?;
    let all = !source.is_long();
    let mut out = Out::new();
    if args.json {
        let json = export::survey(&args.file.display().to_string(), source.len(), &survey, &account, all);
        out.json(&format!("{json:#}"))?;
    } else {
        out.print(format_args!("{}", as_text(&args.file, source.len(), &survey, &account, all)))?;
    }
    out.finish()
}

fn as_text(file: &Path, len: u64, survey: &Survey, account: &StreamAccount, all: bool) -> String {
    let style = stdout_style();
    let inventory = &survey.inventory;
    let size = format!("{}, {} packets", bytes(len), count(survey.packets));
    let mut out = format!("{}  {}\n", style.heading("STREAM"), style.strong(&printable(file)));
    let mut fields = vec![("Size", size)];
    fields.extend(survey.header.as_ref().map(text::origin).unwrap_or_default());
    if survey.header.is_none() {
        fields.push(("Header", "missing or damaged".to_owned()));
    }
    fields.push(("Ended", ended(survey, account)));
    let holds = format!(
        "{} tensors, {} steps, {} tokens, {} sequences, {} requests",
        inventory.tensors().len(),
        count(inventory.steps()),
        count(inventory.tokens()),
        inventory.sequences(),
        count(inventory.requests())
    );
    fields.push(("Holds", holds));
    fields.push((
        "Also",
        format!("sampled tokens: {}, checkpoints: {}", count(survey.sampled_tokens), count(survey.checkpoints)),
    ));
    if !all {
        let only = "only what packets say of themselves; `stream verify` checks values, too".to_owned();
        fields.push(("Checked", only));
    }
    out += &text::fields(&fields);
    if let Some(ledger) = survey.ledger() {
        out += &format!("\n{}\n{}", style.heading("ACCOUNT"), text::ledger(&ledger, style));
    }
    if !inventory.tensors().is_empty() {
        out += &format!("\n{}\n{}", style.heading("CODECS"), text::codecs(inventory.tensors(), style));
    }
    let damage = damage(account);
    if !damage.is_empty() {
        out += &format!("\n{}\n{damage}", style.warning("DAMAGE"));
    }
    out
}

fn ended(survey: &Survey, account: &StreamAccount) -> String {
    let resumed = match survey.resumed {
        0 => String::new(),
        1 => ", resumed once".to_owned(),
        n => format!(", resumed {n} times"),
    };
    if survey.end.is_some() {
        return format!("cleanly{resumed}");
    }
    let cut = account.damaged.iter().any(|d| d.cut);
    let last = if cut { ", in the middle of a packet" } else { "" };
    format!("no: the writer still runs, or was killed{last}{resumed}")
}

/// What could not be read, a line each.
pub fn damage(account: &StreamAccount) -> String {
    let mut lines: Vec<String> = account.damaged.iter().take(MOST_SHOWN).map(damage_line).collect();
    lines.extend(account.missing.iter().take(MOST_SHOWN).map(|g| match g.missing {
        1 => format!("packet {} is missing before byte {}", g.first, count(g.offset)),
        n => format!("{} packets are missing before byte {}, from packet {} on", count(n), count(g.offset), g.first),
    }));
    let listed = lines.len() as u64;
    let more = (account.damaged_ranges + account.gaps).saturating_sub(listed);
    if more > 0 {
        lines.push(format!("and {} more", count(more)));
    }
    lines.iter().map(|l| llama_resource_instrumentation::export::table::wrap("  ", "    ", l)).collect()
}

fn damage_line(damage: &Damage) -> String {
    format!("bytes {} to {}: {}", count(damage.at.offset), count(damage.at.end().saturating_sub(1)), damage.reason)
}

fn printable(path: &Path) -> String {
    llama_resource_instrumentation::export::units::printable(&path.display().to_string())
}

/// The older system's packets say nothing but their names.
fn legacy(args: &args::Info, source: &mut Source) -> Result<(), Stop> {
    let mut names = std::collections::BTreeMap::<String, (u64, u64)>::new();
    let account = source.each_legacy(|packet| {
        let entry = names.entry(packet.name.to_owned()).or_default();
        *entry = (entry.0 + 1, entry.1 + packet.data.len() as u64);
        Ok(())
    })?;
    let mut out = Out::new();
    if args.json {
        let tensors: Vec<Value> =
            names.iter().map(|(n, (p, b))| json!({"name": n, "packets": p, "stored_bytes": b})).collect();
        let json = json!({
            "file": args.file.display().to_string(), "bytes": source.len(), "form": "legacy", "header": null, "clean_end": null,
            "account": null, "packets": account.packets, "tensors": tensors, "damage": account.damaged,
        });
        out.json(&format!("{json:#}"))?;
    } else {
        let style = stdout_style();
        out.print(format_args!("{}  {}\n", style.heading("STREAM"), style.strong(&printable(&args.file))))?;
        let fields = [
            (
                "Form",
                "of the older system: packets say neither type nor shape; `stream import` makes one of ours of it"
                    .to_owned(),
            ),
            (
                "Size",
                format!(
                    "{}, {} packets, {} names",
                    bytes(source.len()),
                    count(account.packets),
                    count(names.len() as u64)
                ),
            ),
        ];
        out.print(format_args!("{}{}", text::fields(&fields), damage(&account)))?;
    }
    out.finish()
}
