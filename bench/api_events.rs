//! What a mark of the C API costs on the caller's thread, alone and on eight threads at once.
//!
//!     cargo bench --bench api_events
//!
//! Each iteration is a thousand calls into rings that the writer has just emptied, so that nothing is dropped;
//! the figure is for one call (`ns` = time a call on the thread that makes it). More threads than cores share
//! them, and each waits for its turn: what a call costs the machine is then time times cores over threads. The
//! log is /dev/null. Rows with tensors take ggml from target/llama.cpp/bin and are left out where it has not been
//! built. Figures: docs/C-API.md.
#![allow(clippy::print_stdout, reason = "says what is not tested here, and figures")]
#![expect(unsafe_code, reason = "calls the C API as C does")]

use std::ffi::{CStr, CString, c_void};
use std::sync::OnceLock;

use divan::counter::ItemsCount;
use llama_resource_instrumentation::abi::{self, eval, marks};
use llama_resource_instrumentation::ggml::bindings::ggml_tensor;

const CALLS: usize = 1000;

fn main() {
    // SAFETY: NUL-terminated.
    let status = unsafe { abi::llama_resource_instrumentation_init(2, c"/dev/null".as_ptr()) };
    assert_eq!(status, abi::llama_resource_instrumentation_status::Success);
    // SAFETY: as above.
    unsafe { marks::llama_resource_instrumentation_begin_session(c"bench".as_ptr()) };
    divan::main();
    let mut s = abi::llama_resource_instrumentation_statistics::default();
    // SAFETY: the structure's own size.
    unsafe { abi::llama_resource_instrumentation_get_statistics(&raw mut s, size_of_val(&s)) };
    abi::llama_resource_instrumentation_free();
    println!("marks seen {}; by the log's rate or a full ring not written {}", s.events_seen, s.events_dropped);
}

fn emptied() {
    abi::llama_resource_instrumentation_flush();
}

fn thousand(bencher: divan::Bencher<'_, '_>, call: impl Fn(usize) + Sync) {
    bencher.counter(ItemsCount::new(CALLS)).with_inputs(emptied).bench_values(|()| (0..CALLS).for_each(&call));
}

/// What a macro pays in a program that records nothing: the question whether a recording is on.
#[divan::bench]
fn is_recording(bencher: divan::Bencher<'_, '_>) {
    thousand(bencher, |_| {
        divan::black_box(abi::llama_resource_instrumentation_is_recording());
    });
}

/// Begin and end of a layer, half of the calls each.
#[divan::bench(threads = [1, 8], sample_count = 200, sample_size = 1)]
fn layer(bencher: divan::Bencher<'_, '_>) {
    thousand(bencher, |i| {
        if i % 2 == 0 {
            marks::llama_resource_instrumentation_begin_layer(i as i32);
        } else {
            marks::llama_resource_instrumentation_end_layer(i as i32 - 1);
        }
    });
}

/// Begin and end of a component, half of the calls each.
#[divan::bench(threads = [1, 8], sample_count = 200, sample_size = 1)]
fn component(bencher: divan::Bencher<'_, '_>) {
    thousand(bencher, |i| {
        // SAFETY: NUL-terminated.
        unsafe {
            if i % 2 == 0 {
                marks::llama_resource_instrumentation_begin_component(c"attention".as_ptr());
            } else {
                marks::llama_resource_instrumentation_end_component(c"attention".as_ptr());
            }
        }
    });
}

/// A hand-off: two names.
#[divan::bench(threads = [1, 8], sample_count = 200, sample_size = 1)]
fn handoff(bencher: divan::Bencher<'_, '_>) {
    thousand(bencher, |_| {
        // SAFETY: NUL-terminated.
        unsafe { marks::llama_resource_instrumentation_log_component_handoff(c"attention".as_ptr(), c"mlp".as_ptr()) };
    });
}

/// Tensors of a ggml that is loaded for the bench.
struct Tensors([*const ggml_tensor; 3]);

// SAFETY: only read.
unsafe impl Send for Tensors {}
// SAFETY: only read.
unsafe impl Sync for Tensors {}

fn tensors() -> Option<&'static Tensors> {
    static TENSORS: OnceLock<Option<Tensors>> = OnceLock::new();
    TENSORS
        .get_or_init(|| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/llama.cpp/bin/libggml-base.so");
            let path =
                CString::new(std::env::var("LLAMA_RESOURCE_BENCH_GGML").unwrap_or_else(|_| path.to_owned())).ok()?;
            // SAFETY: loads a library; it stays.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            if handle.is_null() {
                println!("{} cannot be loaded: rows with tensors are left out", path.to_string_lossy());
                return None;
            }
            let find = |name: &CStr| {
                // SAFETY: a live handle and a name.
                let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
                (!found.is_null()).then_some(found)
            };
            use llama_resource_instrumentation::ggml::bindings::ggml_init_params;
            type Init = unsafe extern "C" fn(ggml_init_params) -> *mut c_void;
            type New = unsafe extern "C" fn(*mut c_void, u32, i64, i64) -> *mut ggml_tensor;
            type MulMat = unsafe extern "C" fn(*mut c_void, *mut ggml_tensor, *mut ggml_tensor) -> *mut ggml_tensor;
            // SAFETY: the signatures of ggml.h.
            let init = unsafe { std::mem::transmute::<*mut c_void, Init>(find(c"ggml_init")?) };
            // SAFETY: as above.
            let new = unsafe { std::mem::transmute::<*mut c_void, New>(find(c"ggml_new_tensor_2d")?) };
            // SAFETY: as above.
            let mul_mat = unsafe { std::mem::transmute::<*mut c_void, MulMat>(find(c"ggml_mul_mat")?) };
            // SAFETY: ggml allocates its own memory.
            let ctx = unsafe {
                init(ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: false })
            };
            // SAFETY: a live context with room enough.
            let (w, x) = unsafe { (new(ctx, 0, 64, 64), new(ctx, 0, 64, 3)) };
            // SAFETY: as above.
            let y = unsafe { mul_mat(ctx, w, x) };
            Some(Tensors([w, x, y]))
        })
        .as_ref()
}

/// An operation with two inputs: three tensors are read.
#[divan::bench(threads = [1, 8], sample_count = 200, sample_size = 1)]
fn compute_operation(bencher: divan::Bencher<'_, '_>) {
    let Some(Tensors([w, x, y])) = tensors() else { return };
    let inputs = Tensors([*w, *x, *y]);
    bencher.counter(ItemsCount::new(CALLS / 4)).with_inputs(emptied).bench_values(|()| {
        let inputs = &inputs;
        for _ in 0..CALLS / 4 {
            // SAFETY: live tensors.
            unsafe {
                marks::llama_resource_instrumentation_log_compute_operation(
                    c"mul_mat".as_ptr(),
                    c"qkv_proj".as_ptr(),
                    inputs.0.as_ptr(),
                    2,
                    inputs.0[2],
                );
            }
        }
    });
}

/// The eval callback where nothing is recorded for it: the answer to a `NULL` node.
#[divan::bench]
fn eval_callback_without_a_node(bencher: divan::Bencher<'_, '_>) {
    thousand(bencher, |_| {
        // SAFETY: NULL is checked.
        divan::black_box(unsafe {
            eval::llama_resource_eval_callback(std::ptr::null_mut(), true, std::ptr::null_mut())
        });
    });
}
