//! Names chosen by patterns with commas between them: `l_out-*,ffn_*`.

use crate::glob::Glob;

/// Patterns, any of which may fit. Without any, every name fits.
#[derive(Clone, Debug, Default)]
pub struct Globs(Vec<Glob>);

impl Globs {
    /// Patterns separated by commas: `*` is any text, `?` any character, everything else itself. No pattern
    /// fits every name.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(Glob::new).collect())
    }

    /// This name and no other; it may hold any character.
    #[must_use]
    pub fn exactly(name: &str) -> Self {
        Self(vec![Glob::exactly(name)])
    }

    /// Whether every name fits.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(Glob::is_all)
    }

    /// Whether any of the patterns fits the whole name.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|glob| glob.fits(name))
    }
}

#[cfg(test)]
mod tests {
    use super::Globs;

    #[test]
    fn any_of_the_patterns_fits() {
        let all = |pattern: &str, names: &[&str]| names.iter().map(|n| Globs::new(pattern).fits(n)).collect::<Vec<_>>();
        assert_eq!(all("l_out-*", &["l_out-0", "l_out-", "l_out", "xl_out-0"]), [true, true, false, false]);
        assert_eq!(all("x, ffn_out-? ,", &["x", "ffn_out-3", "ffn_out-30"]), [true, true, false]);
        assert_eq!(all("", &["", "a"]), [true, true]);
        assert!(Globs::exactly("a*").fits("a*") && !Globs::exactly("a*").fits("ab"));
        assert!(Globs::exactly("").fits("") && !Globs::exactly("").fits("a"));
        assert_eq!(["", "a,**", "a*"].map(|p| Globs::new(p).is_all()), [true, true, false]);
        assert!(!Globs::exactly("*").is_all());
    }
}
