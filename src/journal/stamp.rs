//! The two fields that the writer fills in: the wall-clock time and the session; and the ids made of a moment.

use crate::clock;
use crate::format::Line;

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
    let t_ns = line.t_ns();
    let envelope = line.envelope();
    *envelope.timestamp = if local { clock::local_time(t_ns) } else { clock::unix_us(t_ns).to_string() };
    if envelope.session_id.is_empty() {
        envelope.session_id.push_str(session_id);
    }
}

/// `{device}_{type}_layer_{layer}_{what}_{unix µs}`, as the documented events have it.
#[must_use]
pub fn resource_id(device: Option<&str>, kind: &str, layer: Option<i32>, what: &str, t_ns: u64) -> String {
    let layer = layer.map_or_else(|| "none".to_owned(), |l| l.to_string());
    format!("{}_{kind}_layer_{layer}_{what}_{}", device.unwrap_or("unknown").to_lowercase(), clock::unix_us(t_ns))
}
