//! What is known of one node of a graph: where it runs, what it is, what it costs, where its data came from.

use crate::graph::class::Class;
use crate::graph::component::Component;
use crate::graph::cost::Cost;

/// Where a node is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Backend (`CPU`, `CUDA0`, ...).
    pub backend: &'static str,
    /// Device, `None` where the build does not tell.
    pub device: Option<&'static str>,
    /// Whether the CPU backend computes it, and so the CPU hooks can time it.
    pub is_cpu: bool,
    /// `vram` for a device with memory of its own, `ram` otherwise.
    pub memory_type: &'static str,
    /// Synchronising it only waits until the work was sent: that it is done shows when a result is read (RPC).
    pub answers_late: bool,
    /// The backend as the scheduler knows it, 0 where nothing is known.
    pub backend_address: usize,
}

/// Data that came from another component.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Component that made the data.
    pub from: Component,
    /// The tensor.
    pub tensor: Box<str>,
    /// Its bytes.
    pub bytes: u64,
}

/// One node that a backend computes.
#[derive(Clone, Debug)]
pub struct PlanNode {
    /// Operation, lower case.
    pub op: &'static str,
    /// Name of the result.
    pub name: Box<str>,
    /// Names of the sources.
    pub inputs: Box<[Box<str>]>,
    /// Component and layer.
    pub class: Class,
    /// FLOPs and bytes.
    pub cost: Cost,
    /// Type of the result.
    pub precision: &'static str,
    /// Shape of the result.
    pub shape: [i64; 4],
    /// Shape of the first source.
    pub src0_shape: [i64; 4],
    /// Bytes of the result, and of the activations that go in.
    pub out_bytes: u64,
    /// Bytes of the second source (the activation of a matrix multiplication).
    pub src1_bytes: u64,
    /// Where it runs.
    pub place: Place,
    /// `gate_proj`, ... for the matrix multiplications of a feed-forward block.
    pub mlp_role: Option<&'static str>,
    /// `Some(true)` writes keys, `Some(false)` values into the KV cache, so many bytes.
    pub kv_write: Option<(bool, u64)>,
    /// Data that came from other components.
    pub flows: Box<[Flow]>,
    /// Whether it only moves data.
    pub moves_only: bool,
    /// Whether its ids are where the experts of its layer are counted.
    pub counts_experts: bool,
}
