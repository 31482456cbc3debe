//! What the host is doing, put together from single calls: plans of graphs, timed steps, buffers, contexts,
//! requests, KV cells.
//!
//! Before it: `hook` (one function a call). After it: `journal` (events). Nothing here calls the host except through
//! `ggml::api`, and nothing here blocks: the one lock, [`host`], is taken by the host's own decode thread.

pub mod batches;
pub mod buffers;
pub mod cadence;
pub mod contexts;
pub mod device_totals;
pub mod eval;
pub mod forwarding;
pub mod homes;
pub mod inputs;
pub mod kv;
pub mod lives;
pub mod memory;
pub mod models;
pub mod node;
pub mod parts;
pub mod placement;
pub mod plan;
pub mod recent;
pub mod recording;
pub mod requests;
pub mod routing;
pub mod sample;
pub mod sampling;
pub mod splits;
pub mod state;
pub mod steps;
pub mod timer;
pub mod ubatch;
pub mod workers;

use parking_lot::{Mutex, MutexGuard};

use contexts::Serial;

/// Everything we know about the host.
#[derive(Debug, Default)]
pub struct Host {
    /// Live buffers.
    pub buffers: buffers::Buffers,
    /// Live contexts.
    pub contexts: contexts::Contexts,
    /// Requests of all contexts.
    pub requests: requests::Requests,
    /// Schedulers and their plans.
    pub schedulers: steps::Schedulers,
}

/// A token that was chosen: for which request, sequence and position.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    /// Number of the request.
    pub request: u64,
    /// Sequence.
    pub seq: i32,
    /// Position that the token will have, where known.
    pub pos: Option<i32>,
}

impl Host {
    /// A token was chosen from row `row` of the last batch; `token` is -1 where the host does not say which. For which
    /// request. Nothing if the context was freed since its logits were read.
    pub fn sampled(&mut self, ctx: Serial, row: i32, token: i32, t_ns: u64) -> Option<Sampled> {
        let others_serve = self.contexts.any_serving();
        let context = self.contexts.of_serial(ctx)?;
        if !context.counts(others_serve) {
            return None;
        }
        let (id, ends) = (context.id, context.is_end(token));
        let row = context.row_index(row)?;
        let seq = context.sampled_from(row)?;
        let pos = context.position_of_row(row).map(|p| p + 1);
        self.requests.sampled(id, seq, token, ends, t_ns);
        Some(Sampled { request: self.requests.number(id, seq), seq, pos })
    }

    /// A sample that was applied and never accepted was one all the same, now that the host goes on (a batch, a
    /// cut, the end).
    pub fn settle_sample(&mut self, ctx: Serial) {
        if let Some((row, t_ns)) = self.contexts.of_serial(ctx).and_then(contexts::Context::take_applied) {
            self.sampled(ctx, row, -1, t_ns);
        }
    }

    /// [`Self::settle_sample`] for all contexts.
    pub fn settle_samples(&mut self) {
        self.contexts.serials().into_iter().for_each(|ctx| self.settle_sample(ctx));
    }
}

static HOST: Mutex<Option<Box<Host>>> = Mutex::new(None);

/// The state, for one hook. Held for microseconds, never across a call of the host's own function.
#[must_use]
pub fn host() -> HostGuard {
    let mut guard = HOST.lock();
    if guard.is_none() {
        *guard = Some(Box::default());
    }
    HostGuard(guard)
}

/// A recording begins, with nothing of the one before in it.
pub fn begin() {
    *HOST.lock() = None;
    recording::begin();
}

/// Access to [`Host`].
#[derive(Debug)]
pub struct HostGuard(MutexGuard<'static, Option<Box<Host>>>);

impl std::ops::Deref for HostGuard {
    type Target = Host;
    #[expect(clippy::unwrap_used, reason = "host() has just filled it, and nobody can empty it while the guard lives")]
    fn deref(&self) -> &Host {
        self.0.as_deref().unwrap()
    }
}

impl std::ops::DerefMut for HostGuard {
    #[expect(clippy::unwrap_used, reason = "host() has just filled it, and nobody can empty it while the guard lives")]
    fn deref_mut(&mut self) -> &mut Host {
        self.0.as_deref_mut().unwrap()
    }
}
