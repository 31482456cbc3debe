//! The KV cache as the host orders it: remove, copy, shift, keep, clear, save, restore.

use std::ffi::c_char;

use super::Ptr;
use crate::observe::forwarding::Forwarding;
use crate::observe::memory::{self, Of};

hooks! {
    /// Positions are removed. After the real call: recurrent memories may refuse.
    fn llama_memory_seq_rm(mem: Ptr, seq: i32, p0: i32, p1: i32) -> bool;
    before {}
    after |(), done| { if *done { memory::removed(Of::Memory(mem), seq, p0, p1) } }

    /// A sequence is copied: a further completion of the same prompt, or a shared prefix.
    fn llama_memory_seq_cp(mem: Ptr, from: i32, to: i32, p0: i32, p1: i32);
    before {}
    after |(), ()| { memory::copied(Of::Memory(mem), from, to, p0, p1) }

    /// All other sequences are removed.
    fn llama_memory_seq_keep(mem: Ptr, seq: i32);
    before {}
    after |(), ()| { memory::kept(Of::Memory(mem), seq) }

    /// Positions are moved: context shift, or reuse of a chunk.
    fn llama_memory_seq_add(mem: Ptr, seq: i32, p0: i32, p1: i32, delta: i32);
    before {}
    after |(), ()| { memory::added(Of::Memory(mem), seq, p0, p1, delta) }

    /// Positions are divided (self-extend).
    fn llama_memory_seq_div(mem: Ptr, seq: i32, p0: i32, p1: i32, by: i32);
    before {}
    after |(), ()| { memory::divided(Of::Memory(mem), seq, p0, p1, by) }

    /// Everything is removed.
    fn llama_memory_clear(mem: Ptr, data: bool);
    before {}
    after |(), ()| { memory::cleared(Of::Memory(mem)) }

    /// A sequence's state is saved (prompt cache, checkpoints).
    fn llama_state_seq_get_data_ext(ctx: Ptr, dst: *mut u8, size: usize, seq: i32, flags: u32) -> usize;
    before {}
    after |(), n| { if *n > 0 { memory::saved_or_restored(ctx, Some(seq), flags, "save") } }

    /// A sequence's state is restored.
    fn llama_state_seq_set_data_ext(ctx: Ptr, src: *const u8, size: usize, seq: i32, flags: u32) -> usize;
    before {}
    after |(), n| { if *n > 0 { memory::saved_or_restored(ctx, Some(seq), flags, "restore") } }

    /// The older call, which newer builds forward to the one above: told once, here.
    fn llama_state_seq_get_data(ctx: Ptr, dst: *mut u8, size: usize, seq: i32) -> usize;
    before { Some(Forwarding::begin()) }
    after |call, n| {
        drop(call);
        if *n > 0 { memory::saved_or_restored(ctx, Some(seq), 0, "save") }
    }

    /// The older call.
    fn llama_state_seq_set_data(ctx: Ptr, src: *const u8, size: usize, seq: i32) -> usize;
    before { Some(Forwarding::begin()) }
    after |call, n| {
        drop(call);
        if *n > 0 { memory::saved_or_restored(ctx, Some(seq), 0, "restore") }
    }

    /// A sequence is saved to a file (llama-server: `/slots/N?action=save`).
    fn llama_state_seq_save_file(ctx: Ptr, path: *const c_char, seq: i32, tokens: *const i32, n_tokens: usize) -> usize;
    before {}
    after |(), n| { if *n > 0 { memory::saved_or_restored(ctx, Some(seq), 0, "save") } }

    /// A sequence is restored from a file. Without room for the tokens it only tells how many there are.
    fn llama_state_seq_load_file(ctx: Ptr, path: *const c_char, seq: i32, tokens: *mut i32, capacity: usize, n_tokens: *mut usize) -> usize;
    before {}
    after |(), n| { if *n > 0 && !tokens.is_null() { memory::saved_or_restored(ctx, Some(seq), 0, "restore") } }

    /// All sequences are restored.
    fn llama_state_set_data(ctx: Ptr, src: *const u8, size: usize) -> usize;
    before {}
    after |(), n| { if *n > 0 { memory::saved_or_restored(ctx, None, 0, "restore") } }

    /// All sequences are restored from a file.
    fn llama_state_load_file(ctx: Ptr, path: *const c_char, tokens: *mut i32, capacity: usize, n_tokens: *mut usize) -> bool;
    before {}
    after |(), done| { if *done { memory::saved_or_restored(ctx, None, 0, "restore") } }
}
