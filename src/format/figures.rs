//! How figures are written into a line: units, rounding, shapes.

const MIB: f64 = 1024.0 * 1024.0;

/// A measured value with the three decimals that a line holds: a nanosecond where the unit is a microsecond, a
/// microwatt, a microjoule. More would only be length.
#[must_use]
pub fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// Bytes in MiB, exact to the byte.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    (bytes as f64 / MIB * 1e6).round() / 1e6
}

/// The memory of a device, `None` where it is not known.
#[must_use]
pub fn known_memory(memory_type: &str) -> Option<String> {
    (memory_type != "unknown").then(|| memory_type.to_owned())
}

/// ggml pads shapes to four dimensions with ones.
#[must_use]
pub fn shape(ne: &[i64; 4]) -> Vec<i64> {
    let n = ne.iter().rposition(|&n| n != 1).map_or(1, |i| i + 1);
    ne[..n].to_vec()
}
