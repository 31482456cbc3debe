//! Which elements of a row: all, or some evenly spaced ones that say where they are.

use crate::format::stream::Slice;

/// Elements of each row that `SAMPLED_SLICES` stores, unless a setting says otherwise.
pub const SAMPLED_ELEMENTS: u32 = 64;

/// At most `elements` evenly spaced elements of a row of `full`; none where the row has no more than that, or for 0:
/// store it whole.
///
/// The distance is odd: an even one would, in a row of attention heads laid side by side, meet the same few places
/// of every head.
#[must_use]
pub fn slice(full: u32, elements: u32) -> Option<Slice> {
    if elements == 0 || full <= elements {
        return None;
    }
    let step = full.div_ceil(elements) | 1;
    // What is left over stands in front and behind alike.
    Some(Slice { start: (full - 1) % step / 2, step, full })
}

#[cfg(test)]
mod tests {
    use super::slice;

    #[test]
    fn rows_are_covered_evenly_by_at_most_that_many() {
        for (full, elements) in
            [(576, 64), (1536, 64), (4096, 64), (100, 64), (65, 64), (49_152, 64), (2, 1), (u32::MAX, 7)]
        {
            let s = slice(full, elements).expect("longer than wanted");
            let stored = (full - s.start).div_ceil(s.step);
            let last = s.start + (stored - 1) * s.step;
            assert!(stored <= elements && stored * 3 >= elements, "{full}: {stored}");
            assert!(s.full == full && s.step % 2 == 1 && s.start < s.step && last < full, "{s:?}");
            assert!((full - 1 - last).abs_diff(s.start) <= 1, "{s:?}: as much behind as in front");
        }
        let s = slice(576, 64).unwrap();
        assert_eq!((s.start, s.step), (4, 9));
        assert_eq!((576 - s.start).div_ceil(s.step), 64);
    }

    #[test]
    fn short_rows_and_zero_mean_all() {
        assert_eq!((slice(64, 64), slice(8, 64), slice(0, 64), slice(576, 0)), (None, None, None, None));
    }
}
