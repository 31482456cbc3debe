//! The committed C header is what cbindgen makes of src/abi.rs, compiles cleanly as C99 and C++11, and carries Cargo's version.
//! `UPDATE=1 cargo test --test header` writes it anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> PathBuf {
    root().join("include/llama-resource-instrumentation.h")
}

#[test]
fn committed_header_equals_the_source() {
    let config = cbindgen::Config::from_file(root().join("include/cbindgen.toml")).expect("include/cbindgen.toml");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root().join("src/abi.rs"))
        .generate()
        .expect("cbindgen")
        .write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    if env::var_os("UPDATE").is_some() {
        fs::write(header(), &made).expect("write");
    }
    let committed = fs::read_to_string(header()).unwrap_or_default();
    assert!(committed == made, "the header is not up to date: `UPDATE=1 cargo test --test header && git diff include`");
}

#[test]
fn header_compiles_without_a_warning_as_c99_and_cpp11() {
    let dir = env::temp_dir().join(format!("lri-header-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("temporary directory");
    let cc = env::var("CC").unwrap_or_else(|_| "cc".into());
    let cxx = env::var("CXX").unwrap_or_else(|_| "c++".into());
    for (compiler, standard, file) in [(cc, "-std=c99", "a.c"), (cxx, "-std=c++11", "a.cpp")] {
        let source = dir.join(file);
        fs::write(&source, "#include \"llama-resource-instrumentation.h\"\n#include \"llama-resource-instrumentation.h\"\nint main(void) { return LLAMA_RESOURCE_INSTRUMENTATION_STATUS_SUCCESS; }\n").expect("write");
        let out = Command::new(&compiler)
            .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
            .arg(root().join("include"))
            .arg(&source)
            .output()
            .expect("a compiler");
        assert!(out.status.success(), "{compiler} {standard}: {}", String::from_utf8_lossy(&out.stderr));
    }
    fs::remove_dir_all(&dir).expect("clean up");
}
