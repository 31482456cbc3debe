//! A tensor of the caller as words: shape, strides, type, size, address, and what its buffer says of memory and device.
//! Read on the caller's thread, where the tensor is alive; the writer gets numbers and names only.

use super::Refusal;
use super::words::{self, Reader};
use crate::format::summary::Condition;
use crate::ggml::api;
use crate::ggml::layout;
use crate::ggml::view::TensorPtr;
use crate::graph::Tensor;
use crate::observe::homes::{self, Home};
use crate::observe::state;

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
    out.push(homes::of(t).0);
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
    pub place: Home,
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
        let (nbytes, data, block, place) = (r.number(), r.number(), r.number(), homes::numbered(r.number()));
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
