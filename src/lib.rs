//! Shows what llama.cpp really does - memory, compute, KV cache, requests, activations - inside an unmodified
//! llama-server (LD_PRELOAD), or through its C ABI, at a cost that can stay on in production.
//!
//! ```text
//!     in the host process                                               offline (llama-resource)
//!
//!     hook ─┬─► observe ─────► journal ◄── mark, gpu
//!           │     │  ▲            ▼
//!           │   graph ggml      record ◄── tell ─────────► .jsonl ──┐
//!           │     │  ▲                                              ├──► read ──► analyze ──► export
//!           └─► capture ─────► pipeline ─────────────────► .stream ─┘
//! ```
//!
//! `docs/ARCHITECTURE.md` is the tour and says what each room is for; `tests/layering.rs` says which room
//! may use which.

#[expect(unsafe_code, reason = "the C ABI: pointers of the caller")]
pub mod abi;
pub mod analyze;
pub mod boundary;
#[expect(unsafe_code, reason = "tensors of the host")]
pub mod capture;
pub mod clock;
pub mod codec;
pub mod config;
pub mod error;
pub mod export;
pub mod format;
#[expect(unsafe_code, reason = "the host's ggml: its symbols, its tensors")]
pub mod ggml;
pub mod glob;
pub mod gpu;
pub mod graph;
#[expect(unsafe_code, reason = "an allocator hands out memory")]
pub mod heap;
#[expect(unsafe_code, reason = "interposed functions: arguments of the host")]
pub mod hook;
#[expect(unsafe_code, reason = "libc calls")]
pub mod host;
pub mod journal;
pub mod log;
pub mod mailbox;
#[expect(unsafe_code, reason = "tensors and callbacks of the caller")]
pub mod mark;
#[expect(unsafe_code, reason = "calls into the host's ggml and llama; the timer's pointers")]
pub mod observe;
pub mod pipeline;
pub mod prefetch;
pub mod queue;
pub mod read;
pub mod record;
pub mod select;
pub mod session;
pub mod store;
pub mod tell;
