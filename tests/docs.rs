//! Docs and comments are held to what is there: every path and link that they name exists, and no line is longer than
//! it may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line of docs and comments.
const COLUMNS: usize = 120;

/// What the names of files in docs and comments end with.
const ENDINGS: &[&str] = &["rs", "py", "md", "sh", "json", "jsonl", "c", "cpp", "h", "toml", "yml", "txt", "stream"];

/// Written by bindgen, with a line that says so.
const GENERATED: &str = "src/ggml/bindings.rs";

/// Folders at the top of the repository: what begins with one of them is a path, whatever it ends with.
const FOLDERS: &[&str] = &["src/", "tests/", "docs/", "bench/", "patches/", "include/", ".make/", ".ci/", ".github/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, ending, out);
            } else if path.extension().is_some_and(|e| e == ending) {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join(folder), ending, &mut out);
    out.sort();
    out
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files("docs", "md");
    pages.extend([root().join("README.md"), root().join("patches/README.md")]);
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a file of UTF-8")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Lines of a page outside of its fenced blocks, numbered from 1.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    page.lines().zip(1..).filter_map(move |(line, n)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((n, line))
    })
}

/// The comment of a line of source, if it has one: `//` in a string (an address) is none.
fn comment(line: &str) -> Option<&str> {
    let at = line.match_indices("//").map(|(at, _)| at).find(|&at| at == 0 || line[..at].ends_with(' '))?;
    Some(line[at..].trim_start_matches(['/', '!']))
}

/// What in `line` looks like the path of a file or a folder of ours.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let between = |c: char| !c.is_alphanumeric() && !"._-/".contains(c);
    line.split(between).map(|p| p.trim_end_matches(['.', '-'])).filter(|p| {
        let name = p.rsplit('/').next().unwrap_or(p);
        let ends = name.rsplit_once('.').is_some_and(|(stem, ending)| !stem.is_empty() && ENDINGS.contains(&ending));
        // Without a folder, only sources of ours are told from the reader's own files.
        let is_file = ends && if p.contains('/') { !p.starts_with(['/', '.']) } else { name.ends_with(".rs") };
        is_file || FOLDERS.iter().any(|f| p.starts_with(f))
    })
}

/// Paths that docs and comments name and that are not ours: of an installation, of other machines,
/// of llama.cpp's build.
const NOT_OURS: &[&str] = &["target/", "build/", "old/", "new/", "acts-npy/", "acts-parquet/", "tools/server/"];

#[test]
fn every_path_that_is_named_exists() {
    let names: BTreeSet<String> = ["src", "tests", "bench"]
        .iter()
        .flat_map(|f| files(f, "rs"))
        .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
        .chain(["build.rs".to_owned()])
        .collect();
    let exists = |from: &Path, path: &str| {
        let beside = from.parent().expect("a folder");
        let below = [root().to_owned(), root().join("src"), beside.to_owned(), root().join("llama.cpp")];
        below.iter().any(|b| b.join(path).exists()) || (!path.contains('/') && names.contains(path))
    };
    let mut missing = Vec::new();
    let mut check = |from: &Path, n: usize, line: &str| {
        for path in paths(line).filter(|p| !NOT_OURS.iter().any(|o| p.starts_with(o))) {
            if !exists(from, path) {
                missing.push(format!("{}:{n}: {path}", shown(from)));
            }
        }
    };
    for page in pages() {
        prose(&read(&page)).for_each(|(n, line)| check(&page, n, line));
    }
    for source in files("src", "rs") {
        let text = read(&source);
        text.lines().zip(1..).for_each(|(line, n)| check(&source, n, comment(line).unwrap_or_default()));
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
}

/// What the code of a file names, without its comments, and the file's own name.
fn words(path: &Path) -> BTreeSet<String> {
    let mut words = BTreeSet::from([path.file_stem().expect("a name").to_string_lossy().into_owned()]);
    for line in read(path).lines() {
        let code = line.split("//").next().unwrap_or_default();
        words.extend(code.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
    }
    words
}

#[test]
fn every_part_of_a_room_that_a_comment_names_exists() {
    let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files("src", "rs") {
        let below = path.strip_prefix(root().join("src")).expect("below src").to_string_lossy().into_owned();
        let room = below.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        rooms.entry(room).or_default().extend(words(&path));
    }
    rooms.retain(|room, _| room != "lib" && room != "bin");
    let mut missing = Vec::new();
    for source in files("src", "rs") {
        let text = read(&source);
        for (line, n) in text.lines().zip(1..) {
            let line = comment(line).unwrap_or_default();
            for named in line.split(|c: char| !c.is_alphanumeric() && !"_:".contains(c)) {
                let mut parts = named.trim_end_matches(':').split("::");
                let Some((room, room_words)) = parts.next().and_then(|first| rooms.get_key_value(first)) else {
                    continue;
                };
                // `graph::` in `capture` may be its own file of that name.
                let beside = source.with_file_name(format!("{room}.rs"));
                let own_words = if beside.exists() { words(&beside) } else { BTreeSet::new() };
                if !parts.all(|p| room_words.contains(p) || own_words.contains(p)) {
                    missing.push(format!("{}:{n}: {named}", shown(&source)));
                }
            }
        }
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        for (n, line) in prose(&read(&page)).collect::<Vec<_>>() {
            for (at, _) in line.match_indices("](") {
                let link = line[at + 2..].split(')').next().unwrap_or_default();
                let (file, part) = link.split_once('#').unwrap_or((link, ""));
                if file.contains("://") {
                    continue;
                }
                let target = if file.is_empty() { page.clone() } else { page.parent().expect("a folder").join(file) };
                let there = target.exists()
                    && (part.is_empty() || prose(&read(&target)).any(|(_, l)| l.starts_with('#') && anchor(l) == part));
                if !there {
                    broken.push(format!("{}:{n}: {link}", shown(&page)));
                }
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}

/// A line that cannot be broken: of a table or of code, a footnote, or a single word (an address).
fn is_whole(line: &str) -> bool {
    let text = line.trim();
    let code = line.starts_with("    ") && !text.starts_with("- ");
    code || text.starts_with(['|', '#']) || text.starts_with("[^") || text.starts_with("<!--") || !text.contains(' ')
}

#[test]
fn no_line_of_docs_or_comments_is_too_long() {
    let mut long = Vec::new();
    for page in pages() {
        for (n, line) in prose(&read(&page)) {
            if line.chars().count() > COLUMNS && !is_whole(line) {
                long.push(format!("{}:{n}", shown(&page)));
            }
        }
    }
    let sources = ["src", "tests", "bench"].into_iter().flat_map(|f| files(f, "rs"));
    for source in sources.filter(|p| !p.ends_with(GENERATED)) {
        let mut fenced = false;
        for (line, n) in read(&source).lines().zip(1..).filter(|(line, _)| line.trim_start().starts_with("//")) {
            let words = comment(line).unwrap_or_default().trim();
            fenced ^= words.starts_with("```");
            if line.chars().count() > COLUMNS && words.contains(' ') && !words.starts_with('|') && !fenced {
                long.push(format!("{}:{n}", shown(&source)));
            }
        }
    }
    assert!(long.is_empty(), "{} lines of more than {COLUMNS} columns:\n{}", long.len(), long.join("\n"));
}
