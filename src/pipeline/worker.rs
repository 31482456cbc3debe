//! A codec worker: a task of the collector to a packet, all but its number in the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Select};

use super::courtesy::Manners;
use super::cut::Chunk;
use super::share::WORTH;
use super::writer::{Item, What};
use super::{Amount, Form, Reason, Shared, Spec, gang};
use crate::codec::{Codec, Encoded, Encoder, Errors, Params};
use crate::error::{Error, Result};
use crate::format::stream::{self, Part, Route, RowsBlob, TensorMeta};
use crate::log;
use crate::mailbox::Outbox;

/// One packet to be made.
#[derive(Debug)]
pub(super) struct Task {
    /// Its place among everything that goes to the writer.
    pub(super) order: u64,
    pub(super) spec: Arc<Spec>,
    pub(super) route: Route,
    pub(super) row_len: u32,
    pub(super) chunks: Vec<Chunk>,
}

impl Task {
    /// Whether it should be left to a thread of ours.
    pub(super) fn is_large(&self) -> bool {
        self.amount().bytes > WORTH as u64
    }

    fn amount(&self) -> Amount {
        Amount::new(self.chunks.iter().map(|c| c.tensors).sum(), self.chunks.iter().map(|c| c.len as u64).sum())
    }
}

/// A worker's thread, or what a helping thread of the host works with (`gang`).
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) params: Params,
    pub(super) tasks: Receiver<Task>,
    /// Empty outputs. One is taken before the task: whoever has the oldest task can always go on.
    pub(super) spare: Receiver<Vec<u8>>,
    pub(super) out: Outbox<Item>,
    pub(super) scratch: Scratch,
    pub(super) manners: Manners,
}

/// Takes the place of a packet whose worker panics: the writer must not wait for it.
struct Unmade<'a> {
    out: &'a Outbox<Item>,
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
        let what = What::Lost { output: Vec::new(), reason: Reason::Internal, amount: self.amount };
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
            if !self.make(task, output) {
                return;
            }
        }
    }

    /// Makes the packet of `task` in `output` and hands it to the writer; false if that is gone.
    pub(super) fn make(&mut self, task: Task, mut output: Vec<u8>) -> bool {
        output.clear();
        let (order, amount, spec) = (task.order, task.amount(), Arc::clone(&task.spec));
        let unmade = Unmade { out: &self.out, order, amount };
        let made =
            if self.shared.failed() { None } else { Some(self.scratch.packet(&self.params, &task, &mut output)) };
        unmade.made();
        if task.is_large() {
            self.shared.large_tasks.fetch_sub(1, Ordering::Relaxed);
        }
        // The buffers go back to the host before the disk is asked for anything.
        drop(task);
        let what = match made {
            Some(Ok(())) => What::Packet { bytes: output, spec, amount },
            Some(Err(e)) => {
                // A tensor that cannot be written once cannot be written at any step.
                if !std::mem::replace(&mut self.scratch.told, true) {
                    log::warn(format!("{e}. Such packets are left out"));
                }
                What::Lost { output, reason: Reason::Internal, amount }
            }
            None => What::Lost { output, reason: Reason::IoError, amount },
        };
        if !self.out.put(Item { order, what }) {
            return false;
        }
        // The writer wakes up for a handful of packets, or for the last.
        if self.spare.len() <= self.spare.capacity().unwrap_or_default() / 4 || self.tasks.is_empty() {
            self.out.ring();
        }
        true
    }
}

impl Scratch {
    fn packet(&mut self, params: &Params, task: &Task, out: &mut Vec<u8>) -> Result<()> {
        let spec = &task.spec;
        #[cfg(test)]
        assert!(spec.op != "panic in a worker", "asked for");
        let open = stream::begin(out, &spec.name)?;
        let encoded = match params.row_codec(spec.dtype, task.row_len as usize, task.amount().bytes as usize) {
            Some(codec) => self.rows(params, codec, task, out),
            None => self.values(params, task, out)?,
        };
        self.describe_rows(&task.chunks);
        let part = |c: &Chunk| Part { step: 0, t_ns: 0, ne: c.ne, token_dim: c.token_dim, rows: Vec::new() };
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
            parts: task.chunks.iter().map(part).collect(),
        };
        stream::finish_tensor(out, open, 0, &meta, Some(&self.rows))
    }

    /// Rows that stand alone, from where they lie; some were encoded before they were handed over.
    fn rows(&mut self, params: &Params, codec: Codec, task: &Task, out: &mut Vec<u8>) -> Encoded {
        params.begin_rows(codec, out);
        let mut errors = Errors::default();
        for chunk in &task.chunks {
            errors = errors.max(match chunk.form {
                Form::Rows(_, _, errors) => {
                    out.extend_from_slice(chunk.data());
                    errors
                }
                Form::Values => self.encoder.rows(params, codec, task.row_len as usize, chunk.data(), out),
            });
        }
        Encoded { codec, row_l2: errors.row as f32, block_max: errors.block as f32, saturated: 0 }
    }

    /// Values that are encoded all at once.
    fn values(&mut self, params: &Params, task: &Task, out: &mut Vec<u8>) -> Result<Encoded> {
        if task.chunks.iter().any(|c| c.form != Form::Values) {
            return Err(Error::new("encoding", &task.spec.name, "its rows are of a codec that it should not have", ""));
        }
        let data = match task.chunks.as_slice() {
            [one] => one.data(),
            many => {
                self.gathered.clear();
                many.iter().for_each(|c| self.gathered.extend_from_slice(c.data()));
                &self.gathered
            }
        };
        Ok(self.encoder.encode(params, task.spec.dtype, task.row_len as usize, data, out))
    }

    /// All tensors of the same steps have the same rows: they are described once.
    fn describe_rows(&mut self, chunks: &[Chunk]) {
        let key = |c: &Chunk| (c.job.step, c.job.t_ns, c.rows().as_ptr() as usize, c.rows().len());
        self.rows_of_next.clear();
        self.rows_of_next.extend(chunks.iter().map(key));
        if self.rows_of_next != self.rows_of || self.rows.parts() != chunks.len() {
            self.rows.clear();
            chunks.iter().for_each(|c| self.rows.push(c.job.step, c.job.t_ns, c.rows()));
            std::mem::swap(&mut self.rows_of, &mut self.rows_of_next);
        }
    }
}
