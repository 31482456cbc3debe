//! The thread that reads: started with the recording, gone at once where no driver answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::amd::{self, Amd};
use super::history::History;
use super::nvidia::{self, Nvidia};
use super::reading::{Identity, Lost, Reading};
use super::{Device, PATIENCE, SHARED, Shared, mark_energy};
use crate::format::summary::Condition;
use crate::{boundary, clock, host, log};

/// How often what takes the driver long is read: the energy counter 3 ms of a core on an H100. A little less than a
/// second, so that the lines that are written every second have it.
const SLOW: Duration = Duration::from_millis(950);

/// What the thread can be told.
#[derive(Debug)]
enum Command {
    /// Read now, then answer.
    Read(Sender<()>),
    /// End, then answer.
    Stop(Sender<()>),
}

/// How long the thread outlives a recording that ended without a word, as after an I/O error. The end of one in
/// order takes less.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// CPU time of the thread.
static OWN_CPU_NS: AtomicU64 = AtomicU64::new(0);

/// The thread of which recording counts: one that hung in its driver until the next began must not speak for that one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

static COMMANDS: Mutex<Option<Sender<Command>>> = Mutex::new(None);

/// Starts to read the devices every `interval_ms`; 0 reads nothing.
pub fn start(interval_ms: u64) {
    let generation = GENERATION.fetch_add(1, Ordering::AcqRel) + 1;
    *SHARED.lock() = Shared::new();
    OWN_CPU_NS.store(0, Ordering::Relaxed);
    if interval_ms == 0 {
        return;
    }
    let interval = Duration::from_millis(interval_ms);
    let (commands, inbox) = bounded(8);
    // The new thread inherits the mask: no signal meant for the host is ever delivered to us.
    let old = host::block_signals();
    let spawned = std::thread::Builder::new().name("lri-gpu".into()).stack_size(1 << 20).spawn(move || {
        boundary::mark_own_thread();
        host::become_background_thread(c"lri-gpu");
        boundary::catching((), || run(generation, interval, &inbox));
        let mut shared = SHARED.lock();
        if generation == GENERATION.load(Ordering::Acquire) {
            shared.nobody_reads();
        }
    });
    host::restore_signals(&old);
    match spawned {
        Ok(_) => *COMMANDS.lock() = Some(commands),
        Err(e) => SHARED.lock().tell(clock::now_ns(), Condition::Unavailable, format!("no thread for it: {e}"), LOST),
    }
}

/// Has the devices read now and waits for it, but not long: what has ended can then be completed.
pub fn refresh() {
    if SHARED.lock().horizon_ns.is_none() {
        return;
    }
    let Some(commands) = COMMANDS.lock().clone() else { return };
    let (done, answer) = bounded(1);
    if commands.try_send(Command::Read(done)).is_ok() {
        let _ = answer.recv_timeout(PATIENCE);
    }
}

/// Ends the thread. One that waits for its driver is left behind.
pub fn stop() {
    let Some(commands) = COMMANDS.lock().take() else { return };
    let (done, answer) = bounded(1);
    if commands.try_send(Command::Stop(done)).is_ok() {
        let _ = answer.recv_timeout(PATIENCE);
    }
}

/// CPU time that reading has taken in this recording.
#[must_use]
pub fn own_cpu_ns() -> u64 {
    OWN_CPU_NS.load(Ordering::Relaxed)
}

/// What is missing without it.
const LOST: Option<&str> = Some("GPU figures");

/// A device of either kind.
#[derive(Debug)]
enum Source<'nvml> {
    Nvidia(Nvidia<'nvml>),
    Amd(Amd),
}

impl Source<'_> {
    fn identity(&self) -> &Identity {
        match self {
            Self::Nvidia(d) => d.identity(),
            Self::Amd(d) => d.identity(),
        }
    }

    fn read(&mut self, energy: bool, slowly: bool) -> Result<Reading, Lost> {
        match self {
            Self::Nvidia(d) => d.read(energy, slowly),
            Self::Amd(d) => d.read(slowly),
        }
    }

    /// Whether energy is a matter of its own, which is not in every reading.
    const fn counts_energy(&self) -> bool {
        match self {
            Self::Nvidia(d) => d.counts_energy(),
            Self::Amd(_) => false,
        }
    }

    fn unanswered(&self) -> Vec<&'static str> {
        match self {
            Self::Nvidia(d) => d.unanswered(),
            Self::Amd(_) => Vec::new(),
        }
    }
}

fn run(generation: u64, interval: Duration, inbox: &Receiver<Command>) {
    let nvml = nvidia::open();
    let mut problems = Vec::new();
    let mut sources: Vec<Option<Source<'_>>> = Vec::new();
    match &nvml {
        Ok(nvml) => {
            let (found, silent) = nvidia::devices(nvml);
            sources.extend(found.into_iter().map(|d| Some(Source::Nvidia(d))));
            problems.extend(silent);
        }
        Err(e) => problems.push(e.clone()),
    }
    sources.extend(amd::devices(amd::CARDS.as_ref()).into_iter().map(|d| Some(Source::Amd(d))));
    let now = clock::now_ns();
    if generation != GENERATION.load(Ordering::Acquire) {
        return;
    }
    if sources.is_empty() {
        let why = if problems.is_empty() { "the driver lists no GPU".to_owned() } else { problems.join("; ") };
        SHARED.lock().tell(now, Condition::Unavailable, why, LOST);
        return;
    }
    {
        let mut shared = SHARED.lock();
        shared.interval_ns = interval.as_nanos() as u64;
        for (source, number) in sources.iter().flatten().zip(0..) {
            let identity = Identity { number, ..source.identity().clone() };
            shared.devices.push(Device { identity, history: History::default(), lost: None });
        }
        // A driver is there, so what does not answer is worth a word; that there is no other vendor's is not.
        if nvml.is_ok() {
            problems.into_iter().for_each(|p| shared.tell(now, Condition::Degraded, p, None));
        }
    }
    read_all(generation, &mut sources, true);
    tell_what_is_there(&sources, interval);
    let (mut next, mut slow) = (Instant::now() + interval, Instant::now() + SLOW);
    let mut last_wanted = Instant::now();
    loop {
        match inbox.recv_deadline(next) {
            Ok(Command::Stop(done)) => {
                drop(sources);
                drop(nvml);
                let _ = done.send(());
                return;
            }
            Ok(Command::Read(done)) => {
                mark_energy();
                read_all(generation, &mut sources, false);
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if boundary::recording() {
                    last_wanted = now;
                    read_all(generation, &mut sources, now >= slow);
                    if now >= slow {
                        slow = now + SLOW;
                    }
                } else if now - last_wanted > AFTERLIFE {
                    return;
                }
                // What was missed, on a busy machine, is not made up for.
                while next <= now {
                    next += interval;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if generation != GENERATION.load(Ordering::Acquire) {
            return;
        }
        if sources.iter().all(Option::is_none) {
            SHARED.lock().nobody_reads();
        }
    }
}

/// Reads every device that is left.
fn read_all(generation: u64, sources: &mut [Option<Source<'_>>], slowly: bool) {
    let energy = std::mem::take(&mut SHARED.lock().energy_wanted) || slowly;
    let began = clock::now_ns();
    for (place, number) in sources.iter_mut().zip(0..) {
        let Some(source) = place else { continue };
        let answer = source.read(energy, slowly);
        if generation != GENERATION.load(Ordering::Acquire) {
            return;
        }
        match answer {
            Ok(reading) => SHARED.lock().add(number, reading),
            Err(Lost(why)) => {
                let name = source.identity().name.clone().unwrap_or_else(|| "unnamed".to_owned());
                *place = None;
                let reason = format!("device {number} ({name}) was lost: {why}; it is read no more");
                log::warn(format!("gpu: {reason}"));
                let mut shared = SHARED.lock();
                if let Some(d) = shared.devices.get_mut(number as usize) {
                    d.lost = Some(why);
                }
                shared.tell(clock::now_ns(), Condition::Degraded, reason, Some("figures of this device from here on"));
            }
        }
    }
    let with_energy = energy || !sources.iter().flatten().any(Source::counts_energy);
    let mut shared = SHARED.lock();
    shared.horizon_ns = Some(began);
    shared.energy_horizon_ns = if with_energy { Some(began) } else { shared.energy_horizon_ns };
    OWN_CPU_NS.store(host::thread_cpu_ns(), Ordering::Relaxed);
}

/// Which devices are read, and what each of them does not tell.
fn tell_what_is_there(sources: &[Option<Source<'_>>], interval: Duration) {
    let mut parts = Vec::new();
    for (source, number) in sources.iter().zip(0..).filter_map(|(s, n)| Some((s.as_ref()?, n))) {
        let name = source.identity().name.as_deref().unwrap_or("unnamed");
        let mig = source.identity().mig_instance.map(|m| format!(", MIG instance {m}")).unwrap_or_default();
        let missing = source.unanswered();
        let missing =
            if missing.is_empty() { String::new() } else { format!(" (not supported: {})", missing.join(", ")) };
        parts.push(format!("{number}: {name}{mig}{missing}"));
    }
    if !parts.is_empty() {
        let reason = format!("read every {} ms: {}", interval.as_millis(), parts.join("; "));
        SHARED.lock().tell(clock::now_ns(), Condition::Ok, reason, None);
    }
}
