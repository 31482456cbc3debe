//! How a thread of ours is made in a host: no signal of the host reaches it, it has a name and a low weight, and its
//! panics end here.

use std::ffi::CString;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::shared::Shared;
use crate::error::{Error, Result};
use crate::{boundary, host};

/// Ends the stream when a thread is gone that should not be.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::new("writing", "the stream", "an internal failure", "please report this"));
        }
    }
}

/// Starts `body` on a thread called `name` (at most 15 bytes).
pub(super) fn spawn(
    shared: &Arc<Shared>,
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let kernel_name = CString::new(name.as_str()).unwrap_or_default();
    // The new thread inherits the mask.
    let old = host::block_signals();
    let handle = Builder::new().name(name).stack_size(1 << 20).spawn(move || {
        boundary::mark_own_thread();
        host::become_background_thread(&kernel_name);
        boundary::catching((), || {
            let _alarm = Alarm(shared);
            body();
        });
    });
    host::restore_signals(&old);
    handle.map_err(|e| Error::new("starting", "a thread of the capture", e, "raise the limit of threads (ulimit -u)"))
}
