//! The parts of a model that tensors belong to.

/// What part of the model a tensor belongs to. The numbers are written to files: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Nothing below fits.
    Other = 0,
    /// Self- and cross-attention, its projections and its core; compressed KV (MLA) included.
    Attention = 1,
    /// Dense feed-forward.
    Mlp = 2,
    /// Normalisation, wherever it stands (the final one is `Output`, inside experts it is `Moe`).
    Norm = 3,
    /// Router, routed and shared experts.
    Moe = 4,
    /// Token, position and per-layer embeddings, and what joins them.
    Embedding = 5,
    /// Final norm, language-model head, classifier and pooled results.
    Output = 6,
    /// The K and V caches and what is written into or viewed from them.
    KvCache = 7,
    /// State-space and linear attention, with their states and convolutions.
    Ssm = 8,
    /// The stream between the blocks.
    Residual = 9,
    /// Choice of the positions that sparse attention looks at.
    AttentionIndex = 10,
    /// Filled by the host before each run: token ids, positions, masks.
    Input = 11,
    /// Samplers that run in the graph.
    Sampling = 12,
}

impl Component {
    /// Every component, at its own number.
    pub const ALL: [Self; 13] = [
        Self::Other,
        Self::Attention,
        Self::Mlp,
        Self::Norm,
        Self::Moe,
        Self::Embedding,
        Self::Output,
        Self::KvCache,
        Self::Ssm,
        Self::Residual,
        Self::AttentionIndex,
        Self::Input,
        Self::Sampling,
    ];

    /// The word used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Norm => "norm",
            Self::Moe => "moe",
            Self::Embedding => "embedding",
            Self::Output => "output",
            Self::KvCache => "kv_cache",
            Self::Ssm => "ssm",
            Self::Residual => "residual",
            Self::AttentionIndex => "attention_index",
            Self::Input => "input",
            Self::Sampling => "sampling",
        }
    }

    /// The component of a number from a file; a number of a later version is `Other`.
    #[must_use]
    pub fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Other)
    }
}
