//! One clock behind everything: monotonic nanoseconds for `t_ns`, and its anchor to wall-clock time for the `timestamp` strings.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

struct Source {
    tsc: quanta::Clock,
    /// Counter at calibration: times are nanoseconds since then, which keeps the scaling exact.
    zero: u64,
    /// Added to the time-stamp counter's nanoseconds to give CLOCK_MONOTONIC, so that `t_ns` can be joined with other tools' clocks.
    to_monotonic: i64,
    unix_minus_mono_ns: i128,
}

static SOURCE: OnceLock<Source> = OnceLock::new();

fn source() -> &'static Source {
    SOURCE.get_or_init(|| {
        let tsc = quanta::Clock::new();
        let zero = tsc.raw();
        let read = || tsc.delta_as_nanos(zero, tsc.raw());
        // The tightest of a few reads: the host may be interrupted between the two clocks.
        let (mut best, mut to_monotonic, mut unix_minus_mono_ns) = (u64::MAX, 0, 0);
        for _ in 0..8 {
            let a = read();
            let mono = crate::host::monotonic_ns();
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
            let b = read();
            if b - a < best {
                best = b - a;
                to_monotonic = mono as i64 - (a + (b - a) / 2) as i64;
                unix_minus_mono_ns = unix - i128::from(mono);
            }
        }
        Source { zero, to_monotonic, unix_minus_mono_ns, tsc }
    })
}

/// Reads the clocks for the first time (the time-stamp counter is calibrated here, which takes some milliseconds).
pub fn init() {
    let _ = source();
}

/// CLOCK_MONOTONIC in nanoseconds, read from the calibrated time-stamp counter: about a third of a clock_gettime.
#[must_use]
pub fn now_ns() -> u64 {
    let s = source();
    (s.tsc.delta_as_nanos(s.zero, s.tsc.raw()) as i64 + s.to_monotonic) as u64
}

/// Unix time in microseconds at the monotonic moment `t_ns`.
#[must_use]
pub fn unix_us(t_ns: u64) -> u64 {
    ((i128::from(t_ns) + source().unix_minus_mono_ns) / 1000).max(0) as u64
}

/// Local time `YYYY-MM-DD HH:MM:SS.mmm` at the monotonic moment `t_ns`.
#[must_use]
pub fn local_time(t_ns: u64) -> String {
    let us = unix_us(t_ns);
    let t = crate::host::local_time((us / 1_000_000) as i64);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        t.year,
        t.month,
        t.day,
        t.hour,
        t.minute,
        t.second,
        us / 1000 % 1000
    )
}

/// `resource_sess_YYYYMMDD_HHMMSS_uuuuuu_PID` for the moment `t_ns`. The older system's ends with the microseconds; of sixteen hosts
/// that start together and share a log, now and then two begin in the same one.
#[must_use]
pub fn session_id(t_ns: u64) -> String {
    let us = unix_us(t_ns);
    let t = crate::host::local_time((us / 1_000_000) as i64);
    format!(
        "resource_sess_{:04}{:02}{:02}_{:02}{:02}{:02}_{:06}_{}",
        t.year,
        t.month,
        t.day,
        t.hour,
        t.minute,
        t.second,
        us % 1_000_000,
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_clock_stays_within_a_millisecond_of_clock_monotonic() {
        super::init();
        for _ in 0..5 {
            let diff = crate::host::monotonic_ns() as i64 - super::now_ns() as i64;
            assert!(diff.abs() < 1_000_000, "{diff} ns apart");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn timestamps_have_the_documented_shape() {
        let t = super::now_ns();
        let text = super::local_time(t);
        assert_eq!(text.len(), "2024-01-01 14:30:22.123".len());
        assert_eq!(&text[4..5], "-");
        assert_eq!(&text[19..20], ".");
        let id = super::session_id(t);
        let pid = format!("_{}", std::process::id());
        assert!(id.ends_with(&pid) && id.len() == "resource_sess_20240101_143022_123456".len() + pid.len(), "{id}");
    }
}
