//! Contexts and schedulers come and go.

use super::host;
use crate::clock;
use crate::ggml::api::Ptr;

/// A context was made, with its KV cache, compute and output buffers; null if it was not.
pub fn context_made(ctx: Ptr) {
    let mut host = host();
    host.buffers.settle(true);
    if !ctx.is_null() {
        host.contexts.get(ctx);
    }
}

/// A context is about to be freed: what it serves is told while it can be. Null is allowed, as for `free`.
pub fn context_freed(ctx: Ptr) {
    if ctx.is_null() {
        return;
    }
    let mut host = host();
    if let Some(serial) = host.contexts.known(ctx).map(|c| c.serial) {
        host.settle_sample(serial);
    }
    if let Some(mut old) = host.contexts.remove(ctx) {
        old.flush_batch();
        host.requests.end_all(Some(old.id), "context_freed", clock::now_ns());
    }
}

/// A scheduler is about to be freed, and its address may soon be another one's.
pub fn scheduler_freed(sched: Ptr) {
    let mut host = host();
    host.buffers.sched_freed(sched);
    host.schedulers.remove(sched);
}
