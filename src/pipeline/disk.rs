//! What the stream's blocks go to: a file of the owner's alone, past the page cache where its file system allows that.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::host;

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
