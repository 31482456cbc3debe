//! What docs/SECURITY.md promises and no other test holds; and that every test that the page names is there.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "pipeline/feed.rs"]
mod feed;
#[path = "stream/sample.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod sample;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use llama_resource_instrumentation::codec::{Codec, DType};
use llama_resource_instrumentation::format::stream::Part;
use llama_resource_instrumentation::pipeline::{Pipeline, Policy};
use sample::{Writer, lz4_stored, plain};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("security-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn tool(here: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
    command.args(args).current_dir(here).stdin(Stdio::null()).output().unwrap()
}

/// Everything below a folder, and what it is.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(everything(&entry.path()));
        }
    }
    found
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let page = fs::read_to_string(root().join("docs/SECURITY.md")).unwrap();
    let named: Vec<(&str, &str)> =
        page.split('`').filter_map(|t| t.split_once("::")).filter(|(f, _)| f.contains('.')).collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, test) in named {
        let text = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let is_there = [format!("fn {test}("), format!("def {test}(")].iter().any(|start| text.contains(start));
        assert!(is_there, "docs/SECURITY.md names {file}::{test}, which is not there");
    }
    // Each line of the table has one.
    for line in page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| what") && !l.starts_with("|---")) {
        assert!(line.contains("::"), "no test: {line}");
    }
}

#[test]
fn doctor_says_that_the_linker_ignores_a_preload_for_set_user_id() {
    let here = folder("setuid");
    let program = here.join("program");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let output = tool(&here, &["doctor", "./program", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &said["verdict"], &said["usable"]),
        (Some(2), &json!("preload_ignored"), &json!(false))
    );
    assert_eq!(said["predictions"]["requests"]["value"], "no");
}

#[test]
fn what_a_capture_writes_is_the_owners_alone() {
    let path = feed::scratch("security");
    let mut options = feed::options(&path, Codec::None, 32, Policy::Block);
    (options.checkpoint_tokens, options.tokens_path) = (Some(20), Some(feed::tokens_file(&path)));
    let pipeline = Pipeline::start(options).unwrap();
    let mut feeder = feed::Feeder::new(2);
    (1..=60).for_each(|step| _ = feeder.step(&pipeline, step));
    assert!(pipeline.flush(feed::PATIENCE));
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let files = |folder: &Path| {
        everything(folder).into_iter().filter(|p| p.to_string_lossy().contains(&name)).collect::<Vec<_>>()
    };
    let written = files(path.parent().unwrap());
    assert!(written.len() >= 2, "{written:?}");
    for file in written {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    pipeline.finish(feed::PATIENCE);
    feed::clear(&path);
}

/// Names that lead out of a folder, or are no names of files.
const NAMES: [&str; 10] =
    ["../../escaped", "/tmp/escaped", "a/b/c", "..", ".", "", "-rf", "x\0y", "CON", "layer=3/../../escaped"];

fn stream_of(names: &[&str]) -> Vec<u8> {
    let mut w = Writer::default();
    w.header(&json!({}));
    for name in names {
        let parts = vec![Part { step: 0, t_ns: 0, ne: [2, 1, 1, 1], token_dim: 1, rows: Vec::new() }];
        w.tensor(name, plain(name, "ADD", -7, DType::F32, Codec::None, 2, parts), &lz4_stored(&[0; 8]), Vec::new());
    }
    w.bytes
}

#[test]
fn exports_stay_in_their_folder_whatever_tensors_are_called() {
    let here = folder("names");
    let inner = here.join("one/two/three");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("s"), stream_of(&NAMES)).unwrap();
    for (format, out) in [("npy", "npy"), ("parquet", "parquet"), ("safetensors", "file")] {
        let output = tool(&inner, &["stream", "export", "s", "--to", format, "--out", out]);
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let outside: Vec<_> =
        everything(&here).into_iter().filter(|p| !p.starts_with(&inner) && !inner.starts_with(p)).collect();
    assert_eq!(outside, Vec::<PathBuf>::new());
    assert!(!Path::new("/tmp/escaped.npy").exists() && !Path::new("/tmp/escaped").exists());
    assert_eq!(fs::read_dir(inner.join("npy")).unwrap().count(), 2 * NAMES.len() + 1);
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 4, "the stream, two folders, a file");
    fs::remove_dir_all(here).unwrap();
}

#[test]
fn a_link_that_waits_in_the_place_of_a_new_file_is_not_written_through() {
    let here = folder("links");
    fs::write(here.join("s"), stream_of(&["a"])).unwrap();
    fs::write(here.join("mine"), "mine").unwrap();
    fs::create_dir_all(here.join("tables/layer=-7")).unwrap();
    for part in ["tensors.part", "whole.part"] {
        symlink(here.join("mine"), here.join(part)).unwrap();
    }
    for args in [
        &["stream", "export", "s", "--to", "safetensors", "--out", "tensors"][..],
        &["stream", "recover", "s", "--out", "whole"],
    ] {
        let output = tool(&here, args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read_to_string(here.join("mine")).unwrap(), "mine");
    for made in ["tensors", "whole"] {
        assert!(fs::symlink_metadata(here.join(made)).unwrap().is_file(), "{made}");
    }
    // A folder that is not empty is not taken: a link may wait in it as well.
    assert!(!tool(&here, &["stream", "export", "s", "--to", "parquet", "--out", "tables"]).status.success());
    fs::remove_dir_all(here).unwrap();
}
