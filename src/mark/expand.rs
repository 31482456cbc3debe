//! The writer's side of marks: words become lines, with the spans of each thread followed so that an end knows what it
//! ends and a layer knows what ran inside it.

use std::collections::HashMap;

use super::budget::Budget;
use super::tensor::Described;
use super::totals::{Interval, Work};
use super::words::{Head, Kind, NO_LAYER, Reader};
use super::{lines, ring, sessions, spans};
use crate::format::Line;
use crate::format::figures::{known_memory, mib, round, shape};
use crate::format::resource::{ComponentHandoff, ComputeExecution, MemoryAllocation, MemoryDeallocation, MlpOperation};
use crate::format::server::RequestToken;
use crate::format::session::{ComponentEnd, LayerEnd};
use crate::graph::class::{self, classify_tensor};
use crate::graph::{Node, Tensor, cost};
use crate::journal::dropped;
use crate::journal::stamp::resource_id;
use crate::observe::recording;

/// Allocations whose size is remembered until they are given back.
const MOST_ALLOCATIONS: usize = 1 << 16;

/// What a line takes, roughly: the budget needs no more.
const SPAN_BYTES: usize = 240;
const EVENT_BYTES: usize = 700;

/// A span that is open on some thread.
#[derive(Debug)]
struct Open {
    layer: i32,
    /// Empty for a layer.
    component: String,
    start_ns: u64,
    session: u32,
    written: bool,
    work: Work,
}

/// One thread's spans and results.
#[derive(Debug, Default)]
struct Thread {
    open: Vec<Open>,
    /// Last result by component: what a hand-off hands over.
    results: HashMap<String, (String, u64)>,
}

/// Sums of one session.
#[derive(Debug, Default)]
pub struct Sums {
    /// Floating-point operations of its operations.
    pub flops: u64,
    /// Hand-offs.
    pub handoffs: u64,
    /// Bytes of its allocations that have not been given back.
    pub live_bytes: u64,
    /// The most that were.
    pub peak_bytes: u64,
}

/// Everything the writer knows of marks.
#[derive(Debug)]
pub struct Marks {
    threads: HashMap<u64, Thread>,
    sessions: HashMap<u32, Sums>,
    allocations: HashMap<String, (u64, u32)>,
    budget: Budget,
    pub(super) interval: Interval,
    /// Token ids may be written.
    text: bool,
    words: Vec<u64>,
    full_before: u64,
}

/// Layer of a mark: the one that is open, or else the one that the tensor's name carries.
#[must_use]
pub fn layer_of(open: i32, name: &str, op: &str) -> Option<i32> {
    if open == NO_LAYER { classify_tensor(name, op).layer } else { Some(open) }
}

pub(super) fn known(layer: i32) -> Option<i32> {
    (layer != NO_LAYER).then_some(layer)
}

pub(super) fn step() -> Option<u64> {
    recording::current().totals.last_step()
}

pub(super) fn session_id(number: u32) -> String {
    sessions::name(number).map_or_else(String::new, |id| id.to_string())
}

impl Marks {
    /// Nothing marked yet.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, text: bool, now_ns: u64) -> Self {
        Self {
            threads: HashMap::new(),
            sessions: HashMap::new(),
            allocations: HashMap::new(),
            budget: Budget::new(bytes_per_second, now_ns),
            interval: Interval::new(now_ns),
            text,
            words: Vec::new(),
            full_before: 0,
        }
    }

    /// Makes lines of everything that was marked since the last call.
    pub(super) fn take(&mut self, now_ns: u64, mut out: impl FnMut(Line)) {
        self.budget.fill(now_ns);
        // Before the rings: what was marked before an end that is seen here is in its ring by now.
        let (begun, ended) = sessions::take();
        for b in begun {
            self.sessions.insert(b.number, Sums::default());
            out(lines::tracking_begin(&b));
        }
        let mut words = std::mem::take(&mut self.words);
        let mut gone = Vec::new();
        ring::drain(&mut words, |number, marks| self.thread(number, marks, &mut out), |number| gone.push(number));
        self.words = words;
        for number in gone {
            self.threads.remove(&number);
        }
        for e in ended {
            let sums = self.sessions.remove(&e.number).unwrap_or_default();
            out(lines::summary(&e, &sums));
        }
        let full = ring::dropped_full();
        dropped::count("queue_full", "mark", full.saturating_sub(std::mem::replace(&mut self.full_before, full)));
    }

    /// The recording ends: spans that are still open on some thread end with it.
    pub(super) fn end_open_spans(&mut self, now_ns: u64, mut out: impl FnMut(Line)) {
        for mut thread in std::mem::take(&mut self.threads).into_values() {
            while let Some(open) = thread.open.last() {
                let head = Head {
                    kind: Kind::End,
                    layer: open.layer,
                    t_ns: now_ns,
                    epoch: spans::epoch(),
                    session: open.session,
                };
                if let Some(line) = self.end(&mut thread, &head) {
                    ring::count_direct(1);
                    out(line);
                }
            }
        }
    }

    fn thread(&mut self, number: u64, mut words: &[u64], out: &mut impl FnMut(Line)) {
        let mut thread = self.threads.remove(&number).unwrap_or_default();
        let (mut written, mut refused) = (0, 0);
        while let Some((head, r)) = Reader::first(&mut words) {
            // A thread may have marked once more after the end of the recording before this one.
            if head.epoch != spans::epoch() {
                thread.open.clear();
                continue;
            }
            let inside = thread.open.last().map(|o| o.written);
            let write = match inside {
                Some(false) => false,
                Some(true) => head.kind == Kind::End || self.budget.may_go_on(),
                None => self.budget.open(),
            };
            let line = self.mark(&mut thread, &head, r, write);
            match line.filter(|_| write) {
                Some(line) => {
                    let span = matches!(head.kind, Kind::LayerBegin | Kind::ComponentBegin | Kind::End);
                    self.budget.spend(if span { SPAN_BYTES } else { EVENT_BYTES });
                    written += 1;
                    out(line);
                }
                None => refused += 1,
            }
        }
        ring::count(written, refused);
        dropped::count("rate_limit", "mark", refused);
        self.threads.insert(number, thread);
    }

    fn mark(&mut self, thread: &mut Thread, head: &Head, mut r: Reader<'_>, write: bool) -> Option<Line> {
        match head.kind {
            Kind::LayerBegin | Kind::ComponentBegin => {
                let component = if head.kind == Kind::LayerBegin { String::new() } else { r.text() };
                let line = lines::begin(head, &component);
                thread.open.push(Open {
                    layer: head.layer,
                    component,
                    start_ns: head.t_ns,
                    session: head.session,
                    written: write,
                    work: Work::default(),
                });
                Some(line)
            }
            Kind::End => self.end(thread, head),
            Kind::Compute => Some(self.compute(thread, head, &mut r)),
            Kind::Allocation => Some(self.allocation(thread, head, &mut r)),
            Kind::Deallocation => Some(self.deallocation(head, &mut r)),
            Kind::Mlp => Some(self.mlp(thread, head, &mut r)),
            Kind::Cache => Some(lines::cache(head, &mut r)),
            Kind::Handoff => Some(self.handoff(thread, head, &mut r)),
            Kind::Token => Some(self.token(head, &mut r)),
        }
    }

    fn end(&mut self, thread: &mut Thread, head: &Head) -> Option<Line> {
        let open = thread.open.pop()?;
        let ns = head.t_ns.saturating_sub(open.start_ns);
        match thread.open.last_mut() {
            Some(outer) => outer.work.add(open.work),
            None => self.interval.outermost(ns),
        }
        if open.component.is_empty() {
            self.interval.layer(open.layer, open.work, ns);
        } else {
            self.interval.component(&open.component, open.work, ns);
        }
        let duration_us = Some(round(ns as f64 / 1e3));
        let line = if open.component.is_empty() {
            Line::LayerEnd(LayerEnd {
                timestamp: String::new(),
                layer_id: open.layer,
                duration_us,
                layer_memory_mb: mib(open.work.result_bytes),
                layer_compute_gflops: open.work.flops as f64 / 1e9,
                memory_operations: open.work.moves,
                compute_operations: open.work.computes,
                session_id: session_id(head.session),
                step: step(),
                t_ns: head.t_ns,
            })
        } else {
            Line::ComponentEnd(ComponentEnd {
                timestamp: String::new(),
                component_type: open.component,
                layer_id: known(open.layer),
                duration_us,
                session_id: session_id(head.session),
                step: step(),
                t_ns: head.t_ns,
            })
        };
        open.written.then_some(line)
    }

    fn ran(&mut self, thread: &mut Thread, head: &Head, name: &str, work: Work) {
        if let Some(open) = thread.open.last_mut() {
            open.work.add(work);
        }
        if let Some(sums) = self.sessions.get_mut(&head.session) {
            sums.flops = sums.flops.saturating_add(work.flops);
        }
        self.interval.operation(name, work);
    }

    fn compute(&mut self, thread: &mut Thread, head: &Head, r: &mut Reader<'_>) -> Line {
        let (operation, component) = (r.text(), r.text());
        let (n, n_own, same) = (r.number(), r.number(), r.number() == 1);
        let output = Described::read(r);
        let inputs: Vec<Described> = (0..n).map(|_| Described::read(r)).collect();
        let own: Vec<Described> = (0..n_own).map(|_| Described::read(r)).collect();
        // Where the caller speaks of the node that makes the output, that node is counted with all its sources; an
        // operation of another name with the caller's inputs, if ggml has it. What is left ("attention" of a few
        // tensors) may be anything: its arithmetic is not known.
        let named = ggml_name(&operation);
        let is_the_node = same || named == output.op;
        let op = if is_the_node { output.op.clone() } else { named };
        let sources = if is_the_node && !same { &own } else { &inputs };
        let sources: Vec<Tensor<'_>> = sources.iter().map(|i| i.as_tensor(&i.op)).collect();
        let out = output.as_tensor(&op);
        let costs = cost::cost(&Node { out, src: &sources });
        let flops = cost::known_op(&op).then_some(costs.flops);
        let (read, written) = if cost::known_op(&op) && !class::is_view_op(&op) {
            (costs.bytes_read, costs.bytes_written)
        } else {
            (sources.iter().map(Tensor::packed_bytes).sum(), out.packed_bytes())
        };
        let moves = class::moves_data_only(&op);
        let work = Work {
            flops: costs.flops,
            bytes: read.saturating_add(written),
            result_bytes: out.packed_bytes(),
            moves: u32::from(moves),
            computes: u32::from(!moves),
        };
        self.ran(thread, head, &operation, work);
        remember(thread, &component, &output.name, out.packed_bytes());
        let layer = layer_of(head.layer, &output.name, &output.op);
        let device = output.place.device.or(output.place.buffer_type);
        Line::ComputeExecution(ComputeExecution {
            resource_id: resource_id(device, "compute", layer, &component, head.t_ns),
            timestamp: String::new(),
            operation,
            component_type: component,
            layer_id: layer,
            input_tensors: inputs.iter().map(|i| i.name.clone()).collect(),
            output_shape: shape(&output.ne),
            compute_intensity_gflops: flops.map(|f| f as f64 / 1e9),
            estimated_duration_us: None,
            parallelism_factor: None,
            memory_throughput_gbps: None,
            sm_utilization_percent: None,
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
            backend: output.place.buffer_type.map(str::to_owned),
            device: output.place.device.map(str::to_owned),
            memory_type: known_memory(output.place.memory_type),
            timing: None,
            tensor: output.name,
            precision: output.type_name,
            duration_us: None,
            barrier_us: None,
            gflops_per_s: None,
            bytes_read: read,
            bytes_written: written,
            gbps: None,
            fused_with: Vec::new(),
            source: Some("mark".to_owned()),
        })
    }

    fn allocation(&mut self, thread: &mut Thread, head: &Head, r: &mut Reader<'_>) -> Line {
        let (component, usage) = (r.text(), r.text());
        let t = Described::read(r);
        let view = t.as_tensor(&t.op);
        let layer = layer_of(head.layer, &t.name, &t.op);
        let device = t.place.device.or(t.place.buffer_type);
        let id = resource_id(device, "memory", layer, &component, head.t_ns);
        if let Some(open) = thread.open.last_mut() {
            open.work.moves = open.work.moves.saturating_add(1);
        }
        if let Some(sums) = self.sessions.get_mut(&head.session) {
            sums.live_bytes = sums.live_bytes.saturating_add(t.nbytes);
            sums.peak_bytes = sums.peak_bytes.max(sums.live_bytes);
        }
        if self.allocations.len() < MOST_ALLOCATIONS {
            self.allocations.insert(id.clone(), (t.nbytes, head.session));
        }
        let stored = view.packed_bytes();
        Line::MemoryAllocation(MemoryAllocation {
            resource_id: id,
            timestamp: String::new(),
            component_type: component,
            layer_id: layer,
            allocation_size_mb: mib(t.nbytes),
            memory_type: t.place.memory_type.to_owned(),
            tensor_shape: shape(&t.ne),
            precision: t.type_name.clone(),
            estimated_bandwidth_gbps: None,
            compression_ratio: if stored > 0 { view.elements().saturating_mul(4) as f64 / stored as f64 } else { 1.0 },
            memory_address: (t.data != 0).then(|| format!("{:#x}", t.data)),
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
            backend: t.place.buffer_type.map(str::to_owned),
            device: t.place.device.map(str::to_owned),
            tensor: t.name.clone(),
            usage,
            tensor_strides: Some(t.nb[..shape(&t.ne).len()].to_vec()),
        })
    }

    fn deallocation(&mut self, head: &Head, r: &mut Reader<'_>) -> Line {
        let id = r.text();
        let known = self.allocations.remove(&id);
        if let Some((bytes, session)) = known
            && let Some(sums) = self.sessions.get_mut(&session)
        {
            sums.live_bytes = sums.live_bytes.saturating_sub(bytes);
        }
        Line::MemoryDeallocation(MemoryDeallocation {
            resource_id: id,
            timestamp: String::new(),
            allocation_size_mb: known.map(|(bytes, _)| mib(bytes)),
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
        })
    }

    fn mlp(&mut self, thread: &mut Thread, head: &Head, r: &mut Reader<'_>) -> Line {
        let operation = r.text();
        let (weights, result) = (Described::read(r), Described::read(r));
        let out = result.as_tensor("MUL_MAT");
        let sources = [weights.as_tensor("NONE")];
        let costs = cost::cost(&Node { out, src: &sources });
        let layer = layer_of(head.layer, &weights.name, &weights.op).or_else(|| layer_of(NO_LAYER, &result.name, ""));
        let device = result.place.device.or(result.place.buffer_type);
        let input_bytes = r.number();
        let work = Work {
            flops: costs.flops,
            bytes: sources[0].packed_bytes().saturating_add(out.packed_bytes()).saturating_add(input_bytes),
            result_bytes: out.packed_bytes(),
            moves: 0,
            computes: 1,
        };
        self.ran(thread, head, &operation, work);
        remember(thread, "mlp", &result.name, out.packed_bytes());
        Line::MlpOperation(MlpOperation {
            resource_id: resource_id(device, "mlp", layer, &operation, head.t_ns),
            timestamp: String::new(),
            mlp_operation: operation,
            layer_id: layer,
            weight_shape: shape(&weights.ne),
            activation_shape: shape(&result.ne),
            intermediate_size_mb: mib(out.packed_bytes()),
            activation_memory_peak_mb: mib(out.packed_bytes().saturating_add(input_bytes)),
            activation_function: None,
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
            backend: result.place.buffer_type.map(str::to_owned),
            device: result.place.device.map(str::to_owned),
            duration_us: None,
        })
    }

    fn handoff(&mut self, thread: &Thread, head: &Head, r: &mut Reader<'_>) -> Line {
        let (from, to) = (r.text(), r.text());
        self.interval.handoff();
        if let Some(sums) = self.sessions.get_mut(&head.session) {
            sums.handoffs += 1;
        }
        let handed = thread.results.get(&from);
        Line::ComponentHandoff(ComponentHandoff {
            resource_id: resource_id(None, "flow", known(head.layer), &format!("{from}_to_{to}"), head.t_ns),
            timestamp: String::new(),
            from_component: from,
            to_component: to,
            layer_id: known(head.layer),
            data_size_mb: handed.map(|(_, bytes)| mib(*bytes)),
            transfer_bandwidth_gbps: None,
            memory_pressure: None,
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
            backend: None,
            device: None,
            tensor: handed.map(|(name, _)| name.clone()),
            from_device: None,
            bytes: handed.map(|(_, bytes)| *bytes),
            duration_us: None,
            waited: None,
        })
    }

    fn token(&self, head: &Head, r: &mut Reader<'_>) -> Line {
        let (seq, token, index, since_ns) = (r.number(), r.number(), r.number(), r.number());
        Line::RequestToken(RequestToken {
            timestamp: String::new(),
            session_id: session_id(head.session),
            t_ns: head.t_ns,
            request_id: 0,
            seq_id: seq as u32 as i32,
            index,
            token_id: self.text.then_some(token as u32 as i32),
            since_previous_ms: round(since_ns as f64 / 1e6),
        })
    }
}

/// ggml's word for an operation that people call otherwise.
fn ggml_name(operation: &str) -> String {
    let upper = operation.to_ascii_uppercase();
    match upper.as_str() {
        "MATMUL" | "GEMM" => "MUL_MAT".to_owned(),
        "SOFTMAX" => "SOFT_MAX".to_owned(),
        "RMSNORM" => "RMS_NORM".to_owned(),
        "COPY" => "CPY".to_owned(),
        _ => upper,
    }
}

/// The last result of `component`, and of the component that is open around it.
fn remember(thread: &mut Thread, component: &str, tensor: &str, bytes: u64) {
    /// Names are few; a caller that makes them up starts anew.
    const MOST: usize = 256;
    if thread.results.len() >= MOST {
        thread.results.clear();
    }
    let around = thread.open.iter().rev().find(|o| !o.component.is_empty()).map(|o| o.component.as_str());
    for name in [Some(component), around].into_iter().flatten() {
        thread.results.insert(name.to_owned(), (tensor.to_owned(), bytes));
    }
}
