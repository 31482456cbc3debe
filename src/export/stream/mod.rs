//! Activation streams as what others load: one array a tensor in safetensors or npy files, rows in Parquet.
//!
//! Before it: `analyze::stream`. Every export goes over the stream twice: descriptions first ([`Layout`]: how many rows
//! of what), then values, packet by packet, so memory does not grow with the file. Everything is written beside its
//! final name and renamed when it is whole.

pub mod elements;
pub mod json;
pub mod layout;
pub mod npy;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod rewrite;
pub mod safetensors;
pub mod text;

pub use elements::Wanted;
pub use layout::{Array, Layout};
pub use rewrite::Rewrite;

use std::fs::File;
use std::path::Path;

use crate::error::Error;
use crate::format::stream::TensorMeta;

/// Takes packets in the order of the file.
pub trait Export {
    /// The values of one packet, little-endian, as the host held them.
    fn packet(&mut self, name: &str, meta: &TensorMeta, values: &[u8]) -> Result<(), Error>;

    /// Completes the files and gives them their names.
    fn finish(&mut self) -> Result<Written, Error>;
}

/// What an export did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Values that did not fit the narrower type and were written as its largest.
    pub saturated: u64,
}

/// A new file for what is not whole yet. One of that name - what another run left unfinished, or a link that another
/// user has put there, which may lead anywhere - is taken away first, never written through.
fn create_part(path: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => File::create_new(path),
    }
}

/// An I/O error while writing this file.
fn cannot_write(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new("writing", format!("`{}`", path.display()), error, "is the disk full, the folder writable?")
}

/// A second pass that found other packets than the first.
fn changed(name: &str) -> Error {
    Error::new(
        "exporting the stream",
        format!("tensor `{name}`"),
        "it has more rows than were counted before: the file changed meanwhile",
        "export again when nobody writes to it",
    )
}
