//! Live backend buffers: who allocated how much for what. A buffer's kind shows only after its allocation (its usage is
//! set, tensors are placed in it), so its event waits until then and carries the time of the allocation. What shows
//! none is `other`.
//!
//! Several threads of a host may build graphs, make contexts and load models at once. So what a thread is in the middle
//! of is kept by thread, and a call that returns settles what its own thread has allocated. Of the tensors of a graph
//! only addresses are kept: they are compared with those of the graph that runs, and read there.

use std::cell::Cell;
use std::collections::HashMap;

use super::placement::Placement;
use super::state;
use crate::clock;
use crate::format::server::{BufferAllocation, BufferFree};
use crate::format::summary::Condition;
use crate::format::{Level, Line};
use crate::ggml::api::{self, Ptr};
use crate::ggml::device;
use crate::ggml::view::{TensorPtr, keep};
use crate::journal;

/// Below this size a tensor is no news at MINIMAL.
const LARGE: u64 = 1 << 20;

thread_local! {
    /// The scheduler that is placing a graph on this thread, 0 if there is none.
    static PLACING: Cell<usize> = const { Cell::new(0) };
    /// Calls that make a buffer for given tensors, one within the other.
    static FILLING: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread, as long as it lives.
fn this_thread() -> usize {
    PLACING.with(|p| std::ptr::from_ref(p) as usize)
}

/// A scheduler places the tensors of a graph on this thread, until this goes - also by a C++ exception.
#[derive(Debug)]
pub struct Placing {
    outer: usize,
}

impl Drop for Placing {
    fn drop(&mut self) {
        PLACING.set(self.outer);
    }
}

/// A buffer is being made for given tensors on this thread, until this goes - also by a C++ exception.
#[derive(Debug)]
pub struct Filling {
    /// Buffers that were seen before.
    seen: u64,
}

impl Drop for Filling {
    fn drop(&mut self) {
        FILLING.set(FILLING.get().saturating_sub(1));
    }
}

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
    /// What a buffer is for that holds a tensor of this name, where the name says it.
    #[must_use]
    pub fn of_tensor(name: &str) -> Option<Self> {
        let starts = |prefixes: [&str; 2]| prefixes.iter().any(|p| name.starts_with(p));
        if starts(["cache_k", "cache_v"]) {
            Some(Self::KvCache)
        } else if starts(["cache_r", "cache_s"]) {
            Some(Self::RecurrentState)
        } else {
            None
        }
    }

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
    /// Number among all buffers that were seen.
    number: u64,
    /// Thread that allocated it.
    thread: usize,
    /// It was made for given tensors.
    filled: bool,
    kind: Option<Kind>,
    size: u64,
    type_name: &'static str,
    device: Option<&'static str>,
    memory_type: &'static str,
    /// Sum of all live buffers after this one's allocation.
    live_bytes: u64,
    told: bool,
    /// Tensors placed before it showed what the buffer is for: weights that are not mapped are declared after
    /// they were placed.
    early: Vec<Placement>,
}

/// The tensors that a scheduler has placed for the graph that it runs next: buffer and address of each, since every
/// graph has hundreds.
#[derive(Debug, Default)]
struct Graph {
    t_ns: u64,
    tensors: Vec<(usize, usize)>,
}

/// All live buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    live: HashMap<usize, Buffer>,
    /// By scheduler.
    graphs: HashMap<usize, Graph>,
    /// Buffers seen.
    seen: u64,
    /// Some were allocated where no call could be seen.
    unseen: bool,
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
        let on_cpu = device.and_then(|d| unsafe { device::kind(d) }).is_none_or(|t| t == 0);
        // SAFETY: as above.
        let device = device.and_then(|d| unsafe { device::name(d) }).map(|n| keep(&n));
        // SAFETY: the buffer again.
        let is_host = unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false);
        self.seen += 1;
        let new = Buffer {
            id: 0,
            t_ns: clock::now_ns(),
            number: self.seen,
            thread: this_thread(),
            filled: FILLING.get() > 0,
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

    /// A buffer is about to be made for given tensors on the calling thread.
    #[must_use]
    pub fn filling(&self) -> Filling {
        FILLING.set(FILLING.get() + 1);
        Filling { seen: self.seen }
    }

    /// `buffer` was made for `kind` of tensors (`None`: their names do not say).
    ///
    /// # Safety
    /// `buffer` is a live buffer of ggml.
    pub unsafe fn filled(&mut self, filling: &Filling, buffer: Ptr, kind: Option<Kind>) {
        let thread = this_thread();
        let its = |b: &Buffer| b.thread == thread && b.number > filling.seen;
        if !self.live.contains_key(&(buffer as usize)) && !self.live.values().any(its) {
            // ggml has allocated it by a call of its own that passes no hook. Those of its graph allocator are
            // bound like it.
            self.unseen = true;
            let reason = "ggml's calls within its own library are bound there in this build (-Bsymbolic, LTO or -fno-semantic-interposition)";
            state::tell(
                "memory",
                Condition::Degraded,
                reason,
                Some("compute buffers, tensors in buffers; so no largest sum of memory"),
            );
            // SAFETY: the caller's promise.
            unsafe { self.allocated(buffer, false) };
        }
        let Some(kind) = kind else { return };
        let open = self.live.iter().filter(|(_, b)| its(b) && b.kind.is_none()).map(|(k, _)| *k);
        open.collect::<Vec<_>>().into_iter().for_each(|key| self.set_kind(key, kind));
    }

    /// The scheduler begins to place the tensors of a graph; what it placed before is gone.
    #[must_use]
    pub fn graph_begins(&mut self, sched: Ptr) -> Placing {
        let graph = self.graphs.entry(sched as usize).or_default();
        graph.t_ns = clock::now_ns();
        graph.tensors.clear();
        Placing { outer: PLACING.replace(sched as usize) }
    }

    /// The scheduler is freed, and its graphs with it.
    pub fn sched_freed(&mut self, sched: Ptr) {
        self.graphs.remove(&(sched as usize));
    }

    /// A tensor was placed in the buffer. Gives its event if it is to be told now. Tensors of a graph are told with a
    /// sampled step that runs it, see [`Self::graph_of`]: a busy server builds many graphs a second.
    pub fn tensor_placed(&mut self, buffer: Ptr, t: TensorPtr, level: Level) -> Option<Placement> {
        let key = buffer as usize;
        if self.live.get(&key)?.kind.is_none()
            && let Some(kind) = Kind::of_tensor(t.name())
        {
            self.set_kind(key, kind);
        }
        if PLACING.get() != 0 {
            self.graphs.entry(PLACING.get()).or_default().tensors.push((key, t.address() as usize));
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

    /// The tensors of the graph that `sched` has just run and that were not told yet: those that were placed for it and
    /// that `nodes`, which it has computed, are or read.
    pub fn graph_of(&mut self, sched: usize, level: Level, nodes: &[TensorPtr]) -> Vec<Placement> {
        let Some(graph) = self.graphs.get_mut(&sched).filter(|g| !g.tensors.is_empty()) else { return Vec::new() };
        let mut alive: HashMap<usize, TensorPtr> = HashMap::with_capacity(nodes.len() * 2);
        for t in nodes {
            let read = (0..t.n_src()).filter_map(|i| t.src(i));
            for t in read.chain([*t]) {
                let root = t.view_src().unwrap_or(t);
                alive.insert(t.address() as usize, t);
                alive.insert(root.address() as usize, root);
            }
        }
        std::mem::take(&mut graph.tensors)
            .iter()
            .filter_map(|(buffer, t)| Some(self.live.get(buffer)?.placement(*alive.get(t)?, graph.t_ns)))
            .filter(|p| level == Level::Verbose || p.nbytes > LARGE)
            .collect()
    }

    /// A call of the calling thread's that allocates has returned. What it allocated within a context, and not for
    /// given tensors, nor with a usage, is for the context's outputs; whatever else showed no kind has none.
    pub fn settle(&mut self, in_context: bool) {
        let thread = this_thread();
        self.settle_those(|b| b.thread == thread, in_context);
    }

    /// Recording ends: nothing will show a kind any more.
    pub fn settle_all(&mut self) {
        self.settle_those(|_| true, false);
    }

    fn settle_those(&mut self, its: impl Fn(&Buffer) -> bool, in_context: bool) {
        let open = self.live.iter().filter(|(_, b)| !b.told && b.kind.is_none() && its(b));
        let open: Vec<(usize, bool)> = open.map(|(k, b)| (*k, b.filled)).collect();
        for (key, filled) in open {
            self.set_kind(key, if in_context && !filled { Kind::Output } else { Kind::Other });
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
        journal::push_line(Line::BufferFree(BufferFree {
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

    /// Largest sum of live buffers, `None` where some could not be seen.
    #[must_use]
    pub fn peak_bytes(&self) -> Option<u64> {
        (!self.unseen).then_some(self.peak_bytes)
    }

    /// Bytes of the weights that the calling thread has allocated since then: 0 for a load that only placed holders of
    /// nothing (`--fit`), `None` if no buffer for weights was seen.
    #[must_use]
    pub fn weights_since(&self, t_ns: u64) -> Option<u64> {
        let thread = this_thread();
        let of = |b: &&Buffer| b.t_ns >= t_ns && b.thread == thread && (b.kind == Some(Kind::Weights) || b.size == 0);
        self.live.values().filter(of).map(|b| b.size).reduce(|a, b| a + b)
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
        journal::push_line(Line::BufferAllocation(BufferAllocation {
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
                journal::push_line(Placement { usage: usage.name(), ..p }.line(None));
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
