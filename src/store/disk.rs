//! What the stream's blocks go to: a file of the owner's alone, past the page cache where its file system allows that.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Read, Result as IoResult, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::limits::MOST_SMALL_FILE;
use crate::error::{Error, Result};
use crate::host;

/// What the blocks go to; tests have slow and broken ones.
pub(crate) trait Disk: Send + std::fmt::Debug {
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

/// How every file is opened: a pipe without a reader fails and does not hang the host, and no child of the
/// host inherits it.
const NEVER_WAIT: i32 = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;

fn is_writable_kind(about: &Metadata) -> bool {
    about.is_file() || about.file_type().is_char_device()
}

/// Opens a file whose name we have made from the stream's, by `options`. Whatever somebody else has put there under
/// that name is left alone: a symbolic link is not followed, a pipe is not waited for, and nothing but a file (or a
/// device such as /dev/null) is taken.
pub(crate) fn open_beside(path: &Path, options: &mut OpenOptions) -> IoResult<File> {
    // In a host whose stderr is closed the lowest free number is 2. A clone is never below 3.
    let file = options.custom_flags(NEVER_WAIT | libc::O_NOFOLLOW).open(path)?.try_clone()?;
    if is_writable_kind(&file.metadata()?) { Ok(file) } else { Err(IoError::other("neither a file nor a device")) }
}

/// The content of a small file of ours.
pub(crate) fn read_small(path: &Path) -> IoResult<Vec<u8>> {
    let file = open_beside(path, OpenOptions::new().read(true))?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > MOST_SMALL_FILE {
        return Err(IoError::other("not a file of ours"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_SMALL_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Replaces a small file as a whole or not at all: written beside it as a file of our own making, on the disk, renamed.
pub(crate) fn replace(path: &Path, content: &[u8]) -> IoResult<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    // What an earlier run has left, or somebody has put there. Only a file that we make ourselves is written.
    let _ = std::fs::remove_file(&beside);
    let mut file = open_beside(&beside, OpenOptions::new().write(true).create_new(true).mode(0o600))?;
    let written = file.write_all(content).and_then(|()| file.sync_data());
    let replaced = written.and_then(|()| std::fs::rename(&beside, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    replaced?;
    sync_directory(path)
}

/// A rename or removal in it is on the disk after this.
fn sync_directory(path: &Path) -> IoResult<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(NEVER_WAIT | libc::O_DIRECTORY).open(directory)?.sync_all()
}

/// A real file.
#[derive(Debug)]
pub(crate) struct FileDisk {
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
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let fail = |e: IoError| {
            let remedy = match e.kind() {
                ErrorKind::NotFound => format!("create the directory of {}", path.display()),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose a writable path".to_owned(),
                _ => "choose a file that can be written".to_owned(),
            };
            Error::new("opening the stream", path.display().to_string(), e, remedy)
        };
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags | NEVER_WAIT);
            options.open(path)
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
        if !is_writable_kind(&about) {
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

    /// Bytes that are in it; a device has none.
    pub(crate) fn length(&self) -> IoResult<u64> {
        if self.regular { Ok(self.file.metadata()?.len()) } else { Ok(0) }
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
