//! What a stream holds, from the descriptions of its packets alone: one entry a tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::labels;
use super::steps::Steps;
use crate::codec::DType;
use crate::format::stream::{Slice, TensorMeta};
use crate::graph::component::Component;

/// One tensor of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tensor {
    /// Name of its packets.
    pub name: String,
    /// ggml's name of it.
    pub tensor: String,
    /// Operation that made it.
    pub op: String,
    /// Part of the model.
    pub component: &'static str,
    /// Block of the model; `None` outside of the blocks.
    pub layer: Option<i32>,
    /// Type of its values.
    pub dtype: &'static str,
    /// How they are stored.
    pub codecs: BTreeSet<&'static str>,
    /// Packets.
    pub packets: u64,
    /// Shapes of a token's values: `[ne0]`, or `[ne0, heads]` and the like; several where a length changes from
    /// step to step.
    pub shapes: BTreeSet<Vec<u32>>,
    /// Rows of `ne0` values.
    pub rows: u64,
    /// Tokens; 0 where no dimension counts them.
    pub tokens: u64,
    /// Values.
    pub values: u64,
    /// Bytes of the values before encoding.
    pub bytes: u64,
    /// Bytes of the packets in the file, framing and description included.
    pub stored_bytes: u64,
    /// `bytes / stored_bytes`.
    pub ratio: Option<f64>,
    /// Bound that the codec was given; 0 for lossless ones.
    pub error_bound: f64,
    /// Largest relative L2 error of a row, as measured by the encoder.
    pub row_l2_max: f64,
    /// Largest error of a value against the magnitude of its block of 64, as measured by the encoder.
    pub block_max: f64,
    /// Values that did not fit the narrower type.
    pub saturated: u64,
    /// Blocks that it was found in.
    pub layers: BTreeSet<i32>,
    /// How it was read out of the host.
    pub routes: BTreeSet<&'static str>,
    /// Elements of each row that are stored: start, distance, length of the whole row; `None` for all.
    pub slice: Option<[u32; 3]>,
    /// First step that has it.
    pub first_step: u64,
    /// Last step that has it.
    pub last_step: u64,
}

/// Folds descriptions into an inventory. Memory grows with the tensors, the requests and the gaps between steps, not
/// with the packets.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    numbers: BTreeMap<String, usize>,
    tensors: Vec<Tensor>,
    steps: Steps,
    requests: BTreeSet<u64>,
    sequences: BTreeSet<i32>,
}

impl Inventory {
    /// Adds the packet of this name and description; `stored` is its length in the file.
    pub fn add(&mut self, name: &str, meta: &TensorMeta, stored: u64) {
        let number = if let Some(&number) = self.numbers.get(name) {
            number
        } else {
            self.numbers.insert(name.to_owned(), self.tensors.len());
            self.tensors.push(Tensor::new(name, meta));
            self.tensors.len() - 1
        };
        if let Some(tensor) = self.tensors.get_mut(number) {
            tensor.add(meta, stored);
        }
        for part in &meta.parts {
            self.steps.add(part.step);
            for row in &part.rows {
                if row.request != 0 {
                    self.requests.insert(row.request);
                }
                if row.seq >= 0 {
                    self.sequences.insert(row.seq);
                }
            }
        }
    }

    /// The tensors, in the order in which the file first names them.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(*self.numbers.get(name)?)
    }

    /// Steps that any tensor was captured in.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.count()
    }

    /// Tokens of the tensor that has most of them: with a stride, a filter or the last layer's fewer rows,
    /// others have less.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tensors.iter().map(|t| t.tokens).max().unwrap_or(0)
    }

    /// Requests that rows belong to.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.len() as u64
    }

    /// Sequences that rows belong to.
    #[must_use]
    pub fn sequences(&self) -> u64 {
        self.sequences.len() as u64
    }

    /// Bytes of all values before encoding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bytes of all tensors' packets in the file.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.stored_bytes).sum()
    }

    /// Packets of tensors.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.tensors.iter().map(|t| t.packets).sum()
    }
}

impl Tensor {
    fn new(name: &str, meta: &TensorMeta) -> Self {
        Self {
            name: name.to_owned(),
            tensor: meta.tensor.clone(),
            op: meta.op.clone(),
            component: Component::from_u8(meta.component).name(),
            layer: meta.layer,
            dtype: meta.dtype.name(),
            codecs: BTreeSet::new(),
            packets: 0,
            shapes: BTreeSet::new(),
            rows: 0,
            tokens: 0,
            values: 0,
            bytes: 0,
            stored_bytes: 0,
            ratio: None,
            error_bound: 0.0,
            row_l2_max: 0.0,
            block_max: 0.0,
            saturated: 0,
            layers: BTreeSet::new(),
            routes: BTreeSet::new(),
            slice: meta.slice.map(|Slice { start, step, full }| [start, step, full]),
            first_step: u64::MAX,
            last_step: 0,
        }
    }

    fn add(&mut self, meta: &TensorMeta, stored: u64) {
        self.packets += 1;
        self.stored_bytes += stored;
        self.codecs.insert(meta.codec.name());
        self.routes.insert(meta.route.name());
        self.layers.extend(meta.layer);
        self.error_bound = self.error_bound.max(decimal(meta.error_bound));
        self.row_l2_max = self.row_l2_max.max(decimal(meta.row_l2));
        self.block_max = self.block_max.max(decimal(meta.block_max));
        self.saturated = self.saturated.saturating_add(meta.saturated);
        for part in &meta.parts {
            let rows = labels::rows_of(part);
            self.rows = self.rows.saturating_add(rows);
            self.values = self.values.saturating_add(rows.saturating_mul(u64::from(part.ne[0])));
            self.tokens = self.tokens.saturating_add(labels::tokens_of(part).unwrap_or(0));
            self.first_step = self.first_step.min(part.step);
            self.last_step = self.last_step.max(part.step);
            self.shapes.insert(row_shape(part.ne, part.token_dim));
        }
        // A name keeps its type throughout a file; if a file breaks that, the sizes of its values still add up.
        let size = DType::parse(self.dtype).unwrap_or(meta.dtype).size();
        self.bytes = self.values.saturating_mul(size as u64);
        self.ratio = (self.stored_bytes > 0).then(|| self.bytes as f64 / self.stored_bytes as f64);
    }

    /// The shape of a token's values as text: `576`, `64x9`, or `256..1024` where it changes.
    #[must_use]
    pub fn shape(&self) -> String {
        let text = |shape: &Vec<u32>| shape.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
        match (self.shapes.first(), self.shapes.last()) {
            (Some(first), Some(last)) if first != last => format!("{}..{}", text(first), text(last)),
            (Some(only), _) => text(only),
            _ => String::new(),
        }
    }

    /// The codecs as text.
    #[must_use]
    pub fn codec(&self) -> String {
        self.codecs.iter().copied().collect::<Vec<_>>().join(",")
    }
}

/// The double with the shortest decimal form of the float: 0.001 for what was given as 0.001, so that it compares as
/// its reader expects.
#[must_use]
pub fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// `ne` without the dimension that counts tokens and without trailing ones.
fn row_shape(ne: [u32; 4], token_dim: u8) -> Vec<u32> {
    let counts_tokens = |i: usize| i > 0 && i == usize::from(token_dim);
    let mut shape: Vec<u32> = (0..4).filter(|&i| !counts_tokens(i)).map(|i| ne[i]).collect();
    while shape.len() > 1 && shape.last() == Some(&1) {
        shape.pop();
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::{Inventory, decimal, row_shape};
    use crate::codec::{Codec, DType};
    use crate::format::stream::{Part, Route, Row, TensorMeta};

    fn meta(step: u64, ne: [u32; 4], token_dim: u8) -> TensorMeta {
        let tokens = if token_dim == 0 { 0 } else { ne[usize::from(token_dim)] };
        let rows = (0..tokens).map(|i| Row { seq: 1, pos: i as i32, token: 5, request: 9 }).collect();
        TensorMeta {
            tensor: "Qcur-3".to_owned(),
            op: "ROPE".to_owned(),
            layer: Some(3),
            component: 1,
            occurrence: 0,
            dtype: DType::F16,
            codec: Codec::Zstd,
            route: Route::Callback,
            row_len: ne[0],
            error_bound: 0.0,
            row_l2: 1e-3,
            block_max: 0.25,
            saturated: 2,
            slice: None,
            parts: vec![Part { step, t_ns: 0, ne, token_dim, rows }],
        }
    }

    #[test]
    fn packets_of_a_name_add_up() {
        let mut inventory = Inventory::default();
        inventory.add("Qcur-3", &meta(4, [64, 9, 5, 1], 2), 1000);
        inventory.add("Qcur-3", &meta(5, [64, 9, 1, 1], 2), 152);
        inventory.add("KQ", &meta(5, [256, 2, 3, 1], 0), 10);
        let t = inventory.get("Qcur-3").unwrap();
        assert_eq!((t.packets, t.rows, t.tokens, t.values, t.bytes, t.stored_bytes), (2, 54, 6, 3456, 6912, 1152));
        assert_eq!((t.ratio, t.row_l2_max, t.saturated, t.shape().as_str()), (Some(6.0), 0.001, 4, "64x9"));
        assert_eq!((t.first_step, t.last_step, t.component), (4, 5, "attention"));
        assert_eq!(inventory.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["Qcur-3", "KQ"]);
        let totals = (inventory.steps(), inventory.tokens(), inventory.requests(), inventory.sequences());
        assert_eq!((totals, inventory.packets()), ((2, 6, 1, 1), 3));
    }

    #[test]
    fn shapes_leave_tokens_and_trailing_ones_out() {
        assert_eq!(row_shape([576, 7, 1, 1], 1), [576]);
        assert_eq!(row_shape([64, 7, 9, 1], 1), [64, 9]);
        assert_eq!(row_shape([64, 9, 7, 1], 2), [64, 9]);
        assert_eq!(row_shape([3, 2, 2, 1], 0), [3, 2, 2]);
        assert_eq!(row_shape([1, 1, 1, 1], 0), [1]);
        assert_eq!([0.001, 0.1, 1e-30, 0.0].map(decimal), [0.001, 0.1, 1e-30, 0.0]);
    }
}
