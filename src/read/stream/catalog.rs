//! Which tensors a stream has and where their packets are: from its index, or else by stepping through it.

use std::collections::HashMap;
use std::io::{self, Read, Seek};

use super::account::Location;
use super::legacy;
use super::reader::{Form, Item, StreamReader};
use super::walk::{self, Check, Ends, Step};
use super::window::Window;
use crate::error::Result;
use crate::format::stream::{Content, FRAME_LEN, Index, Kind, Packet};

/// A tensor of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name of its packets.
    pub name: String,
    /// Its packets in capture order.
    pub packets: Vec<Location>,
}

impl Tensor {
    /// Bytes of its packets.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.packets.iter().map(|p| p.len).sum()
    }
}

/// The tensors of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// In order of first appearance.
    pub tensors: Vec<Tensor>,
    /// Packets of other kinds, by the kind's number.
    pub others: Vec<(u8, Location)>,
    /// Whether the index of a cleanly ended file told it. Otherwise the whole file was stepped through.
    pub from_index: bool,
    /// Ranges that gave no packet when it was stepped through.
    pub damaged: Vec<Location>,
    places: HashMap<String, usize>,
}

impl Catalog {
    /// The tensor of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(*self.places.get(name)?)
    }

    fn add(&mut self, kind: u8, name: &str, at: Location) {
        if kind != Kind::Tensor as u8 {
            self.others.push((kind, at));
            return;
        }
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => {
                self.places.insert(name.to_owned(), self.tensors.len());
                self.tensors.push(Tensor { name: name.to_owned(), packets: Vec::new() });
                self.tensors.len() - 1
            }
        };
        if let Some(tensor) = self.tensors.get_mut(place) {
            tensor.packets.push(at);
        }
    }

    fn of_indexes(indexes: &[Index]) -> Self {
        let mut catalog = Self { from_index: true, ..Self::default() };
        for index in indexes {
            let mut offset = index.first;
            for entry in &index.entries {
                let at = Location { offset, len: u64::from(entry.len) };
                if let Some(name) = index.names.get(entry.name as usize) {
                    catalog.add(entry.kind, name, at);
                }
                offset = at.end();
            }
        }
        catalog
    }
}

impl<R: Read + Seek> StreamReader<R> {
    /// The tensors and where their packets are. The packets' contents are not read; [`Self::packet_at`] checks each
    /// when it is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn catalog(&mut self) -> Result<&Catalog> {
        let catalog = match self.catalog.take() {
            Some(catalog) => catalog,
            None => match self.indexed()? {
                Some(catalog) => catalog,
                None => self.stepped().map_err(|e| self.failed(&e))?,
            },
        };
        Ok(self.catalog.insert(catalog))
    }

    /// The clean end of the file: its totals, where it has one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn end(&mut self) -> Result<Option<serde_json::Value>> {
        if self.form == Form::Legacy {
            return Ok(None);
        }
        let found =
            walk::written_end(&mut self.window).and_then(|end| walk::ending_at(&mut self.window, end, Check::Ends));
        let Some(Ends { at, .. }) = found.map_err(|e| self.failed(&e))?.filter(|e| e.kind == Kind::End as u8) else {
            return Ok(None);
        };
        match self.packet_at(at)? {
            Item::Packet { packet: Packet { content: Content::End(value), .. }, .. } => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// By the indexes, if the file ended cleanly and they leave no byte of it out.
    fn indexed(&mut self) -> Result<Option<Catalog>> {
        let Some(end) = self.end()? else { return Ok(None) };
        let mut next = end.get("last_index").and_then(serde_json::Value::as_u64);
        let mut behind: Option<u64> = None;
        let mut indexes = Vec::new();
        while let Some(offset) = next {
            let found = walk::packet_at(&mut self.window, offset, Check::Whole).map_err(|e| self.failed(&e))?;
            let Ok(Ends { at, .. }) = found else { return Ok(None) };
            let Item::Packet { packet: Packet { content: Content::Index(index), .. }, .. } = self.packet_at(at)? else {
                return Ok(None);
            };
            // Each run must reach to its index packet, and that to the next run; a chain that turns back
            // would never end.
            if index.end() != offset
                || behind.is_some_and(|b| b != at.end())
                || index.previous.is_some_and(|p| p >= offset)
            {
                return Ok(None);
            }
            (behind, next) = (Some(index.first), index.previous);
            indexes.push(index);
        }
        if behind != Some(0) {
            return Ok(None);
        }
        indexes.reverse();
        Ok(Some(Catalog::of_indexes(&indexes)))
    }

    fn stepped(&mut self) -> io::Result<Catalog> {
        let mut catalog = Catalog::default();
        let (mut at, mut next_sequence) = (0, 0);
        loop {
            let step = match self.form {
                Form::Described => walk::step(&mut self.window, at, Check::Ends)?,
                Form::Legacy => legacy::step(&mut self.window, at)?,
            };
            let found = match step {
                Step::End => return Ok(catalog),
                Step::Unwritten(range) => {
                    at = range.end();
                    continue;
                }
                Step::Damage(damage) => {
                    at = damage.at.end();
                    catalog.damaged.push(damage.at);
                    continue;
                }
                Step::Packet(found) => found,
            };
            at = found.at.end();
            let begins = found.kind == Kind::Header as u8 && found.sequence == 0;
            if self.form == Form::Described && found.sequence < next_sequence && !begins {
                catalog.damaged.push(found.at); // Moved or repeated, as `next_item` has it.
                continue;
            }
            next_sequence = found.sequence.saturating_add(1);
            let name = name_of(&mut self.window, &found)?;
            catalog.add(if self.form == Form::Legacy { Kind::Tensor as u8 } else { found.kind }, &name, found.at);
        }
    }
}

/// Name of a packet that was found, without reading the rest of it.
pub(super) fn name_of<R: Read + Seek>(window: &mut Window<R>, found: &Ends) -> io::Result<String> {
    let name = window.look(found.at.offset + FRAME_LEN as u64, found.name_len)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
