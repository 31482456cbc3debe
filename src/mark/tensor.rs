//! A tensor of the caller as words: shape, strides, type, size, address, and what its buffer says of memory and device.
//! Read on the caller's thread, where the tensor is alive; the writer gets numbers and names only.

use std::cell::RefCell;

use parking_lot::Mutex;

use super::Refusal;
use super::words::{self, Reader};
use crate::format::summary::Condition;
use crate::ggml::api;
use crate::ggml::device;
use crate::ggml::layout;
use crate::ggml::view::{TensorPtr, keep};
use crate::graph::Tensor;
use crate::observe::state;

/// Where a buffer type puts its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Buffer type (`CPU`, `CUDA0`, ...), `None` for memory without a buffer.
    pub buffer_type: Option<&'static str>,
    /// Device.
    pub device: Option<&'static str>,
    /// `ram`, `vram`, `mmap`, `unknown`.
    pub memory_type: &'static str,
    /// Whether the device is a CPU.
    pub is_cpu: bool,
}

/// Memory that ggml took for itself: no buffer, but data.
const PLAIN: Place = Place { buffer_type: None, device: Some("CPU"), memory_type: "ram", is_cpu: true };
/// No memory yet.
const NONE: Place = Place { buffer_type: None, device: None, memory_type: "unknown", is_cpu: false };

/// Every buffer type seen, by its address; there are a handful. They live as long as their backend.
static PLACES: Mutex<Vec<(usize, Place)>> = Mutex::new(Vec::new());

thread_local! {
    static KNOWN: RefCell<Vec<(usize, u64, Place)>> = const { RefCell::new(Vec::new()) };
}

/// Index in [`PLACES`] plus two; 0 is [`NONE`], 1 is [`PLAIN`].
fn place_number(t: &TensorPtr) -> (u64, Place) {
    let buffer = t.buffer();
    if buffer.is_null() {
        return if t.data().is_null() { (0, NONE) } else { (1, PLAIN) };
    }
    // SAFETY: the buffer of a live tensor.
    let Some(buft) = (unsafe { api::ggml_backend_buffer_get_type(buffer) }).filter(|b| !b.is_null()) else {
        return (0, NONE);
    };
    KNOWN.with_borrow_mut(|known| {
        if let Some((_, number, place)) = known.iter().find(|(b, ..)| *b == buft as usize) {
            return (*number, *place);
        }
        let mut places = PLACES.lock();
        let at = places.iter().position(|(b, _)| *b == buft as usize).unwrap_or_else(|| {
            places.push((buft as usize, ask(buft, buffer)));
            places.len() - 1
        });
        let (number, place) = (at as u64 + 2, places[at].1);
        known.push((buft as usize, number, place));
        (number, place)
    })
}

#[cold]
fn ask(buft: api::Ptr, buffer: api::Ptr) -> Place {
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
    // The buffer types that ggml-base has built in name no device; their memory is the CPU's, which ggml
    // calls so everywhere.
    let device = device.map(|d| keep(&d)).or((is_host && is_cpu).then_some("CPU"));
    Place { buffer_type: Some(name), device, memory_type, is_cpu }
}

/// Where the tensor's memory is.
#[must_use]
pub fn place(t: &TensorPtr) -> Place {
    place_number(t).1
}

/// What the tensor's buffer is for.
#[must_use]
pub fn usage(t: &TensorPtr) -> &'static str {
    let buffer = t.buffer();
    if buffer.is_null() {
        return "other";
    }
    // SAFETY: the buffer of a live tensor.
    match unsafe { api::ggml_backend_buffer_get_usage(buffer) } {
        Some(1) => "weights",
        Some(2) => "compute",
        _ => "other",
    }
}

/// The caller's pointer as a tensor that can be read.
///
/// # Safety
/// `pointer` is null or points to a live tensor of the ggml that this process has loaded.
pub unsafe fn checked(pointer: *const std::ffi::c_void) -> Result<TensorPtr, Refusal> {
    // A pointer that cannot be one: a small number, or one that no allocator gives.
    if (pointer as usize) < 4096 || !(pointer as usize).is_multiple_of(8) {
        return Err(Refusal::Invalid("a tensor is NULL, or its pointer is none"));
    }
    if !layout::agreed()
        && let Err(reason) = layout::check()
    {
        state::tell("layout", Condition::Unavailable, reason, Some("marks that name tensors"));
        return Err(Refusal::Unreadable("tensors of this build of ggml cannot be read; the log says why"));
    }
    // SAFETY: the caller's promise.
    unsafe { TensorPtr::new(pointer) }.ok_or(Refusal::Unreadable("tensors of this build of ggml cannot be read"))
}

/// Adds a tensor to a mark.
pub fn write(out: &mut Vec<u64>, t: &TensorPtr) {
    let view = t.view();
    out.extend(view.ne.map(|n| n as u64));
    out.extend(t.nb().map(|n| n as u64));
    out.push(view.nbytes);
    out.push(t.data() as u64);
    out.push(u64::from(view.block_size) | u64::from(view.type_size) << 32);
    out.push(place_number(t).0);
    words::text(out, view.type_name);
    words::text(out, view.op);
    words::text(out, view.name);
}

/// A tensor out of a mark.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Elements of each dimension.
    pub ne: [i64; 4],
    /// Bytes between elements of each dimension.
    pub nb: [u64; 4],
    /// Bytes that it spans.
    pub nbytes: u64,
    /// Address of the data.
    pub data: u64,
    /// Where its memory is.
    pub place: Place,
    /// ggml type.
    pub type_name: String,
    /// `ggml_op_desc`.
    pub op: String,
    /// Name.
    pub name: String,
    block_size: u32,
    type_size: u32,
}

impl Described {
    /// Reads what [`write()`] wrote.
    pub fn read(r: &mut Reader<'_>) -> Self {
        let ne = std::array::from_fn(|_| r.number() as i64);
        let nb = std::array::from_fn(|_| r.number());
        let (nbytes, data, block, place) = (r.number(), r.number(), r.number(), r.number());
        let place = match place {
            0 => NONE,
            1 => PLAIN,
            n => PLACES.lock().get(n as usize - 2).map_or(NONE, |(_, p)| *p),
        };
        Self {
            ne,
            nb,
            nbytes,
            data,
            place,
            type_name: r.text(),
            op: r.text(),
            name: r.text(),
            block_size: block as u32,
            type_size: (block >> 32) as u32,
        }
    }

    /// As classification and cost want it, as the result of `op`.
    #[must_use]
    pub fn as_tensor<'a>(&'a self, op: &'a str) -> Tensor<'a> {
        Tensor {
            name: &self.name,
            op,
            type_name: &self.type_name,
            ne: self.ne,
            nbytes: self.nbytes,
            block_size: self.block_size,
            type_size: self.type_size,
        }
    }
}
