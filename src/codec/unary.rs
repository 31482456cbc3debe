//! Small numbers as runs of zero bits ended by a one. 64 of them are merged pairwise into eight words by shifts,
//! without a loop over bits.

use super::pack::BLOCK;

/// From here on a number is written as this one, and the rest of it elsewhere. One less than a power of two.
pub(super) const ESCAPE: u32 = 15;

/// Order in which the numbers of a block stand in the bits: what merging halves gives.
const ORDER: [u8; BLOCK] = {
    // Lane 0: merged with the one 32 further, then 16, 8 and 4.
    const LANE: [u8; 16] = [0, 32, 16, 48, 8, 40, 24, 56, 4, 36, 20, 52, 12, 44, 28, 60];
    let mut order = [0; BLOCK];
    let mut i = 0;
    while i < BLOCK {
        order[i] = LANE[i % 16] + (i / 16) as u8;
        i += 1;
    }
    order
};

/// Bits, lowest first.
#[derive(Debug, Default)]
pub(super) struct BitSink {
    bytes: Vec<u8>,
    /// Whole bytes written.
    len: usize,
    word: u64,
    /// Bits of `word` in use, below 64.
    used: u32,
}

impl BitSink {
    /// Empties it and makes room for `blocks` blocks.
    pub(super) fn clear(&mut self, blocks: usize) {
        (self.len, self.word, self.used) = (0, 0, 0);
        let most = (blocks * BLOCK * (ESCAPE as usize + 1)).div_ceil(8) + 16;
        if self.bytes.len() < most {
            self.bytes.resize(most, 0);
        }
    }

    /// Everything so far, filled up with zeros to a whole byte.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.store();
        let len = self.len + self.used.div_ceil(8) as usize;
        self.bytes.get(..len).unwrap_or_default()
    }

    #[inline(always)]
    fn store(&mut self) {
        if let Some(room) = self.bytes.get_mut(self.len..).and_then(|b| b.first_chunk_mut::<8>()) {
            *room = self.word.to_le_bytes();
        }
    }

    /// Appends the lowest `n` bits (0 to 64) of `bits`, whose others are zero.
    #[inline(always)]
    fn push(&mut self, bits: u64, n: u32) {
        self.word |= bits << self.used;
        self.store();
        let used = self.used + n;
        // What did not fit; a shift by 64 in two steps.
        let over = (bits >> 1) >> (63 - self.used);
        let full = used >= 64;
        self.word = if full { over } else { self.word };
        self.len += usize::from(full) * 8;
        self.used = used & 63;
    }
}

/// Appends the first `n` numbers (each at most [`ESCAPE`]).
#[inline(always)]
pub(super) fn put(numbers: &[u32; BLOCK], n: usize, out: &mut BitSink) {
    // Codes and their lengths, 16 bits at most. Shift counts are masked to what they are anyway, which makes
    // them one instruction.
    let (mut code, mut len) = ([0_u32; BLOCK], [0_u32; BLOCK]);
    for i in 0..BLOCK {
        code[i] = 1 << (numbers[i] & 31);
        len[i] = numbers[i] + 1;
    }
    if n < BLOCK {
        for i in n..BLOCK {
            (code[i], len[i]) = (0, 0);
        }
    }
    let (mut code2, mut len2) = ([0_u32; 32], [0_u32; 32]);
    for i in 0..32 {
        code2[i] = code[i] | code[i + 32] << (len[i] & 31);
        len2[i] = len[i] + len[i + 32];
    }
    let (mut code4, mut len4) = ([0_u64; 16], [0_u32; 16]);
    for i in 0..16 {
        code4[i] = u64::from(code2[i]) | u64::from(code2[i + 16]) << (len2[i] & 63);
        len4[i] = len2[i] + len2[i + 16];
    }
    let (mut code8, mut len8) = ([0_u64; 8], [0_u32; 8]);
    for i in 0..8 {
        code8[i] = code4[i] | code4[i + 8] << (len4[i] & 63);
        len8[i] = len4[i] + len4[i + 8];
    }
    let (mut code16, mut len16, mut most) = ([0_u64; 4], [0_u32; 4], 0);
    for i in 0..4 {
        code16[i] = code8[i] | code8[i + 4] << (len8[i] & 63);
        len16[i] = len8[i] + len8[i + 4];
        most = most.max(len16[i]);
    }
    // Sixteen numbers nearly always fit into a word. If not, the words above may be wrong, and fours, which always
    // fit, are written.
    if most <= 64 {
        for i in 0..4 {
            out.push(code16[i], len16[i]);
        }
    } else {
        for i in 0..4 {
            for i in [i, i + 8, i + 4, i + 12] {
                out.push(code4[i], len4[i]);
            }
        }
    }
}

/// Where reading stands, in bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitSource<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitSource<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The bytes behind the one that was read last.
    pub(super) fn rest(&self) -> Option<&'a [u8]> {
        self.bytes.get(self.at.div_ceil(8)..)
    }

    /// The bits from here on: at least 57, zeros behind the end.
    #[inline(always)]
    fn peek(&self) -> u64 {
        let bytes = self.bytes.get(self.at / 8..).unwrap_or_default();
        let word = match bytes.first_chunk::<8>() {
            Some(eight) => u64::from_le_bytes(*eight),
            None => bytes.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b)),
        };
        word >> (self.at % 8)
    }
}

/// Reads `n` numbers and returns the bits that any of them has; `None` if the bits end before, or are of another code.
#[inline(always)]
pub(super) fn get(from: &mut BitSource<'_>, n: usize, numbers: &mut [u8; BLOCK]) -> Option<u32> {
    if n == BLOCK {
        return read(from, n, &ORDER, numbers);
    }
    let mut order = [0; BLOCK];
    for (to, i) in order.iter_mut().zip(ORDER.iter().filter(|i| usize::from(**i) < n)) {
        *to = *i;
    }
    read(from, n.min(BLOCK), &order, numbers)
}

#[inline(always)]
fn read(from: &mut BitSource<'_>, n: usize, order: &[u8; BLOCK], numbers: &mut [u8; BLOCK]) -> Option<u32> {
    let (mut i, mut bits) = (0, 0);
    while i < n {
        let mut word = from.peek();
        // A run that goes on behind the word is read again with the next. Ends within a word:
        let ends = (word.count_ones() as usize).min(n - i);
        if ends == 0 {
            return None;
        }
        let mut begin = 0;
        for _ in 0..ends {
            let end = word.trailing_zeros();
            let run = end.wrapping_sub(begin);
            numbers[usize::from(order[i % BLOCK]) % BLOCK] = run as u8;
            bits |= run;
            begin = end + 1;
            word &= word.wrapping_sub(1);
            i += 1;
        }
        from.at += begin as usize;
    }
    (bits <= ESCAPE).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_for_every_length() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8).trailing_zeros().min(ESCAPE)
        };
        for n in 1..=BLOCK {
            let blocks: Vec<[u32; BLOCK]> = (0..9).map(|_| std::array::from_fn(|_| random())).collect();
            let mut sink = BitSink::default();
            sink.clear(blocks.len());
            blocks.iter().for_each(|b| put(b, n, &mut sink));
            let mut bytes = sink.finish().to_vec();
            let bits: u32 = blocks.iter().flat_map(|b| &b[..n]).map(|x| x + 1).sum();
            assert_eq!(bytes.len(), bits.div_ceil(8) as usize);
            bytes.push(0xAA);
            let mut source = BitSource::new(&bytes);
            for block in &blocks {
                let mut back = [0; BLOCK];
                let any = block[..n].iter().fold(0, |any, x| any | x);
                assert_eq!(get(&mut source, n, &mut back), Some(any));
                for i in 0..n {
                    assert_eq!(u32::from(back[i]), block[i], "{i} of {n}");
                }
            }
            assert_eq!(source.rest(), Some(&[0xAA][..]));
        }
    }

    #[test]
    fn the_longest_codes_fill_their_words() {
        let mut sink = BitSink::default();
        sink.clear(1);
        put(&[ESCAPE; BLOCK], BLOCK, &mut sink);
        assert_eq!(sink.finish(), [0x00, 0x80].repeat(BLOCK));
    }

    #[test]
    fn runs_that_are_too_long_and_ends_that_are_too_early_are_errors() {
        let mut numbers = [0; BLOCK];
        for (bytes, n) in [(&[0, 0, 1][..], 1), (&[0xFF], 9), (&[], 1), (&[0; 99], 3)] {
            assert_eq!(get(&mut BitSource::new(bytes), n, &mut numbers), None, "{bytes:?}");
        }
        assert_eq!(get(&mut BitSource::new(&[0xFF]), 8, &mut numbers), Some(0));
    }
}
