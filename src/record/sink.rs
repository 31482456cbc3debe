//! The log file: whole lines only, whatever happens to the disk.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where lines go.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
    /// Regular files can be cut back after a failed write; pipes and devices cannot.
    regular: bool,
    good_bytes: u64,
}

impl Sink {
    /// Opens (or makes, readable by the owner alone) the file at `path` for appending.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e: std::io::Error| {
            let remedy = match e.kind() {
                std::io::ErrorKind::NotFound => format!("create the directory of {}", path.display()),
                std::io::ErrorKind::PermissionDenied => "choose a writable path in LLAMA_RESOURCE_LOG_PATH".to_owned(),
                _ => "set LLAMA_RESOURCE_LOG_PATH to a file that can be written".to_owned(),
            };
            Error::new("opening the log", path.display().to_string(), e, remedy)
        };
        // O_NONBLOCK: opening a pipe without a reader must fail, not hang the host.
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        let regular = kind.is_file();
        if kind.is_dir() || kind.is_block_device() {
            return Err(Error::new(
                "opening the log",
                path.display().to_string(),
                "not a file",
                "name a file in LLAMA_RESOURCE_LOG_PATH",
            ));
        }
        let good_bytes = if regular { file.seek(SeekFrom::End(0)).map_err(fail)? } else { 0 };
        let mut sink = Self { file, path: path.to_owned(), regular, good_bytes };
        if regular && good_bytes > 0 {
            sink.end_cut_line().map_err(fail)?;
        }
        Ok(sink)
    }

    /// A log that a killed host left behind may end in the middle of a line; ours must not be glued to it.
    fn end_cut_line(&mut self) -> std::io::Result<()> {
        let mut reader = File::open(&self.path)?;
        reader.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        reader.read_exact(&mut last)?;
        if last[0] != b'\n' {
            self.file.write_all(b"\n")?;
            self.good_bytes += 1;
        }
        Ok(())
    }

    /// Writes `lines` (whole lines). On an error the file is cut back to its last whole line.
    pub fn write(&mut self, lines: &[u8]) -> Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.good_bytes += lines.len() as u64;
                Ok(())
            }
            Err(e) => {
                if self.regular {
                    // If even this fails, the reader reports one cut line.
                    let _ = self.file.set_len(self.good_bytes);
                }
                let remedy =
                    "free space or choose another LLAMA_RESOURCE_LOG_PATH, and restart the host to record again";
                Err(Error::new("writing the log", self.path.display().to_string(), e, remedy))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sink;

    #[test]
    fn a_cut_line_of_an_older_log_is_ended_first() {
        let path = std::env::temp_dir().join(format!("lri-sink-{}.jsonl", std::process::id()));
        std::fs::write(&path, b"{\"a\":1}\n{\"b\":").unwrap();
        Sink::open(&path).unwrap().write(b"{\"c\":3}\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}\n{\"b\":\n{\"c\":3}\n");
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
}
