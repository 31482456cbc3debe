//! A bounded queue whose sender says whether the receiver has to look now. A thread of ours that wakes up takes a core
//! from a host that computes on all of them, so it should find a good deal of work when it does.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError, TrySendError, bounded};

/// What wakes the receiver.
#[derive(Debug, Default)]
struct Bell {
    /// Its thread, once it has looked. No lock: a host that rings must not wait for a thread of ours that has
    /// lost its core.
    receiver: OnceLock<Thread>,
    /// The receiver sleeps until it is woken: every message rings.
    asleep: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // The end of a sender, too, comes before this look.
        fence(Ordering::SeqCst);
        if let Some(receiver) = self.receiver.get() {
            receiver.unpark();
        }
    }
}

/// Rings when it goes.
#[derive(Clone, Debug)]
struct Waker(Arc<Bell>);

impl Drop for Waker {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// Where messages are put in.
#[derive(Debug)]
pub struct Outbox<T> {
    /// Before the waker: whom its end wakes must find the queue closed.
    queue: Sender<T>,
    waker: Waker,
}

/// Where they are taken out.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Receiver<T>,
    bell: Arc<Bell>,
    nap: Duration,
}

/// A queue of `capacity` messages. Once it is empty, what comes within `nap` may lie until the nap is over, unless
/// somebody rings; later on, and with a nap of zero, every message rings by itself.
#[must_use]
pub fn mailbox<T>(capacity: usize, nap: Duration) -> (Outbox<T>, Inbox<T>) {
    let (out, queue) = bounded(capacity);
    let bell = Arc::new(Bell::default());
    (Outbox { queue: out, waker: Waker(Arc::clone(&bell)) }, Inbox { queue, bell, nap })
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), waker: self.waker.clone() }
    }
}

impl<T> Outbox<T> {
    /// Puts `message` in if there is room. The receiver looks at it when it looks.
    pub fn try_put(&self, message: T) -> Result<(), TrySendError<T>> {
        let result = self.queue.try_send(message);
        // With the one in `Inbox::take`: either we see that it sleeps, or it sees the message before it does.
        fence(Ordering::SeqCst);
        if self.waker.0.asleep.load(Ordering::Relaxed) {
            self.ring();
        }
        result
    }

    /// Puts `message` in, and waits for room as long as `patience` says.
    pub fn put_within(&self, message: T, patience: Duration) -> Result<(), SendTimeoutError<T>> {
        match self.try_put(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Disconnected(message)) => Err(SendTimeoutError::Disconnected(message)),
            Err(TrySendError::Full(message)) => {
                self.ring();
                self.queue.send_timeout(message, patience)?;
                self.ring();
                Ok(())
            }
        }
    }

    /// Puts `message` in, however long that takes. False if nobody is there any more.
    pub fn put(&self, message: T) -> bool {
        match self.try_put(message) {
            Ok(()) => true,
            Err(TrySendError::Disconnected(_)) => false,
            Err(TrySendError::Full(message)) => {
                self.ring();
                let sent = self.queue.send(message).is_ok();
                self.ring();
                sent
            }
        }
    }

    /// The receiver looks now.
    pub fn ring(&self) {
        self.waker.0.ring();
    }
}

impl<T> Inbox<T> {
    /// The next message; waits for one until `due`, if that is given. Always called by the same thread.
    pub fn take(&self, due: Option<Instant>) -> Result<T, RecvTimeoutError> {
        let me = self.bell.receiver.get_or_init(thread::current);
        debug_assert_eq!(me.id(), thread::current().id(), "the bell wakes another thread");
        let mut nap_ends = None;
        let mut napping = !self.nap.is_zero();
        loop {
            self.bell.asleep.store(!napping, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let now = match self.queue.try_recv() {
                Ok(message) => {
                    self.bell.asleep.store(false, Ordering::Relaxed);
                    return Ok(message);
                }
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => Instant::now(),
            };
            if due.is_some_and(|due| due <= now) {
                self.bell.asleep.store(false, Ordering::Relaxed);
                return Err(RecvTimeoutError::Timeout);
            }
            let nap_ends = *nap_ends.get_or_insert(now + self.nap);
            let until = due.into_iter().chain(napping.then_some(nap_ends)).min();
            // A bell that rang since the last look makes this return at once.
            match until {
                Some(until) => thread::park_timeout(until.saturating_duration_since(now)),
                None => thread::park(),
            }
            napping &= Instant::now() < nap_ends;
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crossbeam_channel::RecvTimeoutError;

    use super::mailbox;

    const NAP: Duration = Duration::from_millis(100);
    const SOON: Duration = Duration::from_millis(5);

    #[test]
    fn who_sleeps_is_woken_by_the_first_message_and_naps_through_the_next() {
        let (out, inbox) = mailbox(8, NAP);
        std::thread::scope(|s| {
            let receiver =
                s.spawn(move || (0..3).map(|_| inbox.take(None).map(|n| (n, Instant::now()))).collect::<Vec<_>>());
            while !out.waker.0.asleep.load(super::Ordering::Relaxed) {
                std::thread::sleep(SOON);
            }
            let began = Instant::now();
            out.try_put(1).unwrap();
            while out.waker.0.asleep.load(super::Ordering::Relaxed) {
                std::thread::yield_now();
            }
            // The receiver takes it and naps.
            std::thread::sleep(NAP / 4);
            out.try_put(2).unwrap();
            std::thread::sleep(SOON);
            assert_eq!(out.queue.len(), 1, "nobody rang, and it was taken");
            out.ring();
            let second = Instant::now();
            while !out.queue.is_empty() {
                assert!(second.elapsed() < NAP * 50, "rung, and not taken");
                std::thread::yield_now();
            }
            out.try_put(3).unwrap();
            let found = receiver.join().unwrap();
            assert_eq!(found.iter().map(|f| f.unwrap().0).collect::<Vec<_>>(), [1, 2, 3]);
            assert!(began.elapsed() < NAP * 50);
        });
    }

    #[test]
    fn the_end_of_the_last_sender_and_the_deadline_are_told() {
        let (out, inbox) = mailbox::<u8>(1, NAP);
        assert_eq!(inbox.take(Some(Instant::now() + SOON)), Err(RecvTimeoutError::Timeout));
        drop(out);
        assert_eq!(inbox.take(None), Err(RecvTimeoutError::Disconnected));
        let (out, inbox) = mailbox::<u8>(1, NAP);
        std::thread::scope(|s| {
            let receiver = s.spawn(move || inbox.take(None));
            let other = out.clone();
            std::thread::sleep(SOON);
            drop(out);
            std::thread::sleep(SOON);
            other.try_put(7).unwrap();
            drop(other);
            assert_eq!(receiver.join().unwrap(), Ok(7));
        });
        let (out, inbox) = mailbox::<u8>(1, NAP);
        std::thread::scope(|s| {
            let receiver = s.spawn(move || inbox.take(None));
            std::thread::sleep(NAP * 2);
            drop(out);
            assert_eq!(receiver.join().unwrap(), Err(RecvTimeoutError::Disconnected));
        });
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait_and_the_receiver_look() {
        let (out, inbox) = mailbox(1, NAP);
        out.try_put(1).unwrap();
        std::thread::scope(|s| {
            let receiver = s.spawn(move || (inbox.take(None), inbox.take(None)));
            assert!(out.put(2));
            assert_eq!(receiver.join().unwrap(), (Ok(1), Ok(2)));
        });
        assert!(!out.put(3), "nobody is there");
    }

    #[test]
    fn nothing_is_lost_between_many_senders_and_one_that_sleeps_now_and_then() {
        let (out, inbox) = mailbox(16, NAP);
        std::thread::scope(|s| {
            for part in 0..4_u64 {
                let out = out.clone();
                s.spawn(move || {
                    for i in 0..20_000 {
                        assert!(out.put(part * 20_000 + i));
                    }
                });
            }
            drop(out);
            let mut sum = 0;
            while let Ok(n) = inbox.take(None) {
                sum += n;
            }
            assert_eq!(sum, (0..80_000).sum::<u64>());
        });
    }
}
