//! What is on disk, for both sides: the one description of every line of the event log, used by the writer and
//! by every reader.
//!
//! Before it: `record` (fills these types in the host). After it: `read` (gets them back).
//!
//! Version policy: fields are only ever added. A reader must ignore fields and events it does not
//! know; a field that changes its meaning gets a new name. [`LOG_VERSION`] counts the additions and
//! stands on every `resource_session_start`.

pub mod event;
pub mod figures;
pub mod gpu;
pub mod histogram;
pub mod level;
pub mod resource;
pub mod server;
pub mod session;
pub mod stream;
pub mod summary;

pub use event::Line;
pub use level::Level;

/// Version of the event log, written on `resource_session_start`.
pub const LOG_VERSION: u32 = 2;
