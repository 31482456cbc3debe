//! The library exports the C API, the hooks and `dlsym`, and nothing else: `nm -D` equals tests/golden/symbols.txt.
//! `UPDATE=1 cargo test --test symbols` writes it anew.

#[path = "c/support.rs"]
mod support;

use std::process::Command;
use std::{env, fs};

fn nm(arguments: &[&str]) -> String {
    let out = Command::new("nm").args(arguments).arg(support::library_in(&support::built())).output().expect("nm");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn exported() -> Vec<String> {
    let mut names: Vec<String> = nm(&["-D", "--defined-only", "--format=posix"])
        .lines()
        .filter_map(|l| l.split_whitespace().next().map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[test]
fn exported_symbols_equal_the_golden_list() {
    let path = support::root().join("tests/golden/symbols.txt");
    let found = exported().join("\n") + "\n";
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).expect("write");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == found, "`UPDATE=1 cargo test --test symbols && git diff tests/golden`; found:\n{found}");
}

#[test]
fn every_function_of_the_header_is_exported_and_no_cpp_symbol_is() {
    let names = exported();
    let header =
        fs::read_to_string(support::root().join("include/llama-resource-instrumentation.h")).expect("the header");
    let c =
        header.split("extern \"C\" {").nth(1).and_then(|s| s.split("}  // extern \"C\"").next()).expect("the C part");
    let declared: Vec<&str> = c
        .lines()
        .filter(|l| !l.starts_with("//") && !l.starts_with(' '))
        .filter_map(|l| l.split('(').next()?.rsplit([' ', '*']).next())
        .filter(|n| n.starts_with("llama_resource_"))
        .collect();
    assert!(declared.len() > 20, "{declared:?}");
    for name in &declared {
        assert!(names.iter().any(|n| n == name), "{name} is declared and not exported");
    }
    for name in names.iter().filter(|n| n.starts_with("llama_resource_")) {
        assert!(declared.contains(&name.as_str()), "{name} is exported and not declared");
    }
    assert!(
        !names.iter().any(|n| n.starts_with("_Z") || n.starts_with("_R") || n.starts_with("rust_")),
        "mangled names"
    );
}

#[test]
fn soname_carries_the_abi_version() {
    let out =
        Command::new("readelf").args(["-d"]).arg(support::library_in(&support::built())).output().expect("readelf");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let version = llama_resource_instrumentation::abi::LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION;
    assert!(text.contains(&format!("soname: [libllama_resource_instrumentation.so.{version}]")), "{text}");
}
