//! A new stream from packets that exist: numbered from zero, with an index, cleanly ended.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::safetensors::part_of;
use super::{cannot_write, create_part};
use crate::analyze::stream::Ledger;
use crate::error::Error;
use crate::format::stream::{self, IndexBuilder, Kind, RawPacket, TensorMeta};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// The new file. It gets its name when it is whole.
#[derive(Debug)]
pub struct Rewrite {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    sequence: u64,
    index: IndexBuilder,
    packet: Vec<u8>,
}

impl Rewrite {
    /// Begins the file with a header of these fields.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn with_header(path: &Path, fields: &Value) -> Result<Self, Error> {
        let mut rewrite = Self::open(path)?;
        rewrite.write(Kind::Header, |out, n| stream::write_header(out, n, fields))?;
        Ok(rewrite)
    }

    /// Begins the file; its first packet must be a header.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let part = part_of(path);
        let file = create_part(&part).map_err(|e| cannot_write(&part, e))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        let (index, packet) = (IndexBuilder::new(0, None), Vec::new());
        Ok(Self { path: path.to_owned(), part, file, sequence: 0, index, packet })
    }

    /// Packets so far.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.sequence
    }

    /// Appends a packet as it is, but for its number.
    ///
    /// # Errors
    /// When it is none, or the file cannot be written.
    pub fn copy(&mut self, packet: &mut [u8]) -> Result<(), Error> {
        stream::set_sequence(packet, self.sequence)?;
        let raw = RawPacket::read(packet)
            .map_err(|e| Error::new("copying", "a packet", e, "the file changed while it was read: try again"))?;
        self.file.write_all(packet).map_err(|e| cannot_write(&self.part, e))?;
        // A kind of a later version has no name here; the index is a help only, and the nearest number does.
        self.note(Kind::from_u8(raw.kind).unwrap_or(Kind::Account), raw.name, packet.len())
    }

    /// Appends values: `body` is what the codec of `meta` made of them.
    ///
    /// # Errors
    /// When the description does not fit, or the file cannot be written.
    pub fn tensor(&mut self, name: &str, meta: &TensorMeta, body: &[u8]) -> Result<(), Error> {
        self.packet.clear();
        stream::write_tensor(&mut self.packet, self.sequence, name, meta, body)?;
        self.flush_packet(Kind::Tensor, name)
    }

    /// Appends the account, the index and the end, and gives the file its name. `more` goes into the end packet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self, ledger: &Ledger, more: Map<String, Value>) -> Result<(), Error> {
        let account = ledger.to_json();
        self.write(Kind::Account, |out, n| stream::write_account(out, n, &account))?;
        self.write_index()?;
        let mut end = more;
        end.insert("account".to_owned(), account);
        end.insert("packets".to_owned(), (self.sequence + 1).into());
        let last = self.index.previous();
        self.write(Kind::End, |out, n| stream::write_end(out, n, &Value::Object(end), last))?;
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(|e| cannot_write(&self.part, e))?;
        fs::rename(&self.part, &self.path).map_err(|e| cannot_write(&self.path, e))
    }

    fn write(&mut self, kind: Kind, packet: impl FnOnce(&mut Vec<u8>, u64) -> Result<(), Error>) -> Result<(), Error> {
        self.packet.clear();
        packet(&mut self.packet, self.sequence)?;
        self.flush_packet(kind, kind.packet_name().unwrap_or_default())
    }

    fn flush_packet(&mut self, kind: Kind, name: &str) -> Result<(), Error> {
        self.file.write_all(&self.packet).map_err(|e| cannot_write(&self.part, e))?;
        let len = self.packet.len();
        self.note(kind, name, len)
    }

    fn note(&mut self, kind: Kind, name: &str, len: usize) -> Result<(), Error> {
        self.sequence += 1;
        if kind != Kind::Index {
            self.index.push(kind, name, u32::try_from(len).unwrap_or(u32::MAX));
        }
        if self.index.is_full() { self.write_index() } else { Ok(()) }
    }

    fn write_index(&mut self) -> Result<(), Error> {
        self.packet.clear();
        stream::write_index(&mut self.packet, self.sequence, self.index.index())?;
        self.file.write_all(&self.packet).map_err(|e| cannot_write(&self.part, e))?;
        self.index.written(u32::try_from(self.packet.len()).unwrap_or(u32::MAX));
        self.sequence += 1;
        Ok(())
    }
}

impl Drop for Rewrite {
    fn drop(&mut self) {
        // Half a copy has no use; after `finish` there is none of that name.
        let _ = fs::remove_file(&self.part);
    }
}
