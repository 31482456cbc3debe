//! Which libraries a binary would load, found as the dynamic linker finds them, without running anything.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use super::elf::Object;

/// A binary with everything it loads.
#[derive(Debug, Default)]
pub struct Closure {
    /// The binary first, then its libraries in load order, then the backends that ggml opens by itself.
    pub objects: Vec<Object>,
    /// How many of `objects` are loaded by name; the rest is opened by ggml.
    pub linked: usize,
    /// Libraries that were not found, with the one that needs them.
    pub missing: Vec<(String, String)>,
}

/// Finds `name` as a shell does: a path if it has a slash, else in PATH; a plain file here is the last resort.
pub fn program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.or_else(|| name.is_file().then(|| name.to_owned()))
}

/// The binary and its libraries.
pub fn closure(binary: &Path) -> Result<Closure, String> {
    let root = Object::read(binary)?;
    let system = system_directories();
    let mut found = Closure::default();
    let mut seen: HashSet<PathBuf> = HashSet::from([canonical(binary)]);
    let mut names: HashSet<String> = HashSet::new();
    let mut queue = VecDeque::from([root]);
    let root_rpath = queue.front().map(|o| directories(&o.rpath, &o.path)).unwrap_or_default();
    while let Some(object) = queue.pop_front() {
        for needed in &object.needed {
            if names.contains(needed) {
                continue;
            }
            match resolve(needed, &object, &root_rpath, &system) {
                Some(library) => {
                    names.insert(needed.clone());
                    if seen.insert(canonical(&library.path)) {
                        queue.push_back(library);
                    }
                }
                None if !found.missing.iter().any(|(name, _)| name == needed) => {
                    found.missing.push((needed.clone(), object.name()));
                }
                None => {}
            }
        }
        found.objects.push(object);
    }
    found.linked = found.objects.len();
    // Backends need libggml-base, which is loaded by then: a `missing` there would be a false alarm.
    found.missing.retain(|(name, _)| !names.contains(name));
    found.objects.extend(backends(&found.objects, &mut seen));
    Ok(found)
}

/// Backends that ggml opens itself: `libggml-*.so` beside the executable and beside libggml, in the folder that its
/// build was given (GGML_BACKEND_DIR: distributions have one below /usr/lib, official packages a libexec), and the one
/// that GGML_BACKEND_PATH names.
fn backends(objects: &[Object], seen: &mut HashSet<PathBuf>) -> Vec<Object> {
    let uses_ggml = objects.iter().any(|o| is_ggml_library(o) || o.defines.contains("ggml_backend_load_all"));
    if !uses_ggml {
        return Vec::new();
    }
    let beside = objects.iter().enumerate().filter(|(i, o)| *i == 0 || is_ggml_library(o));
    let beside = beside.filter_map(|(_, o)| canonical(&o.path).parent().map(Path::to_owned));
    let folders: HashSet<PathBuf> =
        beside.chain(objects.iter().flat_map(|o| &o.named_folders).map(|f| canonical(f))).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in &folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.extend(entries.map(|e| e.path()).filter(|p| file_name(p).starts_with("libggml-") && is_library(p)));
    }
    files.sort();
    files.extend(std::env::var_os("GGML_BACKEND_PATH").map(PathBuf::from).filter(|p| p.is_file()));
    // Wheels hold copies where builds hold links: what has the name of a loaded library is that library.
    let mut names: HashSet<String> = objects.iter().map(linker_name).collect();
    let fresh = files.into_iter().filter(|p| seen.insert(canonical(p))).filter_map(|p| Object::read(&p).ok());
    fresh.filter(|o| names.insert(linker_name(o))).collect()
}

/// Name under which the dynamic linker knows the library.
fn linker_name(object: &Object) -> String {
    object.soname.clone().unwrap_or_else(|| object.name())
}

/// Whether this is one of ggml's or llama.cpp's own libraries, by its name.
pub fn is_ggml_library(object: &Object) -> bool {
    let name = linker_name(object);
    name.starts_with("libggml") || name.starts_with("libllama")
}

fn resolve(needed: &str, by: &Object, root_rpath: &[PathBuf], system: &[PathBuf]) -> Option<Object> {
    let fits = |path: PathBuf| Object::read(&path).ok().filter(|found| found.machine == by.machine);
    if needed.contains('/') {
        return fits(expand(needed, &by.path));
    }
    let environment = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders = Vec::new();
    // The linker's own order; RPATH counts only without RUNPATH.
    if by.runpath.is_empty() {
        folders.extend(directories(&by.rpath, &by.path));
        folders.extend_from_slice(root_rpath);
    }
    folders.extend(std::env::split_paths(&environment).filter(|p| !p.as_os_str().is_empty()));
    folders.extend(directories(&by.runpath, &by.path));
    folders.extend_from_slice(system);
    folders.into_iter().map(|folder| folder.join(needed)).filter(|p| p.is_file()).find_map(fits)
}

fn directories(paths: &[String], of: &Path) -> Vec<PathBuf> {
    paths.iter().map(|p| expand(p, of)).collect()
}

fn expand(path: &str, of: &Path) -> PathBuf {
    let origin = canonical(of).parent().map(|p| p.display().to_string()).unwrap_or_default();
    PathBuf::from(path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
}

/// Directories of /etc/ld.so.conf, then the built-in ones.
fn system_directories() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    configured(Path::new("/etc/ld.so.conf"), &mut folders, 0);
    for folder in ["/lib64", "/usr/lib64", "/lib", "/usr/lib"] {
        folders.push(PathBuf::from(folder));
    }
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    folders.extend([PathBuf::from("/lib").join(&triple), PathBuf::from("/usr/lib").join(&triple)]);
    folders
}

fn configured(file: &Path, folders: &mut Vec<PathBuf>, depth: u32) {
    let Ok(text) = std::fs::read_to_string(file) else { return };
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        // The only pattern in use is `include /etc/ld.so.conf.d/*.conf`; depth guards against a file
        // that includes itself.
        if let Some(pattern) = line.strip_prefix("include").filter(|_| depth < 3) {
            let pattern = Path::new(pattern.trim());
            let suffix = file_name(pattern).trim_start_matches('*').to_owned();
            let parent = pattern.parent().unwrap_or(Path::new("/etc"));
            let mut files: Vec<PathBuf> =
                std::fs::read_dir(parent).into_iter().flatten().flatten().map(|e| e.path()).collect();
            files.sort();
            files.iter().filter(|f| file_name(f).ends_with(&suffix)).for_each(|f| configured(f, folders, depth + 1));
        } else {
            folders.push(PathBuf::from(line));
        }
    }
}

fn is_library(path: &Path) -> bool {
    let name = file_name(path);
    name.ends_with(".so") || name.contains(".so.")
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn canonical(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
