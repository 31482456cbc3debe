//! A codec worker: a task of the collector to a packet, all but its number in the file.

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::account::Reason;
use super::cut::{Chunk, View};
use super::job::Form;
use super::limits::{PREFETCHED, PREFETCHED_AT_A_TIME};
use super::message::{Made, Task};
use super::shared::Shared;
use crate::codec::{Codec, Encoded, Encoder, Errors, Params};
use crate::error::{Error, Result};
use crate::format::stream::{self, Part, RowsBlob, TensorMeta};
use crate::{heap, log, prefetch};

/// A worker's thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) params: Params,
    /// Bytes of the largest packet that it makes.
    pub(super) most: usize,
    pub(super) tasks: Receiver<Task>,
    /// Empty outputs. One is taken before the task: whoever has the oldest task can always go on.
    pub(super) spare: Receiver<Vec<u8>>,
    pub(super) scratch: Scratch,
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
        while let Ok(output) = self.spare.recv() {
            let Ok(task) = self.tasks.recv() else { return };
            let done = task.done.clone();
            // There is room for the one packet; a writer that is gone needs none.
            let _ = done.send(self.make(task, output));
            let few_left = self.spare.len() <= self.spare.capacity().unwrap_or_default() / 4;
            if few_left || self.tasks.is_empty() {
                self.shared.wake_writer();
            }
        }
    }

    /// Makes the packet of `task` in `bytes`. The task's buffers go back to the host before the disk is asked for
    /// anything.
    fn make(&mut self, task: Task, mut bytes: Vec<u8>) -> Made {
        bytes.clear();
        let result = if self.shared.failed() {
            Err(Reason::IoError)
        } else if self.scratch.reserve(&self.params, &task, self.most, &mut bytes) {
            self.scratch.packet(&self.params, &task, &mut bytes).map_err(|e| {
                // A tensor that cannot be written once cannot be written at any step.
                if !std::mem::replace(&mut self.scratch.told, true) {
                    log::warn(format!("{e}. Such packets are left out"));
                }
                Reason::Internal
            })
        } else {
            self.shared.pool.tell_no_memory(self.most);
            Err(Reason::NoMemory)
        };
        Made { bytes, result }
    }
}

impl Scratch {
    /// Memory for the packet of `task`: taken when the first one of its size comes, and kept. False if the system has
    /// none.
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
        let open = stream::begin(out, &spec.name)?;
        // At once: each of them lies somewhere else in memory, and in a short loop the processor fetches several at a
        // time.
        let views: Vec<View<'_>> = task.chunks.iter().filter_map(Chunk::view).collect();
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
        for views in views.chunks(PREFETCHED_AT_A_TIME) {
            views.iter().filter(|v| v.data.len() <= PREFETCHED).for_each(|v| prefetch::read(v.data));
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
