//! The times of one graph that is shown node by node: each node runs alone, so its time is its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::graph::Graph;
use crate::ggml::view::TensorPtr;
use crate::journal::rate::Permit;
use crate::journal::{self, Event, rate};
use crate::observe::plan::{Fate, Plan};
use crate::observe::recording::Recording;
use crate::observe::sample::StepSample;
use crate::observe::timer::{Span, Sums};

/// Times of a graph's nodes.
#[derive(Debug)]
pub struct Times {
    /// When its first node was asked for, and its last one done.
    start_ns: u64,
    end_ns: u64,
    /// It may be written event by event.
    permit: Option<Permit>,
    prefill: bool,
    /// Times of the nodes, if it is written.
    spans: Vec<Span>,
    sums: Sums,
    times: Vec<(u32, u64)>,
}

impl Times {
    /// A graph begins now.
    #[must_use]
    pub fn new(start_ns: u64) -> Self {
        Self {
            start_ns,
            end_ns: start_ns,
            permit: None,
            prefill: false,
            spans: Vec::new(),
            sums: Sums::default(),
            times: Vec::new(),
        }
    }

    /// The graph processes so many tokens, so it is a step that may be written.
    pub fn is_a_step(&mut self, n_tokens: u64) {
        self.prefill = n_tokens > 1;
        self.permit = rate::may_sample(self.prefill, self.start_ns);
    }

    /// Node `at` of the graph was computed.
    pub fn done(&mut self, graph: &Graph, at: usize, t: TensorPtr, [start_ns, end_ns]: [u64; 2], to: &Recording) {
        let ns = end_ns.saturating_sub(start_ns);
        self.end_ns = end_ns;
        self.sums.op_ns += ns;
        self.sums.ops += 1;
        self.times.push((at as u32, ns));
        if self.permit.is_some() {
            self.spans.push(Span { node: at as u32, until: at as u32 + 1, start_ns, end_ns, barrier_ns: 0 });
        }
        // The ids are a source, so they live until the node is done.
        if graph.node(at).is_some_and(|n| n.counts_experts && n.place.is_cpu) {
            to.routing.observe(t);
        }
    }

    /// The graph is over: its totals, and its events if it is written.
    pub fn account(self, plan: Arc<Plan>, reused: bool, step: Option<u64>, to: &Recording) {
        for &(at, ns) in &self.times {
            plan.add_time(at as usize, at as usize + 1, ns);
        }
        let fate = if self.permit.is_some() { Fate::Written } else { Fate::LeftOut };
        to.account(&plan, self.prefill, reused, self.end_ns.saturating_sub(self.start_ns), &self.sums, fate);
        let Some(permit) = self.permit else { return };
        to.totals.sampled.fetch_add(1, Ordering::Relaxed);
        journal::push(Event::Step(Box::new(StepSample {
            plan,
            step,
            permit,
            start_ns: self.start_ns,
            end_ns: self.end_ns,
            spans: self.spans,
            sums: self.sums,
            parts: Vec::new(),
            transfers: Vec::new(),
            workers_ns: Vec::new(),
            sequences: Vec::new(),
            placements: Vec::new(),
        })));
    }
}
