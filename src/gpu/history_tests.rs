//! Histories against sums done by hand.

use super::{History, MOST_SEGMENTS};
use crate::gpu::reading::Reading;

const S: u64 = 1_000_000_000;

fn reading(t_ns: u64, energy_mj: Option<u64>, power_mw: Option<f64>) -> Reading {
    Reading { t_ns, energy_mj, power_mw, ..Reading::default() }
}

/// Readings at 1, 2, 3, 4 s.
fn history(readings: &[(Option<u64>, Option<f64>)]) -> History {
    let mut h = History::default();
    for ((energy, power), t) in readings.iter().zip(1..) {
        h.add(&reading(t * S, *energy, *power));
    }
    h
}

#[test]
fn energy_of_the_counter_is_read_off_between_readings() {
    let h = history(&[(Some(1000), None), (Some(1100), None), (Some(1400), None), (Some(1400), None)]);
    let energy = |a: f64, b: f64| {
        let u = h.between((a * 1e9) as u64, (b * 1e9) as u64, 4);
        (u.energy_mj, u.energy_source.as_deref().map(str::to_owned))
    };
    let counter = |mj| (Some(mj), Some("counter".to_owned()));
    assert_eq!(energy(1.0, 3.0), counter(400.0));
    // A quarter of the first second's 100, and half of the second's 300.
    assert_eq!(energy(1.75, 2.5), counter(25.0 + 150.0));
    assert_eq!(energy(2.25, 2.5), counter(75.0), "within one interval");
    assert_eq!(energy(3.2, 3.9), counter(0.0));
    assert_eq!(energy(0.9, 2.0), (None, None), "nobody knows what was before the first reading");
    assert_eq!(energy(3.0, 4.1), (None, None), "nor behind the last");
    assert_eq!(h.between(S, 3 * S, 4).joules_per_token, Some(0.1));
    assert_eq!(h.between(S, 3 * S, 0).joules_per_token, None);
}

#[test]
fn between_two_values_of_the_counter_energy_grows_as_the_power_did() {
    let mut h = History::default();
    for (t, energy, power) in [(1, Some(1000), 100.0), (2, None, 100.0), (3, None, 500.0), (4, Some(1800), 500.0)] {
        h.add(&Reading { energy_left: energy.is_none(), ..reading(t * S, energy, Some(power)) });
    }
    let energy = |a: f64, b: f64| h.between((a * 1e9) as u64, (b * 1e9) as u64, 0).energy_mj;
    // The integrals of the three seconds are 100, 300 and 500 mJ: shares of the counter's 800.
    assert_eq!(energy(1.0, 4.0), Some(800.0));
    assert_eq!((energy(1.0, 2.0), energy(2.0, 3.0), energy(3.0, 4.0)), (Some(88.889), Some(266.667), Some(444.444)));
    assert_eq!(h.between(S, 3 * S, 0).energy_source.as_deref(), Some("counter"));
    // What comes behind the last value is known by the power alone, until the next.
    h.add(&Reading { energy_left: true, ..reading(5 * S, None, Some(500.0)) });
    assert_eq!(h.between(4 * S, 5 * S, 0).energy_source.as_deref(), Some("power"));
    h.add(&reading(6 * S, Some(3000), None));
    // Without power on the way, by time.
    assert_eq!(h.between(4 * S, 5 * S, 0).energy_mj, Some(600.0));
    assert_eq!(h.between(S, 6 * S, 0).energy_mj, Some(2000.0));
}

#[test]
fn without_a_counter_power_is_summed_up_over_time() {
    let h = history(&[(None, Some(100.0)), (None, Some(300.0)), (None, Some(300.0)), (None, None)]);
    let u = h.between(S, 3 * S, 0);
    assert_eq!((u.energy_mj, u.energy_source.as_deref()), (Some(200.0 + 300.0), Some("power")));
    assert_eq!((u.power_mean_mw, u.power_max_mw, u.samples), (Some(233.333), Some(300.0), 3));
    let u = h.between(S, 3 * S + S / 2, 0);
    assert_eq!((u.energy_mj, u.samples), (None, 3), "the last reading has no power");
}

#[test]
fn a_counter_that_starts_again_or_stays_away_is_not_used_across_the_gap() {
    let p = Some(50.0);
    let h = history(&[(Some(900), p), (Some(1000), p), (Some(10), p), (Some(40), p), (None, p), (Some(100), p)]);
    let source = |a, b| h.between(a * S, b * S, 0).energy_source.unwrap();
    assert_eq!((source(1, 2), source(3, 4)), ("counter".into(), "counter".into()));
    assert_eq!((source(1, 3), source(4, 6)), ("power".into(), "power".into()));
    assert_eq!(h.between(2 * S, 3 * S, 0).energy_mj, Some(50.0));
}

#[test]
fn a_device_that_tells_nothing_has_no_energy() {
    let h = history(&[(None, None), (None, None), (None, None)]);
    let u = h.between(S, 3 * S, 5);
    assert_eq!((u.energy_mj, u.energy_source, u.joules_per_token, u.power_mean_mw), (None, None, None, None));
    assert_eq!(u.samples, 3);
    assert_eq!(History::default().between(0, S, 1), crate::format::gpu::GpuUse::default());
}

#[test]
fn peaks_are_those_of_the_readings_within() {
    let mut h = History::default();
    for (t, memory, process, busy) in [(1, 100, 0, 10.0), (2, 300, 7, 20.0), (3, 200, 0, 60.0), (4, 900, 0, 99.0)] {
        h.add(&Reading {
            t_ns: t * S,
            memory_used: Some(memory),
            process_memory: Some(process),
            busy: Some(busy),
            ..Reading::default()
        });
    }
    let u = h.between(S + 1, 3 * S, 0);
    assert_eq!((u.samples, u.memory_peak_bytes, u.busy_mean_percent), (2, Some(300), Some(40.0)));
    assert_eq!(u.process_memory_peak_bytes, Some(7));
    let short = h.between(2 * S + 1, 2 * S + 2, 0);
    assert_eq!((short.samples, short.memory_peak_bytes, short.busy_mean_percent), (0, None, None));
    assert_eq!(short.process_memory_peak_bytes, Some(0), "the reading behind it knows");
    assert_eq!(h.between(5 * S, 6 * S, 0).process_memory_peak_bytes, None);
}

#[test]
fn a_long_history_stays_small_and_its_sums_exact() {
    let mut h = History::default();
    let n = 40_000;
    for i in 0..n {
        h.add(&Reading { memory_used: Some(i), ..reading(i * S / 10, Some(i * i), Some(i as f64)) });
        assert!(h.segments.len() <= MOST_SEGMENTS);
    }
    let whole = h.between(0, (n - 1) * S / 10, 0);
    assert_eq!((whole.samples, whole.memory_peak_bytes), (n, Some(n - 1)));
    assert_eq!(whole.energy_mj, Some(((n - 1) * (n - 1)) as f64));
    // The last minute is as fine as it was read.
    let (a, b) = (n - 600, n - 300);
    let last = h.between(a * S / 10, b * S / 10, 0);
    assert_eq!((last.samples, last.memory_peak_bytes, last.energy_mj), (301, Some(b), Some((b * b - a * a) as f64)));
    assert_eq!(last.power_mean_mw, Some((a + b) as f64 / 2.0));
    // An hour ago it is coarser, but not by much of the length that such a request has by now.
    let long = h.between(S, (n - 1) * S / 10, 0);
    assert!(long.samples.abs_diff(n - 10) < n / 100, "{}", long.samples);
}

#[test]
fn sm_activity_is_that_of_the_interval_around_the_moment() {
    let mut h = History::default();
    for (t, sm) in [(1, None), (2, Some(25.0)), (3, Some(75.0))] {
        h.add(&Reading { sm_utilization: sm, ..reading(t * S, None, None) });
    }
    assert!(h.measures_sm());
    assert_eq!((h.sm_utilization(S), h.sm_utilization(S + 1)), (None, Some(25.0)));
    assert_eq!((h.sm_utilization(2 * S), h.sm_utilization(2 * S + 1)), (Some(25.0), Some(75.0)));
    assert_eq!(h.sm_utilization(3 * S + 1), None, "not read yet");
}
