//! What is known of graphs that may come again, by their fingerprints: the one that was not asked for the longest goes
//! first.

/// At most `MOST` things by their keys, the one that was asked for last at the end.
#[derive(Debug)]
pub struct Recent<K, V, const MOST: usize>(Vec<(K, V)>);

impl<K, V, const MOST: usize> Default for Recent<K, V, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq, V: Clone, const MOST: usize> Recent<K, V, MOST> {
    /// What is kept under `key`; made, and kept, if there is nothing.
    pub fn get_or_make(&mut self, key: K, make: impl FnOnce() -> V) -> V {
        let kept = match self.0.iter().position(|(k, _)| *k == key) {
            Some(at) => self.0.remove(at),
            None => (key, make()),
        };
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        let value = kept.1.clone();
        self.0.push(kept);
        value
    }

    /// Forgets all whose key is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.0.retain(|(k, _)| keep(k));
    }

    /// All that is kept, the most recent first.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().rev().map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn what_was_not_asked_for_the_longest_goes_first() {
        let mut recent: Recent<u64, char, 2> = Recent::default();
        assert_eq!(recent.get_or_make(1, || 'a'), 'a');
        assert_eq!(recent.get_or_make(2, || 'b'), 'b');
        assert_eq!(recent.get_or_make(1, || 'x'), 'a', "kept");
        assert_eq!(recent.get_or_make(3, || 'c'), 'c');
        assert_eq!(recent.values().collect::<String>(), "ca");
        assert_eq!(recent.get_or_make(2, || 'y'), 'y', "it was the oldest");
        recent.retain(|k| *k == 2);
        assert_eq!(recent.values().collect::<String>(), "y");
    }
}
