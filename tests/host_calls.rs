//! docs/HOST_CALLS.md says of every function that we call in the host what it asserts, and of none that we do not call.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Names behind `before` at the beginning of a line.
fn names(text: &str, before: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = |line: &str| line.split(|c| !is_part(c)).next().unwrap_or_default().to_owned();
    text.lines().filter_map(|l| l.trim_start().strip_prefix(before)).map(name).filter(|n| n.contains('_')).collect()
}

#[test]
fn every_function_that_is_called_is_explained() {
    let explained = names(&read("docs/HOST_CALLS.md"), "| `");
    let api = read("src/ggml/api.rs");
    let called = names(api.split("\napi! {").nth(1).expect("the list"), "fn ");
    assert!(called.len() > 50, "{called:?}");
    assert_eq!(called, explained);
}
