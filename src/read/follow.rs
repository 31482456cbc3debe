//! Follows a log while it is written: what has come since the last look, across rotation, truncation and restarts
//! of the host.
//!
//! It polls: the writer wakes every 100 ms anyway, and polling works where notifications do not (network and overlay
//! file systems, containers). Memory is one chunk and one unfinished line, whatever the size of the file.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lines::MAX_LINE_BYTES;
use super::log::{Parsed, parse};
use crate::format::Line;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// Bytes at the beginning of a file by which it is told from another that has taken its place under the same number.
const FINGERPRINT_BYTES: usize = 256;

/// Where a follower is. What it has read before this place was understood, and need not be read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Device and inode of the file.
    pub file: (u64, u64),
    /// Byte behind the last whole line that was read.
    pub offset: u64,
    /// The first bytes of the file, as far as they were there.
    pub head: Vec<u8>,
}

/// What was read of a log, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Whole lines.
    pub lines: u64,
    /// Events that were understood.
    pub events: u64,
    /// Events of a kind that this program does not know.
    pub unknown: u64,
    /// Lines that are no event, or too long for one.
    pub bad: u64,
    /// Times that the file was replaced by another of its name.
    pub rotations: u64,
    /// Times that it was cut back or written anew in place.
    pub truncations: u64,
}

/// Follows one path.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    open: Option<Open>,
    account: Taken,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    head: Vec<u8>,
    /// Byte behind the last whole line.
    offset: u64,
    /// What came behind it: the beginning of a line.
    rest: Vec<u8>,
    /// The rest is longer than any event, and is skipped up to its end.
    skips: bool,
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

impl Follower {
    /// Follows `path`, which need not be there yet, from its beginning.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, account: Taken::default() }
    }

    /// Follows `path` from where another follower was; from the beginning if another file is there now.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn resume(path: &Path, cursor: &Cursor) -> io::Result<Self> {
        let mut follower = Self::new(path);
        let Some(mut open) = follower.open_path()? else { return Ok(follower) };
        let is_same = open.identity == cursor.file && open.head.starts_with(&cursor.head);
        if is_same && open.file.metadata()?.len() >= cursor.offset {
            open.offset = cursor.offset;
        } else {
            follower.account.rotations += 1;
        }
        follower.open = Some(open);
        Ok(follower)
    }

    /// The path that is followed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was read so far.
    #[must_use]
    pub const fn account(&self) -> Taken {
        self.account
    }

    /// Where it is, behind the last event that it gave.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.open
            .as_ref()
            .map(|o| Cursor { file: o.identity, offset: o.offset, head: o.head.clone() })
            .unwrap_or_default()
    }

    /// Gives what has come since the last call to `each`: the event, and the text of its line without the line break.
    /// At most `budget` bytes; true if there is more.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn poll(&mut self, budget: usize, mut each: impl FnMut(Line, &[u8])) -> io::Result<bool> {
        if self.open.is_none() {
            self.open = self.open_path()?;
        }
        let mut left = budget;
        loop {
            let Some(open) = &mut self.open else { return Ok(false) };
            if open.was_rewritten()? {
                self.account.truncations += 1;
                self.open = self.open_path()?;
                continue;
            }
            while left > 0 {
                let read = open.read(CHUNK_BYTES.min(left), &mut self.account, &mut each)?;
                if read == 0 {
                    break;
                }
                left = left.saturating_sub(read);
            }
            if left == 0 {
                return Ok(true);
            }
            // At the end of this file: is it still the one of that name?
            let now = match std::fs::metadata(&self.path) {
                Ok(meta) => identity(&meta),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            };
            if now == open.identity {
                return Ok(false);
            }
            // What was written between the last read and the rename.
            open.read(CHUNK_BYTES, &mut self.account, &mut each)?;
            self.account.rotations += 1;
            self.account.bad += u64::from(!open.rest.is_empty());
            self.open = self.open_path()?;
        }
    }

    fn open_path(&self) -> io::Result<Option<Open>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let identity = identity(&file.metadata()?);
        let mut open = Open { file, identity, head: Vec::new(), offset: 0, rest: Vec::new(), skips: false };
        open.head = open.first_bytes()?;
        Ok(Some(open))
    }
}

impl Open {
    fn first_bytes(&mut self) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut head = Vec::with_capacity(FINGERPRINT_BYTES);
        (&self.file).take(FINGERPRINT_BYTES as u64).read_to_end(&mut head)?;
        Ok(head)
    }

    /// Whether the file was cut back, or begins with something else than it did.
    fn was_rewritten(&mut self) -> io::Result<bool> {
        let len = self.file.metadata()?.len();
        if len < self.offset + self.rest.len() as u64 {
            return Ok(true);
        }
        let head = self.first_bytes()?;
        let same = head.starts_with(&self.head);
        if same {
            self.head = head;
        }
        Ok(!same)
    }

    /// Reads up to `most` bytes behind what was read before; how many there were.
    fn read(&mut self, most: usize, account: &mut Taken, each: &mut impl FnMut(Line, &[u8])) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.offset + self.rest.len() as u64))?;
        let before = self.rest.len();
        let read = (&self.file).take(most as u64).read_to_end(&mut self.rest)?;
        let mut begin = 0;
        while let Some(end) =
            self.rest[begin.max(before)..].iter().position(|&b| b == b'\n').map(|i| begin.max(before) + i)
        {
            let text = &self.rest[begin..end];
            account.lines += 1;
            if std::mem::take(&mut self.skips) {
                account.bad += 1;
            } else if !text.trim_ascii().is_empty() {
                match parse(text) {
                    Parsed::Event(line) => {
                        account.events += 1;
                        each(*line, text.trim_ascii());
                    }
                    Parsed::Unknown(_) => account.unknown += 1,
                    Parsed::Bad { recovered, .. } => {
                        account.bad += 1;
                        if let Some(line) = recovered {
                            account.events += 1;
                            let from = text.len() - behind(text).len();
                            each(*line, text[from..].trim_ascii());
                        }
                    }
                }
            }
            begin = end + 1;
        }
        self.rest.drain(..begin);
        self.offset += begin as u64;
        if self.rest.len() > MAX_LINE_BYTES {
            // No event is so long: its bytes are let go, its end is waited for.
            self.skips = true;
            self.offset += self.rest.len() as u64;
            self.rest.clear();
        }
        Ok(read)
    }
}

/// The part of a line that begins with its last event.
fn behind(text: &[u8]) -> &[u8] {
    super::log::event_behind_torso(text).unwrap_or(text)
}

#[cfg(test)]
mod tests;
