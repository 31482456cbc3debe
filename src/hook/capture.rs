//! What capturing needs of ggml beyond the scheduler's own life: the allocator's plans, and the callback that the
//! host has set.

use super::Ptr;
use crate::boundary::{guarded, tracked};
use crate::capture::{self, allocator, allocator::Buffers};
use crate::ggml::api::EvalCallback;
use crate::ggml::copies::{self, Caller, Hooked, Target};
use crate::observe;

type Reserve = unsafe extern "C-unwind" fn(Ptr, Ptr, Ptr, Ptr) -> bool;
type Place = unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool;

exported! {
    /// Places a graph in memory by the plan that the allocator holds. That plan knows sizes, not flags. So where
    /// nodes are to be kept, this very graph is planned first, by the function that its scheduler calls where a plan
    /// does not fit.
    fn ggml_gallocr_alloc_graph(allocator: Ptr, graph: Ptr) -> bool => place;

    /// The allocator plans a graph, with the flags that it has now, and gets the memory for it. Where that fails while
    /// nodes are to be kept, their flags are taken back, and it plans once more.
    fn ggml_gallocr_reserve_n(allocator: Ptr, graph: Ptr, nodes: Ptr, leafs: Ptr) -> bool => reserve;
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn place(allocator: Ptr, graph: Ptr, caller: Caller) -> bool {
    static REAL: Hooked = Hooked::new(c"ggml_gallocr_alloc_graph");
    let Target { address, copy, .. } = REAL.of(caller);
    let _entered = copies::enter(copy);
    let first = if copy.is_observed() { guarded(None, || allocator::must_plan(allocator)) } else { None };
    if let Some(Buffers { nodes, leafs }) = first {
        // SAFETY: ggml's own arguments, and the arrays that the scheduler of this allocator has.
        if !unsafe { reserve(allocator, graph, nodes, leafs, caller) } {
            return false;
        }
    }
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
    let again = if copy.is_observed() { guarded(None, || allocator::may_plan(allocator)) } else { None };
    match again {
        // SAFETY: as above.
        Some(Buffers { nodes, leafs }) => unsafe {
            reserve(allocator, graph, nodes, leafs, caller) && real(allocator, graph)
        },
        None => false,
    }
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn reserve(allocator: Ptr, graph: Ptr, nodes: Ptr, leafs: Ptr, caller: Caller) -> bool {
    static REAL: Hooked = Hooked::new(c"ggml_gallocr_reserve_n");
    let Target { address, copy, .. } = REAL.of(caller);
    let _entered = copies::enter(copy);
    if address.is_null() {
        observe::state::missing("ggml_gallocr_reserve_n");
        return false;
    }
    // SAFETY: the signature of this function in ggml-alloc.h; ggml called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, Reserve>(address) };
    if !copy.is_observed() {
        // SAFETY: ggml's own arguments.
        return unsafe { real(allocator, graph, nodes, leafs) };
    }
    // Whether or not it is recorded: a capture that begins later has to know.
    tracked((), || allocator::plan_begins(allocator, Buffers { nodes, leafs }));
    // SAFETY: ggml's own arguments.
    let mut planned = unsafe { real(allocator, graph, nodes, leafs) };
    if !planned && tracked(false, allocator::plan_failed) {
        // SAFETY: ggml's own arguments.
        planned = unsafe { real(allocator, graph, nodes, leafs) };
    }
    tracked((), || allocator::plan_ended(allocator, planned));
    planned
}

hooks! {
    /// An allocator is freed; before the real call, so that its address is not taken for a new one's.
    fn ggml_gallocr_free(allocator: Ptr);
    always { allocator::freed(allocator) }

    /// The host's own callback: it keeps working when ours is in its place. The host may set it before
    /// anything is recorded.
    fn ggml_backend_sched_set_eval_callback(sched: Ptr, callback: Option<EvalCallback>, user_data: Ptr);
    always { capture::theirs_set(sched, callback, user_data) }
}
