//! The last checkpoint of an existing stream: the last whole checkpoint packet, searched from the end back to where the
//! JSON file beside it says that one is; that file may be missing, damaged, of another stream, or older than the
//! stream. What a checkpoint says is always taken from its packet, which has a checksum.

use std::fs::{File, OpenOptions};
use std::io::Result as IoResult;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::limits::{LARGEST_NOTE, MOST_FALSE_MARKS, SEARCH_WINDOW};
use super::tokens::Told;
use crate::format::stream::{Content, END_MARK, FRAME_LEN, Frame, Kind, Packet, TAIL_LEN, Tail};

/// A stream that may be resumed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) checkpoint: Checkpoint,
    /// Length of its packet.
    pub(crate) packet_len: u32,
    /// The bytes before the checkpoint's end, in its last aligned unit.
    pub(crate) head: Vec<u8>,
    pub(crate) behind: Behind,
}

/// What stands behind the checkpoint, and cannot be gone on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Whole packets of values and tokens, and their bytes.
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Bytes behind them that are no whole packet.
    pub(crate) torn: u64,
}

fn open(path: &Path) -> IoResult<File> {
    let flags = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The last checkpoint of the stream at `path`, if it has one.
pub(crate) fn find(path: &Path, head_len: fn(u64) -> usize) -> IoResult<Option<Found>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let saved = Checkpoint::load(&checkpoint::path_of(path)).and_then(|c| {
        // It must be this stream's: a checkpoint packet that says the same ends there. The place alone may be that of a
        // packet in another stream of the same host.
        checkpoint_ending_at(&file, c.stream_offset, length).filter(|own| *own == c)
    });
    // A file that could not be replaced (a full disk) is older than the stream, which has its checkpoints in itself.
    let floor = saved.as_ref().map_or(0, |c| c.stream_offset);
    let Some(checkpoint) = search(&file, length, floor)?.or(saved) else { return Ok(None) };
    let packet_len = length_ending_at(&file, checkpoint.stream_offset).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let mut head = vec![0; head_len(checkpoint.stream_offset)];
    let at = checkpoint.stream_offset - head.len() as u64;
    file.read_exact_at(&mut head, at)?;
    let behind = behind(&file, checkpoint.stream_offset, length)?;
    Ok(Some(Found { checkpoint, packet_len, head, behind }))
}

/// What stands behind `at`.
fn behind(file: &File, mut at: u64, length: u64) -> IoResult<Behind> {
    let mut found = Behind::default();
    let mut frame = [0; FRAME_LEN];
    while at + FRAME_LEN as u64 <= length {
        file.read_exact_at(&mut frame, at)?;
        let packet = Frame::read(frame).packet_len();
        if packet > length - at || length_ending_at(file, at + packet) != usize::try_from(packet).ok() {
            break;
        }
        // Notes about the stream are written again when they are due.
        let notes = [Kind::Header, Kind::Account, Kind::Index, Kind::Checkpoint, Kind::End];
        if !notes.into_iter().any(|kind| is_named(file, at, kind)) {
            found.packets += 1;
            found.bytes += packet;
        }
        at += packet;
    }
    // A block that was written before it was full ends with zeros.
    let mut rest = vec![0; (length - at).min(SEARCH_WINDOW) as usize];
    while at < length {
        let rest = rest.get_mut(..(length - at).min(SEARCH_WINDOW) as usize).unwrap_or_default();
        file.read_exact_at(rest, at)?;
        if rest.iter().any(|b| *b != 0) {
            found.torn = length - at;
            break;
        }
        at += rest.len() as u64;
    }
    Ok(found)
}

/// Length of the packet that seems to end at `end`, if its two ends agree.
fn length_ending_at(file: &File, end: u64) -> Option<usize> {
    let mut tail = [0; TAIL_LEN];
    file.read_exact_at(&mut tail, end.checked_sub(TAIL_LEN as u64)?).ok()?;
    let length = Tail::read(&tail).ok()?.packet_len;
    let start = end.checked_sub(length as u64)?;
    let mut frame = [0; FRAME_LEN];
    file.read_exact_at(&mut frame, start).ok()?;
    (Frame::read(frame).packet_len() == length as u64).then_some(length)
}

/// Name of the packet at `start`.
fn is_named(file: &File, start: u64, kind: Kind) -> bool {
    let want = kind.packet_name().unwrap_or_default().as_bytes();
    let mut name = vec![0; want.len()];
    file.read_exact_at(&mut name, start + FRAME_LEN as u64).is_ok() && name == want
}

fn checkpoint_ending_at(file: &File, end: u64, length: u64) -> Option<Checkpoint> {
    let bytes = length_ending_at(file, end).filter(|&n| end <= length && n <= LARGEST_NOTE)?;
    let start = end - bytes as u64;
    if !is_named(file, start, Kind::Checkpoint) {
        return None;
    }
    let mut packet = vec![0; bytes];
    file.read_exact_at(&mut packet, start).ok()?;
    match Packet::read(&packet).ok()?.content {
        Content::Checkpoint(body) => Checkpoint::from_packet(&body, end),
        _ => None,
    }
}

/// From the end down to `floor`, packet by packet; over damage, byte by byte to the next end mark.
fn search(file: &File, length: u64, floor: u64) -> IoResult<Option<Checkpoint>> {
    let (mut end, mut marks, mut false_marks) = (length, Marks { bytes: Vec::new(), from: 0 }, 0);
    while end > floor && false_marks < MOST_FALSE_MARKS {
        if let Some(found) = checkpoint_ending_at(file, end, length) {
            return Ok(Some(found));
        }
        // Only framing is checked here: a tensor's values do not matter, what stands before them does.
        end = match length_ending_at(file, end) {
            Some(bytes) => end - bytes as u64,
            None => {
                false_marks += 1;
                marks.before(file, end, floor)?
            }
        };
    }
    Ok(None)
}

/// A window of the file, so that end marks next to each other are found by one read.
struct Marks {
    bytes: Vec<u8>,
    from: u64,
}

impl Marks {
    /// End of the last end mark that ends before `end`, or `floor`.
    fn before(&mut self, file: &File, end: u64, floor: u64) -> IoResult<u64> {
        const MARK: u64 = END_MARK.len() as u64;
        let mut until = end - 1;
        while until >= floor + MARK {
            let inside = self.from + MARK <= until && until <= self.from + self.bytes.len() as u64;
            if !inside {
                self.from = until.saturating_sub(SEARCH_WINDOW).max(floor);
                self.bytes.resize((until - self.from) as usize, 0);
                file.read_exact_at(&mut self.bytes, self.from)?;
            }
            let bytes = self.bytes.get(..(until - self.from) as usize).unwrap_or_default();
            if let Some(at) = bytes.windows(END_MARK.len()).rposition(|w| w == END_MARK) {
                return Ok(self.from + at as u64 + MARK);
            }
            // A mark may lie across the border.
            until = self.from + MARK - 1;
        }
        Ok(floor)
    }
}

/// The chosen tokens of the stream up to `end`, handed to `each` packet by packet; their texts are not in it.
pub(crate) fn tokens_before(path: &Path, end: u64, mut each: impl FnMut(&[Told])) -> IoResult<()> {
    let file = open(path)?;
    let mut at = 0;
    while at + FRAME_LEN as u64 <= end {
        let mut frame = [0; FRAME_LEN];
        file.read_exact_at(&mut frame, at)?;
        let length = Frame::read(frame).packet_len();
        if length_ending_at(&file, at + length) != usize::try_from(length).ok() {
            // Damage in the middle. What is behind it cannot be told to be tokens this way.
            break;
        }
        if is_named(&file, at, Kind::Tokens) && length <= LARGEST_NOTE as u64 {
            let mut packet = vec![0; length as usize];
            file.read_exact_at(&mut packet, at)?;
            if let Ok(Packet { content: Content::Tokens(tokens), .. }) = Packet::read(&packet) {
                each(&tokens.into_iter().map(|t| (t, None)).collect::<Vec<_>>());
            }
        }
        at += length;
    }
    Ok(())
}
