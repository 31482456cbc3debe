//! Requests as the server itself tells them: a llama-server that was built with patches/. What it says goes ahead of
//! what the calls show.
//!
//! ```text
//!   slot launched ──► request_start      slot stops (cancelled, error) ──► slot released ──► request_end
//! ```

use super::{Request, Requests};

/// What is known of a request from the server alone.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) task_id: i32,
    pub(super) completion_id: Option<String>,
    pub(super) queue_ms: f64,
    /// Why it stops, where that is not the model's or a limit's doing.
    why: Option<&'static str>,
    pub(super) released: Option<Counts>,
}

/// What only the release tells and the calls do not show.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) prompt: u64,
    pub(super) stop_reason: String,
    pub(super) drafted: u64,
    pub(super) accepted: u64,
}

/// A slot begins to work on a task.
#[derive(Debug)]
pub struct Launch {
    /// The task's number.
    pub task_id: i32,
    /// Id of the response; none for embeddings.
    pub completion_id: Option<String>,
    /// From the task's creation to now, nanoseconds.
    pub queued_ns: u64,
}

/// A slot is released. Times are nanoseconds before the release; `None`: it never came to that.
#[derive(Debug)]
pub struct Release {
    /// The server's word: `eos`, `word`, `limit`, `none`.
    pub stop_reason: String,
    /// Tokens of the whole prompt.
    pub prompt: u64,
    /// Those of them that were in the cache.
    pub cached: u64,
    /// Those that were computed.
    pub processed: u64,
    /// Generated tokens.
    pub generated: u64,
    /// Tokens that were drafted for it, and those of them that were kept.
    pub drafted: u64,
    /// See `drafted`.
    pub accepted: u64,
    /// Work on the prompt began.
    pub since_start_ns: Option<u64>,
    /// The prompt was done; with the first token, if there was one.
    pub since_prompt_ns: Option<u64>,
    /// The last token.
    pub since_last_ns: Option<u64>,
}

impl Requests {
    /// A slot was launched: the request begins, whatever the calls will show.
    pub fn launched(&mut self, ctx: u64, seq: i32, launch: Launch, now: u64) {
        self.end(ctx, seq, now, Some("superseded"));
        let served = Served {
            task_id: launch.task_id,
            completion_id: launch.completion_id,
            queue_ms: launch.queued_ns as f64 / 1e6,
            ..Served::default()
        };
        let s = self.sequences.entry((ctx, seq)).or_default();
        s.launched = None;
        s.first_touch_ns = None;
        s.request = Some(Request { served: Some(Box::new(served)), ..Request::new("server", now) });
        self.tell_start(ctx, seq);
    }

    /// A slot will be released, and not because the work is done.
    pub fn stops(&mut self, ctx: u64, seq: i32, why: &'static str) {
        if let Some(served) = self.served(ctx, seq) {
            served.why = Some(why);
        }
    }

    /// A slot was released. True if its launch was told.
    pub fn released(&mut self, ctx: u64, seq: i32, release: Release, now: u64) -> bool {
        let Some(served) = self.served(ctx, seq) else { return false };
        let ended_by_model = release.stop_reason == "eos";
        served.released = Some(Counts {
            prompt: release.prompt,
            stop_reason: served.why.map_or(release.stop_reason, str::to_owned),
            drafted: release.drafted,
            accepted: release.accepted,
        });
        let Some(r) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.request.as_mut()) else { return false };
        let at = |since: Option<u64>| since.map_or(0, |ns| now.saturating_sub(ns));
        r.cached = release.cached;
        r.processed = release.processed;
        r.generated = release.generated;
        r.prompt_start_ns = at(release.since_start_ns);
        r.first_ns = at(release.since_prompt_ns);
        r.last_ns = at(release.since_last_ns);
        r.ended_by_model = ended_by_model;
        self.end(ctx, seq, now, None);
        true
    }

    fn served(&mut self, ctx: u64, seq: i32) -> Option<&mut Served> {
        self.sequences.get_mut(&(ctx, seq))?.request.as_mut()?.served.as_deref_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::{Launch, Release, Requests};
    use crate::observe::contexts::Processed;

    fn launch(task_id: i32) -> Launch {
        Launch { task_id, completion_id: Some("chatcmpl-a".to_owned()), queued_ns: 2_500_000 }
    }

    fn release(stop_reason: &str) -> Release {
        Release {
            stop_reason: stop_reason.to_owned(),
            prompt: 7,
            cached: 3,
            processed: 4,
            generated: 0,
            drafted: 0,
            accepted: 0,
            since_start_ns: None,
            since_prompt_ns: None,
            since_last_ns: None,
        }
    }

    #[test]
    fn a_served_request_ends_at_the_release_and_not_when_the_sampler_changes() {
        let mut all = Requests::default();
        all.launched(1, 0, launch(7), 1_000);
        assert_ne!(all.number(1, 0), 0, "told at once: a request that fails before its first token counts too");
        assert!(!all.sampler_set(1, 0, 0, 2_000));
        assert_ne!(all.number(1, 0), 0);
        assert!(all.released(1, 0, release("none"), 3_000));
        assert_eq!((all.number(1, 0), all.ended()), (0, 1));
        assert!(!all.released(1, 0, release("none"), 3_000), "released twice");
    }

    #[test]
    fn rows_count_for_the_served_request_and_a_copy_gives_its_child_the_prompt() {
        let mut all = Requests::default();
        all.launched(1, 1, launch(8), 1_000);
        all.launched(1, 0, launch(7), 1_000);
        let (parent, child) = (all.number(1, 0), all.number(1, 1));
        let prompt = Processed { seq: 0, rows: 6, outputs: 1, first_pos: Some(2), end_pos: Some(8), encoded: false };
        all.processed(1, true, &prompt, 2_000, 0);
        assert_eq!(all.number(1, 0), parent);
        assert_eq!(all.hit_permille(1, 0), Some(250));
        assert!(all.copied(1, 0, 1));
        assert_eq!((all.number(1, 1), all.hit_permille(1, 1)), (child, Some(250)));
        assert_eq!(all.ended(), 0);
    }

    #[test]
    fn a_release_without_a_launch_is_nobodys() {
        let mut all = Requests::default();
        all.stops(1, 0, "cancelled");
        assert!(!all.released(1, 0, release("eos"), 1));
        assert_eq!(all.ended(), 0);
    }
}
