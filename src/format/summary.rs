//! Interval totals and the library's own account: what was seen, sampled, dropped, unavailable.

use serde::{Deserialize, Serialize};

/// Totals of one operation, component or layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Totals {
    /// Executions in all steps.
    pub count: u64,
    /// Floating-point operations in all steps.
    pub flops: u64,
    /// Bytes read and written in all steps.
    pub bytes: u64,
    /// Executions that were timed.
    pub timed_count: u64,
    /// Their time on compute thread 0, microseconds.
    pub timed_us: f64,
    /// Floating-point operations of the timed executions (for GFLOP/s: `timed_flops / timed_us / 1000`).
    pub timed_flops: u64,
    /// Bytes of the timed executions (for GB/s: `timed_bytes / timed_us / 1000`).
    pub timed_bytes: u64,
}

/// [`Totals`] under a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedTotals {
    /// Operation (`mul_mat`) or component (`attention`).
    pub name: String,
    /// The totals.
    #[serde(flatten)]
    pub totals: Totals,
}

/// [`Totals`] of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerTotals {
    /// Layer number.
    pub layer_id: i32,
    /// The totals.
    #[serde(flatten)]
    pub totals: Totals,
}

/// What one device did in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceTotals {
    /// Device, or backend where the build does not tell.
    pub device: String,
    /// Memory of the device: `vram` or `ram`; `null` where it is not known.
    pub memory_type: Option<String>,
    /// Operations in all steps.
    pub operations: u64,
    /// Floating-point operations of the device.
    pub flops: u64,
    /// Bytes that they read and wrote.
    pub bytes: u64,
    /// Parts of graphs that it was given (see `split_execution`).
    pub splits: u64,
    /// Those whose end was seen.
    pub timed_splits: u64,
    /// Those that the host was made to wait for (`LLAMA_RESOURCE_SPLIT_TIMES`).
    pub serialized_splits: u64,
    /// Wall time of the timed ones as the host saw it, microseconds: from the call until they were known to be done.
    pub split_us: f64,
}

/// Copies from one device's memory to another's in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CopyTotals {
    /// Device that the data was on; `null` where it is not known.
    pub from_device: Option<String>,
    /// Device that got it; `null` where it is not known.
    pub to_device: Option<String>,
    /// Tensors.
    pub count: u64,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// Tensors whose copy was timed and waited for nothing else.
    pub timed_count: u64,
    /// Bytes of the tensors whose copy was timed.
    pub timed_bytes: u64,
    /// Wall time of those calls, microseconds (for GB/s: `timed_bytes / timed_us / 1000`).
    pub timed_us: f64,
}

/// Steps of one phase within an interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PhaseTotals {
    /// Ubatches.
    pub steps: u64,
    /// Tokens of the ubatches.
    pub tokens: u64,
    /// Wall time inside the scheduler's compute call, microseconds. On an asynchronous backend: submission only.
    pub graph_us: f64,
    /// Floating-point operations.
    pub flops: u64,
}

/// Exact totals of all steps since the last summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StepSummary {
    /// Unix time in microseconds, as a string: end of the interval.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds: end of the interval.
    pub t_ns: u64,
    /// Length of the interval.
    pub interval_ms: f64,
    /// Last step of the interval.
    pub step: Option<u64>,
    /// Ubatches.
    pub steps: u64,
    /// Ubatches whose operations were timed.
    pub timed_steps: u64,
    /// Ubatches written event by event.
    pub sampled_steps: u64,
    /// Ubatches that reused the graph of the one before.
    pub graphs_reused: u64,
    /// Graphs built.
    pub graphs_built: u64,
    /// Ubatches with more than one token a sequence.
    pub prefill: PhaseTotals,
    /// Ubatches with one token a sequence.
    pub decode: PhaseTotals,
    /// Wall time of the timed graphs, microseconds: operations + barriers + `other_us`. Graphs without tokens (an
    /// encoder of pictures or of speech, a shift of keys) are no steps, but their time is in here as in the totals by
    /// operation, component and layer.
    pub timed_graph_us: f64,
    /// Time of compute thread 0 at barriers between operations, microseconds.
    pub barrier_us: f64,
    /// The rest of the timed graphs: starting the threads, scheduling, copies between backends, what the host
    /// compresses for a capture.
    pub other_us: f64,
    /// Hand-offs between components in all steps.
    pub component_flows: u64,
    /// By operation.
    pub ops: Vec<NamedTotals>,
    /// By component.
    pub components: Vec<NamedTotals>,
    /// By layer.
    pub layers: Vec<LayerTotals>,
    /// By device; `null` where graphs are not seen (marks).
    pub devices: Option<Vec<DeviceTotals>>,
    /// Copies between devices, by pair of them; `null` where graphs are not seen (marks).
    pub copies: Option<Vec<CopyTotals>>,
}

/// How often each expert was chosen in one layer since the last such line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MoeRouting {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Layer.
    pub layer_id: i32,
    /// Tokens routed.
    pub tokens: u64,
    /// Experts chosen for each token.
    pub experts_used: u32,
    /// Times each expert was chosen; the sum is `tokens * experts_used`.
    pub counts: Vec<u64>,
}

/// What this process used of the machine since the last sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostSample {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
    /// CPU time of the process over wall time, in percent of one core, since the last sample; `null` if that is less
    /// than 50 ms ago.
    pub cpu_percent: Option<f64>,
    /// CPU time of this library's own threads over wall time, in percent of one core.
    pub own_cpu_percent: Option<f64>,
    /// Threads of the process.
    pub threads: Option<u64>,
    /// Major page faults since the last sample.
    pub major_faults: Option<u64>,
    /// Minor page faults since the last sample.
    pub minor_faults: Option<u64>,
    /// Involuntary context switches of the main thread since the last sample.
    pub involuntary_switches: Option<u64>,
    /// Bytes really read from storage since the last sample.
    pub read_bytes: Option<u64>,
    /// Bytes really written to storage since the last sample.
    pub write_bytes: Option<u64>,
    /// Load average of the machine over one minute.
    pub load_1m: Option<f64>,
    /// Memory of the machine that is available.
    pub available_bytes: Option<u64>,
    /// Share of the last 10 s in which some task waited for a CPU (PSI), percent.
    pub cpu_pressure_percent: Option<f64>,
    /// The same for memory.
    pub memory_pressure_percent: Option<f64>,
    /// The same for I/O.
    pub io_pressure_percent: Option<f64>,
    /// Energy of all CPU packages since the last sample (RAPL), millijoules; `null` where it cannot be read.
    pub cpu_package_energy_mj: Option<f64>,
    /// Their mean power since the last sample, milliwatts.
    pub cpu_package_power_mw: Option<f64>,
}

/// Busy time of each compute thread in a sampled step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ThreadImbalance {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Number of the ubatch.
    pub step: u64,
    /// Monotonic clock in nanoseconds: start of the step.
    pub t_ns: u64,
    /// Microseconds outside barriers, one entry a thread, thread 0 first.
    pub busy_us: Vec<f64>,
    /// Largest over mean busy time: 1 is perfect balance.
    pub imbalance: f64,
}

/// Events that were not written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventsDropped {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// `rate_limit` (a step was not sampled: its totals are in `step_summary`), `warm_up` (the same for a step
    /// before the host serves), `queue_full`, `io_error`, `internal`.
    pub reason: String,
    /// What was left out: `step_events`, or the name of an event.
    pub kind: String,
    /// How many since the last such line with this reason and kind.
    pub count: u64,
}

/// Tensors and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaptureAmount {
    /// Tensors; one counts once a step.
    pub tensors: u64,
    /// Bytes of the tensors in the host's type.
    pub bytes: u64,
}

/// [`CaptureAmount`] with a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaptureLoss {
    /// Why they are not in the stream, in the words of the stream's account.
    pub reason: String,
    /// How much.
    #[serde(flatten)]
    pub amount: CaptureAmount,
}

/// What became of the activations that the selection wanted: `seen` is the sum of `captured`, `skipped` and `dropped`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaptureSummary {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// The stream.
    pub path: String,
    /// What was selected.
    pub selection: String,
    /// What the selection wanted.
    pub seen: CaptureAmount,
    /// What is in the stream.
    pub captured: CaptureAmount,
    /// What was left out as asked, or because it cannot be had.
    pub skipped: Vec<CaptureLoss>,
    /// What was lost.
    pub dropped: Vec<CaptureLoss>,
    /// Bytes of the stream.
    pub file_bytes: u64,
    /// The stream was closed in order.
    pub clean: bool,
}

/// How a part of the instrumentation is: the values that `instrumentation_state.state` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Ok,
    /// It works, and something about it should be known.
    Warning,
    /// It works in part.
    Degraded,
    /// It does not work here.
    Unavailable,
}

impl Condition {
    /// The word in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        }
    }

    /// Whether something is missing from the log because of it.
    #[must_use]
    pub const fn is_a_loss(self) -> bool {
        matches!(self, Self::Degraded | Self::Unavailable)
    }
}

/// What works in this process, what does not and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstrumentationState {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds.
    pub t_ns: u64,
    /// Part of the library: `hooks`, `layout`, `op_times`, `requests`, `capture`, `memory`, `gpu`, `log`,
    /// `config`, `process`, `internal`.
    pub component: String,
    /// `ok`, `warning`, `degraded`, `unavailable`.
    pub state: String,
    /// What was found, in one sentence.
    pub reason: String,
    /// What is missing from the log because of it; `null` if nothing.
    pub lost: Option<String>,
}
