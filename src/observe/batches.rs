//! The calls that process a batch: what they begin and end.

use super::contexts::Row;
use super::{host, steps};
use crate::clock;
use crate::ggml::api::Ptr;
use crate::journal;

/// A call that runs. When it is over, also by a C++ exception, graphs on this thread are not its context's any more.
#[derive(Debug)]
pub struct Call(());

impl Drop for Call {
    fn drop(&mut self) {
        steps::set_context(std::ptr::null_mut());
    }
}

/// A call begins to process `rows`.
pub fn begins(ctx: Ptr, rows: Vec<Row>, encodes: bool) -> Call {
    let mut host = host();
    let host = &mut *host;
    let context = host.contexts.get(ctx);
    let (id, serial) = (context.id, context.serial);
    host.settle_sample(serial);
    host.requests.begins(id, &rows, encodes);
    host.contexts.get(ctx).batch_begins(rows, encodes);
    steps::set_context(ctx);
    Call(())
}

/// It has returned.
pub fn ends(call: Call, ctx: Ptr, status: i32) {
    drop(call);
    let mut host = host();
    let host = &mut *host;
    // Compute buffers may have grown, and the output buffer is made at the first batch.
    host.buffers.settle(true);
    let others_serve = host.contexts.any_serving();
    let Some(context) = host.contexts.known(ctx) else { return };
    let Some((begun_ns, by_seq)) = context.batch_ends(status, others_serve) else { return };
    if !context.counts(others_serve) {
        return;
    }
    let (id, serving, busy_ns) = (context.id, context.is_serving(), context.busy_ns());
    for rows in &by_seq {
        host.requests.processed(id, serving, rows, begun_ns, busy_ns);
    }
    if let Some(context) = host.contexts.known(ctx) {
        host.requests.progressed(id, by_seq.iter().map(|rows| rows.seq), context.used_cells(), clock::now_ns());
    }
    // Warm-ups of hosts that do not serve leave no request behind; their cells are no news.
    if (serving || host.requests.any_told(id))
        && let Some(context) = host.contexts.known(ctx)
    {
        let every_ms = journal::level().summary_interval_ms() / 4;
        context.tell_usage("batch", every_ms);
    }
}
