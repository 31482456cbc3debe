//! Selections with a name: the granularities and presets of the older system, and those of common questions.

use super::Candidate;
use crate::codec::Codec;
use crate::graph::component::Component;

/// A selection with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The residual stream, and the routing of models with experts.
    Auto,
    /// Output of every block.
    Residual,
    /// What the routers of experts computed, and which experts they chose.
    Routing,
    /// Logits.
    Logits,
    /// Everything that is computed.
    FullTensor,
    /// Everything that is computed, some elements of each row.
    SampledSlices,
    /// Attention, with the choice of positions where it is sparse.
    AttentionOnly,
    /// Feed-forward, experts included.
    MlpOnly,
    /// `FULL_TENSOR` with codec none.
    FastCapture,
    /// `FULL_TENSOR` with lz4.
    Balanced,
    /// `FULL_TENSOR` with zstd.
    MaxCompression,
    /// `FULL_TENSOR` with zstd.
    Max,
    /// `ATTENTION_ONLY` with lz4.
    AttentionAnalysis,
    /// `MLP_ONLY` with lz4.
    MlpAnalysis,
}

/// What a preset selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Everything,
    Components(&'static [Component]),
    Residual,
    Routing,
    Logits,
    Auto,
}

/// Names that architectures give to the output of a block. Most have `l_out`; the others, from llama.cpp's model files:
/// deepseek4 `l_last`, plamo2 `ffn_residual`, qwen4exp `hc_combine` (behind attention and behind the feed-forward
/// part), eagle3 `eagle3_prenorm`, gemma4-assistant `out_scaled`. The encoders bert, eurobert, modern-bert, neo-bert
/// and wavtokenizer-dec give it none.
const BLOCK_OUTPUTS: &[&str] =
    &["l_out", "l_last", "ffn_residual", "hc_combine", "eagle3_prenorm", "out_scaled", "mtp_l_out", "mtp_post_ffn"];

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 14] = [
        Self::Auto,
        Self::Residual,
        Self::Routing,
        Self::Logits,
        Self::FullTensor,
        Self::SampledSlices,
        Self::AttentionOnly,
        Self::MlpOnly,
        Self::FastCapture,
        Self::Balanced,
        Self::MaxCompression,
        Self::Max,
        Self::AttentionAnalysis,
        Self::MlpAnalysis,
    ];

    /// The name; any case is understood.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Residual => "residual",
            Self::Routing => "routing",
            Self::Logits => "logits",
            Self::FullTensor => "FULL_TENSOR",
            Self::SampledSlices => "SAMPLED_SLICES",
            Self::AttentionOnly => "ATTENTION_ONLY",
            Self::MlpOnly => "MLP_ONLY",
            Self::FastCapture => "fast_capture",
            Self::Balanced => "balanced",
            Self::MaxCompression => "max_compression",
            Self::Max => "max",
            Self::AttentionAnalysis => "attention_analysis",
            Self::MlpAnalysis => "mlp_analysis",
        }
    }

    /// The preset of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(text))
    }

    /// All names, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The codec that it brings, unless a setting says otherwise.
    #[must_use]
    pub const fn codec(self) -> Option<Codec> {
        match self {
            Self::FastCapture => Some(Codec::None),
            Self::Balanced | Self::AttentionAnalysis | Self::MlpAnalysis => Some(Codec::Lz4),
            Self::MaxCompression | Self::Max => Some(Codec::Zstd),
            _ => None,
        }
    }

    const fn scope(self) -> Scope {
        match self {
            Self::Auto => Scope::Auto,
            Self::Residual => Scope::Residual,
            Self::Routing => Scope::Routing,
            Self::Logits => Scope::Logits,
            Self::AttentionOnly | Self::AttentionAnalysis => {
                Scope::Components(&[Component::Attention, Component::AttentionIndex])
            }
            Self::MlpOnly | Self::MlpAnalysis => Scope::Components(&[Component::Mlp, Component::Moe]),
            Self::FullTensor
            | Self::SampledSlices
            | Self::FastCapture
            | Self::Balanced
            | Self::MaxCompression
            | Self::Max => Scope::Everything,
        }
    }

    /// Whether it selects the node, which is no input, weight or cache.
    pub(super) fn fits(self, node: &Candidate<'_>) -> bool {
        match self.scope() {
            Scope::Everything => node.computes(),
            Scope::Components(components) => components.contains(&node.component) && node.computes(),
            Scope::Residual => is_block_output(node),
            Scope::Routing => is_routing(node),
            Scope::Logits => is_logits(node),
            Scope::Auto => is_block_output(node) || is_routing(node),
        }
    }
}

fn is_block_output(node: &Candidate<'_>) -> bool {
    // Where a drafting head takes the last block's output as it is, its name becomes `h_nextn`; elsewhere that
    // is a norm's.
    let renamed = node.base == "h_nextn" && node.op == "ADD";
    (renamed || BLOCK_OUTPUTS.contains(&node.base)) && node.is_plain() && node.computes()
}

fn is_routing(node: &Candidate<'_>) -> bool {
    let base = node.base.strip_prefix("mtp_").unwrap_or(node.base);
    let Some(what) = base.strip_prefix("ffn_moe_") else { return false };
    // The chosen experts are a view of the sorted ones.
    let chosen = what == "topk" || what == "group_topk";
    let scores = ["logits", "probs", "weights"].iter().any(|head| what.starts_with(head));
    node.is_plain() && (chosen || (scores && node.computes()))
}

fn is_logits(node: &Candidate<'_>) -> bool {
    matches!(node.base, "result_output" | "result_output_with_img_logits") && node.is_plain() && node.computes()
}
