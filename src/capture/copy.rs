//! Reads a tensor's values out of the host: packed, only the rows and elements that are wanted.

use crate::format::stream::Slice;
use crate::ggml::api::{self, Ptr};
use crate::ggml::view::TensorPtr;
use crate::heap;

use super::graph::Wanted;

/// Values begin at a multiple of so many bytes in a buffer, so that codecs read them as what they are.
pub(crate) const ALIGNMENT: usize = 16;

/// Bytes that so many take in a buffer, with the gap behind them.
#[must_use]
pub const fn padded(bytes: usize) -> usize {
    // Never wraps: what does not fit an address is no size of anything.
    bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

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
/// `t` has its memory. What is read there is only worth something while it is computed and its memory still holds its
/// values, and only as long.
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
        // SAFETY: ggml: a host buffer can be read at the tensor's address for its span; the caller says that
        // it is computed.
        let from = unsafe { std::slice::from_raw_parts(t.data().cast::<u8>().cast_const(), span) };
        if whole {
            to.copy_from_slice(from);
            return Read::Done;
        }
        return if gather(&mut Source::Host(from), t, w, kept, to) { Read::Done } else { Read::Failed };
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
    let mut get = |at: usize, to: &mut [u8]| {
        // SAFETY: a live tensor; the bytes lie within those that it spans, and `to` has room for them.
        unsafe { api::ggml_backend_tensor_get(address, to.as_mut_ptr().cast(), at, to.len()) }.is_some()
    };
    let done = if whole { get(0, to) } else { gather(&mut Source::device(span, t, &mut get), t, w, kept, to) };
    if done { Read::Done } else { Read::Failed }
}

/// Most bytes that are fetched at once of a tensor of which only some are wanted, unless one of its rows has more.
const WINDOW: usize = 1 << 20;

/// Where rows are taken from.
enum Source<'a> {
    /// Memory that the host can read.
    Host(&'a [u8]),
    /// A device, from which some rows are fetched at a time.
    Device {
        span: usize,
        /// Bytes to fetch, beyond a row.
        window: usize,
        get: &'a mut dyn FnMut(usize, &mut [u8]) -> bool,
        /// What was fetched last, and where it begins.
        held: Vec<u8>,
        at: usize,
    },
}

impl<'a> Source<'a> {
    fn device(span: usize, t: TensorPtr, get: &'a mut dyn FnMut(usize, &mut [u8]) -> bool) -> Self {
        let strides: Vec<usize> = (1..4).filter(|&d| t.ne()[d] > 1).map(|d| t.nb()[d]).collect();
        // Of a view that is turned around, what lies behind a row is not the next.
        let window = if strides.is_sorted() { WINDOW } else { 0 };
        Self::Device { span, window, get, held: Vec::new(), at: 0 }
    }

    /// So many bytes from `start` on. `None` if they are not there, or there is no memory for them.
    fn row(&mut self, start: usize, len: usize) -> Option<&[u8]> {
        match self {
            Source::Host(from) => from.get(start..start.checked_add(len)?),
            Source::Device { span, window, get, held, at } => {
                let end = start.checked_add(len)?;
                if start < *at || end > *at + held.len() {
                    let n = len.max(*window).min(span.checked_sub(start)?);
                    held.clear();
                    if !heap::reserve(held, n) {
                        return None;
                    }
                    held.resize(n, 0);
                    *at = start;
                    if n < len || !get(start, held) {
                        held.clear();
                        return None;
                    }
                }
                held.get(start - *at..end - *at)
            }
        }
    }
}

/// Picks rows and elements; false if some cannot be had. The tensor's own strides are used: it may be a view with gaps.
fn gather(from: &mut Source<'_>, t: TensorPtr, w: &Wanted, kept: Kept<'_>, to: &mut [u8]) -> bool {
    let size = w.spec.dtype.size();
    let (ne, nb) = (t.ne().map(|n| usize::try_from(n).unwrap_or(0)), t.nb());
    let row_bytes = ne[0] * size;
    // The shape may have two dimensions of tokens that the plan counts as one.
    let token_dim = usize::from(w.shape.token_dim);
    let merged = token_dim > 0 && w.shape.ne[token_dim] as usize != ne[token_dim];
    let mut at = 0;
    let mut put = |start: usize| -> Option<()> {
        let row = from.row(start, row_bytes)?;
        match w.spec.slice {
            None => {
                to.get_mut(at..at + row_bytes)?.copy_from_slice(row);
                at += row_bytes;
            }
            Some(s) => {
                let picked = row.chunks_exact(size).skip(s.start as usize).step_by(s.step.max(1) as usize);
                for (value, slot) in picked.zip(to.get_mut(at..)?.chunks_exact_mut(size)) {
                    slot.copy_from_slice(value);
                    at += size;
                }
            }
        }
        Some(())
    };
    let wanted = |dim: usize, i: [usize; 4]| -> bool {
        let Some(kept) = kept.filter(|_| dim > 0) else { return true };
        let token = if merged { i[dim] + i[dim + 1] * ne[dim] } else { i[dim] };
        kept.binary_search(&(token as u32)).is_ok()
    };
    for i3 in 0..ne[3] {
        for i2 in 0..ne[2] {
            for i1 in 0..ne[1] {
                if wanted(token_dim, [0, i1, i2, i3]) && put(i1 * nb[1] + i2 * nb[2] + i3 * nb[3]).is_none() {
                    return false;
                }
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn rows_of_a_device_are_fetched_by_windows_and_never_more_than_is_there() {
        let values: Vec<u8> = (0..=255).collect();
        let mut fetched = Vec::new();
        let mut get = |at: usize, to: &mut [u8]| {
            fetched.push((at, to.len()));
            to.copy_from_slice(&values[at..at + to.len()]);
            true
        };
        let mut source = Source::Device { span: 256, window: 100, get: &mut get, held: Vec::new(), at: 0 };
        for start in [0, 30, 70, 150, 240] {
            let len = 16;
            assert_eq!(source.row(start, len), Some(&values[start..start + len]), "{start}");
        }
        // A row longer than a window, one that is not there, and one before what is held.
        assert_eq!(source.row(10, 200), Some(&values[10..210]));
        assert_eq!(source.row(250, 16), None);
        assert_eq!(source.row(257, 1), None);
        assert_eq!(source.row(0, 1), Some(&values[..1]));
        assert_eq!(fetched, [(0, 100), (150, 100), (240, 16), (10, 200), (0, 100)]);
    }

    #[test]
    fn a_device_that_gives_nothing_gives_no_row() {
        let mut get = |_: usize, _: &mut [u8]| false;
        let mut source = Source::Device { span: 64, window: 16, get: &mut get, held: Vec::new(), at: 0 };
        assert_eq!(source.row(0, 8), None);
        assert_eq!(source.row(0, 8), None, "nor the second time");
    }
}
