//! What a graph node is and what it costs: pure functions over names, shapes and types. No pointer, no clock, no host.
//!
//! Before it: `ggml` (reads a node out of the host's memory). After it: `observe` (keeps one plan per graph).

pub mod class;
pub mod component;
pub mod cost;
mod flops;
pub mod name;
mod ops;
pub mod origin;
mod rules;

/// A tensor as far as classification and cost need it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tensor<'a> {
    /// Full ggml name, possibly with suffixes like ` (view)`.
    pub name: &'a str,
    /// `ggml_op_desc`: `MUL_MAT`, `ADD`, `SWIGLU`, `NONE` for leaves, ...
    pub op: &'a str,
    /// ggml type name: `f32`, `q4_1`, ...
    pub type_name: &'a str,
    /// Elements, fastest dimension first.
    pub ne: [i64; 4],
    /// `ggml_nbytes`: bytes that the tensor spans.
    pub nbytes: u64,
    /// Elements of one block of the type (1, 32, 256).
    pub block_size: u32,
    /// Bytes of one block of the type.
    pub type_size: u32,
}

impl Tensor<'_> {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        (0..4).fold(1, |product: u64, dim| product.saturating_mul(self.dim(dim)))
    }

    /// Bytes of the elements alone, without the gaps of a strided view.
    #[must_use]
    pub fn packed_bytes(&self) -> u64 {
        (self.elements() / u64::from(self.block_size.max(1))).saturating_mul(u64::from(self.type_size))
    }

    /// Elements along one dimension; none for a dimension that does not exist or makes no sense.
    #[must_use]
    pub fn dim(&self, dim: usize) -> u64 {
        self.ne.get(dim).map_or(0, |&n| u64::try_from(n).unwrap_or(0))
    }

    /// Number of rows: everything but the first dimension.
    #[must_use]
    pub fn rows(&self) -> u64 {
        (1..4).fold(1, |product: u64, dim| product.saturating_mul(self.dim(dim)))
    }

    /// Bytes of one packed row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        (self.dim(0) / u64::from(self.block_size.max(1))).saturating_mul(u64::from(self.type_size))
    }
}

/// A graph node with its sources (absent ones left out at the end, a gap is a default tensor).
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The result.
    pub out: Tensor<'a>,
    /// The sources, in ggml's order.
    pub src: &'a [Tensor<'a>],
}

impl<'a> Node<'a> {
    /// One source; an absent one is an empty tensor.
    #[must_use]
    pub fn source(&self, i: usize) -> Tensor<'a> {
        self.src.get(i).copied().unwrap_or_default()
    }
}
