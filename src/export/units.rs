//! Numbers as people read them: units, grouped digits, `-` for what is not known.

/// Stands for every value that is not known.
pub const UNKNOWN: &str = "-";

/// `f` of a known value, or [`UNKNOWN`].
pub fn known<T>(value: Option<T>, f: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), f)
}

/// `93.5 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `134.5 M`, without a unit of its own.
#[must_use]
pub fn count_short(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"]).trim_end().to_owned()
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.96 would be rounded to "1000.0": the next unit begins where the rounding does.
    while value >= base - 0.05 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

/// `1,234,567`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds in the unit that leaves one to three digits before the point: `850 µs`, `12.5 ms`, `3.20 s`,
/// `4m 05s`, `2h 03m`.
#[must_use]
pub fn milliseconds(ms: f64) -> String {
    if !ms.is_finite() {
        return UNKNOWN.to_owned();
    }
    match ms.abs() {
        0.0 => "0 ms".to_owned(),
        a if a < 0.9995 => format!("{:.0} µs", ms * 1e3),
        a if a < 99.95 => format!("{ms:.1} ms"),
        a if a < 999.5 => format!("{ms:.0} ms"),
        a if a < 9_995.0 => format!("{:.2} s", ms / 1e3),
        a if a < 119_950.0 => format!("{:.1} s", ms / 1e3),
        a if a < 7_170_000.0 => {
            let s = (ms / 1e3).round();
            format!("{:.0}m {:02.0}s", (s / 60.0).floor(), s % 60.0)
        }
        _ => {
            let m = (ms / 6e4).round();
            format!("{:.0}h {:02.0}m", (m / 60.0).floor(), m % 60.0)
        }
    }
}

/// `78.0 %` of a share.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Three significant digits: `0.123`, `1.23`, `12.3`, `1,234`.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => UNKNOWN.to_owned(),
        0.0 => "0".to_owned(),
        a if a < 0.000_5 => format!("{value:.1e}"),
        a if a < 0.9995 => format!("{value:.3}"),
        a if a < 9.995 => format!("{value:.2}"),
        a if a < 99.95 => format!("{value:.1}"),
        a if a < 1e15 => format!("{}{}", if value < 0.0 { "-" } else { "" }, count(a.round() as u64)),
        _ => format!("{value:.2e}"),
    }
}

/// A word of the log as a label: `kv_cache` to `kv cache`.
#[must_use]
pub fn label(word: &str) -> String {
    word.replace('_', " ")
}

/// What a terminal acts on. The bidirectional overrides are no control characters, but they too make text look
/// like other text.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text of the log made safe for a terminal: no control character reaches it, so no escape sequence does.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// The same for several lines.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The same for JSON, which stays what it says: JSON may hold some of these characters as they are, within its strings,
/// where they become escapes.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // The space of the text between strings is JSON's own.
        if is_unsafe(c) && c != '\n' {
            out += &format!("\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, count_short, milliseconds, number, percent, printable, printable_json, printable_lines};

    #[test]
    fn units_step_up_where_rounding_does() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(98_041_856), "93.5 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(count_short(999), "999");
        assert_eq!(count_short(134_515_008), "134.5 M");
        assert_eq!((count(0), count(999), count(1000)), ("0".into(), "999".into(), "1,000".into()));
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn times_change_unit() {
        let texts = [0.0, 0.85, 12.54, 640.0, 3_200.0, 9_999.6, 125_000.0, 7_380_000.0].map(milliseconds);
        assert_eq!(texts, ["0 ms", "850 µs", "12.5 ms", "640 ms", "3.20 s", "10.0 s", "2m 05s", "2h 03m"]);
        assert_eq!(milliseconds(f64::INFINITY), "-");
        assert_eq!(milliseconds(-12.54), "-12.5 ms");
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([0.0, 0.1234, 1.234, 12.34, 1234.4].map(number), ["0", "0.123", "1.23", "12.3", "1,234"]);
        assert_eq!(percent(0.7812), "78.1 %");
        assert_eq!(number(f64::NAN), "-");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\u{202e}c"), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(printable_lines("a\x1b\nb\r"), "a\u{fffd}\nb\u{fffd}");
        let text = "a\u{9b}31m\u{7f}\u{2066}\n";
        let json = serde_json::json!({ "name": text }).to_string();
        assert!(json.contains('\u{9b}'), "serde leaves it as it is");
        let safe = printable_json(&json);
        assert!(!safe.chars().any(super::is_unsafe), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap()["name"], text);
    }
}
