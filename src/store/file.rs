//! The stream's file: whole blocks, and its true length after every pause.

use std::io::{Error as IoError, Result as IoResult};

use super::block::Block;
use super::disk::Disk;
use super::limits::{ALIGN, BLOCKS_AHEAD};

/// Appends to a disk in blocks.
#[derive(Debug)]
pub(crate) struct StreamFile {
    disk: Box<dyn Disk>,
    block: Block,
    /// A block could not be written: nothing can follow a hole.
    broken: bool,
    /// The disk is reserved up to here; `None` where that does not work.
    allocated: Option<u64>,
}

impl StreamFile {
    /// Goes on at `offset`; `head` is what stands in the file between the last aligned offset and `offset`.
    pub(crate) fn new(disk: Box<dyn Disk>, size: usize, offset: u64, head: &[u8]) -> IoResult<Self> {
        let block = Block::new(size, offset, head)?;
        let allocated = Some(block.base());
        Ok(Self { disk, block, broken: false, allocated })
    }

    /// How many bytes before `offset` stand in the same aligned unit.
    pub(crate) const fn head_len(offset: u64) -> usize {
        (offset % ALIGN as u64) as usize
    }

    /// Where the next byte goes.
    pub(crate) fn end(&self) -> u64 {
        self.block.end()
    }

    /// Everything before is in the file.
    pub(crate) fn settled(&self) -> u64 {
        self.block.settled()
    }

    /// Appends `bytes`. After an error nothing more is written until [`Self::cut`]; [`Self::settled`] says how far the
    /// file is good.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> IoResult<()> {
        while !bytes.is_empty() {
            bytes = self.block.fill(bytes);
            if self.block.is_full() {
                self.allocate_ahead();
                self.write(|block, disk| block.write_all(disk))?;
                self.block.begin_at(self.block.end());
            }
        }
        Ok(())
    }

    /// Everything appended is in the file after this, and the file ends there.
    pub(crate) fn settle(&mut self) -> IoResult<()> {
        if self.block.is_clean() && !self.broken {
            return Ok(());
        }
        if self.write(Block::write_padded)? {
            // A reader takes zeros at the end for what they are; this is for everybody else. It gives reserved space
            // back as well.
            let end = self.block.end();
            self.disk.set_len(end)?;
            self.allocated = self.allocated.map(|_| end);
        }
        self.block.keep_partial_unit();
        Ok(())
    }

    /// Waits for the disk.
    pub(crate) fn sync(&mut self) -> IoResult<()> {
        self.disk.sync()
    }

    /// The file ends at `offset`, which is at most [`Self::settled`], for good.
    pub(crate) fn cut(&mut self, offset: u64) -> IoResult<()> {
        self.broken = false;
        self.block.begin_at(offset);
        self.disk.set_len(offset)
    }

    fn write<T>(&mut self, how: impl FnOnce(&mut Block, &mut dyn Disk) -> IoResult<T>) -> IoResult<T> {
        if self.broken {
            return Err(IoError::other("a block before could not be written"));
        }
        let result = how(&mut self.block, &mut *self.disk);
        self.broken = result.is_err();
        result
    }

    fn allocate_ahead(&mut self) {
        let end = self.end();
        let ahead = self.block.size() as u64 * BLOCKS_AHEAD;
        if let Some(allocated) = self.allocated
            && end > allocated
        {
            // A disk that is nearly full has room for the block itself, perhaps.
            let start = allocated.max(self.block.base());
            self.allocated = self.disk.allocate(start, end + ahead - start).is_ok().then_some(end + ahead);
        }
    }
}
