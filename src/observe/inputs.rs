//! The inputs of a graph that say which row is whose: token ids, positions, and the rows that have an output.
//!
//! Found by what the graph does with them, since llama.cpp has named them in some versions and not in others: ids look
//! rows up in the table of token embeddings, positions turn (`ROPE`) or are looked up themselves, and the rows with an
//! output are chosen among those of all tokens before the model goes on with them. A name that is there decides.

use std::collections::HashSet;
use std::ffi::c_void;

use crate::ggml::view::TensorPtr;
use crate::graph::{class, name};

/// The node whose memory `t` looks into, itself if it has its own.
#[must_use]
pub fn root_of(t: TensorPtr) -> TensorPtr {
    let mut root = t;
    while let Some(inner) = root.view_src() {
        root = inner;
    }
    root
}

/// A source of a node: node and source number.
pub type At = (usize, usize);

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token ids.
    Tokens,
    /// Positions, one behind the other for each dimension that has its own.
    Positions,
    /// Numbers of the rows that have an output.
    Outputs,
    /// Embeddings in place of token ids.
    Embeddings,
}

/// An input of a node.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// What it is.
    pub role: Role,
    /// Which source of the node.
    pub source: usize,
    /// The tensor.
    pub tensor: TensorPtr,
    /// Its name says so. Where it does not, [`Role::Outputs`] is a guess that needs [`is_choice_of_outputs`].
    pub named: bool,
}

/// Inputs of node `t`.
pub fn of_node(t: TensorPtr) -> impl Iterator<Item = Input> {
    (0..t.n_src()).filter_map(move |source| {
        // A copy for another device (`CUDA0#inp_pos#0`) is filled only while the graph runs: the name, which has more,
        // is none of these.
        let tensor = t.src(source).filter(|s| s.op() == "NONE" && s.view_src().is_none())?;
        let input = |role, named| Some(Input { role, source, tensor, named });
        match tensor.name() {
            "inp_tokens" => return input(Role::Tokens, true),
            "inp_pos" => return input(Role::Positions, true),
            "out_ids" | "inp_out_ids" => return input(Role::Outputs, true),
            "inp_embd" => return input(Role::Embeddings, true),
            other if !name::is_automatic(name::parse(other).base) || other.contains('#') => return None,
            _ => {}
        }
        if source != 1 || tensor.type_name() != "i32" || tensor.ne()[1..] != [1; 3] {
            return None;
        }
        match t.op() {
            "ROPE" => input(Role::Positions, false),
            "GET_ROWS" => {
                let table = root_of(t.src(0)?);
                if table.op() != "NONE" {
                    return input(Role::Outputs, false);
                }
                match name::parse(table.name()).base {
                    "token_embd" | "per_layer_token_embd" => input(Role::Tokens, false),
                    "position_embd" => input(Role::Positions, false),
                    // States, caches, other tables.
                    _ => None,
                }
            }
            _ => None,
        }
    })
}

/// Whether `ids`, by which node `t` chooses rows, chooses among the rows of `n_tokens` tokens, before
/// the graph's results.
#[must_use]
pub fn is_choice_of_outputs(t: TensorPtr, ids: TensorPtr, n_tokens: usize) -> bool {
    let of_tokens = |s: TensorPtr| s.ne()[1..] == [n_tokens as i64, 1, 1];
    t.src(0).is_some_and(of_tokens) && (1..=n_tokens as i64).contains(&ids.ne()[0])
}

/// The inputs of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Tokens of the ubatch.
    pub n_tokens: usize,
    /// Where the token ids are found.
    pub tokens: Option<(At, TensorPtr)>,
    /// Where the positions are.
    pub positions: Option<(At, TensorPtr)>,
    /// Where the numbers of the rows with an output are.
    pub outputs: Option<(At, TensorPtr)>,
}

impl Inputs {
    /// Looks for them as sources of the nodes that are computed; a graph that has both a token path and an embedding
    /// path computes only one. `of_a_model`: the graph is a model's, which processes tokens if it normalises anything
    /// in its first block. `None` if it processes none.
    #[must_use]
    pub fn find(nodes: &[TensorPtr], uses_flag: bool, of_a_model: bool) -> Option<Self> {
        let computed = || nodes.iter().copied().enumerate().filter(|(_, t)| t.is_computed(uses_flag));
        let mut found: Vec<(At, Input)> = Vec::new();
        for (i, t) in computed() {
            found.extend(of_node(t).map(|input| ((i, input.source), input)));
        }
        let all = |role| found.iter().filter(move |(_, f)| f.role == role);
        // A name decides, wherever it comes.
        let first = |role, fits: &dyn Fn(&(At, Input)) -> bool| {
            let (at, input) = all(role).find(|(_, f)| f.named).or_else(|| all(role).find(|&f| fits(f)))?;
            Some((*at, input.tensor))
        };
        let count = |t: TensorPtr, dim: usize| usize::try_from(t.ne()[dim]).ok();
        let tokens = first(Role::Tokens, &|_| true);
        let n_tokens = tokens
            .and_then(|(_, t)| count(t, 0))
            .or_else(|| first(Role::Embeddings, &|_| false).and_then(|(_, t)| count(t, 1)))
            .or_else(|| {
                let norm =
                    |t: &TensorPtr| matches!(t.op(), "RMS_NORM" | "NORM") && name::parse(t.name()).layer == Some(0);
                let (_, norm) = computed().find(|(_, t)| of_a_model && norm(t))?;
                count(norm, 1)
            })
            .filter(|&n| n > 0)?;
        let positions =
            first(Role::Positions, &|(_, f)| count(f.tensor, 0).is_some_and(|n| n > 0 && n.is_multiple_of(n_tokens)));
        let outputs = first(Role::Outputs, &|((i, _), f)| {
            nodes.get(*i).is_some_and(|t| is_choice_of_outputs(*t, f.tensor, n_tokens)) && goes_on(nodes, f.tensor)
        });
        Some(Self { n_tokens, tokens, positions, outputs })
    }
}

/// Nodes behind the choice of the rows `ids`.
#[must_use]
pub fn behind(nodes: &[TensorPtr], ids: Option<TensorPtr>) -> HashSet<*const c_void> {
    let mut behind = HashSet::new();
    let Some(ids) = ids else { return behind };
    for t in nodes {
        let selects = t.op() == "GET_ROWS" && t.src(1) == Some(ids);
        let follows = || (0..t.n_src()).filter_map(|k| t.src(k)).any(|s| behind.contains(&s.address()));
        if selects || follows() {
            behind.insert(t.address());
        }
    }
    behind
}

/// Whether the model goes on with the chosen rows. What pools results (the first or the last row of each sequence)
/// chooses rows as well, and at most classifies them.
fn goes_on(nodes: &[TensorPtr], ids: TensorPtr) -> bool {
    let behind = behind(nodes, Some(ids));
    nodes.iter().filter(|t| class::is_matmul(t.op()) && behind.contains(&t.address())).any(|t| {
        let weight = t.src(0).map(|w| name::parse(w.name()).base.starts_with("cls"));
        weight == Some(false)
    })
}
