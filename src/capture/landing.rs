//! Where a device's values land: memory from the device's own backend, to which it copies at the speed of the bus while the host goes on.
//!
//! For CUDA that is page-locked memory. To any other the driver copies through memory of its own, and the host's thread waits for every
//! tensor. A backend that has no such memory, or no more of it, gets the pipeline's ordinary buffers.

use std::ptr::NonNull;
use std::sync::Once;
use std::time::Duration;

use crate::boundary;
use crate::ggml::api;
use crate::ggml::view::TensorPtr;
use crate::host::{self, Pages};
use crate::log;
use crate::pipeline::{Buffer, Pipeline};

/// Bytes of one piece: locking pages takes a millisecond or two, and the thread that waits for it is the host's.
const SLAB: usize = 8 << 20;

/// How long the end of the process waits until nobody reads the memory any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the CPU cannot read the values of `t` where they are.
pub fn comes_from_device(t: TensorPtr) -> bool {
    let buffer = t.buffer();
    // SAFETY: the buffer of a live tensor.
    !buffer.is_null() && unsafe { api::ggml_backend_buffer_is_host(buffer) } == Some(false)
}

/// A buffer of up to `ask` bytes, but at least `bytes`, for the values of `t`, which lie on a device.
pub fn reserve(pipeline: &Pipeline, t: TensorPtr, bytes: usize, ask: usize) -> Option<Buffer> {
    if bytes > SLAB {
        return None;
    }
    let ask = ask.min(SLAB);
    pipeline.reserve_lent(ask).or_else(|| {
        pipeline.lend(Some(SLAB).filter(|&s| pipeline.may_lend(s)).and_then(|s| Pages::spare(s).or_else(|| new(t)))?);
        pipeline.reserve_lent(ask)
    })
}

/// Memory of the backend on whose device `t` lies. It is never freed: when the process ends, nobody knows whether the driver is still there.
fn new(t: TensorPtr) -> Option<Pages> {
    // SAFETY: the buffer of a live tensor; its type and its device live as long as the backend.
    let host_type = unsafe {
        let buft = api::ggml_backend_buffer_get_type(t.buffer()).filter(|b| !b.is_null())?;
        let device = api::ggml_backend_buft_get_device(buft).filter(|d| !d.is_null())?;
        api::ggml_backend_dev_host_buffer_type(device).filter(|h| !h.is_null())?
    };
    // SAFETY: a buffer type that the device has just named.
    let buffer = unsafe { api::ggml_backend_buft_alloc_buffer(host_type, SLAB) }.filter(|b| !b.is_null())?;
    // SAFETY: the buffer just made.
    let base = unsafe { api::ggml_backend_buffer_get_base(buffer) }.and_then(|b| NonNull::new(b.cast::<u8>()))?;
    // SAFETY: ggml: `SLAB` bytes that the CPU can write.
    unsafe { base.as_ptr().write_bytes(0, SLAB) };
    // What is registered now runs before what the driver registered when it started: at the end of the process its memory is still there.
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| host::at_exit(reclaim));
    // SAFETY: the buffer is ours alone, was just written, and is not freed; `reclaim` ends its use before its owner goes.
    Some(unsafe { Pages::lent(base, SLAB) })
}

/// The process ends: waits until the workers have read what lies in such memory.
extern "C" fn reclaim() {
    boundary::guard((), || {
        let Some(capture) = super::current() else { return };
        if capture.pipeline().is_some_and(|p| !p.reclaim(PATIENCE)) {
            log::warn("capture: the disk did not take what came from the device before the process ended");
        }
    });
}
