//! The KV cache by the names that its functions had until July 2025. They take the context. Builds of some months have both: there the older
//! call forwards to a newer one, and is told once.

use std::cell::Cell;

use super::Ptr;
use super::memory::{self, Of};

thread_local! {
    /// A call runs that newer builds forward to one which is hooked too.
    static FORWARDS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a call comes from within another one that is hooked, and that will tell what happened.
pub(super) fn is_forwarded() -> bool {
    FORWARDS.get()
}

/// A call that may be forwarded, until it is over - also by a C++ exception.
pub(super) struct Forwarding {
    outermost: bool,
}

impl Forwarding {
    pub(super) fn begin() -> Self {
        Self { outermost: !FORWARDS.replace(true) }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if self.outermost {
            FORWARDS.set(false);
        }
    }
}

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
