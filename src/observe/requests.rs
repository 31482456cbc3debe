//! Requests, put together from calls that every llama.cpp host makes: nothing of the server itself is read.
//!
//! ```text
//!            launch (llama_set_sampler)   first tokens         sampled            release (llama_set_sampler again)
//!   idle ───────────────────────────────► prompt ────────────► generating ──────────────────────────────────► idle
//!     └──────── tokens without a launch ────┘  (hosts that set no sampler: Python, Node.js, embeddings)
//! ```
//!
//! In llama-server the sequence id is the slot id. A context whose first `llama_set_sampler` passes null is a serving
//! one (the server resets each slot); a draft context's first call passes a sampler. Other hosts' requests are derived
//! from the tokens alone and told only once an output is read, so that warm-up decodes never count. A patched server
//! tells launch and release itself: [`served`].

mod positions;
mod progress;
pub mod served;

use std::collections::HashMap;

use crate::format::Line;
use crate::format::histogram::Buckets;
use crate::format::server::{InterToken, RequestEnd, RequestStart};
use crate::journal::Token;
use crate::journal::{self, Event};
use crate::observe::contexts::Processed;

/// A launch that lies longer in the past than this, not counting time in decode calls, belongs to nothing: llama-server
/// starts a launched slot in the very next turn of its loop, so such a mark is an old release.
const STALE_LAUNCH_NS: u64 = 20_000_000;

/// A request on a sequence.
#[derive(Debug)]
struct Request {
    id: u64,
    source: &'static str,
    start_ns: u64,
    prompt_start_ns: u64,
    processed: u64,
    cached: u64,
    generated: u64,
    first_ns: u64,
    last_ns: u64,
    /// When its progress was told last; its start until then.
    progress_ns: u64,
    gaps_us: Vec<u32>,
    shifted: u64,
    ended_by_model: bool,
    told: bool,
    /// From a patched server: it says when the request ends.
    served: Option<Box<served::Served>>,
}

impl Request {
    const fn new(source: &'static str, start_ns: u64) -> Self {
        Self {
            id: 0,
            source,
            start_ns,
            prompt_start_ns: 0,
            processed: 0,
            cached: 0,
            generated: 0,
            first_ns: 0,
            last_ns: 0,
            progress_ns: start_ns,
            gaps_us: Vec::new(),
            shifted: 0,
            ended_by_model: false,
            told: false,
            served: None,
        }
    }
}

/// What is known of a sequence.
#[derive(Debug, Default)]
struct Sequence {
    launched: Option<(u64, u64)>,
    first_touch_ns: Option<u64>,
    /// Its last rows.
    last: Option<positions::Last>,
    /// The rows that are being computed lie before those.
    goes_back: bool,
    request: Option<Request>,
}

/// All sequences of all contexts.
#[derive(Debug, Default)]
pub struct Requests {
    sequences: HashMap<(u64, i32), Sequence>,
    /// Numbers given to requests that are not told yet.
    reserved: HashMap<(u64, i32), u64>,
    next_id: u64,
    ended: u64,
}

impl Requests {
    /// `llama_set_sampler` on a serving context: a release if the sequence has a request, a launch otherwise. True if a
    /// request that was told has ended.
    pub fn sampler_set(&mut self, ctx: u64, seq: i32, busy_ns: u64, now: u64) -> bool {
        let s = self.sequences.entry((ctx, seq)).or_default();
        if s.request.as_ref().is_some_and(|r| r.served.is_some()) {
            return false;
        }
        if s.request.is_some() {
            let ended = self.ended;
            self.end(ctx, seq, now, None);
            return self.ended > ended;
        }
        s.launched = Some((now, busy_ns));
        s.first_touch_ns = None;
        false
    }

    /// The host removed positions of a sequence, from `from` on: before a prompt that is the cached-prefix cut, and
    /// work on the prompt begins.
    pub fn touched(&mut self, ctx: u64, seq: i32, from: i32, serving: bool, changed: bool, now: u64) {
        let hit: Vec<i32> = if seq < 0 {
            self.sequences.keys().filter(|(c, _)| *c == ctx).map(|(_, s)| *s).collect()
        } else {
            vec![seq]
        };
        for seq in hit {
            let s = self.sequences.entry((ctx, seq)).or_default();
            // The part of a draft that was refused.
            let refused = s.last.is_some_and(|last| last.verified && from > last.first);
            match &s.request {
                None => {
                    s.first_touch_ns.get_or_insert(now);
                }
                // A serving context says when a request ends; elsewhere, cutting a sequence that has generated
                // begins the next one. (A cut that removes nothing begins nothing: llama-cpp-python makes one
                // before every decode.)
                Some(r) if !serving && changed && r.generated > 0 && !refused => {
                    let at = r.last_ns;
                    self.end(ctx, seq, at, Some("superseded"));
                    self.sequences.entry((ctx, seq)).or_default().first_touch_ns = Some(now);
                }
                Some(_) => {}
            }
        }
    }

    /// `llama_memory_seq_cp` of a whole sequence: a launched sequence that gets another's prompt is a further
    /// completion of it.
    pub fn copied(&mut self, ctx: u64, from: i32, to: i32) -> bool {
        let Some(parent) = self.sequences.get(&(ctx, from)).and_then(|s| s.request.as_ref()) else { return false };
        if parent.generated > 0 {
            return false;
        }
        let (prompt_start_ns, processed, cached) = (parent.prompt_start_ns, parent.processed, parent.cached);
        let last = self.sequences.get(&(ctx, from)).and_then(|s| s.last);
        let child = Request { prompt_start_ns, processed, cached, ..Request::new("copy", parent.start_ns) };
        let s = self.sequences.entry((ctx, to)).or_default();
        s.last = last;
        if let Some(r) = &mut s.request {
            // Launched by a patched server, and now it has its prompt.
            let waits = r.served.is_some() && r.prompt_start_ns == 0;
            if waits {
                (r.prompt_start_ns, r.processed, r.cached) = (prompt_start_ns, processed, cached);
            }
            return waits;
        }
        let launched = s.launched.take().map_or(child.start_ns, |(t, _)| t);
        s.request = Some(Request { start_ns: launched, ..child });
        self.tell_start(ctx, to);
        true
    }

    /// Tokens of a sequence were processed.
    pub fn processed(&mut self, ctx: u64, serving: bool, rows: &Processed, begun_ns: u64, busy_ns: u64) {
        let Processed { seq, rows: n, outputs, first_pos, end_pos, encoded } = *rows;
        let s = self.sequences.entry((ctx, seq)).or_default();
        let verified = outputs > 1;
        s.last = first_pos.zip(end_pos).map(|(first, end)| positions::Last { first, end, verified, encoded });
        let goes_back = std::mem::take(&mut s.goes_back);
        if let Some(r) = s.request.as_ref().filter(|r| !serving && r.served.is_none()) {
            // A prompt in a sequence that was generating, without a word from the host: the next request (several rows,
            // one output; the verification of a draft asks for an output on every row). So is whatever goes back to
            // where the sequence has been.
            if goes_back || (r.generated > 0 && n > 1 && outputs <= 1) {
                let at = if r.generated > 0 { r.last_ns } else { begun_ns };
                self.end(ctx, seq, at, Some("superseded"));
            }
        }
        let first_pos = first_pos.unwrap_or(0);
        let s = self.sequences.entry((ctx, seq)).or_default();
        if s.request.is_none() {
            let touched = s.first_touch_ns.take().unwrap_or(begun_ns);
            let launched = s.launched.take().filter(|(t, busy)| {
                let waited = touched.saturating_sub(*t);
                waited.saturating_sub(busy_ns.saturating_sub(*busy)) < STALE_LAUNCH_NS
            });
            let start_ns = launched.map_or(if serving { touched } else { begun_ns }, |(t, _)| t);
            s.request = Some(Request {
                prompt_start_ns: if serving { touched } else { begun_ns },
                cached: u64::try_from(first_pos).unwrap_or(0),
                ..Request::new(if launched.is_some() { "launch" } else { "derived" }, start_ns)
            });
        }
        if let Some(r) = s.request.as_mut().filter(|r| r.prompt_start_ns == 0) {
            r.prompt_start_ns = begun_ns;
            r.cached = u64::try_from(first_pos).unwrap_or(0);
        }
        if let Some(r) = s.request.as_mut().filter(|r| r.generated == 0) {
            r.processed += n;
        }
        if serving {
            self.tell_start(ctx, seq);
        }
    }

    /// A token was sampled for the sequence.
    pub fn sampled(&mut self, ctx: u64, seq: i32, token_id: i32, ends: bool, now: u64) {
        self.tell_start(ctx, seq);
        let Some(r) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.request.as_mut()) else { return };
        let since = now.saturating_sub(if r.generated == 0 { r.start_ns } else { r.last_ns });
        if r.generated == 0 {
            r.first_ns = now;
        } else {
            r.gaps_us.push(u32::try_from(since / 1000).unwrap_or(u32::MAX));
        }
        let event =
            Token { t_ns: now, request_id: r.id, seq_id: seq, index: r.generated, token_id, since_previous_ns: since };
        r.generated += 1;
        r.last_ns = now;
        r.ended_by_model = ends;
        if journal::level() >= crate::format::Level::Verbose {
            journal::push(Event::Token(event));
        }
    }

    /// The host read an output that is no token (an embedding): the request is real.
    pub fn output_read(&mut self, ctx: u64, seq: i32) {
        self.tell_start(ctx, seq);
    }

    /// Context shift moved `n` positions of a sequence out.
    pub fn shifted(&mut self, ctx: u64, seq: i32, n: u64) {
        if let Some(r) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.request.as_mut()) {
            r.shifted += n;
        }
    }

    /// Number of the request on a sequence, 0 if none was told.
    #[must_use]
    pub fn number(&self, ctx: u64, seq: i32) -> u64 {
        self.sequences.get(&(ctx, seq)).and_then(|s| s.request.as_ref()).map_or(0, |r| r.id)
    }

    /// Number that the request of a sequence has, or will have once it is told: its first rows are computed before
    /// that. `rows` and `outputs` are the running batch's of this sequence, by which [`Self::processed`] will see
    /// a new request.
    pub fn upcoming(&mut self, ctx: u64, seq: i32, serving: bool, rows: usize, outputs: usize) -> u64 {
        let sequence = self.sequences.get(&(ctx, seq));
        let goes_back = sequence.is_some_and(|s| s.goes_back);
        let running = sequence.and_then(|s| s.request.as_ref());
        let goes_on = |r: &&Request| serving || r.served.is_some() || r.generated == 0 || rows <= 1 || outputs > 1;
        if let Some(r) = running.filter(|r| r.id != 0).filter(goes_on).filter(|_| serving || !goes_back) {
            return r.id;
        }
        *self.reserved.entry((ctx, seq)).or_insert_with(|| {
            self.next_id += 1;
            self.next_id
        })
    }

    /// Cached over prompt tokens of the sequence's request, in thousandths.
    #[must_use]
    pub fn hit_permille(&self, ctx: u64, seq: i32) -> Option<u32> {
        let r = self.sequences.get(&(ctx, seq))?.request.as_ref()?;
        let prompt = r.cached + r.processed;
        (prompt > 0).then(|| u32::try_from(r.cached * 1000 / prompt).unwrap_or(1000))
    }

    /// A context is freed, or the log is closed: what runs on it ends unfinished.
    pub fn end_all(&mut self, ctx: Option<u64>, outcome: &'static str, now: u64) {
        let hit: Vec<(u64, i32)> =
            self.sequences.keys().filter(|(c, _)| ctx.is_none_or(|x| x == *c)).copied().collect();
        for (c, seq) in hit {
            self.end(c, seq, now, Some(outcome));
            self.sequences.remove(&(c, seq));
        }
        // Numbers of requests that were never told.
        self.reserved.retain(|(c, _), _| ctx.is_some_and(|x| x != *c));
    }

    /// Whether a request of this context was told.
    #[must_use]
    pub fn any_told(&self, ctx: u64) -> bool {
        self.sequences.iter().any(|((c, _), s)| *c == ctx && s.request.as_ref().is_some_and(|r| r.told))
    }

    /// Requests that ended.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    fn tell_start(&mut self, ctx: u64, seq: i32) {
        let Some(r) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.request.as_mut()) else { return };
        if std::mem::replace(&mut r.told, true) {
            return;
        }
        r.id = self.reserved.remove(&(ctx, seq)).unwrap_or_else(|| {
            self.next_id += 1;
            self.next_id
        });
        journal::push_line(Line::RequestStart(RequestStart {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: r.start_ns,
            request_id: r.id,
            seq_id: seq,
            context_id: ctx,
            source: r.source.to_owned(),
        }));
    }

    fn end(&mut self, ctx: u64, seq: i32, now: u64, outcome: Option<&'static str>) {
        let Some(s) = self.sequences.get_mut(&(ctx, seq)) else { return };
        let Some(mut r) = s.request.take() else { return };
        s.first_touch_ns = None;
        s.launched = None;
        // Never told, because no output of it was read: a warm-up, or a probe of the cache.
        if !r.told {
            return;
        }
        self.ended += 1;
        let outcome = match outcome {
            Some(o) if !(o == "superseded" && r.ended_by_model) => o,
            _ if r.generated == 0 => "no_tokens",
            _ if r.ended_by_model => "eog",
            _ => "stopped",
        };
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        // A patched server's own clock may have begun with the prompt some microseconds before we saw the request.
        if r.prompt_start_ns > 0 {
            r.start_ns = r.start_ns.min(r.prompt_start_ns);
        }
        let prompt_ms = (r.generated > 0).then(|| ms(r.prompt_start_ns, r.first_ns));
        let served = r.served.take().map(|s| *s);
        let waited = (r.source == "launch" || served.is_some()) && r.prompt_start_ns > 0;
        let (task_id, queue_ms) = served.as_ref().map(|s| (s.task_id, s.queue_ms)).unzip();
        let (completion_id, released) = served.map(|s| (s.completion_id, s.released)).unzip();
        let counts = released.flatten();
        let (drafted, accepted) = counts.as_ref().map(|c| (c.drafted, c.accepted)).unzip();
        let generating_ns = r.last_ns.saturating_sub(r.first_ns);
        journal::push_line(Line::RequestEnd(RequestEnd {
            timestamp: String::new(),
            session_id: String::new(),
            t_ns: now,
            request_id: r.id,
            seq_id: seq,
            context_id: ctx,
            prompt_tokens: counts.as_ref().map_or(r.cached + r.processed, |c| c.prompt),
            cached_tokens: r.cached,
            generated_tokens: r.generated,
            ttft_ms: (r.generated > 0).then(|| ms(r.start_ns, r.first_ns)),
            prompt_ms,
            wait_ms: waited.then(|| ms(r.start_ns, r.prompt_start_ns)),
            inter_token_ms: inter_token(&mut r.gaps_us, generating_ns),
            // Behind the line above, which has sorted them.
            inter_token_buckets: Buckets::of_sorted_us(&r.gaps_us),
            tokens_per_second: (r.generated > 1 && generating_ns > 0)
                .then(|| (r.generated - 1) as f64 * 1e9 / generating_ns as f64),
            prompt_tokens_per_second: prompt_ms.filter(|&m| m > 0.0).map(|m| r.processed as f64 * 1e3 / m),
            duration_ms: ms(r.start_ns, now),
            outcome: outcome.to_owned(),
            shifted_tokens: r.shifted,
            task_id,
            completion_id: completion_id.flatten(),
            queue_ms,
            stop_reason: counts.map(|c| c.stop_reason),
            drafted,
            accepted,
            // The writer fills it in, once the devices were read behind the end.
            gpu: None,
        }));
    }
}

fn inter_token(gaps_us: &mut [u32], total_ns: u64) -> Option<InterToken> {
    if gaps_us.is_empty() {
        return None;
    }
    gaps_us.sort_unstable();
    // Nearest rank: the smallest value that at least p per cent of all do not exceed.
    let rank = |p: usize| f64::from(gaps_us[(gaps_us.len() * p).div_ceil(100).max(1) - 1]) / 1e3;
    Some(InterToken { mean: total_ns as f64 / gaps_us.len() as f64 / 1e6, p50: rank(50), p95: rank(95), p99: rank(99) })
}

#[cfg(test)]
mod tests {
    use super::inter_token;

    #[test]
    fn percentiles_are_nearest_rank_and_the_mean_comes_from_the_clock() {
        let mut gaps: Vec<u32> = (1..=100).rev().map(|i| i * 1000).collect();
        let d = inter_token(&mut gaps, 100 * 50_500_000).unwrap();
        assert_eq!((d.p50, d.p95, d.p99, d.mean), (50.0, 95.0, 99.0, 50.5));
        assert_eq!(inter_token(&mut [7000], 7_000_000).unwrap().p99, 7.0);
        assert!(inter_token(&mut [], 0).is_none());
    }
}
