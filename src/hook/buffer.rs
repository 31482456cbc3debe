//! Backend buffers and the tensors placed in them.

use super::Ptr;
use crate::boundary::guarded;
use crate::capture::allocator;
use crate::ggml::api;
use crate::ggml::copies::{self, Caller, Hooked, Target};
use crate::ggml::view::TensorPtr;
use crate::observe::buffers::Kind;
use crate::{journal, observe};

fn tensor_placed(buffer: Ptr, tensor: Ptr) {
    // SAFETY: the host has just placed this tensor, and it is looked at here and now.
    let Some(t) = (unsafe { TensorPtr::new(tensor) }) else { return };
    let placement = observe::host().buffers.tensor_placed(buffer, t, journal::level());
    if let Some(placement) = placement {
        journal::push_line(placement.line(None));
    }
}

/// What the tensors of a ggml context are for, as far as the name of its first one says.
fn kind_of(ctx: Ptr) -> Option<Kind> {
    // SAFETY: the host has just passed this context to ggml.
    let first = unsafe { api::ggml_get_first_tensor(ctx) }.filter(|t| !t.is_null())?;
    // SAFETY: a live tensor of that context.
    Kind::of_tensor(&unsafe { api::text(api::ggml_get_name(first)) }?)
}

hooks! {
    /// A buffer is made for the tensors of a context. ggml allocates it by the call below, which is not seen
    /// in every build.
    fn ggml_backend_alloc_ctx_tensors_from_buft(ctx: Ptr, buft: Ptr) -> Ptr;
    before { Some(observe::host().buffers.filling()) }
    after |filling, buffer| {
        if let Some(filling) = filling.filter(|_| !buffer.is_null()) {
            let kind = kind_of(ctx);
            // SAFETY: the real function has just made it.
            unsafe { observe::host().buffers.filled(&filling, *buffer, kind) }
        }
    }
}

exported! {
    /// A buffer is allocated. Its kind is known later; see `observe::buffers`. Where the buffer replaces a larger
    /// one, because an attempt to keep tensors for a capture has failed, it gets the size of the larger one if
    /// there is room.
    fn ggml_backend_buft_alloc_buffer(buft: Ptr, size: usize) -> Ptr => allocate;
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn allocate(buft: Ptr, size: usize, caller: Caller) -> Ptr {
    type Allocate = unsafe extern "C-unwind" fn(Ptr, usize) -> Ptr;
    static REAL: Hooked = Hooked::new(c"ggml_backend_buft_alloc_buffer");
    let Target { address, copy, .. } = REAL.of(caller);
    let _entered = copies::enter(copy);
    if address.is_null() {
        observe::state::missing("ggml_backend_buft_alloc_buffer");
        return std::ptr::null_mut();
    }
    // SAFETY: the signature of this function in ggml-backend.h; the host called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, Allocate>(address) };
    if !copy.is_observed() {
        // SAFETY: the host's own arguments.
        return unsafe { real(buft, size) };
    }
    let before = guarded(None, || {
        observe::recording::call_seen();
        allocator::size_before(buft, size)
    });
    // SAFETY: the host's own argument, and a size that this kind of buffer has had.
    let mut buffer = before.map_or(std::ptr::null_mut(), |before| unsafe { real(buft, before) });
    if buffer.is_null() {
        // SAFETY: the host's own arguments.
        buffer = unsafe { real(buft, size) };
    }
    guarded((), || {
        if !buffer.is_null() {
            allocator::buffer_made(buffer);
            // SAFETY: the real function has just made it.
            unsafe { observe::host().buffers.allocated(buffer, false) }
        }
    });
    buffer
}

hooks! {
    /// A buffer over a mapped file: weights that take no memory of their own.
    fn ggml_backend_dev_buffer_from_host_ptr(device: Ptr, ptr: Ptr, size: usize, max_tensor_size: usize) -> Ptr;
    before {}
    after |(), buffer| {
        if !buffer.is_null() {
            // SAFETY: the real function has just made it.
            unsafe { observe::host().buffers.allocated(*buffer, true) }
        }
    }

    /// The host says what a buffer is for.
    fn ggml_backend_buffer_set_usage(buffer: Ptr, usage: u32);
    before { observe::host().buffers.usage_set(buffer, usage) }

    /// A tensor gets its place in a buffer.
    fn ggml_backend_tensor_alloc(buffer: Ptr, tensor: Ptr, address: Ptr) -> i32;
    before {}
    after |(), status| { if *status == 0 { tensor_placed(buffer, tensor) } }

    /// A buffer is freed; before the real call, while it can still be asked.
    fn ggml_backend_buffer_free(buffer: Ptr);
    before {
        if !buffer.is_null() {
            // SAFETY: the host frees it after this, so it is there.
            unsafe { allocator::buffer_freed(buffer) };
            observe::host().buffers.freed(buffer);
        }
    }
}
