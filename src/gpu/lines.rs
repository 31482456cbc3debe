//! Readings to lines: every one at VERBOSE, one a second and device at DETAILED, one a summary interval at MINIMAL.
//! What is not written itself is in the next line's means and peaks.

use super::history::Mean;
use super::reading::{Identity, Reading};
use super::sampler::refresh;
use super::{SHARED, Shared, energy_is_settled, is_settled, mark_energy, measures_sm, sm_utilization, use_between};
use crate::format::figures::round;
use crate::format::gpu::{GpuInterval, GpuSample, GpuSummary, GpuUse};
use crate::format::summary::InstrumentationState;
use crate::format::{Level, Line};
use crate::journal::{self, Event, Moment, Source, dropped};

/// A second, less what a reading may come early.
const SECOND_NS: u64 = 950_000_000;

/// The GPUs of one recording, as the writer hears of them; keeps what was not written yet.
#[derive(Debug)]
pub struct Gpus {
    open: Vec<Open>,
    began_ns: u64,
    /// Tokens of the requests that ended.
    generated: u64,
    /// When the caller's session began, and the tokens generated before.
    named_began: (u64, u64),
}

/// Readings of a device since its last line.
#[derive(Debug, Default)]
struct Open {
    last: Option<Reading>,
    since_ns: Option<u64>,
    samples: u64,
    power: Mean,
    busy: Mean,
    sm: Mean,
    memory_peak: Option<u64>,
}

impl Source for Gpus {
    fn drain(&mut self, at: Moment, out: &mut Vec<Event>) {
        if at.all {
            refresh();
        }
        out.extend(self.take(at.level, false).into_iter().map(|line| Event::Line(Box::new(line))));
    }

    fn is_settled(&self, event: &Event, now_ns: u64) -> bool {
        match event {
            Event::Line(line) => match &**line {
                Line::RequestEnd(end) => energy_is_settled(end.t_ns, now_ns),
                Line::ResourceSessionSummary(s) if !s.session_id.is_empty() => energy_is_settled(s.t_ns, now_ns),
                _ => true,
            },
            Event::Step(step) => {
                !measures_sm() || step.ended_on_gpu_ns().is_none_or(|end_ns| is_settled(end_ns, now_ns))
            }
            Event::Token(_) => true,
        }
    }

    fn complete(&mut self, line: &mut Line, before: &mut Vec<Line>) {
        match line {
            Line::RequestStart(_) => mark_energy(),
            Line::ResourceTrackingBegin(b) => {
                mark_energy();
                self.named_began = (b.t_ns, self.generated);
            }
            Line::RequestEnd(end) => {
                self.generated += end.generated_tokens;
                let start_ns = end.t_ns.saturating_sub((end.duration_ms * 1e6) as u64);
                end.gpu = use_between(start_ns, end.t_ns, end.generated_tokens);
            }
            Line::ComputeExecution(op) if op.sm_utilization_percent.is_none() => {
                op.sm_utilization_percent = sm_utilization(op.device.as_deref(), op.t_ns);
            }
            // The summary of the caller's session comes with those of the GPUs.
            Line::ResourceSessionSummary(s) if !s.session_id.is_empty() => {
                let (from_ns, generated) = self.named_began;
                for mut line in summaries(from_ns, s.t_ns, self.generated - generated) {
                    line.envelope().session_id.clone_from(&s.session_id);
                    before.push(line);
                }
            }
            _ => {}
        }
    }

    fn interval(&mut self, at: Moment, out: &mut Vec<Line>) {
        out.extend(self.take(at.level, at.ends || at.level == Level::Minimal));
        dropped::count("queue_full", "gpu_sample", take_overflowed());
    }

    fn close(&mut self, now_ns: u64, out: &mut Vec<Line>) {
        out.extend(summaries(self.began_ns, now_ns, self.generated));
    }
}

impl Gpus {
    /// A recording begins.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Self { open: Vec::new(), began_ns: now_ns, generated: 0, named_began: (now_ns, 0) }
    }

    /// The lines that are due. With `all`, an interval ends: every device with a new reading is due.
    fn take(&mut self, level: Level, all: bool) -> Vec<Line> {
        let mut shared = SHARED.lock();
        let mut out: Vec<Line> = std::mem::take(&mut shared.facts).into_iter().map(state).collect();
        let fresh = std::mem::take(&mut shared.fresh);
        for (number, reading) in fresh {
            let (Some(open), Some(device)) = (self.open(number), shared.devices.get(number as usize)) else { continue };
            open.add(reading);
            if open.is_due(level) {
                out.extend(open.line(&device.identity));
            }
        }
        if all {
            for (open, device) in self.open.iter_mut().zip(&shared.devices) {
                out.extend(open.line(&device.identity));
            }
        }
        drop(shared);
        if journal::paused() {
            let before = out.len();
            out.retain(|l| !matches!(l, Line::GpuSample(_)));
            dropped::count("disabled", "gpu_sample", (before - out.len()) as u64);
        }
        out
    }

    fn open(&mut self, number: u32) -> Option<&mut Open> {
        let number = number as usize;
        if self.open.len() <= number {
            self.open.resize_with(number + 1, Open::default);
        }
        self.open.get_mut(number)
    }
}

/// Readings that came too fast for the writer since the last call.
fn take_overflowed() -> u64 {
    std::mem::take(&mut SHARED.lock().overflowed)
}

/// What each device did from `from_ns` to `to_ns`, with `tokens` of all requests that ended.
fn summaries(from_ns: u64, to_ns: u64, tokens: u64) -> Vec<Line> {
    let shared: &Shared = &SHARED.lock();
    let of = |d: &super::Device| {
        let from = d.history.began_ns()?.max(from_ns);
        // The last reading is a moment before the end, and a lost device's long before.
        let until = d.history.ended_ns()?.min(to_ns);
        Some(Line::GpuSummary(GpuSummary {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: to_ns,
            duration_ms: round(until.checked_sub(from)? as f64 / 1e6),
            name: d.identity.name.clone(),
            uuid: d.identity.uuid.clone(),
            temperature_max_c: d.history.temperature_max_c(from, until),
            lost: d.lost.clone(),
            totals: GpuUse { device: d.identity.number, ..d.history.between(from, until, tokens) },
        }))
    };
    shared.devices.iter().filter_map(of).collect()
}

impl Open {
    fn add(&mut self, r: Reading) {
        self.samples += 1;
        self.power.add(r.power_mw);
        self.busy.add(r.busy);
        self.sm.add(r.sm_utilization);
        self.memory_peak = self.memory_peak.max(r.memory_used);
        // Not in every reading: a line without it would be one in ten.
        let before = self.last.take();
        let kept = |get: fn(&Reading) -> Option<u64>| get(&r).or_else(|| before.as_ref().and_then(get));
        let (pcie_tx, pcie_rx, energy_mj) = (kept(|r| r.pcie_tx), kept(|r| r.pcie_rx), kept(|r| r.energy_mj));
        self.last = Some(Reading { pcie_tx, pcie_rx, energy_mj, ..r });
    }

    fn is_due(&self, level: Level) -> bool {
        let Some(now) = self.last.as_ref().map(|r| r.t_ns) else { return false };
        match level {
            Level::Minimal => false,
            Level::Detailed => self.since_ns.is_none_or(|since| now.saturating_sub(since) >= SECOND_NS),
            Level::Verbose => true,
        }
    }

    fn line(&mut self, who: &Identity) -> Option<Line> {
        let r = self.last.take()?;
        let open = std::mem::replace(self, Self { since_ns: Some(r.t_ns), ..Self::default() });
        Some(Line::GpuSample(GpuSample {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: r.t_ns,
            device: who.number,
            name: who.name.clone(),
            uuid: who.uuid.clone(),
            pci_bus_id: who.pci_bus_id.clone(),
            mig_instance: who.mig_instance,
            source: who.source.to_owned(),
            memory_used_bytes: r.memory_used,
            memory_free_bytes: r.memory_free,
            memory_total_bytes: r.memory_total,
            process_memory_bytes: r.process_memory,
            gpu_busy_percent: r.busy,
            memory_busy_percent: r.memory_busy,
            sm_utilization_percent: r.sm_utilization.map(round),
            power_mw: r.power_mw,
            energy_mj: r.energy_mj,
            temperature_c: r.temperature_c,
            sm_clock_mhz: r.sm_clock_mhz,
            memory_clock_mhz: r.memory_clock_mhz,
            pcie_tx_kb_per_s: r.pcie_tx,
            pcie_rx_kb_per_s: r.pcie_rx,
            pcie_link_gen: r.link_gen,
            pcie_link_width: r.link_width,
            throttle_reasons: r.throttle,
            performance_state: r.state.map(|s| format!("P{s}")),
            since_last: GpuInterval {
                interval_ms: open.since_ns.map_or(0.0, |since| round(r.t_ns.saturating_sub(since) as f64 / 1e6)),
                samples: open.samples,
                power_mean_mw: open.power.mean(),
                power_max_mw: open.power.max(),
                busy_mean_percent: open.busy.mean(),
                busy_max_percent: open.busy.max(),
                sm_utilization_mean_percent: open.sm.mean(),
                memory_peak_bytes: open.memory_peak,
            },
        }))
    }
}

fn state(fact: super::Fact) -> Line {
    Line::InstrumentationState(InstrumentationState {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns: fact.t_ns,
        component: "gpu".to_owned(),
        state: fact.state.name().to_owned(),
        reason: fact.reason,
        lost: fact.lost.map(str::to_owned),
    })
}
