//! Sections about computing: throughput, time by component, layer and operation.

use super::super::units::{UNKNOWN, bytes, count, count_short, known, label, milliseconds, number, percent};
use super::plot::{Line, columns, over_time, stacked};
use super::{bar, card, html_table};
use crate::analyze::Session;
use crate::analyze::time::{Interval, Row};

pub(super) fn throughput(session: &Session) -> String {
    let time = &session.time;
    if time.summaries == 0 {
        let aside = "No step_summary in this log: nothing was computed, or the host was killed before the first one.";
        return card("Throughput", aside, "");
    }
    let line = |name: &str, tokens: fn(&Interval) -> u64| Line {
        name: name.to_owned(),
        points: time
            .intervals
            .iter()
            .filter(|i| i.interval_ms > 0.0)
            .map(|i| (i.t_s, tokens(i) as f64 * 1e3 / i.interval_ms))
            .collect(),
    };
    let chart = |line: Line| {
        let top = line.points.iter().map(|p| p.1).fold(0.0, f64::max);
        format!(
            "<h3>{}</h3>\n{}",
            super::esc(&line.name),
            over_time(&[line], session.session.duration_s, top, number, "tokens per second over time")
        )
    };
    let phases = [("reading prompts", &time.prefill), ("generating", &time.decode)];
    let rows: Vec<Vec<String>> = phases
        .iter()
        .map(|(name, p)| {
            vec![
                (*name).to_owned(),
                count(p.steps),
                count(p.tokens),
                milliseconds(p.graph_us / 1e3),
                known(p.tokens_per_second, number),
                known(p.gflops_per_s, number),
            ]
        })
        .collect();
    let (time_is, rates) = match time.unseen_parts {
        0 => ("computing", "Rates in the table count computing time only, those in the charts wall time."),
        _ => (
            "submitting",
            "A device computes on when the call has returned, so the table has no rates; the charts have wall time.",
        ),
    };
    let table = html_table(&["<phase", "steps", "tokens", time_is, "tok/s", "GFLOP/s"], &rows);
    let failed = match time.failed_batches {
        0 => String::new(),
        n => format!(" {} of {} logged batches failed.", count(n), count(time.logged_batches)),
    };
    let aside =
        format!("{rates} Graphs: {} built, {} reused.{failed}", count(time.graphs_built), count(time.graphs_reused));
    let charts = chart(line("Prompt tokens a second", |i| i.prefill_tokens))
        + &chart(line("Generated tokens a second, all sequences together", |i| i.decode_tokens));
    card("Throughput", &aside, &(table + &charts))
}

pub(super) fn components(session: &Session) -> String {
    let time = &session.time;
    if time.components.is_empty() {
        return String::new();
    }
    let whole = "timed steps".to_owned();
    let mut parts: Vec<(String, String, f64)> =
        time.components.iter().filter_map(|row| Some((whole.clone(), label(&row.name), row.timed_us?))).collect();
    if time.timed_graph_us > 0.0 {
        parts.push((whole.clone(), "barriers".to_owned(), time.barrier_us));
        parts.push((whole, "other".to_owned(), time.other_us));
    }
    let top = top_share(&time.components);
    let mut rows: Vec<Vec<String>> = time.components.iter().map(|row| rate_row(label(&row.name), row, top)).collect();
    if time.timed_graph_us > 0.0 {
        rows.push(rest_row("(barriers)", time.barrier_us, time.barrier_share, top));
        rows.push(rest_row("(other)", time.other_us, time.other_share, top));
    }
    let aside = "Wall time of the timed steps on compute thread 0. Barriers: waiting for the other threads between operations. Other: \
                 starting the threads, scheduling, copies between backends.";
    card(
        "Time by component",
        aside,
        &(stacked(&parts, |us| milliseconds(us / 1e3)) + &html_table(&RATES_OF_COMPONENTS, &rows)),
    )
}

pub(super) fn layers(session: &Session) -> String {
    let layers = &session.time.layers;
    if layers.iter().all(|row| row.timed_us.is_none()) {
        return String::new();
    }
    let value = |row: &Row<i32>| {
        let us = row.timed_us.unwrap_or(0.0);
        let rates = format!("{} GFLOP/s, {} GB/s", known(row.gflops_per_s, number), known(row.gbps, number));
        let tip = format!("layer {}: {} ({}), {rates}", row.name, milliseconds(us / 1e3), known(row.share, percent));
        (row.name.to_string(), us, tip)
    };
    let values: Vec<_> = layers.iter().map(value).collect();
    let chart = columns(&values, |us| milliseconds(us / 1e3), "time of each layer");
    card("Time by layer", "Over all timed steps.", &chart)
}

pub(super) fn ops(session: &Session) -> String {
    let ops = &session.time.ops;
    if ops.is_empty() {
        return String::new();
    }
    let top = top_share(ops);
    let rows: Vec<Vec<String>> = ops.iter().map(|row| rate_row(row.name.clone(), row, top)).collect();
    let aside = "Counts, arithmetic and bytes are of all steps; time and rates of the timed ones.";
    card("Time by operation", aside, &html_table(&RATES_OF_OPS, &rows))
}

const RATES_OF_COMPONENTS: [&str; 9] =
    ["<component", "count", "FLOP", "bytes", "time", "share", "GFLOP/s", "GB/s", "<"];
const RATES_OF_OPS: [&str; 9] = ["<operation", "count", "FLOP", "bytes", "time", "share", "GFLOP/s", "GB/s", "<"];

fn rate_row<N>(name: String, row: &Row<N>, top: f64) -> Vec<String> {
    vec![
        name,
        count(row.count),
        count_short(row.flops),
        bytes(row.bytes),
        known(row.timed_us, |us| milliseconds(us / 1e3)),
        known(row.share, percent),
        known(row.gflops_per_s, number),
        known(row.gbps, number),
        row.share.map_or_else(String::new, |share| bar(share / top)),
    ]
}

fn rest_row(name: &str, us: f64, share: Option<f64>, top: f64) -> Vec<String> {
    let mut row =
        vec![name.to_owned(), UNKNOWN.to_owned(), UNKNOWN.to_owned(), UNKNOWN.to_owned(), milliseconds(us / 1e3)];
    row.extend([known(share, percent), UNKNOWN.to_owned(), UNKNOWN.to_owned()]);
    row.push(share.map_or_else(String::new, |share| bar(share / top)));
    row
}

fn top_share<N>(rows: &[Row<N>]) -> f64 {
    let top = rows.iter().filter_map(|row| row.share).fold(0.0, f64::max);
    if top > 0.0 { top } else { 1.0 }
}
