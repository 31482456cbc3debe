//! What a stream held: packets by kind, damaged ranges, packets that are missing. It
//! always balances: [`StreamAccount::balances`].

use std::collections::BTreeMap;

use serde::Serialize;

/// Damaged ranges and gaps that are kept one by one; the rest are only counted.
pub const KEPT: usize = 1000;

/// A range of the file, or the place of a packet in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// Offset of its first byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Location {
    /// Offset behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A range that gave no packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Where.
    #[serde(flatten)]
    pub at: Location,
    /// It is the beginning of a packet that was not written to its end, the last thing in the file: the host was
    /// killed, or is writing.
    pub cut: bool,
    /// What is wrong.
    pub reason: String,
}

/// Packets that are missing between two that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Offset of the packet behind the gap.
    pub offset: u64,
    /// Number of the first missing packet.
    pub first: u64,
    /// How many.
    pub missing: u64,
}

/// What a stream held, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamAccount {
    /// Bytes of the file that were read.
    pub bytes: u64,
    /// Packets that were given.
    pub packets: u64,
    /// Their bytes.
    pub packet_bytes: u64,
    /// Packets that were given, by kind; `legacy` for those of the older system, `unknown` for kinds of
    /// a later version.
    pub kinds: BTreeMap<String, u64>,
    /// Ranges that gave no packet.
    pub damaged_ranges: u64,
    /// Their bytes.
    pub damaged_bytes: u64,
    /// The first of them.
    pub damaged: Vec<Damage>,
    /// Places where packets are missing.
    pub gaps: u64,
    /// Packets that are missing there.
    pub missing_packets: u64,
    /// The first such places.
    pub missing: Vec<Gap>,
    /// Packets of another version, which were not read.
    pub other_version: u64,
    /// Zero bytes at the end: reserved, not written.
    pub unwritten: u64,
    /// The file was ended cleanly.
    pub ended: bool,
}

impl StreamAccount {
    /// Whether every byte that was read is in a packet, in a damaged range or unwritten.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.bytes == self.packet_bytes + self.damaged_bytes + self.unwritten
    }

    /// Whether nothing is damaged, missing or unreadable. A file without its end can still be whole so far.
    #[must_use]
    pub fn is_undamaged(&self) -> bool {
        self.damaged_ranges == 0 && self.gaps == 0 && self.other_version == 0
    }

    pub(super) fn add_packet(&mut self, kind: &str, len: u64) {
        self.packets += 1;
        self.packet_bytes += len;
        self.bytes += len;
        match self.kinds.get_mut(kind) {
            Some(n) => *n += 1,
            None => _ = self.kinds.insert(kind.to_owned(), 1),
        }
    }

    pub(super) fn add_damage(&mut self, damage: &Damage) {
        self.damaged_ranges += 1;
        self.damaged_bytes += damage.at.len;
        self.bytes += damage.at.len;
        if self.damaged.len() < KEPT {
            self.damaged.push(damage.clone());
        }
    }

    pub(super) fn add_other_version(&mut self, len: u64) {
        self.other_version += 1;
        self.packet_bytes += len;
        self.bytes += len;
    }

    pub(super) fn add_gap(&mut self, gap: Gap) {
        self.gaps += 1;
        self.missing_packets = self.missing_packets.saturating_add(gap.missing);
        if self.missing.len() < KEPT {
            self.missing.push(gap);
        }
    }
}
