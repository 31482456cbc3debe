//! The log file: whole lines only, whatever happens to the disk.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host;

/// Where lines go.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
    /// Regular files can be cut back after a failed write; pipes and devices cannot.
    regular: bool,
    /// Device and inode. A host may close descriptors that it does not know; our number is then another file's.
    identity: (u64, u64),
    /// What was in the file ends in the middle of a line.
    within_line: bool,
}

impl Sink {
    /// Opens (or makes, readable by the owner alone) the file at `path` for appending.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e: IoError| {
            let remedy = match (e.kind(), e.raw_os_error()) {
                (ErrorKind::NotFound, _) => format!("create the directory of {}", path.display()),
                (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, _) => {
                    "choose a writable path in LLAMA_RESOURCE_LOG_PATH".to_owned()
                }
                (_, Some(libc::ENXIO)) => "start what reads this pipe first".to_owned(),
                _ => "set LLAMA_RESOURCE_LOG_PATH to a file that can be written".to_owned(),
            };
            Error::new("opening the log", path.display().to_string(), e, remedy)
        };
        // O_NONBLOCK: opening a pipe without a reader must fail, not hang the host.
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
        let file = options.open(path).map_err(fail)?;
        // In a host whose stderr is closed the lowest free number is 2, and what the host prints would land in the log.
        // A clone is never below 3.
        let file = file.try_clone().map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        let regular = about.is_file();
        let within_line = regular && about.len() > 0 && !ends_with_line_break(path);
        Ok(Self { file, path: path.to_owned(), regular, identity: identity(&about), within_line })
    }

    /// Writes wait from here on: a slow reader of a pipe makes the writer's thread wait, and never the host's, which
    /// writes the first line.
    pub fn wait_from_now_on(&self) {
        if !self.regular {
            host::make_blocking(&self.file);
        }
    }

    /// Writes `lines` (whole lines). On an error the file is cut back to its last whole line.
    pub fn write(&mut self, lines: &[u8]) -> Result<()> {
        if !self.is_ours() {
            return Err(self.failure("the host has closed its descriptor", "restart the host to record again"));
        }
        // A log that a killed host left behind may end in the middle of a line; ours must not be glued to it.
        let glue: &[u8] = if std::mem::take(&mut self.within_line) { b"\n" } else { b"" };
        for part in [glue, lines] {
            let mut written = 0;
            while written < part.len() {
                match self.file.write(&part[written..]) {
                    Ok(n) if n > 0 => written += n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    result => {
                        self.cut_back(&part[..written]);
                        let e = result.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                        let remedy = match e.raw_os_error() {
                            Some(libc::EPIPE) => {
                                "what reads the pipe has ended: restart it, and the host, to record again"
                            }
                            Some(libc::EAGAIN) => {
                                "what reads the pipe does not keep up: see that it reads, and restart the host to record"
                            }
                            Some(libc::EFBIG) => {
                                "raise the limit of file sizes (ulimit -f) and restart the host to record again"
                            }
                            _ => {
                                "free space or choose another LLAMA_RESOURCE_LOG_PATH, and restart the host to record again"
                            }
                        };
                        return Err(self.failure(e, remedy));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the file was deleted: what is written goes nowhere.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.regular && self.file.metadata().is_ok_and(|m| identity(&m) == self.identity && m.nlink() == 0)
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the torso of a line away that a failed write has left behind `written`. If even this fails, the reader
    /// reports one cut line.
    fn cut_back(&mut self, written: &[u8]) {
        let torso = written.iter().rev().take_while(|b| **b != b'\n').count() as u64;
        if !self.regular || torso == 0 {
            return;
        }
        // Only what is ours: another host may have appended its lines behind it.
        if let (Ok(end), Ok(about)) = (self.file.stream_position(), self.file.metadata())
            && about.len() == end
        {
            let _ = self.file.set_len(end - torso);
        }
    }

    fn is_ours(&self) -> bool {
        self.file.metadata().is_ok_and(|m| identity(&m) == self.identity)
    }

    fn failure(&self, problem: impl std::fmt::Display, remedy: &str) -> Error {
        Error::new("writing the log", self.path.display().to_string(), problem, remedy)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The number is the host's now: closing it would close the host's file.
        if !self.is_ours()
            && let Ok(nothing) = File::open("/dev/null")
        {
            let _ = std::mem::replace(&mut self.file, nothing).into_raw_fd();
        }
    }
}

fn identity(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

/// A file that may be written but not read is taken to be in order.
fn ends_with_line_break(path: &Path) -> bool {
    let mut last = [b'\n'];
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
    let _ = options.open(path).and_then(|mut f| {
        f.seek(SeekFrom::End(-1))?;
        f.read_exact(&mut last)
    });
    last[0] == b'\n'
}

#[cfg(test)]
mod tests {
    use super::Sink;
    use std::io::Write;

    fn scratch(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("lri-sink-{name}-{}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_cut_line_of_an_older_log_is_ended_first() {
        let path = scratch("cut");
        std::fs::write(&path, b"{\"a\":1}\n{\"b\":").unwrap();
        let mut sink = Sink::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}\n{\"b\":", "opening writes nothing");
        sink.write(b"{\"c\":3}\n").unwrap();
        sink.write(b"{\"d\":4}\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}\n{\"b\":\n{\"c\":3}\n{\"d\":4}\n");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn errors_name_the_path_and_the_remedy() {
        let e = Sink::open(std::path::Path::new("/nonexistent-dir/x.jsonl")).unwrap_err().to_string();
        assert!(e.contains("/nonexistent-dir/x.jsonl") && e.contains("create the directory"), "{e}");
        assert!(Sink::open(std::path::Path::new("/tmp")).is_err());
        let mut full = Sink::open(std::path::Path::new("/dev/full")).unwrap();
        let e = full.write(b"{}\n").unwrap_err().to_string();
        assert!(e.contains("/dev/full") && e.contains("free space"), "{e}");
    }

    #[test]
    fn only_our_own_torso_is_cut_off() {
        let path = scratch("torso");
        let mut sink = Sink::open(&path).unwrap();
        sink.write(b"{\"a\":1}\n{\"b\":").unwrap();
        sink.cut_back(b"{\"a\":1}\n{\"b\":");
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}\n");
        sink.write(b"{\"b\":").unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"other\n").unwrap();
        sink.cut_back(b"{\"b\":");
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}\n{\"b\":other\n", "another host's line stays");
        std::fs::remove_file(&path).unwrap();
        assert!(sink.is_deleted());
    }
}
