//! Where packets are put in order and into the block: by the writer's thread, or for a moment by a thread of the
//! host that has just made one and has it in its caches. That thread leaves to the writer's whatever could wait
//! for the disk.
//!
//! ```text
//!   lri-cap-codecN ──────────────────────► queue ──► lri-cap-write ──► block, disk
//!   a thread of the host ──┬─ taken ─────────▲            │
//!                          └─ free ── the writer, lent ───┴──► block
//! ```

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use super::Shared;
use super::writer::{Item, Writer};
use crate::error::Error;
use crate::mailbox::{Inbox, Outbox};

/// The writer, for one thread at a time.
#[derive(Debug)]
pub(super) struct Desk {
    shared: Arc<Shared>,
    /// Away while a thread works with it, so that one that panics leaves nothing half done to others; gone when the
    /// stream has ended.
    writer: Mutex<Option<Box<Writer>>>,
    queue: Receiver<Item>,
    /// Packets that threads of the host have appended.
    #[cfg(test)]
    by_the_host: std::sync::atomic::AtomicU64,
}

impl Desk {
    /// `queue`: what lies for the writer's thread.
    pub(super) fn new(writer: Writer, queue: Receiver<Item>) -> Self {
        Self {
            shared: Arc::clone(&writer.shared),
            writer: Mutex::new(Some(Box::new(writer))),
            queue,
            #[cfg(test)]
            by_the_host: 0.into(),
        }
    }

    /// Packets that threads of the host have appended.
    #[cfg(test)]
    pub(super) fn appended_by_the_host(&self) -> u64 {
        self.by_the_host.load(Relaxed)
    }

    /// The writer's thread, until the end. True if the stream was closed in order.
    pub(super) fn run(&self, inbox: &Inbox<Item>) -> bool {
        let mut due = None;
        loop {
            let item = inbox.take(due);
            let mut place = self.writer.lock();
            let Some(mut writer) = place.take() else {
                self.shared.fail(Error::new("writing", "the stream", "an internal failure", "please report this"));
                return false;
            };
            match item {
                Ok(item) => writer.put(item),
                Err(RecvTimeoutError::Timeout) => writer.settle_now(),
                // A thread is gone with something that we wait for.
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if let Some(in_order) = writer.go_on() {
                return in_order;
            }
            due = writer.due();
            *place = Some(writer);
        }
    }

    /// A thread of the host has made `item`: does what is to be done up to it, if nobody else is at the desk and no
    /// disk is needed for it; `out` leads to the writer's thread, which does the rest. Never waits. An empty output, if
    /// there is one that is still in the caches.
    pub(super) fn hand_in(&self, item: Item, out: &Outbox<Item>) -> Option<Vec<u8>> {
        let tell = |item| {
            let _ = out.put(item);
        };
        let Some(mut place) = self.writer.try_lock() else {
            tell(item);
            return None;
        };
        let Some(mut writer) = place.take() else {
            tell(item);
            return None;
        };
        writer.put(item);
        while let Ok(item) = self.queue.try_recv() {
            writer.put(item);
        }
        #[cfg(test)]
        let before = self.shared.packets.load(Relaxed);
        let (heavy, output) = (writer.go_on_lightly(), writer.kept_output());
        #[cfg(test)]
        self.by_the_host.fetch_add(self.shared.packets.load(Relaxed) - before, Relaxed);
        *place = Some(writer);
        drop(place);
        if let Some(item) = heavy {
            // It was there a moment ago, so there is room for it.
            tell(item);
            out.ring();
        }
        output
    }
}
