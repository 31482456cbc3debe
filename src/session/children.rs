//! What the host starts: programs, which are recorded if that is wished or it is a router, and forked children,
//! which are not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::begin_capture;
use crate::config::{self, Config};
use crate::{boundary, capture, host, log};

/// Set by a llama-server that starts other ones, a server for each model, in their environment.
const ROUTER: &str = "LLAMA_SERVER_ROUTER_PORT";

/// The last message of a process that may have been a router to its end.
pub(super) const NO_MODEL: &str =
    "no model was loaded in this process; servers that it started (router mode) have recordings of their own";

/// The process may still be a router: LD_PRELOAD stays, and a capture has to wait.
static MODEL_AWAITED: AtomicBool = AtomicBool::new(false);

/// The capture of a process that has not loaded a model yet.
static PUT_OFF: Mutex<Option<PutOff>> = Mutex::new(None);

struct PutOff {
    config: Config,
    session: capture::start::Session,
    began_ns: u64,
}

/// Whether a program may turn out to start servers instead of being one (llama-server's router mode). Its arguments do
/// not tell: a repository may hold a model or a list of models. What tells is that a router never loads a model.
fn may_route(program: &str) -> bool {
    program.starts_with("llama-server") || program == "llama"
}

/// Decides at the start of a preloaded process what becomes of the programs that it will start, and
/// adapts its settings.
pub(super) fn settle(config: &mut Config, program: &str) {
    let may_route = config.follow_children.is_none() && !config.disabled && may_route(program);
    MODEL_AWAITED.store(may_route, Ordering::Release);
    if !may_route && config.follow_children != Some(true) {
        host::leave_ld_preload();
    }
    if std::env::var_os(ROUTER).is_some() {
        // One of several servers with the same settings: a stream is one process's.
        config.capture.path = config.capture.path.as_deref().map(config::apart);
    }
}

/// Whether no model was loaded yet in a program that may be a router.
pub(super) fn may_be_router() -> bool {
    MODEL_AWAITED.load(Ordering::Acquire)
}

/// Keeps the capture until [`is_no_router`].
pub(super) fn put_off(config: &Config, session: capture::start::Session, began_ns: u64) {
    *PUT_OFF.lock() = Some(PutOff { config: config.clone(), session, began_ns });
}

/// The recording ends: what was put off never comes.
pub(super) fn forget() {
    PUT_OFF.lock().take();
}

/// The process loads a model, or computes: it is no router, and what it starts from here on is not recorded.
#[inline]
pub fn is_no_router() {
    if MODEL_AWAITED.load(Ordering::Relaxed) && MODEL_AWAITED.swap(false, Ordering::AcqRel) {
        host::leave_ld_preload();
        let put_off = PUT_OFF.lock().take();
        if let Some(PutOff { config, session, began_ns }) = put_off {
            begin_capture(&config, &session, began_ns);
        }
    }
}

/// One child has told; all processes that are forked from this one share it.
static TOLD: OnceLock<Option<&'static AtomicBool>> = OnceLock::new();

/// Recording starts: from here on children may be forked.
pub(super) fn expect_forks() {
    TOLD.get_or_init(host::shared_flag);
}

/// A forked child of a recording process computes. The first one says on stderr that none is recorded, since the log
/// is the parent's.
#[inline]
pub fn child_computes() {
    if boundary::child_is_untold()
        && !TOLD.get().copied().flatten().is_some_and(|told| told.swap(true, Ordering::AcqRel))
    {
        log::warn(format!(
            "process {} was forked from one that is recorded (gunicorn --preload and other prefork servers do so), and \
             what it and others like it compute is not: let each worker load the model itself",
            std::process::id()
        ));
    }
}
