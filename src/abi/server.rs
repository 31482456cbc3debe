//! What a llama-server that was built with patches/ tells: which task a slot works on and how it ends. No other
//! program needs these.

use std::ffi::{CStr, c_char, c_void};

use super::{LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION, llama_resource_instrumentation_status, versioned};
use crate::boundary::{catching, guarded};
use crate::observe;
use crate::observe::requests::served::{Launch, Release};
use crate::session::{self, Started};
use crate::{clock, log};
use llama_resource_instrumentation_status as Status;

/// What the server knows of a task when its slot is released. Made by `llama_resource_server_release_default`; fields
/// are only ever added at the end. Times are microseconds of one clock of the server's; 0 for what never happened.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
#[derive(Clone, Copy, Debug)]
pub struct llama_resource_server_release {
    /// `LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION` of the header that the program was compiled against.
    pub abi_version: u32,
    /// Bytes of this structure.
    pub size: u32,
    /// "eos", "word", "limit" or "none". Copied.
    pub stop_reason: *const c_char,
    /// Tokens of the whole prompt.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub prompt_cached: u64,
    /// Those that were computed.
    pub prompt_processed: u64,
    /// Generated tokens.
    pub generated: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Drafted tokens that were accepted.
    pub accepted: u64,
    /// Now.
    pub t_now_us: i64,
    /// Work on the prompt began.
    pub t_start_us: i64,
    /// The prompt was done, with the first token.
    pub t_prompt_last_us: i64,
    /// The last token.
    pub t_gen_last_us: i64,
}

const DEFAULT: llama_resource_server_release = llama_resource_server_release {
    abi_version: LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION,
    size: size_of::<llama_resource_server_release>() as u32,
    stop_reason: std::ptr::null(),
    prompt_tokens: 0,
    prompt_cached: 0,
    prompt_processed: 0,
    generated: 0,
    drafted: 0,
    accepted: 0,
    t_now_us: 0,
    t_start_us: 0,
    t_prompt_last_us: 0,
    t_gen_last_us: 0,
};

/// Begins recording if the environment asks for it (LLAMA_RESOURCE_LOG_PATH or LLAMA_RESOURCE_CAPTURE is set): what a
/// program calls first that is built to be switched on by its user. NOT_RUNNING if it asks for nothing, ALREADY_RUNNING
/// if LD_PRELOAD has begun.
#[unsafe(no_mangle)]
pub extern "C" fn llama_resource_instrumentation_init_from_environment() -> llama_resource_instrumentation_status {
    catching(Status::Internal, || match session::start_linked() {
        Ok(Some(Started::Now)) => Status::Success,
        Ok(Some(Started::Already)) => Status::AlreadyRunning,
        Ok(Some(Started::Disabled)) => Status::Disabled,
        Ok(None) => Status::NotRunning,
        Err(e) => {
            log::error(format!("{e}. Nothing is recorded; the host goes on"));
            Status::Io
        }
    })
}

/// A slot of llama-server begins to work on a task, `queued_us` microseconds after the task was made. `ctx` is
/// the slot's llama_context.
///
/// # Safety
/// `ctx` is NULL or a live context; `completion_id`, the id of the response, is NULL or a
/// NUL-terminated string. Copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_server_slot_launched(
    ctx: *const c_void,
    slot_id: i32,
    task_id: i32,
    completion_id: *const c_char,
    queued_us: i64,
) {
    guarded((), || {
        // SAFETY: the caller's promise.
        let completion_id = unsafe { text(completion_id) }.filter(|id| !id.is_empty());
        let launch = Launch { task_id, completion_id, queued_ns: nanoseconds(queued_us) };
        on_context(ctx, |host, id| host.requests.launched(id, slot_id, launch, clock::now_ns()));
    });
}

/// A slot will be released because its task was "cancelled" or met an "error".
///
/// # Safety
/// `ctx` is NULL or a live context; `why` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_server_slot_stops(ctx: *const c_void, slot_id: i32, why: *const c_char) {
    guarded((), || {
        // SAFETY: the caller's promise.
        let why = match unsafe { text(why) }.as_deref() {
            Some("cancelled") => "cancelled",
            _ => "error",
        };
        on_context(ctx, |host, id| host.requests.stops(id, slot_id, why));
    });
}

/// A slot of llama-server is released: its task is done, cancelled, or failed.
///
/// # Safety
/// `ctx` is NULL or a live context; `release` is NULL or points to a structure of `release->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llama_resource_server_slot_released(
    ctx: *const c_void,
    slot_id: i32,
    release: *const llama_resource_server_release,
) {
    guarded((), || {
        // SAFETY: the caller's promise.
        let Ok(r) = (unsafe { versioned("llama_resource_server_slot_released", release, DEFAULT) }) else { return };
        let since = |t_us: i64| (t_us > 0).then(|| nanoseconds(r.t_now_us - t_us));
        let release = Release {
            // SAFETY: the caller's promise.
            stop_reason: unsafe { text(r.stop_reason) }.unwrap_or_else(|| "none".to_owned()),
            prompt: r.prompt_tokens,
            cached: r.prompt_cached,
            processed: r.prompt_processed,
            generated: r.generated,
            drafted: r.drafted,
            accepted: r.accepted,
            since_start_ns: since(r.t_start_us),
            since_prompt_ns: since(r.t_prompt_last_us),
            since_last_ns: since(r.t_gen_last_us),
        };
        on_context(ctx, |host, id| {
            if host.requests.released(id, slot_id, release, clock::now_ns()) {
                host.contexts.get(ctx.cast_mut()).tell_usage("request_end", 0);
            }
        });
    });
}

fn on_context(ctx: *const c_void, f: impl FnOnce(&mut observe::Host, u64)) {
    if ctx.is_null() {
        return;
    }
    let mut host = observe::host();
    // What was sampled and not accepted belongs to what went before.
    let context = host.contexts.get(ctx.cast_mut());
    let (id, serial) = (context.id, context.serial);
    host.settle_sample(serial);
    f(&mut host, id);
}

fn nanoseconds(us: i64) -> u64 {
    u64::try_from(us).unwrap_or(0).saturating_mul(1000)
}

/// # Safety
/// `text` is NULL or a NUL-terminated string.
unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
