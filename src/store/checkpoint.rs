//! `PATH.ckpt.json`: where a capture may go on. The older system's keys, and ours. Replaced as a whole or not at all.

use std::io::Result as IoResult;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::disk;

/// Version of the document, the older system's too.
const VERSION: u64 = 1;

/// A point of a stream behind which nothing is missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    /// Bytes of the stream up to and with its checkpoint packet.
    pub(crate) stream_offset: u64,
    /// Number of the packet that comes next.
    pub(crate) next_packet: u64,
    /// Chosen tokens, and where they end in `tokens.json`.
    pub(crate) total_tokens: u64,
    pub(crate) tokens_offset: u64,
    pub(crate) tokens_file: String,
    /// Tokens of steps.
    pub(crate) step_tokens: u64,
    pub(crate) last_step: u64,
    pub(crate) account: Value,
    pub(crate) last_index: Option<u64>,
    /// Unix seconds: first start of the stream, this checkpoint.
    pub(crate) start_s: f64,
    pub(crate) now_s: f64,
    pub(crate) resume_count: u64,
}

/// Where the checkpoint of `stream` is.
pub(crate) fn path_of(stream: &Path) -> PathBuf {
    let mut name = stream.as_os_str().to_owned();
    name.push(".ckpt.json");
    name.into()
}

impl Checkpoint {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "version": VERSION,
            "total_tokens": self.total_tokens,
            "last_checkpoint_time": self.now_s,
            "metadata": {
                "start_time": self.start_s,
                "resume_count": self.resume_count,
                "updated_at": self.now_s,
            },
            "stream_offset": self.stream_offset,
            "next_packet": self.next_packet,
            "tokens_file": self.tokens_file,
            "tokens_offset": self.tokens_offset,
            "step_tokens": self.step_tokens,
            "last_step": self.last_step,
            "last_index": self.last_index,
            "account": self.account,
        })
    }

    pub(crate) fn from_json(doc: &Value) -> Option<Self> {
        let number = |name: &str| doc.get(name).and_then(Value::as_u64);
        let about = doc.get("metadata")?;
        if number("version")? != VERSION {
            return None;
        }
        Some(Self {
            stream_offset: number("stream_offset")?,
            next_packet: number("next_packet")?,
            total_tokens: number("total_tokens")?,
            tokens_offset: number("tokens_offset")?,
            tokens_file: doc.get("tokens_file")?.as_str()?.to_owned(),
            step_tokens: number("step_tokens")?,
            last_step: number("last_step")?,
            account: doc.get("account")?.clone(),
            last_index: number("last_index"),
            start_s: about.get("start_time")?.as_f64()?,
            now_s: doc.get("last_checkpoint_time")?.as_f64()?,
            resume_count: about.get("resume_count")?.as_u64()?,
        })
    }

    /// The body of the stream's own checkpoint packet: the same, but what only its place can say.
    pub(crate) fn to_packet(&self) -> Value {
        let mut doc = self.to_json();
        if let Value::Object(fields) = &mut doc {
            fields.remove("stream_offset");
            fields.insert("tokens".to_owned(), self.step_tokens.into());
            fields.insert("steps".to_owned(), self.last_step.into());
            fields.insert("packets".to_owned(), self.next_packet.into());
        }
        doc
    }

    /// From a checkpoint packet that ends at `offset`.
    pub(crate) fn from_packet(body: &Value, offset: u64) -> Option<Self> {
        let mut doc = body.clone();
        doc.as_object_mut()?.insert("stream_offset".to_owned(), offset.into());
        Self::from_json(&doc)
    }

    /// Replaces the file.
    pub(crate) fn save(&self, path: &Path) -> IoResult<()> {
        let mut text = self.to_json().to_string();
        text.push('\n');
        disk::replace(path, text.as_bytes())
    }

    pub(crate) fn load(path: &Path) -> Option<Self> {
        Self::from_json(&serde_json::from_slice(&disk::read_small(path).ok()?).ok()?)
    }
}

/// After a clean end there is nothing to resume.
pub(crate) fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, path_of, remove};

    #[test]
    fn a_checkpoint_comes_back_from_file_and_packet_and_no_cut_one_does() {
        let stream = std::env::temp_dir().join(format!("lri-ckpt-{}.stream", std::process::id()));
        let path = path_of(&stream);
        assert!(path.to_string_lossy().ends_with(".stream.ckpt.json"));
        let checkpoint = Checkpoint {
            stream_offset: 1 << 40,
            next_packet: 77,
            total_tokens: 12,
            tokens_offset: 345,
            tokens_file: "x_tokens.json".into(),
            step_tokens: 512,
            last_step: 9,
            account: serde_json::json!({"captured": {"tensors": 3, "bytes": 4}}),
            last_index: Some(99),
            start_s: 1.5,
            now_s: 2.25,
            resume_count: 3,
        };
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path), Some(checkpoint.clone()));
        let without = Checkpoint { last_index: None, ..checkpoint.clone() };
        without.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path), Some(without));
        let bytes = std::fs::read(&path).unwrap();
        for n in 0..bytes.len() - 1 {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert_eq!(Checkpoint::load(&path), None, "{n}");
        }
        assert_eq!(Checkpoint::from_packet(&checkpoint.to_packet(), 1 << 40), Some(checkpoint));
        remove(&path);
        assert_eq!(Checkpoint::load(&path), None);
    }
}
