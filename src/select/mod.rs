//! Which tensors, elements, tokens and requests are captured: the selection language and its presets. Pure
//! functions over names.
//!
//! Before it: `graph` (name, layer and component of a node). After it: `capture` (asks for every node of a new graph),
//! and `config`, which reads the settings with the same parsers.
//!
//! ```text
//! selection = term { (","|" ") term }             the union of the terms, less the excluded ones
//! term      = ["-"|"!"] what ["@" layers] | ["-"|"!"] "@" layers
//! what      = preset | glob | "name:" glob | "component:" name | "op:" glob
//! layers    = range { "+" range }
//! range     = "3" | "0-5" | "12-" | "last" | "last4"
//! ```
//!
//! A glob (`*`, `?`) is compared with the ggml name, with and without its layer: `l_out`, `ffn_*`, `l_out-3`. Only
//! nodes that compute something are selected: no inputs, no weights, no cache writes; a view only by its literal name.

mod layers;
mod preset;
mod rows;
mod sample;
mod term;

use crate::codec::Codec;
use crate::graph::class::{Class, is_view_op};
use crate::graph::component::Component;
use crate::graph::name;

pub use self::preset::Preset;
pub use self::rows::{RequestFilter, TokenStride};
pub use self::sample::{SAMPLED_ELEMENTS, slice};

use self::term::Term;

/// Most terms of a selection: their matches are one word of bits.
const MOST_TERMS: usize = 64;

/// A graph node, as far as selecting it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Full ggml name: `l_out-3`, `Qcur-0 (view)`, `node_17`.
    pub name: &'a str,
    /// The name without layer and suffixes (`graph::name::parse`).
    pub base: &'a str,
    /// Its block.
    pub layer: Option<i32>,
    /// Its part of the model.
    pub component: Component,
    /// `ggml_op_desc`.
    pub op: &'a str,
    /// Blocks of the model, where known: what `last` counts from.
    pub n_layer: Option<i32>,
    /// The node is a view, and another node of the graph has the same name and computes something. The view is
    /// then never selected.
    pub twin: bool,
}

impl<'a> Candidate<'a> {
    /// The candidate of a classified node, taken to have no twin.
    #[must_use]
    pub fn new(name: &'a str, op: &'a str, class: &Class, n_layer: Option<i32>) -> Self {
        let base = name::parse(name).base;
        Self { name, base, layer: class.layer, component: class.component, op, n_layer, twin: false }
    }

    /// Whether the node holds values of its own: no view, input, weight, or write into a cache, state or other tensor.
    #[must_use]
    pub fn computes(&self) -> bool {
        self.may_hold_activations() && !is_view_op(self.op)
    }

    /// Whether its bytes are the model's activations at all, be it through a view.
    fn may_hold_activations(&self) -> bool {
        // `CUDA0#l_out-3#0` is the scheduler's copy for another device.
        !matches!(self.op, "NONE" | "SET_ROWS")
            && !matches!(self.component, Component::Input | Component::KvCache)
            && !self.base.starts_with("cache_")
            && !self.name.contains('#')
    }

    /// The name has nothing behind base and layer: it is not ` (view)`, ` (cont)`, ... of something else.
    fn is_plain(&self) -> bool {
        self.name.strip_prefix(self.base).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix('-').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
    }
}

/// A parsed selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    text: String,
    terms: Vec<Term>,
    /// One bit a term: those that select, and those of them that store only some elements.
    selecting: u64,
    sampled: u64,
}

impl Default for Selection {
    /// `auto`.
    fn default() -> Self {
        Self::of("auto".to_owned(), vec![Term::from(Preset::Auto)])
    }
}

impl Selection {
    /// Reads a selection; the error says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
        let terms = words.map(Term::parse).collect::<Result<Vec<_>, _>>()?;
        if terms.len() > MOST_TERMS {
            return Err(format!("it has {} terms, at most {MOST_TERMS} are possible", terms.len()));
        }
        if terms.iter().all(|t| t.exclude) {
            let missing = if terms.is_empty() { "it is empty" } else { "it only takes away" };
            return Err(format!(
                "{missing}; expected at least one term that selects something, e.g. FULL_TENSOR or `l_out`"
            ));
        }
        Ok(Self::of(text.trim().to_owned(), terms))
    }

    fn of(text: String, terms: Vec<Term>) -> Self {
        let bits = |wanted: fn(&Term) -> bool| {
            terms.iter().enumerate().filter(|(_, t)| wanted(t)).fold(0, |bits: u64, (i, _)| bits | 1 << i)
        };
        let (selecting, sampled) = (bits(|t| !t.exclude), bits(|t| !t.exclude && t.is_sampled()));
        Self { text, terms, selecting, sampled }
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The number of the term that selects the node, if one does: the first, but one that stores whole rows before any
    /// that stores only some elements.
    #[must_use]
    pub fn wants(&self, node: &Candidate<'_>) -> Option<usize> {
        self.chosen(self.matches(node))
    }

    /// What [`Self::wants`] says of a node with these [`Self::matches`].
    #[must_use]
    pub fn chosen(&self, matches: u64) -> Option<usize> {
        let found = matches & self.selecting;
        if found == 0 || matches & !self.selecting != 0 {
            return None;
        }
        let whole = found & !self.sampled;
        Some((if whole == 0 { found } else { whole }).trailing_zeros() as usize)
    }

    /// Which terms fit the node, excluding ones too: one bit each. Of all nodes of a graph, or-ed, they are what
    /// [`Self::unmatched`] takes.
    #[must_use]
    pub fn matches(&self, node: &Candidate<'_>) -> u64 {
        if !node.may_hold_activations() || (is_view_op(node.op) && node.twin) {
            return 0;
        }
        self.terms.iter().enumerate().filter(|(_, t)| t.fits(node)).fold(0, |bits, (i, _)| bits | 1 << i)
    }

    /// The terms, as written, that fitted nothing - most likely typing errors. `auto` promises nothing and
    /// is never one.
    pub fn unmatched(&self, matches: u64) -> impl Iterator<Item = &str> {
        let missed = move |(i, t): &(usize, &Term)| matches & (1 << i) == 0 && !t.may_be_empty();
        self.terms.iter().enumerate().filter(missed).map(|(_, t)| t.text.as_str())
    }

    /// The text of a term, by its number.
    #[must_use]
    pub fn term(&self, number: usize) -> Option<&str> {
        self.terms.get(number).map(|t| t.text.as_str())
    }

    /// Whether the term stores only some elements of each row, unless a setting says otherwise.
    #[must_use]
    pub const fn is_sampled(&self, term: usize) -> bool {
        term < MOST_TERMS && self.sampled & (1 << term) != 0
    }

    /// The codec that comes with a preset of the older system, the first one that has one.
    #[must_use]
    pub fn codec(&self) -> Option<Codec> {
        self.terms.iter().filter(|t| !t.exclude).find_map(Term::codec)
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
