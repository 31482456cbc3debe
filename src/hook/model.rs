//! Models and contexts: loaded, made, freed.

use std::ffi::{CStr, c_char};

use super::{ByValue, Ptr};
use crate::clock;
use crate::observe::{self, models};
use crate::session;

fn c_str<'a>(p: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the host passes null or a NUL-terminated path that lives through the call.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) })
}

hooks! {
    /// A model file is loaded. With `--fit` llama-server loads it twice, the first time without weights.
    fn llama_model_load_from_file(path: *const c_char, params: ByValue<64>) -> Ptr;
    before {
        session::is_no_router();
        Some(models::begin(c_str(path)))
    }
    after |loading, model| {
        if let Some(l) = loading {
            // SAFETY: what the real function has just given the host.
            unsafe { models::end(l, *model) }
        }
    }

    /// A model in several files.
    fn llama_model_load_from_splits(paths: *mut *const c_char, n_paths: usize, params: ByValue<64>) -> Ptr;
    before {
        session::is_no_router();
        // SAFETY: the host passes an array of n_paths paths.
        let first = if paths.is_null() || n_paths == 0 { None } else { c_str(unsafe { *paths }) };
        Some(models::begin(first))
    }
    after |loading, model| {
        if let Some(l) = loading {
            // SAFETY: what the real function has just given the host.
            unsafe { models::end(l, *model) }
        }
    }

    /// A context is made: its KV cache, compute and output buffers are allocated inside.
    fn llama_init_from_model(model: Ptr, params: ByValue<64>) -> Ptr;
    before { session::is_no_router() }
    after |(), ctx| {
        let mut host = observe::host();
        host.buffers.settle(true);
        if !ctx.is_null() {
            host.contexts.get(*ctx);
        }
    }

    /// A context is freed: before the real call, while its requests can still be told.
    fn llama_free(ctx: Ptr);
    before {
        // Null is allowed, as for `free`.
        if !ctx.is_null() {
            let mut host = observe::host();
            if let Some(serial) = host.contexts.known(ctx).map(|c| c.serial) {
                host.settle_sample(serial);
            }
            if let Some(mut old) = host.contexts.remove(ctx) {
                old.flush_batch();
                host.requests.end_all(Some(old.id), "context_freed", clock::now_ns());
            }
        }
    }
}
