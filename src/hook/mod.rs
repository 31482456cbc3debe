//! The interposed functions of ggml and llama: what the host calls, we see, and hand on.
//!
//! Rules of everything below, since it runs inside somebody else's hot path:
//!
//! 1. The real function is called exactly once, with unchanged arguments, outside every guard: a C++ exception may pass
//!    through us. Only where an allocator keeps what a capture wants, it plans once more (`capture`), and a buffer may
//!    be as large as the one before (`buffer`).
//! 2. Only our own code runs inside `boundary::guarded`; what the hook does when that is off is said at each hook.
//! 3. Nothing waits, allocates or formats per operation; per token and per batch it is a lock of our own decode thread
//!    and a push.
//! 4. Before or after the real call is part of correctness, and said.
//!
//! Before it: the host. After it: `observe`. One file for each part of the host's API, in the order of
//! a request's life.

#[macro_use]
mod table;

pub mod batch;
pub mod buffer;
pub mod capture;
pub mod cpu;
pub mod decode;
pub mod lookup;
pub mod memory;
pub mod model;
pub mod older;
pub mod sampler;
pub mod sched;
pub mod start;

/// A pointer that we only pass on.
pub(crate) type Ptr = *mut std::ffi::c_void;

/// A C structure passed by value whose layout we do not know. On x86-64 a structure of more than 16 bytes is copied to
/// the stack, so a larger one of ours carries it unchanged; on AArch64 it is a pointer to the caller's copy.
#[cfg(target_arch = "x86_64")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ByValue<const WORDS: usize>([u64; WORDS]);

/// See the x86-64 twin: AArch64 passes a pointer to the caller's copy.
#[cfg(target_arch = "aarch64")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ByValue<const WORDS: usize>(Ptr);

impl<const WORDS: usize> ByValue<WORDS> {
    /// Where the structure's bytes are.
    pub(crate) fn bytes(&self) -> *const u8 {
        #[cfg(target_arch = "x86_64")]
        return self.0.as_ptr().cast();
        #[cfg(target_arch = "aarch64")]
        return self.0.cast();
    }
}
