//! One term of a selection: what it names, in which layers, and whether it takes away.

use super::Candidate;
use super::layers::Layers;
use super::preset::Preset;
use crate::codec::Codec;
use crate::glob::Glob;
use crate::graph::class::is_view_op;
use crate::graph::component::Component;

/// A term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// As it was written.
    pub text: String,
    /// It takes away what it fits.
    pub exclude: bool,
    what: What,
    layers: Option<Layers>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Preset(Preset),
    Component(Component),
    Op(Glob),
    Name(Glob),
}

impl From<Preset> for Term {
    fn from(preset: Preset) -> Self {
        Self { text: preset.name().to_owned(), exclude: false, what: What::Preset(preset), layers: None }
    }
}

impl Term {
    /// Reads one term, without the commas and spaces around it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(['-', '!']);
        let (what, layers) = match rest.unwrap_or(text).split_once('@') {
            Some((what, layers)) => (what, Some(Layers::parse(layers)?)),
            None => (rest.unwrap_or(text), None),
        };
        let what = match what {
            "" if layers.is_some() => What::Preset(Preset::FullTensor),
            what => What::parse(what)?,
        };
        Ok(Self { text: text.to_owned(), exclude: rest.is_some(), what, layers })
    }

    /// Whether it fits the node, which is no input, weight or cache, and no view with a twin.
    pub fn fits(&self, node: &Candidate<'_>) -> bool {
        let fits = match &self.what {
            What::Preset(preset) => preset.fits(node),
            What::Component(component) => *component == node.component && node.computes(),
            What::Op(op) => op.fits(node.op) && node.computes(),
            // A term that names a view means it: the chosen experts have no tensor of their own, only
            // the view `ffn_moe_topk`.
            What::Name(name) => {
                (node.computes() || name.is_literal())
                    && (name.fits(node.name) || (node.is_plain() && name.fits(node.base)))
            }
        };
        fits && self.layers.as_ref().is_none_or(|layers| layers.contain(node.layer, node.n_layer))
    }

    /// It stores only some elements of each row.
    pub const fn is_sampled(&self) -> bool {
        matches!(self.what, What::Preset(Preset::SampledSlices))
    }

    /// It is right even when nothing fits.
    pub const fn may_be_empty(&self) -> bool {
        matches!(self.what, What::Preset(Preset::Auto))
    }

    /// The codec that it brings.
    pub const fn codec(&self) -> Option<Codec> {
        match self.what {
            What::Preset(preset) => preset.codec(),
            _ => None,
        }
    }
}

impl What {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((key, value)) if key.eq_ignore_ascii_case("component") => component(value).map(Self::Component),
            Some((key, value)) if key.eq_ignore_ascii_case("op") => op(value).map(Self::Op),
            Some((key, value)) if key.eq_ignore_ascii_case("name") => name(value).map(Self::Name),
            Some((key, _)) => Err(format!("`{key}:` is unknown; expected `component:`, `op:` or `name:`")),
            None => match (Preset::parse(text), misspelt(text)) {
                (Some(preset), _) => Ok(Self::Preset(preset)),
                (None, Some(meant)) => Err(format!(
                    "`{text}` is no preset; `{}` is one (a tensor of that name is selected by `name:{text}`)",
                    meant.name()
                )),
                (None, None) => name(text).map(Self::Name),
            },
        }
    }
}

fn component(text: &str) -> Result<Component, String> {
    let selectable = |c: &Component| !matches!(c, Component::Input | Component::KvCache);
    let found = Component::ALL.into_iter().find(|c| c.name().eq_ignore_ascii_case(text));
    found.filter(selectable).ok_or_else(|| match found {
        Some(Component::KvCache) => {
            "`component:kv_cache` holds no activations of its own; what is written into the cache is `Kcur` and `Vcur`"
                .to_owned()
        }
        Some(found) => format!("`component:{}` is not computed by the model; expected another component", found.name()),
        None => {
            let names: Vec<_> = Component::ALL.iter().filter(|c| selectable(c)).map(|c| c.name()).collect();
            format!("`{text}` is no component; expected one of {}", names.join(", "))
        }
    })
}

fn op(text: &str) -> Result<Glob, String> {
    let upper = text.to_ascii_uppercase();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'*' | b'?')) {
        return Err(format!(
            "`op:{text}` names no operation; expected ggml's name of one, e.g. `op:MUL_MAT` or `op:*GLU`"
        ));
    }
    if is_view_op(&upper) || upper == "SET_ROWS" {
        return Err(format!(
            "`op:{upper}` computes nothing, it only describes or moves memory; name the tensor instead"
        ));
    }
    Ok(Glob::new(&upper))
}

fn name(text: &str) -> Result<Glob, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.(){}[]+/*?".contains(c);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return Err(format!(
            "`{text}` is no tensor name; several ranges of layers are joined with a plus sign: `l_out@0-5+10`"
        ));
    }
    if text.is_empty() || !text.chars().all(allowed) {
        return Err(format!(
            "`{text}` is neither a preset nor a tensor name; expected a name or a pattern (`l_out`, `ffn_*`, `l_out-3`), \
             `component:mlp`, `op:MUL_MAT`, each with or without layers (`@0-5`), or one of {}",
            Preset::names()
        ));
    }
    Ok(Glob::new(text))
}

/// The preset that was most likely meant. Short words are left alone: they are too close to real names.
fn misspelt(text: &str) -> Option<Preset> {
    let text = text.to_ascii_lowercase();
    let near = |p: &Preset| {
        let name = p.name().to_ascii_lowercase();
        name.len() >= 6
            && (distance(&text, &name) <= 2 || text == name.replace('_', "") || text == name.replace('_', "-"))
    };
    Preset::ALL.into_iter().find(near)
}

/// Letters to insert, delete or replace to get from one word to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cb, cell) in b.bytes().zip(row.iter_mut().skip(1)) {
            let next = (diagonal + usize::from(ca != cb)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = next;
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{distance, misspelt};

    #[test]
    fn distance_counts_edits() {
        assert_eq!((distance("", "abc"), distance("abc", ""), distance("same", "same")), (3, 3, 0));
        assert_eq!((distance("kitten", "sitting"), distance("flaw", "lawn")), (3, 2));
    }

    #[test]
    fn misspelt_presets_are_noticed_and_real_names_are_not() {
        for (text, meant) in [("resdiual", "residual"), ("FULL_TENSORS", "FULL_TENSOR"), ("mlp-only", "MLP_ONLY")] {
            assert_eq!(misspelt(text).map(super::Preset::name), Some(meant), "{text}");
        }
        let names = include_str!("../../tests/data/tensor-names.tsv");
        for name in names.lines().skip(1).filter_map(|l| l.split('\t').nth(1)) {
            assert_eq!(misspelt(name), None, "{name}");
        }
    }
}
