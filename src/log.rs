//! One message = one line on stderr (or to the caller's callback), with our prefix. Used at start, at the end, and
//! once per failure.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use parking_lot::ReentrantMutex;

use crate::host;

/// Severity of a message; the numbers are ggml's (`GGML_LOG_LEVEL_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Severity {
    /// Information.
    Info = 2,
    /// Something is missing or was ignored.
    Warn = 3,
    /// Something failed.
    Error = 4,
}

/// ggml's log callback: level, text with a newline, user data.
pub type Callback = unsafe extern "C" fn(level: c_int, text: *const c_char, user_data: *mut c_void);

#[derive(Clone, Copy)]
struct Target {
    callback: Option<Callback>,
    user_data: usize,
}

/// Held while the callback runs, so that a replaced one is never in use; the callback itself may replace it.
static TARGET: ReentrantMutex<Cell<Target>> = ReentrantMutex::new(Cell::new(Target { callback: None, user_data: 0 }));

/// Where messages go; `None` is stderr. The pointer is kept as a number: we only hand it back.
pub fn set_callback(callback: Option<Callback>, user_data: usize) {
    TARGET.lock().set(Target { callback, user_data });
}

/// Logs information.
pub fn info(text: impl AsRef<str>) {
    say(Severity::Info, text.as_ref());
}

/// Says that something is missing or was ignored.
pub fn warn(text: impl AsRef<str>) {
    say(Severity::Warn, text.as_ref());
}

/// Says that something failed.
pub fn error(text: impl AsRef<str>) {
    say(Severity::Error, text.as_ref());
}

fn say(severity: Severity, text: &str) {
    // In a forked child the thread that holds the lock may be gone.
    let guard = TARGET.try_lock_for(Duration::from_secs(1));
    let target = guard.as_ref().map(|g| g.get());
    // A line break inside (a path, an OS message) would make two messages of one.
    let line = text.replace(char::is_control, " ");
    if let Some((callback, user_data)) = target.and_then(|t| Some((t.callback?, t.user_data))) {
        if let Ok(line) = CString::new(format!("llama-resource: {line}\n")) {
            call(callback, severity, &line, user_data);
        }
    } else if severity > Severity::Info {
        let word = match severity {
            Severity::Info => "",
            Severity::Warn => "warning: ",
            Severity::Error => "error: ",
        };
        host::write_stderr(format!("llama-resource: {word}{line}\n").as_bytes());
    }
}

#[expect(unsafe_code, reason = "calls the function pointer that the C caller handed over")]
fn call(callback: Callback, severity: Severity, line: &CString, user_data: usize) {
    // SAFETY: the caller of llama_resource_instrumentation_log_set promised a callback that is valid until replaced;
    // the text lives through the call.
    unsafe { callback(severity as c_int, line.as_ptr(), user_data as *mut c_void) };
}
