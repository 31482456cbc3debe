//! LZ4 frames: independent blocks of at most 4 MiB, stored or compressed, as every LZ4 decoder reads them.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::Undecodable;

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];
/// Version 1, independent blocks, no checksums, no content size.
const FLAGS: u8 = 0x60;
/// Largest block, its code in the header, and the header's checksum: the second byte of xxHash32 over the two
/// bytes before it.
const SIZES: [(usize, u8, u8); 4] =
    [(64 << 10, 0x40, 0x82), (256 << 10, 0x50, 0xFB), (1 << 20, 0x60, 0x51), (4 << 20, 0x70, 0x73)];
/// In a block's size: not compressed.
const STORED: u32 = 1 << 31;
/// Bytes before the first block.
const HEADER: usize = 7;

/// Largest block of a frame of `len` bytes: the smallest that holds it all, so that readers need not set aside 4 MiB
/// for a small packet.
fn class(len: usize) -> (usize, u8, u8) {
    SIZES.into_iter().find(|&(size, ..)| len <= size).unwrap_or(SIZES[3])
}

/// Appends `data` as a frame of stored blocks.
pub(super) fn store(data: &[u8], out: &mut Vec<u8>) {
    frame(data, out, |block, out| {
        out.extend_from_slice(&(block.len() as u32 | STORED).to_le_bytes());
        out.extend_from_slice(block);
    });
}

fn frame(data: &[u8], out: &mut Vec<u8>, mut block: impl FnMut(&[u8], &mut Vec<u8>)) {
    let (size, code, check) = class(data.len());
    out.reserve(HEADER + data.len() + 4 * (data.len() / size + 2));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[FLAGS, code, check]);
    for part in data.chunks(size) {
        block(part, out);
    }
    out.extend_from_slice(&[0; 4]);
}

/// Compresses; keeps its tables.
#[derive(Default)]
pub(super) struct Compressor {
    small: Option<CompressTable>,
    large: Option<CompressTable>,
    scratch: Vec<u8>,
}

impl Compressor {
    /// Sets memory aside for the blocks of `bytes`. False if there is none.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let most = get_maximum_output_size(bytes.min(SIZES[3].0));
        self.scratch.try_reserve_exact(most.saturating_sub(self.scratch.len())).is_ok()
    }

    /// Appends `data` as a frame of compressed blocks; a block that does not shrink is stored.
    pub(super) fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) {
        frame(data, out, |block, out| {
            // The small table is the faster one, and the crate would replace it for good on the first large block.
            let table = if block.len() < usize::from(u16::MAX) {
                self.small.get_or_insert_with(CompressTable::small)
            } else {
                self.large.get_or_insert_with(CompressTable::large)
            };
            let most = get_maximum_output_size(block.len());
            if self.scratch.len() < most {
                self.scratch.resize(most, 0);
            }
            match compress_into_with_table(block, &mut self.scratch, table).ok().and_then(|n| self.scratch.get(..n)) {
                Some(packed) if packed.len() < block.len() => {
                    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                    out.extend_from_slice(packed);
                }
                _ => {
                    out.extend_from_slice(&(block.len() as u32 | STORED).to_le_bytes());
                    out.extend_from_slice(block);
                }
            }
        });
    }
}

/// Writes the content of `frame` over `out`, whose length it must have.
pub(super) fn decompress(frame: &[u8], out: &mut [u8]) -> Result<(), Undecodable> {
    let wrong = |what: &str| Undecodable(format!("LZ4 frame: {what}"));
    let header = frame.get(..HEADER).ok_or_else(|| wrong("shorter than its header"))?;
    let known = |&&(_, code, check): &&(usize, u8, u8)| header[5] == code && header[6] == check;
    if header[..4] != MAGIC || header[4] != FLAGS {
        return Err(wrong("not of the form that this codec writes"));
    }
    let &(most, ..) = SIZES.iter().find(known).ok_or_else(|| wrong("damaged header"))?;
    let (mut at, mut done) = (HEADER, 0);
    loop {
        let size = frame.get(at..).and_then(|f| f.first_chunk::<4>()).ok_or_else(|| wrong("ends within a block"))?;
        let size = u32::from_le_bytes(*size);
        at += 4;
        if size == 0 {
            break;
        }
        let len = (size & !STORED) as usize;
        let block = frame.get(at..at + len).ok_or_else(|| wrong("ends within a block"))?;
        at += len;
        let room = out.len() - done;
        let to = out.get_mut(done..done + room.min(most)).unwrap_or_default();
        done += if size & STORED != 0 {
            to.get_mut(..len).ok_or_else(|| wrong("more values than there should be"))?.copy_from_slice(block);
            len
        } else {
            decompress_into(block, to).map_err(|e| wrong(&e.to_string()))?
        };
    }
    match (done == out.len(), at == frame.len()) {
        (true, true) => Ok(()),
        (false, _) => Err(wrong("fewer values than there should be")),
        (true, false) => Err(wrong("bytes behind the end")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        let noise = |n: usize| (0..n).map(|i| ((i * i * 31 + i * 7) >> 3) as u8).collect::<Vec<_>>();
        let text = |n: usize| (0..n).map(|i| b"activation "[i % 11]).collect::<Vec<_>>();
        let mut all = vec![vec![], vec![5]];
        for n in [12, 65_535, 65_536, 65_537, 300_000, (1 << 20) + 1, (9 << 20) + 5] {
            all.push(noise(n));
            all.push(text(n));
        }
        all
    }

    #[test]
    fn another_decoder_reads_both_kinds_of_frame() {
        let mut compressor = Compressor::default();
        for data in samples() {
            let (mut stored, mut packed) = (Vec::new(), Vec::new());
            store(&data, &mut stored);
            compressor.compress(&data, &mut packed);
            for frame in [stored, packed] {
                let mut theirs = Vec::new();
                lz4_flex::frame::FrameDecoder::new(&frame[..]).read_to_end(&mut theirs).unwrap();
                assert!(theirs == data, "{} bytes", data.len());
                let mut ours = vec![1; data.len()];
                decompress(&frame, &mut ours).unwrap();
                assert!(ours == data, "{} bytes", data.len());
            }
        }
    }

    #[test]
    fn stored_frames_cost_little_and_compressed_ones_shrink() {
        let data = vec![7; 100_000];
        let (mut stored, mut packed) = (Vec::new(), Vec::new());
        store(&data, &mut stored);
        Compressor::default().compress(&data, &mut packed);
        assert_eq!(stored.len(), 7 + 4 + 100_000 + 4);
        assert!(packed.len() < 1_000);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let mut frame = Vec::new();
        store(&[1, 2, 3, 4], &mut frame);
        for n in [0, 3, 5] {
            assert!(decompress(&frame, &mut vec![0; n]).is_err(), "{n}");
        }
        for cut in 0..frame.len() {
            assert!(decompress(&frame[..cut], &mut [0; 4]).is_err(), "{cut}");
        }
        frame.push(0);
        assert!(decompress(&frame, &mut [0; 4]).is_err());
    }
}
