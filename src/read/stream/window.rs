//! A part of a file in memory: one packet, or some reading ahead. The one place that reads.

use std::io::{self, Read, Seek, SeekFrom};

/// Bytes read at once where less is asked for.
const AHEAD: usize = 256 << 10;
/// The same for looks at the edges of packets.
const LOOK_AHEAD: usize = 4 << 10;
/// Memory beyond this is given back once it is not needed.
const KEPT: usize = 64 << 20;

/// A file with a window on it, and a small one beside it for looks elsewhere.
#[derive(Debug)]
pub(super) struct Window<R> {
    reader: R,
    /// Length of the file.
    len: u64,
    /// Offset behind the last byte that is not zero, once it was looked for.
    pub(super) written: Option<u64>,
    main: Part,
    side: Part,
}

/// Bytes of the file that are in memory.
#[derive(Debug, Default)]
struct Part {
    at: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` are of the file.
    filled: usize,
}

impl<R: Read + Seek> Window<R> {
    pub(super) fn new(mut reader: R) -> io::Result<Self> {
        let len = reader.seek(SeekFrom::End(0))?;
        Ok(Self { reader, len, written: None, main: Part::default(), side: Part::default() })
    }

    /// Length of the file when it was opened.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// The `n` bytes at `offset`, `None` where the file ends before.
    pub(super) fn get(&mut self, offset: u64, n: usize) -> io::Result<Option<&[u8]>> {
        let Some(room) = self.room(offset, n) else { return Ok(None) };
        if !self.main.holds(offset, n) {
            self.main.fill(&mut self.reader, offset, n.max(room.min(AHEAD)))?;
        }
        Ok(self.main.slice(offset, n))
    }

    /// The same for a few bytes elsewhere, without giving up what [`Self::get`] gave.
    pub(super) fn look(&mut self, offset: u64, n: usize) -> io::Result<Option<&[u8]>> {
        let Some(room) = self.room(offset, n) else { return Ok(None) };
        if self.main.holds(offset, n) {
            return Ok(self.main.slice(offset, n));
        }
        if !self.side.holds(offset, n) {
            self.side.fill(&mut self.reader, offset, n.max(room.min(LOOK_AHEAD)))?;
        }
        Ok(self.side.slice(offset, n))
    }

    /// Bytes of the file behind `offset`, `None` if they are fewer than `n`.
    fn room(&self, offset: u64, n: usize) -> Option<usize> {
        let room = self.len.checked_sub(offset).filter(|&room| room >= n as u64)?;
        Some(usize::try_from(room).unwrap_or(usize::MAX))
    }
}

impl Part {
    fn holds(&self, offset: u64, n: usize) -> bool {
        offset >= self.at && (offset - self.at).saturating_add(n as u64) <= self.filled as u64
    }

    /// `None` as well where the file has become shorter since it was opened.
    fn slice(&self, offset: u64, n: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.at)?).ok()?;
        self.bytes.get(..self.filled)?.get(from..from.checked_add(n)?)
    }

    fn fill<R: Read + Seek>(&mut self, reader: &mut R, offset: u64, want: usize) -> io::Result<()> {
        // What is there already is kept: packets follow each other.
        let kept = if self.holds(offset, 0) {
            let from = (offset - self.at) as usize;
            self.bytes.copy_within(from..self.filled, 0);
            self.filled - from
        } else {
            0
        };
        (self.at, self.filled) = (offset, kept);
        if self.bytes.len() > KEPT && want < KEPT {
            self.bytes.truncate(want.max(kept));
            self.bytes.shrink_to_fit();
        }
        if self.bytes.len() < want {
            self.bytes.resize(want, 0);
        }
        reader.seek(SeekFrom::Start(offset + kept as u64))?;
        while let Some(rest) = self.bytes.get_mut(self.filled..want).filter(|rest| !rest.is_empty()) {
            match reader.read(rest) {
                Ok(0) => break,
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Window;

    #[test]
    fn any_order_gives_the_bytes_of_the_file() {
        let file: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(7919) >> 5) as u8).collect();
        let mut window = Window::new(std::io::Cursor::new(&file)).unwrap();
        let mut x = 1u64;
        for _ in 0..2000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (offset, n) = ((x >> 20) % 1_000_100, (x >> 44) as usize % 5000);
            let whole = file.get(offset as usize..offset as usize + n);
            let got = if x & (1 << 40) == 0 { window.get(offset, n) } else { window.look(offset, n) };
            assert_eq!(got.unwrap(), whole, "{n} at {offset}");
        }
        assert_eq!(window.get(u64::MAX, 1).unwrap(), None);
        assert_eq!(window.get(0, file.len()).unwrap(), Some(&file[..]));
    }
}
