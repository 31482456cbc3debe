//! Steps through a file: where the next packet is, and after damage where the next whole one is.

use std::io::{Read, Result, Seek};

use super::account::{Damage, Location};
use super::window::Window;
use crate::format::stream::{
    END_MARK, FRAME_LEN, Frame, LEAST_PACKET, Malformed, RawPacket, TAIL_LEN, TRAILER_START_LEN, Tail, read_trailer,
};

/// Bytes searched at once for the next packet: at first, and at most. Twice as many each time, so that a search costs
/// what it covers.
const SEARCHED_FIRST: u64 = 256;
const SEARCHED: u64 = 1 << 20;

/// How closely a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Every byte, by the CRC.
    Whole,
    /// Both ends only; the rest is not read.
    Ends,
}

/// What both ends of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub at: Location,
    pub name_len: usize,
    pub version: u8,
    pub kind: u8,
    pub sequence: u64,
}

/// What stands at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Packet(Ends),
    Damage(Damage),
    Unwritten(Location),
    End,
}

/// Looks at what stands at `offset`.
pub(super) fn step<R: Read + Seek>(window: &mut Window<R>, offset: u64, check: Check) -> Result<Step> {
    if offset >= window.len() {
        return Ok(Step::End);
    }
    match packet_at(window, offset, check)? {
        Ok(ends) => Ok(Step::Packet(ends)),
        Err(problem) => behind_damage(window, offset, problem),
    }
}

/// The packet at `offset`, or why there is none.
pub(super) fn packet_at<R: Read + Seek>(
    window: &mut Window<R>,
    offset: u64,
    check: Check,
) -> Result<std::result::Result<Ends, Malformed>> {
    let wrong = |problem: &str| Ok(Err(Malformed(problem.to_owned())));
    let frame = window.look(offset, FRAME_LEN)?.and_then(|f| f.first_chunk());
    let Some(frame) = frame else { return wrong("the file ends within a packet") };
    let frame = Frame::read(*frame);
    let len = frame.packet_len();
    if len > window.len() - offset {
        return wrong("the packet is longer than the rest of the file");
    }
    let Ok(length) = usize::try_from(len) else { return wrong("the packet is longer than memory") };
    if length < LEAST_PACKET {
        return wrong("the packet is too short");
    }
    // The end first: a wrong length is found without reading what it claims.
    let tail = match ends(window, offset, length, frame)? {
        Ok(ends) => ends,
        Err(problem) => return Ok(Err(problem)),
    };
    if check == Check::Whole {
        let Some(packet) = window.get(offset, length)? else { return wrong("the file ends within a packet") };
        if let Err(problem) = RawPacket::read(packet) {
            return Ok(Err(problem));
        }
    }
    Ok(Ok(tail))
}

fn ends<R: Read + Seek>(
    window: &mut Window<R>,
    offset: u64,
    length: usize,
    frame: Frame,
) -> Result<std::result::Result<Ends, Malformed>> {
    let end = offset + length as u64;
    let Some(bytes) = window.look(end - TAIL_LEN as u64, TAIL_LEN)? else {
        return Ok(Err(Malformed("the file ends within a packet".to_owned())));
    };
    let tail = match Tail::read(bytes) {
        Ok(tail) if tail.packet_len == length && tail.trailer_len <= frame.data_len => tail,
        Ok(_) => return Ok(Err(Malformed("the lengths of the packet do not agree".to_owned()))),
        Err(problem) => return Ok(Err(problem)),
    };
    let Some(bytes) = window.look(end - tail.trailer_len as u64, TRAILER_START_LEN)? else {
        return Ok(Err(Malformed("the file ends within a packet".to_owned())));
    };
    Ok(read_trailer(bytes, tail.trailer_len).map(|(version, kind, sequence)| Ends {
        at: Location { offset, len: length as u64 },
        name_len: frame.name_len,
        version,
        kind,
        sequence,
    }))
}

/// The damaged range that begins at `offset`: up to the next whole packet, or to the end of what was written.
fn behind_damage<R: Read + Seek>(window: &mut Window<R>, offset: u64, problem: Malformed) -> Result<Step> {
    let (next, written) = search(window, offset)?;
    let range = |end: u64| Location { offset, len: end - offset };
    if let Some(next) = next {
        return Ok(Step::Damage(Damage { at: range(next.offset), cut: false, reason: problem.0 }));
    }
    if written == offset {
        return Ok(Step::Unwritten(range(window.len())));
    }
    let frame = window.look(offset, FRAME_LEN)?.and_then(|f| f.first_chunk()).map(|f| Frame::read(*f));
    let cut = frame.is_none_or(|frame| offset.saturating_add(frame.packet_len()) > written);
    let reason = if cut { "the last packet was not written to its end".to_owned() } else { problem.0 };
    Ok(Step::Damage(Damage { at: range(written), cut, reason }))
}

/// The first whole packet that begins behind `offset`. Without one: the offset behind the last byte that is not zero.
///
/// Ends that look right and whose checksum is wrong cost reading what they claim. Damaged packets do not overlap,
/// crafted ones may lie in each other, thousands deep: what is read for nothing stays below twice what was searched,
/// and ends beyond that are passed over.
pub(super) fn search<R: Read + Seek>(window: &mut Window<R>, offset: u64) -> Result<(Option<Location>, u64)> {
    let mut written = offset;
    let (mut at, mut most, mut in_vain) = (offset, SEARCHED_FIRST, 0_u64);
    while at < window.len() {
        let n = (window.len() - at).min(most);
        let Some(bytes) = window.get(at, n as usize)? else { break };
        let last = bytes.iter().rposition(|&b| b != 0);
        written = last.map_or(written, |last| at + last as u64 + 1);
        for mark in marks(bytes.get(..last.map_or(0, |last| last + 1)).unwrap_or_default(), at) {
            let end = mark + END_MARK.len() as u64;
            let Some(found) = ending_at(window, end, Check::Ends)?.filter(|f| f.at.offset > offset) else { continue };
            if in_vain.saturating_add(found.at.len) > 2 * (end - offset) {
                continue;
            }
            if packet_at(window, found.at.offset, Check::Whole)?.is_ok() {
                return Ok((Some(found.at), written));
            }
            in_vain += found.at.len;
        }
        if at + n >= window.len() {
            break;
        }
        // A mark may stand across two reads.
        at += n - (END_MARK.len() as u64 - 1);
        most = (most * 2).min(SEARCHED);
    }
    Ok((None, written))
}

/// Offsets of the end marks in `bytes`, which stand at `at`.
fn marks(bytes: &[u8], at: u64) -> Vec<u64> {
    bytes.windows(END_MARK.len()).enumerate().filter(|(_, w)| *w == END_MARK).map(|(i, _)| at + i as u64).collect()
}

/// The packet whose last byte stands before `end`.
pub(super) fn ending_at<R: Read + Seek>(window: &mut Window<R>, end: u64, check: Check) -> Result<Option<Ends>> {
    let Some(at) = end.checked_sub(TAIL_LEN as u64) else { return Ok(None) };
    let Some(Ok(tail)) = window.look(at, TAIL_LEN)?.map(Tail::read) else { return Ok(None) };
    let Some(start) = end.checked_sub(tail.packet_len as u64) else { return Ok(None) };
    Ok(packet_at(window, start, check)?.ok().filter(|found| found.at.end() == end))
}

/// Offset behind the last byte of the file that is not zero. It is looked for once.
pub(super) fn written_end<R: Read + Seek>(window: &mut Window<R>) -> Result<u64> {
    if let Some(end) = window.written {
        return Ok(end);
    }
    let mut end = window.len();
    while end > 0 {
        let n = end.min(SEARCHED);
        let Some(bytes) = window.look(end - n, n as usize)? else { break };
        if let Some(last) = bytes.iter().rposition(|&b| b != 0) {
            end = end - n + last as u64 + 1;
            break;
        }
        end -= n;
    }
    window.written = Some(end);
    Ok(end)
}

/// The last packet that ends at or before `end`.
pub(super) fn last_before<R: Read + Seek>(window: &mut Window<R>, mut end: u64, check: Check) -> Result<Option<Ends>> {
    if let Some(found) = ending_at(window, end, check)? {
        return Ok(Some(found));
    }
    let mut most = SEARCHED_FIRST;
    while end > 0 {
        let n = end.min(most);
        let start = end - n;
        let Some(bytes) = window.look(start, n as usize)? else { return Ok(None) };
        for mark in marks(bytes, start).into_iter().rev() {
            if let Some(found) = ending_at(window, mark + END_MARK.len() as u64, check)? {
                return Ok(Some(found));
            }
        }
        end = if start == 0 { 0 } else { start + END_MARK.len() as u64 - 1 };
        most = (most * 2).min(SEARCHED);
    }
    Ok(None)
}
