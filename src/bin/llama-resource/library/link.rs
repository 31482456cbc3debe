//! A path of the library that LD_PRELOAD can hold: it takes spaces and colons as separators, and knows no way to write
//! one that is none.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The path itself where the dynamic linker can read it, or else that of a link to it.
///
/// The link stays: the command becomes this process, and what it starts may be recorded as well. There is one for each
/// place of the library, in a folder that no other user can write to.
pub fn preloadable(library: &Path) -> Result<PathBuf, String> {
    if readable(library) {
        return Ok(library.to_owned());
    }
    let folders = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).into_iter();
    let folders = folders.chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let mut last = "no folder for it".to_owned();
    for folder in folders.filter(|f| f.is_absolute() && readable(f)) {
        match link(library, &folder) {
            Ok(link) => return Ok(link),
            Err(why) => last = why,
        }
    }
    Err(format!(
        "cannot preload `{}`: the dynamic linker takes spaces and colons in LD_PRELOAD as separators, and a link to it \
         without them could not be made ({last}); move it, or name a link to it in LLAMA_RESOURCE_LIBRARY",
        library.display()
    ))
}

/// Whether the dynamic linker takes it for one path: nothing that separates, and no `$ORIGIN` to be replaced.
fn readable(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|b| matches!(b, b' ' | b':' | b'$'))
}

fn link(library: &Path, base: &Path) -> Result<PathBuf, String> {
    // The effective user owns this process's folder in /proc.
    let user = fs::metadata("/proc/self").map_err(|e| format!("/proc/self: {e}"))?.uid();
    let folder = base.join(format!("llama-resource-{user}"));
    let cannot = |e: std::io::Error| format!("{}: {e}", folder.display());
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(cannot(e)),
        _ => {}
    }
    // Another user's folder, or a link, could lead anywhere, and what it leads to would be loaded.
    let about = fs::symlink_metadata(&folder).map_err(cannot)?;
    if !about.is_dir() || about.uid() != user || about.mode() & 0o022 != 0 {
        return Err(format!("{} is not ours alone", folder.display()));
    }
    let mut hasher = DefaultHasher::new();
    library.hash(&mut hasher);
    let link = folder.join(format!("{:016x}.so", hasher.finish()));
    if fs::read_link(&link).is_ok_and(|to| to == library) {
        return Ok(link);
    }
    // Two that start at once make the same link; renaming replaces one by the other.
    let fresh = folder.join(format!("{:016x}.{}", hasher.finish(), std::process::id()));
    let made = symlink(library, &fresh).and_then(|()| fs::rename(&fresh, &link));
    if made.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    made.map(|()| link).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::{link, readable};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    #[test]
    fn a_link_stands_for_a_path_that_the_linker_would_take_apart() {
        assert!(readable(Path::new("/opt/lib/ours.so")));
        for bad in ["/opt/my tools/ours.so", "/opt/a:b/ours.so", "/opt/$ORIGIN/ours.so"] {
            assert!(!readable(Path::new(bad)), "{bad}");
        }
        let base = std::env::temp_dir().join(format!("llama-resource-link-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let library = base.join("my tools: ours.so");
        fs::write(&library, "").unwrap();
        let first = link(&library, &base).unwrap();
        assert_eq!(fs::read_link(&first).unwrap(), library);
        assert_eq!(link(&library, &base), Ok(first.clone()), "once is enough");
        // A link that leads elsewhere is replaced.
        fs::remove_file(&first).unwrap();
        symlink("/nowhere", &first).unwrap();
        assert_eq!(fs::read_link(link(&library, &base).unwrap()).unwrap(), library);
        // A folder that others can write to is not used, nor a link in its place.
        let folder = first.parent().unwrap().to_owned();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(link(&library, &base).unwrap_err().contains("not ours alone"));
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(base.join("other")).unwrap();
        symlink(base.join("other"), &folder).unwrap();
        assert!(link(&library, &base).unwrap_err().contains("not ours alone"));
        fs::remove_dir_all(&base).unwrap();
    }
}
