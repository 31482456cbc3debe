//! A device's readings over time, in bounded memory: what a request used is asked when it ends, however long
//! ago it began.
//!
//! Energy is kept as a running total, so that its difference between two moments is exact whatever lies between them.
//! The counter is not in every reading (asking for it may cost milliseconds); between two of its values the total
//! grows as the power did. Peaks and sums are kept by segment. When there are too many segments, the older half is
//! merged two by two: the further back a request began, the coarser is the edge of its peaks and means, by a small
//! share of its length.

use super::reading::Reading;
use crate::format::figures::round;
use crate::format::gpu::GpuUse;

/// Segments that are kept: seven minutes at ten a second before the first are merged, half a megabyte.
const MOST_SEGMENTS: usize = 4096;

/// Readings behind `start_ns` up to `end_ns`; the totals are those at `end_ns`.
#[derive(Clone, Debug)]
struct Segment {
    end_ns: u64,
    /// Total of the energy counter since the first reading; an interim value behind the counter's last one.
    counter_mj: f64,
    /// How often the counter was not there, or went back.
    counter_gaps: u64,
    /// Integral of power since the first reading.
    integral_mj: f64,
    /// How often there was no power.
    power_gaps: u64,
    samples: u64,
    power: Mean,
    busy: Mean,
    sm: Mean,
    memory_peak: Option<u64>,
    process_peak: Option<u64>,
    process_unknown: bool,
    temperature_max: Option<f64>,
}

/// Sum, number and largest of the values that are known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    n: u64,
    max: Option<f64>,
}

impl Mean {
    /// Takes a value in, if there is one.
    pub fn add(&mut self, value: Option<f64>) {
        self.join(&Self { sum: value.unwrap_or(0.0), n: value.is_some().into(), max: value });
    }

    fn join(&mut self, other: &Self) {
        self.sum += other.sum;
        self.n += other.n;
        self.max = larger(self.max, other.max);
    }

    /// The mean, `None` without a value.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| round(self.sum / self.n as f64))
    }

    /// The largest value.
    #[must_use]
    pub const fn max(&self) -> Option<f64> {
        self.max
    }
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

impl Segment {
    /// Takes the later neighbour in.
    fn join(&mut self, later: &Self) {
        self.end_ns = later.end_ns;
        (self.counter_mj, self.counter_gaps) = (later.counter_mj, later.counter_gaps);
        (self.integral_mj, self.power_gaps) = (later.integral_mj, later.power_gaps);
        self.gather(later);
    }

    /// Adds sums and peaks alone.
    fn gather(&mut self, other: &Self) {
        self.samples += other.samples;
        self.power.join(&other.power);
        self.busy.join(&other.busy);
        self.sm.join(&other.sm);
        self.memory_peak = self.memory_peak.max(other.memory_peak);
        self.process_peak = self.process_peak.max(other.process_peak);
        self.process_unknown |= other.process_unknown;
        self.temperature_max = larger(self.temperature_max, other.temperature_max);
    }
}

/// All readings of a device.
#[derive(Debug, Default)]
pub struct History {
    segments: Vec<Segment>,
    /// Time and power of the last reading.
    last: Option<(u64, Option<f64>)>,
    /// The last value of the energy counter, and how many segments came after it.
    counter: Option<(u64, usize)>,
}

impl History {
    /// Takes a reading in; readings come in order of time.
    pub fn add(&mut self, r: &Reading) {
        let one = |value| {
            let mut mean = Mean::default();
            mean.add(value);
            mean
        };
        let mut segment = Segment {
            end_ns: r.t_ns,
            counter_mj: 0.0,
            counter_gaps: u64::from(r.energy_mj.is_none()),
            integral_mj: 0.0,
            power_gaps: r.power_mw.is_none().into(),
            samples: 1,
            power: one(r.power_mw),
            busy: one(r.busy),
            sm: one(r.sm_utilization),
            memory_peak: r.memory_used,
            process_peak: r.process_memory,
            process_unknown: r.process_memory.is_none(),
            temperature_max: r.temperature_c,
        };
        if let (Some(before), Some(last)) = (self.segments.last(), self.last) {
            let (then_ns, power_mw) = last;
            let seconds = r.t_ns.saturating_sub(then_ns) as f64 / 1e9;
            // Another gap, until the counter's next value says otherwise.
            segment.counter_mj = before.counter_mj;
            segment.counter_gaps = before.counter_gaps + 1;
            let power = r.power_mw.zip(power_mw).map(|(now, then)| (now + then) / 2.0);
            segment.integral_mj = before.integral_mj + power.unwrap_or(0.0) * seconds;
            segment.power_gaps = before.power_gaps + u64::from(power.is_none());
        }
        self.last = Some((r.t_ns, r.power_mw));
        self.segments.push(segment);
        match (r.energy_mj, &mut self.counter) {
            (Some(now), counter) => {
                if let Some((then, after)) = counter.replace((now, 0))
                    && let Some(grown) = now.checked_sub(then)
                {
                    self.spread(after + 1, grown as f64);
                }
            }
            (None, Some((_, after))) if r.energy_left => *after += 1,
            (None, counter) => *counter = None,
        }
        if self.segments.len() > MOST_SEGMENTS {
            self.merge_older_half();
        }
    }

    /// The counter grew by so much over the last `n` segments: each has a share as its power had, or its time where
    /// that is not known.
    fn spread(&mut self, n: usize, grown_mj: f64) {
        let Some(first) = self.segments.len().checked_sub(n + 1) else { return };
        let Some([base, rest @ ..]) = self.segments.get_mut(first..) else { return };
        let Some(end) = rest.last().map(|s| (s.end_ns, s.integral_mj, s.power_gaps)) else { return };
        let by_power = end.2 == base.power_gaps && end.1 > base.integral_mj;
        for s in rest.iter_mut() {
            let share = if by_power {
                (s.integral_mj - base.integral_mj) / (end.1 - base.integral_mj)
            } else {
                (s.end_ns - base.end_ns) as f64 / (end.0 - base.end_ns).max(1) as f64
            };
            s.counter_mj = base.counter_mj + grown_mj * share;
            s.counter_gaps = base.counter_gaps;
        }
        // Exactly, without the error of a division.
        if let Some(last) = rest.last_mut() {
            last.counter_mj = base.counter_mj + grown_mj;
        }
    }

    fn merge_older_half(&mut self) {
        // The first stays alone: it is the beginning of all differences.
        let half = 1 + self.segments.len() / 4 * 2;
        let mut kept = Vec::with_capacity(MOST_SEGMENTS + 1);
        kept.extend(self.segments.first().cloned());
        for pair in self.segments[1..half].chunks(2) {
            if let [first, rest @ ..] = pair {
                let mut joined = first.clone();
                rest.iter().for_each(|later| joined.join(later));
                kept.push(joined);
            }
        }
        kept.extend_from_slice(&self.segments[half..]);
        self.segments = kept;
    }

    /// The first reading's time.
    #[must_use]
    pub fn began_ns(&self) -> Option<u64> {
        self.segments.first().map(|s| s.end_ns)
    }

    /// The last reading's time.
    #[must_use]
    pub fn ended_ns(&self) -> Option<u64> {
        self.segments.last().map(|s| s.end_ns)
    }

    /// What the device did between two moments; the caller fills in which device it is.
    #[must_use]
    pub fn between(&self, from_ns: u64, to_ns: u64, tokens: u64) -> GpuUse {
        let first = self.segments.partition_point(|s| s.end_ns < from_ns);
        let end = self.segments.partition_point(|s| s.end_ns <= to_ns);
        let mut all = self.segments.get(first..end).unwrap_or_default().iter();
        let sum = all.next().map(|s| all.fold(s.clone(), |mut sum, s| (sum.gather(s), sum).1));
        // The memory of this process is read once a second: for a short request, the reading around it counts.
        let around = self.segments.get(first.min(end)..(end + 1).min(self.segments.len())).unwrap_or_default();
        let process_unknown = around.is_empty() || around.iter().any(|s| s.process_unknown);
        let process_peak = around.iter().filter_map(|s| s.process_peak).max();
        let energy = self.energy_mj(from_ns, to_ns);
        GpuUse {
            device: 0,
            samples: sum.as_ref().map_or(0, |s| s.samples),
            power_mean_mw: sum.as_ref().and_then(|s| s.power.mean()),
            power_max_mw: sum.as_ref().and_then(|s| s.power.max()),
            energy_mj: energy.map(|(mj, _)| round(mj)),
            energy_source: energy.map(|(_, source)| source.to_owned()),
            joules_per_token: energy.filter(|_| tokens > 0).map(|(mj, _)| mj / 1e3 / tokens as f64),
            memory_peak_bytes: sum.as_ref().and_then(|s| s.memory_peak),
            process_memory_peak_bytes: process_peak.filter(|&p| p > 0 || !process_unknown),
            busy_mean_percent: sum.as_ref().and_then(|s| s.busy.mean()),
            sm_utilization_mean_percent: sum.as_ref().and_then(|s| s.sm.mean()),
        }
    }

    /// Energy between two moments, and how it was found. Between two readings it grows evenly.
    fn energy_mj(&self, from_ns: u64, to_ns: u64) -> Option<(f64, &'static str)> {
        let (a, b) = (self.place(from_ns)?, self.place(to_ns)?);
        let until = b.0 + usize::from(b.1 > 0.0);
        let (start, end) = (self.segments.get(a.0)?, self.segments.get(until).filter(|_| until > a.0)?);
        let difference = |total: fn(&Segment) -> f64| {
            let at = |(i, share): (usize, f64)| {
                let here = self.segments.get(i).map_or(0.0, total);
                here + share * self.segments.get(i + 1).map_or(0.0, |s| total(s) - here)
            };
            at(b) - at(a)
        };
        if start.counter_gaps == end.counter_gaps {
            return Some((difference(|s| s.counter_mj), "counter"));
        }
        (start.power_gaps == end.power_gaps).then(|| (difference(|s| s.integral_mj), "power"))
    }

    /// The segment that ends at or before `t_ns`, and how far `t_ns` lies on the way to the end of the next; `None`
    /// outside the history.
    fn place(&self, t_ns: u64) -> Option<(usize, f64)> {
        let i = self.segments.partition_point(|s| s.end_ns <= t_ns).checked_sub(1)?;
        let here = self.segments.get(i)?.end_ns;
        match self.segments.get(i + 1) {
            Some(next) => Some((i, (t_ns - here) as f64 / (next.end_ns - here) as f64)),
            None => (here == t_ns).then_some((i, 0.0)),
        }
    }

    /// Whether the last reading had it.
    #[must_use]
    pub fn measures_sm(&self) -> bool {
        self.segments.last().is_some_and(|s| s.sm.mean().is_some())
    }

    /// SM activity of the interval between two readings in which `t_ns` lies.
    #[must_use]
    pub fn sm_utilization(&self, t_ns: u64) -> Option<f64> {
        let i = self.segments.partition_point(|s| s.end_ns < t_ns);
        // The first reading has no interval before it.
        self.segments.get(i).filter(|s| i > 0 && s.samples == 1)?.sm.mean()
    }

    /// Highest temperature between two moments.
    #[must_use]
    pub fn temperature_max_c(&self, from_ns: u64, to_ns: u64) -> Option<f64> {
        let within = self.segments.iter().filter(|s| (from_ns..=to_ns).contains(&s.end_ns));
        within.fold(None, |max, s| larger(max, s.temperature_max))
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
