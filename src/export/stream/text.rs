//! What a stream holds, as text of at most 80 columns.

use serde_json::Value;

use crate::analyze::stream::{Amount, Figures, Ledger, Tensor};
use crate::export::table::{Style, Table, WIDTH, shorten, wrap};
use crate::export::units::{bytes, count, count_short, known, number, percent, printable};

/// `key  value` lines; values run over several lines.
#[must_use]
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0) + 4;
    fields
        .iter()
        .map(|(key, value)| wrap(&format!("{:<width$}", format!("  {key}")), &" ".repeat(width), value))
        .collect()
}

/// What the header says, as far as it is known.
#[must_use]
pub fn origin(header: &Value) -> Vec<(&'static str, String)> {
    let text = |path: &[&str]| {
        let value = path.iter().try_fold(header, |value, key| value.get(key))?;
        match value {
            Value::Null => None,
            Value::String(s) if s.is_empty() => None,
            Value::String(s) => Some(s.clone()),
            other => Some(other.to_string()),
        }
    };
    let mut out = Vec::new();
    let mut add = |key, parts: Vec<Option<String>>| {
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            out.push((key, parts.join(", ")));
        }
    };
    let version = text(&["library_version"]).map(|v| format!("llama-resource {v}"));
    add("Written by", vec![version, text(&["session_id"]).map(|s| format!("session {s}"))]);
    let ggml = text(&["host", "ggml_version"]).map(|v| format!("ggml {v}"));
    let pid = text(&["host", "pid"]).map(|p| format!("pid {p}"));
    add("Host", vec![text(&["host", "program"]), pid, ggml, text(&["host", "ggml_commit"])]);
    match header.get("model") {
        Some(Value::Object(model)) => {
            let value = |(key, v): (&String, &Value)| match v {
                Value::Null | Value::Object(_) | Value::Array(_) => None,
                Value::String(s) => Some(format!("{key} {s}")),
                other => Some(format!("{key} {other}")),
            };
            add("Model", model.iter().map(value).collect());
        }
        _ => add("Model", vec![text(&["model"])]),
    }
    add("Selection", vec![text(&["selection"])]);
    let bound = header
        .get("error_bound")
        .and_then(Value::as_f64)
        .filter(|b| *b > 0.0)
        .map(|b| format!("error bound {}", b as f32));
    let policy = text(&["policy"]).map(|p| format!("policy {p}"));
    add(
        "Settings",
        vec![
            text(&["route"]).map(|r| format!("route {r}")),
            text(&["codec"]).map(|c| format!("codec {c}")),
            bound,
            policy,
        ],
    );
    out
}

/// The account as a table.
#[must_use]
pub fn ledger(ledger: &Ledger, style: Style) -> String {
    let mut table = Table::new(&["<", "tensors", "bytes", "of seen"]);
    let mut row = |name: String, amount: Amount| {
        let share = (ledger.seen.bytes > 0).then(|| amount.bytes as f64 / ledger.seen.bytes as f64);
        table.row([name, count(amount.tensors), count(amount.bytes), known(share, percent)]);
    };
    row("seen".to_owned(), ledger.seen);
    row("captured".to_owned(), ledger.captured);
    ledger.skipped.iter().for_each(|(reason, amount)| row(format!("skipped: {reason}"), *amount));
    ledger.dropped.iter().for_each(|(reason, amount)| row(format!("dropped: {reason}"), *amount));
    table.render(style)
}

/// What each codec did.
#[must_use]
pub fn codecs(tensors: &[Tensor], style: Style) -> String {
    let mut names: Vec<String> = tensors.iter().map(Tensor::codec).collect();
    names.sort();
    names.dedup();
    let mut table = Table::new(&["<codec", "tensors", "before", "stored", "ratio", "row L2", "block max", "saturated"]);
    for name in names {
        let of = || tensors.iter().filter(|t| t.codec() == name);
        let (before, stored) = (of().map(|t| t.bytes).sum::<u64>(), of().map(|t| t.stored_bytes).sum::<u64>());
        let worst = |f: fn(&Tensor) -> f64| of().map(f).fold(0.0, f64::max);
        table.row([
            name.clone(),
            of().count().to_string(),
            bytes(before),
            bytes(stored),
            ratio(before, stored),
            error(worst(|t| t.row_l2_max)),
            error(worst(|t| t.block_max)),
            count(of().map(|t| t.saturated).sum()),
        ]);
    }
    table.render(style)
}

/// A measured error: two digits.
fn error(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

fn ratio(before: u64, stored: u64) -> String {
    if stored == 0 { "-".to_owned() } else { format!("{:.2}", before as f64 / stored as f64) }
}

/// One line a tensor. Where they do not fit, component and operation lose their ends before the name does.
#[must_use]
pub fn tensors<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone, style: Style) -> String {
    let mut cells: Vec<[String; 9]> = tensors
        .map(|t| {
            [
                t.name.clone(),
                t.op.clone(),
                t.component.replace('_', " "),
                known(t.layer, |l| l.to_string()),
                count(t.rows),
                t.shape(),
                t.dtype.to_owned(),
                t.codec(),
                ratio(t.bytes, t.stored_bytes),
            ]
        })
        .collect();
    let heads = ["<name", "<op", "<component", "layer", "rows", "row", "<type", "<codec", "ratio"];
    let mut too_wide = 2 + 2 * (heads.len() - 1);
    let mut widths = [0; 9];
    for (i, head) in heads.iter().enumerate() {
        let widest = cells.iter().map(|c| printable(&c[i]).chars().count()).max().unwrap_or(0);
        widths[i] = widest.max(head.trim_start_matches('<').len());
        too_wide += widths[i];
    }
    for column in [2, 1] {
        let over = too_wide.saturating_sub(WIDTH);
        let width = widths[column].saturating_sub(over).max(4);
        too_wide -= widths[column].saturating_sub(width);
        cells.iter_mut().for_each(|c| c[column] = shorten(&c[column], width));
    }
    let mut table =
        Table::new(&heads.map(|h| if too_wide > WIDTH - 4 { if h == "<component" { "<part" } else { h } } else { h }));
    cells.into_iter().for_each(|c| table.row(c));
    table.render(style)
}

/// A number in at most seven characters.
#[must_use]
pub fn short(value: f64) -> String {
    if value.abs() < 99_999.5 { number(value) } else { format!("{value:.1e}") }
}

/// Statistics, one line each: name and figures. Their bytes are left to JSON and CSV: names need the room.
#[must_use]
pub fn stats(lines: &[(String, Figures)], head: &str, style: Style) -> String {
    let mut table = Table::new(&[&format!("<{head}"), "values", "mean", "std", "min", "max", "L2", "zeros"]);
    for (name, f) in lines {
        let [mean, std, min, max, l2] = [f.mean, f.std, f.min, f.max, f.l2].map(|v| known(v, short));
        table.row([name.clone(), count_short(f.count), mean, std, min, max, l2, known(f.sparsity, percent)]);
    }
    let mut text = table.render(style);
    for (name, f) in lines.iter().filter(|(_, f)| f.nan + f.inf > 0) {
        text += &wrap(
            "  ",
            "    ",
            &format!("{name}: {} NaN and {} infinite values, left out", count(f.nan), count(f.inf)),
        );
    }
    text
}
