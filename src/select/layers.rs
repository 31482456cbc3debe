//! Which blocks of the model: `3`, `0-5+10`, `12-`, `last`, `last4`.

/// Blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// From one block to another, both included.
    Between(i32, i32),
    /// The last so many.
    Last(i32),
}

impl Layers {
    /// Reads the part behind the `@` of a term.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split('+').map(Range::parse).collect::<Option<Vec<_>>>().map(Self).ok_or_else(|| {
            format!("`@{text}` is no choice of layers: expected e.g. @3, @0-5, @0-5+10, @12-, @last or @last4")
        })
    }

    /// Whether the block is one of them. Blocks for multi-token prediction count on from the model's last one.
    pub fn contain(&self, layer: Option<i32>, n_layer: Option<i32>) -> bool {
        layer.is_some_and(|layer| self.0.iter().any(|range| range.contains(layer, n_layer)))
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<i32>().ok()).flatten()
        };
        if let Some(count) = text.get(..4).filter(|w| w.eq_ignore_ascii_case("last")).and_then(|_| text.get(4..)) {
            return if count.is_empty() { Some(1) } else { number(count).filter(|&n| n > 0) }.map(Self::Last);
        }
        match text.split_once('-') {
            None => number(text).map(|n| Self::Between(n, n)),
            Some((first, "")) => number(first).map(|n| Self::Between(n, i32::MAX)),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    fn contains(self, layer: i32, n_layer: Option<i32>) -> bool {
        match self {
            Self::Between(first, last) => (first..=last).contains(&layer),
            Self::Last(count) => n_layer.is_some_and(|n| layer < n && layer >= n.saturating_sub(count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Layers;

    /// The layers of a model with 30 blocks and one for multi-token prediction.
    fn of(text: &str) -> Vec<i32> {
        let layers = Layers::parse(text).expect(text);
        (0..=30).filter(|&il| layers.contain(Some(il), Some(30))).collect()
    }

    #[test]
    fn ranges_add_up() {
        assert_eq!(of("3"), [3]);
        assert_eq!(of("0-2+10"), [0, 1, 2, 10]);
        assert_eq!(of("28-"), [28, 29, 30]);
        assert_eq!(of("last"), [29]);
        assert_eq!(of("LAST3+0"), [0, 27, 28, 29]);
        assert_eq!(of("last99").len(), 30);
    }

    #[test]
    fn what_has_no_layer_is_in_none_and_last_needs_the_count() {
        let all = Layers::parse("0-").unwrap();
        assert!(!all.contain(None, Some(30)) && all.contain(Some(7), None));
        assert!(!Layers::parse("last").unwrap().contain(Some(29), None));
    }

    #[test]
    fn nonsense_is_refused_with_examples() {
        for bad in ["", "x", "-1", "5-3", "1,2", "1++2", "last0", "last-1", "1-2-3", "99999999999", "+1", "\u{661}"] {
            let why = Layers::parse(bad).expect_err(bad);
            assert!(why.contains("@0-5") && why.contains(bad), "{why}");
        }
    }
}
