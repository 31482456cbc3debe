//! One line of the event log: the union of all events, keyed by the field `event`.

use serde::{Deserialize, Serialize};

use super::{gpu, resource, server, session, summary};

/// The one list of kinds: the union, the names in the log, and the fields that every kind has.
macro_rules! lines {
    ($($(#[$doc:meta])* $kind:ident($fields:ty) = $name:literal,)*) => {
        /// One line of the log. `event` names the kind; the rest of the line is that kind's fields.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum Line {
            $($(#[$doc])* #[serde(rename = $name)] $kind($fields),)*
        }

        impl Line {
            /// The value of the field `event`.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => $name,)* }
            }

            /// The moment that the line tells of, on the monotonic clock in nanoseconds.
            #[must_use]
            pub const fn t_ns(&self) -> u64 {
                match self { $(Self::$kind(e) => e.t_ns,)* }
            }

            /// Session that the line names: the log's own, or one that the host began.
            #[must_use]
            pub fn session_id(&self) -> &str {
                match self { $(Self::$kind(e) => &e.session_id,)* }
            }

            /// What the writer fills in: the wall-clock time and the session.
            pub const fn envelope(&mut self) -> Envelope<'_> {
                match self {
                    $(Self::$kind(e) => Envelope { timestamp: &mut e.timestamp, session_id: &mut e.session_id },)*
                }
            }
        }
    };
}

/// The two fields of every line that its producer leaves to the writer.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// `timestamp`.
    pub timestamp: &'a mut String,
    /// `session_id`; empty until the host names a session.
    pub session_id: &'a mut String,
}

lines! {
    /// The log was opened.
    ResourceSessionStart(session::SessionStart) = "resource_session_start",
    /// A named session began (C API, macros).
    ResourceTrackingBegin(session::TrackingBegin) = "resource_tracking_begin",
    /// Totals of a session, when it ends.
    ResourceSessionSummary(session::SessionSummary) = "resource_session_summary",
    /// The log was closed in order. A log without it was cut short.
    ResourceSessionEnd(session::SessionEnd) = "resource_session_end",
    /// A layer of a sampled step began.
    LayerBegin(session::LayerBegin) = "layer_begin",
    /// A layer of a sampled step ended.
    LayerEnd(session::LayerEnd) = "layer_end",
    /// A component (attention, mlp, ...) began.
    ComponentBegin(session::ComponentBegin) = "component_begin",
    /// A component ended.
    ComponentEnd(session::ComponentEnd) = "component_end",

    /// Memory was given to a tensor.
    MemoryAllocation(resource::MemoryAllocation) = "memory_allocation",
    /// Memory of an allocation was given back (C API).
    MemoryDeallocation(resource::MemoryDeallocation) = "memory_deallocation",
    /// One operation ran.
    ComputeExecution(resource::ComputeExecution) = "compute_execution",
    /// A device ran its part of a graph.
    SplitExecution(resource::SplitExecution) = "split_execution",
    /// One component took over data that another made.
    ComponentHandoff(resource::ComponentHandoff) = "component_handoff",
    /// One matrix multiplication of a feed-forward block ran.
    MlpOperation(resource::MlpOperation) = "mlp_operation",
    /// The KV cache changed.
    KvCacheOperation(resource::KvCacheOperation) = "kv_cache_operation",

    /// A model was loaded.
    ModelLoad(server::ModelLoad) = "model_load",
    /// A backend buffer was allocated.
    BufferAllocation(server::BufferAllocation) = "buffer_allocation",
    /// A backend buffer was freed.
    BufferFree(server::BufferFree) = "buffer_free",
    /// A request began.
    RequestStart(server::RequestStart) = "request_start",
    /// A request's token was sampled (VERBOSE).
    RequestToken(server::RequestToken) = "request_token",
    /// How far a running request has come (DETAILED and up, once a second).
    RequestProgress(server::RequestProgress) = "request_progress",
    /// A request ended.
    RequestEnd(server::RequestEnd) = "request_end",
    /// One call of `llama_decode` or `llama_process` (DETAILED and up, sampled with the steps).
    Batch(server::Batch) = "batch",
    /// Cells of the KV cache in use.
    KvCacheUsage(server::KvCacheUsage) = "kv_cache_usage",

    /// Exact totals of all steps since the last summary.
    StepSummary(summary::StepSummary) = "step_summary",
    /// How often each expert of a mixture-of-experts layer was chosen.
    MoeRouting(summary::MoeRouting) = "moe_routing",
    /// What this process used of the machine.
    HostSample(summary::HostSample) = "host_sample",
    /// What a GPU says of itself.
    GpuSample(gpu::GpuSample) = "gpu_sample",
    /// What a GPU did during the session.
    GpuSummary(gpu::GpuSummary) = "gpu_summary",
    /// Busy time of each compute thread in a sampled step (VERBOSE).
    ThreadImbalance(summary::ThreadImbalance) = "thread_imbalance",
    /// Events that were not written, with the reason.
    EventsDropped(summary::EventsDropped) = "events_dropped",
    /// What became of the activations that the selection wanted, when the stream is closed.
    CaptureSummary(summary::CaptureSummary) = "capture_summary",
    /// What works in this process, what does not and why.
    InstrumentationState(summary::InstrumentationState) = "instrumentation_state",
}
