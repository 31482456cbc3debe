//! Bits of 64 values to bytes and back: whole bytes as planes, the rest eight values to a group, in plain integer arithmetic that compilers
//! turn into vector code.

/// Values of a block.
pub(super) const BLOCK: usize = 64;

/// Bytes that [`put`] writes for `n` values of `width` bits.
#[inline(always)]
pub(super) const fn packed_len(n: usize, width: usize) -> usize {
    width / 8 * n + width % 8 * n.div_ceil(8)
}

/// A buffer that is written in whole pieces of which only the beginning counts, so that every copy has a fixed size.
#[derive(Debug, Default)]
pub(super) struct Sink {
    bytes: Vec<u8>,
    len: usize,
}

impl Sink {
    /// Empties it and makes room for `most` bytes and for the end of the last piece.
    pub(super) fn clear(&mut self, most: usize) {
        self.len = 0;
        if self.bytes.len() < most + 2 * BLOCK {
            self.bytes.resize(most + 2 * BLOCK, 0);
        }
    }

    /// What was written.
    pub(super) fn written(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Writes `piece`, of which the first `keep` bytes count.
    #[inline(always)]
    fn put<const N: usize>(&mut self, piece: &[u8; N], keep: usize) {
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(|b| b.first_chunk_mut::<N>()) {
            *room = *piece;
        }
        self.len += keep;
    }

    /// Writes the first `keep` bytes of each of the first `n` words. Straight to where they belong: reading back what was just written in
    /// other pieces stalls processors.
    #[inline(always)]
    fn put_words(&mut self, words: &[u64; 8], keep: usize, n: usize) {
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(|b| b.first_chunk_mut::<{ BLOCK + 8 }>()) {
            for (i, word) in words.iter().enumerate() {
                if let Some(room) = room.get_mut(i * (keep & 7)..).and_then(|b| b.first_chunk_mut::<8>()) {
                    *room = word.to_le_bytes();
                }
            }
        }
        self.len += n * keep;
    }

    /// Writes a slice.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.len += bytes.len();
    }
}

/// Writes the lowest `width` bits (at most 24) of the first `n` values.
#[inline(always)]
pub(super) fn put(values: &[u32; BLOCK], n: usize, width: usize, out: &mut Sink) {
    let mut shift = 0;
    while shift + 8 <= width {
        out.put(&bytes(values, shift as u32), n);
        shift += 8;
    }
    let rest = width - shift;
    if rest > 0 {
        let words = squeeze(&bytes(values, shift as u32), rest as u32);
        out.put_words(&words, rest, n.div_ceil(8));
    }
}

#[inline(always)]
fn bytes(values: &[u32; BLOCK], shift: u32) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (b, v) in bytes.iter_mut().zip(values) {
        *b = (v >> shift) as u8;
    }
    bytes
}

/// The lowest `width` bits of eight bytes at a time, side by side.
#[inline(always)]
fn squeeze(bytes: &[u8; BLOCK], width: u32) -> [u64; 8] {
    let mut words = [0; 8];
    let keep = 0x0101_0101_0101_0101 * ((1 << width) - 1);
    for (word, eight) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        let x = u64::from_le_bytes(*eight) & keep;
        let x = (x & 0x00FF_00FF_00FF_00FF) | ((x & 0xFF00_FF00_FF00_FF00) >> (8 - width));
        let x = (x & 0x0000_FFFF_0000_FFFF) | ((x & 0xFFFF_0000_FFFF_0000) >> (16 - 2 * width));
        *word = (x & 0x0000_0000_FFFF_FFFF) | ((x & 0xFFFF_FFFF_0000_0000) >> (32 - 4 * width));
    }
    words
}

/// Reads `n` values of `width` bits (at most 24) from the beginning of `from`, which has [`packed_len`] bytes or more; `false` if not.
#[inline(always)]
#[must_use]
pub(super) fn get(from: &[u8], n: usize, width: usize, values: &mut [u32; BLOCK]) -> bool {
    if from.len() < packed_len(n, width) || n > BLOCK || width > 24 {
        return false;
    }
    *values = [0; BLOCK];
    let mut rest = from;
    let mut shift = 0;
    while shift + 8 <= width {
        let (plane, behind) = rest.split_at_checked(n).unwrap_or_default();
        match plane.first_chunk::<BLOCK>() {
            Some(plane) => merge(plane, shift as u32, values),
            None => values.iter_mut().zip(plane).for_each(|(v, b)| *v |= u32::from(*b) << shift),
        }
        rest = behind;
        shift += 8;
    }
    let width = width - shift;
    if width > 0 {
        let mut words = [0; 8];
        for (g, word) in words.iter_mut().enumerate().take(n.div_ceil(8)) {
            let at = rest.get(g * width..).unwrap_or_default();
            *word = match at.first_chunk::<8>() {
                Some(eight) => u64::from_le_bytes(*eight),
                None => at.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b)),
            };
        }
        merge(&spread(&words, width as u32), shift as u32, values);
    }
    true
}

#[inline(always)]
fn merge(bytes: &[u8; BLOCK], shift: u32, values: &mut [u32; BLOCK]) {
    for (v, b) in values.iter_mut().zip(bytes) {
        *v |= u32::from(*b) << shift;
    }
}

/// The inverse of [`squeeze`].
#[inline(always)]
fn spread(words: &[u64; 8], width: u32) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let (one, two, four) = ((1_u64 << width) - 1, (1_u64 << (2 * width)) - 1, (1_u64 << (4 * width)) - 1);
    let (one, two) = (one * 0x0001_0001_0001_0001, two * 0x0000_0001_0000_0001);
    for (eight, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        let x = (word & four) | ((word >> (4 * width)) & four) << 32;
        let x = (x & two) | ((x >> (2 * width)) & two) << 16;
        let x = (x & one) | ((x >> width) & one) << 8;
        *eight = x.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_length_comes_back() {
        let values: [u32; BLOCK] = std::array::from_fn(|i| (i as u32 + 1).wrapping_mul(0x9E37_79B9));
        for width in 0..=24 {
            for n in 1..=BLOCK {
                let mut sink = Sink::default();
                sink.clear(packed_len(n, width));
                put(&values, n, width, &mut sink);
                assert_eq!(sink.written().len(), packed_len(n, width), "{n} of {width}");
                let mut back = [0; BLOCK];
                assert!(get(sink.written(), n, width, &mut back));
                for i in 0..n {
                    assert_eq!(back[i], values[i] & ((1 << width) - 1), "{i} in {n} of {width}");
                }
                let short = &sink.written()[..sink.written().len().saturating_sub(1)];
                assert!(short.len() == sink.written().len() || !get(short, n, width, &mut back));
            }
        }
    }

    #[test]
    fn groups_have_the_first_value_lowest() {
        let mut sink = Sink::default();
        sink.clear(8);
        put(&std::array::from_fn(|i| i as u32 % 8), 8, 3, &mut sink);
        // 7 6 5 4 3 2 1 0, three bits each.
        assert_eq!(sink.written(), 0b111_110_101_100_011_010_001_000_u32.to_le_bytes()[..3].as_ref());
    }
}
