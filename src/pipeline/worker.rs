//! A codec worker: a task of the collector to a packet, all but its number in the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Select};

use super::courtesy::Manners;
use super::cut::{Bundle, Chunk, View};
use super::share::WORTH;
use super::writer::{Item, What};
use super::{Amount, Form, Reason, Shared, Spec, gang};
use crate::ahead;
use crate::codec::{Codec, Encoded, Encoder, Errors, Params};
use crate::error::{Error, Result};
use crate::format::stream::{self, Part, Route, RowsBlob, TensorMeta};
use crate::mailbox::Outbox;
use crate::{heap, log};

/// Pieces of up to so many bytes are asked for ahead, so many at a time: within what the first cache holds.
const AHEAD: usize = 4096;
const AT_A_TIME: usize = 8;

/// One packet to be made.
#[derive(Debug)]
pub(super) struct Task {
    /// Its place among everything that goes to the writer.
    pub(super) order: u64,
    pub(super) spec: Arc<Spec>,
    pub(super) route: Route,
    pub(super) row_len: u32,
    pub(super) bundles: Vec<Bundle>,
    pub(super) chunks: Vec<Chunk>,
    /// Of its chunks.
    pub(super) amount: Amount,
}

impl Task {
    /// Whether it should be left to a thread of ours.
    pub(super) fn is_large(&self) -> bool {
        self.amount.bytes > WORTH as u64
    }

    fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.chunks.iter().flat_map(|chunk| chunk.views(&self.bundles))
    }
}

/// Who makes a packet, and therefore whose the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// A thread of ours.
    Worker,
    /// One of the host's.
    Helper,
}

/// A worker's thread, or what a helping thread of the host works with (`gang`).
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) params: Params,
    /// Bytes of the largest packet that it makes.
    pub(super) most: usize,
    pub(super) tasks: Receiver<Task>,
    /// Empty outputs. One is taken before the task: whoever has the oldest task can always go on.
    pub(super) spare: Receiver<Vec<u8>>,
    /// Of whom these are.
    pub(super) maker: Maker,
    pub(super) out: Outbox<Item>,
    pub(super) scratch: Scratch,
    pub(super) manners: Manners,
}

/// Takes the place of a packet whose worker panics: the writer must not wait for it.
struct Unmade<'a> {
    out: &'a Outbox<Item>,
    maker: Maker,
    order: u64,
    amount: Amount,
}

impl Unmade<'_> {
    /// It was not needed.
    fn made(self) {
        let _ = std::mem::ManuallyDrop::new(self);
    }
}

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        let what = What::Lost { output: Vec::new(), maker: self.maker, reason: Reason::Internal, amount: self.amount };
        let _ = self.out.put(Item { order: self.order, what });
        self.out.ring();
    }
}

/// What a worker keeps from packet to packet.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    encoder: Encoder,
    gathered: Vec<u8>,
    rows: RowsBlob,
    /// Of which steps and rows `rows` was made.
    rows_of: Vec<(u64, u64, usize, usize)>,
    rows_of_next: Vec<(u64, u64, usize, usize)>,
    told: bool,
}

impl Worker {
    pub(super) fn run(mut self) {
        let tasks = self.tasks.clone();
        let mut next = Select::new();
        next.recv(&tasks);
        while let Ok(output) = self.spare.recv() {
            if tasks.is_empty() {
                self.manners.all_is_done();
                next.ready();
            }
            self.manners.give_way(&self.shared, || gang::leaves(&tasks));
            let Ok(task) = tasks.recv() else { return };
            self.shared.courtesy.task_taken();
            let item = self.make(task, output);
            if !self.out.put(item) {
                return;
            }
            self.ring_if_due();
        }
    }

    /// Makes the packet of `task` in `output`, for the writer.
    pub(super) fn make(&mut self, task: Task, mut output: Vec<u8>) -> Item {
        output.clear();
        let (order, amount, spec) = (task.order, task.amount, Arc::clone(&task.spec));
        let maker = self.maker;
        let unmade = Unmade { out: &self.out, maker, order, amount };
        let has_memory = self.scratch.reserve(&self.params, &task, self.most, &mut output);
        let made = if self.shared.failed() {
            Err(Reason::IoError)
        } else if has_memory {
            Ok(self.scratch.packet(&self.params, &task, &mut output))
        } else {
            Err(Reason::NoMemory)
        };
        unmade.made();
        if task.is_large() {
            self.shared.large_tasks.fetch_sub(1, Ordering::Relaxed);
        }
        // The buffers go back to the host before the disk is asked for anything.
        drop(task);
        let what = match made {
            Ok(Ok(())) => What::Packet { bytes: output, maker, spec, amount },
            Ok(Err(e)) => {
                // A tensor that cannot be written once cannot be written at any step.
                if !std::mem::replace(&mut self.scratch.told, true) {
                    log::warn(format!("{e}. Such packets are left out"));
                }
                What::Lost { output, maker, reason: Reason::Internal, amount }
            }
            Err(reason) => {
                if reason == Reason::NoMemory {
                    self.shared.pool.tell_no_memory(self.most);
                }
                What::Lost { output, maker, reason, amount }
            }
        };
        Item { order, what }
    }

    /// The writer wakes up for a handful of packets that lie there, or for the last.
    pub(super) fn ring_if_due(&self) {
        let few_left = self.spare.len() <= self.spare.capacity().unwrap_or_default() / 4;
        if (few_left || self.tasks.is_empty()) && self.out.queued() > 0 {
            self.out.ring();
        }
    }
}

impl Scratch {
    /// Memory for the packet of `task`: taken when the first one of its size comes, and kept. False if the
    /// system has none.
    fn reserve(&mut self, params: &Params, task: &Task, most: usize, out: &mut Vec<u8>) -> bool {
        let bytes = usize::try_from(task.amount.bytes).unwrap_or(usize::MAX);
        // Never grows in practice; memory is touched as it is used.
        let largest = most.max(bytes).saturating_add(most / 32 + (64 << 10));
        let stands_alone = params.row_codec(task.spec.dtype, task.row_len as usize, bytes).is_some();
        heap::reserve(out, largest)
            && (stands_alone
                || (heap::fallibly(|| self.encoder.reserve(params, bytes))
                    && (task.chunks.len() < 2 || self.reserve_gathered(bytes))))
    }

    fn reserve_gathered(&mut self, bytes: usize) -> bool {
        self.gathered.clear();
        heap::reserve(&mut self.gathered, bytes)
    }

    fn packet(&mut self, params: &Params, task: &Task, out: &mut Vec<u8>) -> Result<()> {
        let spec = &task.spec;
        #[cfg(test)]
        assert!(spec.op != "panic in a worker", "asked for");
        let open = stream::begin(out, &spec.name)?;
        // At once: each of them lies somewhere else in memory, and in a short loop the processor fetches several
        // at a time.
        let views: Vec<View<'_>> = task.views().collect();
        let encoded = match params.row_codec(spec.dtype, task.row_len as usize, task.amount.bytes as usize) {
            Some(codec) => self.rows(params, codec, task, &views, out),
            None => self.values(params, task, &views, out)?,
        };
        self.describe_rows(&views);
        let part = |v: &View<'_>| Part { step: 0, t_ns: 0, ne: v.ne, token_dim: v.token_dim, rows: Vec::new() };
        let meta = TensorMeta {
            tensor: spec.tensor.clone(),
            op: spec.op.clone(),
            layer: spec.layer,
            component: spec.component,
            occurrence: spec.occurrence,
            dtype: spec.dtype,
            codec: encoded.codec,
            route: task.route,
            row_len: task.row_len,
            error_bound: match encoded.codec {
                Codec::Bounded | Codec::Fast => params.error_bound,
                _ => 0.0,
            },
            row_l2: encoded.row_l2,
            block_max: encoded.block_max,
            saturated: encoded.saturated,
            slice: spec.slice,
            parts: views.iter().map(part).collect(),
        };
        stream::finish_tensor(out, open, 0, &meta, Some(&self.rows))
    }

    /// Rows that stand alone, from where they lie; some were encoded before they were handed over.
    fn rows(&mut self, params: &Params, codec: Codec, task: &Task, views: &[View<'_>], out: &mut Vec<u8>) -> Encoded {
        params.begin_rows(codec, out);
        let mut errors = Errors::default();
        for views in views.chunks(AT_A_TIME) {
            views.iter().filter(|v| v.data.len() <= AHEAD).for_each(|v| ahead::read(v.data));
            for v in views {
                errors = errors.max(match v.form {
                    Form::Rows(_, _, errors) => {
                        out.extend_from_slice(v.data);
                        errors
                    }
                    Form::Values => self.encoder.rows(params, codec, task.row_len as usize, v.data, out),
                });
            }
        }
        Encoded { codec, row_l2: errors.row as f32, block_max: errors.block as f32, saturated: 0 }
    }

    /// Values that are encoded all at once.
    fn values(&mut self, params: &Params, task: &Task, views: &[View<'_>], out: &mut Vec<u8>) -> Result<Encoded> {
        if views.iter().any(|v| v.form != Form::Values) {
            return Err(Error::new("encoding", &task.spec.name, "its rows are of a codec that it should not have", ""));
        }
        let data = match views {
            [one] => one.data,
            many => {
                self.gathered.clear();
                many.iter().for_each(|v| self.gathered.extend_from_slice(v.data));
                &self.gathered
            }
        };
        Ok(self.encoder.encode(params, task.spec.dtype, task.row_len as usize, data, out))
    }

    /// All tensors of the same steps have the same rows: they are described once.
    fn describe_rows(&mut self, views: &[View<'_>]) {
        let key = |v: &View<'_>| (v.job.step, v.job.t_ns, v.rows.as_ptr() as usize, v.rows.len());
        self.rows_of_next.clear();
        self.rows_of_next.extend(views.iter().map(key));
        if self.rows_of_next != self.rows_of || self.rows.parts() != self.rows_of.len() {
            self.rows.clear();
            views.iter().for_each(|v| self.rows.push(v.job.step, v.job.t_ns, v.rows));
            std::mem::swap(&mut self.rows_of, &mut self.rows_of_next);
        }
    }
}
