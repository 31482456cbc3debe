//! What capturing needs of ggml beyond the scheduler's own life: the allocator's plans, and the callback that the host has set.

use super::Ptr;
use crate::boundary::observe as guarded;
use crate::capture;
use crate::ggml::api::EvalCallback;
use crate::ggml::copies::{self, Caller, Hooked, Target};
use crate::observe;

exported! {
    /// Places a graph in memory by the plan that the allocator holds. The plan knows sizes, not flags: for a graph with nodes that we want
    /// kept it is refused once, without a call of the real function, and the scheduler plans that very graph anew. This is the one hook
    /// that answers in place of the real function.
    fn ggml_gallocr_alloc_graph(allocator: Ptr, graph: Ptr) -> bool => alloc_graph;
}

/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn alloc_graph(allocator: Ptr, graph: Ptr, caller: Caller) -> bool {
    static REAL: Hooked = Hooked::new(c"ggml_gallocr_alloc_graph");
    let Target { address, copy, .. } = REAL.of(caller);
    let _entered = copies::enter(copy);
    if copy.is_observed() && capture::is_on() && guarded(false, capture::run::must_replan) {
        return false;
    }
    if address.is_null() {
        observe::state::missing("ggml_gallocr_alloc_graph");
        return false;
    }
    // SAFETY: the signature of this function in ggml-alloc.h; ggml called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr, Ptr) -> bool>(address) };
    // SAFETY: ggml's own arguments.
    unsafe { real(allocator, graph) }
}

hooks! {
    /// The allocator plans a graph anew, with the flags that it has now.
    fn ggml_gallocr_reserve_n(allocator: Ptr, graph: Ptr, node_buffers: Ptr, leaf_buffers: Ptr) -> bool;
    before { if capture::is_on() { capture::run::replanned() } }

    /// The host's own callback: it keeps working when ours is in its place.
    fn ggml_backend_sched_set_eval_callback(sched: Ptr, callback: Option<EvalCallback>, user_data: Ptr);
    before { capture::theirs_set(sched, callback, user_data) }
}
