//! Terminal sections about serving: requests, KV cache, the machine.

use super::super::table::{Style, Table, sparkline};
use super::super::units::{UNKNOWN, bytes, count, known, milliseconds, number, percent};
use super::compute::ROWS;
use super::{heading, joined};
use crate::analyze::Session;
use crate::analyze::requests::Totals;
use crate::analyze::stats::{Distribution, share};

pub(super) fn requests(session: &Session, style: Style) -> String {
    let t = &session.requests.totals;
    if t.requests == 0 {
        return heading("REQUESTS", "none in this log", style);
    }
    let outcomes: Vec<String> = t.outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
    let unended = t.requests.saturating_sub(t.ended);
    let aside = joined([
        Some(format!("{} seen", count(t.requests))),
        (!outcomes.is_empty()).then(|| outcomes.join(", ")),
        (unended > 0).then(|| format!("{unended} without an end in the log")),
        Some(format!("at most {} at once", t.concurrent_peak)),
    ]);
    let mut out = heading("REQUESTS", &aside, style);
    let mut table =
        Table::new(&["id", "slot", "prompt", "cached", "out", "ttft", "ms/token p50/p95/p99", "tok/s", "<end"]);
    let all = &session.requests.requests;
    for r in all.iter().take(ROWS) {
        let times = r.inter_token_ms.as_ref();
        table.row([
            r.request_id.to_string(),
            r.seq_id.to_string(),
            known(r.prompt_tokens, count),
            known(r.cached_tokens, count),
            known(r.generated_tokens, count),
            known(r.ttft_ms, milliseconds),
            known(times, |t| [t.p50, t.p95, t.p99].map(number).join(" / ")),
            known(r.tokens_per_second, number),
            r.stop_reason.as_ref().or(r.outcome.as_ref()).cloned().unwrap_or_else(|| UNKNOWN.to_owned()),
        ]);
    }
    out += &table.render(style);
    out += &super::compute::more(all.len(), "requests", style);
    if t.ended == 0 {
        return out;
    }
    out.push('\n');
    out + &distributions(t, style) + &totals_line(t)
}

fn distributions(t: &Totals, style: Style) -> String {
    let mut table = Table::new(&["<over requests", "n", "mean", "p50", "p95", "p99", "max"]);
    let mut row = |name: &str, d: Option<Distribution>, f: fn(f64) -> String| {
        let cell = |v: fn(&Distribution) -> f64| known(d.as_ref(), |d| f(v(d)));
        let n = known(d.as_ref(), |d| count(d.n));
        table.row([
            name.to_owned(),
            n,
            cell(|d| d.mean),
            cell(|d| d.p50),
            cell(|d| d.p95),
            cell(|d| d.p99),
            cell(|d| d.max),
        ]);
    };
    row("time to first token", t.ttft_ms, milliseconds);
    if t.queue_ms.is_some() {
        row("waiting for a slot", t.queue_ms, milliseconds);
    }
    row("waiting for a batch", t.wait_ms, milliseconds);
    row("whole request", t.duration_ms, milliseconds);
    row("tokens per second", t.tokens_per_second, number);
    if t.inter_token_ms.is_some() {
        let name = if t.inter_token_complete { "between tokens" } else { "between tokens (logged ones)" };
        row(name, t.inter_token_ms, milliseconds);
    }
    table.render(style)
}

fn totals_line(t: &Totals) -> String {
    let mean = t.inter_token_mean_ms.map(|ms| format!("{} between tokens on average", milliseconds(ms)));
    let drafts = t.drafted.filter(|&n| n > 0).map(|drafted| {
        let accepted = t.accepted.unwrap_or(0);
        let of_them = share(accepted as f64, drafted as f64).map_or_else(|| UNKNOWN.to_owned(), percent);
        format!("{} drafted, {of_them} of them accepted", count(drafted))
    });
    let parts = joined([
        Some(format!("{} prompt tokens", count(t.prompt_tokens))),
        t.cached_share.map(|s| format!("{} of them cached", percent(s))),
        Some(format!("{} generated", count(t.generated_tokens))),
        drafts,
        mean,
    ]);
    super::wrap("  ", "  ", &parts)
}

pub(super) fn kv(session: &Session, style: Style) -> String {
    if session.kv.caches.is_empty() {
        return heading("KV CACHE", "no kv_cache_usage in this log", style);
    }
    let operations: Vec<String> = session.kv.logged_operations.iter().map(|(op, n)| format!("{n} {op}")).collect();
    let aside =
        if operations.is_empty() { String::new() } else { format!("logged operations: {}", operations.join(", ")) };
    let mut table = Table::new(&["context", "cells", "last", "peak", "full", "<use over time"]);
    for cache in &session.kv.caches {
        let used: Vec<f64> = cache.series.iter().filter_map(|p| p.used_cells).map(|n| n as f64).collect();
        table.row([
            cache.context_id.to_string(),
            count(cache.size_cells),
            known(cache.last_used_cells, count),
            known(cache.peak_used_cells, count),
            known(cache.peak_share, percent),
            sparkline(&used, cache.size_cells as f64, 32),
        ]);
    }
    heading("KV CACHE", &aside, style) + &table.render(style)
}

pub(super) fn host(session: &Session, style: Style) -> String {
    let Some(host) = &session.host else {
        return heading("HOST", "no host_sample in this log", style);
    };
    let mut table = Table::new(&["<percent of one core", "mean", "p95", "max", "<over time"]);
    let mut row = |name: &str, d: Option<Distribution>, values: Vec<f64>| {
        let cell = |v: fn(&Distribution) -> f64| known(d.as_ref(), |d| number(v(d)));
        let top = d.map_or(0.0, |d| d.max);
        table.row([name.to_owned(), cell(|d| d.mean), cell(|d| d.p95), cell(|d| d.max), sparkline(&values, top, 32)]);
    };
    row("process", host.cpu_percent, host.series.iter().filter_map(|p| p.cpu_percent).collect());
    row("of it, this library", host.own_cpu_percent, host.series.iter().filter_map(|p| p.own_cpu_percent).collect());
    let pressure = |name: &str, p: Option<f64>| p.map(|p| format!("{name} pressure up to {p:.1} %"));
    let line = joined([
        host.peak_rss_bytes.map(|n| format!("resident memory up to {}", bytes(n))),
        host.peak_threads.map(|n| format!("{n} threads")),
        host.major_faults.map(|n| format!("{} major faults", count(n))),
        host.read_bytes.map(|n| format!("{} read", bytes(n))),
        host.write_bytes.map(|n| format!("{} written", bytes(n))),
        host.least_available_bytes.map(|n| format!("at least {} available", bytes(n))),
        pressure("CPU", host.peak_cpu_pressure_percent),
        pressure("memory", host.peak_memory_pressure_percent),
        pressure("I/O", host.peak_io_pressure_percent),
    ]);
    heading("HOST", &format!("{} samples", host.series.len()), style)
        + &table.render(style)
        + &super::wrap("  ", "  ", &line)
}
