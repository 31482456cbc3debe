//! The eval callback of the C API, for `llama_context_params.cb_eval`.

use std::ffi::c_void;

use super::{LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION, versioned};
use crate::boundary::{self, catching};
use crate::ggml::bindings::ggml_tensor;
use crate::mark::{self, tensor};
use crate::observe::eval::{self, Wants};
use crate::observe::recording;
use crate::{capture, clock, journal};

/// ggml's eval callback (`ggml_backend_sched_eval_callback`).
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub type llama_resource_eval_chained =
    Option<unsafe extern "C-unwind" fn(t: *mut ggml_tensor, ask: bool, user_data: *mut c_void) -> bool>;

/// User data of `llama_resource_eval_callback`: a callback of the caller's that is served as well. Made by
/// `llama_resource_eval_default_params`; must live as long as the context. Fields are only ever added at the end.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug)]
pub struct llama_resource_eval_params {
    /// `LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION` of the header that the program was compiled against.
    pub abi_version: u32,
    /// Bytes of this structure.
    pub size: u32,
    /// Asked for every node, and shown those that it asked for; NULL for none.
    pub callback: llama_resource_eval_chained,
    /// Handed to `callback`.
    pub user_data: *mut c_void,
}

const DEFAULT: llama_resource_eval_params = llama_resource_eval_params {
    abi_version: LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION,
    size: size_of::<llama_resource_eval_params>() as u32,
    callback: None,
    user_data: std::ptr::null_mut(),
};

/// For `llama_context_params.cb_eval`, with `cb_eval_user_data` NULL or a `struct llama_resource_eval_params *`.
/// Records every operation that runs, with its own time; each node then runs alone, which costs speed. Where the hooks
/// see the graphs it asks for nothing and only serves the caller's callback. Never cancels a graph, unless the
/// caller's callback does.
///
/// # Safety
/// Called by ggml with a node of a running graph; `user_data` is NULL or a live `struct llama_resource_eval_params`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn llama_resource_eval_callback(
    t: *mut ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // Theirs is called outside every guard: it may throw.
    // SAFETY: the caller's promise.
    let theirs = catching(None, || unsafe { chained(user_data) });
    if ask {
        // SAFETY: the caller's promise.
        let ours = catching(false, || unsafe { asks(t.cast()) });
        let Some((f, data)) = theirs else { return ours };
        catching(true, || eval::hand_over(false));
        // SAFETY: ggml's own arguments, and the caller's own pointer.
        let their = unsafe { f(t, true, data) };
        catching((), || eval::take_back(their));
        return ours || their;
    }
    // SAFETY: the caller's promise.
    catching((), || unsafe { shown(t.cast()) });
    match theirs {
        Some((f, data)) if catching(false, || eval::hand_over(true)) => {
            // SAFETY: as above.
            let goes_on = unsafe { f(t, false, data) };
            catching((), || eval::take_back(false));
            goes_on
        }
        // Carry on: `false` would cancel the graph.
        _ => true,
    }
}

/// Whether we want to see node `t`.
///
/// # Safety
/// `t` is null or a node of the graph that runs.
unsafe fn asks(t: *const c_void) -> bool {
    if !boundary::recording() || recording::seen_by_hooks() {
        return false;
    }
    let (timed, captured) = (!journal::paused(), capture::serial::current());
    if !timed && captured.is_none() {
        return false;
    }
    // SAFETY: the caller's promise.
    match unsafe { tensor::checked(t) } {
        Ok(t) => eval::ask(t, timed, captured.as_ref().map(|c| -> &dyn Wants { c })),
        Err(refusal) => {
            mark::tell("llama_resource_eval_callback", refusal);
            captured.iter().for_each(|c| capture::serial::refused(c));
            false
        }
    }
}

/// Node `t` was computed.
///
/// # Safety
/// As for [`asks`].
unsafe fn shown(t: *const c_void) {
    let end_ns = clock::now_ns();
    if !boundary::recording() {
        return;
    }
    // SAFETY: the caller's promise.
    if let Ok(t) = unsafe { tensor::checked(t) } {
        eval::shown(t, end_ns);
    }
}

type Chained = (unsafe extern "C-unwind" fn(*mut ggml_tensor, bool, *mut c_void) -> bool, *mut c_void);

/// # Safety
/// `user_data` is NULL or a live `struct llama_resource_eval_params`.
unsafe fn chained(user_data: *mut c_void) -> Option<Chained> {
    if user_data.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let params = unsafe { versioned("llama_resource_eval_callback", user_data.cast(), DEFAULT) };
    params.ok().and_then(|p: llama_resource_eval_params| Some((p.callback?, p.user_data)))
}
