//! A stream as the subcommands read it: packets in order, damage counted, progress shown.

use std::fs::File;
use std::path::{Path, PathBuf};

use llama_resource_instrumentation::analyze::stream::Globs;
use llama_resource_instrumentation::error::Error;
use llama_resource_instrumentation::export::units::printable;
use llama_resource_instrumentation::format::stream::{Content, Packet, TensorMeta};
use llama_resource_instrumentation::read::stream::{
    self, Form, Item, LegacyPacket, Location, StreamAccount, StreamReader,
};

use super::out::Stop;
use super::progress::Progress;
use crate::terminal;

/// A file up to this length is read whole wherever its packets are looked at: that takes a moment.
const SHORT: u64 = 64 << 20;

/// An opened stream.
pub struct Source {
    path: PathBuf,
    reader: StreamReader<File>,
    what: &'static str,
}

/// A packet of a tensor.
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its description.
    pub meta: &'a TensorMeta,
    /// Its values, encoded.
    pub body: &'a [u8],
    /// Its place in the file.
    pub at: Location,
}

impl Source {
    /// Opens a stream of either form; `what` is shown as the name of long work.
    pub fn open_any(path: &Path, what: &'static str) -> Result<Self, Stop> {
        Ok(Self { path: path.to_owned(), reader: StreamReader::open(path)?, what })
    }

    /// Opens a stream of ours.
    pub fn open(path: &Path, what: &'static str) -> Result<Self, Stop> {
        let source = Self::open_any(path, what)?;
        if source.is_legacy() {
            return Err(Stop::Failed(format!(
                "`{path}` is a stream of the older system, whose packets describe nothing: \
                 `llama-resource stream import {path} --dtype f16 --out NEW` makes one of ours of it",
                path = path.display()
            )));
        }
        Ok(source)
    }

    /// Whether the packets are the older system's.
    pub fn is_legacy(&self) -> bool {
        self.reader.form() == Form::Legacy
    }

    /// Length of the file.
    pub fn len(&self) -> u64 {
        self.reader.file_len()
    }

    /// Whether [`Self::each_described`] passes over the values of tensors.
    pub fn is_long(&self) -> bool {
        self.len() > SHORT
    }

    /// Gives every packet of ours; what was not whole is in the account. Packets of another version end it.
    pub fn each(
        &mut self,
        packet: impl FnMut(&Packet<'_>, Location) -> Result<(), Stop>,
    ) -> Result<StreamAccount, Stop> {
        self.each_by(StreamReader::next_item, packet)
    }

    /// The same for what packets say of themselves: of a long file, tensors come without their values, unchecked.
    pub fn each_described(
        &mut self,
        packet: impl FnMut(&Packet<'_>, Location) -> Result<(), Stop>,
    ) -> Result<StreamAccount, Stop> {
        if self.is_long() { self.each_by(StreamReader::next_described, packet) } else { self.each(packet) }
    }

    fn each_by(
        &mut self,
        next: impl for<'a> Fn(&'a mut StreamReader<File>) -> Result<Option<Item<'a>>, Error>,
        mut packet: impl FnMut(&Packet<'_>, Location) -> Result<(), Stop>,
    ) -> Result<StreamAccount, Stop> {
        let mut progress = Progress::new(self.what, self.len());
        while let Some(item) = next(&mut self.reader)? {
            if let Item::Packet { at, packet: found } = item {
                packet(&found, at)?;
                progress.at(at.end());
            }
        }
        Ok(self.reader.account().clone())
    }

    /// Gives every packet of the older system.
    pub fn each_legacy(
        &mut self,
        mut packet: impl FnMut(&LegacyPacket<'_>) -> Result<(), Stop>,
    ) -> Result<StreamAccount, Stop> {
        let mut progress = Progress::new(self.what, self.len());
        while let Some(item) = self.reader.next_item()? {
            if let Item::Legacy { at, packet: found } = item {
                packet(&found)?;
                progress.at(at.end());
            }
        }
        Ok(self.reader.account().clone())
    }

    /// Gives the packets of the tensors that are wanted, in the order of the file. Says on standard error if some could
    /// not be read.
    pub fn each_tensor(
        &mut self,
        wanted: &Globs,
        mut tensor: impl FnMut(&Tensor<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut give = |packet: &Packet<'_>, at| match &packet.content {
            Content::Tensor { meta, body } if wanted.fits(packet.name) => {
                tensor(&Tensor { name: packet.name, meta, body, at })
            }
            _ => Ok(()),
        };
        if wanted.is_all() {
            let account = self.each(give)?;
            self.warn(account.damaged_ranges, account.damaged_bytes);
            return Ok(());
        }
        // A few of many tensors: the index, or the packets' ends, tell where they are.
        let catalog = self.reader.catalog()?;
        let damaged = (catalog.damaged.len() as u64, catalog.damaged.iter().map(|d| d.len).sum::<u64>());
        let fitting = catalog.tensors.iter().filter(|t| wanted.fits(&t.name));
        let mut places: Vec<Location> = fitting.flat_map(|t| t.packets.iter().copied()).collect();
        places.sort_unstable_by_key(|p| p.offset);
        let (lost, bytes) = self.give(&places, &mut give)?;
        self.warn(damaged.0 + lost, damaged.1 + bytes);
        Ok(())
    }

    /// Gives packets again whose places are known. Damage is an error here: they were whole before.
    pub fn again(
        &mut self,
        places: &[Location],
        mut tensor: impl FnMut(&Tensor<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut give = |packet: &Packet<'_>, at| match &packet.content {
            Content::Tensor { meta, body } => tensor(&Tensor { name: packet.name, meta, body, at }),
            _ => Ok(()),
        };
        match self.give(places, &mut give)? {
            (0, _) => Ok(()),
            _ => Err(Stop::Failed(format!(
                "`{}` changed while it was read: try again when nobody writes to it",
                self.path.display()
            ))),
        }
    }

    fn give(
        &mut self,
        places: &[Location],
        packet: &mut impl FnMut(&Packet<'_>, Location) -> Result<(), Stop>,
    ) -> Result<(u64, u64), Stop> {
        let total = places.iter().map(|p| p.len).sum();
        let mut progress = Progress::new(self.what, total);
        let (mut done, mut lost) = (0, (0, 0));
        for &at in places {
            match self.reader.packet_at(at)? {
                Item::Packet { packet: found, .. } => packet(&found, at)?,
                _ => lost = (lost.0 + 1, lost.1 + at.len),
            }
            done += at.len;
            progress.at(done);
        }
        Ok(lost)
    }

    /// Gives the descriptions of the tensors that are wanted, in the order of the file. Says on standard error if some
    /// could not be read.
    pub fn each_description(
        &mut self,
        wanted: &Globs,
        mut tensor: impl FnMut(&str, &TensorMeta, Location) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let account = self.each_described(|packet, at| match &packet.content {
            Content::Tensor { meta, .. } if wanted.fits(packet.name) => tensor(packet.name, meta, at),
            _ => Ok(()),
        })?;
        self.warn(account.damaged_ranges, account.damaged_bytes);
        Ok(())
    }

    fn warn(&self, places: u64, bytes: u64) {
        if places > 0 {
            let (path, s) = (self.path.display(), if places == 1 { "" } else { "s" });
            terminal::eprint_line(&format!(
                "{places} damaged place{s} of `{path}` left out ({bytes} bytes): `stream verify` lists them"
            ));
        }
    }
}

/// The values of a packet into `out`, which is cleared.
pub fn values(tensor: &Tensor<'_>, path: &Path, out: &mut Vec<u8>) -> Result<(), Stop> {
    out.clear();
    stream::decode(tensor.meta, tensor.body, out).map_err(|e| {
        Stop::Failed(format!(
            "cannot decode `{}` in `{}`, packet at byte {}: {}; `stream verify` checks all of them",
            printable(tensor.name),
            path.display(),
            tensor.at.offset,
            e.0
        ))
    })
}
