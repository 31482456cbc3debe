//! Who may use whom in src/, and what every source file must look like. The table says exactly what the code does: an
//! edge that is not in it fails, and so does one that nobody needs any more. A room uses only rooms that stand above it
//! in the list, so there is no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A room of src/, the rooms that it uses, and why.
type Room = (&'static str, &'static [&'static str], &'static str);

/// Rooms from the bottom up: what both sides stand on, the host's side, the reader's side. The two sides share
/// nothing but `format`.
const ROOMS: &[Room] = &[
    ("error", &[], "one type"),
    ("queue", &[], "rings of anything"),
    ("mailbox", &[], "a queue and a bell"),
    ("prefetch", &[], "hints to the processor"),
    ("codec", &["prefetch"], "values to bytes and back"),
    ("format", &["codec", "error"], "the types of a line and of a packet: no thread, no file, no clock"),
    ("host", &[], "libc, and nothing of ours"),
    ("log", &["host"], "writes to stderr, or to the caller's callback"),
    ("clock", &["host"], "the clock and the time zone are the process's"),
    ("glob", &[], "patterns of names"),
    ("graph", &[], "pure functions over names, shapes and types"),
    (
        "select",
        &["codec", "format", "glob", "graph"],
        "names, components and ops; a preset brings a codec; `format` for the slice of a row",
    ),
    ("config", &["codec", "format", "select"], "a setting is a level, a codec, a selection"),
    ("ggml", &["graph", "host"], "gives a tensor as `graph` wants it; finds symbols in the process's objects"),
    ("boundary", &[], "guards and the phase; what a first call starts is registered with it"),
    (
        "heap",
        &["boundary", "host"],
        "the allocator: ends the recording when there is no memory, and says so without any",
    ),
    (
        "journal",
        &["clock", "format", "mailbox", "queue"],
        "where everybody pushes: lines, level, rate, what was dropped; the trait of whoever has lines of its own",
    ),
    (
        "gpu",
        &["boundary", "clock", "format", "host", "journal", "log"],
        "a thread of its own asks the driver; the writer asks it as a source",
    ),
    (
        "observe",
        &["boundary", "clock", "format", "ggml", "graph", "journal", "log"],
        "asks the host's ggml, classifies, pushes lines and samples; says once on stderr what does not work; `boundary` for a thread that ends",
    ),
    ("tell", &["format", "graph", "journal", "observe"], "steps and their totals as lines, when the writer asks"),
    (
        "record",
        &["boundary", "clock", "error", "format", "gpu", "host", "journal", "log", "mailbox"],
        "the writer's thread and its file; `gpu` for the processors' energy; `boundary` to end recording on an I/O error",
    ),
    ("store", &["error", "format", "host", "log"], "the stream's files: blocks, checkpoints, tokens; no thread"),
    (
        "pipeline",
        &[
            "boundary", "clock", "codec", "config", "error", "format", "heap", "host", "log", "mailbox", "prefetch",
            "store",
        ],
        "threads of its own between the host's and the disk",
    ),
    (
        "capture",
        &[
            "boundary", "clock", "codec", "config", "error", "format", "ggml", "graph", "heap", "log", "observe",
            "pipeline", "prefetch", "select", "store",
        ],
        "finds nodes in the host's graphs, asks `observe` whose rows they are, and feeds `pipeline`",
    ),
    (
        "mark",
        &["boundary", "clock", "format", "ggml", "graph", "journal", "log", "observe"],
        "the caller's spans and tensors; the writer asks it as a source",
    ),
    (
        "session",
        &[
            "boundary", "capture", "clock", "config", "error", "format", "ggml", "gpu", "host", "journal", "log",
            "mailbox", "mark", "observe", "record", "tell",
        ],
        "starts and stops everything, so it knows everything",
    ),
    (
        "hook",
        &["boundary", "capture", "ggml", "host", "journal", "observe", "session"],
        "one call into `observe` or `capture` each; `session` to start; `host` to find its own object",
    ),
    (
        "abi",
        &["boundary", "capture", "clock", "config", "format", "ggml", "journal", "log", "mark", "observe", "session"],
        "the C face of `session` and `mark`; `ggml` for the caller's tensors; `observe` for what a patched server tells",
    ),
    ("read", &["codec", "error", "format"], "lines and packets back into values"),
    (
        "analyze",
        &["codec", "format", "glob", "graph", "read"],
        "values to results; types of values, names of components and patterns of names",
    ),
    ("export", &["analyze", "codec", "error", "format", "read"], "results to text; streams to the files of others"),
    (
        "bin",
        &["analyze", "codec", "config", "error", "export", "format", "read"],
        "the companion program never touches the host's side; `config` checks flags as the library will",
    ),
];

/// Modules that may contain unsafe code: those whose `mod` line in src/lib.rs says so, one function and one module
/// of the program.
const UNSAFE: &[&str] = &[
    "abi",
    "capture",
    "prefetch.rs",
    "codec/simd.rs",
    "ggml",
    "gpu/mig.rs",
    "heap",
    "hook",
    "host",
    "mark",
    "observe",
    "log.rs",
    "bin/llama-resource/signals.rs",
];

/// A file longer than this is two files.
const MOST_LINES: usize = 500;

/// Written by bindgen, checked by tests/bindings.rs.
const GENERATED: &str = "ggml/bindings.rs";

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: path below src/ and text.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&src(), &mut paths);
    paths.sort();
    let below = |p: &Path| p.strip_prefix(src()).expect("below src").to_string_lossy().into_owned();
    paths.iter().map(|p| (below(p), fs::read_to_string(p).expect("UTF-8"))).collect()
}

/// `observe/kv.rs` is in `observe`, `clock.rs` in `clock`, everything of the program in `bin`.
fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first names after `prefix::`, in a path or in a braced list.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (i, c) in list.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    found.insert(word(&list[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn rooms_use_what_the_table_says_and_nothing_else() {
    let mut edges: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let from = room(&path);
        if path == "lib.rs" {
            continue;
        }
        // In the program `crate::` is the program itself.
        let prefix = if from == "bin" { "llama_resource_instrumentation::" } else { "crate::" };
        for to in names_after(&code(&text), prefix) {
            if to != from {
                edges.entry((from.to_owned(), to)).or_default().push(path.clone());
            }
        }
    }
    let allowed: BTreeSet<(String, String)> =
        ROOMS.iter().flat_map(|(from, to, _)| to.iter().map(|to| ((*from).to_owned(), (*to).to_owned()))).collect();
    let new: Vec<_> = edges.iter().filter(|(e, _)| !allowed.contains(*e)).collect();
    assert!(new.is_empty(), "edges that the table does not have: {new:#?}");
    let unused: Vec<_> = allowed.iter().filter(|e| !edges.contains_key(*e)).collect();
    assert!(unused.is_empty(), "the table allows what nobody uses: take it out: {unused:?}");
}

#[test]
fn rooms_use_only_what_stands_before_them() {
    let place: BTreeMap<&str, usize> = ROOMS.iter().enumerate().map(|(i, (room, ..))| (*room, i)).collect();
    let back: Vec<_> = ROOMS
        .iter()
        .flat_map(|(from, to, _)| to.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| place[from] <= place[to])
        .collect();
    assert!(back.is_empty(), "rooms that use one which stands after them in the table: {back:?}");
}

/// Files that use each other in a circle may be as many; more are a knot that nobody can read one by one.
const MOST_IN_A_CIRCLE: usize = 3;

/// The file that `path`, written in the file `from`, leads to: the longest of its beginnings that is a file.
fn file_of(from: &str, path: &[String], files: &BTreeSet<String>) -> Option<String> {
    let program = "bin/llama-resource/";
    let own: Vec<&str> = {
        let inside = from.strip_prefix(program).unwrap_or(from);
        let stem = inside.trim_end_matches(".rs").trim_end_matches("/mod");
        if stem == "main" { Vec::new() } else { stem.split('/').collect() }
    };
    let root = if from.starts_with(program) { program } else { "" };
    let (first, rest) = path.split_first()?;
    let mut place: Vec<&str> = match first.as_str() {
        "crate" => Vec::new(),
        "super" => own[..own.len().checked_sub(1)?].to_vec(),
        "self" => own,
        _ => return None,
    };
    let mut rest = rest;
    while let [next, more @ ..] = rest
        && next == "super"
    {
        place.pop()?;
        rest = more;
    }
    place.extend(rest.iter().map(String::as_str));
    (1..=place.len()).rev().find_map(|n| {
        let stem = format!("{root}{}", place[..n].join("/"));
        [format!("{stem}.rs"), format!("{stem}/mod.rs")].into_iter().find(|file| files.contains(file))
    })
}

/// Every path of the `use` lines and of the text that begins with `crate`, `super` or `self`, with braces opened.
/// Re-exports are the face of a folder, and no use of theirs.
fn paths(code: &str) -> Vec<Vec<String>> {
    fn open(prefix: &[String], text: &str, out: &mut Vec<Vec<String>>) -> usize {
        let mut path = prefix.to_vec();
        let mut word = String::new();
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c.is_alphanumeric() || c == '_' => word.push(c),
                ':' if text[at..].starts_with("::") => {
                    chars.next();
                    path.push(std::mem::take(&mut word));
                }
                '{' if word.is_empty() => {
                    let mut rest = at + 1;
                    loop {
                        let skipped = text[rest..].len() - text[rest..].trim_start().len();
                        rest += skipped;
                        rest += open(&path, &text[rest..], out);
                        match text[rest..].trim_start().chars().next() {
                            Some(',') => rest += text[rest..].find(',').unwrap_or(0) + 1,
                            _ => return rest + text[rest..].find('}').map_or(0, |end| end + 1),
                        }
                        if text[rest..].trim_start().starts_with('}') {
                            return rest + text[rest..].find('}').map_or(0, |end| end + 1);
                        }
                    }
                }
                _ => {
                    path.push(word);
                    out.push(path);
                    return at;
                }
            }
        }
        text.len()
    }
    let mut out = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            let line = code[..at].rfind('\n').map_or(0, |n| n + 1);
            let is_face =
                code[line..at].trim_start().starts_with("pub use") || code[line..at].contains("pub(crate) use");
            if !is_face && !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                open(&[], &code[at..], &mut out);
            }
        }
    }
    out
}

/// Files that use each other in a circle, by Tarjan's algorithm.
fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    #[derive(Default)]
    struct Search<'a> {
        index: BTreeMap<&'a str, (usize, usize)>,
        stack: Vec<&'a str>,
        found: Vec<Vec<String>>,
    }
    fn visit<'a>(s: &mut Search<'a>, edges: &'a BTreeMap<String, BTreeSet<String>>, at: &'a str) {
        let number = s.index.len();
        s.index.insert(at, (number, number));
        s.stack.push(at);
        for to in edges.get(at).into_iter().flatten() {
            if !s.index.contains_key(to.as_str()) {
                visit(s, edges, to);
            } else if !s.stack.contains(&to.as_str()) {
                continue;
            }
            let low = s.index[to.as_str()].1.min(s.index[at].1);
            s.index.insert(at, (number, low));
        }
        if s.index[at].1 == number {
            let first = s.stack.iter().position(|f| *f == at).unwrap_or(0);
            let circle: Vec<String> = s.stack.split_off(first).into_iter().map(str::to_owned).collect();
            if circle.len() > 1 {
                s.found.push(circle);
            }
        }
    }
    let mut search = Search::default();
    for from in edges.keys() {
        if !search.index.contains_key(from.as_str()) {
            visit(&mut search, edges, from);
        }
    }
    search.found
}

#[test]
#[expect(clippy::print_stdout, reason = "the circles that there are, for whoever asks with --nocapture")]
fn no_more_than_three_files_use_each_other_in_a_circle() {
    let all = sources();
    let files: BTreeSet<String> = all.iter().map(|(path, _)| path.clone()).collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, text) in all.iter().filter(|(p, _)| p != "lib.rs") {
        let text = code(text);
        // Tests stand outside the house: they look into every room.
        let own = text.split("#[cfg(test)]").next().unwrap_or_default();
        let to = paths(own).into_iter().filter_map(|path| file_of(from, &path, &files)).filter(|to| to != from);
        edges.entry(from.clone()).or_default().extend(to);
    }
    assert!(edges["observe/steps.rs"].contains("journal/mod.rs"), "the reading of paths is broken");
    // A folder's own face may be used by its files and name them.
    let found = circles(&edges);
    for circle in &found {
        println!("circle of {}: {}", circle.len(), circle.join(", "));
    }
    let long: Vec<_> = found.iter().filter(|c| c.len() > MOST_IN_A_CIRCLE).collect();
    assert!(long.is_empty(), "circles of more than {MOST_IN_A_CIRCLE} files: {long:#?}");
}

#[test]
fn the_table_has_every_room() {
    let found: BTreeSet<String> = sources().iter().map(|(p, _)| room(p).to_owned()).filter(|r| r != "lib").collect();
    let listed: BTreeSet<String> = ROOMS.iter().map(|(r, _, _)| (*r).to_owned()).collect();
    assert_eq!(found, listed);
}

#[test]
fn no_path_leaves_its_room_by_super() {
    // Such an edge would not be seen above.
    for (path, text) in sources() {
        let depth = path.trim_end_matches("/mod.rs").split('/').count();
        let text = code(&text);
        let (own, tests) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        let leaves = |text: &str, depth: usize| text.contains(&"super::".repeat(depth));
        // A test module is one deeper than its file.
        assert!(!leaves(own, depth) && !leaves(tests, depth + 1), "{path}: `super` is the crate here; write `crate::`");
    }
}

#[test]
fn unsafe_code_is_only_where_lib_rs_says() {
    let mut marked = BTreeSet::new();
    for (path, text) in sources() {
        let text = code(&text);
        let mut after_mark = false;
        for line in text.lines() {
            match line.trim_start().trim_start_matches("pub ").strip_prefix("mod ") {
                Some(name) if after_mark => {
                    let name = name.trim_end_matches(';');
                    let folder = path.strip_suffix("main.rs").or(path.strip_suffix("mod.rs")).unwrap_or_default();
                    marked.insert(if folder.is_empty() { name.to_owned() } else { format!("{folder}{name}.rs") });
                }
                _ if after_mark => _ = marked.insert(path.clone()),
                _ => {}
            }
            after_mark = line.contains("(unsafe_code");
        }
        let allowed = UNSAFE.contains(&path.as_str()) || UNSAFE.contains(&room(&path));
        let keyword = ["unsafe {", "unsafe fn", "unsafe impl", "#[unsafe("].iter().find(|k| text.contains(**k));
        assert!(
            allowed || keyword.is_none(),
            "{path}: `{}` outside the modules that lib.rs marks",
            keyword.unwrap_or(&"")
        );
    }
    // The compiler refuses unsafe code everywhere else; this makes a new exception a decision.
    assert_eq!(marked, UNSAFE.iter().map(|u| (*u).to_owned()).collect());
}

#[test]
fn every_file_says_first_what_it_is_for() {
    for (path, text) in sources().iter().filter(|(p, _)| p != GENERATED) {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 20, "{path} begins with {first:?}");
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for (path, text) in sources() {
        let n = text.lines().count();
        assert!(n <= MOST_LINES, "{path} has {n} lines, at most {MOST_LINES} are wanted: split it");
    }
}
