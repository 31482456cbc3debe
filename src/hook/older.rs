//! Models, contexts and the KV cache by the names that their functions had until January and until July 2025. Builds of
//! some months have both: there the older call forwards to a newer one, and is told once.

use std::ffi::c_char;

use super::model::{load_begins, load_ends};
use super::{ByValue, Ptr};
use crate::observe::forwarding::Forwarding;
use crate::observe::lives;
use crate::observe::memory::{self, Of};
use crate::session;

macro_rules! older {
    ($($(#[$doc:meta])* fn $name:ident($ctx:ident: Ptr $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)?;
       |$result:ident| $what:expr)*) => {
        hooks! {
            $(
                $(#[$doc])*
                fn $name($ctx: Ptr $(, $arg: $ty)*) $(-> $ret)?;
                before { Some(Forwarding::begin()) }
                after |call, $result| {
                    drop(call);
                    $what
                }
            )*
        }
    };
}

hooks! {
    /// A model file is loaded (until January 2025).
    fn llama_load_model_from_file(path: *const c_char, params: ByValue<64>) -> Ptr;
    before { Some((load_begins(path), Forwarding::begin())) }
    after |begun, model| {
        if let Some((loading, call)) = begun {
            drop(call);
            load_ends(loading, *model);
        }
    }

    /// A context is made (until January 2025).
    fn llama_new_context_with_model(model: Ptr, params: ByValue<64>) -> Ptr;
    before { session::is_no_router() }
    after |(), ctx| { lives::context_made(*ctx) }
}

older! {
    /// Everything is removed (until March 2025).
    fn llama_kv_cache_clear(ctx: Ptr);
    |_done| memory::cleared(Of::Context(ctx))
    /// Positions are removed.
    fn llama_kv_cache_seq_rm(ctx: Ptr, seq: i32, p0: i32, p1: i32) -> bool;
    |done| if *done { memory::removed(Of::Context(ctx), seq, p0, p1) }
    /// A sequence is copied.
    fn llama_kv_cache_seq_cp(ctx: Ptr, from: i32, to: i32, p0: i32, p1: i32);
    |_done| memory::copied(Of::Context(ctx), from, to, p0, p1)
    /// All other sequences are removed.
    fn llama_kv_cache_seq_keep(ctx: Ptr, seq: i32);
    |_done| memory::kept(Of::Context(ctx), seq)
    /// Positions are moved.
    fn llama_kv_cache_seq_add(ctx: Ptr, seq: i32, p0: i32, p1: i32, delta: i32);
    |_done| memory::added(Of::Context(ctx), seq, p0, p1, delta)
    /// Positions are divided.
    fn llama_kv_cache_seq_div(ctx: Ptr, seq: i32, p0: i32, p1: i32, by: i32);
    |_done| memory::divided(Of::Context(ctx), seq, p0, p1, by)

    /// Everything is removed (until July 2025).
    fn llama_kv_self_clear(ctx: Ptr);
    |_done| memory::cleared(Of::Context(ctx))
    /// Positions are removed.
    fn llama_kv_self_seq_rm(ctx: Ptr, seq: i32, p0: i32, p1: i32) -> bool;
    |done| if *done { memory::removed(Of::Context(ctx), seq, p0, p1) }
    /// A sequence is copied.
    fn llama_kv_self_seq_cp(ctx: Ptr, from: i32, to: i32, p0: i32, p1: i32);
    |_done| memory::copied(Of::Context(ctx), from, to, p0, p1)
    /// All other sequences are removed.
    fn llama_kv_self_seq_keep(ctx: Ptr, seq: i32);
    |_done| memory::kept(Of::Context(ctx), seq)
    /// Positions are moved.
    fn llama_kv_self_seq_add(ctx: Ptr, seq: i32, p0: i32, p1: i32, delta: i32);
    |_done| memory::added(Of::Context(ctx), seq, p0, p1, delta)
    /// Positions are divided.
    fn llama_kv_self_seq_div(ctx: Ptr, seq: i32, p0: i32, p1: i32, by: i32);
    |_done| memory::divided(Of::Context(ctx), seq, p0, p1, by)
}
