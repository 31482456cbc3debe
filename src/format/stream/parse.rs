//! What a packet says: its metadata back into the types of this room.

use serde_json::Value;

use super::index::Index;
use super::meta::read_meta;
use super::packet::RawPacket;
use super::tokens::read_tokens;
use super::varint::{Cursor, Malformed};
use super::{Kind, STREAM_VERSION, SampledToken, TensorMeta};

/// A packet that was checked and understood.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number in the file.
    pub sequence: u64,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a packet holds.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Where the file comes from: a JSON object.
    Header(Value),
    /// Values of a tensor.
    Tensor {
        /// Their description.
        meta: TensorMeta,
        /// The values, encoded.
        body: &'a [u8],
    },
    /// Chosen tokens.
    Tokens(Vec<SampledToken>),
    /// Running totals: a JSON object.
    Account(Value),
    /// Where a capture may go on: a JSON object.
    Checkpoint(Value),
    /// Where the packets are.
    Index(Index),
    /// The clean end: a JSON object.
    End(Value),
    /// A kind of a later version; readers ignore it.
    Unknown {
        /// Its kind as a number.
        kind: u8,
    },
}

/// Why a packet could not be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The bytes are not what was written.
    Damaged(Malformed),
    /// They are, but of a version that this library does not know.
    Version(u8),
}

impl From<Malformed> for Unreadable {
    fn from(e: Malformed) -> Self {
        Self::Damaged(e)
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(e) => e.fmt(f),
            Self::Version(v) => write!(f, "the packet is of version {v}, this library reads version {STREAM_VERSION}"),
        }
    }
}

impl<'a> Packet<'a> {
    /// Checks and reads `packet`, which must be exactly one packet.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn read(packet: &'a [u8]) -> Result<Self, Unreadable> {
        Self::understand(RawPacket::read(packet)?)
    }

    /// Reads the metadata of a packet that was taken apart.
    ///
    /// # Errors
    /// When its metadata are not what its kind says, or it is of another version.
    pub fn understand(raw: RawPacket<'a>) -> Result<Self, Unreadable> {
        if raw.version != STREAM_VERSION {
            return Err(Unreadable::Version(raw.version));
        }
        let mut bytes = Cursor::new(raw.metadata);
        let content = match Kind::from_u8(raw.kind) {
            Some(Kind::Header) => Content::Header(json(&bytes)?),
            Some(Kind::Tensor) => {
                let meta = read_meta(&mut bytes)?;
                meta.check(raw.body_len)?;
                Content::Tensor { meta, body: raw.body }
            }
            Some(Kind::Tokens) => Content::Tokens(read_tokens(&mut bytes)?),
            Some(Kind::Account) => Content::Account(json(&bytes)?),
            Some(Kind::Checkpoint) => Content::Checkpoint(json(&bytes)?),
            Some(Kind::Index) => Content::Index(Index::read(&mut bytes)?),
            Some(Kind::End) => Content::End(json(&bytes)?),
            None => Content::Unknown { kind: raw.kind },
        };
        Ok(Self { name: raw.name, sequence: raw.sequence, content })
    }

    /// Its kind; `None` for one that is not known.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self.content {
            Content::Header(_) => Some(Kind::Header),
            Content::Tensor { .. } => Some(Kind::Tensor),
            Content::Tokens(_) => Some(Kind::Tokens),
            Content::Account(_) => Some(Kind::Account),
            Content::Checkpoint(_) => Some(Kind::Checkpoint),
            Content::Index(_) => Some(Kind::Index),
            Content::End(_) => Some(Kind::End),
            Content::Unknown { .. } => None,
        }
    }
}

fn json(bytes: &Cursor<'_>) -> Result<Value, Malformed> {
    let value: Value =
        serde_json::from_slice(bytes.rest()).map_err(|e| Malformed::new(format!("its JSON cannot be read: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(Malformed::new("its JSON is no object")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Content, Packet, Unreadable};
    use crate::format::stream::{Index, SampledToken, meta, set_sequence};
    use crate::format::stream::{
        write_account, write_checkpoint, write_end, write_header, write_index, write_tensor, write_tokens,
    };

    /// Splits a buffer of whole packets by their framing.
    fn packets(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut found = vec![];
        while let Some(frame) = bytes.first_chunk() {
            let (packet, rest) = bytes.split_at(crate::format::stream::Frame::read(*frame).packet_len() as usize);
            found.push(packet);
            bytes = rest;
        }
        found
    }

    #[test]
    fn every_kind_comes_back() {
        let (meta, token) =
            (meta::tests::meta(), SampledToken { seq: 1, pos: 2, token: 3, request: 4, probability: None, t_ns: 5 });
        let mut out = Vec::new();
        write_header(&mut out, 0, &json!({"session_id": "s"})).unwrap();
        write_tensor(&mut out, 1, "Qcur-3", &meta, b"bounded: 8 rows, 2 bytes each").unwrap();
        write_tokens(&mut out, 2, &[token]).unwrap();
        write_account(&mut out, 3, &json!({"seen": {}})).unwrap();
        write_checkpoint(&mut out, 4, &json!({"tokens": 1})).unwrap();
        write_index(&mut out, 5, &Index::default()).unwrap();
        write_end(&mut out, 6, &json!({"packets": 6}), Some(77)).unwrap();
        let all: Vec<Packet<'_>> = packets(&out).into_iter().map(|p| Packet::read(p).unwrap()).collect();
        assert_eq!(all.iter().map(|p| p.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(all.iter().map(|p| p.kind().unwrap() as u8).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert!(matches!(&all[0].content, Content::Header(h)
            if h["format"] == "llama-resource-stream" && h["version"] == 1 && h["session_id"] == "s"));
        assert!(
            matches!(&all[1].content, Content::Tensor { meta: m, body: b"bounded: 8 rows, 2 bytes each" } if *m == meta)
        );
        assert!(matches!(&all[2].content, Content::Tokens(t) if t[..] == [token]));
        assert!(matches!(&all[6].content, Content::End(e) if e["last_index"] == 77));
    }

    #[test]
    fn another_version_and_another_kind_are_told_apart_from_damage() {
        let mut out = Vec::new();
        write_account(&mut out, 3, &json!({})).unwrap();
        let at = out.len() - crate::format::stream::Tail::read(&out).unwrap().trailer_len + 8;
        let mut change = |place: usize, value: u8| {
            out[place] = value;
            let n = out.len();
            let crc = crc32c::crc32c(&out[..n - 8]);
            out[n - 8..n - 4].copy_from_slice(&crc.to_le_bytes());
            set_sequence(&mut out, 9).unwrap();
            match Packet::read(&out) {
                Ok(p) => Ok((p.sequence, p.kind())),
                Err(e) => Err(e),
            }
        };
        assert_eq!(change(at + 1, 200), Ok((9, None)));
        assert_eq!(change(at, 2), Err(Unreadable::Version(2)));
    }
}
