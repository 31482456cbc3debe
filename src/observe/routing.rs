//! Mixture-of-experts routing, read where it is alive: when the CPU backend begins a `MUL_MAT_ID`, its ids are complete
//! (the barrier before it has passed) and nothing has overwritten them. So no tensor is retained and no graph is cut.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::ggml::view::TensorPtr;
use crate::graph::name;

/// Choices of one layer.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Tokens routed.
    pub tokens: u64,
    /// Experts for each token.
    pub used: u32,
    /// Times each expert was chosen.
    pub counts: Vec<u64>,
}

/// Choices by layer, which steps add to and the writer takes.
#[derive(Debug, Default)]
pub struct Layers(Mutex<HashMap<i32, Layer>>);

/// More experts than any model has: beyond it a "number of experts" is a misread tensor.
const MAX_EXPERTS: i64 = 65_536;

/// Whether the choices of a layer are counted at the multiplication with these weights: one of the layer's two or
/// three, since all use the same ids. Every mixture-of-experts model has an `up` or a joint `gate_up`.
#[must_use]
pub fn counts(weights: &str) -> bool {
    weights.contains("ffn_up_exps") || weights.contains("ffn_gate_up_exps")
}

impl Layers {
    /// A matrix multiplication by expert begins, for which [`counts`] holds.
    pub fn observe(&self, t: TensorPtr) {
        let (Some(weights), Some(ids)) = (t.src(0), t.src(2)) else { return };
        let Some(layer) = name::parse(weights.name()).layer else { return };
        let n_expert = weights.ne()[2];
        let [used, tokens, ..] = ids.ne();
        let data = ids.data().cast::<u8>();
        if data.is_null() || n_expert <= 0 || n_expert > MAX_EXPERTS || used <= 0 || tokens < 0 {
            return;
        }
        let nb = ids.nb();
        let mut layers = self.0.lock();
        let entry = layers.entry(layer).or_default();
        entry.counts.resize(n_expert as usize, 0);
        entry.tokens += tokens as u64;
        entry.used = used as u32;
        for token in 0..tokens as usize {
            for k in 0..used as usize {
                // SAFETY: ggml: the ids tensor is I32 of shape [used, tokens] with these strides, in CPU memory (the
                // CPU backend is about to read the same numbers), complete since the barrier before this operation.
                let id = unsafe { data.add(token * nb[1] + k * nb[0]).cast::<i32>().read_unaligned() };
                if let Some(c) = usize::try_from(id).ok().and_then(|i| entry.counts.get_mut(i)) {
                    *c += 1;
                }
            }
        }
    }

    /// Takes the counts since the last call, in order of the layers.
    pub fn take(&self) -> Vec<(i32, Layer)> {
        let mut all: Vec<(i32, Layer)> = std::mem::take(&mut *self.0.lock()).into_iter().collect();
        all.sort_unstable_by_key(|(l, _)| *l);
        all
    }
}
