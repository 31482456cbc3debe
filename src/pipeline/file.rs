//! The stream's file: whole aligned blocks past the page cache where the file system allows it, its true length after every pause.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::{self, Pages};

/// What direct writes are aligned to.
const ALIGN: usize = 4096;

/// Blocks that are reserved on the disk ahead of the writes.
const BLOCKS_AHEAD: u64 = 16;

/// What the blocks go to; tests have slow and broken ones.
pub(super) trait Disk: Send + std::fmt::Debug {
    /// Writes some of `bytes` at `at`.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> IoResult<usize>;
    /// Sets the file's length.
    fn set_len(&mut self, len: u64) -> IoResult<()>;
    /// Reserves space beyond the end.
    fn allocate(&mut self, at: u64, len: u64) -> IoResult<()>;
    /// Waits until the data is on the disk.
    fn sync(&mut self) -> IoResult<()>;
    /// Whether only aligned blocks may be written.
    fn is_direct(&self) -> bool;
    /// Goes through the page cache from here on.
    fn leave_direct(&mut self);
}

/// A real file.
#[derive(Debug)]
pub(super) struct FileDisk {
    file: File,
    /// Devices have no length.
    regular: bool,
    direct: bool,
    /// Device and inode. A host may close descriptors that it does not know; our number is then another file's.
    identity: (u64, u64),
}

fn identity(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

impl FileDisk {
    /// Opens or makes the file at `path`, for its owner alone, and locks it against other writers.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |e: IoError| {
            let remedy = match e.kind() {
                ErrorKind::NotFound => format!("create the directory of {}", path.display()),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose a writable path".to_owned(),
                _ => "choose a file that can be written".to_owned(),
            };
            Error::new("opening the stream", path.display().to_string(), e, remedy)
        };
        let open = |flags| {
            // O_NONBLOCK: a pipe without a reader must fail, not hang the host.
            let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let (file, direct) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            // The file system has no direct writes.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (open(0).map_err(fail)?, false),
            Err(e) => return Err(fail(e)),
        };
        // In a host whose stderr is closed the lowest free number is 2. A clone is never below 3.
        let file = file.try_clone().map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        let regular = about.is_file();
        if !regular && !std::os::unix::fs::FileTypeExt::is_char_device(&about.file_type()) {
            return Err(fail(IoError::other("neither a file nor a device")));
        }
        if regular && matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
            let problem = "another process writes it";
            return Err(Error::new("opening the stream", path.display().to_string(), problem, "choose another path"));
        }
        let mut disk = Self { file, regular, direct, identity: identity(&about) };
        if !regular {
            disk.leave_direct();
        }
        Ok(disk)
    }

    /// Whether it has a length and a content.
    pub(super) const fn is_regular(&self) -> bool {
        self.regular
    }

    fn check(&self) -> IoResult<()> {
        if identity(&self.file.metadata()?) == self.identity {
            return Ok(());
        }
        Err(IoError::other("the host has closed its descriptor"))
    }
}

impl Disk for FileDisk {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> IoResult<usize> {
        self.check()?;
        self.file.write_at(bytes, at)
    }

    fn set_len(&mut self, len: u64) -> IoResult<()> {
        self.check()?;
        if self.regular { self.file.set_len(len) } else { Ok(()) }
    }

    fn allocate(&mut self, at: u64, len: u64) -> IoResult<()> {
        self.check()?;
        if self.regular { host::allocate_ahead(&self.file, at, len) } else { Err(ErrorKind::Unsupported.into()) }
    }

    fn sync(&mut self) -> IoResult<()> {
        self.check()?;
        if self.regular { self.file.sync_data() } else { Ok(()) }
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn leave_direct(&mut self) {
        self.direct = false;
        if self.check().is_ok() {
            host::leave_direct(&self.file);
        }
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        // The number is the host's now: closing it would close the host's file.
        if self.check().is_err()
            && let Ok(nothing) = File::open("/dev/null")
        {
            let _ = std::mem::replace(&mut self.file, nothing).into_raw_fd();
        }
    }
}

/// Appends to a disk in blocks.
#[derive(Debug)]
pub(super) struct StreamFile {
    disk: Box<dyn Disk>,
    block: Pages,
    /// Offset of the block in the file, aligned.
    base: u64,
    /// Bytes in the block.
    filled: usize,
    /// Bytes of the block that are in the file.
    clean: usize,
    /// The disk is reserved up to here; `None` where that does not work.
    allocated: Option<u64>,
}

impl StreamFile {
    /// Goes on at `offset`; `head` is what stands in the file between the last aligned offset and `offset`.
    pub(super) fn new(disk: Box<dyn Disk>, block: usize, offset: u64, head: &[u8]) -> IoResult<Self> {
        let mut block = Pages::new(block)?;
        if let Some(start) = block.get_mut(..head.len()) {
            start.copy_from_slice(head);
        }
        let base = offset - head.len() as u64;
        Ok(Self { disk, block, base, filled: head.len(), clean: head.len(), allocated: Some(base) })
    }

    /// How many bytes before `offset` stand in the same aligned unit.
    pub(super) const fn head_len(offset: u64) -> usize {
        (offset % ALIGN as u64) as usize
    }

    /// Where the next byte goes.
    pub(super) fn end(&self) -> u64 {
        self.base + self.filled as u64
    }

    /// Everything before is in the file.
    pub(super) fn settled(&self) -> u64 {
        self.base + self.clean as u64
    }

    /// Appends `bytes`. On an error, [`Self::settled`] says how far the file is good.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> IoResult<()> {
        while !bytes.is_empty() {
            let room = self.block.len() - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(space) = self.block.get_mut(self.filled..self.filled + now.len()) {
                space.copy_from_slice(now);
            }
            self.filled += now.len();
            bytes = later;
            if self.filled == self.block.len() {
                self.allocate_ahead();
                self.write_out(self.filled)?;
                self.base += self.filled as u64;
                (self.filled, self.clean) = (0, 0);
            }
        }
        Ok(())
    }

    /// Everything appended is in the file after this, and the file ends there.
    pub(super) fn settle(&mut self) -> IoResult<()> {
        if self.clean == self.filled {
            return Ok(());
        }
        let padded = if self.disk.is_direct() { self.filled.next_multiple_of(ALIGN) } else { self.filled };
        if let Some(padding) = self.block.get_mut(self.filled..padded) {
            padding.fill(0);
        }
        self.write_out(padded)?;
        if padded > self.filled {
            // A reader takes zeros at the end for what they are; this is for everybody else. It gives reserved space back as well.
            self.disk.set_len(self.end())?;
            self.allocated = self.allocated.map(|_| self.end());
        }
        // What is complete need not be written again; the last, partial unit is, when more follows.
        let whole = self.filled - self.filled % ALIGN;
        self.block.copy_within(whole..self.filled, 0);
        self.base += whole as u64;
        self.filled -= whole;
        self.clean = self.filled;
        Ok(())
    }

    /// Waits for the disk.
    pub(super) fn sync(&mut self) -> IoResult<()> {
        self.disk.sync()
    }

    /// The file ends at `offset`, which is at most [`Self::settled`], for good.
    pub(super) fn cut(&mut self, offset: u64) -> IoResult<()> {
        (self.filled, self.clean) = (0, 0);
        self.base = offset;
        self.disk.set_len(offset)
    }

    fn allocate_ahead(&mut self) {
        let end = self.end();
        let ahead = self.block.len() as u64 * BLOCKS_AHEAD;
        if let Some(allocated) = self.allocated
            && end > allocated
        {
            // A disk that is nearly full has room for the block itself, perhaps.
            let start = allocated.max(self.base);
            self.allocated = self.disk.allocate(start, end + ahead - start).is_ok().then_some(end + ahead);
        }
    }

    /// Writes the block up to `until`, but what is in the file already in whole units.
    fn write_out(&mut self, until: usize) -> IoResult<()> {
        let mut at = if self.disk.is_direct() { self.clean - self.clean % ALIGN } else { self.clean };
        while at < until {
            let bytes = self.block.get(at..until).unwrap_or_default();
            match self.disk.write_at(bytes, self.base + at as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n;
                    self.clean = self.clean.max(at.min(self.filled));
                    if self.disk.is_direct() {
                        // A short write that ends within a unit: from its start again.
                        at -= if at < until { at % ALIGN } else { 0 };
                        if n < ALIGN && at < until {
                            self.disk.leave_direct();
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && self.disk.is_direct() => self.disk.leave_direct(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
