//! A graph that runs on several devices: when each was given its part, when it was known to have done it, and what was
//! copied for it.
//!
//! ggml's scheduler hands a part to its backend and goes on; most backends only queue it. So a part's end shows where
//! the scheduler itself has to wait for it: when it synchronises the backend, or copies a result. Nothing else is
//! waited for, unless the setting `LLAMA_RESOURCE_SPLIT_TIMES` asks for it. What is measured is wall time as the host
//! sees it, never the time of a kernel.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::homes;
use super::node::Place;
use super::parts::original;
use super::plan::Plan;
use crate::clock;
use crate::ggml::api::{self, Ptr};
use crate::ggml::view::{TensorPtr, graph_nodes};

/// Whether the host is made to wait for each part.
static SERIALIZE: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The running step of this thread, if it is one that called the scheduler.
    static CURRENT: Cell<*const Splits> = const { Cell::new(std::ptr::null()) };
    /// Memory of the step before, so that a step allocates nothing.
    static SPARE: RefCell<(Vec<PartRun>, Vec<Transfer>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The setting.
pub fn set_serialize(on: bool) {
    SERIALIZE.store(on, Ordering::Relaxed);
}

/// Memory that a copy came from or went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Device.
    pub name: &'static str,
    /// `vram` or `ram`.
    pub memory_type: &'static str,
}

/// The host's memory.
const HOST: Device = Device { name: "CPU", memory_type: "ram" };

/// One part of the plan as it ran.
#[derive(Clone, Copy, Debug)]
pub struct PartRun {
    /// Part of the plan.
    pub part: u32,
    /// Calls of its backend.
    pub calls: u32,
    /// When the first began, monotonic ns.
    pub start_ns: u64,
    /// What the calls took.
    pub call_ns: u64,
    /// When it was known to be done.
    pub end_ns: Option<u64>,
    /// The host was made to wait for it by us.
    pub serialized: bool,
}

/// One tensor that went from one device's memory to another's.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Its number among the plan's copies.
    pub planned: Option<u32>,
    /// Its name, where it is not among them: a step allocates nothing for what its plan names.
    pub tensor: Option<Box<str>>,
    /// Bytes copied.
    pub bytes: u64,
    /// From where.
    pub from: Option<Device>,
    /// To where.
    pub to: Option<Device>,
    /// When the copy began, or the step where it was not seen.
    pub start_ns: u64,
    /// What the call took; `None` where it was not seen.
    pub ns: Option<u64>,
    /// The source's device was still computing, so the call may have waited for it.
    pub waited: bool,
}

/// What is seen of one step. Lives on the stack of the scheduler hook, used by its own thread only.
#[derive(Debug)]
pub struct Splits {
    plan: Arc<Plan>,
    runs: RefCell<Vec<PartRun>>,
    transfers: RefCell<Vec<Transfer>>,
    begun_ns: u64,
    serialize: bool,
}

impl Splits {
    /// For a step that runs `plan`.
    #[must_use]
    pub fn new(plan: Arc<Plan>) -> Self {
        let (mut runs, mut transfers) = SPARE.take();
        runs.reserve(plan.parts.len());
        transfers.reserve(plan.copies.len());
        Self {
            plan,
            runs: RefCell::new(runs),
            transfers: RefCell::new(transfers),
            begun_ns: clock::now_ns(),
            serialize: SERIALIZE.load(Ordering::Relaxed),
        }
    }

    /// Makes this the calling thread's running step until the guard goes - also when a C++ exception goes
    /// through the hook.
    #[must_use]
    pub fn run(&self) -> Running<'_> {
        Running { outer: CURRENT.replace(self), _splits: self }
    }

    /// What was seen, and the copies of the plan that were not: some devices copy among themselves by calls that
    /// are not seen.
    #[must_use]
    pub fn finish(&self) -> (Vec<PartRun>, Vec<Transfer>) {
        let (runs, mut transfers) = (self.runs.take(), self.transfers.take());
        let plan = &self.plan;
        for (i, c) in (0u32..).zip(&plan.copies) {
            let to = plan.nodes.get(c.reader as usize).map(|n| n.place);
            let seen = |t: &Transfer| t.planned == Some(i);
            if c.bytes > 0 && !c.is_weight && !transfers.iter().any(seen) {
                transfers.push(Transfer {
                    planned: Some(i),
                    tensor: None,
                    bytes: c.bytes,
                    from: c.made_at.map(device_of_place),
                    to: to.map(device_of_place),
                    start_ns: self.begun_ns,
                    ns: None,
                    waited: false,
                });
            }
        }
        (runs, transfers)
    }

    fn place(&self, run: &PartRun) -> Option<Place> {
        self.plan.parts.get(run.part as usize).map(|p| p.place)
    }

    /// A backend was called with its part of the graph, or with a piece of it where a callback cuts it.
    fn called(&self, start_ns: u64, backend: Ptr, graph: Ptr) {
        let now = clock::now_ns();
        let mut runs = self.runs.borrow_mut();
        let is_its = |run: &PartRun| self.place(run).is_some_and(|p| p.backend_address == backend as usize);
        if !runs.last().is_some_and(is_its) {
            let next = runs.last().map_or(0, |r| r.part as usize + 1);
            let its = |p: &super::parts::Part| p.place.backend_address == backend as usize;
            let Some(i) = self.plan.parts.iter().skip(next).position(its) else { return };
            let part = (next + i) as u32;
            runs.push(PartRun { part, calls: 0, start_ns, call_ns: 0, end_ns: None, serialized: false });
        }
        let Some(run) = runs.last_mut() else { return };
        let Some(place) = self.plan.parts.get(run.part as usize).map(|p| p.place) else { return };
        run.calls += 1;
        run.call_ns += now.saturating_sub(start_ns);
        // The CPU backend has computed when it returns.
        run.end_ns = place.is_cpu.then_some(now);
        if self.serialize && !place.is_cpu {
            wait(backend, graph, place);
            run.end_ns = Some(clock::now_ns());
            run.serialized = true;
        }
    }

    /// Whatever was given to this backend is done.
    fn done(&self, is_its: impl Fn(Place) -> bool) {
        let now = clock::now_ns();
        for run in self.runs.borrow_mut().iter_mut().filter(|r| r.end_ns.is_none()) {
            if self.place(run).is_some_and(&is_its) {
                run.end_ns = Some(now);
            }
        }
    }

    /// Whether something that was given to this device is not known to be done.
    fn computes(&self, device: Device) -> bool {
        let at = |r: &PartRun| self.place(r).is_some_and(|p| device_of_place(p).name == device.name);
        self.runs.borrow().iter().any(|r| r.end_ns.is_none() && at(r))
    }

    fn copied(&self, start_ns: u64, src: TensorPtr, dst: TensorPtr) {
        let ns = clock::now_ns().saturating_sub(start_ns);
        let bytes = src.span_bytes() as u64;
        if bytes == 0 {
            // An input of no rows; no backend does anything for it.
            return;
        }
        let (from, to) = (device_of(src), device_of(dst));
        let waited = from.is_some_and(|d| self.computes(d));
        self.push(dst.name(), bytes, (from, to), start_ns, ns, waited);
        if let Some(device) = from.filter(|_| waited) {
            // Its result is here, so it has been computed.
            self.done(|p| device_of_place(p).name == device.name);
        }
    }

    /// Bytes from the host's memory to a tensor on a device: the weights of some experts.
    fn uploaded(&self, start_ns: u64, dst: TensorPtr, bytes: u64) {
        let ns = clock::now_ns().saturating_sub(start_ns);
        let planned = self.planned(dst.name());
        let mut transfers = self.transfers.borrow_mut();
        if let Some(t) = transfers.last_mut().filter(|t| planned.is_some() && t.planned == planned) {
            // The next run of neighbouring experts.
            t.bytes += bytes;
            t.ns = t.ns.map(|old| old + ns);
            return;
        }
        drop(transfers);
        self.push(dst.name(), bytes, (Some(HOST), device_of(dst)), start_ns, ns, false);
    }

    fn planned(&self, copy: &str) -> Option<u32> {
        let (_, name) = original(copy)?;
        let left = |i: u32| !self.transfers.borrow().iter().any(|t| t.planned == Some(i));
        // The same tensor may go to several devices, one after the other.
        let mut last = None;
        for (i, _) in (0u32..).zip(&self.plan.copies).filter(|(_, c)| &*c.tensor == name) {
            if left(i) {
                return Some(i);
            }
            last = Some(i);
        }
        last
    }

    fn push(
        &self,
        copy: &str,
        bytes: u64,
        (from, to): (Option<Device>, Option<Device>),
        start_ns: u64,
        ns: u64,
        waited: bool,
    ) {
        let planned = self.planned(copy);
        let tensor = planned.is_none().then(|| original(copy).map_or(copy, |(_, name)| name).into());
        let transfer = Transfer { planned, tensor, bytes, from, to, start_ns, ns: Some(ns), waited };
        self.transfers.borrow_mut().push(transfer);
    }
}

/// Takes back what [`Splits::finish`] gave, for the calling thread's next step.
pub fn keep_for_next(mut runs: Vec<PartRun>, mut transfers: Vec<Transfer>) {
    runs.clear();
    transfers.clear();
    SPARE.set((runs, transfers));
}

/// Waits until `backend` has computed `graph`.
fn wait(backend: Ptr, graph: Ptr, place: Place) {
    // SAFETY: the backend that the scheduler has just called.
    unsafe { api::ggml_backend_synchronize(backend) };
    if !place.answers_late {
        return;
    }
    // Without an output the last nodes of a step have no rows, and nothing would be read.
    let has_value = |t: &TensorPtr| t.span_bytes() > 0 && !t.buffer().is_null() && !t.data().is_null();
    if let Some(t) = graph_nodes(graph).and_then(|n| n.into_iter().rfind(has_value)) {
        let mut few = [0u8; 4];
        let n = few.len().min(t.span_bytes());
        // SAFETY: a tensor with memory, at least `n` bytes of it, into `n` bytes of ours. Its value is not looked at.
        unsafe { api::ggml_backend_tensor_get(t.address().cast(), few.as_mut_ptr().cast(), 0, n) };
    }
}

/// The device that a node's results are on.
#[must_use]
pub fn device_of_place(place: Place) -> Device {
    Device { name: place.device.unwrap_or(place.backend), memory_type: place.memory_type }
}

/// The device that a tensor is on.
fn device_of(t: TensorPtr) -> Option<Device> {
    // SAFETY: the buffer of a live tensor.
    let (_, home) = unsafe { homes::of_buffer(t.buffer()) }?;
    Some(match home.device {
        Some(name) if !home.is_host => Device { name, memory_type: home.memory_type },
        // Pinned memory of a GPU's driver is the host's all the same.
        _ => HOST,
    })
}

/// Ends the step on this thread.
#[derive(Debug)]
pub struct Running<'a> {
    outer: *const Splits,
    _splits: &'a Splits,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

fn with(f: impl FnOnce(&Splits)) {
    let splits = CURRENT.get();
    if !splits.is_null() {
        // SAFETY: `run` put it there, its guard takes it away before it dies, and only this thread looks.
        f(unsafe { &*splits });
    }
}

/// The moment, if a step runs on this thread; 0 otherwise.
#[must_use]
pub fn now() -> u64 {
    if CURRENT.get().is_null() { 0 } else { clock::now_ns() }
}

/// A backend was called, from `start_ns` ([`now`]) on.
pub fn called(start_ns: u64, backend: Ptr, graph: Ptr) {
    if start_ns > 0 {
        with(|s| s.called(start_ns, backend, graph));
    }
}

/// The scheduler has waited for a backend.
pub fn synchronized(backend: Ptr) {
    with(|s| s.done(|p| p.backend_address == backend as usize && !p.answers_late));
}

/// A tensor was copied, from `start_ns` ([`now`]) on.
///
/// # Safety
/// Both are live tensors.
pub unsafe fn copied(start_ns: u64, src: Ptr, dst: Ptr) {
    if start_ns == 0 || src == dst {
        return;
    }
    // SAFETY: the caller's promise.
    if let (Some(src), Some(dst)) = unsafe { (TensorPtr::new(src), TensorPtr::new(dst)) } {
        with(|s| s.copied(start_ns, src, dst));
    }
}

/// Bytes were sent to a tensor, from `start_ns` ([`now`]) on.
///
/// # Safety
/// A live tensor.
pub unsafe fn uploaded(start_ns: u64, dst: Ptr, bytes: usize) {
    if start_ns == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    if let Some(dst) = unsafe { TensorPtr::new(dst) } {
        with(|s| s.uploaded(start_ns, dst, bytes as u64));
    }
}
