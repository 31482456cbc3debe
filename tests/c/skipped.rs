//! A test that cannot run fails, unless the user asked for it to be left out; what was left out is told at the end
//! of `make test`.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::panic, reason = "a test that cannot run fails by it")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::{env, thread};

/// Writes down that the calling test, or a part of it, does not run, and why.
pub fn skipped(reason: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/skipped.txt");
    let this = thread::current();
    let file = env!("CARGO_CRATE_NAME");
    let line = format!("{file}::{}: {reason}\n", this.name().unwrap_or("?"));
    let mut log = OpenOptions::new().create(true).append(true).open(path).expect("target/skipped.txt");
    log.write_all(line.as_bytes()).expect("target/skipped.txt");
}

/// For what `make` builds or fetches: `LRI_SKIP=llama,model` leaves out the tests that need it, otherwise
/// they fail here.
pub fn must_have<T>(found: Option<T>, name: &str, remedy: &str) -> Option<T> {
    if found.is_none() {
        let wished = env::var("LRI_SKIP").unwrap_or_default().split(',').any(|n| n.trim() == name);
        assert!(wished, "{name} is missing: {remedy}, or leave out what needs it with LRI_SKIP={name}");
        skipped(&format!("{name} is missing, and LRI_SKIP names it"));
    }
    found
}

/// Whether a program of others can be run here. What needs one that is not installed is left out, and told.
pub fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skipped(&format!("{program} is not installed"));
    }
    found
}
