//! How values, labels and the names of logs are written.

use std::collections::BTreeMap;

/// A value as the format wants it: the shortest text that is the number.
pub(super) fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        format!("{value}")
    }
}

/// A label's value: backslash, quote and line break are escaped; other control characters, which a name from a file may
/// hold, become spaces.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The last part of a log's path without its ending, by which logs are told apart; a number is added where
/// two are alike.
#[must_use]
pub fn names<'a>(paths: impl Iterator<Item = &'a std::path::Path>) -> Vec<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    paths
        .map(|path| {
            let stem = path.file_stem().map_or_else(|| "log".to_owned(), |s| s.to_string_lossy().into_owned());
            let n = seen.entry(stem.clone()).or_default();
            *n += 1;
            if *n == 1 { stem } else { format!("{stem}-{n}") }
        })
        .collect()
}
