//! Live backend buffers: who allocated how much for what. A buffer's kind shows only after its allocation (its usage is set, tensors
//! are placed in it), so its event waits until then and carries the time of the allocation.

use std::collections::HashMap;

use crate::clock;
use crate::format::resource::MemoryAllocation;
use crate::format::server::{BufferAllocation, BufferFree};
use crate::format::{Level, Line};
use crate::ggml::api::{self, Ptr};
use crate::ggml::view::{TensorPtr, keep};
use crate::graph::class;
use crate::record::{self, expand::shape, stamp::resource_id};

/// Below this size a tensor is no news at MINIMAL.
const LARGE: u64 = 1 << 20;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Model weights.
    Weights,
    /// Keys and values.
    KvCache,
    /// State of recurrent layers.
    RecurrentState,
    /// Intermediate results.
    Compute,
    /// Logits and embeddings.
    Output,
    /// None of these.
    Other,
}

impl Kind {
    /// Name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "kv_cache",
            Self::RecurrentState => "recurrent_state",
            Self::Compute => "compute",
            Self::Output => "output",
            Self::Other => "other",
        }
    }
}

/// One live buffer.
#[derive(Clone, Debug)]
pub struct Buffer {
    id: u64,
    t_ns: u64,
    kind: Option<Kind>,
    size: u64,
    type_name: &'static str,
    device: Option<&'static str>,
    memory_type: &'static str,
    /// Sum of all live buffers after this one's allocation.
    live_bytes: u64,
    told: bool,
    /// Tensors placed before it showed what the buffer is for: weights that are not mapped are declared after they were placed.
    early: Vec<Placement>,
}

/// A tensor that got its place in a buffer.
#[derive(Clone, Debug)]
pub struct Placement {
    t_ns: u64,
    address: usize,
    tensor: Box<str>,
    op: &'static str,
    precision: &'static str,
    ne: [i64; 4],
    nbytes: u64,
    packed_bytes: u64,
    backend: &'static str,
    device: Option<&'static str>,
    memory_type: &'static str,
    usage: &'static str,
}

impl Placement {
    /// The event. Made by the writer for the tensors of a graph, which `step` runs: there may be a thousand.
    #[must_use]
    pub fn line(&self, step: Option<u64>) -> Line {
        let class = class::classify_tensor(&self.tensor, self.op);
        let component = class.component.name();
        let elements = self.ne.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
        Line::MemoryAllocation(MemoryAllocation {
            resource_id: resource_id(self.device.or(Some(self.backend)), "memory", class.layer, component, self.t_ns),
            timestamp: String::new(),
            component_type: component.to_owned(),
            layer_id: class.layer,
            allocation_size_mb: (self.nbytes as f64 / 1024.0 / 1024.0 * 1e6).round() / 1e6,
            memory_type: self.memory_type.to_owned(),
            tensor_shape: shape(&self.ne),
            precision: self.precision.to_owned(),
            estimated_bandwidth_gbps: None,
            compression_ratio: if self.packed_bytes > 0 {
                (elements * 4) as f64 / self.packed_bytes as f64
            } else {
                1.0
            },
            memory_address: (self.address != 0).then(|| format!("{:#x}", self.address)),
            session_id: String::new(),
            step,
            t_ns: self.t_ns,
            backend: Some(self.backend.to_owned()),
            device: self.device.map(str::to_owned),
            tensor: self.tensor.to_string(),
            usage: self.usage.to_owned(),
            tensor_strides: None,
        })
    }
}

/// The tensors that a scheduler has placed for the graph that it runs next: pointers only, since every graph has hundreds.
#[derive(Debug, Default)]
struct Graph {
    t_ns: u64,
    tensors: Vec<(usize, TensorPtr)>,
}

/// All live buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    live: HashMap<usize, Buffer>,
    /// By scheduler.
    graphs: HashMap<usize, Graph>,
    /// The scheduler that is placing a graph right now.
    placing: Option<usize>,
    next_id: u64,
    live_bytes: u64,
    peak_bytes: u64,
}

impl Buffers {
    /// A buffer was allocated (`mapped`: over a file that the host has mapped).
    ///
    /// # Safety
    /// `buffer` is a live buffer of ggml.
    pub unsafe fn allocated(&mut self, buffer: Ptr, mapped: bool) {
        // SAFETY: the host has just got this buffer from ggml.
        let size = unsafe { api::ggml_backend_buffer_get_size(buffer) }.unwrap_or(0) as u64;
        // SAFETY: as above.
        let buft = unsafe { api::ggml_backend_buffer_get_type(buffer) }.filter(|b| !b.is_null());
        // SAFETY: a buffer type lives as long as its backend.
        let type_name = buft.and_then(|b| unsafe { api::text(api::ggml_backend_buft_name(b)) }).map(|n| keep(&n));
        // SAFETY: as above.
        let device = buft.and_then(|b| unsafe { api::ggml_backend_buft_get_device(b) }).filter(|d| !d.is_null());
        // SAFETY: a device lives as long as the process.
        let on_cpu = device.and_then(|d| unsafe { api::ggml_backend_dev_type(d) }).is_none_or(|t| t == 0);
        // SAFETY: as above.
        let device = device.and_then(|d| unsafe { api::text(api::ggml_backend_dev_name(d)) }).map(|n| keep(&n));
        // SAFETY: the buffer again.
        let is_host = unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false);
        let new = Buffer {
            id: 0,
            t_ns: clock::now_ns(),
            kind: mapped.then_some(Kind::Weights),
            size,
            type_name: type_name.unwrap_or("unknown"),
            device,
            memory_type: if mapped {
                "mmap"
            } else if is_host || on_cpu {
                "ram"
            } else {
                "vram"
            },
            live_bytes: 0,
            told: false,
            early: Vec::new(),
        };
        // The host may have freed a buffer behind our back (before we were started): its address is free for a new one.
        if let Some(old) = self.live.insert(buffer as usize, new) {
            self.live_bytes -= old.size;
        }
        self.live_bytes += size;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        if let Some(b) = self.live.get_mut(&(buffer as usize)) {
            b.live_bytes = self.live_bytes;
        }
        if mapped {
            self.tell(buffer as usize);
        }
    }

    /// The host declared what the buffer is for.
    pub fn usage_set(&mut self, buffer: Ptr, usage: u32) {
        let kind = match usage {
            1 => Kind::Weights,
            2 => Kind::Compute,
            _ => return,
        };
        self.set_kind(buffer as usize, kind);
    }

    /// The scheduler begins to place the tensors of a graph; what it placed before is gone.
    pub fn graph_begins(&mut self, sched: Ptr) {
        self.placing = Some(sched as usize);
        let graph = self.graphs.entry(sched as usize).or_default();
        graph.t_ns = clock::now_ns();
        graph.tensors.clear();
    }

    /// The scheduler has placed the graph.
    pub fn graph_ends(&mut self) {
        self.placing = None;
    }

    /// The scheduler is freed, and its graphs with it.
    pub fn sched_freed(&mut self, sched: Ptr) {
        self.graphs.remove(&(sched as usize));
    }

    /// A tensor was placed in the buffer. Gives its event if it is to be told now. Tensors of a graph are told with a sampled step
    /// that runs it, see [`Self::graph_of`]: a busy server builds many graphs a second.
    pub fn tensor_placed(&mut self, buffer: Ptr, t: TensorPtr, level: Level) -> Option<Placement> {
        let key = buffer as usize;
        if self.live.get(&key)?.kind.is_none() {
            let starts = |p: &[&str]| p.iter().any(|p| t.name().starts_with(p));
            if starts(&["cache_k", "cache_v"]) {
                self.set_kind(key, Kind::KvCache);
            } else if starts(&["cache_r", "cache_s"]) {
                self.set_kind(key, Kind::RecurrentState);
            }
        }
        if let Some(sched) = self.placing {
            self.graphs.entry(sched).or_default().tensors.push((key, t));
            return None;
        }
        let b = self.live.get_mut(&key)?;
        if b.kind == Some(Kind::Compute) {
            return None;
        }
        // Level::Minimal: only what is large.
        let p = Some(b.placement(t, clock::now_ns())).filter(|p| level > Level::Minimal || p.nbytes > LARGE)?;
        if b.kind.is_some() {
            return Some(p);
        }
        b.early.push(p);
        None
    }

    /// The tensors of the graph that `sched` has just run and that were not told yet. The graph must still be alive.
    pub fn graph_of(&mut self, sched: usize, level: Level) -> Vec<Placement> {
        let Some(graph) = self.graphs.get_mut(&sched) else { return Vec::new() };
        let tensors = std::mem::take(&mut graph.tensors);
        tensors
            .iter()
            .filter_map(|(buffer, t)| Some(self.live.get(buffer)?.placement(*t, graph.t_ns)))
            .filter(|p| level == Level::Verbose || p.nbytes > LARGE)
            .collect()
    }

    /// The call that allocated has returned: buffers that showed no kind are outputs of a context (no tensors, no usage) or other.
    pub fn settle(&mut self, in_context: bool) {
        let open: Vec<usize> = self.live.iter().filter(|(_, b)| !b.told && b.kind.is_none()).map(|(k, _)| *k).collect();
        for key in open {
            self.set_kind(key, if in_context { Kind::Output } else { Kind::Other });
        }
    }

    /// A buffer is about to be freed.
    pub fn freed(&mut self, buffer: Ptr) {
        self.set_kind_if_open(buffer as usize);
        let Some(b) = self.live.remove(&(buffer as usize)) else { return };
        self.live_bytes -= b.size;
        if b.size == 0 {
            return;
        }
        record::push_line(Line::BufferFree(BufferFree {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: clock::now_ns(),
            buffer_id: b.id,
            kind: b.kind.unwrap_or(Kind::Other).name().to_owned(),
            size_bytes: b.size,
            backend: b.type_name.to_owned(),
            live_bytes: self.live_bytes,
        }));
    }

    /// Largest sum of live buffers.
    #[must_use]
    pub const fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Whether any buffer with weights in it is alive: a load that allocated none was a probe (`--fit`).
    #[must_use]
    pub fn weights_bytes_since(&self, t_ns: u64) -> u64 {
        self.live.values().filter(|b| b.t_ns >= t_ns && b.kind == Some(Kind::Weights)).map(|b| b.size).sum()
    }

    fn set_kind_if_open(&mut self, key: usize) {
        if self.live.get(&key).is_some_and(|b| b.kind.is_none()) {
            self.set_kind(key, Kind::Other);
        }
    }

    fn set_kind(&mut self, key: usize, kind: Kind) {
        if let Some(b) = self.live.get_mut(&key) {
            b.kind.get_or_insert(kind);
            self.tell(key);
        }
    }

    fn tell(&mut self, key: usize) {
        let Some(b) = self.live.get_mut(&key) else { return };
        // Size 0: a place holder of a fit probe or of an unused backend; it takes no memory.
        if b.told || b.size == 0 {
            return;
        }
        b.told = true;
        self.next_id += 1;
        b.id = self.next_id;
        record::push_line(Line::BufferAllocation(BufferAllocation {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: b.t_ns,
            buffer_id: b.id,
            kind: b.kind.unwrap_or(Kind::Other).name().to_owned(),
            size_bytes: b.size,
            backend: b.type_name.to_owned(),
            device: b.device.map(str::to_owned),
            memory_type: b.memory_type.to_owned(),
            live_bytes: b.live_bytes,
        }));
        let usage = b.kind.unwrap_or(Kind::Other);
        for p in std::mem::take(&mut b.early) {
            // What is computed is told with the graph.
            if usage != Kind::Compute {
                record::push_line(Placement { usage: usage.name(), ..p }.line(None));
            }
        }
    }
}

impl Buffer {
    fn placement(&self, t: TensorPtr, t_ns: u64) -> Placement {
        let view = t.view();
        Placement {
            t_ns,
            address: t.data() as usize,
            tensor: view.name.into(),
            op: t.op(),
            precision: t.type_name(),
            ne: view.ne,
            nbytes: view.nbytes,
            packed_bytes: view.packed_bytes(),
            backend: self.type_name,
            device: self.device,
            memory_type: self.memory_type,
            usage: self.kind.map_or("other", Kind::name),
        }
    }
}
