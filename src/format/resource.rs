//! The documented resource events: memory, compute, hand-off, MLP, KV cache. Names and meaning of the documented fields
//! are kept; the fields from `session_id` on are ours. What cannot be measured in this process is `null`.

use serde::{Deserialize, Serialize};

/// Memory was given to a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryAllocation {
    /// `{device}_memory_layer_{layer}_{component}_{timestamp}`; the layer is `none` where there is none.
    pub resource_id: String,
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Component that the tensor belongs to (`attention`, `mlp`, `norm`, ...).
    pub component_type: String,
    /// Layer number, or `null` outside the layers.
    pub layer_id: Option<i32>,
    /// Size in MiB.
    pub allocation_size_mb: f64,
    /// `vram` for a device buffer, `ram` for host memory, `mmap` for a mapped model file.
    pub memory_type: String,
    /// Shape, ggml order (fastest dimension first), trailing ones left out.
    pub tensor_shape: Vec<i64>,
    /// ggml type name (`f32`, `f16`, `q4_1`, ...).
    pub precision: String,
    /// Always `null`: an allocation moves no data. Kept for the documented readers.
    pub estimated_bandwidth_gbps: Option<f64>,
    /// Size as f32 over the size as stored, exact.
    pub compression_ratio: f64,
    /// Address as `0x...`, `null` where the backend has none.
    pub memory_address: Option<String>,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch, `null` before the first.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// ggml backend or buffer type (`CPU`, `CUDA0`, ...).
    pub backend: Option<String>,
    /// Device name as ggml gives it.
    pub device: Option<String>,
    /// Tensor name.
    pub tensor: String,
    /// `weights`, `kv_cache`, `compute`, `output` or `other`.
    pub usage: String,
    /// Bytes between elements of each dimension of `tensor_shape`, for allocations that the caller
    /// marked; `null` otherwise.
    pub tensor_strides: Option<Vec<u64>>,
}

/// Memory of an allocation was given back (C API).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryDeallocation {
    /// `resource_id` of the `memory_allocation`, as the caller gave it.
    pub resource_id: String,
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Size of that allocation in MiB; `null` if no allocation with this id was marked.
    pub allocation_size_mb: Option<f64>,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch, `null` before the first.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
}

/// One operation ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ComputeExecution {
    /// `{device}_compute_layer_{layer}_{component}_{timestamp}`.
    pub resource_id: String,
    /// Unix time in microseconds, as a string: when the operation started.
    pub timestamp: String,
    /// ggml operation, lower case (`mul_mat`, `rms_norm`, `flash_attn_ext`, ...).
    pub operation: String,
    /// Component (`attention`, `mlp`, `norm`, `moe`, ...).
    pub component_type: String,
    /// Layer number, or `null` outside the layers.
    pub layer_id: Option<i32>,
    /// Names of the sources, in order.
    pub input_tensors: Vec<String>,
    /// Shape of the result, ggml order, trailing ones left out.
    pub output_shape: Vec<i64>,
    /// Floating-point operations of this execution in 10^9, from the real shapes; `null` for an operation that the
    /// caller named and ggml does not know.
    pub compute_intensity_gflops: Option<f64>,
    /// Estimate: what this operation would take at the best rate seen for its kind in this process. `null` until a
    /// rate is known.
    pub estimated_duration_us: Option<f64>,
    /// Threads that computed the operation; `null` where it is not known.
    pub parallelism_factor: Option<u32>,
    /// Bytes read and written over the measured duration; `null` without a measured duration.
    pub memory_throughput_gbps: Option<f64>,
    /// True SM activity (NVML GPM), `null` where it cannot be measured.
    pub sm_utilization_percent: Option<f64>,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds: when the operation started.
    pub t_ns: u64,
    /// Backend that ran it.
    pub backend: Option<String>,
    /// Device that ran it.
    pub device: Option<String>,
    /// Name of the result.
    pub tensor: String,
    /// ggml type of the result.
    pub precision: String,
    /// Measured duration in microseconds on compute thread 0; `null` where the backend cannot be timed without
    /// splitting the graph.
    pub duration_us: Option<f64>,
    /// Wait at the barrier that followed, microseconds.
    pub barrier_us: Option<f64>,
    /// Floating-point operations a second, in 10^9; `null` without a measured duration.
    pub gflops_per_s: Option<f64>,
    /// Bytes of the sources, each counted once.
    pub bytes_read: u64,
    /// Bytes of the result.
    pub bytes_written: u64,
    /// (bytes_read + bytes_written) over the measured duration, GB/s.
    pub gbps: Option<f64>,
    /// Further nodes that the backend computed in the same call (fusion).
    pub fused_with: Vec<String>,
    /// Who saw it. `mark`: the caller (operation and component are the caller's words). `eval_callback`: our eval
    /// callback (the graph was cut at this node, so `duration_us` is that of the node alone, with its start and
    /// synchronisation). `null`: the hooks.
    pub source: Option<String>,
    /// Memory of the device that ran it: `vram` or `ram`; `null` where it is not known.
    pub memory_type: Option<String>,
    /// `serialized`: the host was made to wait for this operation alone, so `duration_us` holds its start and the
    /// wait; `null` otherwise.
    pub timing: Option<String>,
}

/// A device ran its part of a graph: neighbouring operations, in a graph that does not run on the CPU alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SplitExecution {
    /// Unix time in microseconds, as a string: when the device was given the part.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds: when the device was given the part.
    pub t_ns: u64,
    /// Number of the part within the step, from 0.
    pub split: u32,
    /// Backend that ran it.
    pub backend: String,
    /// Device that ran it.
    pub device: Option<String>,
    /// Memory of the device: `vram` or `ram`; `null` where it is not known.
    pub memory_type: Option<String>,
    /// Operations of the part.
    pub operations: u32,
    /// Result of the first operation.
    pub first_tensor: String,
    /// Result of the last operation.
    pub last_tensor: String,
    /// Floating-point operations of the part.
    pub flops: u64,
    /// Bytes that its operations read and wrote.
    pub bytes: u64,
    /// Calls of the backend: more than one where a callback or the scheduler cut the part.
    pub calls: u32,
    /// What the calls took, microseconds. Most backends only queue the work; the CPU has done it by then.
    pub submit_us: f64,
    /// From `t_ns` until the host knew that the work was done, microseconds: wall time with transport and queue, an
    /// upper bound, never the time of kernels. `null` where the scheduler did not wait for the device within the step.
    pub duration_us: Option<f64>,
    /// `serialized`: the host was made to wait for the part (`LLAMA_RESOURCE_SPLIT_TIMES`), which changes the speed.
    /// `null`: nothing was forced; the CPU had done it, or the scheduler itself waited.
    pub timing: Option<String>,
}

/// One component took over data that another made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ComponentHandoff {
    /// `{device}_flow_layer_{layer}_{from}_to_{to}_{timestamp}`.
    pub resource_id: String,
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Component that made the data.
    pub from_component: String,
    /// Component that takes it.
    pub to_component: String,
    /// Layer of the taking operation.
    pub layer_id: Option<i32>,
    /// Size of the tensor in MiB; `null` for a hand-off that the caller marked without a result of
    /// `from_component` before it.
    pub data_size_mb: Option<f64>,
    /// Measured rate of the copy; `null` when both sides share memory and nothing is copied, or where `duration_us`
    /// holds more than the copy.
    pub transfer_bandwidth_gbps: Option<f64>,
    /// `null`: nothing measures it per hand-off. Pressure of the whole host is on `host_sample`.
    pub memory_pressure: Option<String>,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Backend of the taking operation.
    pub backend: Option<String>,
    /// Device of the taking operation.
    pub device: Option<String>,
    /// Tensor that was handed over; `null` where it is not known.
    pub tensor: Option<String>,
    /// Device whose memory it was copied from; `null` when both sides share memory and nothing is copied. `device` is
    /// where it went.
    pub from_device: Option<String>,
    /// Bytes handed over; of a copy: those that were copied.
    pub bytes: Option<u64>,
    /// Wall time of the call that copied, microseconds; `null` when nothing is copied, or where the backend copied
    /// by a function that is not seen. A backend may take what it is given into a queue of its own and return before
    /// it has arrived.
    pub duration_us: Option<f64>,
    /// The source's device was still computing when the copy began, so that `duration_us` may hold a wait for it;
    /// `null` where that is `null`.
    pub waited: Option<bool>,
}

/// One matrix multiplication of a feed-forward block ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MlpOperation {
    /// `{device}_mlp_layer_{layer}_{operation}_{timestamp}`.
    pub resource_id: String,
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// `gate_proj`, `up_proj`, `down_proj`, `gate_up_proj`, or the tensor's own name.
    pub mlp_operation: String,
    /// Layer number.
    pub layer_id: Option<i32>,
    /// Shape of the weights.
    pub weight_shape: Vec<i64>,
    /// Shape of the result.
    pub activation_shape: Vec<i64>,
    /// Size of the result in MiB.
    pub intermediate_size_mb: f64,
    /// Input and result together in MiB: what this operation keeps alive at once.
    pub activation_memory_peak_mb: f64,
    /// Activation of this layer as the graph names it (`silu`, `gelu`, `relu`, ...), `null` if there is none.
    pub activation_function: Option<String>,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Backend that ran it.
    pub backend: Option<String>,
    /// Device that ran it.
    pub device: Option<String>,
    /// Measured duration in microseconds, `null` where it cannot be measured.
    pub duration_us: Option<f64>,
}

/// The KV cache changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KvCacheOperation {
    /// `{device}_cache_layer_{layer}_{operation}_{timestamp}`.
    pub resource_id: String,
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Always `key_value`.
    pub cache_type: String,
    /// Layer whose cache was written; `null` for operations on all layers.
    pub layer_id: Option<i32>,
    /// Sequence; `null` when a write serves several at once, -1 for "all".
    pub seq_id: Option<i32>,
    /// First position touched.
    pub cache_start_pos: Option<i32>,
    /// One past the last position touched; `null` for "to the end".
    pub cache_end_pos: Option<i32>,
    /// MiB of keys written; `null` where nothing is written.
    pub key_cache_size_mb: Option<f64>,
    /// MiB of values written.
    pub value_cache_size_mb: Option<f64>,
    /// Share of the request's prompt that came from the cache (cached / prompt tokens); `null` outside a request.
    pub cache_hit_ratio: Option<f64>,
    /// `update` (written by a graph), `evict`, `copy`, `shift`, `keep`, `clear`, `save`, `restore`.
    pub cache_operation: String,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Backend of the cache.
    pub backend: Option<String>,
    /// Device of the cache.
    pub device: Option<String>,
    /// Size that the caller gave with its mark, keys and values together, MiB; `null` for operations that
    /// the hooks saw.
    pub cache_size_mb: Option<f64>,
}
