//! What the GPUs did: from the lines of each device, and from its summary where the log was closed in order.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::format::Line;
use crate::format::gpu::{GpuSample, GpuSummary};

/// A line of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the session began.
    pub t_s: f64,
    /// Mean power since the line before, milliwatts.
    pub power_mw: Option<f64>,
    /// Mean share of time in which a kernel ran, percent.
    pub busy_percent: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
}

/// The answer for one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// Number within the log.
    pub device: u32,
    /// Name that the driver gives.
    pub name: Option<String>,
    /// Index of the MIG instance; `null` for a whole GPU.
    pub mig_instance: Option<u32>,
    /// `nvml` or `amdgpu`.
    pub source: String,
    /// Readings.
    pub samples: u64,
    /// Mean power, milliwatts.
    pub power_mean_mw: Option<f64>,
    /// Largest power, milliwatts.
    pub power_max_mw: Option<f64>,
    /// Energy over the session, millijoules.
    pub energy_mj: Option<f64>,
    /// Energy over all generated tokens; `null` in a log that was not closed in order.
    pub joules_per_token: Option<f64>,
    /// Mean share of time in which a kernel ran, percent.
    pub busy_mean_percent: Option<f64>,
    /// Mean SM activity, percent.
    pub sm_utilization_mean_percent: Option<f64>,
    /// Most memory in use.
    pub memory_peak_bytes: Option<u64>,
    /// Memory of the device.
    pub memory_total_bytes: Option<u64>,
    /// Most memory of the process.
    pub process_memory_peak_bytes: Option<u64>,
    /// Highest temperature that was logged, degrees Celsius.
    pub temperature_max_c: Option<f64>,
    /// What held the clocks down, and in how many lines.
    pub throttle_reasons: BTreeMap<String, u64>,
    /// Why it was not read to the end.
    pub lost: Option<String>,
    /// Every line.
    pub series: Vec<Point>,
}

/// Gathers [`Gpu`]s.
#[derive(Debug, Default)]
pub struct Fold {
    devices: BTreeMap<u32, Device>,
}

#[derive(Debug, Default)]
struct Device {
    last: GpuSample,
    summary: Option<GpuSummary>,
    samples: u64,
    power: Weighted,
    busy: Weighted,
    sm: Weighted,
    power_max_mw: Option<f64>,
    temperature_max_c: Option<f64>,
    memory_peak: Option<u64>,
    process_peak: Option<u64>,
    first_energy_mj: Option<u64>,
    throttle: BTreeMap<String, u64>,
    series: Vec<Point>,
}

/// A mean of means.
#[derive(Debug, Default)]
struct Weighted(f64, u64);

impl Weighted {
    fn add(&mut self, mean: Option<f64>, weight: u64) {
        if let Some(mean) = mean {
            self.0 += mean * weight as f64;
            self.1 = self.1.saturating_add(weight);
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.1 > 0).then(|| self.0 / self.1 as f64)
    }
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        match line {
            Line::GpuSample(e) => self.devices.entry(e.device).or_default().add(e, t_s),
            // Named sessions within the log have summaries too; the log's own comes last.
            Line::GpuSummary(e) => self.devices.entry(e.totals.device).or_default().summary = Some(e.clone()),
            _ => {}
        }
    }

    /// The results by device.
    #[must_use]
    pub fn finish(self) -> Vec<Gpu> {
        self.devices.into_iter().map(|(number, device)| device.finish(number)).collect()
    }
}

impl Device {
    fn add(&mut self, e: &GpuSample, t_s: f64) {
        let s = &e.since_last;
        if self.series.is_empty() {
            self.first_energy_mj = e.energy_mj;
        }
        self.samples = self.samples.saturating_add(s.samples);
        self.power.add(s.power_mean_mw, s.samples);
        self.busy.add(s.busy_mean_percent, s.samples);
        self.sm.add(s.sm_utilization_mean_percent, s.samples);
        self.power_max_mw = larger(self.power_max_mw, s.power_max_mw);
        self.temperature_max_c = larger(self.temperature_max_c, e.temperature_c);
        self.memory_peak = self.memory_peak.max(s.memory_peak_bytes);
        self.process_peak = self.process_peak.max(e.process_memory_bytes);
        for reason in e.throttle_reasons.iter().flatten() {
            let n = self.throttle.entry(reason.clone()).or_default();
            *n = n.saturating_add(1);
        }
        self.series.push(Point {
            t_s,
            power_mw: s.power_mean_mw,
            busy_percent: s.busy_mean_percent,
            memory_used_bytes: e.memory_used_bytes,
        });
        self.last = e.clone();
    }

    fn finish(self, device: u32) -> Gpu {
        let counted = self.last.energy_mj.zip(self.first_energy_mj).and_then(|(b, a)| b.checked_sub(a));
        let totals = self.summary.as_ref().map(|s| &s.totals);
        let named = self.summary.as_ref().and_then(|s| s.name.clone());
        Gpu {
            device,
            name: self.last.name.or(named),
            mig_instance: self.last.mig_instance,
            source: self.last.source,
            samples: totals.map_or(self.samples, |t| t.samples),
            power_mean_mw: totals.map_or(self.power.mean(), |t| t.power_mean_mw),
            power_max_mw: totals.map_or(self.power_max_mw, |t| t.power_max_mw),
            energy_mj: totals.map_or(counted.map(|mj| mj as f64), |t| t.energy_mj),
            joules_per_token: totals.and_then(|t| t.joules_per_token),
            busy_mean_percent: totals.map_or(self.busy.mean(), |t| t.busy_mean_percent),
            sm_utilization_mean_percent: totals.map_or(self.sm.mean(), |t| t.sm_utilization_mean_percent),
            memory_peak_bytes: totals.map_or(self.memory_peak, |t| t.memory_peak_bytes),
            memory_total_bytes: self.last.memory_total_bytes,
            process_memory_peak_bytes: totals.map_or(self.process_peak, |t| t.process_memory_peak_bytes),
            temperature_max_c: self.summary.as_ref().map_or(self.temperature_max_c, |s| s.temperature_max_c),
            throttle_reasons: self.throttle,
            lost: self.summary.and_then(|s| s.lost),
            series: self.series,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;
    use crate::format::gpu::{GpuInterval, GpuSample, GpuSummary, GpuUse};

    fn sample(power: f64, samples: u64, energy: u64) -> Line {
        Line::GpuSample(GpuSample {
            device: 1,
            energy_mj: Some(energy),
            throttle_reasons: Some(vec!["sw_power_cap".to_owned()]),
            since_last: GpuInterval {
                samples,
                power_mean_mw: Some(power),
                power_max_mw: Some(power + 1.0),
                ..GpuInterval::default()
            },
            ..GpuSample::default()
        })
    }

    #[test]
    fn a_log_that_was_cut_off_is_summed_up_from_its_lines() {
        let mut fold = Fold::default();
        fold.add(&sample(100.0, 1, 1000), 0.0);
        fold.add(&sample(400.0, 2, 1700), 1.0);
        let gpu = fold.finish().pop().unwrap();
        assert_eq!((gpu.device, gpu.samples, gpu.power_mean_mw, gpu.power_max_mw), (1, 3, Some(300.0), Some(401.0)));
        assert_eq!((gpu.energy_mj, gpu.joules_per_token, gpu.throttle_reasons["sw_power_cap"]), (Some(700.0), None, 2));
    }

    #[test]
    fn the_summary_knows_better() {
        let mut fold = Fold::default();
        fold.add(&sample(100.0, 1, 1000), 0.0);
        let totals =
            GpuUse { device: 1, samples: 9, energy_mj: Some(5.5), joules_per_token: Some(0.1), ..GpuUse::default() };
        fold.add(
            &Line::GpuSummary(GpuSummary {
                timestamp: String::new(),
                session_id: String::new(),
                t_ns: 0,
                duration_ms: 0.0,
                name: Some("Stand-in".to_owned()),
                uuid: None,
                temperature_max_c: None,
                lost: None,
                totals,
            }),
            1.0,
        );
        let gpu = fold.finish().pop().unwrap();
        assert_eq!((gpu.samples, gpu.energy_mj, gpu.power_mean_mw), (9, Some(5.5), None));
        assert_eq!((gpu.name.as_deref(), gpu.joules_per_token), (Some("Stand-in"), Some(0.1)));
    }
}
