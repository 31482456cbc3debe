//! What this process uses of the machine, from /proc: differences between two samples, `None` where a file or a
//! value is missing.

use std::fs;

use crate::format::Line;
use crate::format::figures::round;
use crate::format::summary::HostSample;
use crate::gpu::rapl;
use crate::journal::{Moment, Source};
use crate::{clock, gpu, host};

/// Between two samples that lie closer together no share of time is told. The kernel adds up what threads on other
/// cores have run at its ticks, up to 10 ms apart: of two samples a few milliseconds apart one may hold a tick that
/// the other lacks.
const LEAST_NS: u64 = 50_000_000;

/// Takes samples; keeps the last counters.
#[derive(Debug, Default)]
pub struct Sampler {
    last: Option<Counters>,
    packages: rapl::Packages,
}

#[derive(Clone, Debug, Default)]
struct Counters {
    /// When the processor's time was read, between the files: some of them take the kernel a while.
    read_ns: u64,
    own_cpu_ns: u64,
    cpu_ns: u64,
    minor: Option<u64>,
    major: Option<u64>,
    switches: Option<u64>,
    read: Option<u64>,
    written: Option<u64>,
}

impl Sampler {
    /// A sample at `t_ns`. Runs on the writer's thread, whose CPU time, with that of reading GPUs, is
    /// the library's own.
    pub fn sample(&mut self, t_ns: u64) -> HostSample {
        let page = host::page_bytes();
        let stat = read("/proc/self/stat");
        // Fields are counted after the command name, which may itself hold spaces and parentheses.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok());
        let io = read("/proc/self/io");
        let now = Counters {
            read_ns: clock::now_ns(),
            cpu_ns: host::process_cpu_ns(),
            own_cpu_ns: host::thread_cpu_ns() + gpu::own_cpu_ns(),
            minor: field(10),
            major: field(12),
            switches: value(&read("/proc/self/status"), "nonvoluntary_ctxt_switches:"),
            read: value(&io, "read_bytes:"),
            written: value(&io, "write_bytes:"),
        };
        let last = self.last.replace(now.clone());
        let since = |get: fn(&Counters) -> Option<u64>| Some(get(&now)?.saturating_sub(get(last.as_ref()?)?));
        let wall_ns = last.as_ref().map(|l| now.read_ns.saturating_sub(l.read_ns)).filter(|&d| d >= LEAST_NS);
        let energy_mj = self.packages.since_last_mj(rapl::ZONES.as_ref());
        let percent = |ns: f64| wall_ns.map(|w| ns / w as f64 * 100.0);
        HostSample {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns,
            rss_bytes: read("/proc/self/statm")
                .split_whitespace()
                .nth(1)
                .and_then(|p| p.parse::<u64>().ok())
                .map(|p| p * page),
            cpu_percent: since(|c| Some(c.cpu_ns)).and_then(|ns| percent(ns as f64)),
            own_cpu_percent: last.as_ref().and_then(|l| percent(now.own_cpu_ns.saturating_sub(l.own_cpu_ns) as f64)),
            threads: field(20),
            major_faults: since(|c| c.major),
            minor_faults: since(|c| c.minor),
            involuntary_switches: since(|c| c.switches),
            read_bytes: since(|c| c.read),
            write_bytes: since(|c| c.written),
            load_1m: read("/proc/loadavg").split_whitespace().next().and_then(|l| l.parse().ok()),
            available_bytes: value(&read("/proc/meminfo"), "MemAvailable:").map(|kb| kb * 1024),
            cpu_pressure_percent: pressure("cpu"),
            memory_pressure_percent: pressure("memory"),
            io_pressure_percent: pressure("io"),
            cpu_package_energy_mj: energy_mj,
            // Millijoules over nanoseconds are 10^9 milliwatts.
            cpu_package_power_mw: energy_mj.zip(wall_ns).map(|(mj, ns)| round(mj / ns as f64 * 1e9)),
        }
    }
}

impl Source for Sampler {
    fn interval(&mut self, at: Moment, out: &mut Vec<Line>) {
        out.push(Line::HostSample(self.sample(at.now_ns)));
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after `key` at the beginning of a line.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// PSI, `some avg10`: the share of the last 10 seconds in which some task waited.
fn pressure(resource: &str) -> Option<f64> {
    let text = read(&format!("/proc/pressure/{resource}"));
    let some = text.lines().find(|l| l.starts_with("some"))?;
    some.split_whitespace().find_map(|w| w.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Sampler;

    #[test]
    fn samples_close_together_tell_no_share_and_others_no_more_than_the_processors_give() {
        let mut s = Sampler::default();
        let most = std::thread::available_parallelism().map_or(1, usize::from) as f64 * 100.0;
        let mut after = |micros| {
            let until = std::time::Instant::now() + std::time::Duration::from_micros(micros);
            while std::time::Instant::now() < until {}
            s.sample(crate::clock::now_ns()).cpu_percent
        };
        after(0);
        for _ in 0..10 {
            assert_eq!(after(2_200), None, "closer than the kernel's clock counts");
            let share = after(60_000).unwrap();
            assert!(share > 0.0 && share <= most * 1.25, "{share} of {most}");
        }
    }

    #[test]
    fn second_sample_has_differences_and_sees_our_own_work() {
        let mut s = Sampler::default();
        let first = s.sample(crate::clock::now_ns());
        assert!(first.cpu_percent.is_none() && first.rss_bytes.unwrap() > 100_000);
        let until = std::time::Instant::now() + std::time::Duration::from_millis(60);
        let mut x = 0u64;
        while std::time::Instant::now() < until {
            x = std::hint::black_box(x.wrapping_add(1));
        }
        let second = s.sample(crate::clock::now_ns());
        assert!(second.own_cpu_percent.unwrap() > 10.0, "{second:?}");
        assert!(second.threads.unwrap() >= 1);
    }
}
