//! Where an unfinished capture can go on: behind its last checkpoint.

use std::io::{Read, Result as IoResult, Seek};

use serde_json::Value;

use super::account::Location;
use super::catalog::name_of;
use super::reader::{Form, Item, StreamReader};
use super::walk::{self, Check, Ends};
use crate::error::Result;
use crate::format::stream::{Content, IndexBuilder, Kind, MOST_ENTRIES, Packet};

/// Where to cut a file and go on.
#[derive(Debug)]
pub struct ResumePoint {
    /// Offset right behind the checkpoint packet: the length to cut the file to.
    pub offset: u64,
    /// Number of the packet that comes there.
    pub next_sequence: u64,
    /// What the checkpoint says.
    pub checkpoint: Value,
    /// The packets that no index packet names yet, up to `offset`.
    pub index: IndexBuilder,
}

impl<R: Read + Seek> StreamReader<R> {
    /// The last checkpoint that is whole, searched from the end; `None` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_checkpoint(&mut self) -> Result<Option<ResumePoint>> {
        if self.form == Form::Legacy {
            return Ok(None);
        }
        let mut end = walk::written_end(&mut self.window).map_err(|e| self.failed(&e))?;
        loop {
            let found = walk::last_before(&mut self.window, end, Check::Ends).map_err(|e| self.failed(&e))?;
            let Some(found) = found else { return Ok(None) };
            if found.kind == Kind::Checkpoint as u8
                && let Item::Packet { packet: Packet { content: Content::Checkpoint(checkpoint), .. }, .. } =
                    self.packet_at(found.at)?
            {
                let (offset, next_sequence) = (found.at.end(), found.sequence.saturating_add(1));
                let index = self.index_up_to(found).map_err(|e| self.failed(&e))?;
                return Ok(Some(ResumePoint { offset, next_sequence, checkpoint, index }));
            }
            end = found.at.offset;
        }
    }

    /// The packets between the last index packet and the end of `last`.
    fn index_up_to(&mut self, last: Ends) -> IoResult<IndexBuilder> {
        let mut packets: Vec<(Kind, String, Location)> = Vec::new();
        let (mut current, mut previous) = (last, None);
        while let Some(kind) = Kind::from_u8(current.kind) {
            packets.push((kind, name_of(&mut self.window, &current)?, current.at));
            // Behind damage the index cannot be complete; readers then step through the file.
            let Some(before) = walk::ending_at(&mut self.window, current.at.offset, Check::Ends)? else { break };
            if before.kind == Kind::Index as u8 {
                previous = Some(before.at.offset);
                break;
            }
            if packets.len() > 2 * MOST_ENTRIES {
                break;
            }
            current = before;
        }
        let first = packets.last().map_or(last.at.end(), |(.., at)| at.offset);
        let mut index = IndexBuilder::new(first, previous);
        for (kind, name, at) in packets.iter().rev() {
            index.push(*kind, name, u32::try_from(at.len).unwrap_or(u32::MAX));
        }
        Ok(index)
    }
}
