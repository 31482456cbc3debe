//! Packets of the older system: name and data, no description, no check. Type and codec of the values are told by the
//! caller or guessed from the first bytes.

use std::io::{self, Read, Seek};

use super::account::{Damage, Location};
use super::catalog::name_of;
use super::reader::Form;
use super::walk::{self, Check, Ends, Step};
use super::window::Window;
use crate::format::stream::{
    END_MARK, FRAME_LEN, Frame, Kind, LEAST_PACKET, Malformed, NO_VALUES, TAIL_LEN, TRAILER_MAGIC, Tail, most_bytes,
};

/// Packets looked at to tell the older system's file from a damaged one of ours.
const LOOKED_AT: usize = 10_000;
/// Bytes at the beginning of a file that are searched for our marks.
const SEARCHED: u64 = 1 << 20;
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How the data of a packet are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyCodec {
    /// Not at all.
    Raw,
    /// One LZ4 frame.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

impl LegacyCodec {
    /// The codec of a name that the older system's presets use: `none`, `lz4`, `zstd`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::Raw),
            "lz4" => Some(Self::Lz4),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The codec that the first bytes of the data show.
    #[must_use]
    pub fn sniff(data: &[u8]) -> Self {
        match data.first_chunk() {
            Some(&LZ4_MAGIC) => Self::Lz4,
            Some(&ZSTD_MAGIC) => Self::Zstd,
            _ => Self::Raw,
        }
    }
}

/// A packet without description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyPacket<'a> {
    /// Name of the module; empty for the root.
    pub name: &'a str,
    /// The data as they are in the file.
    pub data: &'a [u8],
}

impl<'a> LegacyPacket<'a> {
    pub(super) fn read(packet: &'a [u8]) -> Result<Self, Malformed> {
        let wrong = || Malformed("the packet is cut".to_owned());
        let (frame, rest) = packet.split_first_chunk::<FRAME_LEN>().ok_or_else(wrong)?;
        let (name, data) = rest.split_at_checked(Frame::read(*frame).name_len).ok_or_else(wrong)?;
        let name = std::str::from_utf8(name).map_err(|_| Malformed("the name is not UTF-8".to_owned()))?;
        Ok(Self { name, data })
    }

    /// Appends the values as they were written, by `codec` or by what the data look like.
    ///
    /// # Errors
    /// When the data cannot be decompressed.
    pub fn decode(&self, codec: Option<LegacyCodec>, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let failed = |e: io::Error| Malformed(format!("the data cannot be decompressed: {e}"));
        let (before, most) = (out.len(), most_bytes(self.data.len()));
        let result = match codec.unwrap_or_else(|| LegacyCodec::sniff(self.data)) {
            LegacyCodec::Raw => {
                out.extend_from_slice(self.data);
                Ok(self.data.len())
            }
            LegacyCodec::Lz4 => read_all(lz4_flex::frame::FrameDecoder::new(self.data), most, out),
            LegacyCodec::Zstd => {
                zstd::stream::read::Decoder::new(self.data).and_then(|d| read_all(d.single_frame(), most, out))
            }
        };
        match result {
            Ok(n) if n as u64 > most => {
                out.truncate(before);
                let stored = self.data.len();
                Err(Malformed(format!(
                    "{stored} bytes decompress to more than {most}, the most that this library reads of them"
                )))
            }
            Ok(_) => Ok(()),
            Err(e) => {
                out.truncate(before);
                Err(failed(e))
            }
        }
    }
}

/// One byte more than `most` says that there are more.
fn read_all(reader: impl Read, most: u64, out: &mut Vec<u8>) -> io::Result<usize> {
    reader.take(most + 1).read_to_end(out)
}

/// What stands at `offset` of a file of the older system.
pub(super) fn step<R: Read + Seek>(window: &mut Window<R>, offset: u64) -> io::Result<Step> {
    if offset >= window.len() {
        return Ok(Step::End);
    }
    let rest = Location { offset, len: window.len() - offset };
    let damage = |at, cut, reason: &str| Ok(Step::Damage(Damage { at, cut, reason: reason.to_owned() }));
    let Some(frame) = window.look(offset, FRAME_LEN)?.and_then(|f| f.first_chunk()) else {
        return damage(rest, true, "the last packet was not written to its end");
    };
    let frame = Frame::read(*frame);
    if frame.name_len == 0 && frame.data_len == 0 {
        // An empty packet is six zero bytes; only zeros to the end are none.
        let end = walk::written_end(window)?;
        if end <= offset {
            return Ok(Step::Unwritten(rest));
        }
    }
    if frame.packet_len() > rest.len {
        return damage(rest, true, "the last packet was not written to its end");
    }
    let Some(name) = window.look(offset + FRAME_LEN as u64, frame.name_len)? else {
        return damage(rest, true, "the last packet was not written to its end");
    };
    if std::str::from_utf8(name).is_err() {
        // Without marks there is no way to find the next packet.
        return damage(rest, false, "the name is not UTF-8; the rest of the file cannot be read");
    }
    let at = Location { offset, len: frame.packet_len() };
    Ok(Step::Packet(Ends { at, name_len: frame.name_len, version: 0, kind: 0, sequence: 0 }))
}

/// Which form a file has. Ours, however damaged, must never be taken for the older system's, whose packets nothing
/// checks: one sign of ours decides.
pub(super) fn detect<R: Read + Seek>(window: &mut Window<R>) -> io::Result<Form> {
    if named_as_ours(window)? || walk::packet_at(window, 0, Check::Ends)?.is_ok() {
        return Ok(Form::Described);
    }
    let mut at = 0;
    for _ in 0..LOOKED_AT {
        match step(window, at)? {
            Step::Packet(found) if could_be_legacy(window, &found)? => at = found.at.end(),
            Step::End if at > 0 => return Ok(Form::Legacy),
            _ => {
                // A file of the older system may be cut as well. It has none of our marks, but for one in
                // 2,000 by chance.
                let legacy = at > 0 && !has_marks(window)?;
                return Ok(if legacy { Form::Legacy } else { Form::Described });
            }
        }
    }
    Ok(Form::Legacy)
}

/// Whether anything of ours stands in the beginning of the file.
fn has_marks<R: Read + Seek>(window: &mut Window<R>) -> io::Result<bool> {
    let n = window.len().min(SEARCHED) as usize;
    let bytes = window.get(0, n)?.unwrap_or_default();
    Ok(bytes.windows(4).any(|w| w == END_MARK || w == TRAILER_MAGIC.to_le_bytes()))
}

/// Whether the first packet has the name of our header, or what is left of it.
fn named_as_ours<R: Read + Seek>(window: &mut Window<R>) -> io::Result<bool> {
    let name = Kind::Header.packet_name().unwrap_or_default().as_bytes();
    let n = window.len().saturating_sub(FRAME_LEN as u64).min(name.len() as u64) as usize;
    Ok(n > 0 && window.look(FRAME_LEN as u64, n)? == name.get(..n))
}

/// Whether a packet is named as a module may be, has data, and these do not begin or end as ours do.
fn could_be_legacy<R: Read + Seek>(window: &mut Window<R>, found: &Ends) -> io::Result<bool> {
    let name = name_of(window, found)?;
    let (data, end) = (found.at.offset + (FRAME_LEN + found.name_len) as u64, found.at.end());
    if name.chars().any(char::is_control) || data == end {
        return Ok(false);
    }
    let [a, b, c, d] = TRAILER_MAGIC.to_le_bytes();
    if end - data >= 5 && window.look(data, 5)? == Some(&[NO_VALUES, a, b, c, d]) {
        return Ok(false);
    }
    let long = found.at.len >= LEAST_PACKET as u64;
    Ok(!long || window.look(end - TAIL_LEN as u64, TAIL_LEN)?.is_none_or(|tail| Tail::read(tail).is_err()))
}
