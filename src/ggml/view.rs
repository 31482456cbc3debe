//! A tensor of the host, read through the probed layout.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use super::api::{self, Ptr};
use super::bindings::{GGML_MAX_SRC, ggml_tensor};
use crate::graph::Tensor;
use crate::graph::origin::Origin;

/// Set on a node that a backend really computes; builds before 2026 have no such flag and leave `flags` at 0.
const FLAG_COMPUTE: i32 = 16;

/// Name and block of a ggml type.
#[derive(Debug)]
pub struct TypeInfo {
    /// `f32`, `q4_1`, ...
    pub name: &'static str,
    /// Elements of a block.
    pub block_size: u32,
    /// Bytes of a block.
    pub type_size: u32,
}

static TYPES: [OnceLock<TypeInfo>; 128] = [const { OnceLock::new() }; 128];
static UNKNOWN_TYPE: TypeInfo = TypeInfo { name: "unknown", block_size: 1, type_size: 0 };

/// Name and block of type number `ty`, which must come from a tensor (ggml aborts on numbers it does not have).
fn type_info(ty: u32) -> &'static TypeInfo {
    let Some(slot) = TYPES.get(ty as usize) else { return &UNKNOWN_TYPE };
    slot.get_or_init(|| {
        // SAFETY: the number comes from a tensor of this ggml, so it is one of its types.
        let name = unsafe { api::text(api::ggml_type_name(ty)) };
        // SAFETY: as above.
        let block = unsafe { api::ggml_blck_size(ty) }.unwrap_or(1);
        // SAFETY: as above.
        let size = unsafe { api::ggml_type_size(ty) }.unwrap_or(0);
        TypeInfo {
            name: name.map_or("unknown", |n| keep(&n)),
            block_size: u32::try_from(block).unwrap_or(1),
            type_size: u32::try_from(size).unwrap_or(0),
        }
    })
}

/// One copy of `text` for the rest of the process. Only for the few hundred names of operations, types and devices.
#[must_use]
pub fn keep(text: &str) -> &'static str {
    static KEPT: parking_lot::Mutex<std::collections::BTreeSet<&'static str>> =
        parking_lot::Mutex::new(std::collections::BTreeSet::new());
    let mut kept = KEPT.lock();
    if let Some(old) = kept.get(text) {
        return old;
    }
    let new: &'static str = Box::leak(text.to_owned().into_boxed_str());
    kept.insert(new);
    new
}

/// A live tensor of the host. Made only when [`super::layout::agreed`], valid for the length of the hook that
/// got the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorPtr(*const ggml_tensor);

// SAFETY: a pointer value; it is only followed inside hooks of the host's own compute, where the tensor is
// alive (see `new`).
unsafe impl Send for TensorPtr {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for TensorPtr {}

impl Origin for TensorPtr {
    fn tensor(&self) -> Tensor<'_> {
        Tensor { name: self.name(), op: self.op(), ..Tensor::default() }
    }

    fn n_sources(&self) -> usize {
        self.n_src()
    }

    fn source(&self, i: usize) -> Option<Self> {
        self.src(i)
    }
}

impl TensorPtr {
    /// Takes a pointer that the host handed to a hook.
    ///
    /// # Safety
    /// `t` must point to a tensor that stays alive while the value is used.
    #[must_use]
    pub unsafe fn new(t: *const c_void) -> Option<Self> {
        (!t.is_null() && super::layout::agreed()).then_some(Self(t.cast()))
    }

    fn raw(&self) -> &ggml_tensor {
        // SAFETY: alive by the promise of `new`; the layout was probed.
        unsafe { &*self.0 }
    }

    /// The pointer as the host knows it.
    #[must_use]
    pub fn address(self) -> *const c_void {
        self.0.cast()
    }

    /// The tensor that this one is a view of.
    #[must_use]
    pub fn view_src(&self) -> Option<Self> {
        let p = self.raw().view_src;
        (!p.is_null()).then_some(Self(p))
    }

    /// Source number `i`.
    #[must_use]
    pub fn src(&self, i: usize) -> Option<Self> {
        let p = *self.raw().src.get(i)?;
        (!p.is_null()).then_some(Self(p))
    }

    /// Sources up to the last one that is set.
    #[must_use]
    pub fn n_src(&self) -> usize {
        (0..GGML_MAX_SRC as usize).rev().find(|&i| !self.raw().src[i].is_null()).map_or(0, |i| i + 1)
    }

    /// Whether a backend computes this node; `graph_uses_flag` tells if this build sets the flag at all.
    #[must_use]
    pub fn is_computed(&self, graph_uses_flag: bool) -> bool {
        !graph_uses_flag || self.raw().flags & FLAG_COMPUTE != 0
    }

    /// Whether the flag that [`Self::is_computed`] asks for is set.
    #[must_use]
    pub fn has_compute_flag(&self) -> bool {
        self.raw().flags & FLAG_COMPUTE != 0
    }

    /// Elements of each dimension.
    #[must_use]
    pub fn ne(&self) -> [i64; 4] {
        self.raw().ne
    }

    /// Bytes between elements of each dimension.
    #[must_use]
    pub fn nb(&self) -> [usize; 4] {
        self.raw().nb
    }

    /// Address of the data.
    #[must_use]
    pub fn data(&self) -> *mut c_void {
        self.raw().data
    }

    /// Buffer that holds the data, its own or the viewed tensor's.
    #[must_use]
    pub fn buffer(&self) -> *mut c_void {
        let view = self.raw().view_src;
        // SAFETY: view_src is null or a tensor that lives at least as long as its view.
        if view.is_null() { self.raw().buffer.cast() } else { unsafe { (*view).buffer.cast() } }
    }

    /// Bytes that its elements span, gaps of a view included.
    #[must_use]
    pub fn span_bytes(&self) -> usize {
        // SAFETY: a live tensor.
        unsafe { api::ggml_nbytes(self.0) }.unwrap_or(0)
    }

    /// Marks it as an output, so that the allocator keeps its memory until the graph is over. Gives the flags
    /// that it had.
    #[must_use]
    pub fn set_output(self) -> i32 {
        let before = self.raw().flags;
        // SAFETY: a live tensor of a graph that the host is about to allocate; ggml sets a flag in it.
        unsafe { api::ggml_set_output(self.0.cast_mut()) };
        before
    }

    /// Gives it back the flags that it had before [`Self::set_output`].
    pub fn restore_flags(self, flags: i32) {
        // SAFETY: a live tensor of a graph that the host is in the middle of allocating, on this thread; the place of
        // `flags` was probed.
        unsafe { (&raw mut (*self.0.cast_mut()).flags).write(flags) };
    }

    /// Name, up to the first byte that is not UTF-8.
    #[must_use]
    pub fn name(&self) -> &str {
        let raw = self.raw().name.map(|c| c as u8);
        let len = raw.iter().position(|&b| b == 0).unwrap_or(raw.len());
        // SAFETY: `len` bytes of the name field, in place (the copy above only measured).
        let bytes = unsafe { std::slice::from_raw_parts(self.raw().name.as_ptr().cast::<u8>(), len) };
        match std::str::from_utf8(bytes) {
            Ok(s) => s,
            Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or(""),
        }
    }

    /// Operation as `ggml_op_desc` names it.
    #[must_use]
    pub fn op(&self) -> &'static str {
        // SAFETY: a live tensor; ggml returns a string constant.
        let Some(p) = (unsafe { api::ggml_op_desc(self.0) }).filter(|p| !p.is_null()) else { return "UNKNOWN" };
        // SAFETY: NUL-terminated constant of ggml, read at once.
        let text = unsafe { CStr::from_ptr(p) };
        op_name(text.to_str().unwrap_or("UNKNOWN"))
    }

    /// Name of the type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        type_info(self.raw().type_).name
    }

    /// Everything that classification and cost need.
    #[must_use]
    pub fn view(&self) -> Tensor<'_> {
        let info = type_info(self.raw().type_);
        // SAFETY: a live tensor.
        let nbytes = unsafe { api::ggml_nbytes(self.0) }.unwrap_or(0) as u64;
        Tensor {
            name: self.name(),
            op: self.op(),
            type_name: info.name,
            ne: self.raw().ne,
            nbytes,
            block_size: info.block_size,
            type_size: info.type_size,
        }
    }

    /// A number that changes when this node becomes another one: name, shape, type, flags.
    #[must_use]
    pub fn fingerprint(&self, seed: u64) -> u64 {
        let t = self.raw();
        let mut h = seed;
        let mut mix = |w: u64| h = (h.rotate_left(5) ^ w).wrapping_mul(0x517c_c1b7_2722_0a95);
        // SAFETY: the name field is 64 bytes inside the tensor; read as 8 unaligned words.
        let words = unsafe { t.name.as_ptr().cast::<[u64; 8]>().read_unaligned() };
        for w in words {
            mix(w);
            // ggml zero-fills names, so a word with a NUL ends it.
            if w >> 56 == 0 {
                break;
            }
        }
        t.ne.iter().for_each(|&n| mix(n as u64));
        mix(u64::from(t.type_) << 32 | u64::from(t.op) << 8 | t.flags as u64);
        h
    }
}

/// The same text as a lasting string, without a lock for names seen before on this thread.
fn op_name(text: &str) -> &'static str {
    thread_local! {
        static SEEN: std::cell::RefCell<Vec<&'static str>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    SEEN.with_borrow_mut(|seen| {
        if let Some(old) = seen.iter().find(|o| **o == text) {
            return *old;
        }
        let new = keep(text);
        seen.push(new);
        new
    })
}

/// The nodes of a graph that the host has just handed to the scheduler.
#[must_use]
pub(crate) fn graph_nodes(graph: Ptr) -> Option<Vec<TensorPtr>> {
    // SAFETY: the graph that the host has just handed to the scheduler.
    let n = unsafe { api::ggml_graph_n_nodes(graph) }?;
    // SAFETY: as above.
    let nodes = unsafe { api::ggml_graph_nodes(graph) }.filter(|p| !p.is_null())?;
    // SAFETY: ggml: the array has n_nodes entries, each a live tensor while the graph runs.
    Some((0..usize::try_from(n).ok()?).filter_map(|i| unsafe { TensorPtr::new(nodes.add(i).read().cast()) }).collect())
}
