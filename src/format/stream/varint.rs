//! Integers of the packets' metadata: LEB128 varints, zigzag for signed ones, strings with their length; read
//! from untrusted bytes.

/// Why bytes are not what the format says. The reader turns it into a damaged range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// Appends `value`, seven bits a byte, least significant first.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value: 0, -1, 1, -2 become 0, 1, 2, 3.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, zigzag(value));
}

/// Appends the length and the bytes of `text`.
pub(super) fn put_str(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Small magnitudes to small numbers.
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Back from [`zigzag`].
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Bytes being read from the front.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are left.
    pub(super) const fn len(&self) -> usize {
        self.rest.len()
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(|| Malformed::new("metadata ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| Malformed::new("metadata ends early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn f32(&mut self) -> Result<f32, Malformed> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64_le(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::new("an integer is longer than 64 bits"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        Ok(unzigzag(self.varint()?))
    }

    /// A varint that must fit a narrower type.
    pub(super) fn narrow<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, Malformed> {
        let value = self.varint()?;
        T::try_from(value).map_err(|_| Malformed::new(format!("{what} {value} is out of range")))
    }

    /// A count of things of at least `least` bytes each, of which no more can be there than bytes are left.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, Malformed> {
        let n: usize = self.narrow(what)?;
        if n > self.len() / least.max(1) {
            return Err(Malformed::new(format!("{n} {what} cannot stand in {} bytes", self.len())));
        }
        Ok(n)
    }

    pub(super) fn str(&mut self, what: &str) -> Result<&'a str, Malformed> {
        let n = self.count(1, what)?;
        std::str::from_utf8(self.take(n)?).map_err(|_| Malformed::new(format!("{what} is not UTF-8")))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, put, put_signed};

    #[test]
    fn every_size_comes_back() {
        let values = [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        for v in values {
            let mut out = Vec::new();
            put(&mut out, v);
            assert_eq!(
                (Cursor::new(&out).varint().unwrap(), out.len()),
                (v, (64 - v.leading_zeros()).div_ceil(7).max(1) as usize)
            );
        }
        for v in [0, -1, 1, 63, -64, 64, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_signed(&mut out, v);
            assert_eq!(Cursor::new(&out).signed().unwrap(), v);
        }
    }

    #[test]
    fn bytes_from_the_standard_example() {
        // 624485 of the DWARF standard's text.
        let mut out = Vec::new();
        put(&mut out, 624_485);
        assert_eq!(out, [0xe5, 0x8e, 0x26]);
    }

    #[test]
    fn no_bytes_overrun() {
        for bytes in
            [&[][..], &[0x80], &[0xff; 10], &[0xff; 11], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]]
        {
            assert!(Cursor::new(bytes).varint().is_err(), "{bytes:?}");
        }
        assert!(Cursor::new(&[5, b'a']).str("name").is_err());
        assert!(Cursor::new(&[1, 0xff]).str("name").is_err());
        assert!(Cursor::new(&[0xff, 0xff, 3, 0]).count(1, "rows").is_err());
    }
}
