//! What was seen of steps becomes lines: a sampled step event by event, an interval's totals, the totals
//! of the recording.
//!
//! Before it: `observe`, which measures. After it: `record`, whose writer asks [`Steps`] as one of its sources.

pub mod devices;
pub mod step;
pub mod summary;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::format::{Level, Line, figures};
use crate::journal::{Moment, Sample, Source, dropped};
use crate::observe;
use crate::observe::recording::{self, Recording};
use crate::observe::sample::StepSample;
use step::BestRates;
use summary::Collector;

/// The steps of one recording, as the writer hears of them.
#[derive(Debug)]
pub struct Steps {
    recording: Arc<Recording>,
    collector: Collector,
    rates: BestRates,
}

impl Steps {
    /// A recording begins.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        let recording = recording::current();
        Self { collector: Collector::new(&recording, now_ns), recording, rates: BestRates::default() }
    }
}

impl Source for Steps {
    fn expand(&mut self, step: &dyn Sample, level: Level, out: &mut Vec<Line>) {
        if let Some(sample) = (step as &dyn Any).downcast_ref::<StepSample>() {
            out.extend(step::expand(sample, level, &mut self.rates));
        }
    }

    fn complete(&mut self, line: &mut Line, _before: &mut Vec<Line>) {
        let Line::ResourceSessionSummary(whole) = line else { return };
        if !whole.session_id.is_empty() {
            // Of a session of the caller's own, which says what it is the sum of.
            return;
        }
        let (memory, requests) = {
            let host = observe::host();
            (host.buffers.peak_bytes(), host.requests.ended())
        };
        let totals = &self.recording.totals;
        whole.total_memory_mb = memory.map(|bytes| figures::round(bytes as f64 / 1024.0 / 1024.0));
        whole.total_compute_gflops = totals.sum(|p| &p.flops) as f64 / 1e9;
        whole.component_flows = totals.flows.load(Ordering::Relaxed);
        whole.steps = totals.sum(|p| &p.steps);
        whole.requests = requests;
    }

    fn interval(&mut self, at: Moment, out: &mut Vec<Line>) {
        if let Some((summary, missing)) = self.collector.collect(at.now_ns, at.level) {
            dropped::count("rate_limit", "step_events", missing.left_out);
            dropped::count("warm_up", "step_events", missing.warm_ups);
            out.push(Line::StepSummary(summary));
        }
        if at.level >= Level::Detailed {
            out.extend(summary::moe_lines(&self.recording, at.now_ns).map(Line::MoeRouting));
        }
    }
}
