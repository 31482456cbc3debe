//! Where the library is, and how it stands in LD_PRELOAD.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

mod link;

const LIBRARY: &str = "libllama_resource_instrumentation.so";

/// The library, by a path that can stand in LD_PRELOAD.
pub fn library() -> Result<PathBuf, String> {
    link::preloadable(&installed()?)
}

/// Beside this program, in ../lib, or where LLAMA_RESOURCE_LIBRARY says.
fn installed() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("LLAMA_RESOURCE_LIBRARY").map(PathBuf::from) {
        return std::path::absolute(&path)
            .ok()
            .filter(|p| p.is_file())
            .ok_or_else(|| format!("LLAMA_RESOURCE_LIBRARY names `{}`, which is no file", path.display()));
    }
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program's own directory: {e}"))?;
    let folder = program.parent().unwrap_or(Path::new("."));
    let places = [folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        format!(
            "cannot find {LIBRARY}: looked beside this program ({}) and in ../lib; set LLAMA_RESOURCE_LIBRARY to its path",
            folder.display()
        )
    })
}

/// Ours first; what was preloaded already stays. LD_PRELOAD takes colons and spaces as separators.
pub fn preload(library: &Path, before: Option<&OsStr>) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|b| !b.is_empty()) {
        value.push(":");
        value.push(before);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::preload;

    #[test]
    fn an_existing_preload_is_kept_behind_ours() {
        let ours = std::path::Path::new("/x/ours.so");
        assert_eq!(preload(ours, None), "/x/ours.so");
        assert_eq!(preload(ours, Some("".as_ref())), "/x/ours.so");
        assert_eq!(preload(ours, Some("a.so b.so".as_ref())), "/x/ours.so:a.so b.so");
    }
}
