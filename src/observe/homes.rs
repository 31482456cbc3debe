//! Where buffers are: device and kind of memory, asked of ggml once for each type of buffers.

use std::cell::RefCell;

use parking_lot::Mutex;

use crate::ggml::api::{self, Ptr};
use crate::ggml::device;
use crate::ggml::view::{TensorPtr, keep};

/// Where a tensor's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Buffer type (`CPU`, `CUDA0`, ...), `None` for memory without a buffer.
    pub buffer_type: Option<&'static str>,
    /// Device.
    pub device: Option<&'static str>,
    /// `ram`, `vram`, `mmap`, `unknown`.
    pub memory_type: &'static str,
    /// Whether the device is a CPU.
    pub is_cpu: bool,
    /// Whether the host can read it at its address.
    pub is_host: bool,
}

/// Memory that ggml took for itself: no buffer, but data.
const PLAIN: Home = Home { buffer_type: None, device: Some("CPU"), memory_type: "ram", is_cpu: true, is_host: true };
/// No memory yet.
const NONE: Home = Home { buffer_type: None, device: None, memory_type: "unknown", is_cpu: false, is_host: false };

/// Every buffer type seen, by its address; there are a handful. They live as long as their backend, so no recording
/// resets this.
static HOMES: Mutex<Vec<(usize, Home)>> = Mutex::new(Vec::new());

thread_local! {
    static KNOWN: RefCell<Vec<(usize, u64, Home)>> = const { RefCell::new(Vec::new()) };
}

/// Where the memory of `t` is, and the number by which [`numbered`] finds it.
#[must_use]
pub fn of(t: &TensorPtr) -> (u64, Home) {
    let buffer = t.buffer();
    let without = if !buffer.is_null() || t.data().is_null() { (0, NONE) } else { (1, PLAIN) };
    // SAFETY: the buffer of a live tensor.
    unsafe { of_buffer(buffer) }.unwrap_or(without)
}

/// The same of a tensor's buffer. `None` if it is null, or of no type.
///
/// # Safety
/// `buffer` is null, or the buffer of a live tensor.
#[must_use]
pub(super) unsafe fn of_buffer(buffer: Ptr) -> Option<(u64, Home)> {
    if buffer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let buft = unsafe { api::ggml_backend_buffer_get_type(buffer) }.filter(|b| !b.is_null())?;
    KNOWN.with_borrow_mut(|known| {
        if let Some((_, number, home)) = known.iter().find(|(b, ..)| *b == buft as usize) {
            return Some((*number, *home));
        }
        let mut homes = HOMES.lock();
        let at = homes.iter().position(|(b, _)| *b == buft as usize).unwrap_or_else(|| {
            homes.push((buft as usize, ask(buft, buffer)));
            homes.len() - 1
        });
        let (number, home) = (at as u64 + 2, homes[at].1);
        known.push((buft as usize, number, home));
        Some((number, home))
    })
}

/// What [`of`] gave with this number.
#[must_use]
pub fn numbered(number: u64) -> Home {
    match number {
        0 => NONE,
        1 => PLAIN,
        n => HOMES.lock().get(n as usize - 2).map_or(NONE, |(_, home)| *home),
    }
}

#[cold]
fn ask(buft: Ptr, buffer: Ptr) -> Home {
    // SAFETY: a live buffer type.
    let name = unsafe { api::text(api::ggml_backend_buft_name(buft)) };
    // SAFETY: as above.
    let device = unsafe { api::ggml_backend_buft_get_device(buft) }.filter(|d| !d.is_null());
    // SAFETY: a device lives as long as the process.
    let is_cpu = device.and_then(|d| unsafe { device::kind(d) }).is_none_or(|t| t == 0);
    // SAFETY: as above.
    let device = device.and_then(|d| unsafe { device::name(d) });
    // SAFETY: a live buffer.
    let is_host = unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false);
    let name = keep(name.as_deref().unwrap_or("unknown"));
    let memory_type = match () {
        // llama.cpp's name for the buffer over a mapped model file.
        () if name.ends_with("_Mapped") => "mmap",
        () if is_host || is_cpu => "ram",
        () => "vram",
    };
    // The buffer types that ggml-base has built in name no device; their memory is the CPU's, which ggml calls so
    // everywhere.
    let device = device.map(|d| keep(&d)).or((is_host && is_cpu).then_some("CPU"));
    Home { buffer_type: Some(name), device, memory_type, is_cpu, is_host }
}
