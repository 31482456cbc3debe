//! Every duration and threshold of this room, with its unit and its reason.

use std::time::Duration;

const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;

// Durations.

/// How long jobs lie before the collector looks, and packets before the writer does, when they are few: it costs the
/// host less to be looked after ten times a second than at every step.
pub(super) const NAP: Duration = Duration::from_millis(100);

/// The longest that a job waits for others. Packets of many steps are larger and fewer, and a short answer is over by
/// then.
pub(super) const GATHER: Duration = Duration::from_millis(800);

/// The longest that bytes stay in the block while nothing else comes: a host that is killed loses no more.
pub(super) const SETTLE: Duration = Duration::from_millis(500);

/// A step is over when nothing has come for so long, and its checkpoint can be written; otherwise, when the next
/// begins.
pub(super) const END_OF_STEP: Duration = Duration::from_secs(3);

/// How often the collector looks after a host that waits for memory. Only while one waits.
pub(super) const UNDER_PRESSURE: Duration = Duration::from_millis(10);

/// The end of a stream does not wait for a disk that has taken nothing for so long, unless everything is written and it
/// is asked to keep it. Nor does a host wait longer for memory that only hosts hold: two threads that each wait for the
/// other's.
pub(super) const STANDSTILL: Duration = Duration::from_secs(5);

/// How often the end looks whether the disk stands still, and a token whether there is room.
pub(super) const LOOK: Duration = Duration::from_millis(100);

// Counts.

/// Buffers that may be out at the same time; what bounds the queue behind them.
pub(super) const MOST_OUT: usize = 2048;

/// Slots of the collector's queue that jobs cannot take: for tokens and commands.
pub(super) const ROOM_FOR_TOKENS: usize = 3072;

/// Of these, the ones that tokens leave to commands.
pub(super) const ROOM_FOR_COMMANDS: usize = 64;

/// Tokens that are gathered at most.
pub(super) const MOST_TOKENS: usize = 4096;

/// Packets to be made, and packets and notes to be written, that wait at most: what is gathered at once of most models.
pub(super) const TASKS: usize = 4096;

/// Packets in an index.
pub(super) const INDEX_EVERY: usize = 16_384;

/// Pieces of up to so many bytes are fetched into the caches before they are read, so many at a time: within what the
/// first cache holds.
pub(super) const PREFETCHED: usize = 4 * KIB;
pub(super) const PREFETCHED_AT_A_TIME: usize = 8;

// Bytes.

/// Least budget that works at all.
pub(super) const LEAST_BUDGET: usize = 16 * MIB;

/// Of a budget, what queues, index, names, tokens and stacks take.
pub(super) const FIXED: usize = 3 * MIB;

/// What an encoder keeps beside its buffers (tables, contexts).
pub(super) const ENCODER: usize = MIB;

/// Raw bytes of a packet at most. The format allows sixteen; smaller ones stay in the caches, and memory goes to the
/// host's buffers.
pub(super) const MOST_PACKET: usize = 4 * MIB;

/// Raw bytes that a packet may have with the least budget.
pub const LEAST_PACKET: usize = 64 * KIB;

/// Raw bytes up to which pieces are put together: beyond, a packet gains nothing.
pub(super) const WORTH: usize = MIB;

/// Raw bytes that are gathered at most before they become packets.
pub(super) const MOST_GATHERED: usize = 64 * MIB;

/// Bytes that a host asks for at a time where it does not ask for a single tensor: larger ones would come back late,
/// when all that is in them is encoded.
pub const ENOUGH: usize = 16 * MIB;

/// Bytes of jobs that the collector does not let lie, at most.
pub(super) const WORTH_A_LOOK: usize = 8 * MIB;

/// Smallest buffer: a page.
pub(super) const SMALLEST_BUFFER: usize = 4 * KIB;

/// One write to the disk: large enough for its full speed, and no more than a small budget can spare.
pub(super) const LEAST_BLOCK: usize = 256 * KIB;
pub(super) const MOST_BLOCK: usize = 4 * MIB;

/// What the queues take, and the first steps beside them. There is a stream if these can be had; more is taken as it is
/// needed.
pub(super) const QUEUES: usize = 2 * MIB;
