//! A stream's files on the disk: its blocks, the checkpoint beside it, the document of chosen tokens, and where an
//! earlier run ended. No thread, no queue: what is called here runs on the caller's thread, and may wait for the disk.
//!
//! After it: nothing. Before it: `pipeline`, whose writer hands over packets in order.

pub(crate) mod block;
pub(crate) mod checkpoint;
pub(crate) mod disk;
pub(crate) mod file;
pub(crate) mod limits;
pub(crate) mod open;
pub(crate) mod resume;
pub(crate) mod tokens;
