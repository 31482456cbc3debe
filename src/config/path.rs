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

#[cfg(test)]
mod tests {
    use super::Placeholders;

    #[test]
    fn placeholders_are_replaced_and_others_left_alone() {
        let places = Placeholders { pid: 7, unix_s: 8, program: "srv" };
        assert_eq!(places.fill("a%p-%t-%e-%%-%x%".as_ref()).to_string_lossy(), "a7-8-srv-%-%x%");
    }
}
