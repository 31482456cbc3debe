//! The last checkpoint of an existing stream: where its JSON file says, or, where that is missing, damaged or does not fit the stream, the
//! last whole checkpoint packet, searched from the end. What it says is always taken from the packet, which has a checksum.

use std::fs::File;
use std::io::Result as IoResult;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::segment::Told;
use crate::format::stream::{Content, END_MARK, FRAME_LEN, Frame, Kind, Packet, TAIL_LEN, Tail};

/// Bytes that are searched at once.
const WINDOW: u64 = 1 << 20;

/// Packets of ours that are not tensors are small; a damaged length must not make us allocate.
const LARGEST_NOTE: usize = 64 << 20;

/// A stream that may be resumed.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) checkpoint: Checkpoint,
    /// Length of its packet.
    pub(super) packet_len: u32,
    /// The bytes before the checkpoint's end, in its last aligned unit.
    pub(super) head: Vec<u8>,
}

/// The last checkpoint of the stream at `path`, if it has one.
pub(super) fn find(path: &Path, head_len: fn(u64) -> usize) -> IoResult<Option<Found>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let saved = Checkpoint::load(&checkpoint::path_of(path)).and_then(|c| {
        // It must be this stream's: a checkpoint packet that says the same ends there. The place alone may be that of a packet in another
        // stream of the same host.
        checkpoint_ending_at(&file, c.stream_offset, length).filter(|own| *own == c)
    });
    let Some(checkpoint) = (match saved {
        Some(saved) => Some(saved),
        None => search(&file, length)?,
    }) else {
        return Ok(None);
    };
    let packet_len = length_ending_at(&file, checkpoint.stream_offset).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let mut head = vec![0; head_len(checkpoint.stream_offset)];
    let at = checkpoint.stream_offset - head.len() as u64;
    file.read_exact_at(&mut head, at)?;
    Ok(Some(Found { checkpoint, packet_len, head }))
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

/// From the end, packet by packet; over damage, byte by byte to the next end mark.
fn search(file: &File, length: u64) -> IoResult<Option<Checkpoint>> {
    let mut end = length;
    while end > 0 {
        if let Some(found) = checkpoint_ending_at(file, end, length) {
            return Ok(Some(found));
        }
        // Only framing is checked here: a tensor's values do not matter, what stands before them does.
        end = match length_ending_at(file, end) {
            Some(bytes) => end - bytes as u64,
            None => mark_before(file, end)?,
        };
    }
    Ok(None)
}

/// End of the last end mark that ends before `end`, or 0.
fn mark_before(file: &File, end: u64) -> IoResult<u64> {
    let mut until = end - 1;
    let mut window = vec![0; WINDOW as usize];
    while until >= END_MARK.len() as u64 {
        let from = until.saturating_sub(WINDOW);
        let bytes = window.get_mut(..(until - from) as usize).unwrap_or_default();
        file.read_exact_at(bytes, from)?;
        if let Some(at) = bytes.windows(END_MARK.len()).rposition(|w| w == END_MARK) {
            return Ok(from + (at + END_MARK.len()) as u64);
        }
        if from == 0 {
            break;
        }
        // A mark may lie across the border.
        until = from + END_MARK.len() as u64 - 1;
    }
    Ok(0)
}

/// The chosen tokens of the stream up to `end`, handed to `each` packet by packet; their texts are not in it.
pub(super) fn tokens_before(path: &Path, end: u64, mut each: impl FnMut(&[Told])) -> IoResult<()> {
    let file = File::open(path)?;
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
