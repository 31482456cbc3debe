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
use crate::format::stream::{
    Content, FRAME_LEN, Frame, Kind, Malformed, Packet, RawPacket, TAIL_LEN, TRAILER_START_LEN, Tail, Unreadable,
};

/// What the packets of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Packets of this library, which hold their own description and checksum.
    Described,
    /// Packets of the older system: name and data, nothing else.
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
    /// Name of the packet that was described last.
    name: String,
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
        Ok(Self { path, window, form, catalog: None, at: 0, next_sequence: 0, account, name: String::new() })
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
    /// When the file cannot be read on, or a packet is of a version that this library does not know; the next call goes
    /// on behind it. Damage is no error.
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

    /// The same without the values: of a tensor's packet, both ends are read and the body is given empty. The checksum,
    /// which is over all of it, is not checked; damage is found only where the ends do not fit. For files that are too
    /// long to read for what they say of themselves.
    ///
    /// # Errors
    /// As for [`Self::next_item`].
    pub fn next_described(&mut self) -> Result<Option<Item<'_>>> {
        if self.form == Form::Legacy {
            return self.next_legacy();
        }
        // Ahead of the end, while the beginning is in the window.
        self.read_name().map_err(|e| self.failed(&e))?;
        let step = walk::step(&mut self.window, self.at, Check::Ends).map_err(|e| self.failed(&e))?;
        match step {
            Step::Packet(found) if found.kind == Kind::Tensor as u8 => self.described(found).map(Some),
            _ => self.next_item(),
        }
    }

    fn read_name(&mut self) -> io::Result<()> {
        self.name.clear();
        let frame = self.window.look(self.at, FRAME_LEN)?.and_then(|f| f.first_chunk()).map(|f| Frame::read(*f));
        let Some(frame) = frame else { return Ok(()) };
        let name = self.window.look(self.at + FRAME_LEN as u64, frame.name_len)?.unwrap_or_default();
        self.name.push_str(std::str::from_utf8(name).unwrap_or_default());
        Ok(())
    }

    fn described(&mut self, found: Ends) -> Result<Item<'_>> {
        let at = found.at;
        if let Some(damage) = self.misplaced(&found) {
            return Ok(self.damage(damage));
        }
        match self.description(&found) {
            Ok(Ok(content)) => {
                self.account.add_packet(Kind::Tensor.name(), at.len);
                self.account.ended = false;
                Ok(Item::Packet { at, packet: Packet { name: &self.name, sequence: found.sequence, content } })
            }
            // Damage, or a later version: only the checksum tells.
            Ok(Err(_)) => match walk::packet_at(&mut self.window, at.offset, Check::Whole) {
                Ok(Ok(_)) => self.understood(at),
                Ok(Err(problem)) => unreadable(&mut self.account, &self.path, at, problem.into()),
                Err(e) => Err(self.failed(&e)),
            },
            Err(e) => Err(self.failed(&e)),
        }
    }

    /// What the packet's trailer says.
    fn description(&mut self, found: &Ends) -> io::Result<std::result::Result<Content<'static>, Unreadable>> {
        let wrong = |problem: &str| Ok(Err(Malformed(problem.to_owned()).into()));
        let end = found.at.end();
        let Some(Ok(tail)) = self.window.look(end.saturating_sub(TAIL_LEN as u64), TAIL_LEN)?.map(Tail::read) else {
            return wrong("the packet has no end");
        };
        let start = end.saturating_sub(tail.trailer_len as u64);
        let Some(trailer) = self.window.look(start, tail.trailer_len)? else { return wrong("the packet is cut") };
        let metadata = trailer.get(TRAILER_START_LEN..trailer.len().saturating_sub(TAIL_LEN)).unwrap_or_default();
        let Ends { version, kind, sequence, .. } = *found;
        let body_len = (found.at.len as usize).saturating_sub(FRAME_LEN + found.name_len + tail.trailer_len);
        let read = Packet::understand(RawPacket { name: "", body: &[], body_len, version, kind, sequence, metadata });
        match read {
            Ok(Packet { content: Content::Tensor { meta, .. }, .. }) if self.name.len() == found.name_len => {
                Ok(Ok(Content::Tensor { meta, body: &[] }))
            }
            Ok(_) => wrong("the name is not UTF-8"),
            Err(problem) => Ok(Err(problem)),
        }
    }

    /// Takes the packet's place and number into account. A packet that cannot stand there is damage.
    fn misplaced(&mut self, found: &Ends) -> Option<Damage> {
        let (at, sequence) = (found.at, found.sequence);
        // A file appended to another begins again at 0 with its header.
        let begins = found.kind == Kind::Header as u8 && sequence == 0;
        if sequence < self.next_sequence && !begins {
            let reason =
                format!("packet {sequence} stands behind packet {}: moved or repeated", self.next_sequence - 1);
            return Some(Damage { at, cut: false, reason });
        }
        self.at = at.end();
        if sequence > self.next_sequence {
            let missing = sequence - self.next_sequence;
            self.account.add_gap(Gap { offset: at.offset, first: self.next_sequence, missing });
        }
        self.next_sequence = sequence.saturating_add(1);
        None
    }

    fn packet(&mut self, found: Ends) -> Result<Item<'_>> {
        let at = found.at;
        if let Some(damage) = self.misplaced(&found) {
            return Ok(self.damage(damage));
        }
        self.understood(at)
    }

    /// The packet at `at`, whose CRC was checked when it was found.
    fn understood(&mut self, at: Location) -> Result<Item<'_>> {
        let bytes = match self.window.get(at.offset, at.len as usize) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(e) => return Err(Error::new("reading the stream", &self.path, e, "")),
        };
        let read = RawPacket::read_unchecked(bytes).map_err(Unreadable::from).and_then(Packet::understand);
        match read {
            Ok(packet) => {
                self.account.add_packet(packet.kind().map_or("unknown", Kind::name), at.len);
                self.account.ended = packet.kind() == Some(Kind::End);
                Ok(Item::Packet { at, packet })
            }
            Err(problem) => unreadable(&mut self.account, &self.path, at, problem),
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

/// Counts a packet that could not be understood.
fn unreadable(account: &mut StreamAccount, path: &str, at: Location, problem: Unreadable) -> Result<Item<'static>> {
    match problem {
        Unreadable::Damaged(problem) => {
            let damage = Damage { at, cut: false, reason: problem.0 };
            account.add_damage(&damage);
            Ok(Item::Damage(damage))
        }
        Unreadable::Version(_) => {
            account.add_other_version(at.len);
            Err(other_version(path, &problem))
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
