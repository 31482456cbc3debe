//! Requests: each one, and all together.

use std::collections::BTreeMap;

use serde::Serialize;

use super::stats::{Distribution, share};
use crate::format::Line;
use crate::format::gpu::GpuUse;
use crate::format::server::{InterToken, RequestEnd};

/// One request. Counts and times are `null` while its end is not in the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    /// Number within the session.
    pub request_id: u64,
    /// Sequence; in llama-server the slot.
    pub seq_id: i32,
    /// Number of the context.
    pub context_id: u64,
    /// `launch`, `copy` or `derived`; `null` when the start is not in the log.
    pub source: Option<String>,
    /// Start, seconds since the session began.
    pub start_s: f64,
    /// End, seconds since the session began.
    pub end_s: Option<f64>,
    /// Tokens of the whole prompt.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that were in the KV cache already.
    pub cached_tokens: Option<u64>,
    /// Tokens sampled.
    pub generated_tokens: Option<u64>,
    /// Waiting for room in a batch.
    pub wait_ms: Option<f64>,
    /// Work on the prompt.
    pub prompt_ms: Option<f64>,
    /// From the start to the first token.
    pub ttft_ms: Option<f64>,
    /// Times between tokens.
    pub inter_token_ms: Option<InterToken>,
    /// Speed of the generation.
    pub tokens_per_second: Option<f64>,
    /// Speed of the prompt.
    pub prompt_tokens_per_second: Option<f64>,
    /// From the start to the end.
    pub duration_ms: Option<f64>,
    /// How it ended; `null` when its end is not in the log.
    pub outcome: Option<String>,
    /// Positions that context shift removed.
    pub shifted_tokens: Option<u64>,
    /// The server's number of the task; this and the next five come from a server that was built with `patches/`.
    pub task_id: Option<i32>,
    /// The `id` of the response.
    pub completion_id: Option<String>,
    /// Waiting for a slot, before the start.
    pub queue_ms: Option<f64>,
    /// Why the server stopped.
    pub stop_reason: Option<String>,
    /// Tokens drafted by speculative decoding.
    pub drafted: Option<u64>,
    /// Those of them that the model accepted.
    pub accepted: Option<u64>,
    /// What each GPU did during it; `null` where none was read.
    pub gpu: Option<Vec<GpuUse>>,
}

/// All requests together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Requests seen.
    pub requests: u64,
    /// Requests whose end is in the log; all sums and distributions are over these.
    pub ended: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// `cached_tokens / prompt_tokens`.
    pub cached_share: Option<f64>,
    /// Tokens sampled.
    pub generated_tokens: u64,
    /// Largest number of requests at one time.
    pub concurrent_peak: u64,
    /// Time to the first token, over requests.
    pub ttft_ms: Option<Distribution>,
    /// Time waiting for a slot, over requests; of a server that was built with `patches/`.
    pub queue_ms: Option<Distribution>,
    /// Tokens drafted by speculative decoding; the same servers tell.
    pub drafted: Option<u64>,
    /// Those of them that the model accepted.
    pub accepted: Option<u64>,
    /// Time waiting for room, over requests.
    pub wait_ms: Option<Distribution>,
    /// Whole duration, over requests.
    pub duration_ms: Option<Distribution>,
    /// Generation speed, over requests.
    pub tokens_per_second: Option<Distribution>,
    /// Mean time between tokens, over all tokens: exact, from the requests' own means.
    pub inter_token_mean_ms: Option<f64>,
    /// Times between tokens, over all tokens whose `request_token` is in the log (VERBOSE); percentiles of percentiles
    /// would be invented.
    pub inter_token_ms: Option<Distribution>,
    /// Whether every token of every ended request is in [`Self::inter_token_ms`].
    pub inter_token_complete: bool,
    /// Requests by outcome.
    pub outcomes: BTreeMap<String, u64>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Requests {
    /// In the order of their start.
    pub requests: Vec<Request>,
    /// Together.
    pub totals: Totals,
}

/// Gathers [`Requests`].
#[derive(Debug, Default)]
pub struct Fold {
    requests: BTreeMap<u64, Request>,
    gaps_ms: Vec<f64>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        match line {
            Line::RequestStart(e) => {
                let request = self.entry(e.request_id, e.seq_id, e.context_id, t_s);
                (request.start_s, request.source) = (t_s, Some(e.source.clone()));
            }
            Line::RequestToken(e) if e.index > 0 => self.gaps_ms.push(e.since_previous_ms),
            Line::RequestEnd(e) => {
                let start_s = t_s - e.duration_ms / 1e3;
                self.entry(e.request_id, e.seq_id, e.context_id, start_s).end(e, t_s);
            }
            _ => {}
        }
    }

    fn entry(&mut self, request_id: u64, seq_id: i32, context_id: u64, start_s: f64) -> &mut Request {
        self.requests.entry(request_id).or_insert_with(|| Request {
            request_id,
            seq_id,
            context_id,
            source: None,
            start_s,
            end_s: None,
            prompt_tokens: None,
            cached_tokens: None,
            generated_tokens: None,
            wait_ms: None,
            prompt_ms: None,
            ttft_ms: None,
            inter_token_ms: None,
            tokens_per_second: None,
            prompt_tokens_per_second: None,
            duration_ms: None,
            outcome: None,
            shifted_tokens: None,
            task_id: None,
            completion_id: None,
            queue_ms: None,
            stop_reason: None,
            drafted: None,
            accepted: None,
            gpu: None,
        })
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Requests {
        let mut requests: Vec<Request> = self.requests.into_values().collect();
        requests.sort_by(|a, b| a.start_s.total_cmp(&b.start_s).then(a.request_id.cmp(&b.request_id)));
        let totals = totals(&requests, &self.gaps_ms);
        Requests { requests, totals }
    }
}

impl Request {
    fn end(&mut self, e: &RequestEnd, t_s: f64) {
        self.end_s = Some(t_s);
        self.prompt_tokens = Some(e.prompt_tokens);
        self.cached_tokens = Some(e.cached_tokens);
        self.generated_tokens = Some(e.generated_tokens);
        self.wait_ms = e.wait_ms;
        self.prompt_ms = e.prompt_ms;
        self.ttft_ms = e.ttft_ms;
        self.inter_token_ms.clone_from(&e.inter_token_ms);
        self.tokens_per_second = e.tokens_per_second;
        self.prompt_tokens_per_second = e.prompt_tokens_per_second;
        self.duration_ms = Some(e.duration_ms);
        self.outcome = Some(e.outcome.clone());
        self.shifted_tokens = Some(e.shifted_tokens);
        self.task_id = e.task_id;
        self.completion_id.clone_from(&e.completion_id);
        self.queue_ms = e.queue_ms;
        self.stop_reason.clone_from(&e.stop_reason);
        (self.drafted, self.accepted) = (e.drafted, e.accepted);
        self.gpu.clone_from(&e.gpu);
    }
}

fn totals(requests: &[Request], gaps_ms: &[f64]) -> Totals {
    let sum = |f: fn(&Request) -> Option<u64>| requests.iter().filter_map(f).fold(0, u64::saturating_add);
    let known = |f: fn(&Request) -> Option<u64>| requests.iter().any(|r| f(r).is_some()).then(|| sum(f));
    let over = |f: fn(&Request) -> Option<f64>| Distribution::of(requests.iter().filter_map(f));
    let mut outcomes = BTreeMap::new();
    let (mut weighted_ms, mut gaps) = (0.0, 0_u64);
    for request in requests {
        if let Some(outcome) = &request.outcome {
            *outcomes.entry(outcome.clone()).or_default() += 1;
        }
        if let (Some(n), Some(times)) = (request.generated_tokens, &request.inter_token_ms) {
            let n = n.saturating_sub(1);
            weighted_ms += times.mean * n as f64;
            gaps = gaps.saturating_add(n);
        }
    }
    let prompt_tokens = sum(|r| r.prompt_tokens);
    let cached_tokens = sum(|r| r.cached_tokens);
    Totals {
        requests: requests.len() as u64,
        ended: requests.iter().filter(|r| r.end_s.is_some()).count() as u64,
        prompt_tokens,
        cached_tokens,
        cached_share: share(cached_tokens as f64, prompt_tokens as f64),
        generated_tokens: sum(|r| r.generated_tokens),
        concurrent_peak: concurrent_peak(requests),
        ttft_ms: over(|r| r.ttft_ms),
        queue_ms: over(|r| r.queue_ms),
        drafted: known(|r| r.drafted),
        accepted: known(|r| r.accepted),
        wait_ms: over(|r| r.wait_ms),
        duration_ms: over(|r| r.duration_ms),
        tokens_per_second: over(|r| r.tokens_per_second),
        inter_token_mean_ms: share(weighted_ms, gaps as f64),
        inter_token_ms: Distribution::of(gaps_ms.iter().copied()),
        inter_token_complete: gaps > 0 && gaps_ms.len() as u64 == gaps,
        outcomes,
    }
}

/// Ends sort before starts of the same moment: a slot that is handed on was never held twice.
fn concurrent_peak(requests: &[Request]) -> u64 {
    let starts = requests.iter().map(|r| (r.start_s, 1_i64));
    let ends = requests.iter().filter_map(|r| Some((r.end_s?, -1)));
    let mut changes: Vec<(f64, i64)> = starts.chain(ends).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut peak) = (0, 0);
    for (_, change) in changes {
        now += change;
        peak = peak.max(now);
    }
    u64::try_from(peak).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;

    fn end(id: u64, prompt: u64, cached: u64, generated: u64, mean: Option<f64>) -> Line {
        let inter = mean.map(|m| serde_json::json!({"mean": m, "p50": m, "p95": m, "p99": m}));
        serde_json::from_value(serde_json::json!({
            "event": "request_end", "timestamp": "0", "session_id": "s", "t_ns": 0, "request_id": id, "seq_id": 0,
            "context_id": 1, "prompt_tokens": prompt, "cached_tokens": cached, "generated_tokens": generated,
            "ttft_ms": null, "prompt_ms": null, "wait_ms": null, "inter_token_ms": inter, "tokens_per_second": null,
            "prompt_tokens_per_second": null, "duration_ms": 1000.0, "outcome": "eog", "shifted_tokens": 0,
        }))
        .unwrap()
    }

    #[test]
    fn means_are_weighted_by_tokens_and_unknown_percentiles_stay_unknown() {
        let mut fold = Fold::default();
        fold.add(&end(1, 10, 5, 11, Some(10.0)), 2.0);
        fold.add(&end(2, 10, 0, 31, Some(30.0)), 2.5);
        fold.add(&end(3, 0, 0, 1, None), 9.0);
        let t = fold.finish().totals;
        assert_eq!((t.requests, t.ended, t.generated_tokens, t.cached_share), (3, 3, 43, Some(0.25)));
        assert_eq!(t.inter_token_mean_ms, Some(25.0));
        assert_eq!((t.inter_token_ms, t.inter_token_complete, t.ttft_ms), (None, false, None));
        assert_eq!((t.concurrent_peak, t.outcomes["eog"]), (2, 3));
    }

    #[test]
    fn what_only_a_patched_server_tells_is_unknown_of_the_others() {
        let mut fold = Fold::default();
        fold.add(&end(1, 10, 5, 11, None), 2.0);
        assert_eq!(fold.finish().totals.drafted, None);
        let mut fold = Fold::default();
        for (id, drafted) in [(1, Some(8)), (2, None), (3, Some(4))] {
            let Line::RequestEnd(mut e) = end(id, 1, 0, 1, None) else { unreachable!() };
            (e.drafted, e.accepted, e.queue_ms) = (drafted, drafted.map(|n| n / 4), drafted.map(|n| n as f64));
            fold.add(&Line::RequestEnd(e), id as f64);
        }
        let t = fold.finish().totals;
        assert_eq!((t.drafted, t.accepted, t.queue_ms.map(|q| (q.n, q.mean))), (Some(12), Some(3), Some((2, 6.0))));
    }

    #[test]
    fn numbers_of_a_damaged_log_do_not_overflow() {
        let mut fold = Fold::default();
        fold.add(&end(1, u64::MAX, u64::MAX, u64::MAX, Some(1e308)), 0.0);
        fold.add(&end(2, u64::MAX, 1, u64::MAX, Some(1e308)), 0.0);
        assert_eq!(fold.finish().totals.generated_tokens, u64::MAX);
    }
}
