//! The calls that process a batch: `llama_process` (newer builds) and `llama_decode` / `llama_encode` (older ones
//! and third parties).

use super::{ByValue, Ptr};
use crate::ggml::bindings::llama_batch;
use crate::observe::contexts::Row;
use crate::observe::{self, batches};
use crate::session;

/// A batch of the older API, by value; its first seven fields have been at the same place in all versions.
type Batch = ByValue<16>;

/// `LLAMA_PROCESS_TYPE_ENCODE`.
const ENCODES: i32 = 0;

/// What a hook begins with. Its default is what a hook gets that does not record: a child that was forked from a
/// recording process then says that it is not recorded.
struct Begun(Option<batches::Call>);

impl Default for Begun {
    fn default() -> Self {
        session::child_computes();
        Self(None)
    }
}

fn begin(ctx: Ptr, rows: Vec<Row>, encodes: bool) -> Begun {
    // In some builds the loading of a model is not seen; a batch shows that there is one.
    session::is_no_router();
    Begun(Some(batches::begins(ctx, rows, encodes)))
}

fn rows_of(batch: &Batch) -> Vec<Row> {
    // SAFETY: the host passes a llama_batch; the fields read here lie at the same offsets in every version of it (facts
    // of the bindings' history: n_tokens .. logits never moved), within the bytes that we copied.
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
    after |begun, status| { if let Begun(Some(call)) = begun { batches::ends(call, ctx, *status) } }

    /// The older call.
    fn llama_decode(ctx: Ptr, batch: Batch) -> i32;
    before { begin(ctx, rows_of(&batch), false) }
    after |begun, status| { if let Begun(Some(call)) = begun { batches::ends(call, ctx, *status) } }

    /// The older call for encoders.
    fn llama_encode(ctx: Ptr, batch: Batch) -> i32;
    before { begin(ctx, rows_of(&batch), true) }
    after |begun, status| { if let Begun(Some(call)) = begun { batches::ends(call, ctx, *status) } }

    /// The host waits for the backends: after it, the last call's time is known.
    fn llama_synchronize(ctx: Ptr);
    before {}
    after |(), ()| { observe::host().contexts.get(ctx).synchronized() }

    /// Warm-up decodes are not requests.
    fn llama_set_warmup(ctx: Ptr, on: bool);
    before { observe::host().contexts.get(ctx).set_warmup(on) }
}
