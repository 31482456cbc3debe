//! The C API: every exported function that is not a hook. Bodies are short; what they do is in the parts.
//!
//! Conventions (docs/C-API.md): names `llama_resource_instrumentation_<what>`, status codes with 0 for success, every
//! pointer checked, nothing aborts, callable from any thread. The header in include/ is generated from this file.

pub mod capture;
pub mod eval;
pub mod marks;
pub mod server;

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;

use crate::boundary::{self, catching};
use crate::config::Rate;
use crate::format::Level;
use crate::mark::{self, Done, Refusal};
use crate::session::{self, Mode, Started};
use crate::{journal, log};

/// What a function answers. 0 is success, positive numbers are no failures, negative ones are. Numbers
/// are never reused.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum llama_resource_instrumentation_status {
    /// Done.
    Success = 0,
    /// Recording was on already; the call changed nothing.
    AlreadyRunning = 1,
    /// Switched off by LLAMA_RESOURCE_DISABLED or by llama_resource_instrumentation_disable; the call has no effect.
    Disabled = 2,
    /// The calling thread is too far ahead of the writer: the event is counted as dropped and not written.
    Dropped = 3,
    /// An argument is NULL, out of range or not valid UTF-8.
    InvalidArgument = -1,
    /// No recording is on.
    NotRunning = -2,
    /// The log cannot be opened or written; the reason went to the log callback.
    Io = -3,
    /// An internal failure; recording has ended and the host goes on.
    Internal = -4,
    /// The calls before do not allow this one (an end without its begin, a layer outside a session). What could
    /// be repaired was.
    WrongOrder = -5,
    /// 1024 layers and components are open on this thread.
    TooDeep = -6,
    /// Tensors of the ggml in this process cannot be read: its layout is none that we know, or it is not there.
    /// Nothing was recorded.
    TensorUnreadable = -7,
    /// This process cannot record: it was forked from one that did, or an internal failure ended recording.
    Unavailable = -8,
    /// The program was compiled against another version of the header than this library has.
    AbiMismatch = -9,
}

use llama_resource_instrumentation_status as Status;

/// Levels, as numbers for C.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum llama_resource_instrumentation_level {
    /// Sessions, model, buffers, large allocations, requests, interval summaries, matrix multiplications
    /// of sampled steps.
    Minimal = 0,
    /// Adds batches, components, layers, MLP operations, norms, activations, hand-offs, KV-cache operations.
    Detailed = 1,
    /// Adds every operation of a sampled step and per-token events.
    Verbose = 2,
}

/// Receives this library's messages: a level of ggml (2 info, 3 warning, 4 error), one line of text, and
/// the caller's pointer.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type llama_resource_instrumentation_log_callback =
    Option<unsafe extern "C" fn(level: i32, text: *const c_char, user_data: *mut c_void)>;

/// Version of the ABI: raised when a function or structure changes in a way that an old caller would notice.
pub const LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION: u32 = 1;

/// Settings of a recording. Made by `llama_resource_instrumentation_default_params`; fields are only ever added
/// at the end.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug)]
pub struct llama_resource_instrumentation_params {
    /// `LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION` of the header that the program was compiled against.
    pub abi_version: u32,
    /// Bytes of this structure.
    pub size: u32,
    /// 0, 1, 2; negative: from LLAMA_RESOURCE_LOG_LEVEL.
    pub level: i32,
    /// Whether the hooks see what llama.cpp does, if they are reached (this library comes before libllama in the link
    /// order, or is preloaded). False: marks and the eval callback only.
    pub hooks: bool,
    /// The log; NULL: from LLAMA_RESOURCE_LOG_PATH. Copied.
    pub log_path: *const c_char,
    /// Bytes a second that the log may grow; 0: from LLAMA_RESOURCE_LOG_RATE or by level; negative: no limit.
    pub log_rate: i64,
    /// Whether a mark waits for the writer when its thread is too far ahead (a second at most), so that none is
    /// dropped. False: it is dropped and counted.
    pub wait: bool,
}

impl llama_resource_instrumentation_params {
    const DEFAULT: Self = Self {
        abi_version: LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION,
        size: size_of::<Self>() as u32,
        level: -1,
        hooks: true,
        log_path: std::ptr::null(),
        log_rate: 0,
        wait: false,
    };
}

/// What was marked since recording began. Once everything is flushed, `events_seen` is the sum of the other three.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, Default)]
pub struct llama_resource_instrumentation_statistics {
    /// Calls that were in order.
    pub events_seen: u64,
    /// Lines in the log.
    pub events_written: u64,
    /// Left out because a ring was full or the log's rate was reached.
    pub events_dropped: u64,
    /// Left out by the level.
    pub events_left_out: u64,
}

/// Begins recording at `level` (0, 1, 2; negative: from LLAMA_RESOURCE_LOG_LEVEL) into the file `log_path` (NULL: from
/// LLAMA_RESOURCE_LOG_PATH). An existing file is appended to. A second call changes nothing and says so.
///
/// # Safety
/// `log_path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_init(
    level: i32,
    log_path: *const c_char,
) -> llama_resource_instrumentation_status {
    let params =
        llama_resource_instrumentation_params { level, log_path, ..llama_resource_instrumentation_params::DEFAULT };
    // SAFETY: the caller's promise.
    catching(Status::Internal, || unsafe { begin("llama_resource_instrumentation_init", &params) })
}

/// Begins recording with `params`, which is only read during the call.
///
/// # Safety
/// `params` is NULL or points to a structure of `params->size` bytes; its `log_path` is NULL or
/// a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_init_with_params(
    params: *const llama_resource_instrumentation_params,
) -> llama_resource_instrumentation_status {
    const NAME: &str = "llama_resource_instrumentation_init_with_params";
    catching(Status::Internal, || {
        // SAFETY: the caller's promise, checked for NULL there.
        let params = unsafe { versioned(NAME, params, llama_resource_instrumentation_params::DEFAULT) };
        // SAFETY: the caller's promise.
        params.map_or_else(|status| status, |params| unsafe { begin(NAME, &params) })
    })
}

/// Ends recording: totals are written and the log is closed. May be called again; a later init starts a new session. A
/// recording that the environment began (LD_PRELOAD, or a build that follows it) is not the program's to end: it is
/// flushed, goes on, and the answer is ALREADY_RUNNING.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_free() -> llama_resource_instrumentation_status {
    catching(Status::Internal, || match session::stop_own() {
        None => refused("llama_resource_instrumentation_free", mark::refusal()),
        Some(Mode::Preload | Mode::Linked) => Status::AlreadyRunning,
        Some(Mode::Api | Mode::ApiWithoutHooks) => Status::Success,
    })
}

/// Waits until every event so far is in the file.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_flush() -> llama_resource_instrumentation_status {
    catching(Status::Internal, || match (session::is_running(), session::flush()) {
        (false, _) => refused("llama_resource_instrumentation_flush", mark::refusal()),
        (true, true) => Status::Success,
        (true, false) => Status::Io,
    })
}

/// Changes the level from the next event on.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_set_level(level: i32) -> llama_resource_instrumentation_status {
    const NAME: &str = "llama_resource_instrumentation_set_level";
    catching(Status::Internal, || match u8::try_from(level).ok().and_then(Level::from_number) {
        None => refused(NAME, Refusal::Invalid("a level is 0, 1 or 2")),
        Some(_) if !session::is_running() => refused(NAME, mark::refusal()),
        Some(level) => {
            journal::set_level(level);
            Status::Success
        }
    })
}

/// Writes events again after `llama_resource_instrumentation_disable`.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_enable() -> llama_resource_instrumentation_status {
    catching(Status::Internal, || pause("llama_resource_instrumentation_enable", false))
}

/// Writes no event until `llama_resource_instrumentation_enable`. Spans may begin and end meanwhile; memory, cache and
/// totals stay right.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_disable() -> llama_resource_instrumentation_status {
    catching(Status::Internal, || pause("llama_resource_instrumentation_disable", true))
}

/// Whether a recording is on, paused or not. What the macros ask first.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_is_recording() -> bool {
    boundary::recording()
}

/// Counts of the caller's own events. Writes at most `size` bytes, so that an older program gets what it knows. Before
/// the first init and after free the last counts are given with NOT_RUNNING.
///
/// # Safety
/// `statistics` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_get_statistics(
    statistics: *mut llama_resource_instrumentation_statistics,
    size: usize,
) -> llama_resource_instrumentation_status {
    catching(Status::Internal, || {
        if statistics.is_null() || size == 0 {
            return refused("llama_resource_instrumentation_get_statistics", Refusal::Invalid(NULL));
        }
        if boundary::in_forked_child() {
            return Status::Unavailable;
        }
        let s = mark::ring::statistics();
        let given = llama_resource_instrumentation_statistics {
            events_seen: s.seen,
            events_written: s.written,
            events_dropped: s.dropped,
            events_left_out: s.left_out,
        };
        // SAFETY: the caller's promise; both are plain numbers.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const given).cast::<u8>(),
                statistics.cast(),
                size.min(size_of_val(&given)),
            );
        }
        if boundary::recording() { Status::Success } else { Status::NotRunning }
    })
}

/// Version of the library, `MAJOR.MINOR.PATCH`. Never NULL, never freed.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Version of the ABI; compare with `LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_abi_version() -> u32 {
    LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION
}

/// A status in words. Never NULL, never freed; a number that is no status gives "unknown status".
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_status_to_string(status: i32) -> *const c_char {
    let text = match status {
        0 => c"success",
        1 => c"recording was on already",
        2 => c"recording is switched off",
        3 => c"dropped: the thread is too far ahead of the writer",
        -1 => c"invalid argument",
        -2 => c"no recording is on",
        -3 => c"the log cannot be opened or written",
        -4 => c"internal failure",
        -5 => c"wrong order of calls",
        -6 => c"too many open layers and components",
        -7 => c"tensors of this ggml cannot be read",
        -8 => c"this process cannot record",
        -9 => c"the program was compiled against another version of the header",
        _ => c"unknown status",
    };
    text.as_ptr()
}

/// Sends this library's messages to `callback` instead of stderr; NULL puts stderr back. `user_data` is handed
/// to each call.
///
/// # Safety
/// `callback` must stay valid, with `user_data`, until it is replaced; it may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_set(
    callback: llama_resource_instrumentation_log_callback,
    user_data: *mut c_void,
) {
    catching((), || log::set_callback(callback, user_data as usize));
}

const NULL: &str = "an argument is NULL";

/// Tells a refusal once for each function and reason, and gives its status.
#[cold]
fn refused(function: &'static str, refusal: Refusal) -> Status {
    mark::tell(function, refusal);
    match refusal {
        Refusal::NotRunning => Status::NotRunning,
        Refusal::Disabled => Status::Disabled,
        Refusal::Invalid(_) => Status::InvalidArgument,
        Refusal::WrongOrder(_) => Status::WrongOrder,
        Refusal::TooDeep => Status::TooDeep,
        Refusal::Unreadable(_) => Status::TensorUnreadable,
        Refusal::Unavailable => Status::Unavailable,
    }
}

/// Runs the body of a mark.
#[inline]
fn marked(function: &'static str, body: impl FnOnce() -> mark::Answer) -> Status {
    catching(Status::Internal, || match body() {
        Ok(Done::Recorded | Done::LeftOut) => Status::Success,
        Ok(Done::Dropped) => Status::Dropped,
        Err(refusal) => refused(function, refusal),
    })
}

fn pause(function: &'static str, on: bool) -> Status {
    if !session::is_running() {
        return refused(function, mark::refusal());
    }
    journal::set_paused(on);
    Status::Success
}

/// A structure of the caller that begins with ABI version and size, completed with the defaults of what its version
/// does not have.
///
/// # Safety
/// `given` is NULL or points to two u32, the version and the size, and to `size` readable bytes.
unsafe fn versioned<T: Copy>(function: &'static str, given: *const T, mut full: T) -> Result<T, Status> {
    if given.is_null() {
        return Err(refused(function, Refusal::Invalid(NULL)));
    }
    // SAFETY: the caller's promise.
    let [version, size] = unsafe { given.cast::<[u32; 2]>().read_unaligned() };
    if version != LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION {
        mark::tell(function, Refusal::Invalid("the program was compiled against another version of the header"));
        return Err(Status::AbiMismatch);
    }
    if (size as usize) < size_of::<[u32; 2]>() {
        return Err(refused(
            function,
            Refusal::Invalid("`size` is not that of the structure; use its default function"),
        ));
    }
    let known = (size as usize).min(size_of::<T>());
    // SAFETY: the caller's promise: `size` bytes; every field is a number, a boolean or a pointer, and 0 or 1 is all
    // that C writes to a bool.
    unsafe { std::ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut full).cast::<u8>(), known) };
    Ok(full)
}

/// # Safety
/// `params.log_path` is NULL or a NUL-terminated string.
unsafe fn begin(function: &'static str, params: &llama_resource_instrumentation_params) -> Status {
    if boundary::in_forked_child() || boundary::phase() == boundary::Phase::Poisoned {
        return refused(function, Refusal::Unavailable);
    }
    let (mut config, warnings) = session::from_environment();
    if params.level >= 0 {
        match u8::try_from(params.level).ok().and_then(Level::from_number) {
            Some(level) => config.level = level,
            None => {
                return refused(function, Refusal::Invalid("a level is 0, 1 or 2, or negative for the environment's"));
            }
        }
    }
    if !params.log_path.is_null() {
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(params.log_path) };
        if path.is_empty() {
            return refused(function, Refusal::Invalid("the path of the log is empty"));
        }
        config.log_path = OsStr::from_bytes(path.to_bytes()).into();
    }
    match params.log_rate {
        0 => {}
        n => config.rate = Some(u64::try_from(n).map_or(Rate::Unlimited, Rate::Limited)),
    }
    warnings.iter().for_each(log::warn);
    let mode = if params.hooks { Mode::Api } else { Mode::ApiWithoutHooks };
    match session::start(&config, mode) {
        Ok(Started::Now) => {
            mark::ring::set_waits(params.wait);
            Status::Success
        }
        Ok(Started::Already) => Status::AlreadyRunning,
        Ok(Started::Disabled) => Status::Disabled,
        Err(e) => {
            log::error(e.to_string());
            Status::Io
        }
    }
}
