//! Patterns with `*` (any text) and `?` (any one character), compared with a whole name without
//! recursion or allocation.

use std::str::Chars;

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    literal: bool,
}

impl Glob {
    /// Takes the text as it is; every text is a pattern.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), literal: !text.contains(['*', '?']) }
    }

    /// This name and no other, whatever characters it holds.
    #[must_use]
    pub fn exactly(name: &str) -> Self {
        Self { text: name.to_owned(), literal: true }
    }

    /// It fits one name only.
    #[must_use]
    pub const fn is_literal(&self) -> bool {
        self.literal
    }

    /// It fits every name.
    #[must_use]
    pub fn is_all(&self) -> bool {
        !self.literal && self.text.bytes().all(|c| c == b'*')
    }

    /// Whether it fits all of `name`.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        if self.literal { self.text == name } else { fits(self.text.chars(), name.chars()) }
    }
}

/// Where a star was seen, the rest of the pattern is tried at one place after the other. Only the last star matters,
/// since what lies between two stars fits best where it fits first; so the time is at most the product of both lengths.
fn fits(mut pattern: Chars<'_>, mut name: Chars<'_>) -> bool {
    let mut star: Option<(Chars<'_>, Chars<'_>)> = None;
    while let Some(c) = name.clone().next() {
        match pattern.next() {
            Some('*') => star = Some((pattern.clone(), name.clone())),
            Some(p) if p == '?' || p == c => _ = name.next(),
            _ => {
                let Some((behind, from)) = &mut star else { return false };
                // The star takes one character more.
                from.next();
                (pattern, name) = (behind.clone(), from.clone());
            }
        }
    }
    pattern.all(|c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, yes, no) in [
            ("l_out", &["l_out"][..], &["l_out-1", "xl_out", ""][..]),
            ("ffn_*", &["ffn_", "ffn_up", "ffn_up-3 (view)"], &["ffn", "mtp_ffn_up"]),
            ("*_out", &["l_out", "_out", "a_out_out"], &["l_outs"]),
            ("*-1", &["a-1", "-1-1"], &["a-11"]),
            ("a*b*c", &["abc", "a-b-c", "abcbc", "aXbbXcc", "a-b-b-c"], &["acb", "abcd", "ac", "abcb"]),
            ("?cur", &["Qcur", "Kcur", "ücur"], &["cur", "QKcur"]),
            ("*", &["", "x"], &[]),
            ("?", &["x", "ü"], &["", "xy"]),
            ("**a", &["a", "ba"], &["ab"]),
            ("*ü?", &["üü", "aüb"], &["ü", "ub"]),
        ] {
            let glob = Glob::new(pattern);
            assert!(yes.iter().all(|n| glob.fits(n)), "{pattern}");
            assert!(!no.iter().any(|n| glob.fits(n)), "{pattern}");
        }
        assert!(Glob::exactly("a*").fits("a*") && !Glob::exactly("a*").fits("ab"));
        assert_eq!(["*", "**", "a*", "?"].map(|p| Glob::new(p).is_all()), [true, true, false, false]);
    }

    #[test]
    fn many_stars_end_in_reasonable_time() {
        assert!(!Glob::new(&"*a".repeat(200)).fits(&"a".repeat(199)));
        assert!(!Glob::new(&("*a".repeat(50) + "b")).fits(&"a".repeat(5000)));
    }
}
