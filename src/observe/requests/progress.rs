//! How far running requests have come, for whoever looks on: once a second and request.

use super::Requests;
use crate::format::server::RequestProgress;
use crate::format::{Level, Line};
use crate::journal;

/// Between two lines of a request. A request that is over sooner has none: its end tells everything.
const EVERY_NS: u64 = 1_000_000_000;

impl Requests {
    /// A batch with rows of these sequences of context `ctx` is done; `cells`: what the context uses.
    pub fn progressed(&mut self, ctx: u64, sequences: impl Iterator<Item = i32>, cells: Option<u64>, now: u64) {
        if journal::level() < Level::Detailed {
            return;
        }
        for seq in sequences {
            let Some(r) = self.sequences.get_mut(&(ctx, seq)).and_then(|s| s.request.as_mut()) else { continue };
            if !r.told || now.saturating_sub(r.progress_ns) < EVERY_NS {
                continue;
            }
            r.progress_ns = now;
            let done = r.cached + r.processed;
            let generates = r.generated > 0;
            journal::push_line(Line::RequestProgress(RequestProgress {
                timestamp: String::new(),
                session_id: String::new(),
                t_ns: now,
                request_id: r.id,
                seq_id: seq,
                context_id: ctx,
                phase: if generates { "decode" } else { "prefill" }.to_owned(),
                prompt_tokens_done: done,
                prompt_tokens: generates.then_some(done),
                cached_tokens: r.cached,
                generated_tokens: r.generated,
                cells,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EVERY_NS, Requests};
    use crate::observe::contexts::Processed;

    #[test]
    fn a_request_is_told_of_once_a_second_and_only_while_it_runs() {
        let mut requests = Requests::default();
        let rows = |n, first_pos: i32| Processed {
            seq: 0,
            rows: n,
            outputs: 1,
            first_pos: Some(first_pos),
            end_pos: Some(first_pos + n as i32),
            encoded: false,
        };
        requests.processed(1, true, &rows(5, 3), 0, 0);
        let told_at = |requests: &Requests| requests.sequences[&(1, 0)].request.as_ref().map(|r| r.progress_ns);
        requests.progressed(1, [0].into_iter(), Some(8), EVERY_NS - 1);
        assert_eq!(told_at(&requests), Some(0), "sooner than a second");
        requests.progressed(1, [0, 7].into_iter(), Some(8), EVERY_NS);
        assert_eq!(told_at(&requests), Some(EVERY_NS));
        requests.progressed(1, [0].into_iter(), Some(8), EVERY_NS + 1);
        assert_eq!(told_at(&requests), Some(EVERY_NS), "once a second");
        requests.end_all(Some(1), "context_freed", 2 * EVERY_NS);
        requests.progressed(1, [0].into_iter(), Some(8), 9 * EVERY_NS);
        assert!(requests.sequences.is_empty());
    }
}
