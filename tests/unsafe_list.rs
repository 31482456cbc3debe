//! docs/UNSAFE.md lists what every unsafe block, function and implementation of src/ relies on, in the words of its
//! SAFETY comment. `UPDATE=1` writes it.

mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use text::wrapped;

const HEAD: &str = "\
# Unsafe code

Generated from the comments in src/ by `UPDATE=1 cargo test --test unsafe_list`. The compiler refuses unsafe code
outside the modules that src/lib.rs marks (tests/layering.rs has the list), and clippy refuses an unsafe block without a
SAFETY comment. This page has what each of them says: the promise that the code relies on, or, for a function that is
unsafe to call, what it asks of its caller. A number says how often the same words stand in a file.
";

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out.sort();
}

/// The comment that begins at line `at`, behind its first words.
fn comment(lines: &[&str], at: usize, marker: &str) -> String {
    let first = lines[at].split_once(marker).map(|(_, rest)| rest.trim()).unwrap_or_default();
    let own = |l: &&&str| l.trim().starts_with("//") && !l.contains("SAFETY:");
    let further = lines[at + 1..].iter().take_while(own).map(|l| l.trim().trim_start_matches('/').trim());
    [first].into_iter().chain(further).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// What unsafe functions ask of their callers: the section of their documentation.
fn asked(lines: &[&str], at: usize) -> String {
    let own = |l: &&&str| l.trim().starts_with("///") && l.trim() != "///";
    let text: Vec<_> =
        lines[at + 1..].iter().take_while(own).map(|l| l.trim().trim_start_matches('/').trim()).collect();
    text.join(" ")
}

/// Promises and demands of a file, and how often each stands there.
fn promises(text: &str) -> BTreeMap<(&'static str, String), usize> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim();
        let entry = if line.starts_with("//") && line.contains("SAFETY: ") {
            ("relies on", comment(&lines, at, "SAFETY: "))
        } else if line == "/// # Safety" {
            ("asks", asked(&lines, at))
        } else {
            continue;
        };
        *found.entry(entry).or_insert(0) += 1;
    }
    found
}

fn page() -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let (mut page, mut blocks, mut places) = (String::new(), 0, 0);
    for path in files {
        let found = promises(&fs::read_to_string(&path).expect("UTF-8"));
        if found.is_empty() {
            continue;
        }
        places += 1;
        page += &format!("\n## {}\n\n", path.strip_prefix(&src).expect("below src").display());
        for ((kind, text), n) in found {
            blocks += n;
            let times = if n > 1 { format!(" ({n} times)") } else { String::new() };
            page += &wrapped(&format!("- {kind}{times}: {text}"), 2);
            page.push('\n');
        }
    }
    format!("{HEAD}\n{blocks} promises and demands in {places} files.\n{page}")
}

#[test]
fn the_page_says_what_the_comments_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/UNSAFE.md");
    let page = page();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).expect("docs can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(page.lines()).find(|(a, b)| a != b);
    assert!(found == page, "docs/UNSAFE.md is not what src/ says (UPDATE=1 writes it), first at {differs:?}");
}
