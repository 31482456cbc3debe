//! Which rows: only some requests, only every n-th position.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

/// Requests by their number in the event log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFilter(Option<Vec<RangeInclusive<u64>>>);

impl RequestFilter {
    /// Reads `all` or a list like `1-3,7,20-`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().eq_ignore_ascii_case("all") {
            return Ok(Self(None));
        }
        let ranges = text.split(',').map(|part| range(part.trim())).collect::<Option<Vec<_>>>();
        ranges.map(|r| Self(Some(r))).ok_or_else(|| {
            format!("`{text}` is no list of requests: expected numbers from 1 and ranges, e.g. `1-3,7,20-`, or `all`")
        })
    }

    /// Whether rows of the request are wanted; 0 is a row that belongs to none.
    #[must_use]
    pub fn wants(&self, request: u64) -> bool {
        self.0.as_ref().is_none_or(|ranges| ranges.iter().any(|r| r.contains(&request)))
    }

    /// Every row is wanted, whatever its request.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.0.is_none()
    }
}

fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let number = |digits: &str| {
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten().filter(|&n| n > 0)
    };
    let (first, last) = match text.split_once('-') {
        None => (number(text)?, number(text)?),
        Some((first, "")) => (number(first)?, u64::MAX),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    (first <= last).then_some(first..=last)
}

/// Every n-th position of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenStride(NonZeroU32);

impl Default for TokenStride {
    fn default() -> Self {
        Self(NonZeroU32::MIN)
    }
}

impl TokenStride {
    /// Every `n`-th; none for 0.
    #[must_use]
    pub fn new(n: u32) -> Option<Self> {
        NonZeroU32::new(n).map(Self)
    }

    /// Reads a number from 1.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().and_then(Self::new)
    }

    /// The distance.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether the row at this position is wanted: 0, n, 2n, ... A row whose position is not known (below 0) always is.
    #[must_use]
    pub fn wants(self, pos: i32) -> bool {
        u32::try_from(pos).map_or(true, |pos| pos % self.0 == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{RequestFilter, TokenStride};

    #[test]
    fn requests_are_numbers_and_ranges() {
        let some = RequestFilter::parse("1-3, 7,20-").unwrap();
        let wanted: Vec<u64> = (0..23).filter(|&r| some.wants(r)).collect();
        assert_eq!(wanted, [1, 2, 3, 7, 20, 21, 22]);
        for all in [RequestFilter::default(), RequestFilter::parse("ALL").unwrap()] {
            assert!(all.is_all() && all.wants(0) && all.wants(u64::MAX));
        }
        for bad in ["", "0", "x", "3-1", "-3", "1,,2", "1-2-3", "1;2", "99999999999999999999", "+1"] {
            assert!(RequestFilter::parse(bad).expect_err(bad).contains("1-3,7"), "{bad}");
        }
    }

    #[test]
    fn a_stride_keeps_every_nth_position_and_the_unknown() {
        let third = TokenStride::parse("3").unwrap();
        assert_eq!((-1..8).filter(|&p| third.wants(p)).collect::<Vec<_>>(), [-1, 0, 3, 6]);
        assert!((-1..8).all(|p| TokenStride::default().wants(p)));
        assert_eq!((TokenStride::parse("0"), TokenStride::parse("x"), TokenStride::parse("-2")), (None, None, None));
    }
}
