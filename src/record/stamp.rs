//! Times of a line: which field holds its moment, and the wall-clock strings made from it.

use crate::clock;
use crate::format::Line;

macro_rules! each_line {
    ($line:expr, $e:ident => $body:expr) => {
        match $line {
            Line::ResourceSessionStart($e) => $body,
            Line::ResourceTrackingBegin($e) => $body,
            Line::ResourceSessionSummary($e) => $body,
            Line::ResourceSessionEnd($e) => $body,
            Line::LayerBegin($e) => $body,
            Line::LayerEnd($e) => $body,
            Line::ComponentBegin($e) => $body,
            Line::ComponentEnd($e) => $body,
            Line::MemoryAllocation($e) => $body,
            Line::MemoryDeallocation($e) => $body,
            Line::ComputeExecution($e) => $body,
            Line::SplitExecution($e) => $body,
            Line::ComponentHandoff($e) => $body,
            Line::MlpOperation($e) => $body,
            Line::KvCacheOperation($e) => $body,
            Line::ModelLoad($e) => $body,
            Line::BufferAllocation($e) => $body,
            Line::BufferFree($e) => $body,
            Line::RequestStart($e) => $body,
            Line::RequestToken($e) => $body,
            Line::RequestEnd($e) => $body,
            Line::Batch($e) => $body,
            Line::KvCacheUsage($e) => $body,
            Line::StepSummary($e) => $body,
            Line::MoeRouting($e) => $body,
            Line::HostSample($e) => $body,
            Line::GpuSample($e) => $body,
            Line::GpuSummary($e) => $body,
            Line::ThreadImbalance($e) => $body,
            Line::EventsDropped($e) => $body,
            Line::CaptureSummary($e) => $body,
            Line::InstrumentationState($e) => $body,
        }
    };
}

/// The moment of a line, monotonic ns.
#[must_use]
pub fn line_time(line: &Line) -> u64 {
    each_line!(line, e => e.t_ns)
}

/// Fills `timestamp` from `t_ns`, and the session id where the sender left it empty.
pub fn stamp(line: &mut Line, session_id: &str) {
    let local = matches!(
        line,
        Line::ResourceSessionStart(_)
            | Line::ResourceTrackingBegin(_)
            | Line::ResourceSessionSummary(_)
            | Line::ResourceSessionEnd(_)
            | Line::LayerBegin(_)
            | Line::LayerEnd(_)
            | Line::ComponentBegin(_)
            | Line::ComponentEnd(_)
    );
    let t_ns = line_time(line);
    let timestamp = if local { clock::local_time(t_ns) } else { clock::unix_us(t_ns).to_string() };
    each_line!(line, e => {
        e.timestamp = timestamp;
        if e.session_id.is_empty() {
            e.session_id.push_str(session_id);
        }
    });
}

/// `{device}_{type}_layer_{layer}_{what}_{unix µs}`, as the documented events have it.
#[must_use]
pub fn resource_id(device: Option<&str>, kind: &str, layer: Option<i32>, what: &str, t_ns: u64) -> String {
    let layer = layer.map_or_else(|| "none".to_owned(), |l| l.to_string());
    format!("{}_{kind}_layer_{layer}_{what}_{}", device.unwrap_or("unknown").to_lowercase(), clock::unix_us(t_ns))
}
