//! The caller's side of a mark: which spans are open on this thread, whether the call is in order, and the words
//! into the ring.
//!
//! An end is never lost: each open span that was recorded keeps room for its end in the ring, so what the log shows as
//! begun it also shows as ended. A call in the wrong order changes as little as it can and repairs what it can: an end
//! closes what was left open inside it, an end without a begin does nothing.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ring::{self, Local};
use super::words::{self, HEAD, Head, Kind, NO_LAYER};
use super::{Answer, Done, MAX_ID, MAX_INPUTS, MAX_NAME, Refusal, gate, refusal, sessions, tensor};
use crate::format::Level;
use crate::ggml::view::TensorPtr;
use crate::observe::homes;
use crate::{boundary, clock, journal};

/// Spans that may be open on one thread.
pub const MAX_DEPTH: usize = 1024;

/// Allocations below this are left out at MINIMAL.
const LARGE: u64 = 1 << 20;

static EPOCH: AtomicU32 = AtomicU32::new(0);

/// A recording begins: open spans and full rings of an older one mean nothing any more.
pub fn new_epoch() {
    EPOCH.fetch_add(1, Ordering::AcqRel);
}

/// The recording that marks belong to.
#[must_use]
pub fn epoch() -> u32 {
    EPOCH.load(Ordering::Acquire)
}

/// An open layer or component.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Layer id, or a hash of the component's name.
    key: u64,
    is_layer: bool,
    /// Its begin is in the ring.
    recorded: bool,
    /// Its begin found the ring full.
    dropped: bool,
    session: u32,
}

#[derive(Debug)]
struct Thread {
    ring: Local,
    scratch: Vec<u64>,
    frames: Vec<Frame>,
    /// Ids of the open layers.
    layers: Vec<i32>,
    /// Recorded frames, each of which has room for its end in the ring.
    owed: usize,
    epoch: u32,
    /// Begins that were refused because the stack is full: their ends are refused too.
    too_deep: usize,
}

thread_local! {
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// Runs `f` with the thread's state. A thread that is being torn down, or a call out of our own (a log callback that
/// marks), has none.
#[inline]
fn with(f: impl FnOnce(&mut Thread) -> Answer) -> Answer {
    THREAD
        .try_with(|t| {
            let Ok(mut t) = t.try_borrow_mut() else {
                ring::lost();
                return Ok(Done::Dropped);
            };
            let t = t.get_or_insert_with(Thread::new);
            let epoch = epoch();
            if t.epoch != epoch {
                t.forget(epoch);
            }
            f(t)
        })
        .unwrap_or_else(|_| {
            ring::lost();
            Ok(Done::Dropped)
        })
}

impl Thread {
    #[cold]
    fn new() -> Self {
        Self {
            ring: Local::new(),
            scratch: Vec::with_capacity(512),
            frames: Vec::with_capacity(32),
            layers: Vec::with_capacity(8),
            owed: 0,
            epoch: epoch(),
            too_deep: 0,
        }
    }

    #[cold]
    fn forget(&mut self, epoch: u32) {
        self.frames.clear();
        self.layers.clear();
        (self.owed, self.too_deep, self.epoch) = (0, 0, epoch);
    }

    fn head(&self, kind: Kind, layer: i32) -> Head {
        Head { kind, layer, t_ns: clock::now_ns(), epoch: self.epoch, session: sessions::current() }
    }

    fn layer(&self) -> i32 {
        self.layers.last().copied().unwrap_or(NO_LAYER)
    }

    /// Pushes a mark that `fill` completes. Room for the ends of open spans stays free, and for `more` of them.
    #[inline]
    fn push(&mut self, head: &Head, more: usize, fill: impl FnOnce(&mut Vec<u64>)) -> Done {
        words::begin(&mut self.scratch, head);
        fill(&mut self.scratch);
        words::end(&mut self.scratch);
        if self.ring.push(&self.scratch, (self.owed + more) * HEAD) { Done::Recorded } else { Done::Dropped }
    }

    fn begin(&mut self, is_layer: bool, id: i32, name: &str) -> Answer {
        if sessions::current() == 0 {
            return Err(Refusal::WrongOrder("no session is open: begin one first"));
        }
        if self.frames.len() >= MAX_DEPTH {
            self.too_deep += 1;
            return Err(Refusal::TooDeep);
        }
        if is_layer {
            self.layers.push(id);
        }
        let key = if is_layer { u64::from(id as u32) } else { hash(name) };
        let mut frame = Frame { key, is_layer, recorded: false, dropped: false, session: sessions::current() };
        let answer = if journal::paused() {
            Err(Refusal::Disabled)
        } else if journal::level() < Level::Detailed {
            self.ring.leave_out();
            Ok(Done::LeftOut)
        } else {
            let kind = if is_layer { Kind::LayerBegin } else { Kind::ComponentBegin };
            let head = self.head(kind, self.layer());
            let done = self.push(&head, 1, |w| {
                if !is_layer {
                    words::text(w, name);
                }
            });
            frame.recorded = done == Done::Recorded;
            frame.dropped = !frame.recorded;
            self.owed += usize::from(frame.recorded);
            Ok(done)
        };
        self.frames.push(frame);
        answer
    }

    fn end(&mut self, is_layer: bool, id: i32, name: &str) -> Answer {
        let key = if is_layer { u64::from(id as u32) } else { hash(name) };
        let matches = |f: &Frame| f.is_layer == is_layer && f.key == key;
        if self.too_deep > 0 && !self.frames.last().is_some_and(matches) {
            self.too_deep -= 1;
            return Err(Refusal::TooDeep);
        }
        let Some(at) = self.frames.iter().rposition(matches) else {
            return Err(Refusal::WrongOrder("an end without its begin on this thread"));
        };
        let inner = self.frames.len() - 1 - at;
        let mut answer = Ok(Done::Recorded);
        for _ in 0..=inner {
            answer = self.pop();
        }
        if inner > 0 {
            return Err(Refusal::WrongOrder("an end of an outer span: those left open inside it were ended too"));
        }
        answer
    }

    /// Ends the innermost span.
    fn pop(&mut self) -> Answer {
        let Some(frame) = self.frames.pop() else { return Ok(Done::LeftOut) };
        let layer = self.layer();
        if frame.is_layer {
            self.layers.pop();
        }
        if !frame.recorded {
            if frame.dropped {
                self.ring.drop_end();
                return Ok(Done::Dropped);
            }
            if journal::paused() {
                return Err(Refusal::Disabled);
            }
            self.ring.leave_out();
            return Ok(Done::LeftOut);
        }
        self.owed -= 1;
        let head = Head { session: frame.session, ..self.head(Kind::End, layer) };
        Ok(self.push(&head, 0, |_| {}))
    }
}

/// FNV-1a: names are short, and only compared with the other open spans of one thread.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn checked_name(name: &str) -> Result<&str, Refusal> {
    if name.is_empty() || name.len() > MAX_NAME {
        Err(Refusal::Invalid("a name is empty or longer than 127 bytes"))
    } else {
        Ok(name)
    }
}

/// Spans are kept in order while recording is paused, so that a pause between a begin and its end does no harm.
fn gate_span() -> Result<(), Refusal> {
    if boundary::recording() { Ok(()) } else { Err(refusal()) }
}

/// Names the events that follow, on all threads.
pub fn begin_session(id: &str) -> Answer {
    gate()?;
    if id.is_empty() || id.len() > MAX_ID {
        return Err(Refusal::Invalid("a session's id is empty or longer than 255 bytes"));
    }
    let before = sessions::end(clock::now_ns());
    sessions::begin(id, clock::now_ns());
    ring::count_direct(1 + u64::from(before));
    if before {
        return Err(Refusal::WrongOrder("a session was open: it was ended, and the new one began"));
    }
    Ok(Done::Recorded)
}

/// Ends the session.
pub fn end_session() -> Answer {
    gate_span()?;
    let left_open = with(|t| {
        let n = t.frames.len();
        for _ in 0..n {
            _ = t.pop();
        }
        t.too_deep = 0;
        Ok(if n > 0 { Done::Dropped } else { Done::Recorded })
    });
    if !sessions::end(clock::now_ns()) {
        return Err(Refusal::WrongOrder("no session is open"));
    }
    ring::count_direct(1);
    if left_open == Ok(Done::Dropped) {
        return Err(Refusal::WrongOrder("layers or components were open on this thread: they were ended too"));
    }
    Ok(Done::Recorded)
}

/// A layer begins on this thread.
pub fn begin_layer(id: i32) -> Answer {
    gate_span()?;
    if id < 0 {
        return Err(Refusal::Invalid("a layer's number is negative"));
    }
    with(|t| t.begin(true, id, ""))
}

/// A layer ends on this thread.
pub fn end_layer(id: i32) -> Answer {
    gate_span()?;
    with(|t| t.end(true, id, ""))
}

/// A component begins on this thread.
pub fn begin_component(name: &str) -> Answer {
    gate_span()?;
    let name = checked_name(name)?;
    with(|t| t.begin(false, 0, name))
}

/// A component ends on this thread.
pub fn end_component(name: &str) -> Answer {
    gate_span()?;
    let name = checked_name(name)?;
    with(|t| t.end(false, 0, name))
}

/// Pushes an event of at least `level`.
fn event(least: Level, kind: Kind, layer: Option<i32>, fill: impl FnOnce(&mut Vec<u64>)) -> Answer {
    with(|t| {
        if journal::level() < least {
            t.ring.leave_out();
            return Ok(Done::LeftOut);
        }
        let head = t.head(kind, layer.unwrap_or_else(|| t.layer()));
        Ok(t.push(&head, 0, fill))
    })
}

/// Memory was given to a tensor. With `id`, the event's resource id is handed over as well.
pub fn allocation(t: &TensorPtr, component: &str, id: Option<&mut String>) -> Answer {
    gate()?;
    let component = checked_name(component)?;
    let least = if t.view().nbytes > LARGE { Level::Minimal } else { Level::Detailed };
    with(|thread| {
        let layer = thread.layer();
        let head = thread.head(Kind::Allocation, layer);
        if let Some(id) = id {
            let (_, place) = homes::of(t);
            let device = place.device.or(place.buffer_type);
            let layer = super::expand::layer_of(layer, t.name(), t.op());
            *id = journal::stamp::resource_id(device, "memory", layer, component, head.t_ns);
        }
        if journal::level() < least {
            thread.ring.leave_out();
            return Ok(Done::LeftOut);
        }
        Ok(thread.push(&head, 0, |w| {
            words::text(w, component);
            words::text(w, tensor::usage(t));
            tensor::write(w, t);
        }))
    })
}

/// The memory of an allocation was given back.
pub fn deallocation(id: &str) -> Answer {
    gate()?;
    if id.is_empty() || id.len() > MAX_ID {
        return Err(Refusal::Invalid("a resource id is empty or longer than 255 bytes"));
    }
    event(Level::Detailed, Kind::Deallocation, None, |w| words::text(w, id))
}

/// An operation ran. `inputs` gives the tensors one after the other, `n` of them.
pub fn compute(
    operation: &str,
    component: &str,
    n: usize,
    inputs: impl Iterator<Item = TensorPtr> + Clone,
    output: &TensorPtr,
) -> Answer {
    gate()?;
    let (operation, component) = (checked_name(operation)?, checked_name(component)?);
    if n > MAX_INPUTS {
        return Err(Refusal::Invalid("more than 1024 inputs"));
    }
    event(least_of(operation, output.op()), Kind::Compute, None, |w| {
        words::text(w, operation);
        words::text(w, component);
        // What ggml itself makes the output of: the caller may have named less (no weights), or the same.
        let sources = || (0..output.n_src()).filter_map(|i| output.src(i));
        let same = sources().count() == n && sources().zip(inputs.clone()).all(|(a, b)| a == b);
        let own = if same { 0 } else { sources().count() };
        w.extend([n as u64, own as u64, u64::from(same)]);
        tensor::write(w, output);
        inputs.for_each(|t| tensor::write(w, &t));
        if !same {
            sources().for_each(|t| tensor::write(w, &t));
        }
    })
}

/// Level from which an operation is written, as for the operations that the hooks see: the caller's word for
/// it counts first.
fn least_of(operation: &str, op: &str) -> Level {
    let is = |names: &[&str]| names.iter().any(|n| operation.eq_ignore_ascii_case(n));
    if is(&["mul_mat", "mul_mat_id", "out_prod", "matmul", "gemm"])
        || matches!(op, "MUL_MAT" | "MUL_MAT_ID" | "OUT_PROD")
    {
        Level::Minimal
    } else if is(&["add", "mul", "scale", "copy", "cpy", "cont", "dup", "view", "reshape", "permute", "transpose"]) {
        Level::Verbose
    } else {
        Level::Detailed
    }
}

/// A feed-forward operation ran.
pub fn mlp(operation: &str, weights: &TensorPtr, activations: &TensorPtr) -> Answer {
    gate()?;
    let operation = checked_name(operation)?;
    event(Level::Detailed, Kind::Mlp, None, |w| {
        words::text(w, operation);
        tensor::write(w, weights);
        tensor::write(w, activations);
        // The other source of the multiplication, if the activations are its result.
        w.push(activations.src(1).map_or(0, |t| t.view().packed_bytes()));
    })
}

/// The KV cache changed. A negative layer means all of them.
pub fn cache(layer: i32, operation: &str, bytes: u64) -> Answer {
    gate()?;
    let operation = checked_name(operation)?;
    event(Level::Detailed, Kind::Cache, Some(if layer < 0 { NO_LAYER } else { layer }), |w| {
        words::text(w, operation);
        w.push(bytes);
    })
}

/// One component handed over to another.
pub fn handoff(from: &str, to: &str) -> Answer {
    gate()?;
    let (from, to) = (checked_name(from)?, checked_name(to)?);
    event(Level::Detailed, Kind::Handoff, None, |w| {
        words::text(w, from);
        words::text(w, to);
    })
}

/// A token was generated.
pub fn token(seq: i32, token: i32) -> Answer {
    gate()?;
    let (index, since_ns) = sessions::token(clock::now_ns());
    event(Level::Verbose, Kind::Token, None, |w| {
        w.extend([u64::from(seq as u32), u64::from(token as u32), index, since_ns]);
    })
}
