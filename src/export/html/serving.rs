//! Sections about serving: request timeline, latency, request table, KV cache, the machine.

use super::super::units::{bytes, count, known, milliseconds, number, percent};
use super::plot::{HALF, Line, frame, histogram, legend, over_time, seconds, tidy};
use super::svg::{Scale, Svg, WIDTH, ticks};
use super::{card, html_table};
use crate::analyze::Session;
use crate::analyze::requests::Request;

/// Requests that are drawn and listed; beyond that a page is no longer looked at but searched, and JSON serves better.
const REQUESTS: usize = 1000;
/// On an axis, round numbers of MiB are wanted, not of bytes.
const MIB: f64 = 1_048_576.0;
/// Lanes of the timeline.
const LANES: usize = 64;

pub(super) fn timeline(session: &Session) -> String {
    let requests = &session.requests.requests;
    if requests.is_empty() {
        return card("Requests over time", "No request in this log.", "");
    }
    let mut lanes: Vec<(u64, i32)> = requests.iter().map(|r| (r.context_id, r.seq_id)).collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes.truncate(LANES);
    let x = Scale { max: session.session.duration_s, from: 80.0, to: WIDTH - 12.0 };
    let height = lanes.len() as f64 * 26.0 + 30.0;
    let mut svg = Svg::new(WIDTH, height);
    for t in ticks(x.max, 8) {
        svg.line([x.at(t), 0.0, x.at(t), height - 24.0], "grid");
        svg.text(x.at(t), height - 8.0, "m", &tidy(&seconds(t)));
    }
    let one_context = lanes.iter().all(|l| l.0 == lanes[0].0);
    for (i, (context, seq)) in lanes.iter().enumerate() {
        let name = if one_context { format!("slot {seq}") } else { format!("{context} / slot {seq}") };
        svg.text(74.0, i as f64 * 26.0 + 17.0, "e", &name);
    }
    for request in requests.iter().take(REQUESTS) {
        if let Some(lane) = lanes.iter().position(|l| *l == (request.context_id, request.seq_id)) {
            draw(&mut svg, &x, lane as f64 * 26.0 + 3.0, request, session.session.duration_s);
        }
    }
    let names = ["waiting for a batch", "reading the prompt", "generating"].map(str::to_owned);
    let undrawn = requests.len().saturating_sub(REQUESTS);
    let more = if undrawn > 0 { format!(" The last {undrawn} requests are not drawn.") } else { String::new() };
    let aside = format!(
        "{} requests, at most {} at once. Grey: no end in the log, or phases unknown.{more}",
        count(session.requests.totals.requests),
        session.requests.totals.concurrent_peak
    );
    card("Requests over time", &aside, &(legend(&names) + &svg.finish("timeline of the requests")))
}

fn draw(svg: &mut Svg, x: &Scale, top: f64, r: &Request, log_end_s: f64) {
    let end = r.end_s.unwrap_or(log_end_s);
    let tip = format!(
        "request {}: {} prompt tokens ({} cached), {} generated, first token after {}, {} in all, {}",
        r.request_id,
        known(r.prompt_tokens, count),
        known(r.cached_tokens, count),
        known(r.generated_tokens, count),
        known(r.ttft_ms, milliseconds),
        known(r.duration_ms, milliseconds),
        r.stop_reason.as_deref().or(r.outcome.as_deref()).unwrap_or("no end in the log")
    );
    let mut part = |from: f64, to: f64, class: &str| {
        // At least a visible sliver: a request of a millisecond is a request.
        svg.rect([x.at(from), top, (x.at(to) - x.at(from)).max(1.5), 20.0], class, &tip);
    };
    let (Some(wait), Some(ttft)) = (r.wait_ms, r.ttft_ms) else { return part(r.start_s, end, "fx") };
    let (work, first) = (r.start_s + wait / 1e3, r.start_s + ttft / 1e3);
    part(r.start_s, work, "f0");
    part(work, first, "f1");
    part(first, end, "f2");
}

pub(super) fn latency(session: &Session) -> String {
    let (requests, t) = (&session.requests.requests, &session.requests.totals);
    let Some(ttft) = t.ttft_ms else { return String::new() };
    let values: Vec<f64> = requests.iter().filter_map(|r| r.ttft_ms).collect();
    let marks = [("p50", ttft.p50), ("p95", ttft.p95)];
    let first = histogram(&values, &marks, milliseconds, "distribution of the time to the first token");
    let rows: Vec<Vec<String>> = [
        ("time to first token", t.ttft_ms, milliseconds as fn(f64) -> String),
        ("waiting for a slot", t.queue_ms, milliseconds),
        ("waiting for a batch", t.wait_ms, milliseconds),
        ("whole request", t.duration_ms, milliseconds),
        ("tokens per second", t.tokens_per_second, number),
        (
            if t.inter_token_complete { "between tokens" } else { "between tokens (logged ones)" },
            t.inter_token_ms,
            milliseconds,
        ),
    ]
    .into_iter()
    .filter_map(|(name, d, f)| d.map(|d| (name, d, f)))
    .map(|(name, d, f)| vec![name.to_owned(), count(d.n), f(d.mean), f(d.p50), f(d.p95), f(d.p99), f(d.max)])
    .collect();
    let table = html_table(&["<over requests", "n", "mean", "p50", "p95", "p99", "max"], &rows);
    let content = format!(
        "<div class=\"two\"><div><h3>Time to first token</h3>\n{first}</div>\n<div><h3>Time between tokens</h3>\n{}</div></div>\n{table}",
        inter_token(requests)
    );
    card("Latency", "Percentiles are values that really occurred (nearest rank).", &content)
}

/// A request a column: from its median to its 99th percentile, with the 95th as a dot.
fn inter_token(requests: &[Request]) -> String {
    let all: Vec<_> =
        requests.iter().filter_map(|r| r.inter_token_ms.as_ref().map(|i| (r.request_id, i))).take(REQUESTS).collect();
    let top = all.iter().map(|(_, i)| i.p99).fold(0.0, f64::max);
    if top <= 0.0 {
        return "<p class=\"aside\">No request with two tokens.</p>\n".to_owned();
    }
    let (mut svg, x, y) = frame([HALF, 180.0], all.len() as f64, top, |_| String::new(), milliseconds);
    let every = all.len().div_ceil(30).max(1);
    for (i, (id, times)) in all.iter().enumerate() {
        let (from, to) = (x.at(i as f64), x.at((i + 1) as f64));
        let (middle, width) = ((from + to) / 2.0, ((to - from) * 0.5).min(18.0));
        let [p50, p95, p99] = [times.p50, times.p95, times.p99].map(milliseconds);
        let tip = format!("request {id}: p50 {p50}, p95 {p95}, p99 {p99}");
        let place = [middle - width / 2.0, y.at(times.p99), width, (y.at(times.p50) - y.at(times.p99)).max(1.5)];
        svg.shade(place, "f0", 0.45, &tip);
        svg.rect([middle - width / 2.0, y.at(times.p50) - 1.5, width, 3.0], "f0", &tip);
        svg.dot(middle, y.at(times.p95), "f1", &tip);
        if i % every == 0 {
            svg.text(middle, 174.0, "m", &id.to_string());
        }
    }
    let names = ["median to p99, by request", "p95"].map(str::to_owned);
    legend(&names) + &svg.finish("time between tokens of each request")
}

pub(super) fn table(session: &Session) -> String {
    let requests = &session.requests.requests;
    if requests.is_empty() {
        return String::new();
    }
    let row = |r: &Request| {
        let inter = r.inter_token_ms.as_ref();
        vec![
            r.request_id.to_string(),
            r.seq_id.to_string(),
            seconds(r.start_s),
            known(r.prompt_tokens, count),
            known(r.cached_tokens, count),
            known(r.generated_tokens, count),
            known(r.wait_ms, milliseconds),
            known(r.ttft_ms, milliseconds),
            known(inter.map(|i| i.p50), milliseconds),
            known(inter.map(|i| i.p95), milliseconds),
            known(inter.map(|i| i.p99), milliseconds),
            known(r.tokens_per_second, number),
            known(r.duration_ms, milliseconds),
            r.stop_reason.as_deref().or(r.outcome.as_deref()).unwrap_or("-").to_owned(),
        ]
    };
    let columns = [
        "id",
        "slot",
        "start",
        "prompt",
        "cached",
        "out",
        "wait",
        "first token",
        "p50",
        "p95",
        "p99",
        "tok/s",
        "took",
        "<end",
    ];
    let rows: Vec<Vec<String>> = requests.iter().take(REQUESTS).map(row).collect();
    let aside = match requests.len().saturating_sub(REQUESTS) {
        0 => "p50, p95, p99: times between tokens.".to_owned(),
        more => format!("p50, p95, p99: times between tokens. {more} more requests with --json."),
    };
    card("Requests", &aside, &html_table(&columns, &rows))
}

pub(super) fn kv(session: &Session) -> String {
    let caches = &session.kv.caches;
    if caches.is_empty() {
        return card("KV cache", "No kv_cache_usage in this log.", "");
    }
    let lines: Vec<Line> = caches
        .iter()
        .map(|c| Line {
            name: format!("context {}", c.context_id),
            points: c.series.iter().filter_map(|p| Some((p.t_s, p.used_cells? as f64))).collect(),
        })
        .collect();
    let top = caches.iter().map(|c| c.size_cells).max().unwrap_or(0) as f64;
    let parts: Vec<String> = caches
        .iter()
        .map(|c| {
            let (peak, share) = (known(c.peak_used_cells, count), known(c.peak_share, percent));
            format!("context {}: at most {peak} of {} cells ({share})", c.context_id, count(c.size_cells))
        })
        .collect();
    let chart = over_time(&lines, session.session.duration_s, top, |v| count(v as u64), "KV cells in use over time");
    card("KV cache", &format!("Cells in use; the top is the size of the cache. {}.", parts.join("; ")), &chart)
}

pub(super) fn host(session: &Session) -> String {
    let Some(host) = &session.host else { return card("Host", "No host_sample in this log.", "") };
    let line = |name: &str, f: fn(&crate::analyze::host::Point) -> Option<f64>| Line {
        name: name.to_owned(),
        points: host.series.iter().filter_map(|p| Some((p.t_s, f(p)?))).collect(),
    };
    let cpu = [line("process", |p| p.cpu_percent), line("this library", |p| p.own_cpu_percent)];
    let rss = [line("resident memory", |p| p.rss_bytes.map(|n| n as f64 / MIB))];
    let top = |lines: &[Line]| lines.iter().flat_map(|l| &l.points).map(|p| p.1).fold(0.0, f64::max);
    let x_max = session.session.duration_s;
    let content = format!(
        "<h3>CPU, percent of one core</h3>\n{}<h3>Resident memory</h3>\n{}",
        over_time(&cpu, x_max, top(&cpu), |v| format!("{} %", number(v)), "CPU use over time"),
        over_time(&rss, x_max, top(&rss), |v| format!("{} MiB", number(v)), "resident memory over time")
    );
    let aside = format!(
        "{} samples. {} major faults, {} read from storage, {} written.",
        host.series.len(),
        known(host.major_faults, count),
        known(host.read_bytes, bytes),
        known(host.write_bytes, bytes)
    );
    card("Host", &aside, &content)
}
