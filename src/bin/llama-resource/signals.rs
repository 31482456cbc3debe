//! Signals while `run --report` waits: Ctrl-C is the command's business, and SIGTERM is passed on to it.
//!
//! Handlers, not SIG_IGN: an ignored signal would stay ignored in the command, a handled one is reset by exec.

use std::sync::atomic::{AtomicI32, Ordering};

/// The command's process id; 0 before it runs.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// A SIGTERM that came before the command ran.
static PENDING: AtomicI32 = AtomicI32::new(0);

/// Ctrl-C reaches the command through the terminal's process group. We outlive it to show the report.
extern "C" fn on_interrupt(_: libc::c_int) {}

/// SIGTERM is sent to one process: to us.
extern "C" fn on_terminate(signal: libc::c_int) {
    PENDING.store(signal, Ordering::SeqCst);
    pass_on();
}

/// Sends a pending signal to the command, if it runs. Called by the handler and by [`forward_to`], so that neither order loses it.
fn pass_on() {
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        let signal = PENDING.swap(0, Ordering::SeqCst);
        if signal != 0 {
            // SAFETY: `kill` takes two integers and is async-signal-safe (POSIX). The child is not reaped before we exit the wait.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// Keeps this process alive from here on.
pub fn hold() {
    let handlers: [(libc::c_int, extern "C" fn(libc::c_int)); 2] =
        [(libc::SIGINT, on_interrupt), (libc::SIGTERM, on_terminate)];
    for (signal, handler) in handlers {
        #[expect(clippy::fn_to_numeric_cast_any, reason = "signal() takes the handler as a number")]
        let handler = handler as *const () as libc::sighandler_t;
        // SAFETY: both handlers only load and store atomics and call `kill`, all async-signal-safe; libc installs them with SA_RESTART.
        unsafe { libc::signal(signal, handler) };
    }
}

/// From here on SIGTERM goes to this process too, and one that came earlier is delivered.
pub fn forward_to(child: u32) {
    CHILD.store(i32::try_from(child).unwrap_or(0), Ordering::SeqCst);
    pass_on();
}
