//! What the threads of the pipeline share, and how it fails.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use parking_lot::Mutex;

use super::account::Account;
use super::pool::Pool;
use crate::config::Policy;
use crate::error::Error;
use crate::log;

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) account: Account,
    pub(super) pool: Arc<Pool>,
    pub(super) policy: Policy,
    failed: AtomicBool,
    problem: Mutex<Option<Error>>,
    /// Steps that policy `sample` was asked about.
    pub(super) steps: AtomicU64,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Everything is written, and the disk was asked to keep it.
    pub(super) keeping: AtomicBool,
    /// Bytes of jobs that the collector has not looked at.
    pub(super) unseen: AtomicUsize,
    /// Tokens in the queue.
    pub(super) tokens_queued: AtomicUsize,
    pub(super) tokens_lost: AtomicU64,
    /// The writer's thread, to be woken when it is worth its while.
    pub(super) writer: OnceLock<Thread>,
}

impl Shared {
    /// `packets` and `bytes`: what is in the file already.
    pub(super) fn new(account: Account, pool: Arc<Pool>, policy: Policy, packets: u64, bytes: u64) -> Self {
        Self {
            account,
            pool,
            policy,
            failed: false.into(),
            problem: Mutex::default(),
            steps: 0.into(),
            packets: packets.into(),
            bytes: bytes.into(),
            keeping: false.into(),
            unseen: 0.into(),
            tokens_queued: 0.into(),
            tokens_lost: 0.into(),
            writer: OnceLock::new(),
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What went wrong.
    pub(super) fn problem(&self) -> Option<Error> {
        self.problem.lock().clone()
    }

    /// The stream ends here. Told once.
    pub(super) fn fail(&self, problem: Error) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            log::error(format!("{problem}. The stream ends here; the host goes on"));
            *self.problem.lock() = Some(problem);
        }
        self.pool.fail();
    }

    /// The writer looks now.
    pub(super) fn wake_writer(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}
