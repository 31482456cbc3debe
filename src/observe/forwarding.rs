//! Calls that newer builds of llama.cpp forward to another one which is hooked too: told once, by the outer one.

use std::cell::Cell;

thread_local! {
    /// A call runs that newer builds forward to one which is hooked too.
    static FORWARDS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a call comes from within another one that is hooked, and that will tell what happened.
#[must_use]
pub fn is_forwarded() -> bool {
    FORWARDS.get()
}

/// A call that may be forwarded, until it is over - also by a C++ exception.
#[derive(Debug)]
pub struct Forwarding {
    outermost: bool,
}

impl Forwarding {
    /// One begins.
    #[must_use]
    pub fn begin() -> Self {
        Self { outermost: !FORWARDS.replace(true) }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if self.outermost {
            FORWARDS.set(false);
        }
    }
}
