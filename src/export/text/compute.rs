//! Terminal sections about computing: phases, components, layers, operations, threads, experts.

use super::super::table::{Style, Table, bar, sparkline};
use super::super::units::{UNKNOWN, count, known, label, milliseconds, number, percent};
use super::{heading, joined, wrap};
use crate::analyze::Session;
use crate::analyze::moe::Layer;
use crate::analyze::time::{Phase, Row};

/// Rows of a table; the JSON output has all of them.
pub(super) const ROWS: usize = 16;

/// Why there is no rate.
const UNSEEN: &str = "a device computes on when the call has returned: that is the time to give it work; REQUESTS has the speed that \
    clients got";

pub(super) fn phases(session: &Session, style: Style) -> String {
    let time = &session.time;
    if time.summaries == 0 {
        return heading("COMPUTE", "no step_summary: nothing computed, or killed before the first", style);
    }
    let coverage = &session.coverage;
    let aside =
        format!("exact totals of {} steps, {} of them timed", count(coverage.steps), count(coverage.timed_steps));
    let time_is = if time.unseen_parts == 0 { "computing" } else { "submitting" };
    let mut table = Table::new(&["<phase", "steps", "tokens", time_is, "tok/s", "GFLOP/s", "<tok/s over time"]);
    let mut row = |name: &str, phase: &Phase, tokens: fn(&crate::analyze::time::Interval) -> u64| {
        let speeds: Vec<f64> = time
            .intervals
            .iter()
            .map(|i| if i.interval_ms > 0.0 { tokens(i) as f64 / i.interval_ms } else { 0.0 })
            .collect();
        let top = speeds.iter().copied().fold(0.0, f64::max);
        table.row([
            name.to_owned(),
            count(phase.steps),
            count(phase.tokens),
            milliseconds(phase.graph_us / 1e3),
            known(phase.tokens_per_second, number),
            known(phase.gflops_per_s, number),
            sparkline(&speeds, top, 20),
        ]);
    };
    row("prompt", &time.prefill, |i| i.prefill_tokens);
    row("generate", &time.decode, |i| i.decode_tokens);
    let reuse = joined([
        Some(format!("graphs: {} built, {} reused", count(time.graphs_built), count(time.graphs_reused))),
        (time.failed_batches > 0)
            .then(|| format!("{} of {} logged batches FAILED", count(time.failed_batches), count(time.logged_batches))),
    ]);
    let unseen = if time.unseen_parts == 0 { String::new() } else { wrap("  ", "  ", UNSEEN) };
    heading("COMPUTE", &aside, style) + &table.render(style) + &wrap("  ", "  ", &reuse) + &unseen
}

/// Shares add up to the wall time of the timed steps, so barriers and the rest stand among the components.
pub(super) fn components(session: &Session, style: Style) -> String {
    let time = &session.time;
    if time.components.is_empty() {
        return String::new();
    }
    let mut table = rate_table("<component");
    for row in &time.components {
        table.row(rate_row(label(&row.name), row, top_share(time.components.iter())));
    }
    let top = top_share(time.components.iter());
    let mut rest = |name: &str, us: f64, share: Option<f64>| {
        let unknown = || UNKNOWN.to_owned();
        let chart = share.map_or_else(String::new, |s| bar(s / top, 14));
        table.row([
            name.to_owned(),
            unknown(),
            milliseconds(us / 1e3),
            known(share, percent),
            unknown(),
            unknown(),
            chart,
        ]);
    };
    if time.timed_graph_us > 0.0 {
        rest("(barriers)", time.barrier_us, time.barrier_share);
        rest("(other)", time.other_us, time.other_share);
    }
    let aside =
        if time.unseen_parts == 0 { "wall time of the timed steps" } else { "the host's time in the timed steps" };
    heading("TIME BY COMPONENT", aside, style) + &table.render(style)
}

pub(super) fn layers(session: &Session, style: Style) -> String {
    let layers = &session.time.layers;
    if layers.is_empty() {
        return String::new();
    }
    let times: Vec<f64> = layers.iter().map(|row| row.timed_us.unwrap_or(0.0)).collect();
    let top = times.iter().copied().fold(0.0, f64::max);
    if top <= 0.0 {
        return heading("TIME BY LAYER", &format!("{} layers, none of them timed", layers.len()), style);
    }
    let aside = format!("{} layers, first to last: {}", layers.len(), sparkline(&times, top, 40));
    if layers.len() > ROWS {
        // A table of eighty layers tells less than the line above and its extremes.
        let by_time = |a: &&Row<i32>, b: &&Row<i32>| a.timed_us.unwrap_or(0.0).total_cmp(&b.timed_us.unwrap_or(0.0));
        let slow = layers.iter().max_by(by_time);
        let fast = layers.iter().min_by(by_time);
        let name = |row: Option<&Row<i32>>| {
            known(row, |r| format!("layer {} with {}", r.name, known(r.timed_us, |us| milliseconds(us / 1e3))))
        };
        let line = format!("slowest {}, fastest {}", name(slow), name(fast));
        return heading("TIME BY LAYER", &aside, style) + &wrap("  ", "  ", &line);
    }
    let mut table = rate_table("layer");
    layers.iter().for_each(|row| table.row(rate_row(row.name.to_string(), row, top_share(layers.iter()))));
    heading("TIME BY LAYER", &aside, style) + &table.render(style)
}

pub(super) fn ops(session: &Session, style: Style) -> String {
    let ops = &session.time.ops;
    if ops.is_empty() {
        return String::new();
    }
    let mut table = rate_table("<operation");
    ops.iter().take(ROWS).for_each(|row| table.row(rate_row(row.name.clone(), row, top_share(ops.iter()))));
    heading("TIME BY OPERATION", "", style) + &table.render(style) + &more(ops.len(), "operations", style)
}

fn rate_table(name: &str) -> Table {
    Table::new(&[name, "count", "time", "share", "GFLOP/s", "GB/s", "<"])
}

fn rate_row<N>(name: String, row: &Row<N>, top: f64) -> [String; 7] {
    [
        name,
        count(row.count),
        known(row.timed_us, |us| milliseconds(us / 1e3)),
        known(row.share, percent),
        known(row.gflops_per_s, number),
        known(row.gbps, number),
        row.share.map_or_else(String::new, |share| bar(share / top, 14)),
    ]
}

fn top_share<'a, N: 'a>(rows: impl Iterator<Item = &'a Row<N>>) -> f64 {
    let top = rows.filter_map(|row| row.share).fold(0.0, f64::max);
    if top > 0.0 { top } else { 1.0 }
}

pub(super) fn threads(session: &Session, style: Style) -> String {
    let Some(threads) = &session.threads else { return String::new() };
    let top = threads.mean_busy_us.iter().copied().fold(0.0, f64::max);
    let mut table = Table::new(&["thread", "busy/step", "<"]);
    for (i, &us) in threads.mean_busy_us.iter().enumerate().take(ROWS) {
        table.row([i.to_string(), milliseconds(us / 1e3), bar(if top > 0.0 { us / top } else { 0.0 }, 30)]);
    }
    let d = threads.imbalance;
    let aside = format!("largest over mean busy time: median {:.2}, p95 {:.2} ({} steps)", d.p50, d.p95, threads.steps);
    heading("THREADS", &aside, style) + &table.render(style) + &more(threads.mean_busy_us.len(), "threads", style)
}

pub(super) fn moe(session: &Session, style: Style) -> String {
    if session.moe.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["layer", "tokens", "experts", "busiest", "max/mean", "entropy", "idle", "<load by expert"]);
    let row = |layer: &Layer| {
        let loads: Vec<f64> = layer.counts.iter().map(|&n| n as f64).collect();
        let top = loads.iter().copied().fold(0.0, f64::max);
        [
            layer.layer_id.to_string(),
            count(layer.tokens),
            format!("{} of {}", layer.experts_used, layer.counts.len()),
            known(layer.busiest_expert, |e| e.to_string()),
            known(layer.max_over_mean, number),
            known(layer.normalized_entropy, |e| format!("{e:.3}")),
            count(layer.idle_experts),
            sparkline(&loads, top, 24),
        ]
    };
    session.moe.iter().take(ROWS).for_each(|layer| table.row(row(layer)));
    heading("EXPERTS", "max/mean and entropy of 1 are perfect balance", style)
        + &table.render(style)
        + &more(session.moe.len(), "layers", style)
}

/// Rows that the table left out.
pub(super) fn more(rows: usize, what: &str, style: Style) -> String {
    match rows.saturating_sub(ROWS) {
        0 => String::new(),
        n => style.faint(&format!("  ... and {n} more {what}, all of them with --json\n")),
    }
}
