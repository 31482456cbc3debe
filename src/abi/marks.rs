//! The C API's marks: sessions, layers, components, operations, tokens. What they do is in `mark`.

use std::ffi::{CStr, c_char};

use super::{NULL, llama_resource_instrumentation_status, marked};
use crate::ggml::bindings::ggml_tensor;
use crate::ggml::view::TensorPtr;
use crate::mark::{Refusal, spans, tensor};

/// # Safety
/// `text` is NULL or a NUL-terminated string that lives as long as the answer is used.
unsafe fn name<'a>(text: *const c_char) -> Result<&'a str, Refusal> {
    if text.is_null() {
        return Err(Refusal::Invalid(NULL));
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Refusal::Invalid("a name is not valid UTF-8"))
}

/// # Safety
/// `t` is NULL or points to a live tensor.
unsafe fn checked(t: *const ggml_tensor) -> Result<TensorPtr, Refusal> {
    // SAFETY: the caller's promise.
    unsafe { tensor::checked(t.cast()) }
}

/// Names the events that follow, on all threads, until the session ends. An open session is ended
/// first, with WRONG_ORDER.
///
/// # Safety
/// `session_id` is NULL or a NUL-terminated string: UTF-8, 1 to 255 bytes. Copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_begin_session(
    session_id: *const c_char,
) -> llama_resource_instrumentation_status {
    // SAFETY: the caller's promise.
    marked("llama_resource_instrumentation_begin_session", || spans::begin_session(unsafe { name(session_id) }?))
}

/// Ends the session: its totals go into the log. What is open on the calling thread is ended too, with WRONG_ORDER.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_end_session() -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_end_session", spans::end_session)
}

/// Begins a layer on the calling thread, within a session. Layers and components nest freely.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_begin_layer(layer_id: i32) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_begin_layer", || spans::begin_layer(layer_id))
}

/// Ends the innermost layer of this number on the calling thread. What is open inside it is ended
/// too, with WRONG_ORDER.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_end_layer(layer_id: i32) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_end_layer", || spans::end_layer(layer_id))
}

/// Begins a component ("attention", "mlp", ...) on the calling thread, within a session.
///
/// # Safety
/// `component` is NULL or a NUL-terminated string: UTF-8, 1 to 127 bytes. Copied. The same for every name below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_begin_component(
    component: *const c_char,
) -> llama_resource_instrumentation_status {
    // SAFETY: the caller's promise.
    marked("llama_resource_instrumentation_begin_component", || spans::begin_component(unsafe { name(component) }?))
}

/// Ends the innermost component of this name on the calling thread. What is open inside it is ended
/// too, with WRONG_ORDER.
///
/// # Safety
/// As for `llama_resource_instrumentation_begin_component`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_end_component(
    component: *const c_char,
) -> llama_resource_instrumentation_status {
    // SAFETY: the caller's promise.
    marked("llama_resource_instrumentation_end_component", || spans::end_component(unsafe { name(component) }?))
}

/// Memory was given to `tensor`. If `resource_id` is not NULL, the event's id is
/// written there, cut to `resource_id_size` bytes with its NUL (300 are always
/// enough), for `llama_resource_instrumentation_log_memory_deallocation`.
///
/// # Safety
/// `tensor` is NULL or a live tensor; `resource_id` is NULL or points to `resource_id_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_memory_allocation(
    tensor: *const ggml_tensor,
    component: *const c_char,
    resource_id: *mut c_char,
    resource_id_size: usize,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_memory_allocation", || {
        // SAFETY: the caller's promise.
        let component = unsafe { name(component) }?;
        // Before the tensor is looked at: that may be the first time, and takes a while.
        crate::mark::gate()?;
        // SAFETY: the caller's promise.
        let t = unsafe { checked(tensor) }?;
        if resource_id.is_null() || resource_id_size == 0 {
            return spans::allocation(&t, component, None);
        }
        let mut id = String::new();
        let answer = spans::allocation(&t, component, Some(&mut id));
        let n = id.floor_char_boundary(resource_id_size - 1);
        // SAFETY: the caller's promise: `n` and the NUL fit.
        unsafe { std::ptr::copy_nonoverlapping(id.as_ptr(), resource_id.cast(), n) };
        // SAFETY: as above.
        unsafe { resource_id.add(n).write(0) };
        answer
    })
}

/// The memory of an allocation was given back.
///
/// # Safety
/// `resource_id` is NULL or a NUL-terminated string: UTF-8, 1 to 255 bytes. Copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_memory_deallocation(
    resource_id: *const c_char,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_memory_deallocation", || {
        // SAFETY: the caller's promise.
        spans::deallocation(unsafe { name(resource_id) }?)
    })
}

/// `operation` of `component` made `output` out of `n_inputs` tensors (0 to 1024; `inputs` may be NULL for 0). Shapes,
/// types, sizes and device are read from the tensors during the call; the graph need not have run.
///
/// # Safety
/// `inputs` points to `n_inputs` pointers; each of them and `output` is NULL or a live tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_compute_operation(
    operation: *const c_char,
    component: *const c_char,
    inputs: *const *const ggml_tensor,
    n_inputs: usize,
    output: *const ggml_tensor,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_compute_operation", || {
        // SAFETY: the caller's promise.
        let (operation, component) = unsafe { (name(operation)?, name(component)?) };
        if (inputs.is_null() && n_inputs > 0) || n_inputs > crate::mark::MAX_INPUTS {
            return Err(Refusal::Invalid("inputs are NULL, or more than 1024"));
        }
        crate::mark::gate()?;
        // SAFETY: the caller's promise.
        let output = unsafe { checked(output) }?;
        // SAFETY: the caller's promise; NULL is no slice, not even an empty one.
        let inputs = if n_inputs == 0 { &[] } else { unsafe { std::slice::from_raw_parts(inputs, n_inputs) } };
        // SAFETY: the caller's promise.
        inputs.iter().try_for_each(|&t| unsafe { checked(t) }.map(drop))?;
        // SAFETY: as above; each was checked in the line before.
        let tensors = inputs.iter().filter_map(|&t| unsafe { checked(t) }.ok());
        spans::compute(operation, component, n_inputs, tensors, &output)
    })
}

/// A matrix multiplication of a feed-forward block ("gate_proj", "up_proj", "down_proj") made
/// `activations` with `weights`.
///
/// # Safety
/// Each tensor is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_mlp_operation(
    operation: *const c_char,
    weights: *const ggml_tensor,
    activations: *const ggml_tensor,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_mlp_operation", || {
        // SAFETY: the caller's promise.
        let operation = unsafe { name(operation) }?;
        crate::mark::gate()?;
        // SAFETY: the caller's promise.
        let (weights, activations) = unsafe { (checked(weights)?, checked(activations)?) };
        spans::mlp(operation, &weights, &activations)
    })
}

/// The KV cache of a layer (negative: of all) changed ("allocate", "update", "evict"); `cache_size_bytes` is
/// the caller's number.
///
/// # Safety
/// `operation` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_kv_cache_operation(
    layer_id: i32,
    operation: *const c_char,
    cache_size_bytes: usize,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_kv_cache_operation", || {
        // SAFETY: the caller's promise.
        spans::cache(layer_id, unsafe { name(operation) }?, cache_size_bytes as u64)
    })
}

/// One component hands over to another. Its size is that of the last result that was logged in `from` on
/// the calling thread.
///
/// # Safety
/// Each name is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_log_component_handoff(
    from: *const c_char,
    to: *const c_char,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_log_component_handoff", || {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (name(from)?, name(to)?) };
        spans::handoff(from, to)
    })
}

/// A token was generated for sequence `seq_id`. Its id is written only with LLAMA_RESOURCE_LOG_TEXT=1; the event is
/// of level VERBOSE.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_record_token(
    seq_id: i32,
    token_id: i32,
) -> llama_resource_instrumentation_status {
    marked("llama_resource_instrumentation_record_token", || spans::token(seq_id, token_id))
}
