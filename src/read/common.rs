//! The two fields that every event has, whatever its kind.

use crate::format::Line;

/// One arm for each kind: the compiler says when a new kind is missing here.
macro_rules! of_any {
    ($line:expr, $e:ident => $value:expr) => {
        match $line {
            Line::ResourceSessionStart($e) => $value,
            Line::ResourceTrackingBegin($e) => $value,
            Line::ResourceSessionSummary($e) => $value,
            Line::ResourceSessionEnd($e) => $value,
            Line::LayerBegin($e) => $value,
            Line::LayerEnd($e) => $value,
            Line::ComponentBegin($e) => $value,
            Line::ComponentEnd($e) => $value,
            Line::MemoryAllocation($e) => $value,
            Line::MemoryDeallocation($e) => $value,
            Line::ComputeExecution($e) => $value,
            Line::SplitExecution($e) => $value,
            Line::ComponentHandoff($e) => $value,
            Line::MlpOperation($e) => $value,
            Line::KvCacheOperation($e) => $value,
            Line::ModelLoad($e) => $value,
            Line::BufferAllocation($e) => $value,
            Line::BufferFree($e) => $value,
            Line::RequestStart($e) => $value,
            Line::RequestToken($e) => $value,
            Line::RequestEnd($e) => $value,
            Line::Batch($e) => $value,
            Line::KvCacheUsage($e) => $value,
            Line::StepSummary($e) => $value,
            Line::MoeRouting($e) => $value,
            Line::HostSample($e) => $value,
            Line::GpuSample($e) => $value,
            Line::GpuSummary($e) => $value,
            Line::ThreadImbalance($e) => $value,
            Line::EventsDropped($e) => $value,
            Line::CaptureSummary($e) => $value,
            Line::InstrumentationState($e) => $value,
        }
    };
}

/// Session that the event names: the log's own, or one that the host began.
#[must_use]
pub fn session_id(line: &Line) -> &str {
    of_any!(line, e => &e.session_id)
}

/// Monotonic clock in nanoseconds.
#[must_use]
pub fn t_ns(line: &Line) -> u64 {
    of_any!(line, e => e.t_ns)
}
