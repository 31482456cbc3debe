//! Asks the loader where a function is: the definition that a call from a given place would reach if we were not here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::host::LoadedObject;

/// The C library's own `dlsym`; ours (hook::lookup) stands before it, and must not be asked by ourselves.
pub(crate) static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Finds the C library's own `dlsym`, which cannot be asked for itself. Null if there is none.
pub(crate) extern "C" fn find_dlsym() -> *mut c_void {
    unsafe extern "C" {
        fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
    }
    // The versions in which glibc has exported it, for this architecture's baseline too.
    for version in [c"GLIBC_2.34", c"GLIBC_2.2.5", c"GLIBC_2.17"] {
        // SAFETY: a search by name and version; both strings are NUL-terminated.
        let found = unsafe { dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
        if !found.is_null() {
            REAL_DLSYM.store(found, Ordering::Relaxed);
            return found;
        }
    }
    std::ptr::null_mut()
}

/// The C library's `dlsym`, called past our own.
pub(crate) fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let known = REAL_DLSYM.load(Ordering::Relaxed);
    let address = if known.is_null() { find_dlsym() } else { known };
    if address.is_null() {
        return address;
    }
    // SAFETY: the signature of dlsym(3).
    let real = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void>(address)
    };
    // SAFETY: a live handle (or RTLD_NEXT: after us, since the call comes from here) and a NUL-terminated name.
    unsafe { real(handle, name) }
}

/// The C library's `dlclose`, called past our own (hook::lookup), which takes every call for one of the
/// host's. 0: done.
pub(crate) fn close(handle: *mut c_void) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        real = dlsym(libc::RTLD_NEXT, c"dlclose".as_ptr());
        REAL.store(real, Ordering::Relaxed);
    }
    if real.is_null() {
        return -1;
    }
    // SAFETY: the signature of dlclose(3). A library's destructors run in it, which are the host's.
    let real = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> c_int>(real) };
    // SAFETY: a handle that its owner gives back.
    unsafe { real(handle) }
}

/// Objects that the process started with, 0 before our constructor has run. They are the first of the loader's list,
/// and none of them goes.
static STARTED_WITH: AtomicUsize = AtomicUsize::new(0);

/// Our constructor runs: what is loaded now are the program and everything it is linked with, if we are preloaded
/// or linked ourselves.
pub(crate) fn note_start() {
    STARTED_WITH.store(crate::host::loaded_objects(), Ordering::Relaxed);
}

/// The definition of `name` that a call from `caller` would reach if we were not here; null if the loader gives
/// that place none.
///
/// Objects that the process started with see the global scope alone. This library has a place in that scope, and the
/// wanted definition is the next one. (A preload before us defines the same names: it must not be given itself.)
/// Objects that were loaded later see that scope first, and then what they were loaded with. But a definition that came
/// into the global scope after the caller is not what the caller was bound to.
#[must_use]
pub(crate) fn seen_from(caller: &LoadedObject, name: &CStr) -> *mut c_void {
    let global = dlsym(libc::RTLD_NEXT, name.as_ptr());
    let at_start = STARTED_WITH.load(Ordering::Relaxed);
    if at_start == 0 || caller.order < at_start {
        return global;
    }
    if !global.is_null() && crate::host::object_at(global as usize).is_none_or(|o| o.order <= caller.order) {
        return global;
    }
    let own = in_object(&caller.path, name);
    if own.is_null() { global } else { own }
}

/// The first definition of `name` that any object has, the global scope first: for a caller that we cannot place. Null
/// if there is none.
#[must_use]
pub(crate) fn anywhere(name: &CStr) -> *mut c_void {
    let found = dlsym(libc::RTLD_NEXT, name.as_ptr());
    if !found.is_null() {
        return found;
    }
    // Loaded RTLD_LOCAL (a Node.js addon, Python's ctypes, a wheel with everything in one extension module): RTLD_NEXT
    // searches the global scope only, and a hook that trusted its null would crash the host. So every other loaded
    // object is asked by handle.
    other_objects().iter().map(|path| in_object(path, name)).find(|found| !found.is_null()).unwrap_or_default()
}

/// The definition of `name` in the loaded object at `path` or in what it was linked with, ours excluded; null if
/// there is none.
#[must_use]
pub(crate) fn in_object(path: &CStr, name: &CStr) -> *mut c_void {
    // SAFETY: RTLD_NOLOAD never loads: it only gives a handle to an object that is loaded already.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return handle;
    }
    let found = dlsym(handle, name.as_ptr());
    // The host holds a reference of its own, so the object stays.
    close(handle);
    // A handle searches the object's dependencies too, and we may be one of them (a patched build).
    if found.is_null() || is_ours(found) { std::ptr::null_mut() } else { found }
}

/// Whether `address` lies in this library.
#[must_use]
pub fn is_ours(address: *mut c_void) -> bool {
    crate::host::object_of(address as usize) == crate::host::own_object()
}

/// Paths of all loaded objects but the program itself and us, ggml's and llama's first.
fn other_objects() -> Vec<CString> {
    unsafe extern "C" fn each(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr passes a valid info for the length of the call.
        let name = unsafe { (*info).dlpi_name };
        if !name.is_null() {
            // SAFETY: dlpi_name is a NUL-terminated string of the loader; `data` is the Vec below, ours alone
            // during the iteration.
            unsafe { (*data.cast::<Vec<CString>>()).push(CStr::from_ptr(name).to_owned()) };
        }
        0
    }
    let mut paths: Vec<CString> = Vec::new();
    // SAFETY: `each` matches the callback's type, does not unwind (pushes only), and `paths` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut paths).cast()) };
    let own = crate::host::own_object();
    paths.retain(|p| !p.is_empty() && own.as_deref().is_none_or(|o| o.as_os_str().as_encoded_bytes() != p.as_bytes()));
    paths.sort_by_key(|p| !is_llama_object(p.as_bytes()));
    paths
}

/// Whether a path's file name is that of a ggml or llama library (ours excluded).
fn is_llama_object(path: &[u8]) -> bool {
    let file = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    (file.starts_with(b"libggml") || file.starts_with(b"libllama"))
        && !file.starts_with(b"libllama_resource_instrumentation")
}

/// Whether a ggml or llama library is loaded: at start-up, that the program was linked against one.
#[must_use]
pub fn any_llama_object() -> bool {
    other_objects().first().is_some_and(|p| is_llama_object(p.as_bytes()))
}
