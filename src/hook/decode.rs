//! The calls that process a batch: `llama_process` (newer builds) and `llama_decode` / `llama_encode` (older ones and third parties).

use super::{ByValue, Ptr};
use crate::ggml::bindings::llama_batch;
use crate::observe::contexts::Row;
use crate::observe::{self, steps};
use crate::session;

/// A batch of the older API, by value; its first seven fields have been at the same place in all versions.
type Batch = ByValue<16>;

/// `LLAMA_PROCESS_TYPE_ENCODE`.
const ENCODES: i32 = 0;

/// A call that runs. When it is over, also by a C++ exception, graphs on this thread are not its context's any more.
struct Call;

impl Drop for Call {
    fn drop(&mut self) {
        steps::set_context(std::ptr::null_mut());
    }
}

/// What a hook begins with. Without a value, which is made at every call in case there is none, a child that was forked from a recording
/// process says that it is not recorded.
struct Begun(Option<Call>);

impl Default for Begun {
    fn default() -> Self {
        session::child_computes();
        Self(None)
    }
}

fn begin(ctx: Ptr, rows: Vec<Row>, encodes: bool) -> Begun {
    // Builds whose loading we do not see.
    session::is_no_router();
    {
        let mut host = observe::host();
        let host = &mut *host;
        let context = host.contexts.get(ctx);
        let (id, serial) = (context.id, context.serial);
        host.settle_sample(serial);
        host.requests.begins(id, &rows, encodes);
        host.contexts.get(ctx).batch_begins(rows, encodes);
    }
    steps::set_context(ctx);
    Begun(Some(Call))
}

fn end(call: Call, ctx: Ptr, status: i32) {
    drop(call);
    let mut host = observe::host();
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
    for rows in by_seq {
        host.requests.processed(id, serving, &rows, begun_ns, busy_ns);
    }
    // Warm-ups of hosts that do not serve leave no request behind; their cells are no news.
    if (serving || host.requests.any_told(id))
        && let Some(context) = host.contexts.known(ctx)
    {
        let every_ms = crate::journal::level().summary_interval_ms() / 4;
        context.tell_usage("batch", every_ms);
    }
}

fn rows_of(batch: &Batch) -> Vec<Row> {
    // SAFETY: the host passes a llama_batch; the fields read here lie at the same offsets in every version of it (facts of the bindings'
    // history: n_tokens .. logits never moved), within the bytes that we copied.
    let b = unsafe { batch.bytes().cast::<llama_batch>().read_unaligned() };
    let n = usize::try_from(b.n_tokens).unwrap_or(0);
    (0..n)
        .map(|i| {
            // SAFETY: llama.h: n_seq_id is null or has n_tokens entries.
            let n_seq = if b.n_seq_id.is_null() { 1 } else { unsafe { *b.n_seq_id.add(i) } };
            let seq_of = |k: usize| {
                if b.seq_id.is_null() {
                    return 0;
                }
                // SAFETY: llama.h: seq_id is null or has n_tokens pointers ...
                let seqs = unsafe { *b.seq_id.add(i) };
                // SAFETY: ... each to n_seq_id[i] sequences.
                if seqs.is_null() { 0 } else { unsafe { *seqs.add(k) } }
            };
            Row {
                seq: seq_of(0),
                more: (1..usize::try_from(n_seq).unwrap_or(1)).map(seq_of).collect(),
                // SAFETY: llama.h: pos is null or has n_tokens entries.
                pos: (!b.pos.is_null()).then(|| unsafe { *b.pos.add(i) }),
                // SAFETY: llama.h: token is null (embeddings) or has n_tokens entries.
                token: if b.token.is_null() { -1 } else { unsafe { *b.token.add(i) } },
                // SAFETY: llama.h: logits is null (only the last row) or has n_tokens entries.
                output: if b.logits.is_null() { i + 1 == n } else { unsafe { *b.logits.add(i) != 0 } },
            }
        })
        .collect()
}

hooks! {
    /// The newer call; its batch was seen while it was filled.
    fn llama_process(ctx: Ptr, kind: i32, batch: Ptr) -> i32;
    before {
        let rows = observe::host().contexts.builder(batch).clone();
        begin(ctx, rows, kind == ENCODES)
    }
    after |begun, status| { if let Begun(Some(call)) = begun { end(call, ctx, *status) } }

    /// The older call.
    fn llama_decode(ctx: Ptr, batch: Batch) -> i32;
    before { begin(ctx, rows_of(&batch), false) }
    after |begun, status| { if let Begun(Some(call)) = begun { end(call, ctx, *status) } }

    /// The older call for encoders.
    fn llama_encode(ctx: Ptr, batch: Batch) -> i32;
    before { begin(ctx, rows_of(&batch), true) }
    after |begun, status| { if let Begun(Some(call)) = begun { end(call, ctx, *status) } }

    /// The host waits for the backends: after it, the last call's time is known.
    fn llama_synchronize(ctx: Ptr);
    before {}
    after |(), ()| { observe::host().contexts.get(ctx).synchronized() }

    /// Warm-up decodes are not requests.
    fn llama_set_warmup(ctx: Ptr, on: bool);
    before { observe::host().contexts.get(ctx).set_warmup(on) }
}
