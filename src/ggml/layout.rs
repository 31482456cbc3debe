//! The self-calibrating layout probe: builds a few tensors through the host's own ggml and finds every offset
//! that we read.
//!
//! The committed bindings describe the pinned version. They are used only if each offset found here is the same;
//! otherwise what needs tensors is refused with one line that says which field differs, and everything else goes on.

use std::ffi::c_void;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::api;
use super::bindings::{ggml_init_params, ggml_tensor};
use super::copies;

/// How the tensors of one copy of ggml lie: what the probe found, null before it has run.
#[derive(Debug)]
pub(crate) struct Layout(AtomicPtr<Result<(), String>>);

impl Layout {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    fn known(&self) -> Option<&'static Result<(), String>> {
        // SAFETY: null or a result that `check` has put there, which is never freed.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// The copy has gone.
    pub(crate) fn forget(&self) {
        self.0.store(std::ptr::null_mut(), Ordering::Release);
    }

    fn check(&self) -> Result<(), &'static str> {
        let known = self.known().unwrap_or_else(|| {
            let new = Box::into_raw(Box::new(probe()));
            let first = self.0.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
            if first.is_err() {
                // SAFETY: made above, not shared with another thread yet: another thread has probed at the same time.
                drop(unsafe { Box::from_raw(new) });
            }
            // SAFETY: a result that one of the two threads has put there, which is never freed.
            unsafe { &*first.map_or_else(|theirs| theirs, |_| new) }
        });
        known.as_ref().copied().map_err(String::as_str)
    }
}

/// Whether tensors of the copy of ggml whose call is served can be read. Probes at the first call; call it only when
/// ggml is loaded.
pub fn check() -> Result<(), &'static str> {
    copies::current().layout.check()
}

/// [`check`] as a plain answer for hot paths, false before the first check.
#[must_use]
pub fn agreed() -> bool {
    matches!(copies::current().layout.known(), Some(Ok(())))
}

/// ggml aborts on memory that is not aligned for its tensors; a page is aligned for anything.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// What was found in a tensor's bytes.
struct Found {
    field: &'static str,
    expected: usize,
    at: Option<usize>,
}

fn probe() -> Result<(), String> {
    const MEMORY: usize = 1 << 16;
    let missing = || "the host's ggml lacks a function that the probe needs (ggml_init and friends)".to_owned();
    // SAFETY: no argument.
    let overhead = unsafe { api::ggml_tensor_overhead() }.ok_or_else(missing)?;
    // ggml_tensor_overhead counts the object header (32 bytes in every version) too.
    let size = overhead.checked_sub(32).filter(|s| (200..=1024).contains(s)).ok_or_else(|| {
        format!("a tensor takes {overhead} bytes, which no version we know has; tensors cannot be read")
    })?;
    if size != size_of::<ggml_tensor>() {
        return Err(format!(
            "struct ggml_tensor has {size} bytes in this build, expected {}",
            size_of::<ggml_tensor>()
        ));
    }
    // SAFETY: ggml copies the parameters; it allocates its own memory (mem_buffer null).
    let ctx = unsafe {
        api::ggml_init(ggml_init_params { mem_size: MEMORY, mem_buffer: std::ptr::null_mut(), no_alloc: false })
    }
    .filter(|c| !c.is_null())
    .ok_or_else(missing)?;
    let found = in_context(ctx, size).ok_or_else(missing);
    // SAFETY: the context made above, not used any more.
    unsafe { api::ggml_free(ctx) };
    let wrong: Vec<String> = found?
        .into_iter()
        .filter(|f| f.at != Some(f.expected))
        .map(|f| {
            format!(
                "{} expected at {}, found at {}",
                f.field,
                f.expected,
                f.at.map_or("no offset".into(), |a| a.to_string())
            )
        })
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("struct ggml_tensor differs in this build: {}", wrong.join(", ")))
    }
}

fn in_context(ctx: api::Ptr, size: usize) -> Option<Vec<Found>> {
    const F32: u32 = 0;
    const F16: u32 = 1;
    let new = |ty| {
        // SAFETY: a live context; types 0 and 1 exist in every version.
        unsafe { api::ggml_new_tensor_4d(ctx, ty, 3, 5, 7, 11) }.filter(|t| !t.is_null())
    };
    let (a, b, half) = (new(F32)?, new(F32)?, new(F16)?);
    let plain = bytes(a, size);
    // SAFETY: a live tensor.
    unsafe { api::ggml_set_output(a) }?;
    let flagged = bytes(a, size);
    // SAFETY: live tensors of one context.
    let sum = unsafe { api::ggml_add(ctx, a, b) }.filter(|t| !t.is_null())?;
    // SAFETY: as above; 12 bytes is within `b`.
    let view = unsafe { api::ggml_view_1d(ctx, b, 3, 12) }.filter(|t| !t.is_null())?;
    // SAFETY: ggml copies the name.
    unsafe { api::ggml_set_name(b, c"LRI-PROBE".as_ptr()) }?;
    // SAFETY: a live tensor.
    let data = unsafe { api::ggml_get_data(b) }?;
    let (b_bytes, half_bytes, sum_bytes, view_bytes) =
        (bytes(b, size), bytes(half, size), bytes(sum, size), bytes(view, size));

    let pointer = |p: *const c_void| (p as usize).to_ne_bytes();
    let find = |hay: &[u8], needle: &[u8], step: usize| {
        (0..hay.len().saturating_sub(needle.len() - 1)).step_by(step).find(|&i| hay[i..].starts_with(needle))
    };
    let ne: Vec<u8> = [3i64, 5, 7, 11].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let nb: Vec<u8> = [4usize, 12, 60, 420].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let sources = [pointer(a.cast()), pointer(b.cast())].concat();
    let viewed = [pointer(b.cast()), 12usize.to_ne_bytes()].concat();

    let mut found = vec![
        Found {
            field: "type",
            expected: offset_of!(ggml_tensor, type_),
            at: (0..size - 3)
                .step_by(4)
                .find(|&i| b_bytes[i..i + 4] == F32.to_ne_bytes() && half_bytes[i..i + 4] == F16.to_ne_bytes()),
        },
        Found { field: "ne", expected: offset_of!(ggml_tensor, ne), at: find(&plain, &ne, 8) },
        Found { field: "nb", expected: offset_of!(ggml_tensor, nb), at: find(&plain, &nb, 8) },
        Found {
            field: "flags",
            expected: offset_of!(ggml_tensor, flags),
            at: (0..size).find(|&i| plain[i] != flagged[i]),
        },
        Found { field: "src", expected: offset_of!(ggml_tensor, src), at: find(&sum_bytes, &sources, 8) },
        Found {
            field: "view_src, view_offs",
            expected: offset_of!(ggml_tensor, view_src),
            at: find(&view_bytes, &viewed, 8),
        },
        Found { field: "data", expected: offset_of!(ggml_tensor, data), at: find(&b_bytes, &pointer(data), 8) },
        Found { field: "name", expected: offset_of!(ggml_tensor, name), at: find(&b_bytes, b"LRI-PROBE\0", 1) },
    ];
    // `buffer` is null in a plain context: place a tensor without memory into a CPU buffer over memory of ours.
    let mut memory = Box::new(Page([0; 4096]));
    // SAFETY: the memory outlives the buffer, which is freed below.
    if let Some(buffer) = unsafe { api::ggml_backend_cpu_buffer_from_ptr(memory.0.as_mut_ptr().cast(), memory.0.len()) }
        .filter(|b| !b.is_null())
    {
        found.push(Found {
            field: "buffer",
            expected: offset_of!(ggml_tensor, buffer),
            at: buffer_offset(buffer, size),
        });
        // SAFETY: made above, used by no live tensor that anybody reads.
        unsafe { api::ggml_backend_buffer_free(buffer) };
    }
    Some(found)
}

fn buffer_offset(buffer: api::Ptr, size: usize) -> Option<usize> {
    // SAFETY: as in `probe`, but tensors get no memory of their own.
    let ctx = unsafe {
        api::ggml_init(ggml_init_params { mem_size: 1 << 14, mem_buffer: std::ptr::null_mut(), no_alloc: true })
    }
    .filter(|c| !c.is_null())?;
    // SAFETY: a live context.
    let t = unsafe { api::ggml_new_tensor_4d(ctx, 0, 4, 1, 1, 1) }.filter(|t| !t.is_null());
    let at = t.and_then(|t| {
        // SAFETY: a live buffer; asking for its base is a plain read.
        let base = unsafe { api::ggml_backend_buffer_get_base(buffer) }?;
        // SAFETY: 16 bytes at `base` are inside the buffer.
        unsafe { api::ggml_backend_tensor_alloc(buffer, t, base) }?;
        let all = bytes(t, size);
        (0..size - 7).step_by(8).find(|&i| all[i..i + 8] == (buffer as usize).to_ne_bytes())
    });
    // SAFETY: made above.
    unsafe { api::ggml_free(ctx) };
    at
}

fn bytes(t: *mut ggml_tensor, size: usize) -> Vec<u8> {
    // SAFETY: `size` is what ggml_tensor_overhead says a tensor takes, and the tensor is alive in its context.
    unsafe { std::slice::from_raw_parts(t.cast::<u8>(), size) }.to_vec()
}
