//! The log's writer: a thread that takes what was pushed, asks the sources, and writes whole lines.
//!
//! Before it: `journal`. After it: the file, as `format` describes it.

pub mod host_sample;
pub mod sink;
pub mod writer;
