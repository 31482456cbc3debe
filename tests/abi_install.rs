//! `.make/install.sh`: what it installs can be found by pkg-config and by CMake, compiled against, linked and
//! run - and moved.
#![allow(clippy::print_stdout, reason = "says what is not tested here, and figures")]

#[path = "c/support.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use support::{Folder, built, is_installed, root, run};

const PROGRAM: &str = "#include <llama-resource-instrumentation.h>
int main(void) {
    if (llama_resource_instrumentation_init(1, \"linked.jsonl\") != LLAMA_RESOURCE_INSTRUMENTATION_STATUS_SUCCESS) return 1;
    LLAMA_RESOURCE_BEGIN_SESSION(\"linked\");
    LLAMA_RESOURCE_END_SESSION();
    return (int) llama_resource_instrumentation_free();
}
";

fn install(prefix: &Path) {
    run(Command::new(root().join(".make/install.sh")).arg(prefix).env("LRI_BUILT", built()).env_remove("DESTDIR"));
}

#[test]
fn pkg_config_finds_what_was_installed_and_where_it_was_moved_to() {
    if !is_installed("pkg-config") {
        return;
    }
    let folder = Folder::new("install-pc");
    let prefix = folder.path("first prefix");
    install(&prefix);
    let lib = std::fs::symlink_metadata(prefix.join("lib/libllama_resource_instrumentation.so")).expect("the link");
    assert!(lib.file_type().is_symlink());
    let moved = folder.path("moved");
    std::fs::rename(&prefix, &moved).expect("rename");
    std::fs::write(folder.path("a.c"), PROGRAM).expect("write");
    let pc = |arguments: &[&str]| {
        let mut c = Command::new("pkg-config");
        c.args(arguments).arg("llama-resource-instrumentation").env("PKG_CONFIG_PATH", moved.join("lib/pkgconfig"));
        String::from_utf8(run(&mut c).stdout).expect("UTF-8").trim().to_owned()
    };
    assert_eq!(pc(&["--modversion"]), env!("CARGO_PKG_VERSION"));
    let flags = pc(&["--cflags", "--libs"]);
    let program = folder.path("a");
    run(Command::new("gcc").arg(folder.path("a.c")).arg("-o").arg(&program).args(flags.split_whitespace()));
    run(Command::new(&program).current_dir(&folder.0).env("LD_LIBRARY_PATH", moved.join("lib")));
    assert_eq!(support::of(&support::events(&folder.path("linked.jsonl")), "resource_tracking_begin").len(), 1);
}

#[test]
fn cmake_finds_what_was_installed() {
    let own = root().join("target/venv/bin/cmake");
    let cmake = if own.is_file() { own.display().to_string() } else { "cmake".to_owned() };
    if !is_installed(&cmake) {
        return;
    }
    let folder = Folder::new("install-cmake");
    let prefix = folder.path("prefix");
    install(&prefix);
    std::fs::write(folder.path("a.c"), PROGRAM).expect("write");
    let lists = "cmake_minimum_required(VERSION 3.16)
project(a C)
find_package(llama_resource_instrumentation 0.1 REQUIRED)
add_executable(a a.c)
target_link_libraries(a PRIVATE llama_resource_instrumentation::llama_resource_instrumentation)
";
    std::fs::write(folder.path("CMakeLists.txt"), lists).expect("write");
    let build = folder.path("build");
    let configure = |version: &str| {
        std::fs::write(folder.path("CMakeLists.txt"), lists.replace(" 0.1 ", &format!(" {version} "))).expect("write");
        let mut c = Command::new(&cmake);
        c.arg("-G").arg("Unix Makefiles").arg("-S").arg(&folder.0).arg("-B").arg(&build);
        c.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
        c
    };
    assert!(!configure("9.0").output().expect("cmake").status.success(), "a version that is not there was found");
    run(&mut configure("0.1"));
    run(Command::new(&cmake).arg("--build").arg(&build));
    // CMake has written the run path: no LD_LIBRARY_PATH.
    run(Command::new(build.join("a")).current_dir(&folder.0));
    assert_eq!(support::of(&support::events(&folder.path("linked.jsonl")), "resource_session_end").len(), 1);
}
