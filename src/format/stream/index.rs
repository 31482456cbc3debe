//! The index: where the packets of a file are, by name. A help for readers, never the truth: every packet says itself
//! what it is.

use super::varint::{Cursor, Malformed, put, put_str};

/// Most packets in one index packet.
pub const MOST_ENTRIES: usize = 65_536;

/// Fewest bytes of an entry: length, kind, name.
const LEAST_ENTRY: usize = 3;

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its length in the file.
    pub len: u32,
    /// Its kind as a number.
    pub kind: u8,
    /// Its name's place in [`Index::names`].
    pub name: u32,
}

/// A run of packets that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Offset of the first packet in the file.
    pub first: u64,
    /// Offset of the index packet before this one.
    pub previous: Option<u64>,
    /// Names, each once.
    pub names: Vec<String>,
    /// The packets, in order, without a gap.
    pub entries: Vec<Entry>,
}

impl Index {
    /// Offset behind the last packet of the run, where the index packet itself stands.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.entries.iter().fold(self.first, |at, e| at.saturating_add(u64::from(e.len)))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(out, self.first);
        put(out, self.previous.map_or(0, |p| p.saturating_add(1)));
        put(out, self.names.len() as u64);
        for name in &self.names {
            put_str(out, name);
        }
        put(out, self.entries.len() as u64);
        for entry in &self.entries {
            put(out, u64::from(entry.len));
            out.push(entry.kind);
            put(out, u64::from(entry.name));
        }
    }

    pub(super) fn read(bytes: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let first = bytes.varint()?;
        let previous = bytes.varint()?.checked_sub(1);
        let n = bytes.count(1, "names")?;
        let mut names = Vec::with_capacity(n);
        for _ in 0..n {
            names.push(bytes.str("name")?.to_owned());
        }
        let n = bytes.count(LEAST_ENTRY, "packets")?;
        let mut entries = Vec::with_capacity(n);
        for _ in 0..n {
            let entry = Entry { len: bytes.narrow("length")?, kind: bytes.u8()?, name: bytes.narrow("name")? };
            if entry.name as usize >= names.len() {
                return Err(Malformed::new("an entry has no name"));
            }
            entries.push(entry);
        }
        Ok(Self { first, previous, names, entries })
    }
}

/// Gathers the index while packets are written.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    index: Index,
    places: std::collections::HashMap<String, u32>,
    end: u64,
}

impl IndexBuilder {
    /// For packets from `offset` on; `previous` is the index packet before them.
    #[must_use]
    pub fn new(offset: u64, previous: Option<u64>) -> Self {
        let index = Index { first: offset, previous, ..Index::default() };
        Self { index, places: std::collections::HashMap::new(), end: offset }
    }

    /// Adds the packet of `len` bytes that was written next.
    pub fn push(&mut self, kind: super::Kind, name: &str, len: u32) {
        let next = self.index.names.len() as u32;
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => {
                self.places.insert(name.to_owned(), next);
                self.index.names.push(name.to_owned());
                next
            }
        };
        self.index.entries.push(Entry { len, kind: kind as u8, name: place });
        self.end = self.end.saturating_add(u64::from(len));
    }

    /// Whether the index packet should be written now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.index.entries.len() >= MOST_ENTRIES
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.entries.is_empty()
    }

    /// Offset behind the packets so far: where the next one goes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the last index packet that was written.
    #[must_use]
    pub fn previous(&self) -> Option<u64> {
        self.index.previous
    }

    /// The index of the packets so far.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Starts the next run behind the index packet of `len` bytes that was written at [`Self::end`].
    pub fn written(&mut self, len: u32) {
        let previous = self.end;
        *self = Self::new(previous.saturating_add(u64::from(len)), Some(previous));
    }
}

#[cfg(test)]
mod tests {
    use super::{Index, IndexBuilder};
    use crate::format::stream::Kind;
    use crate::format::stream::varint::Cursor;

    #[test]
    fn packets_come_back_by_name() {
        let mut builder = IndexBuilder::new(100, None);
        for (name, len) in [("a", 10), ("b", 20), ("a", 30)] {
            builder.push(Kind::Tensor, name, len);
        }
        assert_eq!((builder.end(), builder.index().end(), builder.index().names.len()), (160, 160, 2));
        let mut out = Vec::new();
        builder.index().put(&mut out);
        assert_eq!(&Index::read(&mut Cursor::new(&out)).unwrap(), builder.index());
        for n in 0..out.len() {
            assert!(Index::read(&mut Cursor::new(&out[..n])).is_err());
        }
        builder.written(40);
        assert_eq!((builder.end(), builder.previous(), builder.is_empty()), (200, Some(160), true));
    }
}
