//! Slow-down by mode as one HTML page: intervals as drawings, the same figures as tables, the plain server over time.

use super::super::units::{known, number};
use super::plot::{Line, over_time};
use super::svg::{Svg, WIDTH, ticks};
use super::{card, esc, html_table, page};
use crate::analyze::bench::summary::{Row, Summary, Verdict};
use crate::analyze::bench::{Report, shown};

/// Where names end and the scale begins.
const LEFT: f64 = 130.0;
/// Where the scale ends and figures begin.
const RIGHT: f64 = WIDTH - 190.0;
/// Height of a mode.
const STEP: f64 = 30.0;

/// The whole page.
#[must_use]
pub fn render(summary: &Summary<'_>) -> String {
    let report = summary.report;
    let mut out = head(report) + &remarks(summary);
    for phase in report.phases() {
        let rows: Vec<&Row> = summary.rows.iter().filter(|r| r.phase == phase).collect();
        let aside = "Slow-down against the plain server, per cent. Bar: 95 % interval; dot: median; ticks: single pairs; dashed: ceiling.";
        out += &card(phase, aside, &intervals(&rows, report));
    }
    out += &card("All figures", "Per cent of the plain server's time per token.", &table(summary));
    out += &plain(summary);
    page("benchmark", &out)
}

fn head(report: &Report) -> String {
    let (machine, build, settings) = (&report.machine, &report.build, &report.settings);
    let library = build.library.as_ref().and_then(|l| l.sha256.clone());
    let parts = [
        format!("{}, {} cores, {} GiB, Linux {}", machine.cpu, machine.cores, machine.memory_gib, machine.kernel),
        format!(
            "llama.cpp {}, -t {}",
            build.server.version.as_deref().unwrap_or("of unknown version"),
            settings.threads
        ),
        build.model.name.clone(),
        format!("library {}", known(library, |l| l.chars().take(12).collect())),
        format!("up to {} rounds of {} pairs", settings.rounds, settings.pairs_per_round),
        format!("{}, {} s", report.created, report.took_s),
        format!("load average {:.1} before, {:.1} after", machine.load_before, machine.load_after),
    ];
    let line: Vec<String> = parts.iter().map(|p| esc(p)).collect();
    format!("<header>\n<h1>What the library costs llama-server</h1>\n<p>{}</p>\n</header>\n", line.join(" &middot; "))
}

fn remarks(summary: &Summary<'_>) -> String {
    let item = |class: &str, text: &str| format!("<li class=\"{class}\">{}</li>\n", esc(text));
    let mut list = String::new();
    for row in summary.over() {
        let low = row.judged.map_or(row.median, |i| i.low);
        list +=
            &item("loss", &format!("{}, {}: over its ceiling, {low:+.1} % or more beyond doubt", row.mode, row.phase));
    }
    for text in &summary.warnings {
        list += &item("loss", text);
    }
    for missing in &summary.report.not_measured {
        list += &item("note", &format!("{}: not measured: {}", missing.mode, missing.reason));
    }
    for note in &summary.report.notes {
        list += &item("note", note);
    }
    if list.is_empty() { list } else { card("Remarks", "", &format!("<ul>\n{list}</ul>\n")) }
}

/// One line a mode, all of a phase on one scale.
fn intervals(rows: &[&Row], report: &Report) -> String {
    // The scale fits intervals, ceilings and the middle half of the pairs; single pairs may fly beyond it.
    let reach = |r: &&Row| {
        let interval = r.interval.map_or(0.0, |i| i.reach());
        interval.max(r.ceiling.unwrap_or(0.0)).max(r.quartiles[0].abs()).max(r.quartiles[1].abs()).max(r.median.abs())
    };
    let most = rows.iter().map(reach).fold(0.5, f64::max) * 1.1;
    let x = |v: f64| LEFT + (v.clamp(-most, most) + most) / (2.0 * most) * (RIGHT - LEFT);
    let bottom = rows.len() as f64 * STEP + 8.0;
    let mut svg = Svg::new(WIDTH, bottom + 20.0);
    for tick in ticks(most, 4) {
        for v in if tick == 0.0 { vec![0.0] } else { vec![-tick, tick] } {
            svg.line([x(v), 4.0, x(v), bottom], "grid");
            svg.text(x(v), bottom + 14.0, "m", &if v == 0.0 { "0".to_owned() } else { format!("{v:+} %") });
        }
    }
    svg.line([x(0.0), 4.0, x(0.0), bottom], "zero");
    for (i, row) in rows.iter().enumerate() {
        let y = i as f64 * STEP + 8.0 + STEP / 2.0;
        let colour = if row.verdict == Verdict::Over { "f6" } else { "f0" };
        svg.text(LEFT - 10.0, y + 4.0, "e", name(row));
        for pair in report.pairs.iter().filter(|p| p.mode == row.mode && p.phase == row.phase) {
            svg.rect(
                [x(pair.percent()) - 0.75, y - 9.0, 1.5, 18.0],
                "fx",
                &format!("{:+.2} %, round {}", pair.percent(), pair.round + 1),
            );
        }
        if let Some(i) = row.interval {
            let tip = format!("{}: {:+.2} .. {:+.2} %", row.mode, i.low, i.high);
            svg.shade([x(i.low), y - 4.0, x(i.high) - x(i.low), 8.0], colour, 0.55, &tip);
        }
        svg.dot(x(row.median), y, colour, &format!("{}: median {:+.2} %", row.mode, row.median));
        if let Some(ceiling) = row.ceiling {
            svg.line([x(ceiling), y - 11.0, x(ceiling), y + 11.0], "mark");
        }
        let text = known(row.interval, |i| format!("{:+.2} .. {:+.2} %", i.low, i.high));
        svg.text(RIGHT + 12.0, y + 4.0, "", &text);
    }
    svg.finish("slow-down by mode: medians and 95 % intervals")
}

fn name(row: &Row) -> &str {
    shown(&row.mode)
}

fn table(summary: &Summary<'_>) -> String {
    let row = |r: &Row| {
        let range = |i: crate::analyze::bench::statistics::Interval| format!("{:+.2} .. {:+.2}", i.low, i.high);
        vec![
            name(r).to_owned(),
            r.phase.clone(),
            format!("{:+.2}", r.median),
            known(r.interval, range),
            known(r.judged, range),
            format!("{:+.1} .. {:+.1}", r.quartiles[0], r.quartiles[1]),
            number(r.ms_per_token),
            format!("{} in {}", r.pairs, r.rounds),
            known(r.ceiling, |c| c.to_string()),
            r.verdict.label().to_owned(),
        ]
    };
    let columns = [
        "<mode",
        "<phase",
        "median",
        "95 % interval",
        "judged by",
        "quartiles",
        "ms/token",
        "pairs, rounds",
        "ceiling",
        "<verdict",
    ];
    html_table(&columns, &summary.rows.iter().map(row).collect::<Vec<_>>())
}

/// The plain server's times against their median: what the machine did meanwhile.
fn plain(summary: &Summary<'_>) -> String {
    let report = summary.report;
    let line = |d: &crate::analyze::bench::summary::Drift| {
        let of_phase = report.pairs.iter().filter(|p| p.phase == d.phase);
        let mut points: Vec<(f64, f64)> = of_phase.map(|p| (p.at_s, p.plain_ms / d.plain_ms * 100.0)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name: d.phase.clone(), points }
    };
    let lines: Vec<Line> = summary.drift.iter().map(line).collect();
    let all = || lines.iter().flat_map(|l| &l.points);
    let (end, top) = (all().map(|p| p.0).fold(1.0, f64::max), all().map(|p| p.1).fold(100.0, f64::max));
    let rows: Vec<Vec<String>> =
        summary.drift.iter().map(|d| vec![d.phase.clone(), number(d.plain_ms), format!("{:+.1}", d.percent)]).collect();
    let chart = over_time(&lines, end, top, |v| format!("{v:.0} %"), "time of the plain server over the run");
    let aside = "Its time per token in per cent of its own median, over the run. Drift: second half against the first.";
    card("The plain server", aside, &(chart + &html_table(&["<phase", "ms/token", "drift %"], &rows)))
}
