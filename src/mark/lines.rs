//! Lines that need nothing but the mark itself.

use super::expand::{known, session_id, step};
use super::sessions;
use super::words::{Head, Reader};
use crate::format::Line;
use crate::format::figures::mib;
use crate::format::resource::KvCacheOperation;
use crate::format::session::{ComponentBegin, LayerBegin, SessionSummary, TrackingBegin};
use crate::journal::stamp::resource_id;
use crate::observe;

/// A session began.
pub fn tracking_begin(b: &sessions::Begun) -> Line {
    Line::ResourceTrackingBegin(TrackingBegin { timestamp: String::new(), session_id: b.id.to_string(), t_ns: b.t_ns })
}

/// A layer (no component) or a component begins.
pub fn begin(head: &Head, component: &str) -> Line {
    if component.is_empty() {
        Line::LayerBegin(LayerBegin {
            timestamp: String::new(),
            layer_id: head.layer,
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
        })
    } else {
        Line::ComponentBegin(ComponentBegin {
            timestamp: String::new(),
            component_type: component.to_owned(),
            layer_id: known(head.layer),
            session_id: session_id(head.session),
            step: step(),
            t_ns: head.t_ns,
        })
    }
}

/// The KV cache changed.
pub fn cache(head: &Head, r: &mut Reader<'_>) -> Line {
    let (operation, bytes) = (r.text(), r.number());
    Line::KvCacheOperation(KvCacheOperation {
        resource_id: resource_id(None, "cache", known(head.layer), &operation, head.t_ns),
        timestamp: String::new(),
        cache_type: "key_value".to_owned(),
        layer_id: known(head.layer),
        seq_id: None,
        cache_start_pos: None,
        cache_end_pos: None,
        key_cache_size_mb: None,
        value_cache_size_mb: None,
        cache_hit_ratio: None,
        cache_operation: operation,
        session_id: session_id(head.session),
        step: step(),
        t_ns: head.t_ns,
        backend: None,
        device: None,
        cache_size_mb: Some(mib(bytes)),
    })
}

/// Totals of a session: of the steps that were seen while it lasted, or else of the marks.
pub fn summary(e: &sessions::Ended, sums: &super::expand::Sums) -> Line {
    let buffers = observe::host().buffers.peak_bytes();
    let stepped = e.seen.steps > 0;
    Line::ResourceSessionSummary(SessionSummary {
        timestamp: String::new(),
        session_id: e.id.to_string(),
        total_memory_mb: buffers.map(|seen| mib(if seen > 0 { seen } else { sums.peak_bytes })),
        total_compute_gflops: if stepped { e.seen.flops } else { sums.flops } as f64 / 1e9,
        component_flows: if stepped { e.seen.flows } else { sums.handoffs },
        t_ns: e.t_ns,
        steps: e.seen.steps,
        requests: e.seen.requests,
        // The writer knows.
        lines_written: 0,
        bytes_written: 0,
        events_dropped: 0,
    })
}
