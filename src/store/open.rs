//! Opens a stream's file: a new one, or an old one behind its last checkpoint.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Checkpoint};
use super::disk::{Disk, FileDisk};
use super::file::StreamFile;
use super::resume;
use crate::error::{Error, Result};
use crate::format::stream::{IndexBuilder, Kind};
use crate::log;

/// A file to append to, and what its checkpoint says.
pub(crate) struct Opened {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) from: Option<Checkpoint>,
    /// The packets before, for the index.
    pub(crate) index: IndexBuilder,
    pub(crate) head: Vec<u8>,
}

impl Opened {
    /// A new stream.
    pub(crate) fn empty(disk: Box<dyn Disk>) -> Self {
        Self { disk, from: None, index: IndexBuilder::default(), head: Vec::new() }
    }
}

/// The stream's file, and the bytes that are in it: none unless it is to be gone on with.
pub(crate) fn open_free(path: &Path, resume: bool) -> Result<(FileDisk, u64)> {
    let fail = |e: std::io::Error| Error::new("opening the stream", path.display().to_string(), e, "");
    let disk = FileDisk::open(path)?;
    let length = disk.length().map_err(fail)?;
    if length > 0 && !resume {
        let remedy = "choose another path, remove the file, or ask to resume it (LLAMA_RESOURCE_CAPTURE_RESUME=1)";
        return Err(Error::new(
            "opening the stream",
            path.display().to_string(),
            format!("the file is not empty: it holds {length} bytes already"),
            remedy,
        ));
    }
    Ok((disk, length))
}

/// The stream at `path`: new, or gone on with if `resume` says so.
pub(crate) fn open(path: &Path, resume: bool) -> Result<Opened> {
    let fail = |e: std::io::Error| Error::new("opening the stream", path.display().to_string(), e, "");
    let (mut disk, length) = open_free(path, resume)?;
    if length > 0 {
        if let Some(found) = resume::find(path, StreamFile::head_len).map_err(fail)? {
            tell_what_is_cut_off(path, &found);
            disk.set_len(found.checkpoint.stream_offset).map_err(fail)?;
            // The index packet stands before the checkpoint, whose packet is the first of the next run.
            let begin = found.checkpoint.stream_offset - u64::from(found.packet_len);
            let mut index = IndexBuilder::new(begin, found.checkpoint.last_index);
            index.push(Kind::Checkpoint, Kind::Checkpoint.packet_name().unwrap_or_default(), found.packet_len);
            return Ok(Opened { disk: Box::new(disk), from: Some(found.checkpoint), index, head: found.head });
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".old");
        let aside = PathBuf::from(aside);
        log::warn(format!(
            "{} holds no checkpoint to go on from: it is kept as {}, and the stream begins anew",
            path.display(),
            aside.display()
        ));
        std::fs::rename(path, &aside).map_err(fail)?;
        disk = FileDisk::open(path)?;
    }
    // Of a stream that is gone.
    checkpoint::remove(&checkpoint::path_of(path));
    Ok(Opened::empty(Box::new(disk)))
}

/// A stream goes on behind its last checkpoint: what an earlier run has written after it is lost.
fn tell_what_is_cut_off(path: &Path, found: &resume::Found) {
    let resume::Behind { packets, bytes, torn } = found.behind;
    if packets == 0 && torn == 0 {
        return;
    }
    let torn = if torn > 0 { format!(", and {torn} bytes of one that is not whole") } else { String::new() };
    log::warn(format!(
        "{} goes on behind its last checkpoint, of step {}: {packets} packets of values and tokens ({bytes} bytes) that an earlier run has \
         written after it{torn}, are cut off. LLAMA_RESOURCE_CHECKPOINT_TOKENS sets how far checkpoints are apart",
        path.display(),
        found.checkpoint.last_step
    ));
}
