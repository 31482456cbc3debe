//! One line of the event log: the union of all events, keyed by the field `event`.

use serde::{Deserialize, Serialize};

use super::{gpu, resource, server, session, summary};

/// One line of the log. `event` names the kind; the rest of the line is that kind's fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Line {
    /// The log was opened.
    ResourceSessionStart(session::SessionStart),
    /// A named session began (C API, macros).
    ResourceTrackingBegin(session::TrackingBegin),
    /// Totals of a session, when it ends.
    ResourceSessionSummary(session::SessionSummary),
    /// The log was closed in order. A log without it was cut short.
    ResourceSessionEnd(session::SessionEnd),
    /// A layer of a sampled step began.
    LayerBegin(session::LayerBegin),
    /// A layer of a sampled step ended.
    LayerEnd(session::LayerEnd),
    /// A component (attention, mlp, ...) began.
    ComponentBegin(session::ComponentBegin),
    /// A component ended.
    ComponentEnd(session::ComponentEnd),

    /// Memory was given to a tensor.
    MemoryAllocation(resource::MemoryAllocation),
    /// Memory of an allocation was given back (C API).
    MemoryDeallocation(resource::MemoryDeallocation),
    /// One operation ran.
    ComputeExecution(resource::ComputeExecution),
    /// A device ran its part of a graph.
    SplitExecution(resource::SplitExecution),
    /// One component took over data that another made.
    ComponentHandoff(resource::ComponentHandoff),
    /// One matrix multiplication of a feed-forward block ran.
    MlpOperation(resource::MlpOperation),
    /// The KV cache changed.
    KvCacheOperation(resource::KvCacheOperation),

    /// A model was loaded.
    ModelLoad(server::ModelLoad),
    /// A backend buffer was allocated.
    BufferAllocation(server::BufferAllocation),
    /// A backend buffer was freed.
    BufferFree(server::BufferFree),
    /// A request began.
    RequestStart(server::RequestStart),
    /// A request's token was sampled (VERBOSE).
    RequestToken(server::RequestToken),
    /// A request ended.
    RequestEnd(server::RequestEnd),
    /// One call of `llama_decode` or `llama_process` (DETAILED and up, sampled with the steps).
    Batch(server::Batch),
    /// Cells of the KV cache in use.
    KvCacheUsage(server::KvCacheUsage),

    /// Exact totals of all steps since the last summary.
    StepSummary(summary::StepSummary),
    /// How often each expert of a mixture-of-experts layer was chosen.
    MoeRouting(summary::MoeRouting),
    /// What this process used of the machine.
    HostSample(summary::HostSample),
    /// What a GPU says of itself.
    GpuSample(gpu::GpuSample),
    /// What a GPU did during the session.
    GpuSummary(gpu::GpuSummary),
    /// Busy time of each compute thread in a sampled step (VERBOSE).
    ThreadImbalance(summary::ThreadImbalance),
    /// Events that were not written, with the reason.
    EventsDropped(summary::EventsDropped),
    /// What became of the activations that the selection wanted, when the stream is closed.
    CaptureSummary(summary::CaptureSummary),
    /// What works in this process, what does not and why.
    InstrumentationState(summary::InstrumentationState),
}

impl Line {
    /// The value of the field `event`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ResourceSessionStart(_) => "resource_session_start",
            Self::ResourceTrackingBegin(_) => "resource_tracking_begin",
            Self::ResourceSessionSummary(_) => "resource_session_summary",
            Self::ResourceSessionEnd(_) => "resource_session_end",
            Self::LayerBegin(_) => "layer_begin",
            Self::LayerEnd(_) => "layer_end",
            Self::ComponentBegin(_) => "component_begin",
            Self::ComponentEnd(_) => "component_end",
            Self::MemoryAllocation(_) => "memory_allocation",
            Self::MemoryDeallocation(_) => "memory_deallocation",
            Self::ComputeExecution(_) => "compute_execution",
            Self::SplitExecution(_) => "split_execution",
            Self::ComponentHandoff(_) => "component_handoff",
            Self::MlpOperation(_) => "mlp_operation",
            Self::KvCacheOperation(_) => "kv_cache_operation",
            Self::ModelLoad(_) => "model_load",
            Self::BufferAllocation(_) => "buffer_allocation",
            Self::BufferFree(_) => "buffer_free",
            Self::RequestStart(_) => "request_start",
            Self::RequestToken(_) => "request_token",
            Self::RequestEnd(_) => "request_end",
            Self::Batch(_) => "batch",
            Self::KvCacheUsage(_) => "kv_cache_usage",
            Self::StepSummary(_) => "step_summary",
            Self::MoeRouting(_) => "moe_routing",
            Self::HostSample(_) => "host_sample",
            Self::GpuSample(_) => "gpu_sample",
            Self::GpuSummary(_) => "gpu_summary",
            Self::ThreadImbalance(_) => "thread_imbalance",
            Self::EventsDropped(_) => "events_dropped",
            Self::CaptureSummary(_) => "capture_summary",
            Self::InstrumentationState(_) => "instrumentation_state",
        }
    }
}
