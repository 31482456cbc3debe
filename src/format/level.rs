//! The three levels of detail and the budget that each may write.

use serde::{Deserialize, Serialize};

/// How much is written. Each level includes the ones above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[repr(u8)]
pub enum Level {
    /// Sessions, model, buffers, allocations over 1 MiB, requests, interval summaries, matrix multiplications
    /// of sampled steps.
    Minimal = 0,
    /// Adds batches, components, layers, MLP operations, norms, activations, hand-offs, KV-cache operations.
    Detailed = 1,
    /// Adds every operation of a sampled step, per-token events and thread imbalance.
    Verbose = 2,
}

impl Level {
    /// All levels, least first.
    pub const ALL: [Self; 3] = [Self::Minimal, Self::Detailed, Self::Verbose];

    /// The name as it is written in the environment and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minimal => "MINIMAL",
            Self::Detailed => "DETAILED",
            Self::Verbose => "VERBOSE",
        }
    }

    /// The level with this number (0, 1, 2), as C passes it.
    #[must_use]
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Minimal),
            1 => Some(Self::Detailed),
            2 => Some(Self::Verbose),
            _ => None,
        }
    }

    /// The level with this name (any case) or number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.name().eq_ignore_ascii_case(text) || text == (*l as u8).to_string())
    }

    /// Bytes a second that the log may grow at this level unless `LLAMA_RESOURCE_LOG_RATE` says otherwise.
    #[must_use]
    pub const fn default_rate(self) -> u64 {
        match self {
            Self::Minimal => 10_000,
            Self::Detailed => 50_000,
            Self::Verbose => 200_000,
        }
    }

    /// Milliseconds between two `step_summary` lines.
    #[must_use]
    pub const fn summary_interval_ms(self) -> u64 {
        match self {
            Self::Minimal => 5_000,
            Self::Detailed => 2_000,
            Self::Verbose => 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Level;

    #[test]
    fn names_and_numbers_parse_in_any_case_and_nothing_else_does() {
        for l in Level::ALL {
            assert_eq!(Level::parse(l.name()), Some(l));
            assert_eq!(Level::parse(&l.name().to_lowercase()), Some(l));
            assert_eq!(Level::parse(&(l as u8).to_string()), Some(l));
        }
        assert_eq!(Level::parse("LOUD"), None);
        assert_eq!(Level::parse(""), None);
        assert_eq!(Level::from_number(3), None);
    }
}
