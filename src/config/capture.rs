//! The settings of capturing activations.

use std::path::PathBuf;

use crate::codec::{self, Codec};
use crate::format::stream::Slice;
use crate::select::{self, RequestFilter, Selection, TokenStride};

/// Least memory budget: below it the pool could not hold a step of a small model.
pub const LEAST_MEMORY: u64 = 16 << 20;

/// How tensors are to be read out of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteChoice {
    /// What fits each graph.
    #[default]
    Auto,
    /// Kept by the allocator and read after the graph.
    Retain,
    /// Read in the eval callback.
    Callback,
}

impl RouteChoice {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Retain, Self::Callback];

    /// The word used in settings and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Retain => "retain",
            Self::Callback => "callback",
        }
    }

    /// The choice of a name, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name().eq_ignore_ascii_case(text))
    }
}

/// What the host does when the memory budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// It waits: nothing is lost, the host is as slow as the disk.
    #[default]
    Block,
    /// It goes on: what finds no room is dropped and counted.
    Drop,
    /// It goes on, and leaves whole steps out while memory is short, so that those captured are complete.
    Sample,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Block, Self::Drop, Self::Sample];

    /// The word used in settings and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Drop => "drop",
            Self::Sample => "sample",
        }
    }

    /// The policy of a name, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(text))
    }
}

/// What is captured, and how it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureConfig {
    /// Stream file, placeholders not yet replaced; none: nothing is captured.
    pub path: Option<PathBuf>,
    /// Which tensors.
    pub tensors: Selection,
    /// How they are read.
    pub route: RouteChoice,
    /// Codec, if one was asked for; [`Self::codec_params`] has the one in force.
    pub codec: Option<Codec>,
    /// Bound of the lossy codecs.
    pub error_bound: f32,
    /// Bytes that pool, queues and writer may take together.
    pub max_memory: u64,
    /// At the limit.
    pub policy: Policy,
    /// Tokens between two checkpoints; none: only what the writer does by itself.
    pub checkpoint_tokens: Option<u64>,
    /// Go on behind the last checkpoint of an existing file.
    pub resume: bool,
    /// Which requests.
    pub requests: RequestFilter,
    /// Which positions.
    pub token_stride: TokenStride,
    /// Elements of each row that are stored; 0 for all, none where the selection decides.
    pub sample_elements: Option<u32>,
    /// Threads of ours that compress; none: one, and the host's own help where they fill every core.
    pub codec_threads: Option<usize>,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            path: None,
            tensors: Selection::default(),
            route: RouteChoice::default(),
            codec: None,
            error_bound: 1e-3,
            max_memory: 1 << 30,
            policy: Policy::default(),
            checkpoint_tokens: None,
            resume: false,
            requests: RequestFilter::default(),
            token_stride: TokenStride::default(),
            sample_elements: None,
            codec_threads: None,
        }
    }
}

impl CaptureConfig {
    /// Codec and bound in force: as set, else as the preset says, else zstd.
    #[must_use]
    pub fn codec_params(&self) -> codec::Params {
        let codec = self.codec.or_else(|| self.tensors.codec()).unwrap_or(Codec::Zstd);
        codec::Params { codec, error_bound: self.error_bound }
    }

    /// Which elements of a row of `row_len` are stored for a tensor that `term` of the selection took; none for all.
    #[must_use]
    pub fn slice(&self, term: usize, row_len: u32) -> Option<Slice> {
        let by_preset = || if self.tensors.is_sampled(term) { select::SAMPLED_ELEMENTS } else { 0 };
        select::slice(row_len, self.sample_elements.unwrap_or_else(by_preset))
    }
}

#[cfg(test)]
mod tests {
    use super::CaptureConfig;
    use crate::codec::Codec;
    use crate::select::Selection;

    #[test]
    fn a_codec_that_was_asked_for_wins_over_the_presets() {
        let of = |text: &str, codec| {
            let tensors = Selection::parse(text).unwrap();
            CaptureConfig { tensors, codec, ..CaptureConfig::default() }.codec_params().codec
        };
        assert_eq!(of("residual", None), Codec::Zstd);
        assert_eq!(of("balanced", None), Codec::Lz4);
        assert_eq!(of("balanced", Some(Codec::Bounded)), Codec::Bounded);
    }

    #[test]
    fn elements_are_sampled_by_the_preset_or_by_the_setting() {
        let of = |text: &str, sample_elements| {
            let tensors = Selection::parse(text).unwrap();
            CaptureConfig { tensors, sample_elements, ..CaptureConfig::default() }.slice(0, 576).map(|s| s.step)
        };
        assert_eq!((of("residual", None), of("SAMPLED_SLICES", None)), (None, Some(9)));
        assert_eq!((of("residual", Some(192)), of("SAMPLED_SLICES", Some(0))), (Some(3), None));
    }
}
