//! The report as one HTML page: style and drawings inline, no script, nothing loaded. Its own policy forbids both, so
//! that even a slip in the escaping below could neither run nor fetch anything.

pub mod bench;
mod compute;
mod devices;
mod experts;
mod gpu;
mod plot;
mod serving;
mod svg;

use super::gaps::{Gap, Weight, of_file, of_session, reading, sampling};
use super::units::{bytes, count, count_short, known, label, milliseconds, number, percent};
use crate::analyze::{Account, Report, Session};

const CSS: &str = include_str!("style.css");

/// The whole page.
#[must_use]
pub fn render(report: &Report) -> String {
    let title = report.file.rsplit('/').next().unwrap_or(&report.file);
    let mut out = String::new();
    for session in &report.sessions {
        out += &head(report, session);
        out += &tiles(session);
        out += &models(session);
        out += &memory(session);
        out += &serving::timeline(session);
        out += &serving::latency(session);
        out += &serving::table(session);
        out += &serving::kv(session);
        out += &compute::throughput(session);
        out += &compute::components(session);
        out += &compute::layers(session);
        out += &compute::ops(session);
        out += &devices::devices(session);
        out += &experts::threads(session);
        out += &experts::heatmap(session);
        out += &gpu::gpus(session);
        out += &serving::host(session);
        out += &missing(session);
    }
    if report.sessions.is_empty() {
        out += "<h1>No session of this log matches</h1>\n";
    }
    page(title, &(out + &file(&report.account)))
}

/// A page around content that is HTML already.
fn page(title: &str, content: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} - llama-resource</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n{content}</main>\n</body>\n</html>\n",
        esc(title)
    )
}

/// Text of the log as HTML, in elements and in quoted attributes. Control characters, which HTML cannot
/// hold, become U+FFFD.
pub(super) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A card: heading, one line of explanation, content that is HTML already.
pub(super) fn card(title: &str, aside: &str, content: &str) -> String {
    let aside = if aside.is_empty() { String::new() } else { format!("<p class=\"aside\">{}</p>\n", esc(aside)) };
    format!("<section class=\"card\">\n<h2>{}</h2>\n{aside}{content}</section>\n", esc(title))
}

/// A table; headings that begin with `<` are aligned left. Cells are escaped, except bars made by [`bar`].
pub(super) fn html_table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let left: Vec<bool> = columns.iter().map(|c| c.starts_with('<')).collect();
    let class = |i: usize| if left.get(i) == Some(&true) { "" } else { " class=\"n\"" };
    let head: String = columns
        .iter()
        .enumerate()
        .map(|(i, c)| format!("<th{}>{}</th>", class(i), esc(c.trim_start_matches('<'))))
        .collect();
    let cell = |(i, cell): (usize, &String)| match cell.strip_prefix(BAR).and_then(|share| share.parse::<f64>().ok()) {
        Some(percent) => format!("<td class=\"b\"><i style=\"width:{}%\"></i></td>", svg::num(percent)),
        None => format!("<td{}>{}</td>", class(i), esc(cell)),
    };
    let row = |cells: &Vec<String>| format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>());
    let body: String = rows.iter().map(row).collect();
    format!("<div class=\"scroll\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n")
}

/// Marks a cell as a bar; only a number behind it makes one.
const BAR: &str = "\u{1}bar:";

/// A cell that holds a bar of this share.
pub(super) fn bar(share: f64) -> String {
    format!("{BAR}{}", svg::num(share.clamp(0.0, 1.0) * 100.0))
}

fn head(report: &Report, session: &Session) -> String {
    let info = &session.session;
    let state = if info.closed {
        "<span class=\"badge ok\">closed in order</span>"
    } else {
        "<span class=\"badge bad\">not closed: killed, or still running</span>"
    };
    let parts = [
        info.program.as_ref().map(|p| known(info.pid, |pid| format!("{p} (pid {pid})"))),
        info.mode.clone(),
        info.level.map(|l| l.name().to_owned()),
        info.library_version.as_ref().map(|v| format!("library {v}")),
        info.started.clone(),
        Some(format!("session {} of {} in {}", session.index + 1, report.account.sessions.len(), report.file)),
    ];
    let line: Vec<String> = parts.into_iter().flatten().map(|p| esc(&p)).collect();
    format!("<header>\n<h1>{}</h1>\n<p>{} {state}</p>\n</header>\n", esc(&info.session_id), line.join(" &middot; "))
}

fn tiles(session: &Session) -> String {
    let (totals, time) = (&session.requests.totals, &session.time);
    let kv = session.kv.caches.iter().filter_map(|c| c.peak_share).reduce(f64::max);
    let host = session.host.as_ref();
    let tiles = [
        ("duration", Some(milliseconds(session.session.duration_s * 1e3))),
        ("peak of buffers", session.memory.peak_bytes.map(bytes)),
        ("requests", (totals.requests > 0).then(|| count(totals.requests))),
        ("tokens generated", (totals.ended > 0).then(|| count(totals.generated_tokens))),
        ("prompt from cache", totals.cached_share.map(percent)),
        ("first token, median", totals.ttft_ms.map(|d| milliseconds(d.p50))),
        ("between tokens, mean", totals.inter_token_mean_ms.map(milliseconds)),
        ("generating", time.decode.tokens_per_second.map(|v| format!("{} tok/s", number(v)))),
        ("reading prompts", time.prefill.tokens_per_second.map(|v| format!("{} tok/s", number(v)))),
        ("KV cache, peak", kv.map(percent)),
        ("resident memory", host.and_then(|h| h.peak_rss_bytes).map(bytes)),
        ("of a core, for looking", host.and_then(|h| h.own_cpu_percent).map(|d| format!("{} %", number(d.mean)))),
    ];
    // A tile without a value would only say that a section below has none either.
    let tile = |(name, value): (&str, Option<String>)| {
        value.map(|v| format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", esc(&v), esc(name)))
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.into_iter().filter_map(tile).collect::<String>())
}

fn models(session: &Session) -> String {
    let row = |m: &crate::analyze::model::Model| {
        let load = &m.0;
        let experts = load.n_expert.filter(|&n| n > 0);
        vec![
            m.title().unwrap_or("-").to_owned(),
            known(load.architecture.clone(), |a| a),
            known(load.n_params, count_short),
            known(load.n_layer, |n| n.to_string()),
            known(experts, |n| format!("{} of {n}", known(load.n_expert_used, |u| u.to_string()))),
            known(load.size_bytes, bytes),
            milliseconds(load.duration_ms),
            load.outcome.clone(),
            known(load.ggml_version.clone(), |v| v),
        ]
    };
    let rows: Vec<Vec<String>> = session.models.iter().map(row).collect();
    if rows.is_empty() {
        return card("Model", "No model_load in this log.", "");
    }
    let columns = ["<model", "<architecture", "parameters", "layers", "experts", "size", "took", "<outcome", "<ggml"];
    card("Model", "", &html_table(&columns, &rows))
}

fn memory(session: &Session) -> String {
    let memory = &session.memory;
    let Some(peak) = memory.peak_bytes else {
        return card("Memory", "No buffer_allocation in this log.", "");
    };
    let parts: Vec<(String, String, f64)> = memory
        .rows
        .iter()
        .map(|r| (r.device.clone(), format!("{} ({})", label(&r.kind), r.memory_type), r.at_total_peak_bytes as f64))
        .collect();
    let rows: Vec<Vec<String>> = memory
        .rows
        .iter()
        .map(|r| {
            vec![
                r.device.clone(),
                r.memory_type.clone(),
                label(&r.kind),
                count(r.live_buffers),
                bytes(r.live_bytes),
                bytes(r.peak_bytes),
            ]
        })
        .collect();
    let aside = format!(
        "Backend buffers: {} live at the end, {} at the peak {} after the start. The bars show the peak.",
        bytes(memory.live_bytes),
        bytes(peak),
        known(memory.peak_t_s, |t| milliseconds(t * 1e3))
    );
    let columns = ["<device", "<in", "<for", "buffers", "live at the end", "own peak"];
    card("Memory", &aside, &(plot::stacked(&parts, |v| bytes(v as u64)) + &html_table(&columns, &rows)))
}

fn missing(session: &Session) -> String {
    let gaps = of_session(session);
    let aside = sampling(session).unwrap_or_default();
    let nothing = if gaps.is_empty() { "<p>Nothing.</p>\n" } else { "" };
    card("What is missing and why", &aside, &(list(&gaps) + nothing))
}

fn file(account: &Account) -> String {
    card("The file", &reading(account), &list(&of_file(account)))
}

fn list(gaps: &[Gap]) -> String {
    let item = |gap: &Gap| {
        let class = if gap.weight == Weight::Loss { "loss" } else { "note" };
        format!("<li class=\"{class}\">{}</li>\n", esc(&gap.text))
    };
    if gaps.is_empty() { String::new() } else { format!("<ul>\n{}</ul>\n", gaps.iter().map(item).collect::<String>()) }
}
