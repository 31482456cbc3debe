//! Reads a tensor's values out of the host: packed, only the rows and elements that are wanted.

use crate::format::stream::Slice;
use crate::ggml::api::{self, Ptr};
use crate::ggml::view::TensorPtr;
use crate::heap;

use super::graph::Wanted;

/// Which tokens of the ubatch are kept; `None` for all.
pub type Kept<'a> = Option<&'a [u32]>;

/// Bytes that [`read`] writes for so many of the tensor's tokens.
#[must_use]
pub fn bytes(w: &Wanted, kept: Kept<'_>) -> usize {
    let [ne0, ..] = w.shape.ne;
    let stored = w.spec.slice.map_or(ne0 as usize, |s| slice_len(&s));
    let mut rows: usize = w.shape.ne[1..].iter().map(|&n| n as usize).product();
    if let (Some(kept), dim @ 1..) = (kept, w.shape.token_dim) {
        rows = rows / (w.shape.ne[usize::from(dim)].max(1) as usize) * kept.len();
    }
    rows * stored * w.spec.dtype.size()
}

/// Elements of a row that a slice stores.
#[must_use]
pub fn slice_len(s: &Slice) -> usize {
    (s.full.saturating_sub(s.start) as usize).div_ceil(s.step.max(1) as usize)
}

/// The shape of what [`read`] writes.
#[must_use]
pub fn shape(w: &Wanted, kept: Kept<'_>) -> [u32; 4] {
    let mut ne = w.shape.ne;
    if let Some(s) = w.spec.slice {
        ne[0] = u32::try_from(slice_len(&s)).unwrap_or(0);
    }
    if let (Some(kept), dim @ 1..) = (kept, w.shape.token_dim) {
        ne[usize::from(dim)] = u32::try_from(kept.len()).unwrap_or(0);
    }
    ne
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The values are there.
    Done,
    /// They are on their way from a device: they are there after the scheduler was synchronised.
    Pending,
    /// The tensor has no data, or the build cannot read it.
    Failed,
}

/// The tensor's values where they are, if the host can read them there and they are packed: `bytes` of them.
///
/// # Safety
/// `t` has its memory. What is read there is only worth something while it is computed and its memory still holds its values, and only as long.
pub unsafe fn in_place<'a>(t: TensorPtr, bytes: usize) -> Option<&'a [u8]> {
    let buffer = t.buffer();
    if t.data().is_null() || buffer.is_null() || t.span_bytes() != bytes {
        return None;
    }
    // SAFETY: the buffer of a live tensor.
    let is_host = unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false);
    // SAFETY: ggml: a host buffer can be read at the tensor's address for its span.
    is_host.then(|| unsafe { std::slice::from_raw_parts(t.data().cast::<u8>().cast_const(), bytes) })
}

/// The same of a tensor that [`in_place`] found at `data`, as long as it is still there.
///
/// # Safety
/// As for [`in_place`]; `t` is the tensor of which it gave `bytes` at `data`.
pub unsafe fn still_in_place<'a>(t: TensorPtr, data: usize, bytes: usize) -> Option<&'a [u8]> {
    // SAFETY: the same memory was a host buffer's, and buffers do not move.
    (t.data() as usize == data)
        .then(|| unsafe { std::slice::from_raw_parts(t.data().cast::<u8>().cast_const(), bytes) })
}

/// Copies the tensor's values to `to`, which is [`bytes`] long. `sched`
/// is its graph's scheduler, null if not known.
///
/// # Safety
/// `t` is computed, and its memory still holds its values; `to` lives until a pending read is over.
pub unsafe fn read(t: TensorPtr, w: &Wanted, kept: Kept<'_>, sched: Ptr, to: &mut [u8]) -> Read {
    let span = t.span_bytes();
    let buffer = t.buffer();
    if t.data().is_null() || buffer.is_null() || span == 0 {
        return Read::Failed;
    }
    let whole = kept.is_none() && w.spec.slice.is_none() && span == to.len();
    // SAFETY: the buffer of a live tensor.
    if unsafe { api::ggml_backend_buffer_is_host(buffer) }.unwrap_or(false) {
        // SAFETY: ggml: a host buffer can be read at the tensor's address for its span; the caller says that it is computed.
        let from = unsafe { std::slice::from_raw_parts(t.data().cast::<u8>().cast_const(), span) };
        if whole {
            to.copy_from_slice(from);
        } else {
            gather(from, t, w, kept, to);
        }
        return Read::Done;
    }
    let address = t.address().cast_mut().cast();
    let mut backend = std::ptr::null_mut();
    if !sched.is_null() {
        // SAFETY: a live scheduler and a node of its graph.
        backend = unsafe { api::ggml_backend_sched_get_tensor_backend(sched, address) }.unwrap_or(backend);
    }
    if whole && !backend.is_null() {
        // SAFETY: a live tensor and its backend; `to` has its bytes and outlives the read by the caller's promise.
        let asked = unsafe { api::ggml_backend_tensor_get_async(backend, address, to.as_mut_ptr().cast(), 0, span) };
        return if asked.is_some() { Read::Pending } else { Read::Failed };
    }
    let mut from = Vec::new();
    if !heap::reserve(&mut from, span) {
        return Read::Failed;
    }
    from.resize(span, 0_u8);
    // SAFETY: a live tensor; `from` has the bytes that it spans.
    if unsafe { api::ggml_backend_tensor_get(address, from.as_mut_ptr().cast(), 0, span) }.is_none() {
        return Read::Failed;
    }
    if whole {
        to.copy_from_slice(&from);
    } else {
        gather(&from, t, w, kept, to);
    }
    Read::Done
}

/// Picks rows and elements. The tensor's own strides are used: it may be a view with gaps.
fn gather(from: &[u8], t: TensorPtr, w: &Wanted, kept: Kept<'_>, to: &mut [u8]) {
    let size = w.spec.dtype.size();
    let (ne, nb) = (t.ne().map(|n| usize::try_from(n).unwrap_or(0)), t.nb());
    let row_bytes = ne[0] * size;
    // The shape may have two dimensions of tokens that the plan counts as one.
    let token_dim = usize::from(w.shape.token_dim);
    let merged = token_dim > 0 && w.shape.ne[token_dim] as usize != ne[token_dim];
    let mut at = 0;
    let mut put = |start: usize| {
        let Some(row) = from.get(start..start + row_bytes) else { return };
        let stored = match w.spec.slice {
            None => {
                let Some(to) = to.get_mut(at..at + row_bytes) else { return };
                to.copy_from_slice(row);
                row_bytes
            }
            Some(s) => {
                let picked = row.chunks_exact(size).skip(s.start as usize).step_by(s.step.max(1) as usize);
                let mut n = 0;
                for (value, slot) in picked.zip(to.get_mut(at..).unwrap_or_default().chunks_exact_mut(size)) {
                    slot.copy_from_slice(value);
                    n += size;
                }
                n
            }
        };
        at += stored;
    };
    let wanted = |dim: usize, i: [usize; 4]| -> bool {
        let Some(kept) = kept.filter(|_| dim > 0) else { return true };
        let token = if merged { i[dim] + i[dim + 1] * ne[dim] } else { i[dim] };
        kept.binary_search(&(token as u32)).is_ok()
    };
    for i3 in 0..ne[3] {
        for i2 in 0..ne[2] {
            for i1 in 0..ne[1] {
                if wanted(token_dim, [0, i1, i2, i3]) {
                    put(i1 * nb[1] + i2 * nb[2] + i3 * nb[3]);
                }
            }
        }
    }
}
