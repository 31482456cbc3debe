//! When our own threads leave the cores to the host's: while these compress themselves (`gang`), and for a while when
//! they compute and there is room for what they leave. A core that a thread of ours takes then is missed by all of
//! them, since they wait for each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Policy, Shared};
use crate::clock;

/// How often a thread that has given way looks again.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// So long after the last help our own threads leave the tasks alone.
const HELP_LASTS_NS: u64 = 100_000_000;

/// Between two steps the host still counts as computing.
const STEP_LASTS_NS: u64 = 5_000_000;

/// The longest that work is put off because the host computes: what it has captured should be in the file soon.
const LONGEST: Duration = Duration::from_secs(2);

/// What the host does.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    /// A step runs that fills every core. The caller has one at a time.
    computing: AtomicBool,
    /// When the last one ended.
    computed_ns: AtomicU64,
    /// When a thread of the host last made packets.
    helped_ns: AtomicU64,
    /// Tasks that were taken, of all that there ever were, and how many of these somebody waits for.
    taken: AtomicU64,
    hurried: AtomicU64,
}

impl Courtesy {
    /// The host computes on every core, until [`Self::host_rests`].
    pub(super) fn host_computes(&self) {
        self.computing.store(true, Ordering::Relaxed);
    }

    /// See above.
    pub(super) fn host_rests(&self) {
        self.computed_ns.store(clock::now_ns(), Ordering::Relaxed);
        self.computing.store(false, Ordering::Relaxed);
    }

    /// A thread of the host makes packets.
    pub(super) fn host_helps(&self) {
        self.helped_ns.store(clock::now_ns(), Ordering::Relaxed);
    }

    /// Somebody waits for the first so many tasks that there ever were.
    pub(super) fn hurry(&self, tasks: u64) {
        self.helped_ns.store(0, Ordering::Relaxed);
        self.hurried.store(tasks, Ordering::Relaxed);
    }

    /// One more was taken.
    pub(super) fn task_taken(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn is_hurried(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.hurried.load(Ordering::Relaxed)
    }

    /// When a thread of the host last made packets, 0 for never.
    #[cfg(test)]
    pub(super) fn helped_ns(&self) -> u64 {
        self.helped_ns.load(Ordering::Relaxed)
    }

    fn helps(&self) -> bool {
        is_recent(&self.helped_ns, HELP_LASTS_NS)
    }

    fn computes(&self) -> bool {
        self.computing.load(Ordering::Relaxed) || is_recent(&self.computed_ns, STEP_LASTS_NS)
    }
}

fn is_recent(at: &AtomicU64, lasts: u64) -> bool {
    let at = at.load(Ordering::Relaxed);
    at > 0 && clock::now_ns().saturating_sub(at) < lasts
}

/// What one worker remembers of it.
#[derive(Debug, Default)]
pub(super) struct Manners {
    /// Work has been put off for long: it is done now, until there is none.
    overdue: bool,
}

impl Manners {
    /// There is no work.
    pub(super) fn all_is_done(&mut self) {
        self.overdue = false;
    }

    /// Waits as long as the work should be left to the host, or put off. `left`: the queue is short enough for
    /// the host alone.
    pub(super) fn give_way(&mut self, shared: &Shared, left: impl Fn() -> bool) {
        let since = Instant::now();
        loop {
            self.overdue |= since.elapsed() >= LONGEST;
            let at_once = self.overdue || shared.courtesy.is_hurried();
            let helped = shared.courtesy.helps() && left();
            let put_off = !at_once && shared.courtesy.computes() && shared.pool.fill() < limit(shared);
            if !(helped || put_off) || shared.pool.is_awaited() || shared.failed() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// How full the pool may get by putting work off, in 1/1024. Where a full one loses steps, there should be room.
fn limit(shared: &Shared) -> usize {
    match shared.policy {
        Policy::Block => shared.pool.nearly_full(),
        _ => 448,
    }
}
