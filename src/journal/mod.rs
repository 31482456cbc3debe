//! The inlet of the log: everybody pushes events here, at the level and the rate in force, and what is not
//! written is counted.
//!
//! Before it: `observe`, `mark` and the C ABI push events. After it: `record`, whose writer takes them and
//! asks the [`Source`]s.
//!
//! Statics are what every thread of the host asks at any time, recording or not; `session` sets all of them when
//! a recording begins.

pub mod dropped;
pub mod event;
pub mod rate;
pub mod source;
pub mod stamp;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use crossbeam_channel::Sender;

pub use event::{Event, Sample, Token};
pub use source::{Moment, Source};

use crate::format::{Level, Line};
use crate::mailbox::Outbox;
use crate::queue::{Local, Queue};

static QUEUE: Queue<Event> = Queue::new();
static LEVEL: AtomicU8 = AtomicU8::new(Level::Detailed as u8);
static PAUSED: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);
static DISABLED: AtomicBool = AtomicBool::new(false);
/// Recordings that this process has begun.
static RECORDINGS: AtomicU64 = AtomicU64::new(0);
static WOKEN: AtomicBool = AtomicBool::new(false);
static WRITER: Mutex<Option<Outbox<Command>>> = Mutex::new(None);

thread_local! {
    static LOCAL: Local<Event> = const { Local::new(None) };
}

/// What the writer's thread can be told.
#[derive(Debug)]
pub enum Command {
    /// Write everything that was pushed before, then answer.
    Flush(Sender<()>),
    /// The same, then close the log in order and answer.
    Stop(Sender<()>),
    /// A ring is half full: write what there is.
    Wake,
}

/// The level in force.
#[inline]
#[must_use]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Minimal,
        1 => Level::Detailed,
        _ => Level::Verbose,
    }
}

/// Changes the level from the next event on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// A recording begins, with a limited rate or without: nothing that the one before has left is in its way.
pub fn begin(limited: bool) {
    RECORDINGS.fetch_add(1, Ordering::Relaxed);
    rate::open(limited);
    // What was counted after its last summary, and what was pushed while it ended.
    drop(dropped::take());
    queue().drain(drop);
}

/// Number of the recording: what began in one is not told in the next.
#[must_use]
pub fn recording() -> u64 {
    RECORDINGS.load(Ordering::Relaxed)
}

/// Pauses or goes on (`disable` and `enable` of the C API). While paused the host is observed, so that memory and cache
/// stay right, but no event is written.
pub fn set_paused(on: bool) {
    PAUSED.store(on, Ordering::Relaxed);
}

/// Whether recording is paused.
#[inline]
#[must_use]
pub fn paused() -> bool {
    PAUSED.load(Ordering::Relaxed) || is_over()
}

/// The log cannot be written any more, and the hooks go on for a capture: nothing is pushed, nothing is timed. False: a
/// new log begins.
pub fn set_over(on: bool) {
    OVER.store(on, Ordering::Relaxed);
    if on {
        set_level(Level::Minimal);
        set_writer(None);
    }
}

/// Whether the log of this recording has failed, while its capture goes on.
#[inline]
#[must_use]
pub fn is_over() -> bool {
    OVER.load(Ordering::Relaxed)
}

/// The settings said not to record at all.
pub fn set_disabled(on: bool) {
    DISABLED.store(on, Ordering::Relaxed);
}

/// Whether the settings said not to record at all.
#[must_use]
pub fn disabled() -> bool {
    DISABLED.load(Ordering::Relaxed)
}

/// Tells [`wake`] whom to wake; `None` when the writer is gone.
pub fn set_writer(commands: Option<Outbox<Command>>) {
    *WRITER.lock() = commands;
    WOKEN.store(false, Ordering::Relaxed);
}

/// A ring is half full: the writer should not sleep on. Cheap when it has been told already, and never waits.
#[inline]
pub fn wake() {
    if !WOKEN.load(Ordering::Relaxed) && !WOKEN.swap(true, Ordering::Relaxed) {
        if let Some(commands) = WRITER.try_lock().as_deref().and_then(Option::as_ref) {
            _ = commands.try_put(Command::Wake);
        } else {
            WOKEN.store(false, Ordering::Relaxed);
        }
    }
}

/// The writer is awake.
pub(crate) fn awake() {
    WOKEN.store(false, Ordering::Relaxed);
}

/// Hands an event to the writer. Never blocks; a full ring is counted.
pub fn push(event: Event) {
    if is_over() {
        return;
    }
    // A thread that is being torn down has no ring any more: the main thread in exit handlers, where recordings end.
    let mut event = Some(event);
    _ = LOCAL.try_with(|local| event.take().map(|e| QUEUE.push(local, e)));
    if let Some(event) = event {
        QUEUE.push_late(event);
    }
}

/// Hands a rare event to the writer; the writer fills in session id and wall-clock strings.
pub fn push_line(line: Line) {
    if paused() && !is_over() {
        dropped::count("disabled", line.kind(), 1);
        return;
    }
    push(Event::Line(Box::new(line)));
}

/// The queue, for the writer.
pub(crate) fn queue() -> &'static Queue<Event> {
    &QUEUE
}
