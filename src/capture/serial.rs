//! Capture without the graph: `llama_resource_eval_callback` is shown one node after the other and never told where a
//! graph begins or ends.
//!
//! For programs whose calls into ggml do not pass our hooks (statically linked ones). Values are copied when a node is
//! shown; names, which need the whole graph, are given when it is over (the next one begins, or a flush). The sequence
//! of a row is not known here; token and position are.

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::copy::{self, Read};
use super::graph::{self, Hit, Wanted};
use super::inputs::{self, Input, Role};
use super::shape::{self, Rows};
use super::{Capture, names, rows};
use crate::clock;
use crate::codec::DType;
use crate::format::stream::{Route, Row};
use crate::ggml::layout;
use crate::ggml::view::TensorPtr;
use crate::graph::{class, name};
use crate::heap;
use crate::observe::recording;
use crate::pipeline::{Form, InStep, Job, Piece, Place, Reason, Spec, Table};

/// A node that was wanted and copied.
#[derive(Debug)]
struct Taken {
    hit: Hit,
    /// Where the node is, to tell which one a view looks into.
    address: usize,
    tensor: String,
    /// A view has given it its name.
    named: bool,
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
    /// The first table that its tokens are looked up in, and the ids.
    begins: [usize; 2],
    tokens: Option<Vec<i32>>,
    positions: Option<Vec<i32>>,
    outputs: Option<Vec<i32>>,
    selector: usize,
    behind: HashSet<usize>,
    /// Names of the nodes that compute: a view of the same name is not taken for one of them.
    computing: HashSet<String>,
    occurrences: HashMap<(String, &'static str), u16>,
    /// The same by stored name, counted when the names are given.
    named: HashMap<(String, &'static str), u32>,
    taken: Vec<Taken>,
    data: Vec<u8>,
    told: bool,
    /// What it has seen may still be open in the account.
    _in_step: Option<InStep>,
}

/// A thread's graphs.
#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    asked: Option<(usize, Hit)>,
    /// This build marks the nodes that are computed.
    uses_flag: bool,
}

/// The longest that the end of a capture waits for threads that are in their callbacks.
const PATIENCE: Duration = Duration::from_secs(1);

static ALL: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

/// Number of the last step of any thread.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The step's number in the event log; the next one where the log is paused and does not count.
fn next_step() -> u64 {
    let logged = recording::current().totals.last_step().unwrap_or(0);
    let next = |last: u64| logged.max(last + 1);
    LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).map_or(logged, next)
}

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
    super::current().filter(|c| c.list.is_none() && !recording::seen_by_hooks())
}

/// The scheduler asks whether node `t` is wanted.
///
/// # Safety
/// `t` is a node of the graph that runs.
#[must_use]
pub unsafe fn ask(t: *const c_void) -> bool {
    let Some(capture) = current() else { return false };
    if let Err(reason) = layout::check() {
        capture.ran.unreadable(reason);
        return false;
    }
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
    // All of them together: a thread that is held up in its callback is left alone.
    let until = Instant::now() + PATIENCE;
    for state in all {
        if let Some(mut state) = state.try_lock_until(until) {
            state.finish(capture);
        }
    }
    LAST.store(0, Ordering::Relaxed);
}

/// What the calling thread has copied goes on its way: it asks for a flush. A graph that is being shown goes on.
pub fn flush_here(capture: &Capture) {
    _ = LOCAL.try_with(|state| {
        // Locked by us: a flush from within the caller's own callback comes while nothing of ours runs.
        if let Some(run) = state.try_lock().as_deref_mut().and_then(|s| s.run.as_mut()) {
            run.push(capture, None);
        }
    });
}

impl Drop for State {
    /// A thread ends: its last graph is over.
    fn drop(&mut self) {
        if self.run.is_some() {
            crate::boundary::catching((), || {
                if let Some(capture) = super::current() {
                    self.finish(&capture);
                }
            });
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
        let inputs: Vec<Input> = inputs::of_node(t).collect();
        let of = |role| inputs.iter().find(|i| i.role == role);
        if let Some(ids) = of(Role::Tokens).map(|i| i.tensor)
            && self.run.as_ref().is_none_or(|run| !run.looks_up_more(t, ids))
        {
            // A graph begins with the look-up of its tokens.
            self.finish(capture);
            let n_tokens = usize::try_from(ids.ne()[0]).unwrap_or(0);
            // A resumed stream has steps of an earlier run: its numbers go on.
            let before = capture.pipeline().and_then(|p| p.resumed()).map_or(0, |r| r.last_step);
            let number = next_step() + before;
            let begins = [t.src(0), Some(ids)].map(|s| s.map_or(0, |s| s.address() as usize));
            let _in_step = capture.pipeline().map(|p| p.account().step_begins());
            self.run = Some(Run { n_tokens, number, begins, tokens: rows::integers(ids), _in_step, ..Run::default() });
        }
        let Some(run) = &mut self.run else {
            capture.ran.unbegun();
            return false;
        };
        if run.positions.is_none()
            && let Some(positions) = of(Role::Positions)
        {
            run.positions = rows::integers(positions.tensor);
        }
        if let Some(ids) = of(Role::Outputs).filter(|i| i.named || run.chooses_outputs(t, i.tensor)) {
            run.selector = ids.tensor.address() as usize;
            run.outputs = rows::integers(ids.tensor);
        }
        let selects = op == "GET_ROWS" && t.src(1).is_some_and(|s| s.address() as usize == run.selector);
        let follows = (0..t.n_src()).filter_map(|k| t.src(k)).any(|s| run.behind.contains(&(s.address() as usize)));
        if selects || follows {
            run.behind.insert(t.address() as usize);
        }
        let is_view = class::is_view_op(op);
        if is_view {
            run.name_after(t);
        } else if !name::is_automatic(name::parse(t.name()).base) {
            run.computing.insert(t.name().to_owned());
        }
        let twin = is_view && run.computing.contains(t.name());
        let mut memory = capture.memory();
        let Some(hit) = graph::hit(0, &t, t.name(), &capture.wish, None, twin, &mut memory) else { return false };
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
        let room = capture.retain_limit.min(pipeline.largest());
        if run.data.len() + len > room {
            // Nodes of a block have their names once the next one has begun.
            run.push(capture, wanted.spec.layer);
        }
        if run.data.len() + len > room {
            run.push(capture, None);
        }
        if len > pipeline.largest() {
            return account.dropped(Reason::TooLarge, 1, bytes);
        }
        let at = run.data.len();
        if !heap::reserve(&mut run.data, len) {
            return account.dropped(Reason::NoMemory, 1, bytes);
        }
        run.data.resize(at + len, 0);
        // SAFETY: ggml shows a node right after its backend has computed it; without a backend the read is done when
        // the call returns.
        let read = unsafe { copy::read(t, &wanted, None, std::ptr::null_mut(), &mut run.data[at..]) };
        if read == Read::Failed {
            run.data.truncate(at);
            return account.dropped(Reason::Unread, 1, bytes);
        }
        if (len as u64) < bytes {
            account.skipped(Reason::Slice, 0, bytes - len as u64);
        }
        run.taken.push(Taken {
            tensor: t.name().to_owned(),
            address: t.address() as usize,
            named: false,
            hit,
            wanted,
            at,
            len,
        });
    }

    fn finish(&mut self, capture: &Capture) {
        self.settle(capture);
        if let Some(mut run) = self.run.take() {
            run.push(capture, None);
        }
    }
}

impl Run {
    /// Whether node `t` looks up the tokens of this graph in a further table (embeddings of each block, as
    /// Gemma has them).
    fn looks_up_more(&self, t: TensorPtr, ids: TensorPtr) -> bool {
        let [table, first] = self.begins;
        ids.address() as usize == first && t.src(0).is_none_or(|s| s.address() as usize != table)
    }

    /// Whether node `t` chooses the rows `ids` that have an output. What pools results comes behind them.
    fn chooses_outputs(&self, t: TensorPtr, ids: TensorPtr) -> bool {
        self.outputs.is_none()
            && inputs::is_choice_of_outputs(t, ids, self.n_tokens)
            && t.src(0).is_some_and(|s| !s.name().starts_with("result_"))
    }

    /// A node that ggml numbered itself is called after the view that the model goes on with (`kqv_out-3`).
    fn name_after(&mut self, view: TensorPtr) {
        let automatic = |name: &str| name::is_automatic(name::parse(name).base);
        let root = inputs::root_of(view);
        if !automatic(root.name()) || automatic(view.name()) || view.name().contains(" (") {
            return;
        }
        let at = root.address() as usize;
        let unnamed = |t: &&mut Taken| t.address == at && !t.named;
        if root.view().elements() == view.view().elements()
            && let Some(taken) = self.taken.iter_mut().rev().find(unnamed)
        {
            taken.named = true;
            taken.hit.name = view.name().to_owned();
        }
    }

    /// The node as a wanted one, with its own name for now.
    fn describe(&mut self, capture: &Capture, hit: &Hit, t: TensorPtr) -> Result<Wanted, Reason> {
        let root = inputs::root_of(t);
        let again = class::is_view_op(hit.op) && root.view().elements() == t.view().elements();
        if again && self.taken.iter().any(|own| own.address == root.address() as usize) {
            return Err(Reason::View);
        }
        if root.op() == "NONE" {
            // Weights, inputs and the cache: nothing that this graph has computed.
            return Err(Reason::ExternalView);
        }
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
        // Equal names are told apart by their operation: their shapes may differ.
        let known = format!("{}.{}", hit.name, hit.op);
        let shape = shape::of(&known, hit.op, t.ne(), self.n_tokens as u64, n_outputs, behind, &mut memory.known)
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

    /// Hands on what was copied so far, under its final names; with `block`, only what is of a block before it.
    fn push(&mut self, capture: &Capture, block: Option<i32>) {
        let goes = |t: &Taken| block.is_none_or(|block| t.hit.class.layer.is_some_and(|layer| layer < block));
        let (going, staying): (Vec<_>, Vec<_>) = std::mem::take(&mut self.taken).into_iter().partition(goes);
        let data = std::mem::take(&mut self.data);
        let of = |t: &Taken| data.get(t.at..t.at + t.len).unwrap_or_default();
        for mut t in staying {
            let at = self.data.len();
            self.data.extend_from_slice(of(&t));
            t.at = at;
            self.taken.push(t);
        }
        let Some(pipeline) = capture.pipeline().filter(|_| !going.is_empty()) else { return };
        let bytes: usize = going.iter().map(|t| t.len).sum();
        let mut buffer = match pipeline.reserve(bytes) {
            Ok(buffer) => buffer,
            Err(refused) => {
                return pipeline.account().dropped(refused.into(), going.len() as u64, bytes as u64);
            }
        };
        let nodes: Vec<_> = going.iter().map(|t| self.number(t)).collect();
        let mut memory = capture.memory();
        let stores = memory.given.names(&nodes);
        let mut offset = 0;
        let mut pieces = Vec::with_capacity(going.len());
        let (mut places, mut specs) = (Vec::with_capacity(going.len()), Vec::with_capacity(going.len()));
        for (t, store) in going.iter().zip(stores) {
            if let Some(to) = buffer.get_mut(offset..offset + t.len) {
                to.copy_from_slice(of(t));
            }
            let old = &t.wanted.spec;
            let store = memory.of_width(store, t.wanted.shape.ne[0]);
            let spec = store.and_then(|s| memory.spec(s, &t.hit, &t.tensor, old.occurrence, old.dtype, old.slice));
            let Some(spec) = spec else {
                // It has its place in the buffer, which is not read.
                pipeline.account().dropped(Reason::Full, 1, t.len as u64);
                offset += t.len;
                continue;
            };
            specs.push(spec);
            pieces.push(Piece {
                spec: pieces.len() as u32,
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
            });
            places.push(Place { buffer: 0, offset, form: Form::Values });
            offset += t.len;
        }
        drop(memory);
        let tokens = if std::mem::replace(&mut self.told, true) { 0 } else { self.n_tokens as u32 };
        pipeline.push(Job {
            step: self.number,
            t_ns: clock::now_ns(),
            table: Arc::new(Table::new(specs.into(), pieces)),
            places,
            row_sets: self.row_sets(),
            data: vec![buffer],
            tokens,
        });
    }

    /// Name, operation, and which of the graph's nodes with both it is.
    fn number(&mut self, t: &Taken) -> names::Node {
        let next = self.named.entry((t.hit.name.clone(), t.hit.op)).or_insert(0);
        *next += 1;
        (t.hit.name.clone(), t.hit.op, *next - 1)
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
