//! What capturing needs of ggml beyond the scheduler's own life: the allocator's plans, and the callback that the host has set.

use super::Ptr;
use crate::boundary::{observe as guarded, track as tracked};
use crate::capture::{self, allocator, allocator::Buffers};
use crate::ggml::api::EvalCallback;
use crate::ggml::symbol::Symbol;
use crate::observe;

type Reserve = unsafe extern "C-unwind" fn(Ptr, Ptr, Ptr, Ptr) -> bool;
type Place = unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool;

/// Places a graph in memory by the plan that the allocator holds. That knows sizes, not flags: where nodes are to be kept, we have this very
/// graph planned first, as its scheduler would by the same function where the plan does not fit.
///
/// # Safety
/// Called by ggml with a live allocator and graph.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_gallocr_alloc_graph(allocator: Ptr, graph: Ptr) -> bool {
    static REAL: Symbol = Symbol::new(c"ggml_gallocr_alloc_graph");
    if let Some(Buffers { nodes, leafs }) = guarded(None, || allocator::must_plan(allocator)) {
        // SAFETY: ggml's own arguments, and the arrays that the scheduler of this allocator has.
        if !unsafe { ggml_gallocr_reserve_n(allocator, graph, nodes, leafs) } {
            return false;
        }
    }
    let address = REAL.address();
    if address.is_null() {
        observe::state::missing("ggml_gallocr_alloc_graph");
        return false;
    }
    // SAFETY: the signature of this function in ggml-alloc.h; ggml called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, Place>(address) };
    // SAFETY: ggml's own arguments.
    if unsafe { real(allocator, graph) } {
        return true;
    }
    match guarded(None, || allocator::may_plan(allocator)) {
        // SAFETY: as above.
        Some(Buffers { nodes, leafs }) => unsafe {
            ggml_gallocr_reserve_n(allocator, graph, nodes, leafs) && real(allocator, graph)
        },
        None => false,
    }
}

/// The allocator plans a graph, with the flags that it has now, and gets the memory for it. Where that fails with nodes that are to be kept, they
/// are not any more, and it plans once more.
///
/// # Safety
/// Called by ggml with a live allocator and graph.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_gallocr_reserve_n(allocator: Ptr, graph: Ptr, nodes: Ptr, leafs: Ptr) -> bool {
    static REAL: Symbol = Symbol::new(c"ggml_gallocr_reserve_n");
    // Whether or not it is recorded: a capture that begins later has to know.
    tracked((), || allocator::plan_begins(allocator, Buffers { nodes, leafs }));
    let address = REAL.address();
    if address.is_null() {
        observe::state::missing("ggml_gallocr_reserve_n");
        return false;
    }
    // SAFETY: the signature of this function in ggml-alloc.h; ggml called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, Reserve>(address) };
    // SAFETY: ggml's own arguments.
    let mut planned = unsafe { real(allocator, graph, nodes, leafs) };
    if !planned && tracked(false, allocator::plan_failed) {
        // SAFETY: ggml's own arguments.
        planned = unsafe { real(allocator, graph, nodes, leafs) };
    }
    tracked((), || allocator::plan_ended(allocator, planned));
    planned
}

/// An allocator is freed; before the real call, so that its address is not taken for a new one's.
///
/// # Safety
/// Called by ggml with an allocator of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_gallocr_free(allocator: Ptr) {
    static REAL: Symbol = Symbol::new(c"ggml_gallocr_free");
    tracked((), || allocator::freed(allocator));
    let address = REAL.address();
    if address.is_null() {
        return observe::state::missing("ggml_gallocr_free");
    }
    // SAFETY: the signature of this function in ggml-alloc.h, and ggml's own argument.
    unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr)>(address)(allocator) };
}

/// The host's own callback: it keeps working when ours is in its place. Whether or not anything is recorded: the host may set it before.
///
/// # Safety
/// Called by the host with a live scheduler.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ggml_backend_sched_set_eval_callback(
    sched: Ptr,
    callback: Option<EvalCallback>,
    user_data: Ptr,
) {
    static REAL: Symbol = Symbol::new(c"ggml_backend_sched_set_eval_callback");
    tracked((), || capture::theirs_set(sched, callback, user_data));
    let address = REAL.address();
    if address.is_null() {
        return observe::state::missing("ggml_backend_sched_set_eval_callback");
    }
    type Set = unsafe extern "C-unwind" fn(Ptr, Option<EvalCallback>, Ptr);
    // SAFETY: the signature of this function in ggml-backend.h, and the host's own arguments.
    unsafe { std::mem::transmute::<Ptr, Set>(address)(sched, callback, user_data) };
}
