//! Paths with placeholders: `%p` process id, `%t` Unix time, `%e` program, `%%` percent sign.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What stands for the placeholders.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placeholders<'a> {
    /// `%p`.
    pub(super) pid: u32,
    /// `%t`.
    pub(super) unix_s: u64,
    /// `%e`.
    pub(super) program: &'a str,
}

impl Placeholders<'_> {
    /// The path with its placeholders replaced; a percent sign before any other letter stays.
    pub(super) fn fill(&self, path: &Path) -> PathBuf {
        let mut out = Vec::new();
        let mut bytes = path.as_os_str().as_bytes().iter().copied();
        while let Some(b) = bytes.next() {
            if b != b'%' {
                out.push(b);
                continue;
            }
            match bytes.next() {
                Some(b'p') => out.extend(self.pid.to_string().bytes()),
                Some(b't') => out.extend(self.unix_s.to_string().bytes()),
                Some(b'e') => out.extend(self.program.bytes()),
                Some(b'%') => out.push(b'%'),
                Some(other) => out.extend([b'%', other]),
                None => out.push(b'%'),
            }
        }
        PathBuf::from(OsString::from_vec(out))
    }
}

/// The path with `%p` before its extension, if its name has none yet.
pub(super) fn apart(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if name.windows(2).any(|w| w == b"%p") {
        return path.to_owned();
    }
    let at = name.iter().rposition(|&b| b == b'.').filter(|&at| at > 0).unwrap_or(name.len());
    let (stem, extension) = name.split_at(at);
    path.with_file_name(OsString::from_vec([stem, b".%p", extension].concat()))
}

/// Whether `name` can be what [`Placeholders::fill`] makes of `pattern`, in any process at any time.
pub(super) fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let number = |rest: &[u8]| {
        // A number ends where the digits do: the shortest one that fits decides.
        let digits = name.iter().take_while(|b| b.is_ascii_digit()).count();
        (1..=digits).any(|n| fits(rest, &name[n..]))
    };
    match pattern {
        [] => name.is_empty(),
        [b'%', b'p' | b't', rest @ ..] => number(rest),
        [b'%', b'e', rest @ ..] => (1..=name.len()).any(|n| fits(rest, &name[n..])),
        [b'%', b'%', rest @ ..] => name.strip_prefix(b"%").is_some_and(|name| fits(rest, name)),
        [b, rest @ ..] => name.split_first().is_some_and(|(first, name)| first == b && fits(rest, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Placeholders, apart, fits};

    #[test]
    fn each_process_has_its_own() {
        let cases =
            [("a.stream", "a.%p.stream"), ("/x.y/log", "/x.y/log.%p"), (".hidden", ".hidden.%p"), ("a.%p", "a.%p")];
        for (path, own) in cases {
            assert_eq!(apart(path.as_ref()), std::path::Path::new(own));
        }
    }

    #[test]
    fn what_was_filled_fits_and_nothing_else_does() {
        for pattern in ["a.%p.jsonl", "%p%t", "%e-%p.%%", "plain", "%x%", "%e%e", "log%"] {
            let places = Placeholders { pid: 4711, unix_s: 1_700_000_000, program: "llama-server.1" };
            let name = places.fill(pattern.as_ref());
            assert!(fits(pattern.as_bytes(), name.as_os_str().as_encoded_bytes()), "{pattern} {name:?}");
        }
        for (pattern, name) in
            [("a.%p", "a."), ("a.%p", "a.1x"), ("a", "ab"), ("%e.x", ".x"), ("%%", "p"), ("a%p", "b1")]
        {
            assert!(!fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn placeholders_are_replaced_and_others_left_alone() {
        let places = Placeholders { pid: 7, unix_s: 8, program: "srv" };
        assert_eq!(places.fill("a%p-%t-%e-%%-%x%".as_ref()).to_string_lossy(), "a7-8-srv-%-%x%");
    }
}
