//! The KV cache as the host orders it: remove, copy, shift, keep, clear, save, restore.

use std::cell::Cell;
use std::ffi::c_char;

use super::Ptr;
use crate::clock;
use crate::format::resource::KvCacheOperation;
use crate::format::{Level, Line};
use crate::observe::{self, Host};
use crate::record::{self, stamp::resource_id};

/// One operation on the memory of a context that counts.
struct Operation {
    name: &'static str,
    seq: i32,
    p0: i32,
    p1: i32,
}

fn tell(host: &Host, ctx: u64, op: &Operation) {
    if record::level() < Level::Detailed {
        return;
    }
    let now = clock::now_ns();
    record::push_line(Line::KvCacheOperation(KvCacheOperation {
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
        step: Some(observe::steps::TOTALS.last_step.load(std::sync::atomic::Ordering::Relaxed)).filter(|&s| s > 0),
        t_ns: now,
        backend: None,
        device: None,
        cache_size_mb: None,
    }));
}

/// Runs `f` on the context that owns `memory`, and tells the operation if that context serves anything. Gives the context's number and
/// whether cells changed hands.
fn on_memory(memory: Ptr, op: &Operation, f: impl FnOnce(&mut observe::contexts::Context)) -> Option<(u64, bool)> {
    let mut host = observe::host();
    let host = &mut *host;
    let others_serve = host.contexts.any_serving();
    // The host has gone on from its last sample.
    if let Some(ctx) = host.contexts.pointer_of_memory(memory) {
        host.settle_sample(ctx);
    }
    let context = host.contexts.of_memory(memory)?;
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

fn removed(memory: Ptr, seq: i32, p0: i32, p1: i32) {
    let now = clock::now_ns();
    let op = Operation { name: "evict", seq, p0, p1 };
    if let Some((id, changed)) = on_memory(memory, &op, |c| c.kv.remove(seq, p0, p1)) {
        let mut host = observe::host();
        let serving = host.contexts.of_memory(memory).is_some_and(|c| c.is_serving());
        host.requests.touched(id, seq, serving, changed, now);
    }
}

hooks! {
    /// Positions are removed. After the real call: recurrent memories may refuse.
    fn llama_memory_seq_rm(memory: Ptr, seq: i32, p0: i32, p1: i32) -> bool;
    before {}
    after |(), done| { if *done { removed(memory, seq, p0, p1) } }

    /// A sequence is copied: a further completion of the same prompt, or a shared prefix.
    fn llama_memory_seq_cp(memory: Ptr, from: i32, to: i32, p0: i32, p1: i32);
    before {}
    after |(), ()| {
        let op = Operation { name: "copy", seq: to, p0, p1 };
        if let Some((id, _)) = on_memory(memory, &op, |c| {
            let shared = c.unified();
            c.kv.copy(from, to, p0, p1, shared);
        }) {
            let mut host = observe::host();
            if host.requests.copied(id, from, to)
                && let Some(c) = host.contexts.of_memory(memory)
            {
                c.share_row(from, to);
            }
        }
    }

    /// All other sequences are removed.
    fn llama_memory_seq_keep(memory: Ptr, seq: i32);
    before {}
    after |(), ()| { on_memory(memory, &Operation { name: "keep", seq, p0: -1, p1: -1 }, |c| c.kv.keep(seq)); }

    /// Positions are moved: context shift, or reuse of a chunk.
    fn llama_memory_seq_add(memory: Ptr, seq: i32, p0: i32, p1: i32, delta: i32);
    before {}
    after |(), ()| {
        let op = Operation { name: "shift", seq, p0, p1 };
        let counted = on_memory(memory, &op, |c| c.kv.map_positions(seq, p0, p1, |p| p.saturating_add(delta)));
        if let (Some((id, _)), true) = (counted, delta < 0) {
            observe::host().requests.shifted(id, seq, u64::from(delta.unsigned_abs()));
        }
    }

    /// Positions are divided (self-extend).
    fn llama_memory_seq_div(memory: Ptr, seq: i32, p0: i32, p1: i32, by: i32);
    before {}
    after |(), ()| {
        on_memory(memory, &Operation { name: "shift", seq, p0, p1 }, |c| c.kv.map_positions(seq, p0, p1, |p| if by > 1 { p / by } else { p }));
    }

    /// Everything is removed.
    fn llama_memory_clear(memory: Ptr, data: bool);
    before {}
    after |(), ()| {
        let now = clock::now_ns();
        if let Some((id, _)) = on_memory(memory, &Operation { name: "clear", seq: -1, p0: -1, p1: -1 }, |c| c.kv.clear()) {
            let mut host = observe::host();
            let serving = host.contexts.of_memory(memory).is_some_and(|c| c.is_serving());
            host.requests.touched(id, -1, serving, true, now);
        }
    }

    /// A sequence's state is saved (prompt cache, checkpoints).
    fn llama_state_seq_get_data_ext(ctx: Ptr, dst: *mut u8, size: usize, seq: i32, flags: u32) -> usize;
    before {}
    after |(), n| { if *n > 0 { saved_or_restored(ctx, Some(seq), flags, "save") } }

    /// A sequence's state is restored.
    fn llama_state_seq_set_data_ext(ctx: Ptr, src: *const u8, size: usize, seq: i32, flags: u32) -> usize;
    before {}
    after |(), n| { if *n > 0 { saved_or_restored(ctx, Some(seq), flags, "restore") } }

    /// The older call, which newer builds forward to the one above: told once, here.
    fn llama_state_seq_get_data(ctx: Ptr, dst: *mut u8, size: usize, seq: i32) -> usize;
    before { FORWARDS.set(true) }
    after |(), n| {
        FORWARDS.set(false);
        if *n > 0 { saved_or_restored(ctx, Some(seq), 0, "save") }
    }

    /// The older call.
    fn llama_state_seq_set_data(ctx: Ptr, src: *const u8, size: usize, seq: i32) -> usize;
    before { FORWARDS.set(true) }
    after |(), n| {
        FORWARDS.set(false);
        if *n > 0 { saved_or_restored(ctx, Some(seq), 0, "restore") }
    }

    /// A sequence is saved to a file (llama-server: `/slots/N?action=save`).
    fn llama_state_seq_save_file(ctx: Ptr, path: *const c_char, seq: i32, tokens: *const i32, n_tokens: usize) -> usize;
    before {}
    after |(), n| { if *n > 0 { saved_or_restored(ctx, Some(seq), 0, "save") } }

    /// A sequence is restored from a file. Without room for the tokens it only tells how many there are.
    fn llama_state_seq_load_file(ctx: Ptr, path: *const c_char, seq: i32, tokens: *mut i32, capacity: usize, n_tokens: *mut usize) -> usize;
    before {}
    after |(), n| { if *n > 0 && !tokens.is_null() { saved_or_restored(ctx, Some(seq), 0, "restore") } }

    /// All sequences are restored.
    fn llama_state_set_data(ctx: Ptr, src: *const u8, size: usize) -> usize;
    before {}
    after |(), n| { if *n > 0 { saved_or_restored(ctx, None, 0, "restore") } }

    /// All sequences are restored from a file.
    fn llama_state_load_file(ctx: Ptr, path: *const c_char, tokens: *mut i32, capacity: usize, n_tokens: *mut usize) -> bool;
    before {}
    after |(), done| { if *done { saved_or_restored(ctx, None, 0, "restore") } }
}

thread_local! {
    /// A call runs that newer builds forward to one which is hooked too.
    static FORWARDS: Cell<bool> = const { Cell::new(false) };
}

/// `seq`: one sequence, or all.
fn saved_or_restored(ctx: Ptr, seq: Option<i32>, flags: u32, name: &'static str) {
    /// Only the part that cannot be rolled back (sliding window, recurrent state): the cells stay.
    const PARTIAL_ONLY: u32 = 1;
    if FORWARDS.get() {
        return;
    }
    let mut host = observe::host();
    let host = &mut *host;
    let others_serve = host.contexts.any_serving();
    let context = host.contexts.get(ctx);
    if name == "restore" && flags & PARTIAL_ONLY == 0 {
        context.restored(seq);
    }
    let (id, counts) = (context.id, context.counts(others_serve));
    if counts {
        tell(host, id, &Operation { name, seq: seq.unwrap_or(-1), p0: -1, p1: -1 });
    }
}
