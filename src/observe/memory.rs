//! The KV cache as the host orders it: remove, copy, shift, keep, clear, save, restore.

use super::contexts::Context;
use super::forwarding::is_forwarded;
use super::{Host, recording};
use crate::clock;
use crate::format::resource::KvCacheOperation;
use crate::format::{Level, Line};
use crate::ggml::api::Ptr;
use crate::journal::{self, stamp::resource_id};

/// One operation on the memory of a context that counts.
struct Operation {
    name: &'static str,
    seq: i32,
    p0: i32,
    p1: i32,
}

fn tell(host: &Host, ctx: u64, op: &Operation) {
    if journal::level() < Level::Detailed {
        return;
    }
    let now = clock::now_ns();
    journal::push_line(Line::KvCacheOperation(KvCacheOperation {
        resource_id: resource_id(Some("kv"), "cache", None, op.name, now),
        timestamp: String::new(),
        cache_type: "key_value".to_owned(),
        layer_id: None,
        seq_id: Some(op.seq),
        cache_start_pos: Some(op.p0.max(0)),
        cache_end_pos: (op.p1 >= 0).then_some(op.p1),
        key_cache_size_mb: None,
        value_cache_size_mb: None,
        cache_hit_ratio: host.requests.hit_permille(ctx, op.seq).map(|p| f64::from(p) / 1e3),
        cache_operation: op.name.to_owned(),
        session_id: String::new(),
        step: recording::current().totals.last_step(),
        t_ns: now,
        backend: None,
        device: None,
        cache_size_mb: None,
    }));
}

/// Whose cache a call changes: newer calls name the memory, older ones the context.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// By the memory.
    Memory(Ptr),
    /// By the context.
    Context(Ptr),
}

impl Of {
    fn context(self, host: &mut Host) -> Option<&mut Context> {
        match self {
            Self::Memory(memory) => host.contexts.of_memory(memory),
            Self::Context(ctx) => Some(host.contexts.get(ctx)),
        }
    }

    fn is_serving(self, host: &mut Host) -> bool {
        self.context(host).is_some_and(|c| c.is_serving())
    }
}

/// Runs `f` on the context whose cache it is, and tells the operation if that context serves anything. Gives the
/// context's number and whether cells changed hands. Nothing for a call that another one of ours has forwarded:
/// that one tells.
fn on_cache(of: Of, op: &Operation, f: impl FnOnce(&mut Context)) -> Option<(u64, bool)> {
    if is_forwarded() {
        return None;
    }
    let mut host = super::host();
    let host = &mut *host;
    let others_serve = host.contexts.any_serving();
    // The host has gone on from its last sample.
    let serial = of.context(host)?.serial;
    host.settle_sample(serial);
    let context = of.context(host)?;
    let counts = context.counts(others_serve);
    let before = context.kv.used();
    f(context);
    let (id, changed) = (context.id, context.kv.used() != before || matches!(op.name, "shift" | "copy"));
    // llama-server cuts every sequence before every prompt chunk; a cut that removed nothing is no news.
    if counts && changed {
        tell(host, id, op);
    }
    counts.then_some((id, changed))
}

/// Positions from `p0` up to `p1` were removed; negative for all.
pub fn removed(of: Of, seq: i32, p0: i32, p1: i32) {
    let now = clock::now_ns();
    let op = Operation { name: "evict", seq, p0, p1 };
    if let Some((id, changed)) = on_cache(of, &op, |c| c.kv.remove(seq, p0, p1)) {
        let mut host = super::host();
        let serving = of.is_serving(&mut host);
        host.requests.touched(id, seq, p0, serving, changed, now);
    }
}

/// A sequence was copied.
pub fn copied(of: Of, from: i32, to: i32, p0: i32, p1: i32) {
    let op = Operation { name: "copy", seq: to, p0, p1 };
    let copy = |c: &mut Context| {
        let shared = c.unified();
        c.kv.copy(from, to, p0, p1, shared);
    };
    if let Some((id, _)) = on_cache(of, &op, copy) {
        let mut host = super::host();
        if host.requests.copied(id, from, to)
            && let Some(c) = of.context(&mut host)
        {
            c.share_row(from, to);
        }
    }
}

/// All other sequences were removed.
pub fn kept(of: Of, seq: i32) {
    on_cache(of, &Operation { name: "keep", seq, p0: -1, p1: -1 }, |c| c.kv.keep(seq));
}

/// Positions were moved by `delta`.
pub fn added(of: Of, seq: i32, p0: i32, p1: i32, delta: i32) {
    let op = Operation { name: "shift", seq, p0, p1 };
    let counted = on_cache(of, &op, |c| c.kv.map_positions(seq, p0, p1, |p| p.saturating_add(delta)));
    let Some((id, _)) = counted else { return };
    let mut host = super::host();
    host.requests.moved(id, seq, delta);
    if delta < 0 {
        host.requests.shifted(id, seq, u64::from(delta.unsigned_abs()));
    }
}

/// Positions were divided.
pub fn divided(of: Of, seq: i32, p0: i32, p1: i32, by: i32) {
    let op = Operation { name: "shift", seq, p0, p1 };
    let divide = |p| if by > 1 { p / by } else { p };
    if let Some((id, _)) = on_cache(of, &op, |c| c.kv.map_positions(seq, p0, p1, divide)) {
        super::host().requests.rearranged(id, Some(seq));
    }
}

/// Everything was removed.
pub fn cleared(of: Of) {
    let now = clock::now_ns();
    if let Some((id, _)) = on_cache(of, &Operation { name: "clear", seq: -1, p0: -1, p1: -1 }, |c| c.kv.clear()) {
        let mut host = super::host();
        let serving = of.is_serving(&mut host);
        host.requests.touched(id, -1, 0, serving, true, now);
    }
}

/// A state was saved or restored: of one sequence, or of all.
pub fn saved_or_restored(ctx: Ptr, seq: Option<i32>, flags: u32, name: &'static str) {
    /// Only the part that cannot be rolled back (sliding window, recurrent state): the cells stay.
    const PARTIAL_ONLY: u32 = 1;
    if is_forwarded() {
        return;
    }
    let mut host = super::host();
    let host = &mut *host;
    let others_serve = host.contexts.any_serving();
    let context = host.contexts.get(ctx);
    let replaced = name == "restore" && flags & PARTIAL_ONLY == 0;
    if replaced {
        context.restored(seq);
    }
    let (id, counts) = (context.id, context.counts(others_serve));
    if replaced {
        host.requests.rearranged(id, seq);
    }
    if counts {
        tell(host, id, &Operation { name, seq: seq.unwrap_or(-1), p0: -1, p1: -1 });
    }
}
