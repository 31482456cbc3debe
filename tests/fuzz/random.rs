//! Numbers from a seed, and what is done to bytes and texts with them.

/// xorshift64*: a fixed sequence, so that a failure can be repeated by its seed.
pub struct Random(u64);

/// Values at which counts, lengths and their sums go wrong.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    63,
    64,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() >> 16) as usize % n }
    }

    /// Once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub fn edge(&mut self) -> u64 {
        let edge = *self.of(&EDGES);
        if self.once_in(4) { edge.wrapping_add(self.below(3) as u64).wrapping_sub(1) } else { edge }
    }

    /// Changes bytes in a few places: values, bits, lengths, order.
    pub fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=*self.of(&[0, 0, 0, 1, 2, 7]) {
            let at = self.below(bytes.len());
            let run = (1 + self.below(8)).min(bytes.len() - at);
            match self.below(9) {
                _ if bytes.is_empty() => bytes.extend(varint(self.edge())),
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => _ = bytes.drain(at..at + run),
                3 => {
                    let new = self.next().to_le_bytes();
                    bytes.splice(at..at, new[..run.min(8)].iter().copied());
                }
                4 => _ = bytes.splice(at..=at, varint(self.edge())),
                5 => bytes[at] = *self.of(&[0, 1, 2, 3, 127, 128, 255]),
                6 => {
                    let from = self.below(bytes.len() - run + 1);
                    bytes.copy_within(from..from + run, at);
                }
                7 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
    }

    /// Changes a text, mostly at its seams.
    pub fn damage_text(&mut self, text: &str, pieces: &[&str]) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=*self.of(&[0, 0, 1, 3]) {
            let at = self.below(chars.len() + 1);
            match self.below(5) {
                0 => _ = chars.splice(at..at, self.of(pieces).chars().collect::<Vec<_>>()),
                1 if at < chars.len() => _ = chars.remove(at),
                2 => _ = chars.splice(at..at, self.edge().to_string().chars().collect::<Vec<_>>()),
                3 => chars.truncate(at),
                _ => chars.insert(
                    at,
                    *self.of(&['-', '@', '*', '?', ':', ',', '+', ' ', '\u{1b}', '\u{0}', '\u{202e}', 'é', '%', '"']),
                ),
            }
        }
        chars.into_iter().collect()
    }
}

/// As the stream's metadata have integers.
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
    out
}
