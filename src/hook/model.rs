//! Models and contexts: loaded, made, freed.

use std::ffi::{CStr, c_char};

use super::{ByValue, Ptr};
use crate::observe::forwarding::is_forwarded;
use crate::observe::models::Loading;
use crate::observe::{lives, models};
use crate::session;

fn c_str<'a>(p: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the host passes null or a NUL-terminated path that lives through the call.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) })
}

/// A load begins; `None` for a call that an older one has forwarded.
pub(super) fn load_begins(path: *const c_char) -> Option<Loading> {
    session::is_no_router();
    (!is_forwarded()).then(|| models::begin(c_str(path)))
}

pub(super) fn load_ends(loading: Option<Loading>, model: Ptr) {
    if let Some(loading) = loading {
        // SAFETY: what the real function has just given the host.
        unsafe { models::end(loading, model) }
    }
}

hooks! {
    /// A model file is loaded. With `--fit` llama-server loads it twice, the first time without weights.
    fn llama_model_load_from_file(path: *const c_char, params: ByValue<64>) -> Ptr;
    before {
        load_begins(path)
    }
    after |loading, model| { load_ends(loading, *model) }

    /// A model in several files.
    fn llama_model_load_from_splits(paths: *mut *const c_char, n_paths: usize, params: ByValue<64>) -> Ptr;
    before {
        // SAFETY: the host passes an array of n_paths paths.
        load_begins(if paths.is_null() || n_paths == 0 { std::ptr::null() } else { unsafe { *paths } })
    }
    after |loading, model| { load_ends(loading, *model) }

    /// A context is made: its KV cache, compute and output buffers are allocated inside.
    fn llama_init_from_model(model: Ptr, params: ByValue<64>) -> Ptr;
    before { session::is_no_router() }
    after |(), ctx| { lives::context_made(*ctx) }

    /// A context is freed: before the real call, while its requests can still be told.
    fn llama_free(ctx: Ptr);
    before {
        lives::context_freed(ctx);
    }
}
