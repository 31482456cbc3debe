//! What the process, and our own part of it, used of the machine.

use serde::Serialize;

use super::stats::Distribution;
use crate::format::Line;

/// A sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the session began.
    pub t_s: f64,
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// CPU time of the process, percent of one core.
    pub cpu_percent: Option<f64>,
    /// CPU time of this library's threads, percent of one core.
    pub own_cpu_percent: Option<f64>,
    /// Load average of the machine.
    pub load_1m: Option<f64>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// Largest resident memory.
    pub peak_rss_bytes: Option<u64>,
    /// CPU time of the process, percent of one core.
    pub cpu_percent: Option<Distribution>,
    /// CPU time of this library's threads, percent of one core.
    pub own_cpu_percent: Option<Distribution>,
    /// Largest number of threads.
    pub peak_threads: Option<u64>,
    /// Major page faults: memory that had to be read from storage.
    pub major_faults: Option<u64>,
    /// Minor page faults.
    pub minor_faults: Option<u64>,
    /// Involuntary context switches of the main thread.
    pub involuntary_switches: Option<u64>,
    /// Bytes really read from storage.
    pub read_bytes: Option<u64>,
    /// Bytes really written to storage.
    pub write_bytes: Option<u64>,
    /// Least memory that the machine had available.
    pub least_available_bytes: Option<u64>,
    /// Largest share of 10 s in which some task waited for a CPU, percent.
    pub peak_cpu_pressure_percent: Option<f64>,
    /// The same for memory.
    pub peak_memory_pressure_percent: Option<f64>,
    /// The same for I/O.
    pub peak_io_pressure_percent: Option<f64>,
    /// Every sample.
    pub series: Vec<Point>,
}

/// Gathers [`Host`].
#[derive(Debug, Default)]
pub struct Fold {
    host: Option<Host>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        let Line::HostSample(e) = line else { return };
        let host = self.host.get_or_insert_with(|| Host {
            peak_rss_bytes: None,
            cpu_percent: None,
            own_cpu_percent: None,
            peak_threads: None,
            major_faults: None,
            minor_faults: None,
            involuntary_switches: None,
            read_bytes: None,
            write_bytes: None,
            least_available_bytes: None,
            peak_cpu_pressure_percent: None,
            peak_memory_pressure_percent: None,
            peak_io_pressure_percent: None,
            series: Vec::new(),
        });
        host.peak_rss_bytes = host.peak_rss_bytes.max(e.rss_bytes);
        host.peak_threads = host.peak_threads.max(e.threads);
        host.least_available_bytes = match (host.least_available_bytes, e.available_bytes) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        add(&mut host.major_faults, e.major_faults);
        add(&mut host.minor_faults, e.minor_faults);
        add(&mut host.involuntary_switches, e.involuntary_switches);
        add(&mut host.read_bytes, e.read_bytes);
        add(&mut host.write_bytes, e.write_bytes);
        raise(&mut host.peak_cpu_pressure_percent, e.cpu_pressure_percent);
        raise(&mut host.peak_memory_pressure_percent, e.memory_pressure_percent);
        raise(&mut host.peak_io_pressure_percent, e.io_pressure_percent);
        host.series.push(Point {
            t_s,
            rss_bytes: e.rss_bytes,
            cpu_percent: e.cpu_percent,
            own_cpu_percent: e.own_cpu_percent,
            load_1m: e.load_1m,
        });
    }

    /// The result, `None` without samples.
    #[must_use]
    pub fn finish(self) -> Option<Host> {
        let mut host = self.host?;
        host.cpu_percent = Distribution::of(host.series.iter().filter_map(|p| p.cpu_percent));
        host.own_cpu_percent = Distribution::of(host.series.iter().filter_map(|p| p.own_cpu_percent));
        Some(host)
    }
}

/// A sum is known as soon as one sample knew its part.
fn add(sum: &mut Option<u64>, part: Option<u64>) {
    if let Some(part) = part {
        *sum = Some(sum.unwrap_or(0).saturating_add(part));
    }
}

fn raise(peak: &mut Option<f64>, value: Option<f64>) {
    if let Some(value) = value {
        *peak = Some(peak.map_or(value, |p| p.max(value)));
    }
}
