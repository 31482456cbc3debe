//! The C API: every exported function that is not a hook. Bodies are short; what they do is in the parts.
//!
//! Conventions (docs/C-API.md): names `llama_resource_instrumentation_<what>`, status codes with 0 for success, every pointer checked,
//! nothing aborts, callable from any thread. The header in include/ is generated from this file.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;

use crate::boundary::guard;
use crate::format::Level;
use crate::session::{self, Mode, Started};
use crate::{log, record};

/// What a function answers. 0 is success, positive numbers are no failures, negative ones are. Numbers are never reused.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum llama_resource_instrumentation_status {
    /// Done.
    Success = 0,
    /// Recording was on already; the call changed nothing.
    AlreadyRunning = 1,
    /// LLAMA_RESOURCE_DISABLED is set; nothing is recorded, and every other call succeeds without effect.
    Disabled = 2,
    /// An argument is NULL, out of range or not valid UTF-8.
    InvalidArgument = -1,
    /// No recording is on.
    NotRunning = -2,
    /// The log cannot be opened or written; the reason went to the log callback.
    Io = -3,
    /// An internal failure; recording has ended and the host goes on.
    Internal = -4,
}

use llama_resource_instrumentation_status as Status;

/// Levels, as numbers for C.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum llama_resource_instrumentation_level {
    /// Sessions, model, buffers, large allocations, requests, interval summaries, matrix multiplications of sampled steps.
    Minimal = 0,
    /// Adds batches, components, layers, MLP operations, norms, activations, hand-offs, KV-cache operations.
    Detailed = 1,
    /// Adds every operation of a sampled step and per-token events.
    Verbose = 2,
}

/// Receives this library's messages: a level of ggml (2 info, 3 warning, 4 error), one line of text, and the caller's pointer.
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type llama_resource_instrumentation_log_callback =
    Option<unsafe extern "C" fn(level: i32, text: *const c_char, user_data: *mut c_void)>;

/// Version of the ABI: raised when a function or structure changes in a way that an old caller would notice.
pub const LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION: u32 = 1;

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
    guard(Status::Internal, || {
        let (mut config, warnings) = session::from_environment();
        warnings.iter().for_each(log::warn);
        if level >= 0 {
            match u8::try_from(level).ok().and_then(Level::from_number) {
                Some(level) => config.level = level,
                None => return Status::InvalidArgument,
            }
        }
        if !log_path.is_null() {
            // SAFETY: the caller's promise.
            let path = unsafe { CStr::from_ptr(log_path) };
            if path.is_empty() {
                return Status::InvalidArgument;
            }
            config.log_path = OsStr::from_bytes(path.to_bytes()).into();
        }
        match session::start(&config, Mode::Api) {
            Ok(Started::Now) => Status::Success,
            Ok(Started::Already) => Status::AlreadyRunning,
            Ok(Started::Disabled) => Status::Disabled,
            Err(e) => {
                log::error(e.to_string());
                Status::Io
            }
        }
    })
}

/// Ends recording: totals are written and the log is closed. May be called again; a later init starts a new session.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_free() -> llama_resource_instrumentation_status {
    guard(Status::Internal, || if session::stop() { Status::Success } else { Status::NotRunning })
}

/// Waits until every event so far is in the file.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_flush() -> llama_resource_instrumentation_status {
    guard(Status::Internal, || match (session::is_running(), session::flush()) {
        (false, _) => Status::NotRunning,
        (true, true) => Status::Success,
        (true, false) => Status::Io,
    })
}

/// Changes the level from the next event on.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_set_level(level: i32) -> llama_resource_instrumentation_status {
    guard(Status::Internal, || match u8::try_from(level).ok().and_then(Level::from_number) {
        None => Status::InvalidArgument,
        Some(_) if !session::is_running() => Status::NotRunning,
        Some(level) => {
            record::set_level(level);
            Status::Success
        }
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
        2 => c"disabled by LLAMA_RESOURCE_DISABLED",
        -1 => c"invalid argument",
        -2 => c"no recording is on",
        -3 => c"the log cannot be opened or written",
        -4 => c"internal failure",
        _ => c"unknown status",
    };
    text.as_ptr()
}

/// Sends this library's messages to `callback` instead of stderr; NULL puts stderr back. `user_data` is handed to each call.
///
/// # Safety
/// `callback` must stay valid, with `user_data`, until it is replaced; it may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_set(
    callback: llama_resource_instrumentation_log_callback,
    user_data: *mut c_void,
) {
    guard((), || log::set_callback(callback, user_data as usize));
}
