//! The C API of activation streams: settings by name, the running account, tokens that the caller chose.

use std::ffi::{CStr, c_char};

use super::{NULL, Status, llama_resource_instrumentation_status, refused};
use crate::boundary::{self, catching};
use crate::mark::Refusal;
use crate::{capture, clock, log, mark, session};

/// What became of the activations that the selection wanted. Once the stream is closed, `seen` is the sum of
/// the other three.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug, Default)]
pub struct llama_resource_instrumentation_capture_statistics {
    /// Tensors that the selection wanted; one counts once a step.
    pub seen_tensors: u64,
    /// Their bytes.
    pub seen_bytes: u64,
    /// Tensors in the file.
    pub captured_tensors: u64,
    /// Their bytes before encoding.
    pub captured_bytes: u64,
    /// Tensors left out as asked (stride, requests), or because they cannot be had.
    pub skipped_tensors: u64,
    /// Their bytes.
    pub skipped_bytes: u64,
    /// Tensors lost (memory, disk).
    pub dropped_tensors: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// Bytes of the stream so far.
    pub file_bytes: u64,
}

/// Sets a setting for the next init, by the name of its environment variable ("LLAMA_RESOURCE_CAPTURE",
/// "LLAMA_RESOURCE_TENSORS", ...; all of docs/CONFIGURATION.md), ahead of the environment. NULL as value takes it back.
/// A recording that is on keeps the settings that it began with: the answer is then ALREADY_RUNNING, and the setting
/// holds for the next init.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string; so is `value`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_set(
    name: *const c_char,
    value: *const c_char,
) -> llama_resource_instrumentation_status {
    const NAME: &str = "llama_resource_instrumentation_set";
    catching(Status::Internal, || {
        if name.is_null() {
            return refused(NAME, Refusal::Invalid(NULL));
        }
        if boundary::in_forked_child() {
            return Status::Unavailable;
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) };
        // SAFETY: the caller's promise; NULL is not asked.
        let value = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) });
        let (Ok(name), Ok(value)) = (name.to_str(), value.map(CStr::to_str).transpose()) else {
            return refused(NAME, Refusal::Invalid("an argument is not UTF-8"));
        };
        match session::set(name, value) {
            Ok(()) if session::is_running() => {
                mark::tell(
                    NAME,
                    Refusal::WrongOrder("a recording is on and keeps its settings: this one holds for the next init"),
                );
                Status::AlreadyRunning
            }
            Ok(()) => Status::Success,
            Err(problem) => {
                log::error(format!("{NAME}: {name}: {problem}"));
                Status::InvalidArgument
            }
        }
    })
}

/// The running account of the stream, all zero before the first step. Writes at most `size` bytes, so that an older
/// program gets what it knows. NOT_RUNNING while no activations are captured. `seen` is the sum of the others after a
/// flush, if no other thread computes.
///
/// # Safety
/// `statistics` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_get_capture_statistics(
    statistics: *mut llama_resource_instrumentation_capture_statistics,
    size: usize,
) -> llama_resource_instrumentation_status {
    const NAME: &str = "llama_resource_instrumentation_get_capture_statistics";
    catching(Status::Internal, || {
        if statistics.is_null() || size == 0 {
            return refused(NAME, Refusal::Invalid(NULL));
        }
        if boundary::in_forked_child() {
            return Status::Unavailable;
        }
        let Some((counts, file_bytes)) = capture::account() else { return nothing_captured(NAME) };
        let (skipped, dropped) = (counts.all_skipped(), counts.all_dropped());
        let given = llama_resource_instrumentation_capture_statistics {
            seen_tensors: counts.seen.tensors,
            seen_bytes: counts.seen.bytes,
            captured_tensors: counts.captured.tensors,
            captured_bytes: counts.captured.bytes,
            skipped_tensors: skipped.tensors,
            skipped_bytes: skipped.bytes,
            dropped_tensors: dropped.tensors,
            dropped_bytes: dropped.bytes,
            file_bytes,
        };
        // SAFETY: the caller's promise; both are plain numbers.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const given).cast::<u8>(),
                statistics.cast(),
                size.min(size_of_val(&given)),
            );
        }
        Status::Success
    })
}

/// Writes a token that the caller chose into the stream and its tokens file: for hosts whose sampling the hooks do not
/// see. `text` is NULL or its text, `position` its position in sequence `seq_id` (negative: not known), `probability`
/// negative where not known.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_instrumentation_track_token(
    seq_id: i32,
    position: i32,
    token_id: i32,
    text: *const c_char,
    probability: f32,
) -> llama_resource_instrumentation_status {
    const NAME: &str = "llama_resource_instrumentation_track_token";
    catching(Status::Internal, || {
        if !boundary::recording() {
            return refused(NAME, mark::refusal());
        }
        // SAFETY: the caller's promise; NULL is not asked.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into());
        let probability = (0.0..=1.0).contains(&probability).then_some(probability);
        if capture::track(seq_id, position, token_id, probability, clock::now_ns(), text) {
            Status::Success
        } else {
            nothing_captured(NAME)
        }
    })
}

/// Tells, once, what a capture needs.
#[cold]
fn nothing_captured(function: &'static str) -> Status {
    let recording = boundary::recording();
    let nothing = "no activations are captured: set LLAMA_RESOURCE_CAPTURE before init";
    mark::tell(function, if recording { Refusal::WrongOrder(nothing) } else { mark::refusal() });
    Status::NotRunning
}
