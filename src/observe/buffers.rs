//! Live backend buffers: who allocated how much for what. A buffer's kind shows only after its allocation (its usage is set, tensors
//! are placed in it), so its event waits until then and carries the time of the allocation.

use std::collections::HashMap;

use crate::clock;
use crate::format::Line;
use crate::format::server::{BufferAllocation, BufferFree};
use crate::ggml::api::{self, Ptr};
use crate::record;

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
    type_name: String,
    device: Option<String>,
    memory_type: &'static str,
    told: bool,
}

/// All live buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    live: HashMap<usize, Buffer>,
    next_id: u64,
    live_bytes: u64,
    peak_bytes: u64,
}

impl Buffers {
    /// A buffer was allocated (`mapped`: over a file that the host has mapped).
    pub fn allocated(&mut self, buffer: Ptr, mapped: bool) {
        // SAFETY: the host has just got this buffer from ggml.
        let size = unsafe { api::ggml_backend_buffer_get_size(buffer) }.unwrap_or(0) as u64;
        // SAFETY: as above.
        let buft = unsafe { api::ggml_backend_buffer_get_type(buffer) }.filter(|b| !b.is_null());
        // SAFETY: a buffer type lives as long as its backend.
        let type_name = buft.and_then(|b| unsafe { api::text(api::ggml_backend_buft_name(b)) });
        // SAFETY: as above.
        let device = buft.and_then(|b| unsafe { api::ggml_backend_buft_get_device(b) }).filter(|d| !d.is_null());
        // SAFETY: a device lives as long as the process.
        let on_cpu = device.and_then(|d| unsafe { api::ggml_backend_dev_type(d) }).is_none_or(|t| t == 0);
        // SAFETY: as above.
        let device = device.and_then(|d| unsafe { api::text(api::ggml_backend_dev_name(d)) });
        // SAFETY: the buffer again.
        let is_host = unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false);
        self.next_id += 1;
        let new = Buffer {
            id: self.next_id,
            t_ns: clock::now_ns(),
            kind: mapped.then_some(Kind::Weights),
            size,
            type_name: type_name.unwrap_or_else(|| "unknown".to_owned()),
            device,
            memory_type: if mapped {
                "mmap"
            } else if is_host || on_cpu {
                "ram"
            } else {
                "vram"
            },
            told: false,
        };
        // The host may have freed a buffer behind our back (before we were started): its address is free for a new one.
        if let Some(old) = self.live.insert(buffer as usize, new) {
            self.live_bytes -= old.size;
        }
        self.live_bytes += size;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
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

    /// A tensor was placed in the buffer: caches name their tensors. Returns what is known of the buffer.
    pub fn tensor_placed(&mut self, buffer: Ptr, name: &str) -> Option<&Buffer> {
        let key = buffer as usize;
        if self.live.get(&key)?.kind.is_none() {
            let starts = |p: &[&str]| p.iter().any(|p| name.starts_with(p));
            if starts(&["cache_k", "cache_v"]) {
                self.set_kind(key, Kind::KvCache);
            } else if starts(&["cache_r", "cache_s"]) {
                self.set_kind(key, Kind::RecurrentState);
            }
        }
        self.live.get(&key)
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
            backend: b.type_name,
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
        let live_bytes = self.live_bytes;
        let Some(b) = self.live.get_mut(&key) else { return };
        // Size 0: a place holder of a fit probe or of an unused backend; it takes no memory.
        if b.told || b.size == 0 {
            return;
        }
        b.told = true;
        record::push_line(Line::BufferAllocation(BufferAllocation {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: b.t_ns,
            buffer_id: b.id,
            kind: b.kind.unwrap_or(Kind::Other).name().to_owned(),
            size_bytes: b.size,
            backend: b.type_name.clone(),
            device: b.device.clone(),
            memory_type: b.memory_type.to_owned(),
            live_bytes,
        }));
    }
}

impl Buffer {
    /// Buffer type.
    #[must_use]
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// Device.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// `vram`, `ram` or `mmap`.
    #[must_use]
    pub const fn memory_type(&self) -> &'static str {
        self.memory_type
    }

    /// Name of its kind so far.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        self.kind.map_or("other", Kind::name)
    }
}
