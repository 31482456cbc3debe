//! The committed C header is what cbindgen makes of src/abi.rs and its parts, and compiles without a warning as C99,
//! C11, C++11 and C++17 with every compiler that is installed, with and without ggml's headers before it or behind it.
//! `UPDATE=1 cargo test --test header` writes it anew.
#![allow(clippy::print_stdout, reason = "says what is not tested here, and figures")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "c/skipped.rs"]
mod skipped;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> PathBuf {
    root().join("include/llama-resource-instrumentation.h")
}

fn in_dialect(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.replace("// # Safety\n", "// Requires:\n").split_inclusive('\n') {
        let mut chars = line.chars().peekable();
        let mut before = '\n';
        while let Some(c) = chars.next() {
            let starts_a_name = |n: &char| n.is_alphabetic() || *n == '_';
            out.push(c);
            if c == '*' && before == ' ' && !line.starts_with("//") && chars.peek().is_some_and(starts_a_name) {
                out.push(' ');
            }
            before = c;
        }
    }
    out
}

#[test]
fn committed_header_equals_the_source() {
    let mut config = cbindgen::Config::from_file(root().join("include/cbindgen.toml")).expect("include/cbindgen.toml");
    let part = |name: &str| fs::read_to_string(root().join("include").join(name)).expect(name);
    config.trailer = Some(format!("{}{}", part("macros.h.in"), part("face.hpp.in").trim_end()));
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root().join("src/abi.rs"))
        .with_src(root().join("src/abi/marks.rs"))
        .with_src(root().join("src/abi/capture.rs"))
        .with_src(root().join("src/abi/eval.rs"))
        .with_src(root().join("src/abi/server.rs"))
        .generate()
        .expect("cbindgen")
        .write(&mut made);
    // Where cbindgen's output is not ggml's dialect: `char *p`, and a heading for readers of Rust.
    let made = in_dialect(&String::from_utf8(made).expect("UTF-8"));
    if env::var_os("UPDATE").is_some() {
        fs::write(header(), &made).expect("write");
    }
    let committed = fs::read_to_string(header()).unwrap_or_default();
    assert!(committed == made, "the header is not up to date: `UPDATE=1 cargo test --test header && git diff include`");
}

/// Compilers that are installed, each with the language that its standards belong to.
fn compilers() -> Vec<(String, bool)> {
    let named = |variable: &str, usual: &[&str]| -> Vec<String> {
        env::var(variable).map_or_else(|_| usual.iter().map(|c| (*c).to_owned()).collect(), |c| vec![c])
    };
    let all = named("CC", &["gcc", "clang"])
        .into_iter()
        .map(|c| (c, false))
        .chain(named("CXX", &["g++", "clang++"]).into_iter().map(|c| (c, true)));
    let found: Vec<_> = all.filter(|(compiler, _)| skipped::is_installed(compiler)).collect();
    assert!(!found.is_empty(), "no C compiler");
    found
}

#[test]
fn header_compiles_without_a_warning_in_every_standard_with_and_without_ggml() {
    const OURS: &str = "#include \"llama-resource-instrumentation.h\"\n";
    const GGML: &str = "#include \"ggml.h\"\n";
    const MAIN: &str = "int main(void) { return LLAMA_RESOURCE_INSTRUMENTATION_STATUS_SUCCESS; }\n";
    // Every macro, where an `if` without braces and its `else` would break on a careless one.
    const MACROS: &str = "
        void use(struct ggml_tensor * t, const struct ggml_tensor * const * in, int yes);
        void use(struct ggml_tensor * t, const struct ggml_tensor * const * in, int yes) {
            if (yes) LLAMA_RESOURCE_BEGIN_SESSION(\"s\"); else LLAMA_RESOURCE_END_SESSION();
            if (yes) LLAMA_RESOURCE_BEGIN_LAYER(1); else LLAMA_RESOURCE_END_LAYER(1);
            if (yes) LLAMA_RESOURCE_BEGIN_COMPONENT(\"c\"); else LLAMA_RESOURCE_END_COMPONENT(\"c\");
            if (yes) LLAMA_RESOURCE_LOG_MEMORY_ALLOCATION(t, \"c\"); else LLAMA_RESOURCE_LOG_MLP_OPERATION(\"up_proj\", t, t);
            if (yes) LLAMA_RESOURCE_LOG_COMPUTE_OPERATION(\"mul_mat\", \"c\", in INPUTS, t); else LLAMA_RESOURCE_LOG_COMPONENT_HANDOFF(\"a\", \"b\");
            if (yes) RESOURCE_TRACK_MEMORY_ALLOC(t, \"c\"); else RESOURCE_TRACK_COMPUTE_OP(\"mul_mat\", \"c\", in INPUTS, t);
            if (yes) RESOURCE_TRACK_COMPONENT_BEGIN(\"c\"); else RESOURCE_TRACK_COMPONENT_END(\"c\");
            if (yes) RESOURCE_TRACK_LAYER_BEGIN(1); else RESOURCE_TRACK_LAYER_END(1);
            if (yes) RESOURCE_TRACK_MLP_OP(\"up_proj\", t, t); else RESOURCE_TRACK_KV_CACHE(1, \"update\", 4096);
            if (yes) RESOURCE_TRACK_HANDOFF(\"a\", \"b\");
            (void) t; (void) in;
        }
        ";
    let in_c = MACROS.replace("INPUTS", ", 3");
    let in_cpp17 = MACROS
        .replace("in INPUTS", "{t, t, t}")
        .replace("const struct ggml_tensor * const * in", "const std::vector<const ggml_tensor *> & in");
    let dir = env::temp_dir().join(format!("lri-header-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("temporary directory");
    let ggml = root().join("llama.cpp/ggml/include");
    let with_ggml =
        skipped::must_have(ggml.join("ggml.h").is_file().then_some(()), "submodule", "run `make submodule`").is_some();
    let mut checked = 0;
    for (compiler, cpp) in compilers() {
        let standards: &[(&str, &str)] = if cpp {
            &[("-std=c++11", &in_c), ("-std=c++14", &in_c), ("-std=c++17", &in_cpp17), ("-std=c++20", &in_cpp17)]
        } else {
            &[("-std=c99", &in_c), ("-std=c11", &in_c)]
        };
        for (standard, macros) in standards {
            for (i, includes) in [OURS.repeat(2), format!("{GGML}{OURS}"), format!("{OURS}{GGML}")].iter().enumerate() {
                if i > 0 && !with_ggml {
                    continue;
                }
                for disabled in [false, true] {
                    let source = dir.join(if cpp { "a.cpp" } else { "a.c" });
                    let define = if disabled { "#define LLAMA_RESOURCE_DISABLE_MACROS\n" } else { "" };
                    fs::write(&source, format!("{define}{includes}{macros}{MAIN}")).expect("write");
                    let out = Command::new(&compiler)
                        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-I"])
                        .arg(root().join("include"))
                        // ggml's own headers are not ours to warn about.
                        .arg("-isystem")
                        .arg(&ggml)
                        .arg(&source)
                        .arg("-o")
                        .arg(dir.join("a.o"))
                        .output()
                        .expect("a compiler");
                    let errors = String::from_utf8_lossy(&out.stderr);
                    assert!(out.status.success(), "{compiler} {standard} {includes:?} {define}: {errors}");
                    if disabled && !cpp {
                        // "Compiles to nothing": no reference to us is left, without any optimisation.
                        let nm = Command::new("nm").arg("-u").arg(dir.join("a.o")).output().expect("nm");
                        let left = String::from_utf8_lossy(&nm.stdout).into_owned();
                        assert!(!left.contains("llama_resource"), "{compiler} {standard}: {left}");
                    }
                    checked += 1;
                }
            }
        }
    }
    println!("{checked} combinations");
    fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn versions_of_header_library_and_cargo_agree() {
    use llama_resource_instrumentation::abi;
    let text = fs::read_to_string(header()).expect("the header");
    let version = format!(
        "#define LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION {}",
        abi::LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION
    );
    assert!(text.lines().any(|l| l == version), "{version}");
    assert_eq!(abi::llama_resource_instrumentation_abi_version(), abi::LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION);
    let build = fs::read_to_string(root().join("build.rs")).expect("build.rs");
    let soname = format!("libllama_resource_instrumentation.so.{}", abi::LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION);
    assert!(build.contains(&soname), "build.rs names another soname than {soname}");
}
