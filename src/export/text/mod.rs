//! The report for a terminal: one section a question, at most 80 columns, numbers aligned.

pub mod bench;
mod compute;
mod devices;
mod gaps;
mod gpu;
mod serving;

use super::table::{Style, Table, bar, shorten, wrap};
use super::units::{bytes, count_short, known, label, milliseconds, printable};
use crate::analyze::{Report, Session};

/// The whole report.
#[must_use]
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for session in &report.sessions {
        out += &head(report, session, style);
        out += &models(session, style);
        out += &memory(session, style);
        out += &serving::requests(session, style);
        out += &serving::kv(session, style);
        out += &compute::phases(session, style);
        out += &compute::components(session, style);
        out += &compute::layers(session, style);
        out += &compute::ops(session, style);
        out += &devices::devices(session, style);
        out += &compute::threads(session, style);
        out += &compute::moe(session, style);
        out += &gpu::gpus(session, style);
        out += &serving::host(session, style);
        out += &gaps::session(session, style);
        out.push('\n');
    }
    if report.sessions.is_empty() {
        out += "no session of this log matches\n\n";
    }
    out + &gaps::file(&report.account, style)
}

/// An empty line and a heading; what is known once for the whole section stands behind it.
fn heading(text: &str, aside: &str, style: Style) -> String {
    let aside = printable(aside);
    let gap = if aside.is_empty() { "" } else { "  " };
    format!("\n{}{gap}{}\n", style.heading(text), style.faint(&shorten(&aside, 78 - text.chars().count())))
}

/// Parts that are known, joined by a dot.
fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

fn head(report: &Report, session: &Session, style: Style) -> String {
    let info = &session.session;
    let of = format!("session {} of {}", session.index + 1, report.account.sessions.len());
    let host = info.program.as_ref().map(|p| known(info.pid, |pid| format!("{p} (pid {pid})")));
    let end = if info.closed { "closed in order" } else { "NOT CLOSED: killed, or still running" };
    let who = joined([
        host,
        info.mode.clone(),
        info.level.map(|l| l.name().to_owned()),
        info.library_version.as_ref().map(|v| format!("library {v}")),
    ]);
    let when =
        joined([info.started.clone(), Some(milliseconds(info.duration_s * 1e3)), Some(end.to_owned()), Some(of)]);
    format!(
        "{}\n{}{}",
        style.strong(&shorten(&printable(&info.session_id), 80)),
        wrap("", "", &who),
        style.faint(&wrap("", "", &when))
    )
}

fn models(session: &Session, style: Style) -> String {
    let mut out = heading("MODEL", "", style);
    if session.models.is_empty() {
        out += "  no model_load in this log\n";
    }
    for model in &session.models {
        let m = &model.0;
        let experts = m
            .n_expert
            .filter(|&n| n > 0)
            .map(|n| format!("{} of {n} experts", known(m.n_expert_used, |u| u.to_string())));
        let file = m.path.as_deref().map(|p| p.rsplit('/').next().unwrap_or(p));
        let build = m.ggml_version.as_ref().map(|v| match &m.ggml_commit {
            Some(commit) => format!("ggml {v} ({commit})"),
            None => format!("ggml {v}"),
        });
        let facts = joined([
            m.architecture.clone(),
            m.n_params.map(|n| format!("{} parameters", count_short(n))),
            m.n_layer.map(|n| format!("{n} layers")),
            m.n_embd.map(|n| format!("width {n}")),
            experts,
            m.size_bytes.map(bytes),
        ]);
        let load =
            joined([Some(format!("{} in {}", m.outcome, milliseconds(m.duration_ms))), file.map(str::to_owned), build]);
        out += &format!("  {}\n", style.strong(&shorten(&printable(model.title().unwrap_or("(no name)")), 78)));
        out += &wrap("  ", "  ", &facts);
        out += &wrap("  ", "  ", &load);
    }
    out
}

fn memory(session: &Session, style: Style) -> String {
    let memory = &session.memory;
    let Some(peak) = memory.peak_bytes else {
        return heading("MEMORY", "no buffer_allocation in this log", style);
    };
    let at = known(memory.peak_t_s, |t| milliseconds(t * 1e3));
    let aside = format!("backend buffers: {} live at the end, peak {} at {at}", bytes(memory.live_bytes), bytes(peak));
    let mut table = Table::new(&["<device", "<in", "<for", "live", "peak", "<share of peak"]);
    for row in &memory.rows {
        table.row([
            row.device.clone(),
            row.memory_type.clone(),
            label(&row.kind),
            bytes(row.live_bytes),
            bytes(row.peak_bytes),
            bar(row.at_total_peak_bytes as f64 / peak.max(1) as f64, 20),
        ]);
    }
    heading("MEMORY", &aside, style) + &table.render(style)
}
