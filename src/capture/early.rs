//! Rows that the host's compute threads encode while the step runs, a little after they were computed: nothing is
//! copied first, and most are still in the caches.
//!
//! Before it: `helpers`, on each of those threads, when an operation begins at which a stretch of the graph ends. After
//! it: `step`, which hands the encoded rows on when the graph is over, and reads everything else then. Only tensors
//! that the allocator keeps, only codecs whose rows stand alone, only small ubatches: a prompt's rows would hold the
//! host for long.
//!
//! ```text
//!   operations   ▁▁▁▁▁▁▁▁▁▁  ▁▁▁▁▁▁▁▁▁▁  ▁▁▁▁▁▁▁▁▁▁
//!   all threads            ██          ██          █   rows of the stretch before
//! ```

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::copy;
use super::graph::Wanted;
use crate::codec::{Codec, Encoder};
use crate::ggml::view::TensorPtr;
use crate::observe::timer::HOT;
use crate::pipeline::{self, Buffer, Form, Pipeline, Place};
use crate::prefetch;

/// Bytes of values after which a stretch ends: about what stays in a core's cache beside the weights.
const STRETCH: usize = 96 << 10;

/// A tensor with more is read when the graph is over: `pipeline` could not cut it any more.
const MOST_TENSOR: usize = pipeline::LEAST_PACKET;

/// A step with more as well.
const MOST_STEP: usize = 8 << 20;

/// Memory that is asked for beyond what a tensor's rows are expected to take.
const MARGIN: usize = 256;

/// How long a step that is timed waits for the other threads at a stretch's end, so that the operation behind it is
/// timed without that.
const MOST_WAIT: Duration = Duration::from_millis(1);

/// The step that runs.
static WORK: RwLock<Option<Arc<Work>>> = RwLock::new(None);

/// Memory for threads, from step to step.
static SPARE: Mutex<Vec<Kit>> = Mutex::new(Vec::new());

/// What can be encoded while a graph runs; worked out when it runs first.
#[derive(Debug, Default)]
pub struct Plan {
    items: Vec<Item>,
    stations: Vec<Station>,
    bytes: usize,
    /// Nodes that are wanted of the graph.
    wanted: usize,
}

/// One tensor. Everything about it stands together: what is looked up elsewhere for each of hundreds is not in the
/// caches.
#[derive(Debug)]
struct Item {
    /// Number of the wanted node.
    wanted: u32,
    tensor: TensorPtr,
    /// Address of its values.
    data: usize,
    bytes: usize,
    row_len: usize,
    codec: Codec,
}

/// Where a stretch ends.
#[derive(Debug)]
struct Station {
    /// The operation before which its rows are encoded.
    at: TensorPtr,
    /// Items before it.
    until: usize,
}

impl Station {
    fn address(&self) -> *mut c_void {
        self.at.address().cast_mut()
    }
}

impl Plan {
    /// `wanted`: what is wanted of the graph, with its nodes; `is_kept`: by the allocator. `stops`: number among the
    /// graph's nodes and address of each operation that all threads begin together.
    #[must_use]
    pub fn new(
        wanted: &[Wanted],
        tensors: &[TensorPtr],
        is_kept: impl Fn(usize) -> bool,
        stops: &[(usize, TensorPtr)],
        pipeline: &Pipeline,
    ) -> Self {
        let mut plan = Self { wanted: wanted.len(), ..Self::default() };
        let mut coming = stops.iter().peekable();
        let mut open = 0;
        for (i, (w, t)) in wanted.iter().zip(tensors).enumerate() {
            while let Some(&&(node, at)) = coming.peek()
                && node <= w.node
            {
                if open >= STRETCH {
                    plan.stations.push(Station { at, until: plan.items.len() });
                    open = 0;
                }
                coming.next();
            }
            let row_len = pipeline::row_len(&w.shape.ne, w.shape.token_dim) as usize;
            let codec = pipeline.params().row_codec(w.spec.dtype, row_len, w.bytes);
            let whole = is_kept(i) && w.spec.slice.is_none() && (1..=MOST_TENSOR).contains(&w.bytes);
            // SAFETY: a tensor of a graph that has its memory.
            let values = if whole { unsafe { copy::in_place(*t, w.bytes) } } else { None };
            if let (Some(codec), Some(values)) = (codec, values) {
                let data = values.as_ptr() as usize;
                plan.items.push(Item { wanted: i as u32, tensor: *t, data, bytes: w.bytes, row_len, codec });
                plan.bytes += w.bytes;
                open += w.bytes;
            }
        }
        // What is computed after the last stop is read when the graph is over.
        if open > 0
            && let Some(&(node, at)) = stops.last()
        {
            let comes_before = |item: &Item| wanted.get(item.wanted as usize).is_some_and(|w| w.node < node);
            let until = plan.items.partition_point(comes_before);
            if until > plan.stations.last().map_or(0, |s| s.until) {
                plan.stations.push(Station { at, until });
            }
        }
        plan
    }
}

/// A step whose rows are being encoded.
#[derive(Debug)]
pub struct Work {
    plan: Arc<Plan>,
    params: crate::codec::Params,
    /// The next item of each sink's share of each stretch, stretch by stretch.
    next: Vec<Share>,
    /// Items that are done with.
    finished: AtomicUsize,
    sinks: Vec<Mutex<Option<Sink>>>,
}

/// The items of a stretch that the thread of one sink begins with; others take what it leaves. In a line of the cache
/// of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    until: usize,
}

/// What a thread needs, and keeps from step to step.
#[derive(Debug, Default)]
struct Kit {
    encoder: Encoder,
    rows: Vec<u8>,
    /// Numbers of the wanted nodes, and where their rows are.
    done: Vec<(u32, Place)>,
    /// Bytes of their values.
    bytes: usize,
}

/// Where a thread puts its rows.
#[derive(Debug)]
struct Sink {
    kit: Kit,
    buffer: Buffer,
    used: usize,
    /// Up to where the memory of `buffer` was asked for.
    expected: usize,
}

/// What a step's threads have encoded.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Of each wanted node, where its rows are.
    places: Vec<Option<Place>>,
    left: usize,
    /// Bytes of their values.
    pub bytes: usize,
}

impl Encoded {
    /// Whether all is taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Where the rows of wanted node `i` are, if they are there. Given once.
    pub fn take(&mut self, i: usize) -> Option<Place> {
        let place = self.places.get_mut(i)?.take()?;
        self.left -= 1;
        Some(place)
    }
}

/// Ends the work when the step does.
#[derive(Debug)]
pub struct Working(());

impl Drop for Working {
    fn drop(&mut self) {
        HOT.station.store(std::ptr::null_mut(), Ordering::Relaxed);
        *WORK.write() = None;
    }
}

impl Work {
    /// Prepares for a step of a graph, all of whose rows are wanted. `None` if nothing of it can be encoded while it
    /// runs, or no memory is free now.
    #[must_use]
    pub fn new(plan: &Arc<Plan>, pipeline: &Pipeline, threads: usize) -> Option<Arc<Self>> {
        let n = threads.min(pipeline.helpers());
        if n == 0 {
            return None;
        }
        if plan.stations.is_empty() || plan.bytes > MOST_STEP {
            return None;
        }
        // Rows shrink to a third; each thread may come to do more than its share.
        let room = plan.bytes / 2 / n + MOST_TENSOR;
        let mut spare = SPARE.lock();
        let sink = || {
            let buffer = pipeline.reserve_now(room)?;
            Some(Mutex::new(Some(Sink { kit: spare.pop().unwrap_or_default(), buffer, used: 0, expected: 0 })))
        };
        let sinks = std::iter::repeat_with(sink).take(n).collect::<Option<Vec<_>>>()?;
        let mut first = 0;
        let mut next = Vec::with_capacity(plan.stations.len() * n);
        for station in &plan.stations {
            let items = station.until - first;
            let begin = |share: usize| first + items * share / n;
            next.extend((0..n).map(|share| Share { next: begin(share).into(), until: begin(share + 1) }));
            first = station.until;
        }
        Some(Arc::new(Self { plan: Arc::clone(plan), params: *pipeline.params(), next, finished: 0.into(), sinks }))
    }

    /// Lets the threads work from now on.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Option<Working> {
        let first = self.plan.stations.first()?.address();
        *WORK.write() = Some(Arc::clone(self));
        HOT.station.store(first, Ordering::Relaxed);
        Some(Working(()))
    }

    /// The graph is over: the buffers, and what is in them, the first of which becomes number `first` of the step's.
    #[must_use]
    pub fn collect(&self, first: u8) -> (Vec<Buffer>, Encoded) {
        let (mut buffers, mut encoded) = (Vec::new(), Encoded::default());
        encoded.places.resize(self.plan.wanted, None);
        for sink in &self.sinks {
            // All threads have met since they worked.
            let Some(Sink { mut kit, buffer, .. }) = sink.try_lock().and_then(|mut s| s.take()) else { continue };
            let number = first + buffers.len() as u8;
            encoded.bytes += std::mem::take(&mut kit.bytes);
            for (wanted, place) in kit.done.drain(..) {
                if let Some(slot) = encoded.places.get_mut(wanted as usize) {
                    *slot = Some(Place { buffer: number, ..place });
                    encoded.left += 1;
                }
            }
            buffers.push(buffer);
            SPARE.lock().push(kit);
        }
        (buffers, encoded)
    }

    fn stretch_ends<'a>(&'a self, at: *mut c_void, waits: bool) {
        let plan = &*self.plan;
        let Some(i) = plan.stations.iter().position(|s| s.address() == at) else { return };
        let n = self.sinks.len();
        let (Some(station), Some(shares)) = (plan.stations.get(i), self.next.get(i * n..(i + 1) * n)) else { return };
        let free = |(k, s): (usize, &'a Mutex<Option<Sink>>)| Some((k, s.try_lock().filter(|s| s.is_some())?));
        if let Some((own, mut sink)) = self.sinks.iter().enumerate().find_map(free)
            && let Some(sink) = sink.as_mut()
        {
            let mut finished = 0;
            for share in shares.iter().cycle().skip(own).take(n) {
                loop {
                    let number = share.next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = plan.items.get(number).filter(|_| number < share.until) else { break };
                    self.encode(item, sink);
                    finished += 1;
                }
            }
            self.finished.fetch_add(finished, Ordering::Release);
        }
        let following = plan.stations.get(i + 1).map_or(std::ptr::null_mut(), Station::address);
        let _ = HOT.station.compare_exchange(at, following, Ordering::Relaxed, Ordering::Relaxed);
        if waits {
            let until = Instant::now() + MOST_WAIT;
            while self.finished.load(Ordering::Acquire) < station.until && Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }

    fn encode(&self, item: &Item, sink: &mut Sink) {
        // SAFETY: an operation behind it begins on this thread, so all threads are through with it; the allocator keeps
        // its memory.
        let values = unsafe { copy::still_in_place(item.tensor, item.data, item.bytes) };
        let Some(values) = values else { return };
        // Where its rows will go: it comes while they are encoded, which makes a third of the values.
        let until = sink.used + item.bytes / 2 + MARGIN;
        prefetch::write(sink.buffer.get_mut(sink.expected..until).unwrap_or_default());
        sink.expected = sink.expected.max(until);
        let kit = &mut sink.kit;
        kit.rows.clear();
        let errors = kit.encoder.rows(&self.params, item.codec, item.row_len, values, &mut kit.rows);
        let (offset, stored) = (sink.used, kit.rows.len());
        // What finds no room is read when the graph is over.
        let Some(to) = sink.buffer.get_mut(offset..offset + stored) else { return };
        to.copy_from_slice(&kit.rows);
        sink.used += stored;
        kit.bytes += item.bytes;
        kit.done.push((item.wanted, Place { buffer: 0, offset, form: Form::Rows(stored, item.codec, errors) }));
    }
}

/// Called by each of the host's threads that is about to run the operation `at`, at which a stretch ends. `waits`:
/// until the others have encoded what they began as well. Never waits otherwise.
pub fn stretch_ends(at: *mut c_void, waits: bool) {
    let work = WORK.try_read().and_then(|w| w.clone());
    if let Some(work) = work {
        work.stretch_ends(at, waits);
    }
}
