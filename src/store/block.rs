//! A block of the stream's file: bytes in aligned memory, where they go, and what of them is in the file already.

use std::io::{ErrorKind, Result as IoResult};

use super::disk::Disk;
use super::limits::ALIGN;
use crate::host::Pages;

/// Bytes that go to the disk in one write, or in more where a pause comes between.
#[derive(Debug)]
pub(crate) struct Block {
    pages: Pages,
    /// Offset in the file, aligned.
    base: u64,
    /// Bytes that are here.
    filled: usize,
    /// Bytes of these that are in the file.
    clean: usize,
}

impl Block {
    /// A block that goes on at `offset`, behind `head`, which stands in the file since the last aligned offset.
    pub(crate) fn new(size: usize, offset: u64, head: &[u8]) -> IoResult<Self> {
        let mut pages = Pages::new(size)?;
        if let Some(start) = pages.get_mut(..head.len()) {
            start.copy_from_slice(head);
        }
        Ok(Self { pages, base: offset - head.len() as u64, filled: head.len(), clean: head.len() })
    }

    pub(crate) fn size(&self) -> usize {
        self.pages.len()
    }

    /// Where it begins.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// Where the next byte goes.
    pub(crate) const fn end(&self) -> u64 {
        self.base + self.filled as u64
    }

    /// Everything before is in the file, if all blocks before are.
    pub(crate) const fn settled(&self) -> u64 {
        self.base + self.clean as u64
    }

    /// How many bytes it still takes.
    pub(crate) fn room(&self) -> usize {
        self.size() - self.filled
    }

    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Nothing is to be written.
    pub(crate) const fn is_clean(&self) -> bool {
        self.clean == self.filled
    }

    /// Takes in what there is room for; the rest.
    pub(crate) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(self.room().min(bytes.len()));
        if let Some(space) = self.pages.get_mut(self.filled..self.filled + now.len()) {
            space.copy_from_slice(now);
        }
        self.filled += now.len();
        later
    }

    /// Empty, and goes to `offset`.
    pub(crate) const fn begin_at(&mut self, offset: u64) {
        (self.base, self.filled, self.clean) = (offset, 0, 0);
    }

    /// Writes it, up to the last byte.
    pub(crate) fn write_all(&mut self, disk: &mut dyn Disk) -> IoResult<()> {
        self.write(disk, self.filled)
    }

    /// Writes it, with zeros up to the next aligned offset where the disk wants that. True if there are any.
    pub(crate) fn write_padded(&mut self, disk: &mut dyn Disk) -> IoResult<bool> {
        let padded = if disk.is_direct() { self.filled.next_multiple_of(ALIGN) } else { self.filled };
        if let Some(padding) = self.pages.get_mut(self.filled..padded) {
            padding.fill(0);
        }
        self.write(disk, padded)?;
        Ok(padded > self.filled)
    }

    /// What is written and complete need not be written again; the last, partial unit is, when more follows.
    pub(crate) fn keep_partial_unit(&mut self) {
        let whole = self.filled - self.filled % ALIGN;
        self.pages.copy_within(whole..self.filled, 0);
        self.base += whole as u64;
        self.filled -= whole;
        self.clean = self.filled;
    }

    /// Writes up to `until`, but what is in the file already in whole units.
    fn write(&mut self, disk: &mut dyn Disk, until: usize) -> IoResult<()> {
        let mut at = if disk.is_direct() { self.clean - self.clean % ALIGN } else { self.clean };
        while at < until {
            let bytes = self.pages.get(at..until).unwrap_or_default();
            match disk.write_at(bytes, self.base + at as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n;
                    self.clean = self.clean.max(at.min(self.filled));
                    if disk.is_direct() {
                        // A short write that ends within a unit: from its start again.
                        at -= if at < until { at % ALIGN } else { 0 };
                        if n < ALIGN && at < until {
                            disk.leave_direct();
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && disk.is_direct() => disk.leave_direct(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
