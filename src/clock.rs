//! One clock behind everything: monotonic nanoseconds for `t_ns`, and its anchor to wall-clock time for
//! the `timestamp` strings.

mod anchor;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anchor::{Anchor, Shared};

struct Source {
    /// In one line of the cache with the clock itself: both are read for every operation.
    anchor: Shared,
    tsc: quanta::Clock,
    unix_minus_mono_ns: AtomicI64,
}

static SOURCE: OnceLock<Source> = OnceLock::new();

fn source() -> &'static Source {
    SOURCE.get_or_init(|| {
        let tsc = quanta::Clock::new();
        const TICKS: u64 = 1 << 40;
        let ns_per_tick = tsc.delta_as_nanos(0, TICKS) as f64 / TICKS as f64;
        let read = Reading::of(&tsc);
        Source {
            anchor: Shared::new(Anchor { raw: read.raw, mono_ns: read.mono_ns, shown_ns: read.mono_ns, ns_per_tick }),
            unix_minus_mono_ns: AtomicI64::new(read.unix_minus_mono_ns),
            tsc,
        }
    })
}

/// The three clocks at one moment.
struct Reading {
    raw: u64,
    mono_ns: u64,
    unix_minus_mono_ns: i64,
}

impl Reading {
    /// The tightest of a few: the host may be interrupted between two clocks.
    fn of(tsc: &quanta::Clock) -> Self {
        let mut best = u64::MAX;
        let mut found = Self { raw: 0, mono_ns: 0, unix_minus_mono_ns: 0 };
        for _ in 0..8 {
            let before = tsc.raw();
            let mono_ns = crate::host::monotonic_ns();
            let after = tsc.raw();
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
            let width = tsc.raw().saturating_sub(before);
            if width < best {
                best = width;
                let raw = before + after.saturating_sub(before) / 2;
                found = Self { raw, mono_ns, unix_minus_mono_ns: unix.saturating_sub(mono_ns as i64) };
            }
        }
        found
    }
}

/// Reads the clocks for the first time (the time-stamp counter is calibrated here, which takes some milliseconds).
pub fn init() {
    let _ = source();
}

/// Compares the counter with the clock that it stands for, and lets it follow: a calibration of some milliseconds is
/// off by seconds in a week, CLOCK_MONOTONIC itself is slewed, and a machine that was suspended may count on or not. By
/// one thread, every second or so.
pub fn correct() {
    let s = source();
    let read = Reading::of(&s.tsc);
    s.anchor.store(s.anchor.load().corrected(read.raw, read.mono_ns));
    s.unix_minus_mono_ns.store(read.unix_minus_mono_ns, Ordering::Relaxed);
}

/// CLOCK_MONOTONIC in nanoseconds, read from the calibrated time-stamp counter: about a third of a clock_gettime.
#[must_use]
pub fn now_ns() -> u64 {
    let s = source();
    match s.anchor.try_load() {
        Some(anchor) => anchor.at(s.tsc.raw()),
        // It is being corrected.
        None => crate::host::monotonic_ns(),
    }
}

/// Unix time in microseconds at the monotonic moment `t_ns`.
#[must_use]
pub fn unix_us(t_ns: u64) -> u64 {
    let offset = source().unix_minus_mono_ns.load(Ordering::Relaxed);
    ((i128::from(t_ns) + i128::from(offset)) / 1000).max(0) as u64
}

/// Local time `YYYY-MM-DD HH:MM:SS.mmm` at the monotonic moment `t_ns`.
#[must_use]
pub fn local_time(t_ns: u64) -> String {
    local(unix_us(t_ns))
}

/// The same at a Unix time in microseconds.
fn local(us: u64) -> String {
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

/// `resource_sess_YYYYMMDD_HHMMSS_uuuuuu_PID` for the moment `t_ns`. The older system's ends with the microseconds; of
/// sixteen hosts that start together and share a log, now and then two begin in the same one.
#[must_use]
pub fn session_id(t_ns: u64) -> String {
    let us = unix_us(t_ns);
    let digits: String = local(us).chars().filter(char::is_ascii_digit).collect();
    let (date, time) = (&digits[..8], &digits[8..14]);
    format!("resource_sess_{date}_{time}_{:06}_{}", us % 1_000_000, std::process::id())
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_clock_stays_within_a_millisecond_of_clock_monotonic() {
        super::init();
        for _ in 0..5 {
            super::correct();
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
