//! The rows of a step: which token each is, and which of them are wanted.

use std::sync::Arc;

use super::graph::Wanted;
use super::live::Live;
use super::shape::Rows;
use crate::config::CaptureConfig;
use crate::format::stream::Row;
use crate::ggml::api::{self, Ptr};
use crate::ggml::view::TensorPtr;
use crate::observe;

/// The rows of one step.
#[derive(Debug)]
pub struct StepRows {
    /// The kept tokens, and the kept tokens with an output.
    pub sets: [Arc<[Row]>; 2],
    /// Their numbers within the ubatch, and among its outputs; `None` for all.
    kept: [Option<Vec<u32>>; 2],
}

impl StepRows {
    /// Joins the graph's inputs with the batch that the host handed in.
    #[must_use]
    pub fn new(config: &CaptureConfig, live: &Live, ctx: Ptr) -> Self {
        let n = live.plan.n_tokens;
        let [tokens, positions, outputs] = live.inputs.map(|t| t.and_then(integers));
        let mut rows = Vec::with_capacity(n);
        if ctx.is_null() {
            rows.extend_from_slice(&of_inputs(n, tokens.as_deref(), positions.as_deref()));
        } else {
            let mut host = observe::host();
            let host = &mut *host;
            let context = host.contexts.get(ctx);
            let places = context.ubatch(n, tokens.as_deref(), positions.as_deref());
            let (id, serving) = (context.id, context.is_serving());
            // Rows of a sequence follow each other: one look-up for each run of them.
            let (mut last, mut request) = (i32::MIN, 0);
            for p in places {
                if p.seq != last {
                    last = p.seq;
                    let (count, outputs) = context.rows_of(p.seq);
                    request = if p.seq < 0 { 0 } else { host.requests.upcoming(id, p.seq, serving, count, outputs) };
                }
                rows.push(Row { seq: p.seq, pos: p.pos, token: p.token, request });
            }
        }
        let output_rows: Vec<(u32, Row)> = match &outputs {
            Some(ids) => (0..).zip(ids).filter_map(|(k, &i)| Some((k, *rows.get(usize::try_from(i).ok()?)?))).collect(),
            None => (0..).zip(rows.iter().copied()).collect(),
        };
        let token_rows = (0..).zip(rows).collect();
        let (a, kept_a) = filter(config, token_rows);
        let (b, kept_b) = filter(config, output_rows);
        Self { sets: [a, b], kept: [kept_a, kept_b] }
    }

    /// Which of the tensor's tokens are kept, `None` for all.
    #[must_use]
    pub fn kept(&self, w: &Wanted) -> Option<&[u32]> {
        match w.shape.rows {
            Rows::Tokens => self.kept[0].as_deref(),
            Rows::Outputs => self.kept[1].as_deref(),
            Rows::Other => None,
        }
    }

    /// Whether all tokens of the step are kept.
    #[must_use]
    pub fn are_all_kept(&self) -> bool {
        self.kept.iter().all(Option::is_none)
    }

    /// Whether each tensor of the step has a row, whatever its rows are.
    #[must_use]
    pub fn none_is_empty(&self) -> bool {
        self.sets.iter().all(|set| !set.is_empty())
    }

    /// Whether none of the tensor's tokens is kept.
    #[must_use]
    pub fn is_empty(&self, w: &Wanted) -> bool {
        match Self::set_of(w) {
            Some(set) => self.sets.get(usize::from(set)).is_some_and(|s| s.is_empty()),
            // What belongs to no token goes with the step.
            None => self.sets[0].is_empty(),
        }
    }

    /// Number of the tensor's row set.
    #[must_use]
    pub const fn set_of(w: &Wanted) -> Option<u8> {
        match w.shape.rows {
            Rows::Tokens => Some(0),
            Rows::Outputs => Some(1),
            Rows::Other => None,
        }
    }
}

/// Rows of which only the graph's inputs tell.
pub(super) fn of_inputs(n: usize, tokens: Option<&[i32]>, positions: Option<&[i32]>) -> Arc<[Row]> {
    let at = |values: Option<&[i32]>, i: usize| values.and_then(|v| v.get(i)).copied().unwrap_or(-1);
    (0..n).map(|i| Row { seq: -1, pos: at(positions, i), token: at(tokens, i), request: 0 }).collect()
}

fn filter(config: &CaptureConfig, rows: Vec<(u32, Row)>) -> (Arc<[Row]>, Option<Vec<u32>>) {
    let n = rows.len();
    let wanted = |r: &Row| config.token_stride.wants(r.pos) && config.requests.wants(r.request);
    let kept: Vec<(u32, Row)> = rows.into_iter().filter(|(_, r)| wanted(r)).collect();
    let numbers = (kept.len() < n).then(|| kept.iter().map(|(i, _)| *i).collect());
    (kept.into_iter().map(|(_, r)| r).collect(), numbers)
}

/// Values of an input that the host filled before the graph runs.
pub(super) fn integers(t: TensorPtr) -> Option<Vec<i32>> {
    let bytes = t.span_bytes();
    if t.type_name() != "i32" || t.data().is_null() || t.buffer().is_null() {
        return None;
    }
    let mut values = vec![0_i32; bytes / 4];
    // SAFETY: the buffer of a live tensor.
    if unsafe { api::ggml_backend_buffer_is_host(t.buffer()) }.unwrap_or(false) {
        // SAFETY: a host buffer holds the tensor's bytes at its address.
        unsafe { std::ptr::copy_nonoverlapping(t.data().cast::<i32>().cast_const(), values.as_mut_ptr(), bytes / 4) };
    } else {
        // SAFETY: a live tensor; `values` has room for its bytes.
        unsafe {
            api::ggml_backend_tensor_get(t.address().cast_mut().cast(), values.as_mut_ptr().cast(), 0, bytes / 4 * 4)
        }?;
    }
    Some(values)
}
