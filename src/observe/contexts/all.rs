//! All live contexts, by address while a call shows that one is alive, and by serial number wherever that is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Context, Row, Serial};
use crate::ggml::api::Ptr;

/// Contexts seen in this process.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// All live contexts.
#[derive(Debug, Default)]
pub struct Contexts {
    by_ptr: HashMap<usize, Context>,
    by_memory: HashMap<usize, usize>,
    builders: HashMap<usize, Vec<Row>>,
    next_id: u64,
}

impl Contexts {
    /// The context at `ctx`, made known if it is not (a host may have made it before we started): llama.cpp is
    /// asked about it then. So only for calls that prove it alive: the host is passing it to llama.cpp right now.
    /// Whoever remembers a context from an earlier call asks [`Self::known`] or [`Self::of_serial`] instead,
    /// which call nothing.
    pub fn get(&mut self, ctx: Ptr) -> &mut Context {
        self.by_ptr.entry(ctx as usize).or_insert_with(|| {
            self.next_id += 1;
            let serial = Serial(SEEN.fetch_add(1, Ordering::Relaxed));
            let new = Context::new(self.next_id, serial, ctx);
            if new.memory != 0 {
                self.by_memory.insert(new.memory, ctx as usize);
            }
            new
        })
    }

    /// The context at `ctx`, if a live one is known there.
    pub fn known(&mut self, ctx: Ptr) -> Option<&mut Context> {
        self.by_ptr.get_mut(&(ctx as usize))
    }

    /// The context with this serial number, if it still lives.
    pub fn of_serial(&mut self, serial: Serial) -> Option<&mut Context> {
        self.by_ptr.values_mut().find(|c| c.serial == serial)
    }

    /// The context whose memory this is.
    pub fn of_memory(&mut self, memory: Ptr) -> Option<&mut Context> {
        let ptr = self.by_memory.get(&(memory as usize))?;
        self.by_ptr.get_mut(ptr)
    }

    /// A context was freed.
    pub fn remove(&mut self, ctx: Ptr) -> Option<Context> {
        let old = self.by_ptr.remove(&(ctx as usize))?;
        self.by_memory.remove(&old.memory);
        Some(old)
    }

    /// Whether some context has told that it serves requests.
    #[must_use]
    pub fn any_serving(&self) -> bool {
        self.by_ptr.values().any(|c| c.serving == Some(true))
    }

    /// Serial numbers of all contexts.
    #[must_use]
    pub fn serials(&self) -> Vec<Serial> {
        self.by_ptr.values().map(|c| c.serial).collect()
    }

    /// All contexts.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Context> {
        self.by_ptr.values_mut()
    }

    /// The rows that a `llama_batch_ext` is being filled with.
    pub fn builder(&mut self, batch: Ptr) -> &mut Vec<Row> {
        self.builders.entry(batch as usize).or_default()
    }

    /// A `llama_batch_ext` was freed.
    pub fn drop_builder(&mut self, batch: Ptr) {
        self.builders.remove(&(batch as usize));
    }
}
