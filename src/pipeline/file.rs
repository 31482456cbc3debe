//! The stream's file: whole blocks, each written while the next is filled; its true length after every pause.

use std::io::{Error as IoError, Result as IoResult};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::Shared;
use super::block::{ALIGN, Block};
use super::disk::Disk;
use super::threads;
use crate::error::Result;
use crate::mailbox::{Outbox, mailbox};

/// Blocks that are reserved on the disk ahead of the writes.
const BLOCKS_AHEAD: u64 = 16;

/// A full block on its way to the disk, which nobody else touches meanwhile.
#[derive(Debug)]
struct Flight {
    disk: Box<dyn Disk>,
    block: Block,
}

/// The thread that writes full blocks.
#[derive(Debug)]
struct Behind {
    out: Outbox<Flight>,
    back: Receiver<(Flight, IoResult<()>)>,
    /// The block that is filled next; with the thread while one is away.
    spare: Option<Block>,
}

/// Why nothing can be written any more.
const GONE: &str = "the thread that writes is gone";

/// The disk, here or with the thread.
#[derive(Debug)]
struct Outlet {
    /// With the thread while a block is away, and gone if that thread is.
    disk: Option<Box<dyn Disk>>,
    behind: Option<Behind>,
    /// Up to where the file is good, while a block is away or after it could not be written.
    good: Option<u64>,
}

/// Appends to a disk in blocks.
#[derive(Debug)]
pub(super) struct StreamFile {
    outlet: Outlet,
    block: Block,
    /// The disk is reserved up to here; `None` where that does not work.
    allocated: Option<u64>,
}

impl Outlet {
    /// Waits for the block that is away. An error of its write is told until [`StreamFile::cut`]: nothing can
    /// follow a hole.
    fn land(&mut self) -> IoResult<&mut dyn Disk> {
        if let (None, Some(behind)) = (&self.disk, &mut self.behind)
            && let Ok((flight, result)) = behind.back.recv()
        {
            let settled = flight.block.settled();
            self.disk = Some(flight.disk);
            behind.spare = Some(flight.block);
            self.good = result.is_err().then_some(settled);
            result?;
        }
        match &mut self.disk {
            Some(_) if self.good.is_some() => Err(IoError::other("a block before could not be written")),
            Some(disk) => Ok(&mut **disk),
            None => Err(IoError::other(GONE)),
        }
    }
}

impl StreamFile {
    /// Goes on at `offset`; `head` is what stands in the file between the last aligned offset and `offset`.
    pub(super) fn new(disk: Box<dyn Disk>, size: usize, offset: u64, head: &[u8]) -> IoResult<Self> {
        let block = Block::new(size, offset, head)?;
        let allocated = Some(block.base());
        Ok(Self { outlet: Outlet { disk: Some(disk), behind: None, good: None }, block, allocated })
    }

    /// Full blocks are written by a thread of their own from here on; before, by whoever appends.
    pub(super) fn write_behind(&mut self, shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
        let spare = Block::new(self.block.size(), 0, &[]).ok();
        let (out, flights) = mailbox::<Flight>(1, Duration::ZERO);
        let (landed, back) = bounded(1);
        let thread = threads::spawn(shared, "lri-cap-disk".to_owned(), move || {
            while let Ok(mut flight) = flights.take(None) {
                let result = flight.block.write_all(&mut *flight.disk);
                if landed.send((flight, result)).is_err() {
                    return;
                }
            }
        })?;
        self.outlet.behind = spare.map(|spare| Behind { out, back, spare: Some(spare) });
        Ok(thread)
    }

    /// How many bytes before `offset` stand in the same aligned unit.
    pub(super) const fn head_len(offset: u64) -> usize {
        (offset % ALIGN as u64) as usize
    }

    /// Where the next byte goes.
    pub(super) fn end(&self) -> u64 {
        self.block.end()
    }

    /// Everything before is in the file.
    pub(super) fn settled(&self) -> u64 {
        self.outlet.good.unwrap_or_else(|| self.block.settled())
    }

    /// Whether so many bytes can be appended without the disk.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.block.room() > bytes
    }

    /// Appends `bytes`. An error may be that of a block before; [`Self::settled`] says how far the file is good.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> IoResult<()> {
        while !bytes.is_empty() {
            bytes = self.block.fill(bytes);
            if self.block.is_full() {
                self.outlet.land()?;
                self.allocate_ahead();
                self.send_off()?;
            }
        }
        Ok(())
    }

    /// Everything appended is in the file after this, and the file ends there.
    pub(super) fn settle(&mut self) -> IoResult<()> {
        let disk = self.outlet.land()?;
        if self.block.is_clean() {
            return Ok(());
        }
        if self.block.write_padded(disk)? {
            // A reader takes zeros at the end for what they are; this is for everybody else. It gives reserved space
            // back as well.
            let end = self.block.end();
            disk.set_len(end)?;
            self.allocated = self.allocated.map(|_| end);
        }
        self.block.keep_partial_unit();
        Ok(())
    }

    /// Waits for the disk.
    pub(super) fn sync(&mut self) -> IoResult<()> {
        self.outlet.land()?.sync()
    }

    /// The file ends at `offset`, which is at most [`Self::settled`], for good.
    pub(super) fn cut(&mut self, offset: u64) -> IoResult<()> {
        let _ = self.outlet.land();
        self.outlet.good = None;
        self.block.begin_at(offset);
        self.outlet.land()?.set_len(offset)
    }

    /// The full block goes to the disk, and an empty one takes its place. Nothing is away.
    fn send_off(&mut self) -> IoResult<()> {
        let next = self.block.end();
        if let Some(behind) = &mut self.outlet.behind
            && let Some(mut spare) = behind.spare.take()
        {
            spare.begin_at(next);
            let block = std::mem::replace(&mut self.block, spare);
            self.outlet.good = Some(block.settled());
            let flight = self.outlet.disk.take().map(|disk| Flight { disk, block });
            return flight.and_then(|f| behind.out.put(f).then_some(())).ok_or_else(|| IoError::other(GONE));
        }
        self.block.write_all(self.outlet.land()?)?;
        self.block.begin_at(next);
        Ok(())
    }

    fn allocate_ahead(&mut self) {
        let end = self.end();
        let ahead = self.block.size() as u64 * BLOCKS_AHEAD;
        if let (Some(allocated), Some(disk)) = (self.allocated, &mut self.outlet.disk)
            && end > allocated
        {
            // A disk that is nearly full has room for the block itself, perhaps.
            let start = allocated.max(self.block.base());
            self.allocated = disk.allocate(start, end + ahead - start).is_ok().then_some(end + ahead);
        }
    }
}
