//! The scheduler: graphs allocated, graphs run.

use super::Ptr;
use crate::boundary::guarded;
use crate::capture::{self, helpers};
use crate::ggml::copies::{self, Caller, Hooked, Target};
use crate::observe::{self, lives, splits, steps, timer};
use crate::session;

hooks! {
    /// A graph was built and gets its memory. Not called for a graph that runs again as it is.
    fn ggml_backend_sched_alloc_graph(sched: Ptr, graph: Ptr) -> bool;
    before {
        let placing = observe::host().buffers.graph_begins(sched);
        let allocating = if capture::is_on() {
            capture::run::graph_begins(sched, graph)
        } else {
            capture::allocator::begin_without(sched)
        };
        (Some(placing), allocating)
    }
    after |(placing, allocating), done| {
        drop(placing);
        let mut host = observe::host();
        host.schedulers.graph_allocated(sched);
        drop(host);
        if capture::is_on() {
            capture::run::graph_allocated(sched, !done);
        }
        drop(allocating);
    }

    /// One backend runs its part of a graph: on the CPU backend the last operation ends here.
    fn ggml_backend_graph_compute_async(backend: Ptr, graph: Ptr) -> i32;
    before { splits::now() }
    after |start_ns, _| {
        timer::split_ends();
        splits::called(start_ns, backend, graph);
    }

    /// The scheduler, or the host, waits for a backend.
    fn ggml_backend_synchronize(backend: Ptr);
    before {}
    after |(), ()| { splits::synchronized(backend) }

    /// A part of the graph gets what another device has made, or what the host has filled in.
    fn ggml_backend_tensor_copy(src: Ptr, dst: Ptr);
    before { splits::now() }
    after |start_ns, ()| {
        // SAFETY: the host has just copied one to the other.
        unsafe { splits::copied(start_ns, src, dst) }
    }

    /// The same in pieces: the weights of the experts that were chosen.
    fn ggml_backend_tensor_set_async(backend: Ptr, tensor: Ptr, data: Ptr, offset: usize, size: usize);
    before { splits::now() }
    after |start_ns, ()| {
        // SAFETY: the host has just written to it.
        unsafe { splits::uploaded(start_ns, tensor, size) }
    }
}

hooks! {
    /// A scheduler is freed; before the real call, so that its address is not taken for a new one's. Its
    /// callback is forgotten whether or not anything is recorded now: a recording that begins later must not
    /// give it to another scheduler.
    fn ggml_backend_sched_free(sched: Ptr);
    always { capture::sched_freed(sched) }
    before { lives::scheduler_freed(sched) }
}

exported! {
    /// A graph runs: one ubatch.
    fn ggml_backend_sched_graph_compute_async(sched: Ptr, graph: Ptr) -> i32 => graph_compute;
}

/// Written out because the timer must run exactly while the real call does, and must stop when a C++ exception comes
/// out of it (its guard is dropped then, since the hook is `C-unwind`).
///
/// # Safety
/// As for the hook.
unsafe extern "C-unwind" fn graph_compute(sched: Ptr, graph: Ptr, caller: Caller) -> i32 {
    static REAL: Hooked = Hooked::new(c"ggml_backend_sched_graph_compute_async");
    let Target { address, copy, .. } = REAL.of(caller);
    let _entered = copies::enter(copy);
    let step = if copy.is_observed() {
        guarded(None, || {
            observe::recording::call_seen();
            steps::begin(sched, graph)
        })
    } else {
        None
    };
    let captured = copy.is_observed()
        && capture::is_on()
        && guarded(false, || capture::run::begins(sched, graph, step.as_ref().and_then(steps::Step::number)));
    if address.is_null() {
        observe::state::missing("ggml_backend_sched_graph_compute_async");
        return -1;
    }
    // SAFETY: the signature of this function in ggml-backend.h; the host called us by it.
    let real = unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn(Ptr, Ptr) -> i32>(address) };
    let running = step.as_ref().and_then(steps::Step::timer).map(timer::Timer::run);
    // A step that is written operation by operation is the host's alone.
    let untouched = step.as_ref().is_none_or(steps::Step::is_written);
    let helping = if captured && !untouched {
        guarded(None, || helpers::begin(step.as_ref().and_then(steps::Step::tokens_on_the_cpu)))
    } else {
        None
    };
    let watching = step.as_ref().map(|s| s.splits().run());
    // SAFETY: the host's own arguments.
    let status = unsafe { real(sched, graph) };
    drop(watching);
    drop(helping);
    drop(running);
    guarded((), || {
        if let Some(step) = step {
            steps::end(step);
        }
        if captured {
            capture::run::ends(sched, status);
        }
        session::step_is_over();
    });
    status
}
