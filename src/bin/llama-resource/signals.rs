//! Signals while `run --report` waits: Ctrl-C is the command's business, and SIGTERM is passed on to it. While
//! `doctor --tensors` or `bench` waits, both end the waiting.
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

/// Sends a pending signal to the command, if it runs. Called by the handler and by [`forward_to`], so that neither
/// order loses it.
fn pass_on() {
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        let signal = PENDING.swap(0, Ordering::SeqCst);
        if signal != 0 {
            // SAFETY: `kill` takes two integers and is async-signal-safe (POSIX). The child is not reaped before we
            // exit the wait.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// Only remembers the signal.
extern "C" fn on_either(signal: libc::c_int) {
    PENDING.store(signal, Ordering::SeqCst);
}

/// From here on Ctrl-C and SIGTERM are only remembered: see [`caught`].
pub fn catch() {
    handle([(libc::SIGINT, on_either), (libc::SIGTERM, on_either)]);
}

/// Whether a signal came since [`catch`].
pub fn caught() -> bool {
    PENDING.load(Ordering::SeqCst) != 0
}

/// Ends every process of a group that we made: asks, or if `now` does not ask.
pub fn end_group(leader: u32, now: bool) {
    if let Ok(group) = libc::pid_t::try_from(leader)
        && group > 1
    {
        // SAFETY: `kill` takes two integers; a group that is gone is an error that does not matter.
        unsafe { libc::kill(-group, if now { libc::SIGKILL } else { libc::SIGTERM }) };
    }
}

/// The command will be killed when the thread that starts it ends, however that happens: a server must not
/// outlive its benchmark.
pub fn end_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let hook = || {
        // SAFETY: `prctl` with integers only, async-signal-safe, in the child before exec.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: the hook makes one system call; it neither allocates nor locks.
    unsafe { command.pre_exec(hook) };
}

/// Keeps this process alive from here on.
pub fn hold() {
    handle([(libc::SIGINT, on_interrupt), (libc::SIGTERM, on_terminate)]);
}

fn handle(handlers: [(libc::c_int, extern "C" fn(libc::c_int)); 2]) {
    for (signal, handler) in handlers {
        #[expect(clippy::fn_to_numeric_cast_any, reason = "signal() takes the handler as a number")]
        let handler = handler as *const () as libc::sighandler_t;
        // SAFETY: the handlers only load and store atomics and call `kill`, all async-signal-safe; libc installs
        // them with SA_RESTART.
        unsafe { libc::signal(signal, handler) };
    }
}

/// From here on SIGTERM goes to this process too, and one that came earlier is delivered.
pub fn forward_to(child: u32) {
    CHILD.store(i32::try_from(child).unwrap_or(0), Ordering::SeqCst);
    pass_on();
}
