//! Session, layer and component events. Their `timestamp` is local time, `YYYY-MM-DD HH:MM:SS.mmm`, from the clock that
//! also gives `t_ns`.

use serde::{Deserialize, Serialize};

use super::Level;

/// The log was opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionStart {
    /// Local time, `YYYY-MM-DD HH:MM:SS.mmm`.
    pub timestamp: String,
    /// `resource_sess_YYYYMMDD_HHMMSS_uuuuuu_PID`.
    pub session_id: String,
    /// Level at the start.
    pub level: Level,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// The same moment as Unix time in microseconds: with `t_ns` it ties both clocks together.
    pub unix_us: u64,
    /// Version of this log format.
    pub log_version: u32,
    /// Version of the library.
    pub library_version: String,
    /// `preload` (LD_PRELOAD), `linked` (a build with `patches/`) or `api` (`llama_resource_instrumentation_init`).
    pub mode: String,
    /// Process id of the host.
    pub pid: u32,
    /// File name of the host program.
    pub program: String,
    /// Bytes a second that the log may grow; `null` = unlimited.
    pub rate_limit: Option<u64>,
}

/// A named session began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrackingBegin {
    /// Local time.
    pub timestamp: String,
    /// The caller's name for the session.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
}

/// Totals of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionSummary {
    /// Local time.
    pub timestamp: String,
    /// Session.
    pub session_id: String,
    /// Largest sum of live backend buffers during the session, MiB; `null` where not all of them could be seen.
    pub total_memory_mb: Option<f64>,
    /// Floating-point operations of all steps, in 10^9, from the real shapes.
    pub total_compute_gflops: f64,
    /// Hand-offs between components in all steps.
    pub component_flows: u64,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Ubatches computed.
    pub steps: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Lines written before this one.
    pub lines_written: u64,
    /// Bytes written before this line.
    pub bytes_written: u64,
    /// Events that were not written, of all kinds and reasons.
    pub events_dropped: u64,
}

/// The log was closed in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionEnd {
    /// Local time.
    pub timestamp: String,
    /// Session.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
}

/// A layer of a sampled step began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerBegin {
    /// Local time.
    pub timestamp: String,
    /// Layer number.
    pub layer_id: i32,
    /// Session.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds: first operation of the layer.
    pub t_ns: u64,
}

/// A layer of a sampled step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerEnd {
    /// Local time.
    pub timestamp: String,
    /// Layer number.
    pub layer_id: i32,
    /// From the first operation's start to the last one's end; `null` where operations cannot be timed.
    pub duration_us: Option<f64>,
    /// Bytes of all results of the layer's operations, MiB.
    pub layer_memory_mb: f64,
    /// Floating-point operations of the layer, in 10^9.
    pub layer_compute_gflops: f64,
    /// Operations that only move or place data.
    pub memory_operations: u32,
    /// Operations that compute.
    pub compute_operations: u32,
    /// Session.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds: end of the last operation.
    pub t_ns: u64,
}

/// A component began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ComponentBegin {
    /// Local time.
    pub timestamp: String,
    /// Component.
    pub component_type: String,
    /// Layer, `null` outside the layers.
    pub layer_id: Option<i32>,
    /// Session.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
}

/// A component ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ComponentEnd {
    /// Local time.
    pub timestamp: String,
    /// Component.
    pub component_type: String,
    /// Layer, `null` outside the layers.
    pub layer_id: Option<i32>,
    /// From the first operation's start to the last one's end of this run of operations; `null` where they
    /// cannot be timed.
    pub duration_us: Option<f64>,
    /// Session.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: Option<u64>,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
}
