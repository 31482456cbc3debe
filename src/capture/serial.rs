//! Capture without the graph: `llama_resource_eval_callback` is shown one node after the other and never told where a graph begins or ends.
//!
//! For programs whose calls into ggml do not pass our hooks (statically linked ones). Values are copied when a node is shown; names, which
//! need the whole graph, are given when the next graph begins. The sequence of a row is not known here; token and position are.

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::copy::{self, Read};
use super::graph::{self, Hit, Wanted};
use super::shape::{self, Rows};
use super::{Capture, names, rows};
use crate::clock;
use crate::codec::DType;
use crate::format::stream::{Route, Row};
use crate::ggml::layout;
use crate::ggml::view::TensorPtr;
use crate::graph::class;
use crate::observe::steps::{self, TOTALS};
use crate::pipeline::{Job, Piece, Reason, Spec};

/// A node that was wanted and copied.
#[derive(Debug)]
struct Taken {
    hit: Hit,
    tensor: String,
    /// With a provisional name.
    wanted: Wanted,
    at: usize,
    len: usize,
}

/// The graph that is being shown.
#[derive(Debug, Default)]
struct Run {
    number: u64,
    n_tokens: usize,
    tokens: Option<Vec<i32>>,
    positions: Option<Vec<i32>>,
    outputs: Option<Vec<i32>>,
    selector: usize,
    behind: HashSet<usize>,
    occurrences: HashMap<(String, &'static str), u16>,
    taken: Vec<Taken>,
    data: Vec<u8>,
    told: bool,
}

/// A thread's graphs.
#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    asked: Option<(usize, Hit)>,
    /// This build marks the nodes that are computed.
    uses_flag: bool,
}

static ALL: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

thread_local! {
    static LOCAL: Arc<Mutex<State>> = register();
}

fn register() -> Arc<Mutex<State>> {
    let new = Arc::new(Mutex::new(State::default()));
    let mut all = ALL.lock();
    all.retain(|s| s.strong_count() > 0);
    all.push(Arc::downgrade(&new));
    new
}

/// The capture that this callback feeds: none where the hooks see the graphs.
fn current() -> Option<Arc<Capture>> {
    super::current().filter(|c| c.list.is_none() && !steps::seen_by_hooks())
}

/// The scheduler asks whether node `t` is wanted.
///
/// # Safety
/// `t` is a node of the graph that runs.
#[must_use]
pub unsafe fn ask(t: *const c_void) -> bool {
    let Some(capture) = current().filter(|_| layout::check().is_ok()) else { return false };
    // SAFETY: the caller's promise.
    let Some(t) = (unsafe { TensorPtr::new(t) }) else { return false };
    LOCAL.try_with(|s| s.lock().ask(&capture, t)).unwrap_or(false)
}

/// Node `t` was computed.
///
/// # Safety
/// As for [`ask`].
pub unsafe fn shown(t: *const c_void) {
    let Some(capture) = current() else { return };
    // SAFETY: the caller's promise.
    if let Some(t) = unsafe { TensorPtr::new(t) } {
        _ = LOCAL.try_with(|s| s.lock().shown(&capture, t));
    }
}

/// The capture ends: the last graph of every thread is over.
pub fn finish_all(capture: &Capture) {
    let all: Vec<_> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    for state in all {
        if let Some(mut state) = state.try_lock_for(std::time::Duration::from_secs(1)) {
            state.finish(capture);
        }
    }
}

impl State {
    fn ask(&mut self, capture: &Capture, t: TensorPtr) -> bool {
        self.uses_flag |= t.has_compute_flag();
        let op = t.op();
        if !t.is_computed(self.uses_flag) && !class::is_view_op(op) {
            return false;
        }
        self.settle(capture);
        let source =
            |name: &str| (0..t.n_src()).filter_map(|k| t.src(k)).find(|s| s.name() == name && s.op() == "NONE");
        if let Some(ids) = source("inp_tokens") {
            // A graph begins with the look-up of its tokens.
            self.finish(capture);
            let n_tokens = usize::try_from(ids.ne()[0]).unwrap_or(0);
            let number = TOTALS.last_step.load(std::sync::atomic::Ordering::Relaxed).max(1);
            self.run = Some(Run { n_tokens, number, tokens: rows::integers(ids), ..Run::default() });
        }
        let Some(run) = &mut self.run else { return false };
        if run.positions.is_none()
            && let Some(positions) = source("inp_pos")
        {
            run.positions = rows::integers(positions);
        }
        if let Some(ids) = source("out_ids").or_else(|| source("inp_out_ids")) {
            run.selector = ids.address() as usize;
            run.outputs = rows::integers(ids);
        }
        let selects = op == "GET_ROWS" && t.src(1).is_some_and(|s| s.address() as usize == run.selector);
        let follows = (0..t.n_src()).filter_map(|k| t.src(k)).any(|s| run.behind.contains(&(s.address() as usize)));
        if selects || follows {
            run.behind.insert(t.address() as usize);
        }
        let mut memory = capture.memory();
        let Some(hit) = graph::hit(0, &t, t.name(), &capture.wish, None, false, &mut memory) else { return false };
        self.asked = Some((t.address() as usize, hit));
        true
    }

    /// A node that was asked for and never shown.
    fn settle(&mut self, capture: &Capture) {
        if self.asked.take().is_some()
            && let Some(pipeline) = capture.pipeline()
        {
            pipeline.account().seen(1, 0);
            pipeline.account().dropped(Reason::Unread, 1, 0);
        }
    }

    fn shown(&mut self, capture: &Capture, t: TensorPtr) {
        let Some((_, hit)) = self.asked.take_if(|(at, _)| *at == t.address() as usize) else { return };
        let (Some(run), Some(pipeline)) = (&mut self.run, capture.pipeline()) else { return };
        let bytes = t.view().packed_bytes();
        let account = pipeline.account();
        account.seen(1, bytes);
        let wanted = match run.describe(capture, &hit, t) {
            Ok(wanted) => wanted,
            Err(reason) => return account.skipped(reason, 1, bytes),
        };
        let len = copy::bytes(&wanted, None);
        if len == 0 {
            return account.skipped(Reason::Empty, 1, bytes);
        }
        if run.data.len() + len > capture.retain_limit.min(pipeline.largest()) {
            run.push(capture);
        }
        if len > pipeline.largest() {
            return account.dropped(Reason::TooLarge, 1, bytes);
        }
        let at = run.data.len();
        run.data.resize(at + len, 0);
        // SAFETY: ggml shows a node right after its backend has computed it; without a backend the read is done when the call returns.
        let read = unsafe { copy::read(t, &wanted, None, std::ptr::null_mut(), &mut run.data[at..]) };
        if read == Read::Failed {
            run.data.truncate(at);
            return account.dropped(Reason::Unread, 1, bytes);
        }
        if (len as u64) < bytes {
            account.skipped(Reason::Slice, 0, bytes - len as u64);
        }
        run.taken.push(Taken { tensor: t.name().to_owned(), hit, wanted, at, len });
    }

    fn finish(&mut self, capture: &Capture) {
        self.settle(capture);
        if let Some(mut run) = self.run.take() {
            run.push(capture);
        }
    }
}

impl Run {
    /// The node as a wanted one, with its own name for now.
    fn describe(&mut self, capture: &Capture, hit: &Hit, t: TensorPtr) -> Result<Wanted, Reason> {
        let dtype = DType::parse(t.type_name()).ok_or(Reason::Type)?;
        if t.nb()[0] != dtype.size() {
            return Err(Reason::NotContiguous);
        }
        let occurrence = self.occurrences.entry((t.name().to_owned(), hit.op)).or_insert(0);
        let number = *occurrence;
        *occurrence += 1;
        let n_outputs = self.outputs.as_ref().map_or(self.n_tokens, Vec::len) as u64;
        let behind = self.behind.contains(&(t.address() as usize));
        let mut memory = capture.memory();
        let shape = shape::of(&hit.name, hit.op, t.ne(), self.n_tokens as u64, n_outputs, behind, &mut memory.known)
            .ok_or(Reason::Type)?;
        let elements = capture.wish.elements_of(hit);
        let spec = Spec {
            name: hit.name.clone(),
            tensor: t.name().to_owned(),
            op: hit.op.to_owned(),
            layer: hit.class.layer,
            component: hit.class.component as u8,
            occurrence: number,
            dtype,
            slice: crate::select::slice(shape.ne[0], elements),
        };
        Ok(Wanted { node: 0, root: None, spec: Arc::new(spec), shape, bytes: 0, kept_bytes: 0, callback_only: None })
    }

    /// Hands everything copied so far on, under its final names.
    fn push(&mut self, capture: &Capture) {
        let taken = std::mem::take(&mut self.taken);
        let data = std::mem::take(&mut self.data);
        let Some(pipeline) = capture.pipeline().filter(|_| !taken.is_empty()) else { return };
        let mut buffer = match pipeline.reserve(data.len()) {
            Ok(buffer) => buffer,
            Err(refused) => {
                let bytes: usize = taken.iter().map(|t| t.len).sum();
                return pipeline.account().dropped(refused.into(), taken.len() as u64, bytes as u64);
            }
        };
        if let Some(to) = buffer.get_mut(..data.len()) {
            to.copy_from_slice(&data);
        }
        let stores = names::unique(&taken.iter().map(|t| (t.hit.name.clone(), t.hit.op)).collect::<Vec<_>>());
        let mut memory = capture.memory();
        let pieces = taken
            .iter()
            .zip(stores)
            .map(|(t, store)| {
                let old = &t.wanted.spec;
                let store = memory.of_width(store, t.wanted.shape.ne[0]);
                Piece {
                    spec: memory.spec(store, &t.hit, &t.tensor, old.occurrence, old.dtype, old.slice),
                    offset: t.at,
                    len: t.len,
                    ne: copy::shape(&t.wanted, None),
                    token_dim: t.wanted.shape.token_dim,
                    rows: match t.wanted.shape.rows {
                        Rows::Tokens => Some(0),
                        Rows::Outputs => Some(1),
                        Rows::Other => None,
                    },
                    route: Route::Callback,
                    completes: true,
                }
            })
            .collect();
        drop(memory);
        let tokens = if std::mem::replace(&mut self.told, true) { 0 } else { self.n_tokens as u32 };
        pipeline.push(Job {
            step: self.number,
            t_ns: clock::now_ns(),
            row_sets: self.row_sets(),
            pieces,
            data: buffer,
            tokens,
        });
    }

    fn row_sets(&self) -> Vec<Arc<[Row]>> {
        let at = |values: &Option<Vec<i32>>, i: usize| values.as_ref().and_then(|v| v.get(i)).copied().unwrap_or(-1);
        let row = |i: usize| Row { seq: -1, pos: at(&self.positions, i), token: at(&self.tokens, i), request: 0 };
        let all: Arc<[Row]> = (0..self.n_tokens).map(row).collect();
        let some = match &self.outputs {
            Some(ids) => ids.iter().filter_map(|&i| usize::try_from(i).ok()).map(row).collect(),
            None => all.clone(),
        };
        vec![all, some]
    }
}
