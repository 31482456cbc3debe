//! Sampling: which token came from which row, and when. The launch and release of a slot too, which llama-server tells
//! by `llama_set_sampler`. See `observe::sampling` for what the calls mean together.

use super::Ptr;
use crate::capture;
use crate::observe::sampling::{self, Call};

hooks! {
    /// Logits of a row are read: a sample may follow.
    fn llama_get_logits_ith(ctx: Ptr, row: i32) -> *mut f32;
    before { sampling::logits_read(ctx, row) }

    /// Logits of all rows are read: the sample is of the last.
    fn llama_get_logits(ctx: Ptr) -> *mut f32;
    before { sampling::logits_read(ctx, -1) }

    /// A token that the backend has sampled is read: nothing is applied any more. -1 says that there is none.
    fn llama_get_sampled_token_ith(ctx: Ptr, row: i32) -> i32;
    before {}
    after |(), token| { sampling::backend_sampled(ctx, row, *token) }

    /// Embeddings of a row are read: the request is real, though no token will come.
    fn llama_get_embeddings_ith(ctx: Ptr, row: i32) -> *mut f32;
    before { sampling::embedding_read(ctx, Some(row), None) }

    /// Embeddings of a sequence are read.
    fn llama_get_embeddings_seq(ctx: Ptr, seq: i32) -> *mut f32;
    before { sampling::embedding_read(ctx, None, Some(seq)) }

    /// A sampler works on candidates.
    fn llama_sampler_apply(sampler: Ptr, candidates: Ptr);
    before { Some(sampling::apply_begins()) }
    after |call, ()| {
        if call.as_ref().is_some_and(Call::is_the_hosts) && capture::is_on() {
            sampling::chosen(candidates);
        }
        drop(call);
    }

    /// A sampler is told the token. The outermost call after an apply is the host's choice.
    fn llama_sampler_accept(sampler: Ptr, token: i32);
    before {
        let call = Call::begin();
        if call.is_the_hosts()
            && let Some(accepted) = sampling::accepted(token).filter(|_| capture::is_on())
        {
            capture::token(&accepted, token);
        }
        Some(call)
    }

    /// llama-server: a slot is launched or released; a draft context: its backend sampler.
    fn llama_set_sampler(ctx: Ptr, seq: i32, sampler: Ptr) -> bool;
    before { sampling::sampler_set(ctx, seq, sampler.is_null()) }
}
