//! Slow-down by mode, and two results against each other, for a terminal.

use super::super::table::{Style, Table, shorten, wrap};
use super::super::units::{known, number, printable};
use super::heading;
use crate::analyze::bench::compare::{Change, Comparison, Finding};
use crate::analyze::bench::statistics::Interval;
use crate::analyze::bench::summary::{Summary, Verdict};
use crate::analyze::bench::{Report, shown};

/// One result.
#[must_use]
pub fn render(summary: &Summary<'_>, style: Style) -> String {
    let report = summary.report;
    let mut out = head(report, style);
    out += &heading("SLOW-DOWN", &format!("per cent of the plain one's; {}", report.settings.method.label()), style);
    let mut table = Table::new(&["<mode", "<phase", "median", "95 % interval", "ceiling", "<verdict"]);
    for r in &summary.rows {
        table.row([
            shown(&r.mode).to_owned(),
            r.phase.clone(),
            signed(r.median),
            known(r.interval, range),
            known(r.ceiling, |c| c.to_string()),
            r.verdict.label().to_owned(),
        ]);
    }
    out += &if table.is_empty() { "  nothing was measured\n".to_owned() } else { table.render(style) };
    for r in summary.rows.iter().filter(|r| r.verdict == Verdict::Over) {
        let low = r.judged.map_or(r.median, |i| i.low);
        let text = format!(
            "{}, {}: {:+.1} % or more beyond doubt, ceiling {} %",
            r.mode,
            r.phase,
            low,
            known(r.ceiling, |c| c.to_string())
        );
        out += &style.warning(&wrap("  OVER ITS CEILING: ", "    ", &text));
    }
    let mut table = Table::new(&["<phase", "ms/token", "drift %"]);
    for d in &summary.drift {
        table.row([d.phase.clone(), number(d.plain_ms), signed(d.percent)]);
    }
    if !table.is_empty() {
        out += &heading("PLAIN SERVER", "second half of the run against the first", style);
        out += &table.render(style);
    }
    out + &remarks(summary, style)
}

fn head(report: &Report, style: Style) -> String {
    let (machine, build, settings) = (&report.machine, &report.build, &report.settings);
    let first = format!(
        "{}, {} cores, {} GiB, Linux {}, -t {}",
        machine.cpu, machine.cores, machine.memory_gib, machine.kernel, settings.threads
    );
    let version = build.server.version.as_deref().unwrap_or("of unknown version");
    let library =
        build.library.as_ref().and_then(|l| l.sha256.as_deref()).map(|s| s.chars().take(12).collect::<String>());
    let took = format!(
        "{}, {} s, up to {} rounds, pairs in each: {}; load average {:.1} before, {:.1} after",
        report.created,
        report.took_s,
        settings.rounds,
        settings.pairs_per_round,
        machine.load_before,
        machine.load_after
    );
    style.strong(&shorten(&printable(&first), 80))
        + "\n"
        + &wrap("", "", &format!("llama.cpp {version}, {}", build.model.name))
        + &wrap("", "", &format!("library {}", known(library, |l| l)))
        + &style.faint(&wrap("", "", &took))
}

fn remarks(summary: &Summary<'_>, style: Style) -> String {
    let mut out = String::new();
    let missing = summary.report.not_measured.iter().map(|m| format!("{}: not measured: {}", m.mode, m.reason));
    let all: Vec<String> = missing.chain(summary.report.notes.iter().cloned()).collect();
    if !all.is_empty() || !summary.warnings.is_empty() {
        out += &heading("REMARKS", "", style);
    }
    for warning in &summary.warnings {
        out += &style.warning(&wrap("  ! ", "    ", warning));
    }
    for remark in &all {
        out += &wrap("  - ", "    ", remark);
    }
    out
}

/// Two results.
#[must_use]
pub fn comparison(c: &Comparison, style: Style) -> String {
    let mut out = String::new();
    for mismatch in &c.mismatches {
        out += &style.warning(&wrap("! ", "  ", mismatch));
    }
    for line in &c.under_test {
        out += &wrap("", "  ", line);
    }
    out += &heading("CHANGE", "of the slow-down against the plain server, per cent", style);
    let mut table = Table::new(&["<mode", "<phase", "then", "now", "95 % of change", "<finding"]);
    for change in &c.changes {
        table.row([
            shown(&change.mode).to_owned(),
            change.phase.clone(),
            signed(change.base),
            signed(change.new),
            known(change.interval, range),
            finding(change),
        ]);
    }
    out += &if table.is_empty() { "  they have nothing in common\n".to_owned() } else { table.render(style) };
    for line in &c.missing {
        out += &wrap("  - ", "    ", line);
    }
    out += &heading("PLAIN SERVER", "then and now, not judged", style);
    let mut table = Table::new(&["<phase", "then, ms/token", "now", "slower by %"]);
    for p in &c.plain {
        table.row([p.phase.clone(), number(p.base_ms), number(p.new_ms), signed(p.percent)]);
    }
    out += &table.render(style);
    let said = format!(
        "{} regressions, {} improved, {} without a difference, {} undecided at a threshold of {} %",
        c.count(Finding::Regression),
        c.count(Finding::Improved),
        c.count(Finding::NoDifference),
        c.count(Finding::Undecided),
        c.threshold
    );
    let said = wrap("", "", &said);
    out + "\n" + &if c.count(Finding::Regression) > 0 { style.warning(&said) } else { said }
}

fn finding(change: &Change) -> String {
    match (change.finding, change.interval) {
        (Finding::Control, _) => "(A/A)".to_owned(),
        (Finding::Regression, _) => "REGRESSION".to_owned(),
        (Finding::Improved, _) => "improved".to_owned(),
        (Finding::NoDifference, Some(i)) => format!("none seen (< {:.2} %)", i.reach()),
        (Finding::NoDifference, None) => "none seen".to_owned(),
        (Finding::Undecided, _) => "undecided".to_owned(),
    }
}

fn signed(value: f64) -> String {
    format!("{value:+.2}")
}

fn range(interval: Interval) -> String {
    format!("{:+.2} .. {:+.2}", interval.low, interval.high)
}
