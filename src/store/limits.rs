//! Every threshold of this room, with its unit and its reason.

/// Blocks that are reserved on the disk ahead of the writes, so that the file system lays them out together.
pub(crate) const BLOCKS_AHEAD: u64 = 16;

/// End marks that end no packet: so many in a stream that is resumed are no accident, and looking at each takes its
/// time.
pub(crate) const MOST_FALSE_MARKS: u32 = 1 << 18;

/// What direct writes are aligned to.
pub(crate) const ALIGN: usize = 4 << 10;

/// A small file of ours has at most so many; whatever is larger is not ours.
pub(crate) const MOST_SMALL_FILE: u64 = 64 << 20;

/// Packets of ours that are not tensors are small; a damaged length must not make us allocate.
pub(crate) const LARGEST_NOTE: usize = 64 << 20;

/// A stream that is resumed is searched so many bytes at a time.
pub(crate) const SEARCH_WINDOW: u64 = 1 << 20;

/// The document of tokens is written when so many wait.
pub(crate) const MOST_PENDING: usize = 64 << 10;
