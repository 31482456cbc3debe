//! A device of ggml's: its name and kind, if it has been given functions that say so.
//!
//! `ggml_backend_dev_name` calls the device's own `get_name` without a look. Devices that a registry gives have one; a
//! host that makes a backend of its own (llama.cpp's `test-alloc` does) may hand the scheduler a device with hardly any
//! function in it.

use super::api::{self, Ptr};

/// The first functions of every device, in ggml's order since there are devices (October 2024).
#[repr(C)]
struct First {
    get_name: Ptr,
    get_description: Ptr,
    get_memory: Ptr,
    get_type: Ptr,
}

/// # Safety
/// `device` is a live device of ggml's.
unsafe fn first<'a>(device: Ptr) -> &'a First {
    // SAFETY: the caller's promise; a device begins with its functions, of which there are a dozen.
    unsafe { &*device.cast::<First>() }
}

/// What a device is called, `None` where it does not say.
///
/// # Safety
/// `device` is a live device of ggml's.
#[must_use]
pub unsafe fn name(device: Ptr) -> Option<String> {
    // SAFETY: the caller's promise.
    if unsafe { first(device) }.get_name.is_null() {
        return None;
    }
    // SAFETY: as above, and the function that ggml will call is there.
    unsafe { api::text(api::ggml_backend_dev_name(device)) }
}

/// What kind it is of: 0 CPU, 1 GPU, 2 integrated GPU, 3 accelerator; `None` where it does not say.
///
/// # Safety
/// `device` is a live device of ggml's.
#[must_use]
pub unsafe fn kind(device: Ptr) -> Option<i32> {
    // SAFETY: the caller's promise.
    if unsafe { first(device) }.get_type.is_null() {
        return None;
    }
    // SAFETY: as above, and the function that ggml will call is there.
    unsafe { api::ggml_backend_dev_type(device) }
}
