//! Tells what would be captured, for `llama-resource doctor --tensors`: a JSON file about the first graph with tokens.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::Capture;
use super::graph::Wanted;
use super::live::{Live, Way};
use super::shape::Rows;
use crate::format::stream::Route;
use crate::graph::component::Component;

static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Writes the list of `live`, once in a process. The file appears whole or not at all.
pub fn write(capture: &Capture, live: &Live) {
    let Some(path) = &capture.list else { return };
    if WRITTEN.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut nodes: Vec<Value> = live.plan.wanted.iter().zip(&live.ways).map(|(w, way)| node(w, way, live)).collect();
    nodes.extend(live.plan.refused.iter().map(|r| {
        json!({
            "name": r.name, "store": r.name, "op": r.op, "layer": r.layer,
            "bytes_per_token": r.bytes / live.plan.n_tokens.max(1) as u64,
            "route": "refused", "reason": r.reason.name(),
        })
    }));
    let text = json!({
        "n_layer": super::start::n_layer(),
        "arch": super::start::architecture(),
        "n_tokens": live.plan.n_tokens,
        "nodes": nodes,
        "unmatched_terms": capture.unmatched(),
    });
    if let Err(e) = crate::store::disk::replace(path, text.to_string().as_bytes()) {
        crate::log::error(format!("the list of tensors {} cannot be written: {e}", path.display()));
    }
}

fn node(w: &Wanted, way: &Way, live: &Live) -> Value {
    let (route, reason) = match way {
        Way::By(Route::Retain) => ("retain", None),
        Way::By(_) => ("callback", w.callback_only),
        Way::Refused(reason) => ("refused", Some(reason.name())),
    };
    let tokens = if w.tokens() > 0 { w.tokens() } else { live.plan.n_tokens };
    let stored = super::copy::bytes(w, None);
    json!({
        "name": w.spec.tensor,
        "store": w.spec.name,
        "op": w.spec.op,
        "component": Component::from_u8(w.spec.component).name(),
        "layer": w.spec.layer,
        "occurrence": w.spec.occurrence,
        "dtype": w.spec.dtype.name(),
        "ne": w.shape.ne,
        "token_dim": w.shape.token_dim,
        "elements": w.spec.slice.map(|s| super::copy::slice_len(&s)),
        "rows": match w.shape.rows { Rows::Tokens => "tokens", Rows::Outputs => "outputs", Rows::Other => "other" },
        "bytes_per_token": stored / tokens.max(1),
        "route": route,
        "reason": reason,
    })
}
