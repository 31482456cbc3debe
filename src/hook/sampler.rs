//! Sampling: which token came from which row, and when. The launch and release of a slot too, which llama-server tells by
//! `llama_set_sampler`.
//!
//! A token counts when, on one thread, the host reads the logits of a row, applies a sampler, and accepts. A grammar may read and apply
//! twice before it accepts once; accepting a prompt's tokens (llama-server does, to fill a sampler's history) applies nothing before.
//! Between these calls the host may free the context (it has its own copy of the logits by then), so what is remembered is the context's
//! serial number: a freed one has none, and nothing is asked of it.
//!
//! A host that never accepts (node-llama-cpp keeps samplers of its own) has chosen when it goes on: its samples count at the next
//! batch, with the time of the apply.

use std::cell::Cell;

use super::Ptr;
use crate::ggml::bindings::llama_token_data_array;
use crate::observe::contexts::Serial;
use crate::{capture, clock, observe};

/// How far a sample has come on this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    Read { ctx: Serial, row: i32 },
    Applied { ctx: Serial, row: i32 },
}

thread_local! {
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Nothing) };
    /// Samplers call each other (a chain its members): only the outermost call is the host's.
    /// Token and probability that the outermost sampler has chosen last.
    static CHOSEN: Cell<(i32, f32)> = const { Cell::new((-1, 0.0)) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// A call of a sampler that runs; it may end by a C++ exception (a grammar does).
struct Call;

impl Call {
    /// Begins one, and says whether it is the host's.
    fn begin() -> (Self, bool) {
        (Self, DEPTH.replace(DEPTH.get() + 1) == 0)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

fn logits_read(ctx: Ptr, row: i32) {
    STAGE.set(Stage::Read { ctx: observe::host().contexts.get(ctx).serial, row });
}

fn applied() {
    let Stage::Read { ctx, row } = STAGE.get() else { return };
    STAGE.set(Stage::Applied { ctx, row });
    let now = clock::now_ns();
    let mut host = observe::host();
    if let Some((row, t_ns)) = host.contexts.of_serial(ctx).and_then(|c| c.sampler_applied(row, now)) {
        let _ = host.sampled(ctx, row, -1, t_ns);
    }
}

/// The outermost sampler has chosen: with what probability, if it computed one.
fn chosen(candidates: Ptr) {
    // SAFETY: the host passes a llama_token_data_array; llama.h has had these fields since 2024.
    let Some(array) = (unsafe { candidates.cast::<llama_token_data_array>().as_ref() }) else { return };
    let Some(i) = usize::try_from(array.selected).ok().filter(|&i| i < array.size && !array.data.is_null()) else {
        return;
    };
    // SAFETY: llama.h: `data` has `size` entries.
    let entry = unsafe { array.data.add(i).read() };
    CHOSEN.set((entry.id, entry.p));
}

/// The probability of the token that was chosen last. Greedy sampling computes none and leaves 0 or what was there before.
fn probability_of(token: i32) -> Option<f32> {
    let (id, p) = CHOSEN.replace((-1, 0.0));
    (id == token && p > 0.0 && p <= 1.0).then_some(p)
}

fn accepted(token: i32) {
    let Stage::Applied { ctx, row } = STAGE.replace(Stage::Nothing) else { return };
    let now = clock::now_ns();
    let mut host = observe::host();
    let Some(context) = host.contexts.of_serial(ctx) else { return };
    context.take_applied();
    let vocab = context.vocab_with(token);
    let sampled = host.sampled(ctx, row, token, now);
    drop(host);
    if let Some(s) = sampled.filter(|_| capture::is_on()) {
        capture::token(&s, token, probability_of(token), now, vocab);
    }
}

fn embedding_read(ctx: Ptr, row: Option<i32>, seq: Option<i32>) {
    let mut host = observe::host();
    let host = &mut *host;
    let others_serve = host.contexts.any_serving();
    let context = host.contexts.get(ctx);
    if context.counts(others_serve) {
        let id = context.id;
        if let Some(seq) = seq.or_else(|| context.row_index(row?).and_then(|i| context.seq_of_row(i))) {
            host.requests.output_read(id, seq);
        }
    }
}

hooks! {
    /// Logits of a row are read: a sample may follow.
    fn llama_get_logits_ith(ctx: Ptr, row: i32) -> *mut f32;
    before { logits_read(ctx, row) }

    /// Logits of all rows are read: the sample is of the last.
    fn llama_get_logits(ctx: Ptr) -> *mut f32;
    before { logits_read(ctx, -1) }

    /// A token that the backend has sampled is read: nothing is applied any more. -1 says that there is none.
    fn llama_get_sampled_token_ith(ctx: Ptr, row: i32) -> i32;
    before {}
    after |(), token| { if *token >= 0 { STAGE.set(Stage::Applied { ctx: observe::host().contexts.get(ctx).serial, row }) } }

    /// Embeddings of a row are read: the request is real, though no token will come.
    fn llama_get_embeddings_ith(ctx: Ptr, row: i32) -> *mut f32;
    before { embedding_read(ctx, Some(row), None) }

    /// Embeddings of a sequence are read.
    fn llama_get_embeddings_seq(ctx: Ptr, seq: i32) -> *mut f32;
    before { embedding_read(ctx, None, Some(seq)) }

    /// A sampler works on candidates.
    fn llama_sampler_apply(sampler: Ptr, candidates: Ptr);
    before {
        applied();
        Some(Call::begin())
    }
    after |call, ()| {
        if call.as_ref().is_some_and(|(_, outermost)| *outermost) && capture::is_on() {
            chosen(candidates);
        }
        drop(call);
    }

    /// A sampler is told the token. The outermost call after an apply is the host's choice.
    fn llama_sampler_accept(sampler: Ptr, token: i32);
    before {
        let (call, outermost) = Call::begin();
        if outermost {
            accepted(token);
        }
        Some(call)
    }

    /// llama-server: a slot is launched or released; a draft context: its backend sampler.
    fn llama_set_sampler(ctx: Ptr, seq: i32, sampler: Ptr) -> bool;
    before {
        let now = clock::now_ns();
        let mut host = observe::host();
        let host = &mut *host;
        let context = host.contexts.get(ctx);
        if context.sampler_set(sampler.is_null()) {
            let (id, busy_ns) = (context.id, context.busy_ns());
            context.take_applied();
            let ended = host.requests.sampler_set(id, seq, busy_ns, now);
            if ended {
                host.contexts.get(ctx).tell_usage("request_end", 0);
            }
        }
    }
}
