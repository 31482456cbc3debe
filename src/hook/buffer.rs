//! Backend buffers and the tensors placed in them.

use super::Ptr;
use crate::clock;
use crate::format::resource::MemoryAllocation;
use crate::format::{Level, Line};
use crate::ggml::view::TensorPtr;
use crate::graph::class;
use crate::observe;
use crate::record::{self, expand::shape, stamp::resource_id};

/// Below this size a tensor is no news at MINIMAL.
const LARGE: u64 = 1 << 20;

fn tensor_placed(buffer: Ptr, tensor: Ptr, address: Ptr) {
    // SAFETY: the host has just placed this tensor.
    let Some(t) = (unsafe { TensorPtr::new(tensor) }) else { return };
    let view = t.view();
    let mut host = observe::host();
    let Some(b) = host.buffers.tensor_placed(buffer, view.name) else { return };
    let large = view.nbytes > LARGE;
    let wanted = match record::level() {
        Level::Minimal => large,
        Level::Detailed => large || b.kind_name() != "compute",
        Level::Verbose => true,
    };
    if !wanted {
        return;
    }
    let now = clock::now_ns();
    let class = class::classify_tensor(view.name, view.op);
    let component = class.component.name();
    let stored = view.packed_bytes();
    record::push_line(Line::MemoryAllocation(MemoryAllocation {
        resource_id: resource_id(b.device().or(Some(b.type_name())), "memory", class.layer, component, now),
        timestamp: String::new(),
        component_type: component.to_owned(),
        layer_id: class.layer,
        allocation_size_mb: (view.nbytes as f64 / 1024.0 / 1024.0 * 1e6).round() / 1e6,
        memory_type: b.memory_type().to_owned(),
        tensor_shape: shape(&view.ne),
        precision: view.type_name.to_owned(),
        estimated_bandwidth_gbps: None,
        compression_ratio: if stored > 0 { (view.elements() * 4) as f64 / stored as f64 } else { 1.0 },
        memory_address: (!address.is_null()).then(|| format!("{address:p}")),
        session_id: String::new(),
        step: None,
        t_ns: now,
        backend: Some(b.type_name().to_owned()),
        device: b.device().map(str::to_owned),
        tensor: view.name.to_owned(),
        usage: b.kind_name().to_owned(),
    }));
}

hooks! {
    /// A buffer is allocated. Its kind shows later; see `observe::buffers`.
    fn ggml_backend_buft_alloc_buffer(buft: Ptr, size: usize) -> Ptr;
    before {}
    after |(), buffer| { if !buffer.is_null() { observe::host().buffers.allocated(*buffer, false) } }

    /// A buffer over a mapped file: weights that take no memory of their own.
    fn ggml_backend_dev_buffer_from_host_ptr(device: Ptr, ptr: Ptr, size: usize, max_tensor_size: usize) -> Ptr;
    before {}
    after |(), buffer| { if !buffer.is_null() { observe::host().buffers.allocated(*buffer, true) } }

    /// The host says what a buffer is for.
    fn ggml_backend_buffer_set_usage(buffer: Ptr, usage: u32);
    before { observe::host().buffers.usage_set(buffer, usage) }

    /// A tensor gets its place in a buffer.
    fn ggml_backend_tensor_alloc(buffer: Ptr, tensor: Ptr, address: Ptr) -> i32;
    before {}
    after |(), status| { if *status == 0 { tensor_placed(buffer, tensor, address) } }

    /// A buffer is freed; before the real call, while it can still be asked.
    fn ggml_backend_buffer_free(buffer: Ptr);
    before { if !buffer.is_null() { observe::host().buffers.freed(buffer) } }
}
