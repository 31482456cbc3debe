//! How much of its KV cache a context uses, told now and then.

use super::Context;
use crate::clock;
use crate::format::Line;
use crate::format::server::KvCacheUsage;
use crate::journal;

impl Context {
    /// Cells of the KV cache that hold a token; `None` for a cache without one cell a token.
    pub fn used_cells(&self) -> Option<u64> {
        self.has_cells.then(|| self.kv.used())
    }

    /// Writes the KV cache's use, at most every `every_ms` (0: always).
    pub fn tell_usage(&mut self, reason: &str, every_ms: u64) {
        let now = clock::now_ns();
        if self.memory == 0 || (every_ms > 0 && now < self.told_usage_ns + every_ms * 1_000_000) {
            return;
        }
        self.told_usage_ns = now;
        journal::push_line(Line::KvCacheUsage(KvCacheUsage {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now,
            context_id: self.id,
            used_cells: self.used_cells(),
            size_cells: self.size_cells,
            sequences: self.kv.sequences(),
            reason: reason.to_owned(),
        }));
    }
}
