//! A tensor that got its place in a buffer, and its event.

use crate::format::Line;
use crate::format::figures::{mib, shape};
use crate::format::resource::MemoryAllocation;
use crate::graph::class;
use crate::journal::stamp::resource_id;

/// A tensor that got its place in a buffer.
#[derive(Clone, Debug)]
pub struct Placement {
    /// When.
    pub t_ns: u64,
    /// Address of its data, 0 if it has none.
    pub address: usize,
    /// Its name.
    pub tensor: Box<str>,
    /// Operation that makes it.
    pub op: &'static str,
    /// Type.
    pub precision: &'static str,
    /// Shape.
    pub ne: [i64; 4],
    /// Bytes that it spans.
    pub nbytes: u64,
    /// Bytes without gaps.
    pub packed_bytes: u64,
    /// Buffer type.
    pub backend: &'static str,
    /// Device.
    pub device: Option<&'static str>,
    /// `ram`, `vram`, `mmap`.
    pub memory_type: &'static str,
    /// What the buffer is for.
    pub usage: &'static str,
}

impl Placement {
    /// The event. Made by the writer for the tensors of a graph, which `step` runs: there may be a thousand.
    #[must_use]
    pub fn line(&self, step: Option<u64>) -> Line {
        let class = class::classify_tensor(&self.tensor, self.op);
        let component = class.component.name();
        let elements = self.ne.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
        Line::MemoryAllocation(MemoryAllocation {
            resource_id: resource_id(self.device.or(Some(self.backend)), "memory", class.layer, component, self.t_ns),
            timestamp: String::new(),
            component_type: component.to_owned(),
            layer_id: class.layer,
            allocation_size_mb: mib(self.nbytes),
            memory_type: self.memory_type.to_owned(),
            tensor_shape: shape(&self.ne),
            precision: self.precision.to_owned(),
            estimated_bandwidth_gbps: None,
            compression_ratio: if self.packed_bytes > 0 {
                (elements * 4) as f64 / self.packed_bytes as f64
            } else {
                1.0
            },
            memory_address: (self.address != 0).then(|| format!("{:#x}", self.address)),
            session_id: String::new(),
            step,
            t_ns: self.t_ns,
            backend: Some(self.backend.to_owned()),
            device: self.device.map(str::to_owned),
            tensor: self.tensor.to_string(),
            usage: self.usage.to_owned(),
            tensor_strides: None,
        })
    }
}
