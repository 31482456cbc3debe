//! One packet: the older system's framing around it, our trailer behind its data, and the check over all of it.
//!
//! Writers append to a `Vec`: [`begin`], then the body straight into the same `Vec`, then one of the `finish`
//! functions - no copy of the values. Workers may finish packets out of order; [`set_sequence`] gives each its number
//! afterwards without reading the packet again.

use super::varint::{Cursor, Malformed};
use super::{Kind, STREAM_VERSION};
use crate::error::{Error, Result};

/// Bytes before the name: name length and data length, big-endian.
pub const FRAME_LEN: usize = 6;
/// Magic number of the trailer's skippable frame: one of the sixteen that LZ4 and Zstandard decoders step over.
pub const TRAILER_MAGIC: u32 = 0x184D_2A57;
/// Bytes of a skippable frame before its content.
const SKIPPABLE_LEN: usize = 8;
/// Version, kind and sequence number at the beginning of every metadata.
const COMMON_LEN: usize = 10;
/// Bytes at the beginning of a trailer that [`read_trailer`] needs.
pub const TRAILER_START_LEN: usize = SKIPPABLE_LEN + COMMON_LEN;
/// Bytes behind the metadata: packet length, trailer length, CRC32C, end mark.
pub const TAIL_LEN: usize = 16;
/// Last four bytes of every packet.
pub const END_MARK: [u8; 4] = *b"LRS1";
/// Body of packets without values. No frame begins so: the older system's reader leaves such packets out as
/// undecodable, where it would take an empty body for an empty tensor and count it in.
pub const NO_VALUES: u8 = 0;
/// Fewest bytes of a trailer.
pub const LEAST_TRAILER: usize = SKIPPABLE_LEN + COMMON_LEN + TAIL_LEN;
/// Fewest bytes of a packet.
pub const LEAST_PACKET: usize = FRAME_LEN + LEAST_TRAILER;

/// A packet that was begun and waits for its body and its end.
#[derive(Debug)]
#[must_use = "an unfinished packet makes the file unreadable"]
pub struct OpenPacket {
    at: usize,
    name_len: usize,
}

fn refused(name: &str, problem: impl std::fmt::Display, remedy: &str) -> Error {
    Error::new("writing the packet", name, problem, remedy)
}

/// Begins a packet at the end of `out`; its body is what the caller appends next.
///
/// # Errors
/// When the name is longer than 65,535 bytes.
pub fn begin(out: &mut Vec<u8>, name: &str) -> Result<OpenPacket> {
    let Ok(name_len) = u16::try_from(name.len()) else {
        return Err(refused(&format!("{:.40}...", name), "the name is longer than 65,535 bytes", ""));
    };
    let at = out.len();
    out.extend_from_slice(&name_len.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(name.as_bytes());
    Ok(OpenPacket { at, name_len: name.len() })
}

/// Ends a packet whose metadata `put` appends. On an error `out` is as long as before [`begin`].
pub(super) fn finish(
    out: &mut Vec<u8>,
    open: OpenPacket,
    kind: Kind,
    sequence: u64,
    put: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), Malformed>,
) -> Result<()> {
    let at = open.at;
    let result = try_finish(out, open, kind, sequence, put);
    if result.is_err() {
        out.truncate(at);
    }
    result
}

fn try_finish(
    out: &mut Vec<u8>,
    OpenPacket { at, name_len }: OpenPacket,
    kind: Kind,
    sequence: u64,
    put: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), Malformed>,
) -> Result<()> {
    let start = out.len();
    let name = |out: &[u8]| {
        String::from_utf8_lossy(out.get(at + FRAME_LEN..at + FRAME_LEN + name_len).unwrap_or_default()).into_owned()
    };
    out.extend_from_slice(&TRAILER_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[STREAM_VERSION, kind as u8]);
    out.extend_from_slice(&sequence.to_le_bytes());
    put(out).map_err(|e| refused(&name(out), e, ""))?;
    let end = out.len() + TAIL_LEN;
    let (packet, trailer) = (end - at, end - start);
    let data = packet - FRAME_LEN - name_len;
    let (Ok(packet_len), Ok(data_len), Ok(trailer_len)) =
        (u32::try_from(packet), u32::try_from(data), u32::try_from(trailer))
    else {
        return Err(refused(&name(out), format!("{packet} bytes, 4 GiB is the most"), "write it in several packets"));
    };
    if let Some(field) = out.get_mut(at + 2..at + FRAME_LEN) {
        field.copy_from_slice(&data_len.to_be_bytes());
    }
    if let Some(field) = out.get_mut(start + 4..start + SKIPPABLE_LEN) {
        field.copy_from_slice(&(trailer_len - SKIPPABLE_LEN as u32).to_le_bytes());
    }
    out.extend_from_slice(&packet_len.to_le_bytes());
    out.extend_from_slice(&trailer_len.to_le_bytes());
    let crc = crc32c::crc32c(out.get(at..).unwrap_or_default());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&END_MARK);
    Ok(())
}

/// Gives a finished packet another sequence number. The CRC is corrected from the number and the few bytes behind it;
/// the body is not read again.
///
/// # Errors
/// When `packet` is not exactly one packet.
pub fn set_sequence(packet: &mut [u8], sequence: u64) -> Result<()> {
    let wrong = || Error::new("numbering", "a packet", "these bytes are not one whole packet", "");
    let Ok(tail) = Tail::read(packet) else { return Err(wrong()) };
    let n = packet.len();
    if tail.packet_len != n || tail.trailer_len < LEAST_TRAILER || tail.trailer_len > n {
        return Err(wrong());
    }
    let at = n - tail.trailer_len + SKIPPABLE_LEN + 2;
    let behind = packet.get(at + 8..n - 8).unwrap_or_default();
    let Some(field) = packet.get(at..at + 8) else { return Err(wrong()) };
    // A CRC is linear: what differs in the eight bytes is carried through the bytes behind them, and added.
    let difference = crc32c::crc32c(field) ^ crc32c::crc32c(&sequence.to_le_bytes());
    let crc = tail.crc ^ crc32c::crc32c_append(difference, behind) ^ crc32c::crc32c_append(0, behind);
    if let Some(field) = packet.get_mut(at..at + 8) {
        field.copy_from_slice(&sequence.to_le_bytes());
    }
    if let Some(field) = packet.get_mut(n - 8..n - 4) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    Ok(())
}

/// The last bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Length of the packet.
    pub packet_len: usize,
    /// Length of its trailer.
    pub trailer_len: usize,
    /// CRC32C of everything before it.
    pub crc: u32,
}

impl Tail {
    /// Reads the last 16 bytes of `bytes`.
    ///
    /// # Errors
    /// When they do not end with the mark, or their lengths cannot be.
    pub fn read(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let Some(tail) = bytes.last_chunk::<TAIL_LEN>() else { return Err(Malformed::new("no end of a packet")) };
        let word = |at: usize| u32::from_le_bytes([tail[at], tail[at + 1], tail[at + 2], tail[at + 3]]);
        if tail[12..] != END_MARK {
            return Err(Malformed::new("no mark at the end of the packet"));
        }
        let found = Self { packet_len: word(0) as usize, trailer_len: word(4) as usize, crc: word(8) };
        let room = found.packet_len.saturating_sub(FRAME_LEN);
        if found.packet_len < LEAST_PACKET || found.trailer_len < LEAST_TRAILER || found.trailer_len > room {
            return Err(Malformed::new("the lengths at the end of the packet do not agree"));
        }
        Ok(found)
    }
}

/// First bytes of a packet, ours or the older system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length of the name.
    pub name_len: usize,
    /// Length of the data.
    pub data_len: usize,
}

impl Frame {
    /// Reads the six bytes.
    #[must_use]
    pub fn read(b: [u8; FRAME_LEN]) -> Self {
        let name_len = usize::from(u16::from_be_bytes([b[0], b[1]]));
        Self { name_len, data_len: u32::from_be_bytes([b[2], b[3], b[4], b[5]]) as usize }
    }

    /// Length of the whole packet.
    #[must_use]
    pub fn packet_len(&self) -> u64 {
        FRAME_LEN as u64 + self.name_len as u64 + self.data_len as u64
    }
}

/// A packet taken apart; its framing and its CRC are right.
#[derive(Clone, Copy, Debug)]
pub struct RawPacket<'a> {
    /// Its name.
    pub name: &'a str,
    /// The data before the trailer; empty where they were not read.
    pub body: &'a [u8],
    /// Their length in the file.
    pub body_len: usize,
    /// Version of the format it was written in.
    pub version: u8,
    /// Its kind as a number: [`Kind::from_u8`].
    pub kind: u8,
    /// Its number in the file.
    pub sequence: u64,
    /// The kind's own metadata.
    pub metadata: &'a [u8],
}

impl<'a> RawPacket<'a> {
    /// Takes apart `packet`, which must be exactly one packet, after checking it.
    ///
    /// # Errors
    /// When it is damaged in any way.
    pub fn read(packet: &'a [u8]) -> std::result::Result<Self, Malformed> {
        let tail = Tail::read(packet)?;
        let checked = packet.get(..packet.len().saturating_sub(8)).unwrap_or_default();
        if crc32c::crc32c(checked) != tail.crc {
            return Err(Malformed::new("the checksum is wrong"));
        }
        Self::read_unchecked(packet)
    }

    /// Takes apart a packet whose CRC was checked before.
    ///
    /// # Errors
    /// When its lengths, its name or the beginning of its trailer are wrong.
    pub fn read_unchecked(packet: &'a [u8]) -> std::result::Result<Self, Malformed> {
        let tail = Tail::read(packet)?;
        let mut bytes = Cursor::new(packet);
        let frame = Frame::read(bytes.array()?);
        if frame.packet_len() != packet.len() as u64 || tail.packet_len != packet.len() {
            return Err(Malformed::new("the lengths of the packet do not agree"));
        }
        let name =
            std::str::from_utf8(bytes.take(frame.name_len)?).map_err(|_| Malformed::new("the name is not UTF-8"))?;
        let body_len = frame.data_len.checked_sub(tail.trailer_len);
        let body = bytes.take(body_len.ok_or_else(|| Malformed::new("the trailer is longer than the data"))?)?;
        let trailer = read_trailer_start(&mut bytes, tail.trailer_len)?;
        let metadata = bytes.take(bytes.len().saturating_sub(TAIL_LEN))?;
        Ok(Self {
            name,
            body,
            body_len: body.len(),
            version: trailer.0,
            kind: trailer.1,
            sequence: trailer.2,
            metadata,
        })
    }
}

/// Version, kind and sequence number from the first 18 bytes of a trailer.
///
/// # Errors
/// When they are not the beginning of a trailer of `trailer_len` bytes.
pub fn read_trailer(start: &[u8], trailer_len: usize) -> std::result::Result<(u8, u8, u64), Malformed> {
    read_trailer_start(&mut Cursor::new(start), trailer_len)
}

fn read_trailer_start(bytes: &mut Cursor<'_>, trailer_len: usize) -> std::result::Result<(u8, u8, u64), Malformed> {
    let (magic, size) = (u32::from_le_bytes(bytes.array()?), u32::from_le_bytes(bytes.array()?));
    if magic != TRAILER_MAGIC || size as usize + SKIPPABLE_LEN != trailer_len {
        return Err(Malformed::new("the trailer does not begin where the packet says"));
    }
    let [version, kind] = bytes.array()?;
    Ok((version, kind, bytes.u64_le()?))
}

#[cfg(test)]
mod tests {
    use super::{Kind, RawPacket, begin, finish, set_sequence};

    fn packet(name: &str, body: &[u8], metadata: &[u8], sequence: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let open = begin(&mut out, name).unwrap();
        out.extend_from_slice(body);
        finish(&mut out, open, Kind::Tensor, sequence, |out| {
            out.extend_from_slice(metadata);
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn a_packet_comes_back_and_no_changed_bit_of_it_does() {
        let bytes = packet("l_out-0", b"body of some length", b"metadata", 7);
        let raw = RawPacket::read(&bytes).unwrap();
        assert_eq!((raw.name, raw.body, raw.metadata), ("l_out-0", &b"body of some length"[..], &b"metadata"[..]));
        assert_eq!((raw.version, raw.kind, raw.sequence), (1, 1, 7));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(RawPacket::read(&changed).is_err(), "bit {bit}");
        }
        for n in 0..bytes.len() {
            assert!(RawPacket::read(&bytes[..n]).is_err());
        }
    }

    #[test]
    fn a_number_given_later_is_as_good_as_one_given_at_once() {
        for metadata in [&b""[..], b"x", &[9; 300], &[1; 100_000]] {
            for (first, second) in [(0, 1), (0, u64::MAX), (u64::MAX, 0), (77, 77), (0, 0x0102_0304_0506_0708)] {
                let mut changed = packet("n", b"body", metadata, first);
                set_sequence(&mut changed, second).unwrap();
                assert_eq!(changed, packet("n", b"body", metadata, second));
            }
        }
        assert!(set_sequence(&mut [], 1).is_err());
        assert!(set_sequence(&mut packet("n", b"", b"", 0)[1..], 1).is_err());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let mut out = b"before".to_vec();
        assert!(begin(&mut out, &"n".repeat(65_536)).is_err());
        let open = begin(&mut out, "n").unwrap();
        let failed = finish(&mut out, open, Kind::Tensor, 0, |_| Err(super::Malformed::new("no")));
        assert_eq!((failed.unwrap_err().subject.as_str(), out.as_slice()), ("n", &b"before"[..]));
    }
}
