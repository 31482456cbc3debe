//! The CPU backend from inside: which operation begins on this thread, and the barriers between operations. See `observe::timer`.
//!
//! These run for every operation on every compute thread, so they are written out: no guard (nothing in them can panic), one relaxed
//! load when no step is timed.

use super::Ptr;
use crate::ggml::symbol::Symbol;
use crate::observe::{timer, workers};

#[inline]
fn begins(tensor: Ptr) {
    if timer::timing() {
        timer::op_begins(tensor);
        if workers::on() {
            workers::op_begins();
        }
    }
}

/// ggml calls this first for every node that is not fused: the tensor tells which operation begins.
///
/// # Safety
/// Called by ggml with its own arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_cpu_extra_compute_forward(params: Ptr, tensor: Ptr) -> bool {
    static REAL: Symbol = Symbol::new(c"ggml_cpu_extra_compute_forward");
    begins(tensor);
    let address = REAL.address();
    if address.is_null() {
        return false;
    }
    // SAFETY: the signature in ggml-cpu's traits.h in every version that has it.
    let real = unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool>(address) };
    // SAFETY: the host's own arguments.
    unsafe { real(params, tensor) }
}

/// The one function that computes nodes without the call above: a norm and the multiplication after it. Six integer registers are
/// handed on, so that a further argument in another version is not lost.
///
/// # Safety
/// Called by ggml with its own arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_compute_forward_rms_norm_mul_fused(
    params: Ptr,
    tensor: Ptr,
    c: Ptr,
    d: Ptr,
    e: Ptr,
    f: Ptr,
) {
    static REAL: Symbol = Symbol::new(c"ggml_compute_forward_rms_norm_mul_fused");
    begins(tensor);
    let address = REAL.address();
    if address.is_null() {
        return;
    }
    // SAFETY: integer registers only, in every version.
    let real =
        unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr, Ptr, Ptr, Ptr, Ptr, Ptr)>(address) };
    // SAFETY: the host's own registers.
    unsafe { real(params, tensor, c, d, e, f) }
}

/// Threads meet: between two operations, and inside some.
///
/// # Safety
/// Called by ggml with its thread pool.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_barrier(pool: Ptr) {
    static REAL: Symbol = Symbol::new(c"ggml_barrier");
    let timing = timer::timing();
    let main = timing && timer::barrier_enter();
    let worker = timing && !main && workers::on() && workers::barrier_enter();
    let address = REAL.address();
    if !address.is_null() {
        // SAFETY: the signature in ggml-cpu-impl.h in every version.
        let real = unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr)>(address) };
        // SAFETY: the host's own argument.
        unsafe { real(pool) };
    }
    if main {
        timer::barrier_leave();
    } else if worker {
        workers::barrier_leave();
    }
}
