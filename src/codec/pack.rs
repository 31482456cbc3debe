//! The lowest bits of 64 values to bytes and back. Halves are merged by shifts until eight words are left, which takes
//! a few vector instructions in plain integer arithmetic: bits of eight values side by side in each word.

/// Values of a block.
pub(super) const BLOCK: usize = 64;

/// Most bits that are merged at a time: eight of them fill a word.
const MOST: usize = 8;

/// Distances, in bits, of the halves merged first, second and third: a block of few values has no upper halves to
/// make room for.
#[inline(always)]
const fn distances(n: usize, width: usize) -> [u32; 3] {
    let width = width as u32;
    let second = if n > BLOCK / 2 { 2 * width } else { width };
    let third = if n > BLOCK / 4 { 2 * second } else { second };
    [width, second, third]
}

/// Bytes of each of the eight words that hold `width` bits (at most [`MOST`]) of `n` values.
#[inline(always)]
const fn word_len(n: usize, width: usize) -> usize {
    (2 * distances(n, width)[2]).div_ceil(8) as usize
}

/// Bytes that [`put`] writes for `n` values of `width` bits.
#[inline(always)]
pub(super) const fn packed_len(n: usize, width: usize) -> usize {
    8 * (width / MOST * word_len(n, MOST) + word_len(n, width % MOST))
}

/// A buffer that is written in whole pieces of which only the beginning counts, so that every copy has a fixed size.
#[derive(Debug, Default)]
pub(super) struct Sink {
    bytes: Vec<u8>,
    len: usize,
    /// What is written next: compilers make vectors of what goes to memory side by side.
    words: [u64; 8],
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

    /// Writes the first `keep` bytes (at most 8) of each word. Straight to where they belong: reading back what was
    /// just written in other pieces stalls processors.
    #[inline(always)]
    fn put_words(&mut self, words: &[u64; 8], keep: usize) {
        self.words = *words;
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(|b| b.first_chunk_mut::<{ BLOCK + 8 }>()) {
            for (i, word) in self.words.iter().enumerate() {
                if let Some(room) = room.get_mut(i * (keep & 15)..).and_then(|b| b.first_chunk_mut::<8>()) {
                    *room = word.to_le_bytes();
                }
            }
        }
        self.len += 8 * keep;
    }

    /// Writes a slice.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.len += bytes.len();
    }
}

/// Writes the lowest `width` bits of the first `n` values; the others are zero.
#[inline(always)]
pub(super) fn put(values: &[u32; BLOCK], n: usize, width: usize, out: &mut Sink) {
    let mut done = 0;
    while done < width {
        let part = (width - done).min(MOST);
        out.put_words(&merge(values, done as u32, n, part), word_len(n, part));
        done += part;
    }
}

/// The `width` bits from `begin` on of all values, in eight words.
#[inline(always)]
fn merge(values: &[u32; BLOCK], begin: u32, n: usize, width: usize) -> [u64; 8] {
    let [first, second, third] = distances(n, width);
    let mask = (1 << width) - 1;
    let mut twos = [0; 32];
    for i in 0..32 {
        twos[i] = (values[i] >> begin) & mask | ((values[i + 32] >> begin) & mask) << first;
    }
    let mut fours = [0; 16];
    for i in 0..16 {
        fours[i] = twos[i] | twos[i + 16] << second;
    }
    let mut eights = [0; 8];
    for i in 0..8 {
        eights[i] = u64::from(fours[i]) | u64::from(fours[i + 8]) << third;
    }
    eights
}

/// Reads `n` values of `width` bits from the beginning of `from`; `false` if it is shorter than [`packed_len`].
#[inline(always)]
#[must_use]
pub(super) fn get(from: &[u8], n: usize, width: usize, values: &mut [u32; BLOCK]) -> bool {
    *values = [0; BLOCK];
    let mut from = from;
    let mut done = 0;
    while done < width {
        let part = (width - done).min(MOST);
        let len = word_len(n, part);
        let Some((own, behind)) = from.split_at_checked(8 * len) else { return false };
        let mut words = [0; 8];
        for (i, word) in words.iter_mut().enumerate() {
            // Eight bytes where there are as many: those behind the word's own are not looked at.
            let at = from.get(i * len..).unwrap_or_default();
            *word = match at.first_chunk::<8>() {
                Some(eight) => u64::from_le_bytes(*eight),
                None => {
                    own.get(i * len..).unwrap_or_default().iter().rev().fold(0, |word, b| word << 8 | u64::from(*b))
                }
            };
        }
        split(&words, done as u32, n, part, values);
        from = behind;
        done += part;
    }
    true
}

/// The inverse of [`merge`]: adds the bits to the values.
#[inline(always)]
fn split(words: &[u64; 8], begin: u32, n: usize, width: usize, values: &mut [u32; BLOCK]) {
    let [first, second, third] = distances(n, width);
    let mask = (1_u32 << width) - 1;
    let mut fours = [0; 16];
    for i in 0..8 {
        fours[i] = words[i] as u32;
        fours[i + 8] = (words[i] >> third) as u32;
    }
    let mut twos = [0; 32];
    for i in 0..16 {
        twos[i] = fours[i];
        twos[i + 16] = fours[i] >> second;
    }
    for i in 0..32 {
        values[i] |= (twos[i] & mask) << begin;
        values[i + 32] |= ((twos[i] >> first) & mask) << begin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_length_comes_back() {
        for width in 0..=24 {
            for n in 1..=BLOCK {
                let value = |i: usize| if i < n { (i as u32 + 1).wrapping_mul(0x9E37_79B9) } else { 0 };
                let values: [u32; BLOCK] = std::array::from_fn(value);
                let mut sink = Sink::default();
                sink.clear(packed_len(n, width));
                put(&values, n, width, &mut sink);
                assert_eq!(sink.written().len(), packed_len(n, width), "{n} of {width}");
                let mut back = [7; BLOCK];
                assert!(get(sink.written(), n, width, &mut back));
                for i in 0..n {
                    assert_eq!(back[i], values[i] & ((1 << width) - 1), "{i} in {n} of {width}");
                }
                let mut longer = sink.written().to_vec();
                longer.extend([0xFF; 9]);
                assert!(get(&longer, n, width, &mut back));
                for i in 0..n {
                    assert_eq!(back[i], values[i] & ((1 << width) - 1), "{i} in {n} of {width}");
                }
                let short = &sink.written()[..sink.written().len().saturating_sub(1)];
                assert!(width == 0 || !get(short, n, width, &mut back));
            }
        }
    }

    #[test]
    fn sizes_fit_the_number_of_values() {
        assert_eq!(packed_len(64, 10), 64 + 16);
        assert_eq!(packed_len(33, 10), 64 + 16);
        assert_eq!(packed_len(32, 10), 32 + 8);
        assert_eq!(packed_len(16, 10), 16 + 8);
    }
}
