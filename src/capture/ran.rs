//! What became of the graphs that ran while a capture was on: if nothing is captured of any, it says why.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::format::summary::Condition;
use crate::observe::state;

/// So many graphs without a token are no start-up of the host any more.
const MANY: u64 = 64;

/// Graphs by what became of them.
#[derive(Debug, Default)]
pub struct Ran {
    all: AtomicU64,
    /// No tokens were found in them.
    without_tokens: AtomicU64,
    /// Their tensors cannot be read in this build, for this reason.
    unreadable: OnceLock<&'static str>,
    /// The caller's eval callback was asked about a node, and no graph has begun.
    unbegun: AtomicBool,
    told: AtomicBool,
}

impl Ran {
    /// A graph runs.
    pub fn one(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// It processes no tokens, as far as can be seen.
    pub fn without_tokens(&self) {
        let n = self.without_tokens.fetch_add(1, Ordering::Relaxed) + 1;
        if n == MANY && self.all.load(Ordering::Relaxed) == MANY {
            self.tell_nothing();
        }
    }

    /// The eval callback of the C API is asked about a node, and no graph that processes tokens has begun.
    pub fn unbegun(&self) {
        self.unbegun.store(true, Ordering::Relaxed);
    }

    /// Tensors cannot be read.
    pub fn unreadable(&self, reason: &'static str) {
        if self.unreadable.set(reason).is_ok() {
            self.tell_nothing();
        }
    }

    /// Nothing was captured: says why, once. It says nothing where no graph ran, as in an idle server.
    pub fn tell_nothing(&self) {
        let Some(why) = self.why_nothing().filter(|_| !self.told.swap(true, Ordering::Relaxed)) else { return };
        state::tell("capture", Condition::Unavailable, why, Some("activations"));
    }

    fn why_nothing(&self) -> Option<String> {
        let [all, without] = [&self.all, &self.without_tokens].map(|n| n.load(Ordering::Relaxed));
        if let Some(reason) = self.unreadable.get() {
            return Some((*reason).to_owned());
        }
        match all {
            0 if self.unbegun.load(Ordering::Relaxed) => Some(
                "the eval callback was asked about nodes, and no graph began among them: none looks token ids up in `token_embd.weight`. This may be \
                 another kind of model, or a version of llama.cpp that this library does not know"
                    .to_owned(),
            ),
            0 => None,
            _ if without == all => Some(format!(
                "none of the {all} graphs that ran so far processes tokens: none looks rows up in `token_embd.weight`, takes embeddings by the name \
                 `inp_embd`, or is a model's that normalises in its first block. This may be another kind of model, or a version of llama.cpp that \
                 this library does not know"
            )),
            _ => Some(format!("the selection (LLAMA_RESOURCE_TENSORS) matches no tensor of the {all} graphs that ran")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ran;

    #[test]
    fn nothing_captured_has_a_reason_where_graphs_ran() {
        let ran = Ran::default();
        assert_eq!(ran.why_nothing(), None, "an idle server");
        ran.unbegun();
        assert!(ran.why_nothing().is_some_and(|w| w.contains("eval callback")));
        ran.one();
        ran.without_tokens();
        assert!(ran.why_nothing().is_some_and(|w| w.contains("none of the 1 graphs") && w.contains("tokens")));
        ran.one();
        assert!(ran.why_nothing().is_some_and(|w| w.contains("selection")));
    }
}
