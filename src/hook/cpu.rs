//! The CPU backend from inside: which operation begins on this thread, and the barriers between operations. See `observe::timer`.
//!
//! These run for every operation on every compute thread, so they are written out: no guard but around `share::help` (nothing else in them can panic), and when no step
//! is timed two lines of the cache (`timer::HOT` and its address) and a jump.

use std::sync::atomic::{AtomicPtr, Ordering};

use super::Ptr;
use crate::boundary::observe as guarded;
use crate::capture::share;
use crate::ggml::symbol::Symbol;
use crate::observe::timer::{self, HOT};
use crate::observe::workers;

type Forward = unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool;
type Fused = unsafe extern "C-unwind" fn(Ptr, Ptr, Ptr, Ptr, Ptr, Ptr);
type Barrier = unsafe extern "C-unwind" fn(Ptr);

/// The host's function, if it is known and there is nothing to do: no step is timed, and no operation told to the capture.
#[inline]
fn straight_on(function: &AtomicPtr<std::ffi::c_void>, told: bool) -> Option<Ptr> {
    let real = function.load(Ordering::Relaxed);
    (!timer::timing() && !told && !real.is_null()).then_some(real)
}

/// The host's function, looked up at the first call. Written once: all threads read that line of the cache at every operation.
fn find(symbol: &Symbol, function: &AtomicPtr<std::ffi::c_void>) -> Option<Ptr> {
    let mut real = function.load(Ordering::Relaxed);
    if real.is_null() {
        real = symbol.address();
        function.store(real, Ordering::Relaxed);
    }
    (!real.is_null()).then_some(real)
}

fn begins(tensor: Ptr) {
    if HOT.listens() && share::is_wanted(tensor) {
        guarded((), || share::help(tensor));
    }
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
    match straight_on(&HOT.forward, HOT.listens()) {
        // SAFETY: the signature in ggml-cpu's traits.h in every version that has it, and the host's own arguments.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Forward>(real)(params, tensor) },
        // SAFETY: as for this function.
        None => unsafe { forward(params, tensor) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn forward(params: Ptr, tensor: Ptr) -> bool {
    static REAL: Symbol = Symbol::new(c"ggml_cpu_extra_compute_forward");
    begins(tensor);
    // SAFETY: the signature in ggml-cpu's traits.h in every version that has it, and the host's own arguments.
    find(&REAL, &HOT.forward).is_some_and(|real| unsafe { std::mem::transmute::<Ptr, Forward>(real)(params, tensor) })
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
    match straight_on(&HOT.fused, HOT.listens()) {
        // SAFETY: integer registers only, in every version; they are the host's own.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Fused>(real)(params, tensor, c, d, e, f) },
        // SAFETY: as for this function.
        None => unsafe { fused(params, tensor, c, d, e, f) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn fused(params: Ptr, tensor: Ptr, c: Ptr, d: Ptr, e: Ptr, f: Ptr) {
    static REAL: Symbol = Symbol::new(c"ggml_compute_forward_rms_norm_mul_fused");
    begins(tensor);
    if let Some(real) = find(&REAL, &HOT.fused) {
        // SAFETY: integer registers only, in every version; they are the host's own.
        unsafe { std::mem::transmute::<Ptr, Fused>(real)(params, tensor, c, d, e, f) }
    }
}

/// Threads meet: between two operations, and inside some.
///
/// # Safety
/// Called by ggml with its thread pool.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_barrier(pool: Ptr) {
    match straight_on(&HOT.barrier, false) {
        // SAFETY: the signature in ggml-cpu-impl.h in every version, and the host's own argument.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Barrier>(real)(pool) },
        // SAFETY: as for this function.
        None => unsafe { barrier(pool) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn barrier(pool: Ptr) {
    static REAL: Symbol = Symbol::new(c"ggml_barrier");
    let timing = timer::timing();
    let main = timing && timer::barrier_enter();
    let worker = timing && !main && workers::on() && workers::barrier_enter();
    if let Some(real) = find(&REAL, &HOT.barrier) {
        // SAFETY: the signature in ggml-cpu-impl.h in every version, and the host's own argument.
        unsafe { std::mem::transmute::<Ptr, Barrier>(real)(pool) };
    }
    if main {
        timer::barrier_leave();
    } else if worker {
        workers::barrier_leave();
    }
}
