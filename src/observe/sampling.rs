//! Sampling: which token came from which row, and when.
//!
//! A token counts when, on one thread, the host reads the logits of a row, applies a sampler, and accepts. A grammar
//! may read and apply twice before it accepts once; accepting a prompt's tokens (llama-server does, to fill a
//! sampler's history) applies nothing before. Between these calls the host may free the context (it has its own copy
//! of the logits by then), so what is remembered is the context's serial number: a freed one has none, and nothing is
//! asked of it.
//!
//! A host that never accepts (node-llama-cpp keeps samplers of its own) has chosen when it goes on: its samples count
//! at the next batch, with the time of the apply.

use std::cell::Cell;

use super::Sampled;
use super::contexts::Serial;
use crate::clock;
use crate::ggml::api::Ptr;
use crate::ggml::bindings::llama_token_data_array;

/// How far a sample has come on this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    Read { ctx: Serial, row: i32 },
    Applied { ctx: Serial, row: i32 },
}

thread_local! {
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Nothing) };
    /// Token and probability that the outermost sampler has chosen last.
    static CHOSEN: Cell<(i32, f32)> = const { Cell::new((-1, 0.0)) };
    /// Samplers call each other (a chain calls its members): only the outermost call is the host's.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// A call of a sampler that runs; it may end by a C++ exception (a grammar does).
#[derive(Debug)]
pub struct Call {
    outermost: bool,
}

impl Call {
    /// Begins one.
    #[must_use]
    pub fn begin() -> Self {
        Self { outermost: DEPTH.replace(DEPTH.get() + 1) == 0 }
    }

    /// Whether the host made it, and not another sampler.
    #[must_use]
    pub const fn is_the_hosts(&self) -> bool {
        self.outermost
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// Logits of a row are read: a sample may follow.
pub fn logits_read(ctx: Ptr, row: i32) {
    STAGE.set(Stage::Read { ctx: super::host().contexts.get(ctx).serial, row });
}

/// A sampler is about to work on candidates.
#[must_use]
pub fn apply_begins() -> Call {
    applied();
    Call::begin()
}

fn applied() {
    let Stage::Read { ctx, row } = STAGE.get() else { return };
    STAGE.set(Stage::Applied { ctx, row });
    let now = clock::now_ns();
    let mut host = super::host();
    if let Some((row, t_ns)) = host.contexts.of_serial(ctx).and_then(|c| c.sampler_applied(row, now)) {
        let _ = host.sampled(ctx, row, -1, t_ns);
    }
}

/// The outermost sampler has chosen: with what probability, if it computed one.
pub fn chosen(candidates: Ptr) {
    // SAFETY: the host passes a llama_token_data_array; llama.h has had these fields since 2024.
    let Some(array) = (unsafe { candidates.cast::<llama_token_data_array>().as_ref() }) else { return };
    let Some(i) = usize::try_from(array.selected).ok().filter(|&i| i < array.size && !array.data.is_null()) else {
        return;
    };
    // SAFETY: llama.h: `data` has `size` entries.
    let entry = unsafe { array.data.add(i).read() };
    CHOSEN.set((entry.id, entry.p));
}

/// The probability of the token that was chosen last. Greedy sampling computes none and leaves 0 or what
/// was there before.
fn probability_of(token: i32) -> Option<f32> {
    let (id, p) = CHOSEN.replace((-1, 0.0));
    (id == token && p > 0.0 && p <= 1.0).then_some(p)
}

/// A token that the backend has sampled is read: nothing is applied any more. -1 says that there is none.
pub fn backend_sampled(ctx: Ptr, row: i32, token: i32) {
    if token >= 0 {
        STAGE.set(Stage::Applied { ctx: super::host().contexts.get(ctx).serial, row });
    }
}

/// A token that the host has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// For which request, sequence and position.
    pub sampled: Sampled,
    /// With what probability, if a sampler computed one.
    pub probability: Option<f32>,
    /// When, monotonic ns.
    pub t_ns: u64,
    /// The vocabulary, if it has such a token; null otherwise.
    pub vocab: Ptr,
}

/// The host accepts a token: its choice, if it has read logits and applied a sampler before.
pub fn accepted(token: i32) -> Option<Accepted> {
    let Stage::Applied { ctx, row } = STAGE.replace(Stage::Nothing) else { return None };
    let t_ns = clock::now_ns();
    let mut host = super::host();
    let context = host.contexts.of_serial(ctx)?;
    context.take_applied();
    let vocab = context.vocab_with(token);
    let sampled = host.sampled(ctx, row, token, t_ns)?;
    drop(host);
    Some(Accepted { sampled, probability: probability_of(token), t_ns, vocab })
}

/// Embeddings of a row or of a sequence are read: the request is real, though no token will come.
pub fn embedding_read(ctx: Ptr, row: Option<i32>, seq: Option<i32>) {
    let mut host = super::host();
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

/// A slot is given a sampler, or (`is_null`) loses it: llama-server launches and releases slots so, and a draft context
/// gets a sampler that the backend runs.
pub fn sampler_set(ctx: Ptr, seq: i32, is_null: bool) {
    let now = clock::now_ns();
    let mut host = super::host();
    let host = &mut *host;
    let context = host.contexts.get(ctx);
    if context.sampler_set(is_null) {
        let (id, busy_ns) = (context.id, context.busy_ns());
        context.take_applied();
        if host.requests.sampler_set(id, seq, busy_ns, now) {
            host.contexts.get(ctx).tell_usage("request_end", 0);
        }
    }
}
