//! Names chosen by wildcards: `l_out-*,ffn_*`.

/// Patterns, any of which may fit.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    patterns: Vec<Vec<char>>,
    /// A name without wildcards, which may hold any character.
    exactly: Option<String>,
}

impl Globs {
    /// Patterns separated by commas: `*` is any text, `?` any character, everything else itself. No pattern fits every name.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let patterns = text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(|p| p.chars().collect()).collect();
        Self { patterns, exactly: None }
    }

    /// This name and no other.
    #[must_use]
    pub fn exactly(name: &str) -> Self {
        Self { patterns: Vec::new(), exactly: Some(name.to_owned()) }
    }

    /// Whether every name fits.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let star = |p: &Vec<char>| !p.is_empty() && p.iter().all(|&c| c == '*');
        self.exactly.is_none() && (self.patterns.is_empty() || self.patterns.iter().any(star))
    }

    /// Whether any of the patterns fits the whole name.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        if let Some(exactly) = &self.exactly {
            return exactly == name;
        }
        let name: Vec<char> = name.chars().collect();
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| fits(pattern, &name))
    }
}

/// Goes back to the last `*` only, so the time is at most the product of both lengths.
fn fits(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                // The `*` takes one character more.
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::Globs;

    #[test]
    fn wildcards() {
        let all = |pattern: &str, names: &[&str]| names.iter().map(|n| Globs::new(pattern).fits(n)).collect::<Vec<_>>();
        assert_eq!(all("l_out-*", &["l_out-0", "l_out-", "l_out", "xl_out-0"]), [true, true, false, false]);
        assert_eq!(all("*-1", &["a-1", "a-11", "-1-1"]), [true, false, true]);
        assert_eq!(all("a*b*c", &["abc", "a-b-b-c", "ac", "abcb"]), [true, true, false, false]);
        assert_eq!(all("?cur-1", &["Qcur-1", "cur-1", "ücur-1"]), [true, false, true]);
        assert_eq!(all("x, ffn_out-? ,", &["x", "ffn_out-3", "ffn_out-30"]), [true, true, false]);
        assert_eq!(all("", &["", "a"]), [true, true]);
        assert!(Globs::exactly("a*").fits("a*") && !Globs::exactly("a*").fits("ab"));
        assert_eq!(["", "a,**", "a*"].map(|p| Globs::new(p).is_all()), [true, true, false]);
        assert!(Globs::new("*").fits("") && !Globs::new("?").fits(""));
    }

    #[test]
    fn many_stars_end_in_reasonable_time() {
        assert!(!Globs::new(&"*a".repeat(200)).fits(&"a".repeat(199)));
        assert!(!Globs::new(&("*a".repeat(50) + "b")).fits(&"a".repeat(5000)));
    }
}
