//! Finds the host's own definition of a function that we interpose or call.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of the host, looked up at the first use and kept.
#[derive(Debug)]
pub struct Symbol {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Symbol {
    /// A symbol that has not been looked up.
    #[must_use]
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address, null while the host has no such function. A miss is not kept: the host may load ggml later.
    #[inline]
    pub fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if known.is_null() { self.look_up() } else { known }
    }

    #[cold]
    fn look_up(&self) -> *mut c_void {
        let found = next(self.name);
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

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

/// The definition of `name` that the host would call if we were not here; null if there is none.
#[must_use]
pub fn next(name: &CStr) -> *mut c_void {
    let found = dlsym(libc::RTLD_NEXT, name.as_ptr());
    if !found.is_null() {
        return found;
    }
    // Loaded RTLD_LOCAL (a Node.js addon, Python's ctypes, a wheel with everything in one extension module): RTLD_NEXT searches the
    // global scope only, and a hook that trusted its null would crash the host. So every other loaded object is asked by handle.
    for path in other_objects() {
        // SAFETY: RTLD_NOLOAD never loads: it only gives a handle to an object that is loaded already.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if handle.is_null() {
            continue;
        }
        let found = dlsym(handle, name.as_ptr());
        // SAFETY: gives back the reference that dlopen took; the host holds its own, so the object stays.
        unsafe { libc::dlclose(handle) };
        // A handle searches the object's dependencies too, and we may be one of them (a patched build).
        if !found.is_null() && !is_ours(found) {
            return found;
        }
    }
    std::ptr::null_mut()
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
            // SAFETY: dlpi_name is a NUL-terminated string of the loader; `data` is the Vec below, ours alone during the iteration.
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
