//! Reads a stream packet by packet, whatever was done to the file.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use super::account::{Damage, Gap, Location, StreamAccount};
use super::catalog::Catalog;
use super::legacy::{self, LegacyPacket};
use super::walk::{self, Check, Ends, Step};
use super::window::Window;
use crate::error::{Error, Result};
use crate::format::stream::{Kind, Packet, RawPacket, Unreadable};

/// What the packets of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Of this library: they describe and check themselves.
    Described,
    /// Of the older system: name and data, nothing else.
    Legacy,
}

/// What was read next.
#[derive(Debug)]
pub enum Item<'a> {
    /// A whole packet.
    Packet {
        /// Where it stands.
        at: Location,
        /// What it says.
        packet: Packet<'a>,
    },
    /// A packet of the older system. Nothing says whether its bytes are right.
    Legacy {
        /// Where it stands.
        at: Location,
        /// Name and data.
        packet: LegacyPacket<'a>,
    },
    /// A range that gave no packet.
    Damage(Damage),
    /// Zero bytes up to the end: reserved for what was not written any more.
    Unwritten(Location),
}

/// A stream being read.
#[derive(Debug)]
pub struct StreamReader<R> {
    pub(super) path: String,
    pub(super) window: Window<R>,
    pub(super) form: Form,
    pub(super) catalog: Option<Catalog>,
    at: u64,
    /// Number that the next packet should have.
    next_sequence: u64,
    account: StreamAccount,
}

impl StreamReader<File> {
    /// Opens the stream at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| {
            let remedy =
                if e.kind() == io::ErrorKind::NotFound { "LLAMA_RESOURCE_CAPTURE named it in the host" } else { "" };
            Error::new("opening the stream", &name, e, remedy)
        })?;
        Self::named(file, name)
    }
}

impl<R: Read + Seek> StreamReader<R> {
    /// Reads a stream from anything. Which [`Form`] it has is seen from its packets.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(reader: R) -> Result<Self> {
        Self::named(reader, "-".to_owned())
    }

    fn named(reader: R, path: String) -> Result<Self> {
        let failed = |e: io::Error| Error::new("reading the stream", &path, e, "");
        let mut window = Window::new(reader).map_err(failed)?;
        let form = legacy::detect(&mut window).map_err(failed)?;
        let account = StreamAccount::default();
        Ok(Self { path, window, form, catalog: None, at: 0, next_sequence: 0, account })
    }

    /// Reads on as if the packets were of this form, from the beginning: for a file of which the caller knows better.
    #[must_use]
    pub fn with_form(self, form: Form) -> Self {
        Self { form, catalog: None, at: 0, next_sequence: 0, account: StreamAccount::default(), ..self }
    }

    /// What the packets are.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Length of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.window.len()
    }

    /// Offset of what is read next.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// What was found so far; complete once [`Self::next_item`] gave `None`.
    #[must_use]
    pub fn account(&self) -> &StreamAccount {
        &self.account
    }

    pub(super) fn failed(&self, e: &io::Error) -> Error {
        Error::new("reading the stream", &self.path, e, "")
    }

    /// The next packet or damaged range, `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read on, or a packet is of a version that this library does not know; the next call goes on behind it.
    /// Damage is no error.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        if self.form == Form::Legacy {
            return self.next_legacy();
        }
        let step = walk::step(&mut self.window, self.at, Check::Whole).map_err(|e| self.failed(&e))?;
        match step {
            Step::End => Ok(None),
            Step::Unwritten(at) => Ok(Some(self.unwritten(at))),
            Step::Damage(damage) => Ok(Some(self.damage(damage))),
            Step::Packet(found) => self.packet(found).map(Some),
        }
    }

    fn packet(&mut self, found: Ends) -> Result<Item<'_>> {
        let (at, sequence) = (found.at, found.sequence);
        // A file appended to another begins again at 0 with its header.
        let begins = found.kind == Kind::Header as u8 && sequence == 0;
        if sequence < self.next_sequence && !begins {
            let reason =
                format!("packet {sequence} stands behind packet {}: moved or repeated", self.next_sequence - 1);
            return Ok(self.damage(Damage { at, cut: false, reason }));
        }
        self.at = at.end();
        if sequence > self.next_sequence {
            let missing = sequence - self.next_sequence;
            self.account.add_gap(Gap { offset: at.offset, first: self.next_sequence, missing });
        }
        self.next_sequence = sequence.saturating_add(1);
        let bytes = match self.window.get(at.offset, at.len as usize) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(e) => return Err(Error::new("reading the stream", &self.path, e, "")),
        };
        // Its CRC was checked when it was found.
        let read = RawPacket::read_unchecked(bytes).map_err(Unreadable::from).and_then(Packet::understand);
        match read {
            Ok(packet) => {
                self.account.add_packet(packet.kind().map_or("unknown", Kind::name), at.len);
                self.account.ended = packet.kind() == Some(Kind::End);
                Ok(Item::Packet { at, packet })
            }
            Err(Unreadable::Damaged(problem)) => {
                let damage = Damage { at, cut: false, reason: problem.0 };
                self.account.add_damage(&damage);
                Ok(Item::Damage(damage))
            }
            Err(problem @ Unreadable::Version(_)) => {
                self.account.add_other_version(at.len);
                Err(other_version(&self.path, &problem))
            }
        }
    }

    fn damage(&mut self, damage: Damage) -> Item<'static> {
        self.at = damage.at.end();
        self.account.add_damage(&damage);
        Item::Damage(damage)
    }

    fn unwritten(&mut self, at: Location) -> Item<'static> {
        self.at = at.end();
        self.account.unwritten += at.len;
        self.account.bytes += at.len;
        Item::Unwritten(at)
    }

    fn next_legacy(&mut self) -> Result<Option<Item<'_>>> {
        let step = legacy::step(&mut self.window, self.at).map_err(|e| self.failed(&e))?;
        match step {
            Step::End => Ok(None),
            Step::Unwritten(at) => Ok(Some(self.unwritten(at))),
            Step::Damage(damage) => Ok(Some(self.damage(damage))),
            Step::Packet(Ends { at, .. }) => {
                self.at = at.end();
                self.account.add_packet("legacy", at.len);
                self.legacy_at(at).map(Some)
            }
        }
    }

    fn legacy_at(&mut self, at: Location) -> Result<Item<'_>> {
        match self.window.get(at.offset, at.len as usize) {
            Ok(Some(bytes)) => match LegacyPacket::read(bytes) {
                Ok(packet) => Ok(Item::Legacy { at, packet }),
                Err(problem) => Ok(Item::Damage(Damage { at, cut: false, reason: problem.0 })),
            },
            Ok(None) => Ok(Item::Damage(Damage { at, cut: false, reason: "the file ends within a packet".to_owned() })),
            Err(e) => Err(Error::new("reading the stream", &self.path, e, "")),
        }
    }

    /// The packet at `at`, as a [`Catalog`] gives it, checked like any other. Neither [`Self::account`] nor where
    /// [`Self::next_item`] goes on changes.
    ///
    /// # Errors
    /// When the file cannot be read, or the packet is of a version that this library does not know.
    pub fn packet_at(&mut self, at: Location) -> Result<Item<'_>> {
        if self.form == Form::Legacy {
            return self.legacy_at(at);
        }
        let damaged = |reason: String| Ok(Item::Damage(Damage { at, cut: false, reason }));
        let Ok(len) = usize::try_from(at.len) else { return damaged("the packet is longer than memory".to_owned()) };
        match self.window.get(at.offset, len) {
            Err(e) => Err(Error::new("reading the stream", &self.path, e, "")),
            Ok(None) => damaged("the file ends before the packet does".to_owned()),
            Ok(Some(bytes)) => match Packet::read(bytes) {
                Ok(packet) => Ok(Item::Packet { at, packet }),
                Err(Unreadable::Damaged(problem)) => damaged(problem.0),
                Err(problem @ Unreadable::Version(_)) => Err(other_version(&self.path, &problem)),
            },
        }
    }
}

fn other_version(path: &str, problem: &Unreadable) -> Error {
    Error::new(
        "reading the stream",
        path,
        problem,
        "read it with the llama-resource that belongs to the library that wrote it",
    )
}
