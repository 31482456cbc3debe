//! Starts and stops recording: the one place that knows all the parts.

mod children;
mod settings;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, SendTimeoutError, bounded};
use parking_lot::Mutex;

use crate::boundary::{self, Phase};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::format::session::SessionStart;
use crate::format::summary::Condition;
use crate::format::{LOG_VERSION, Line};
use crate::ggml::copies::{self, MOST_COPIES, News};
use crate::ggml::symbol;
use crate::journal::{Command, Source};
use crate::mailbox::{Outbox, mailbox};
use crate::mark::expand::Marks;
use crate::observe::{self, recording, state};
use crate::record::host_sample::Sampler;
use crate::record::sink::Sink;
use crate::record::writer::{self, Options};
use crate::{capture, clock, gpu, host, journal, log, mark, tell};

pub use self::children::{child_computes, is_no_router};
pub use self::settings::{from_environment, set};

/// The longest that the end of the host may wait for a slow disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest that it may wait until the activations in memory are in their file: they were asked for, and there may
/// be a gigabyte. A disk that takes nothing at all is left alone much sooner (`pipeline`).
const CAPTURE_PATIENCE: Duration = Duration::from_secs(30);

/// What started the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// LD_PRELOAD.
    Preload,
    /// A program that was linked with this library and follows the environment (patches/).
    Linked,
    /// `llama_resource_instrumentation_init`.
    Api,
    /// The same, and the hooks are to do nothing.
    ApiWithoutHooks,
}

#[derive(Debug)]
struct Running {
    commands: Outbox<Command>,
    thread: Option<std::thread::JoinHandle<()>>,
    mode: Mode,
    began_ns: u64,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);
static HANDLERS: AtomicBool = AtomicBool::new(false);
/// The process that waits for its first call.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// What [`start`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// Recording has begun.
    Now,
    /// It was on already; the call changed nothing.
    Already,
    /// The settings say not to record.
    Disabled,
}

/// The start-up constructor's part. A program that is linked against llama.cpp is recorded from here on; any other one
/// (a shell, an interpreter that may load llama.cpp later) when its first call arrives, so that what merely passes
/// LD_PRELOAD on leaves no trace.
pub fn start_preloaded() {
    if std::env::var_os("LD_PRELOAD").is_none() || !host::in_ld_preload() {
        return;
    }
    if symbol::any_llama_object() {
        begin_in_host();
    } else {
        WAITING.store(std::process::id(), Ordering::Relaxed);
        host::at_exit(at_exit_unseen);
        boundary::wait_for_first_call(begin_in_host);
    }
}

/// The process turned out to be a llama.cpp host: the first hooked call of a preloaded library that waits, or the
/// constructor. Nothing fails here: the host comes first.
pub fn begin_in_host() {
    let (mut config, warnings) = from_environment();
    children::settle(&mut config, &program_name());
    warnings.iter().for_each(log::warn);
    if let Err(e) = start(&config, Mode::Preload) {
        log::error(format!("{e}. Nothing is recorded; the host goes on"));
    }
}

/// A program that was built to be recorded starts: it is, if the environment names a log or a capture. `None` if
/// it names none.
pub fn start_linked() -> Result<Option<Started>> {
    const ASK: [&str; 3] = ["LLAMA_RESOURCE_LOG_PATH", "LLAMA_RESOURCE_CAPTURE", "LLAMA_RESOURCE_CAPTURE_LIST"];
    // A recording that LD_PRELOAD began is the same one: there is one library in the process.
    if is_running() {
        return Ok(Some(Started::Already));
    }
    if !ASK.iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty())) {
        return Ok(None);
    }
    let (config, warnings) = from_environment();
    warnings.iter().for_each(log::warn);
    start(&config, Mode::Linked).map(Some)
}

extern "C" fn at_exit_unseen() {
    // A forked child has the handler too; one message is enough.
    if WAITING.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    boundary::catching((), || {
        let (config, _) = from_environment();
        if boundary::phase() != Phase::Waiting || config.disabled || !host::carries_ggml() {
            return;
        }
        let program = program_name();
        log::warn(if symbol::any_llama_object() {
            format!(
                "{program} has loaded llama.cpp's shared libraries, but no call that is recorded was seen: it made none, or its calls are bound inside \
                 them; nothing was recorded (`llama-resource doctor` says what can be seen of a library)"
            )
        } else {
            format!(
                "{program} is statically linked with llama.cpp, so none of its calls can be seen; nothing was recorded. Use a build with shared \
                 libraries, or the C API"
            )
        });
    });
}

/// Begins recording.
pub fn start(config: &Config, mode: Mode) -> Result<Started> {
    if boundary::in_forked_child() || boundary::phase() == Phase::Poisoned {
        let problem = "an internal failure, or a fork, has ended recording in this process";
        return Err(Error::new("starting", "the recording", problem, "restart the host"));
    }
    // In any other phase, and where the log is over, the writer could not write any more, has told so, and ends. Its
    // stream is closed in order, so that a new one may have its name; not under the lock, for a callback that gets a
    // message may call us again.
    let is_over = |_: &mut Running| !boundary::recording() || journal::is_over();
    let old = RUNNING.lock().take_if(is_over);
    if old.is_some() {
        end_capture();
    }
    let mut running = RUNNING.lock();
    if running.is_some() {
        return Ok(Started::Already);
    }
    journal::set_over(false);
    journal::set_disabled(config.disabled);
    if config.disabled {
        return Ok(Started::Disabled);
    }
    copies::on_news(further_copy);
    clock::init();
    let now = clock::now_ns();
    let program = program_name();
    let path = config.resolved_log_path(std::process::id(), clock::unix_us(now) / 1_000_000, &program);
    let sink = Sink::open(&path)?;
    journal::set_level(config.level);
    journal::begin(config.bytes_per_second().is_some());
    journal::set_paused(false);
    observe::splits::set_serialize(config.split_times);
    observe::begin();
    mark::reset();
    let session_id = clock::session_id(now);
    let session = capture::start::Session { id: session_id.clone(), program: program.clone() };
    let first = first_line(config, mode, now, &session_id, program);
    let options = Options {
        sink,
        session_id,
        bytes_per_second: config.bytes_per_second(),
        text: config.text,
        first,
        sources: sources(config, now),
        at_first_step,
        at_failure,
    };
    let (commands, inbox) = mailbox::<Command>(8, Duration::ZERO);
    children::expect_forks();
    boundary::claim_process();
    let before = boundary::phase();
    // Ahead of the thread, which ends this phase when it cannot write.
    boundary::set_phase(if mode == Mode::ApiWithoutHooks { Phase::Marking } else { Phase::Running });
    journal::set_writer(Some(commands.clone()));
    let thread = writer::spawn(options, inbox).inspect_err(|_| boundary::set_phase(before))?;
    gpu::stop();
    gpu::start(config.gpu_interval_ms);
    install_handlers();
    *running = Some(Running { commands, thread: Some(thread), mode, began_ns: now });
    // A callback that gets the message may call us again.
    drop(running);
    if children::may_be_router() {
        children::put_off(config, session, now);
    } else {
        begin_capture(config, &session, now);
    }
    log::info(format!("recording at {} into {}", config.level.name(), path.display()));
    Ok(Started::Now)
}

/// All sources that the writer asks, in the order in which the lines of an interval are written.
fn sources(config: &Config, now: u64) -> Vec<Box<dyn Source>> {
    vec![
        Box::new(tell::Steps::new(now)),
        Box::new(Marks::new(config.bytes_per_second(), config.text, now)),
        Box::new(Sampler::default()),
        Box::new(gpu::Gpus::new(now)),
    ]
}

/// A further copy of ggml has made a call.
fn further_copy(news: News, library: &str) {
    if !boundary::recording() {
        return;
    }
    boundary::catching((), || match news {
        News::Another => {
            state::tell(
                "hooks",
                Condition::Ok,
                format!("{library} is of another copy of ggml in this process; it is recorded too"),
                None,
            );
        }
        News::OneTooMany => state::tell(
            "hooks",
            Condition::Degraded,
            format!(
                "{library} is of one more copy of ggml than the {MOST_COPIES} that are told apart; its calls are only handed on"
            ),
            Some("everything of that copy"),
        ),
    });
}

/// Begins to capture, if the settings ask for it. What is wrong with them is told; events are recorded all the same.
fn begin_capture(config: &Config, session: &capture::start::Session, now: u64) {
    let list = std::env::var_os("LLAMA_RESOURCE_CAPTURE_LIST").filter(|p| !p.is_empty()).map(PathBuf::from);
    if config.capture.path.is_none() && list.is_none() {
        return;
    }
    let unix_s = clock::unix_us(now) / 1_000_000;
    let path = config.resolved_capture_path(std::process::id(), unix_s, &session.program).unwrap_or_default();
    if let Err(e) = capture::start::begin(&config.capture, path, session.clone(), config.text, list) {
        log::error(format!("{e}. No activations are captured; the host goes on"));
    }
}

fn first_line(config: &Config, mode: Mode, now: u64, session_id: &str, program: String) -> Line {
    Line::ResourceSessionStart(SessionStart {
        timestamp: String::new(),
        session_id: session_id.to_owned(),
        level: config.level,
        t_ns: now,
        unix_us: clock::unix_us(now),
        log_version: LOG_VERSION,
        library_version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: match mode {
            Mode::Preload => "preload",
            Mode::Linked => "linked",
            Mode::Api | Mode::ApiWithoutHooks => "api",
        }
        .to_owned(),
        pid: std::process::id(),
        program,
        rate_limit: config.bytes_per_second(),
    })
}

fn program_name() -> String {
    let exe: PathBuf = std::env::current_exe().unwrap_or_default();
    exe.file_name().map_or_else(|| "unknown".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// Ends recording: open requests end as `unfinished`, totals are written, the log is closed. False if nothing ran.
pub fn stop() -> bool {
    if boundary::in_forked_child() {
        return false;
    }
    let Some(running) = RUNNING.lock().take() else { return false };
    close(running);
    // The writer's last lines hold the devices' last readings.
    gpu::stop();
    true
}

fn close(mut running: Running) {
    children::forget();
    if boundary::recording() {
        observe::eval::finish_all();
        mark::before_the_end();
        tell_the_end(&running);
    }
    end_capture();
    boundary::set_phase(Phase::Stopped);
    journal::set_writer(None);
    let Some(thread) = running.thread.take() else { return };
    if thread.thread().id() == std::thread::current().id() {
        // A callback that was told of the writer's failure: the thread must not wait for itself.
        return;
    }
    let (done, answer) = bounded(1);
    // A writer that is stuck in a write of a dead disk must not hold the host's exit for ever.
    let until = Instant::now() + PATIENCE;
    let closed = match running.commands.put_within(Command::Stop(done), PATIENCE) {
        Ok(()) => answer.recv_deadline(until) != Err(RecvTimeoutError::Timeout),
        Err(e) => matches!(e, SendTimeoutError::Disconnected(_)),
    };
    if closed {
        let _ = thread.join();
    } else {
        log::error(format!("the log could not be closed within {} s; its end is missing", PATIENCE.as_secs()));
    }
}

/// Ends recording if `init` began it; one that the environment began is the user's, and only flushed. `None`
/// if nothing ran.
pub fn stop_own() -> Option<Mode> {
    if boundary::in_forked_child() {
        return None;
    }
    let mode = RUNNING.lock().as_ref().map(|r| r.mode)?;
    if matches!(mode, Mode::Preload | Mode::Linked) {
        flush();
    } else {
        stop();
    }
    Some(mode)
}

/// Closes the stream, and says what became of everything that was wanted.
fn end_capture() {
    let Some(summary) = capture::start::end(CAPTURE_PATIENCE) else { return };
    let lost: u64 = summary.dropped.iter().map(|d| d.amount.tensors).sum();
    if lost > 0 {
        log::warn(format!(
            "{lost} of {} tensors are not in {} (`llama-resource stream info` says why)",
            summary.seen.tensors, summary.path
        ));
    }
    journal::push_line(Line::CaptureSummary(summary));
}

/// The last events of a recording that ends in order: unfinished requests, batches, and what was never seen.
fn tell_the_end(running: &Running) {
    let now = clock::now_ns();
    {
        let mut host = observe::host();
        host.buffers.settle_all();
        host.contexts.iter_mut().for_each(observe::contexts::Context::flush_batch);
        host.settle_samples();
        host.requests.end_all(None, "unfinished", now);
    }
    if children::may_be_router() {
        state::tell("process", Condition::Ok, children::NO_MODEL, None);
    } else if matches!(running.mode, Mode::Preload | Mode::Linked) && !recording::any_call_seen() {
        let lived_s = now.saturating_sub(running.began_ns) as f64 / 1e9;
        state::tell(
            "hooks",
            Condition::Unavailable,
            format!(
                "no call of llama.cpp was seen in {lived_s:.1} s of {}: its calls into llama.cpp are bound inside its libraries, or it made none (ask `llama-resource doctor`)",
                program_name()
            ),
            Some("everything"),
        );
    }
    let steps = recording::current().totals.last_step().unwrap_or(0);
    log::info(format!("recorded {steps} steps"));
}

/// Waits until everything pushed before is in the file. False if nothing runs or the disk is too slow.
pub fn flush() -> bool {
    if boundary::in_forked_child() {
        return false;
    }
    let Some(commands) = RUNNING.lock().as_ref().map(|r| r.commands.clone()) else { return false };
    observe::eval::flush_here();
    if !capture::flush(CAPTURE_PATIENCE) {
        return false;
    }
    let (done, answer) = bounded(1);
    let until = Instant::now() + PATIENCE;
    commands.put_within(Command::Flush(done), PATIENCE).is_ok() && answer.recv_deadline(until).is_ok()
}

/// Whether a recording is on.
#[must_use]
pub fn is_running() -> bool {
    !boundary::in_forked_child() && RUNNING.lock().is_some()
}

fn install_handlers() {
    if HANDLERS.swap(true, Ordering::AcqRel) {
        return;
    }
    host::at_exit(at_exit);
    host::at_fork(after_fork_in_parent, after_fork_in_child);
    // Our own std, linked into our own object: the hook sees our panics only, never the host's.
    std::panic::set_hook(Box::new(|info| {
        log::error(format!("internal failure: {info}. Recording has ended; the host goes on. Please report this"));
    }));
}

/// Exit handlers run in the reverse order of their registration, so what ggml makes while it computes (statics within
/// functions) would be destroyed before our handler runs. A host that computes in another thread while it exits would
/// then compute with destroyed objects while we close the log. Registered once more, our handler runs first; its second
/// call finds nothing to do.
fn at_first_step() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| host::at_exit(at_exit));
}

/// Steps that the hooks have seen the end of.
static STEPS_OVER: AtomicU64 = AtomicU64::new(0);

/// A step of the host is over. The first steps make statics, and later ones do sometimes. So our exit handler is
/// registered again each time that the number of steps has doubled.
pub fn step_is_over() {
    if (STEPS_OVER.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
        host::at_exit(at_exit);
    }
}

/// The first step of the process runs: our exit handler would run after what it makes is
/// destroyed, see [`at_first_step`].
fn is_in_first_step() -> bool {
    recording::current().totals.last_step().is_some()
        && STEPS_OVER.load(Ordering::Relaxed) == 0
        && recording::seen_by_hooks()
}

/// The log cannot be written any more. A capture is on another disk, or needs no more of this one: it goes on.
fn at_failure() -> bool {
    let goes_on = capture::start::goes_on();
    if goes_on {
        journal::set_over(true);
    } else {
        boundary::set_phase(Phase::Stopped);
    }
    goes_on
}

extern "C" fn at_exit() {
    // A signal handler of the host called exit (llama-server's does at the second Ctrl-C) in the middle of an observer,
    // whose locks are never released. Whole lines are in the file; its end stays missing. The same holds when the
    // process ends in its very first step.
    if boundary::is_observing() || is_in_first_step() {
        return;
    }
    boundary::catching((), || {
        boundary::mark_own_thread();
        stop();
    });
}

extern "C" fn after_fork_in_parent() {
    boundary::guarded((), || {
        state::tell("process", Condition::Ok, "the host forked; the child is not recorded", None);
    });
}

extern "C" fn after_fork_in_child() {
    // Async-signal-safe: one atomic store. Locks and the writer's thread belong to the parent.
    boundary::poison_child();
}
