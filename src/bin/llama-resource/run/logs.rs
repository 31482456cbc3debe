//! Which logs a run wrote: with placeholders in the path only the library knows their names, so they are found by
//! what they fit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use llama_resource_instrumentation::config;

/// Logs that fit a path with placeholders, with their lengths.
pub struct Logs {
    pattern: PathBuf,
    before: BTreeMap<PathBuf, u64>,
}

impl Logs {
    /// Remembers what is there already: logs are appended to, and what is in them is another run's.
    pub fn before(pattern: PathBuf) -> Self {
        let before = found(&pattern);
        Self { pattern, before }
    }

    /// Those that were written since, and from where on.
    pub fn written(&self) -> Vec<(PathBuf, u64)> {
        let from = |path: &PathBuf| self.before.get(path).copied().unwrap_or(0);
        let grown = found(&self.pattern).into_iter().filter(|(path, len)| *len > from(path));
        grown.map(|(path, _)| (path.clone(), from(&path))).collect()
    }

    /// The path as it was given.
    pub fn pattern(&self) -> &Path {
        &self.pattern
    }
}

/// Placeholders of a folder's name are not looked for: folders are not made, so a folder of that very name exists.
fn found(pattern: &Path) -> BTreeMap<PathBuf, u64> {
    let folder = pattern.parent().filter(|p| !p.as_os_str().is_empty());
    let entries = fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten().flatten();
    let name = pattern.file_name().unwrap_or_default();
    let fitting = entries.filter(|e| config::fits(name, &e.file_name()));
    let sized = |e: fs::DirEntry| {
        let path = folder.map_or_else(|| PathBuf::from(e.file_name()), |f| f.join(e.file_name()));
        // As the library opens it: a link counts for what it leads to.
        Some((path, fs::metadata(e.path()).ok().filter(fs::Metadata::is_file)?.len()))
    };
    fitting.filter_map(sized).collect()
}

#[cfg(test)]
mod tests {
    use super::Logs;
    use std::fs;

    #[test]
    fn only_what_grew_is_this_runs() {
        let folder = std::env::temp_dir().join(format!("llama-resource-logs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("a.1.jsonl", "old"), ("a.2.jsonl", "older"), ("b.3.jsonl", "other")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let logs = Logs::before(folder.join("a.%p.jsonl"));
        assert_eq!(logs.written(), []);
        for (name, text) in [("a.2.jsonl", "older and new"), ("a.9.jsonl", "new"), ("a.x.jsonl", "no number")] {
            fs::write(folder.join(name), text).unwrap();
        }
        assert_eq!(logs.written(), [(folder.join("a.2.jsonl"), 5), (folder.join("a.9.jsonl"), 0)]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
