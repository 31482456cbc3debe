//! A log file back into values: every line that can be read, and an account of everything that cannot.
//!
//! Before it: `format` (what a line is). After it: `analyze` (what the lines mean). Nothing here panics on any bytes: a
//! log is what a killed process, a full disk or another program left behind.

pub mod account;
pub mod follow;
pub mod lines;
pub mod log;
pub mod stream;

pub use account::{Account, BadLine, SessionAccount};
pub use follow::{Cursor, Follower};
pub use log::{Entry, Error, Log};
