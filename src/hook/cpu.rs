//! The CPU backend from inside: which operation begins on this thread, and the barriers between
//! operations. See `observe::timer`.
//!
//! These run for every operation on every compute thread, so they are written out: no guard but around `helpers::help`
//! (nothing else in them can panic), and when no step is timed one line of the cache (`timer::HOT`) and two jumps.

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::Ptr;
use crate::boundary::guarded;
use crate::capture::helpers;
use crate::ggml::copies::{self, Caller, Hooked, Target};
use crate::observe::timer::{self, HOT};
use crate::observe::workers;

type Forward = unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool;
type Fused = unsafe extern "C-unwind" fn(Ptr, Ptr, Ptr, Ptr, Ptr, Ptr);
type Barrier = unsafe extern "C-unwind" fn(Ptr);

/// The caller's own function, if it is known and there is nothing to do: no step is timed, and no operation told
/// to the capture.
#[inline]
fn straight_on(function: &AtomicPtr<c_void>, told: bool, caller: Caller) -> Option<Ptr> {
    let real = function.load(Ordering::Relaxed);
    (!timer::timing() && !told && !real.is_null() && HOT.is_called_by(caller.address())).then_some(real)
}

/// The caller's own function, null if there is none. That of the first copy whose operations are seen is kept.
fn find(hooked: &Hooked, function: &AtomicPtr<c_void>, caller: Caller) -> Target {
    let target = hooked.of(caller);
    if function.load(Ordering::Relaxed).is_null()
        && !target.address.is_null()
        && HOT.keep_caller(target.start, target.length)
    {
        function.store(target.address, Ordering::Relaxed);
    }
    target
}

fn begins(tensor: Ptr) {
    if HOT.listens() && helpers::is_wanted(tensor) {
        guarded((), || helpers::help(tensor));
    }
    if timer::timing() {
        timer::op_begins(tensor);
        if workers::on() {
            workers::op_begins();
        }
    }
}

exported! {
    /// ggml calls this first for every node that is not fused: the tensor tells which operation begins.
    fn ggml_cpu_extra_compute_forward(params: Ptr, tensor: Ptr) -> bool => forward;

    /// The one function that computes nodes without the call above: a norm and the multiplication after it. Six integer
    /// registers are handed on, so that a further argument in another version is not lost.
    fn ggml_compute_forward_rms_norm_mul_fused(params: Ptr, tensor: Ptr, c: Ptr, d: Ptr, e: Ptr, f: Ptr) => fused;

    /// Threads meet: between two operations, and inside some.
    fn ggml_barrier(pool: Ptr) => barrier;
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn forward(params: Ptr, tensor: Ptr, caller: Caller) -> bool {
    match straight_on(&HOT.forward, HOT.listens(), caller) {
        // SAFETY: the signature in ggml-cpu's traits.h in every version that has it, and the host's own arguments.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Forward>(real)(params, tensor) },
        // SAFETY: as for this function.
        None => unsafe { forward_seen(params, tensor, caller) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn forward_seen(params: Ptr, tensor: Ptr, caller: Caller) -> bool {
    static REAL: Hooked = Hooked::new(c"ggml_cpu_extra_compute_forward");
    let Target { address: real, copy, .. } = find(&REAL, &HOT.forward, caller);
    if copy.is_observed() {
        let _entered = copies::enter(copy);
        begins(tensor);
    }
    // SAFETY: the signature in ggml-cpu's traits.h in every version that has it, and the host's own arguments.
    !real.is_null() && unsafe { std::mem::transmute::<Ptr, Forward>(real)(params, tensor) }
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn fused(params: Ptr, tensor: Ptr, c: Ptr, d: Ptr, e: Ptr, f: Ptr, caller: Caller) {
    match straight_on(&HOT.fused, HOT.listens(), caller) {
        // SAFETY: integer registers only, in every version; they are the host's own.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Fused>(real)(params, tensor, c, d, e, f) },
        // SAFETY: as for this function.
        None => unsafe { fused_seen(params, tensor, c, d, e, f, caller) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn fused_seen(params: Ptr, tensor: Ptr, c: Ptr, d: Ptr, e: Ptr, f: Ptr, caller: Caller) {
    static REAL: Hooked = Hooked::new(c"ggml_compute_forward_rms_norm_mul_fused");
    let Target { address: real, copy, .. } = find(&REAL, &HOT.fused, caller);
    if copy.is_observed() {
        let _entered = copies::enter(copy);
        begins(tensor);
    }
    if !real.is_null() {
        // SAFETY: integer registers only, in every version; they are the host's own.
        unsafe { std::mem::transmute::<Ptr, Fused>(real)(params, tensor, c, d, e, f) }
    }
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn barrier(pool: Ptr, caller: Caller) {
    match straight_on(&HOT.barrier, false, caller) {
        // SAFETY: the signature in ggml-cpu-impl.h in every version, and the host's own argument.
        Some(real) => unsafe { std::mem::transmute::<Ptr, Barrier>(real)(pool) },
        // SAFETY: as for this function.
        None => unsafe { barrier_seen(pool, caller) },
    }
}

/// # Safety
/// As for the hook.
#[inline(never)]
unsafe extern "C-unwind" fn barrier_seen(pool: Ptr, caller: Caller) {
    static REAL: Hooked = Hooked::new(c"ggml_barrier");
    let real = find(&REAL, &HOT.barrier, caller).address;
    let timing = timer::timing();
    let main = timing && timer::barrier_enter();
    let worker = timing && !main && workers::on() && workers::barrier_enter();
    if !real.is_null() {
        // SAFETY: the signature in ggml-cpu-impl.h in every version, and the host's own argument.
        unsafe { std::mem::transmute::<Ptr, Barrier>(real)(pool) };
    }
    if main {
        timer::barrier_leave();
    } else if worker {
        workers::barrier_leave();
    }
}
