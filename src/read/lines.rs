//! Lines of a file with bounded memory: a line longer than the limit is skipped over, and said to be so.

use std::io::{self, BufRead};

/// Longest line that is read. The writer's longest event (a graph node with all its names) stays far below.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// What came before the next line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawLine {
    /// Number of the line, from 1.
    pub number: u64,
    /// Byte offset of its first byte.
    pub offset: u64,
    /// Whether a line break ended it. Only the last line can lack one.
    pub complete: bool,
    /// Whether it was longer than the limit; the buffer then holds its beginning.
    pub too_long: bool,
}

/// Reads lines into one buffer.
#[derive(Debug)]
pub struct RawLines<R> {
    reader: R,
    max: usize,
    number: u64,
    offset: u64,
}

impl<R: BufRead> RawLines<R> {
    /// Lines of `reader`, each at most `max` bytes.
    pub fn new(reader: R, max: usize) -> Self {
        Self { reader, max, number: 0, offset: 0 }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Puts the next line, without its line break, into `buffer`. `None` at the end of the file.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn next_line(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<RawLine>> {
        buffer.clear();
        let mut line = RawLine { number: self.number + 1, offset: self.offset, complete: false, too_long: false };
        loop {
            let available = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if available.is_empty() {
                break;
            }
            let end = available.iter().position(|&b| b == b'\n');
            let text = &available[..end.unwrap_or(available.len())];
            let room = self.max.saturating_sub(buffer.len());
            line.too_long |= text.len() > room;
            buffer.extend_from_slice(&text[..text.len().min(room)]);
            let used = text.len() + usize::from(end.is_some());
            self.reader.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                line.complete = true;
                break;
            }
        }
        if self.offset == line.offset {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::RawLines;

    fn all(bytes: &[u8], max: usize) -> Vec<(Vec<u8>, u64, bool, bool)> {
        // A reader of three bytes at a time, so that lines cross its buffers.
        let mut lines = RawLines::new(std::io::BufReader::with_capacity(3, bytes), max);
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next_line(&mut buffer).unwrap() {
            found.push((buffer.clone(), line.offset, line.complete, line.too_long));
        }
        assert_eq!(lines.offset(), bytes.len() as u64);
        found
    }

    #[test]
    fn only_the_last_line_can_be_incomplete() {
        assert_eq!(all(b"", 9), []);
        assert_eq!(all(b"\n", 9), [(vec![], 0, true, false)]);
        assert_eq!(
            all(b"abcd\n\nef", 9),
            [(b"abcd".to_vec(), 0, true, false), (vec![], 5, true, false), (b"ef".to_vec(), 6, false, false)]
        );
    }

    #[test]
    fn a_line_at_the_limit_is_whole_and_one_above_is_cut_and_said_to_be() {
        assert_eq!(all(b"abcd\nx\n", 4), [(b"abcd".to_vec(), 0, true, false), (b"x".to_vec(), 5, true, false)]);
        assert_eq!(all(b"abcde\nx\n", 4), [(b"abcd".to_vec(), 0, true, true), (b"x".to_vec(), 6, true, false)]);
    }
}
