//! Patterns with `*` (any text) and `?` (any one character), compared without recursion or allocation.

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    literal: bool,
}

impl Glob {
    /// Takes the text as it is; every text is a pattern.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), literal: !text.contains(['*', '?']) }
    }

    /// It fits one name only.
    pub const fn is_literal(&self) -> bool {
        self.literal
    }

    /// Whether it fits all of `name`.
    pub fn fits(&self, name: &str) -> bool {
        if self.literal { self.text == name } else { fits(self.text.as_bytes(), name.as_bytes()) }
    }
}

/// Where a star was seen, the rest of the pattern is tried at one place after the other. Only the last star matters: what lies
/// between two stars fits best where it fits first.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
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
            ("a*b*c", &["abc", "a-b-c", "abcbc", "aXbbXcc"], &["acb", "abcd"]),
            ("?cur", &["Qcur", "Kcur"], &["cur", "QKcur"]),
            ("*", &["", "x"], &[]),
            ("?", &["x"], &["", "xy"]),
            ("**a", &["a", "ba"], &["ab"]),
        ] {
            let glob = Glob::new(pattern);
            assert!(yes.iter().all(|n| glob.fits(n)), "{pattern}");
            assert!(!no.iter().any(|n| glob.fits(n)), "{pattern}");
        }
    }
}
