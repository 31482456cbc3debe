//! Compression by the host's own compute threads, all at the same moment, where they fill every core.
//!
//! There a thread of ours can only run by taking a core from one of them, and the others wait for that one at the
//! next barrier: what it takes, the host loses on every core. When all stop at one place and share the work, the host
//! loses it once.
//!
//! ```text
//!   a codec thread of ours            the gang
//!   core 0  ███ codec ████████        core 0  codec ██████████
//!   core 1  ███ (waits) ██████        core 1  codec ██████████
//! ```
//!
//! The packets are the same, in the same order, whoever makes them. Our own threads take what the gang leaves: all of
//! it while no graph runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Mutex, RwLock};

use super::desk::Desk;
use super::worker::{Task, Worker};

/// Threads that help at most; each needs memory of its own.
pub(super) const MOST: usize = 4;

/// Least budget in which they have it.
pub(super) const LEAST_MEMORY: usize = 64 << 20;

/// A heap of tasks is worked off in about so many steps, so that no single one takes much longer than its neighbours.
const STEPS: usize = 32;

/// The same when what waits fills a quarter of the memory.
const STEPS_IF_FULL: usize = 16;

/// A thread of the host that has helped so long begins no other packet in this step. One that was begun is finished: at
/// most a mebibyte, which zstd may take longer for.
const MOST_TIME: Duration = Duration::from_millis(2);

/// The host's threads as helpers.
#[derive(Debug)]
pub(super) struct Gang {
    /// Gone when the stream has failed: nobody waits for what only a helper could send.
    kits: RwLock<Option<Arc<[Mutex<Kit>]>>>,
    /// Tasks that may be taken in the step that runs.
    left: AtomicIsize,
}

/// What one helper needs.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) worker: Worker,
    /// Where its packets are handed in.
    pub(super) desk: Arc<Desk>,
    /// An empty output that found no task.
    pub(super) output: Option<Vec<u8>>,
}

impl Gang {
    pub(super) fn new(kits: Vec<Kit>) -> Self {
        Self { kits: RwLock::new(Some(kits.into_iter().map(Mutex::new).collect())), left: AtomicIsize::new(0) }
    }

    /// How many helpers there are for, beside `workers` of ours: as many as cores.
    pub(super) fn size(max_memory: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if max_memory >= LEAST_MEMORY { cores.min(MOST) } else { 0 }
    }

    /// A step begins on so many threads. True if there is something to do for them.
    pub(super) fn assemble(&self, threads: usize) -> bool {
        let look = |kit: &Kit| {
            let (waiting, shared) = (kit.worker.tasks.len(), &kit.worker.shared);
            let steps = if waiting > 0 && shared.pool.fill() >= 256 { STEPS_IF_FULL } else { STEPS };
            (waiting, shared.large_tasks.load(Ordering::Relaxed), steps)
        };
        let Some((waiting, large, steps)) = self.kits().and_then(|kits| Some(look(&*kits.first()?.try_lock()?))) else {
            return false;
        };
        // What a prompt left would hold a step for too long: it is for our own threads, and what stands behind it
        // comes after it.
        if large > 0 {
            return false;
        }
        let most = waiting.div_ceil(steps).max(2 * threads).min(waiting);
        self.left.store(most as isize, Ordering::Release);
        most > 0
    }

    /// The step is over.
    pub(super) fn disperse(&self) {
        self.left.store(0, Ordering::Release);
    }

    /// Nobody helps any more.
    pub(super) fn dismiss(&self) {
        self.kits.write().take();
    }

    /// Where they hand their packets in.
    #[cfg(test)]
    pub(super) fn desk(&self) -> Option<Arc<Desk>> {
        Some(Arc::clone(&self.kits()?.first()?.lock().desk))
    }

    fn kits(&self) -> Option<Arc<[Mutex<Kit>]>> {
        // All come here at the same moment.
        self.kits.try_read()?.clone()
    }

    /// Called by each of the host's threads when an operation begins on it: before the first one of a step it makes
    /// packets, as long as there are some to be made in this step. Whoever stops ends it for all, so that later
    /// operations find nothing to do. Never waits.
    pub(super) fn help(&self) {
        if self.left.load(Ordering::Acquire) <= 0 {
            return;
        }
        let Some(kits) = self.kits() else { return };
        let Some(mut kit) = kits.iter().find_map(Mutex::try_lock) else { return };
        let Kit { worker, desk, output } = &mut *kit;
        worker.shared.courtesy.host_helps();
        let until = Instant::now() + MOST_TIME;
        while self.left.fetch_sub(1, Ordering::AcqRel) > 0 {
            let Some(empty) = output.take().or_else(|| worker.spare.try_recv().ok()) else { break };
            let Ok(task) = worker.tasks.try_recv() else {
                *output = Some(empty);
                break;
            };
            worker.shared.courtesy.task_taken();
            *output = desk.hand_in(worker.make(task, empty), &worker.out);
            worker.ring_if_due();
            if Instant::now() >= until {
                break;
            }
        }
        self.left.store(0, Ordering::Release);
    }
}

/// How many tasks a worker of ours leaves to the host while it helps.
pub(super) fn leaves(tasks: &Receiver<Task>) -> bool {
    tasks.len() < tasks.capacity().unwrap_or_default() / 2
}
