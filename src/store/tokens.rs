//! The chosen tokens as one JSON document, the older system's `tokens.json` with fields of ours. It is appended to and
//! whole after every write: its closing lines are written behind the last token each time, and over again by the next.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::disk;
use super::limits::MOST_PENDING;
use crate::error::{Error, Result};
use crate::format::stream::SampledToken;

/// A chosen token with its text.
pub(crate) type Told = (SampledToken, Option<Box<str>>);

const HEAD: &[u8] = b"{\"tokens\": [";

/// `X.stream` has `X_tokens.json`; any other name has `.tokens.json` behind it, so that no two streams have one
/// document.
pub(crate) fn path_of(stream: &Path) -> PathBuf {
    let name = stream.file_name().unwrap_or_default().to_string_lossy();
    let (mut own, end) = match name.strip_suffix(".stream").filter(|_| stream.extension().is_some()) {
        Some(stem) => (stem.into(), "_tokens.json"),
        None => (stream.file_name().unwrap_or_default().to_owned(), ".tokens.json"),
    };
    own.push(end);
    stream.with_file_name(own)
}

/// Opens the document, and locks it against other streams; it is one, or empty.
fn open(path: &Path, options: &mut OpenOptions) -> IoResult<File> {
    let file = disk::open_beside(path, options.read(true).write(true))?;
    if !file.metadata()?.is_file() {
        return Ok(file);
    }
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(IoError::other("another stream writes it"));
    }
    let mut head = [0; HEAD.len()];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) if head == HEAD => Ok(file),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof && file.metadata()?.len() == 0 => Ok(file),
        Ok(()) | Err(_) => Err(IoError::other("it holds something else than chosen tokens")),
    }
}

/// The document being written.
#[derive(Debug)]
pub(crate) struct History {
    path: PathBuf,
    /// Made with the first token.
    file: Option<File>,
    /// Offset of the closing lines.
    at: u64,
    count: u64,
    pending: Vec<u8>,
    /// Unix seconds of the stream's first start.
    began_s: f64,
}

impl History {
    pub(crate) fn new(path: PathBuf, began_s: f64) -> Self {
        Self { path, file: None, at: 0, count: 0, pending: HEAD.to_vec(), began_s }
    }

    /// Goes on with the document of an earlier run, whose tokens end at `at`. `None` if it is not that document.
    pub(crate) fn resume(path: &Path, began_s: f64, at: u64, count: u64) -> Option<Self> {
        if count == 0 || at == 0 {
            return None;
        }
        let file = open(path, &mut OpenOptions::new()).ok()?;
        let mut last = [0];
        file.read_exact_at(&mut last, at.checked_sub(1)?).ok()?;
        (last == *b"}").then(|| Self {
            path: path.to_owned(),
            file: Some(file),
            at,
            count,
            pending: Vec::new(),
            began_s,
        })
    }

    /// Tokens so far.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Where the tokens end in the file.
    pub(crate) const fn offset(&self) -> u64 {
        self.at
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds tokens; `now_s` is the Unix time.
    pub(crate) fn add(&mut self, tokens: &[Told], now_s: f64) -> Result<()> {
        for (token, text) in tokens {
            self.pending.extend_from_slice(if self.count == 0 { b"\n  " } else { b",\n  " });
            let line = json!({
                "token_index": self.count,
                "token_id": token.token,
                "token_text": text,
                "request": (token.request != 0).then_some(token.request),
                "sequence": (token.seq >= 0).then_some(token.seq),
                "position": (token.pos >= 0).then_some(token.pos),
                "probability": token.probability,
                "t_ns": token.t_ns,
            });
            self.pending.extend_from_slice(line.to_string().as_bytes());
            self.count += 1;
        }
        if self.pending.len() > MOST_PENDING { self.write(now_s) } else { Ok(()) }
    }

    /// The file holds every token after this.
    pub(crate) fn write(&mut self, now_s: f64) -> Result<()> {
        let result = self.try_write(now_s);
        result.map_err(|e| {
            Error::new("writing the tokens", self.path.display().to_string(), e, "choose a file that can be written")
        })
    }

    fn try_write(&mut self, now_s: f64) -> IoResult<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = open(&self.path, OpenOptions::new().create(true).truncate(false).mode(0o600))?;
                if file.metadata()?.is_file() {
                    // The document of an earlier stream of this name.
                    file.set_len(0)?;
                }
                none.insert(file)
            }
        };
        let tokens = self.pending.len();
        let duration = (now_s - self.began_s).max(0.0);
        let tail = format!("\n], \"total_tokens\": {}, \"capture_duration_seconds\": {duration:.6}}}\n", self.count);
        self.pending.extend_from_slice(tail.as_bytes());
        // One write, over the old closing lines: what is in the file is a whole document before and after it.
        let result = file.write_all_at(&self.pending, self.at);
        let end = self.at + self.pending.len() as u64;
        self.pending.truncate(tokens);
        result?;
        if file.metadata()?.len() > end {
            file.set_len(end)?;
        }
        self.at += tokens as u64;
        self.pending.clear();
        Ok(())
    }

    /// Waits for the disk.
    pub(crate) fn sync(&self) {
        if let Some(file) = &self.file {
            let _ = file.sync_data();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{History, path_of};
    use crate::format::stream::SampledToken;
    use std::path::Path;

    fn token(i: i32) -> super::Told {
        let probability = (i % 2 == 0).then_some(0.5);
        let text = (i % 3 == 0).then(|| format!("te\"xt\n{i}").into());
        (SampledToken { seq: 0, pos: i, token: 1000 + i, request: 1, probability, t_ns: i as u64 }, text)
    }

    #[test]
    fn the_document_is_whole_after_every_write_and_goes_on_after_a_resume() {
        let path = std::env::temp_dir().join(format!("lri-tokens-{}.json", std::process::id()));
        let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path).unwrap()).unwrap();
        let mut history = History::new(path.clone(), 100.0);
        history.write(100.5).unwrap();
        assert_eq!(read(), serde_json::json!({"tokens": [], "total_tokens": 0, "capture_duration_seconds": 0.5}));
        history.add(&[token(0), token(1)], 101.0).unwrap();
        history.write(101.0).unwrap();
        let (at, count) = (history.offset(), history.count());
        history.add(&[token(2)], 102.0).unwrap();
        history.write(102.0).unwrap();
        assert_eq!(read()["tokens"].as_array().unwrap().len(), 3);
        drop(history);
        // The third token came after the checkpoint.
        let mut history = History::resume(&path, 100.0, at, count).unwrap();
        history.add(&[token(7)], 103.0).unwrap();
        history.write(103.25).unwrap();
        let got = read();
        assert_eq!(got["total_tokens"], 3);
        assert_eq!(got["capture_duration_seconds"], 3.25);
        assert_eq!(got["tokens"][2]["token_id"], 1007);
        assert_eq!(got["tokens"][2]["token_index"], 2);
        assert_eq!(got["tokens"][0]["token_text"], "te\"xt\n0");
        assert!(got["tokens"][1]["token_text"].is_null());
        assert!(History::resume(&path, 100.0, at - 1, count).is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(History::resume(&path, 100.0, at, count).is_none());
    }

    #[test]
    fn the_tokens_have_a_name_of_their_own() {
        assert_eq!(path_of(Path::new("/a.stream/b.stream")), Path::new("/a.stream/b_tokens.json"));
        assert_eq!(path_of(Path::new("acts")), Path::new("acts.tokens.json"));
        assert_eq!(path_of(Path::new("x/acts.bin")), Path::new("x/acts.bin.tokens.json"));
        assert_eq!(path_of(Path::new(".stream")), Path::new(".stream.tokens.json"));
        let names = [
            "a",
            "a.stream",
            "a.stream.stream",
            ".stream",
            ".stream.stream",
            "a_tokens",
            "a.tokens",
            "a.tokens.stream",
        ];
        let documents: std::collections::HashSet<_> = names.iter().map(|n| path_of(Path::new(n))).collect();
        assert_eq!(documents.len(), names.len(), "two streams have one document: {documents:?}");
    }

    #[test]
    fn a_document_belongs_to_one_stream_and_nothing_else_is_written_into() {
        let folder = std::env::temp_dir().join(format!("lri-tokens-of-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("x_tokens.json");
        let write = || {
            let mut history = History::new(path.clone(), 0.0);
            history.add(&[token(1)], 0.0).unwrap();
            history.write(0.0).map(|()| history).map_err(|e| e.to_string())
        };
        let first = write().unwrap();
        assert!(write().unwrap_err().contains("another stream"), "two at once");
        drop(first);
        drop(write().expect("an older document of the same stream is replaced"));
        let dear = b"something dear, and longer than the head of a document";
        std::fs::write(&path, dear).unwrap();
        assert!(write().unwrap_err().contains("something else"));
        assert_eq!(std::fs::read(&path).unwrap(), dear);
        // A link leads into somebody's file.
        std::fs::remove_file(&path).unwrap();
        let target = folder.join("target");
        std::fs::write(&target, b"").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(write().is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
