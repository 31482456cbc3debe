//! Hosts that look functions up by handle, as Python's `ctypes` does for every call, get ggml's own definition in spite
//! of a preload. So `dlsym` is interposed too: asked for a function that we hook, it answers with our hook, as the
//! linker would have.
//!
//! The real `dlsym` looks at its return address (RTLD_NEXT means "after the caller"), so the special handles are passed
//! on by a jump, before any frame of ours exists. This works on x86-64 only; elsewhere such hosts are seen through the
//! calls inside ggml alone.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use super::Ptr;
use crate::boundary::{self, Phase};
use crate::ggml::{copies, symbol};
use crate::observe::timer::HOT;

unsafe extern "C" {
    fn dlerror() -> *const c_char;
}

/// A look-up in a handle: the host's answer, or our hook in its place.
extern "C" fn by_handle(handle: Ptr, name: *const c_char) -> Ptr {
    let found = symbol::dlsym(handle, name);
    if found.is_null() || name.is_null() || !matches!(boundary::phase(), Phase::Running | Phase::Waiting) {
        return found;
    }
    // SAFETY: dlsym's contract: a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name) };
    let bytes = name.to_bytes();
    if !(bytes.starts_with(b"llama_") || bytes.starts_with(b"ggml_")) || bytes.starts_with(b"llama_resource_") {
        return found;
    }
    boundary::catching(found, || {
        let ours = our_hook(name);
        let hooked = !ours.is_null() && ours != found && copies::may_stand_for(name, found);
        // Our own look-ups may have left an error that the host would take for its own.
        // SAFETY: dlerror only reads and clears this thread's message.
        unsafe { dlerror() };
        if hooked { ours } else { found }
    })
}

fn our_hook(name: &CStr) -> Ptr {
    static OWN: OnceLock<usize> = OnceLock::new();
    let handle = *OWN.get_or_init(|| {
        let Some(path) = crate::host::own_object()
            .and_then(|p| std::ffi::CString::new(p.into_os_string().into_encoded_bytes()).ok())
        else {
            return 0;
        };
        // SAFETY: RTLD_NOLOAD only gives a handle to what is loaded: ourselves. It is never closed, and neither are we.
        unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) as usize }
    });
    let found = if handle == 0 { std::ptr::null_mut() } else { symbol::dlsym(handle as Ptr, name.as_ptr()) };
    if symbol::is_ours(found) { found } else { std::ptr::null_mut() }
}

/// The interposed `dlsym`.
///
/// # Safety
/// As dlsym(3).
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym(handle: Ptr, name: *const c_char) -> Ptr {
    // RTLD_NEXT is -1 and RTLD_DEFAULT 0: plus one they are 0 and 1, and every real handle is above.
    std::arch::naked_asm!(
        "lea rax, [rdi + 1]",
        "cmp rax, 1",
        "ja 3f",
        "mov rax, [rip + {real}]",
        "test rax, rax",
        "jnz 2f",
        // The arguments are kept; with them and this the stack is aligned for the call.
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {find}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jz 4f",
        "2:",
        "jmp rax",
        "3:",
        "jmp {by_handle}",
        "4:",
        "ret",
        real = sym symbol::REAL_DLSYM,
        find = sym symbol::find_dlsym,
        by_handle = sym by_handle,
    )
}

/// The interposed `dlclose`: a library that goes takes functions with it that we know the addresses of.
///
/// # Safety
/// As dlclose(3).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dlclose(handle: Ptr) -> c_int {
    let status = symbol::close(handle);
    boundary::catching((), || {
        HOT.forget_unless(|caller| crate::host::object_at(caller).is_some());
        copies::a_library_was_closed();
    });
    status
}

// The signature above is what C calls; this keeps it honest against libc's declaration.
const _: unsafe extern "C" fn(Ptr, *const c_char) -> Ptr = libc::dlsym;
