//! What a user may write for a value: yes and no, rates, sizes, numbers within limits.

use super::Rate;

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Bytes a second: 1000-based, as rates are.
pub(super) fn rate(text: &str) -> Option<Rate> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Some(Rate::Unlimited);
    }
    let text = text.trim_end_matches("/s").trim_end_matches(['B', 'b']);
    scaled(text, 1000).filter(|&n| n > 0).map(Rate::Limited)
}

/// Bytes of memory: 1024-based, as memory is; `64M`, `64MB` and `64MiB` are the same.
pub(super) fn memory(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['B', 'b']).unwrap_or(text);
    scaled(text.strip_suffix('i').filter(|t| t.ends_with(|c: char| c.is_ascii_alphabetic())).unwrap_or(text), 1024)
}

/// A number with K, M or G behind it.
fn scaled(text: &str, thousand: u64) -> Option<u64> {
    let (digits, factor) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], thousand),
        'm' | 'M' => (&text[..text.len() - 1], thousand.pow(2)),
        'g' | 'G' => (&text[..text.len() - 1], thousand.pow(3)),
        _ => (text, 1),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor)
}

/// A fraction between two limits, both allowed.
pub(super) fn fraction(text: &str, least: f32, most: f32) -> Option<f32> {
    text.parse().ok().filter(|n| (least..=most).contains(n))
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_is_counted_in_1024s() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1g", 1 << 30),
            ("16384K", 16 << 20),
            ("20000000", 20_000_000),
            ("20000000B", 20_000_000),
        ] {
            assert_eq!(memory(text), Some(bytes), "{text}");
        }
        for bad in ["", "B", "i", "iB", "64i", "64iB", "M", "-1M", "1.5G", "64MM", "64T", "99999999999G"] {
            assert_eq!(memory(bad), None, "{bad}");
        }
    }
}
