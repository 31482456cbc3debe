//! Capture without the graph: `llama_resource_eval_callback` is shown one node after the other and never told where a
//! graph begins or ends.
//!
//! For programs whose calls into ggml do not pass our hooks (statically linked ones). `observe::eval` says which graph
//! a node is of. Values are copied when a node is shown; names, which need the whole graph, are given when it is over
//! (the next one begins, or a flush). The sequence of a row is not known here; token and position are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::copy::{self, Read};
use super::graph::{self, Hit, Wanted};
use super::rows::StepRows;
use super::shape;
use super::{Capture, names, rows};
use crate::clock;
use crate::codec::DType;
use crate::format::stream::{Route, Row};
use crate::ggml::layout;
use crate::ggml::view::TensorPtr;
use crate::graph::{class, name};
use crate::heap;
use crate::observe::eval::{Intake, Values, Wants};
use crate::observe::inputs::{self, Input, Role};
use crate::pipeline::{Form, InStep, Job, Piece, Place, Reason, Spec, Table};

/// A node that was wanted and copied.
#[derive(Debug)]
struct Taken {
    hit: Hit,
    /// Where the node is, to tell which one a view looks into.
    address: usize,
    /// A view has given it its name.
    named: bool,
    /// With a provisional name.
    wanted: Wanted,
    at: usize,
    len: usize,
}

/// What is read of the graph that is being shown.
#[derive(Debug, Default)]
struct Run {
    /// Whose values these are; nobody's when it is over.
    capture: Weak<Capture>,
    number: u64,
    n_tokens: usize,
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
    /// The node that was asked for last and is not yet shown.
    asked: Option<Hit>,
    taken: Vec<Taken>,
    data: Vec<u8>,
    told: bool,
    /// What it has seen may still be open in the account.
    _in_step: Option<InStep>,
}

/// The capture that the eval callback feeds.
#[must_use]
pub fn current() -> Option<Arc<Capture>> {
    super::current().filter(|c| c.list.is_none())
}

/// Tensors may be unreadable in this build: then nothing is captured of it.
#[cold]
pub fn refused(capture: &Capture) {
    if let Err(reason) = layout::check() {
        capture.ran.unreadable(reason);
    }
}

impl Wants for Arc<Capture> {
    fn begin(&self, number: u64, intake: &Intake) -> Box<dyn Values> {
        // A resumed stream has steps of an earlier run: its numbers go on.
        let before = self.pipeline().and_then(|p| p.resumed()).map_or(0, |r| r.last_step);
        Box::new(Run {
            capture: Arc::downgrade(self),
            number: number + before,
            n_tokens: usize::try_from(intake.n_tokens).unwrap_or(0),
            tokens: intake.tokens().and_then(rows::integers),
            _in_step: self.pipeline().map(|p| p.account().step_begins()),
            ..Run::default()
        })
    }

    fn unbegun(&self) {
        self.ran.unbegun();
    }
}

impl Values for Run {
    fn ask(&mut self, t: TensorPtr) -> bool {
        let Some(capture) = self.capture.upgrade() else { return false };
        self.settle(&capture);
        self.asked = self.hit(&capture, t);
        self.asked.is_some()
    }

    fn shown(&mut self, t: TensorPtr) {
        let (Some(hit), Some(capture)) = (self.asked.take(), self.capture.upgrade()) else { return };
        self.take(&capture, hit, t);
    }

    fn flush(&mut self, is_over: bool) {
        let Some(capture) = self.capture.upgrade() else { return };
        if is_over {
            self.settle(&capture);
        }
        self.push(&capture, None);
    }
}

impl Run {
    /// A node that was asked for and never shown.
    fn settle(&mut self, capture: &Capture) {
        if self.asked.take().is_some()
            && let Some(pipeline) = capture.pipeline()
        {
            pipeline.account().seen(1, 0);
            pipeline.account().dropped(Reason::Unread, 1, 0);
        }
    }

    /// What node `t` says of the graph's rows and of the nodes before it; and whether it is wanted.
    fn hit(&mut self, capture: &Capture, t: TensorPtr) -> Option<Hit> {
        let inputs: Vec<Input> = inputs::of_node(t).collect();
        let of = |role| inputs.iter().find(|i| i.role == role);
        if self.positions.is_none()
            && let Some(positions) = of(Role::Positions)
        {
            self.positions = rows::integers(positions.tensor);
        }
        if let Some(ids) = of(Role::Outputs).filter(|i| i.named || self.chooses_outputs(t, i.tensor)) {
            self.selector = ids.tensor.address() as usize;
            self.outputs = rows::integers(ids.tensor);
        }
        let selects = t.op() == "GET_ROWS" && t.src(1).is_some_and(|s| s.address() as usize == self.selector);
        let follows = (0..t.n_src()).filter_map(|k| t.src(k)).any(|s| self.behind.contains(&(s.address() as usize)));
        if selects || follows {
            self.behind.insert(t.address() as usize);
        }
        let is_view = class::is_view_op(t.op());
        if is_view {
            self.name_after(t);
        } else if !name::is_automatic(name::parse(t.name()).base) {
            self.computing.insert(t.name().to_owned());
        }
        let twin = is_view && self.computing.contains(t.name());
        graph::hit(0, &t, t.name(), &capture.wish, None, twin, &mut capture.memory())
    }

    /// Copies the node's values.
    fn take(&mut self, capture: &Capture, hit: Hit, t: TensorPtr) {
        let Some(pipeline) = capture.pipeline() else { return };
        let bytes = t.view().packed_bytes();
        let account = pipeline.account();
        account.seen(1, bytes);
        let wanted = match self.describe(capture, &hit, t) {
            Ok(wanted) => wanted,
            Err(reason) => return account.skipped(reason, 1, bytes),
        };
        let len = copy::bytes(&wanted, None);
        if len == 0 {
            return account.skipped(Reason::Empty, 1, bytes);
        }
        let room = capture.retain_limit.min(pipeline.largest());
        if self.data.len() + len > room {
            // Nodes of a block have their names once the next one has begun.
            self.push(capture, wanted.spec.layer);
        }
        if self.data.len() + len > room {
            self.push(capture, None);
        }
        if len > pipeline.largest() {
            return account.dropped(Reason::TooLarge, 1, bytes);
        }
        let at = self.data.len();
        if !heap::reserve(&mut self.data, len) {
            return account.dropped(Reason::NoMemory, 1, bytes);
        }
        self.data.resize(at + len, 0);
        // SAFETY: ggml shows a node right after its backend has computed it; without a backend the read is done when
        // the call returns.
        let read = unsafe { copy::read(t, &wanted, None, std::ptr::null_mut(), &mut self.data[at..]) };
        if read == Read::Failed {
            self.data.truncate(at);
            return account.dropped(Reason::Unread, 1, bytes);
        }
        if (len as u64) < bytes {
            account.skipped(Reason::Slice, 0, bytes - len as u64);
        }
        self.taken.push(Taken { hit, address: t.address() as usize, named: false, wanted, at, len });
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
            let spec = store.and_then(|s| memory.spec(s, &t.hit, &old.tensor, old.occurrence, old.dtype, old.slice));
            let Some(spec) = spec else {
                // It has its place in the buffer, and nobody looks there.
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
                rows: StepRows::set_of(&t.wanted),
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
        let all = rows::of_inputs(self.n_tokens, self.tokens.as_deref(), self.positions.as_deref());
        let some = match &self.outputs {
            Some(ids) => ids.iter().filter_map(|&i| all.get(usize::try_from(i).ok()?).copied()).collect(),
            None => all.clone(),
        };
        vec![all, some]
    }
}
