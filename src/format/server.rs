//! Events of a llama.cpp host that no older system had: model, buffers, requests, batches, KV cells.

use serde::{Deserialize, Serialize};

use super::gpu::GpuUse;
use super::histogram::Buckets;

/// A model was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelLoad {
    /// Unix time in microseconds, as a string: when the load ended.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds: when the load ended.
    pub t_ns: u64,
    /// Path as the host gave it; `null` when it loaded from something else than a path.
    pub path: Option<String>,
    /// `load` for a real load, `probe` for one that reads no weights (`--fit`), `vocabulary` for one of the
    /// vocabulary only, `failed`.
    pub outcome: String,
    /// Time the load took.
    pub duration_ms: f64,
    /// llama.cpp's one-line description.
    pub description: Option<String>,
    /// `general.name` of the file.
    pub name: Option<String>,
    /// `general.architecture` of the file.
    pub architecture: Option<String>,
    /// Bytes of all tensors.
    pub size_bytes: Option<u64>,
    /// Parameters.
    pub n_params: Option<u64>,
    /// Layers.
    pub n_layer: Option<i32>,
    /// Width of the residual stream.
    pub n_embd: Option<i32>,
    /// Attention heads.
    pub n_head: Option<i32>,
    /// Heads of keys and values.
    pub n_head_kv: Option<i32>,
    /// Context length of the training.
    pub n_ctx_train: Option<i32>,
    /// Experts of a mixture-of-experts model, `null` for others.
    pub n_expert: Option<i32>,
    /// Experts chosen for a token, `null` for others.
    pub n_expert_used: Option<i32>,
    /// Version of ggml in the host.
    pub ggml_version: Option<String>,
    /// Commit of ggml in the host.
    pub ggml_commit: Option<String>,
}

/// A backend buffer was allocated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BufferAllocation {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Number of this buffer within the session; `buffer_free` names it again.
    pub buffer_id: u64,
    /// `weights`, `kv_cache`, `recurrent_state`, `compute`, `output` or `other`.
    pub kind: String,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Buffer type (`CPU`, `CPU_Mapped`, `CUDA0`, ...): backend and device of the memory.
    pub backend: String,
    /// Device name as ggml gives it; `null` where the build does not tell.
    pub device: Option<String>,
    /// `vram`, `ram` or `mmap`.
    pub memory_type: String,
    /// Sum of all live buffers of this session after the allocation.
    pub live_bytes: u64,
}

/// A backend buffer was freed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BufferFree {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Number that `buffer_allocation` gave.
    pub buffer_id: u64,
    /// Kind that `buffer_allocation` gave.
    pub kind: String,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Buffer type.
    pub backend: String,
    /// Sum of all live buffers after the free.
    pub live_bytes: u64,
}

/// A request began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestStart {
    /// Unix time in microseconds, as a string: when the host gave the request to a sequence.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds of the same moment.
    pub t_ns: u64,
    /// Number of the request within the session, from 1.
    pub request_id: u64,
    /// Sequence; in llama-server the slot.
    pub seq_id: i32,
    /// Number of the context within the session, from 1.
    pub context_id: u64,
    /// `launch` (llama-server gave a slot), `copy` (a further completion of the same prompt), `derived` (from the
    /// tokens alone), `server` (a server that was built with `patches/` said so).
    pub source: String,
}

/// A request's token was sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestToken {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Request; 0 for a token that the caller recorded itself, of no request that was seen.
    pub request_id: u64,
    /// Sequence.
    pub seq_id: i32,
    /// 0 for the first generated token (of the request, or of the caller's session).
    pub index: u64,
    /// Token id; `null` unless `LLAMA_RESOURCE_LOG_TEXT=1`, since ids are text.
    pub token_id: Option<i32>,
    /// Time since the request's previous token, or since its start for the first.
    pub since_previous_ms: f64,
}

/// Distribution of the times between a request's tokens, milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InterToken {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile (nearest rank).
    pub p95: f64,
    /// 99th percentile (nearest rank).
    pub p99: f64,
}

/// `request_progress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestProgress {
    /// Unix time in microseconds, as a string: when the batch was done that brought it so far.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds of the same moment.
    pub t_ns: u64,
    /// Request.
    pub request_id: u64,
    /// Sequence.
    pub seq_id: i32,
    /// Number of the context within the session, from 1.
    pub context_id: u64,
    /// `prefill` until the first token is sampled, then `decode`.
    pub phase: String,
    /// Prompt tokens that are in the KV cache by now: those that were cached, and those processed.
    pub prompt_tokens_done: u64,
    /// Tokens of the whole prompt; `null` during `prefill`, when only the server knows them.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: u64,
    /// Tokens sampled so far.
    pub generated_tokens: u64,
    /// KV cells that the context uses, of all its sequences; `null` for caches without one cell a token.
    pub cells: Option<u64>,
}

/// A request ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestEnd {
    /// Unix time in microseconds, as a string: when the host took the request off its sequence.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds of the same moment.
    pub t_ns: u64,
    /// Request.
    pub request_id: u64,
    /// Sequence.
    pub seq_id: i32,
    /// Number of the context within the session, from 1.
    pub context_id: u64,
    /// Tokens of the whole prompt: cached and processed.
    pub prompt_tokens: u64,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: u64,
    /// Tokens sampled. Those of a draft that a server has verified and then drops, because its context is full, are
    /// among them, unless the server is patched to tell.
    pub generated_tokens: u64,
    /// From the start to the first sampled token; `null` when none was sampled.
    pub ttft_ms: Option<f64>,
    /// From the first work on the prompt to the first sampled token (llama-server's `prompt_ms`).
    pub prompt_ms: Option<f64>,
    /// From the start to the first work on the prompt: waiting for room in a batch.
    pub wait_ms: Option<f64>,
    /// Times between tokens; `null` with fewer than two.
    pub inter_token_ms: Option<InterToken>,
    /// The same times counted by exponential buckets, which can be added up over requests; `null` with fewer than two
    /// tokens, and in logs of version 1.
    pub inter_token_buckets: Option<Buckets>,
    /// (generated - 1) / (last token - first token), as llama-server's `predicted_per_second`; `null` with
    /// fewer than two.
    pub tokens_per_second: Option<f64>,
    /// Processed prompt tokens over `prompt_ms`; `null` when no token was sampled.
    pub prompt_tokens_per_second: Option<f64>,
    /// From the start to the end.
    pub duration_ms: f64,
    /// `eog` (the model ended it), `stopped` (limit, stop word or cancelled, which look the same from outside),
    /// `no_tokens` (embedding, or ended before the first token), `superseded`, `context_freed`, `unfinished` (the log
    /// was closed first).
    pub outcome: String,
    /// Positions shifted out by context shift during the request.
    pub shifted_tokens: u64,
    /// The server's number of the task. This and the next five come from a server that was built with `patches/`, and
    /// are `null` from any other.
    pub task_id: Option<i32>,
    /// The `id` of the response; `null` for embeddings, which have none.
    pub completion_id: Option<String>,
    /// From the creation of the task to its launch in a slot, which is the start.
    pub queue_ms: Option<f64>,
    /// The server's `stop_type`: `eos`, `word`, `limit`, `none` (embeddings); or `cancelled` (the client
    /// went away), `error`.
    pub stop_reason: Option<String>,
    /// Tokens drafted by speculative decoding.
    pub drafted: Option<u64>,
    /// Those of them that the model accepted.
    pub accepted: Option<u64>,
    /// What each GPU did during the request, but for those on which this process is known to hold no memory; `null`
    /// where no GPU is read.
    pub gpu: Option<Vec<GpuUse>>,
}

/// One call of `llama_decode` or `llama_process`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Batch {
    /// Unix time in microseconds, as a string: when the call began.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds: when the call began.
    pub t_ns: u64,
    /// Number of the context within the session, from 1.
    pub context_id: u64,
    /// `main`. (Calls of warm-ups and of draft contexts are never among the sampled ones.)
    pub role: String,
    /// First ubatch of the call.
    pub first_step: Option<u64>,
    /// Ubatches of the call.
    pub ubatches: u32,
    /// Ubatches that reused the graph of the one before.
    pub graphs_reused: u32,
    /// Tokens of the batch.
    pub tokens: u32,
    /// Sequences of the batch.
    pub sequences: u32,
    /// Rows for which an output was asked.
    pub outputs: u32,
    /// What the call returned; 0 is success.
    pub status: i32,
    /// How long the call took. On an asynchronous backend this is submission, not compute.
    pub duration_us: f64,
    /// Until the backends were known to be idle; `null` when the host did not synchronise before the next call.
    pub synchronized_us: Option<f64>,
}

/// Cells of the KV cache in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KvCacheUsage {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Number of the context within the session, from 1.
    pub context_id: u64,
    /// Cells that hold a token, shared cells counted once; `null` for caches without one cell a
    /// token (recurrent models).
    pub used_cells: Option<u64>,
    /// Cells of the cache.
    pub size_cells: u64,
    /// Sequences that have tokens in the cache.
    pub sequences: u32,
    /// What made us look: `batch`, `interval`, `request_end`.
    pub reason: String,
}
