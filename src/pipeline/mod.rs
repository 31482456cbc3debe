//! The way out of the host: pooled buffers, a bounded queue, codec workers, one ordered writer. Safe code; knows
//! nothing of llama.cpp.
//!
//! ```text
//!   host's thread           lri-cap-collect     lri-cap-codecN            lri-cap-write
//!
//!   reserve ─ copy ─ push ─► segment of jobs ─┬► packet of a tensor ─┐
//!      ▲                                      │         │            ▼
//!      │                                      └─ order of packets ─► full blocks ─► .stream
//!      └───────────── pool ◄── buffers come back ───────┘
//! ```
//!
//! The host's thread takes a buffer, fills it and hands it over; it waits only under [`Policy::Block`], and never after
//! a failure. What a step gave is either in the file or counted as dropped ([`Account`]).
//!
//! # Who compresses
//!
//! A codec worker of ours, with a low weight (nice 10). There is one unless a number is set. It takes whole packets:
//! the collector gathers steps for 0.8 s, or until they fill a quarter of the memory, or hold 64 MiB of values that are
//! not encoded, and then puts all steps of a tensor together, so that packets are large and few. Tensors stand in a
//! packet in the order in which they first came.
//!
//! Where the host computes on every core, a worker can only take one from it, and the host's other threads wait for
//! that one at their next barrier. Therefore rows of single tokens come encoded (`capture::early`): the host's own
//! threads encode them in place, all at the same moment, while they are still in the caches, and hand over
//! [`Form::Rows`] instead of [`Form::Values`]. The bytes are the same. Nothing is copied raw then, and the worker only
//! puts rows together, which takes it a third of the time (`tests/server/test_capture_helped.py` prints both).
//! Everything else is left to the scheduler of the
//! kernel: only workers make packets, and they do not wait for the host to rest.
//!
//! **Order.** The collector makes a one-shot channel for each packet. The task that goes to the workers holds its
//! sender, and the writer's queue holds its receiver, at the packet's place. The writer takes one after the other, so
//! packets need no numbers before they are in the file, and a worker that panics is a sender that is gone. Collector
//! and writer sleep up to 100 ms while little lies before them: a thread of ours that wakes up at every step and for
//! every packet takes a core each time.
//!
//! **Memory.** One budget is divided once (`budget`): buffers for the host, what workers work in, packets on their way
//! to the disk, a block. A worker takes an empty output before it takes a task, so whoever has the oldest packet can
//! always go on, and the writer gives outputs back.
//!
//! All durations and thresholds stand in `limits`, with units and reasons.

mod account;
mod budget;
mod collector;
mod cut;
mod handle;
mod job;
mod limits;
mod message;
mod pool;
mod shared;
mod start;
mod threads;
mod worker;
mod writer;

#[cfg(test)]
mod tests;

pub use crate::config::Policy;
pub use account::{Account, Amount, Counts, InStep, Reason};
pub use cut::row_len;
pub use handle::{Options, Pipeline, Resumed, Totals};
pub use job::{Form, Job, Piece, Place, Spec, Table};
pub use limits::{ENOUGH, LEAST_PACKET};
pub use pool::{Buffer, Refused};
