//! What logs tell of their hosts now, as JSON: for the page of `serve`, and for programs.

use std::path::Path;

use serde_json::{Value, json};

use crate::analyze::live::Live;
use crate::analyze::live::histogram::Histogram;
use crate::read::follow::Taken;

/// Version of the summary. Fields are only ever added; it counts the additions.
pub const SUMMARY_VERSION: u32 = 1;

/// Ended requests that the summary names one by one, the newest first.
const SHOWN_REQUESTS: usize = 20;

fn quantiles(h: &Histogram) -> Value {
    let at = |share| h.quantile(share);
    json!({ "count": h.total(), "sum_s": h.sum, "p50_s": at(0.5), "p90_s": at(0.9), "p99_s": at(0.99) })
}

/// One log. `now_s`: Unix seconds.
#[must_use]
pub fn host(name: &str, path: &Path, live: &Live, taken: Taken, trouble: Option<&str>, now_s: f64) -> Value {
    let session = live.session.as_ref();
    let seconds_since = |t_ns: u64| live.last_ns.saturating_sub(t_ns) as f64 / 1e9;
    let active: Vec<Value> = live
        .requests
        .active
        .values()
        .map(|a| {
            json!({
                "request_id": a.request_id, "seq_id": a.seq_id, "context_id": a.context_id, "phase": a.phase,
                "prompt_tokens_done": a.prompt_tokens_done, "prompt_tokens": a.prompt_tokens,
                "cached_tokens": a.cached_tokens, "generated_tokens": a.generated_tokens, "age_s": seconds_since(a.start_ns),
            })
        })
        .collect();
    let recent: Vec<Value> = live
        .requests
        .recent
        .iter()
        .rev()
        .take(SHOWN_REQUESTS)
        .map(|e| {
            json!({
                "request_id": e.end.request_id, "seq_id": e.end.seq_id, "ended_unix_s": e.ended_unix_s,
                "prompt_tokens": e.end.prompt_tokens, "cached_tokens": e.end.cached_tokens,
                "generated_tokens": e.end.generated_tokens, "ttft_ms": e.end.ttft_ms,
                "tokens_per_second": e.end.tokens_per_second, "duration_ms": e.end.duration_ms, "outcome": e.end.outcome,
                "trace_id": e.trace_id,
            })
        })
        .collect();
    let memory: Vec<Value> = live
        .memory()
        .into_iter()
        .map(|(p, bytes)| json!({ "device": p.device, "kind": p.kind, "memory": p.memory, "bytes": bytes }))
        .collect();
    let kv: Vec<Value> = live
        .contexts
        .iter()
        .map(
            |(id, c)| json!({ "context_id": id, "used_cells": c.used, "size_cells": c.size, "sequences": c.sequences }),
        )
        .collect();
    let steps = &live.steps;
    let rates = steps.last_interval.filter(|(ms, ..)| *ms > 0.0).map(|(ms, prompt, generated)| {
        json!({
            "interval_ms": ms, "prompt_tokens_per_second": prompt as f64 * 1e3 / ms,
            "generated_tokens_per_second": generated as f64 * 1e3 / ms,
        })
    });
    let r = &live.requests;
    json!({
        "log": name,
        "path": path.display().to_string(),
        "up": trouble.is_none() && session.is_some() && !live.ended,
        "trouble": trouble,
        "lag_s": live.unix_s(live.last_ns).map(|t| (now_s - t).max(0.0)),
        "session_id": session.map(|s| s.session_id.clone()),
        "program": session.map(|s| s.program.clone()),
        "pid": session.map(|s| s.pid),
        "level": session.map(|s| s.level.name()),
        "began_unix_s": session.map(|s| s.unix_us as f64 / 1e6),
        "model": live.model_name(),
        "model_description": live.model.as_ref().and_then(|m| m.description.clone()),
        "requests": {
            "active": active, "recent": recent, "outcomes": r.outcomes,
            "prompt_tokens": r.prompt_tokens, "cached_tokens": r.cached_tokens, "generated_tokens": r.generated_tokens,
            "time_to_first_token": quantiles(&r.time_to_first_token), "inter_token": quantiles(&r.inter_token),
            "duration": quantiles(&r.duration), "queue": quantiles(&r.queue),
        },
        "memory": memory,
        "kv": kv,
        "kv_operations": live.kv_operations,
        "steps": {
            "prefill": steps.prefill, "decode": steps.decode, "graphs_built": steps.graphs_built,
            "graphs_reused": steps.graphs_reused, "timed_steps": steps.timed_steps, "timed_graph_s": steps.timed_graph_s,
            "barrier_s": steps.barrier_s, "components": steps.components, "ops": steps.ops, "layers": steps.layers,
            "last_interval": rates,
        },
        "gpus": live.gpus.values().collect::<Vec<_>>(),
        "host": live.host,
        "dropped": live.dropped,
        "conditions": live.conditions.values().collect::<Vec<_>>(),
        "read": taken,
    })
}
