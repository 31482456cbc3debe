//! What the tests of the C API share: compiling a program against the header and the library, running it,
//! reading its log.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, clippy::panic, reason = "a test says what is not tested, and fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use serde_json::Value;

#[path = "skipped.rs"]
mod skipped;

pub use skipped::{is_installed, must_have};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put the library that these tests were built with: beside the test.
pub fn built() -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let folder = test.parent().expect("target/<profile>/deps/<test>").to_owned();
    assert!(library_in(&folder).is_file(), "{} is not there", library_in(&folder).display());
    folder
}

/// The library in `folder`.
pub fn library_in(folder: &Path) -> PathBuf {
    folder.join("libllama_resource_instrumentation.so")
}

/// ggml and llama as `make llama` builds them. `None` where the user wants to do without.
pub fn llama() -> Option<PathBuf> {
    let bin = root().join("target/llama.cpp/bin");
    must_have(bin.join("libllama.so").is_file().then_some(bin), "llama", "run `make llama`")
}

/// The model of `make model`. `None` where the user wants to do without.
pub fn model() -> Option<PathBuf> {
    let model = root().join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    must_have(model.is_file().then_some(model), "model", "run `make model`")
}

/// An empty folder of this test, with the library under its soname.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("lri-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("temporary folder");
        std::os::unix::fs::symlink(library_in(&built()), folder.join("libllama_resource_instrumentation.so.1"))
            .expect("link");
        Self(folder)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles tests/c/`source` into `name`, warnings being errors, and links it with the library; with ggml and
    /// llama if `with_llama`.
    pub fn compile(
        &self,
        compiler: &str,
        source: &str,
        name: &str,
        flags: &[&str],
        with_llama: Option<&Path>,
    ) -> PathBuf {
        let program = self.path(name);
        let cpp = source.ends_with(".cpp");
        let mut c = Command::new(compiler);
        c.arg(if cpp { "-std=c++17" } else { "-std=gnu11" }).args([
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-g",
            "-I",
        ]);
        c.arg(root().join("include")).args(flags).arg(root().join("tests/c").join(source)).arg("-o").arg(&program);
        if let Some(llama) = with_llama {
            // Behind libllama, so that the hooks are not reached: what LD_PRELOAD is for.
            c.arg("-isystem")
                .arg(root().join("llama.cpp/ggml/include"))
                .arg("-isystem")
                .arg(root().join("llama.cpp/include"));
            c.arg("-L")
                .arg(llama)
                .args(["-lllama", "-lggml", "-lggml-base"])
                .arg(format!("-Wl,-rpath,{}", llama.display()));
        }
        c.arg(self.path("libllama_resource_instrumentation.so.1"))
            .arg(format!("-Wl,-rpath,{}", self.0.display()))
            .arg("-lpthread");
        let out = c.output().expect("a compiler");
        assert!(out.status.success(), "{compiler} {source}: {}", String::from_utf8_lossy(&out.stderr));
        program
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Runs a program in a folder, without our settings in its environment; it must succeed.
pub fn run(command: &mut Command) -> Output {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_RESOURCE_") {
            command.env_remove(name);
        }
    }
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    out
}

/// How a program is run: plainly, under valgrind, or compiled with AddressSanitizer.
pub fn checkers() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    let mut all = vec![("plain", vec![], vec![])];
    if is_installed("valgrind") {
        let arguments =
            vec!["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"];
        all.push(("valgrind", vec![], arguments));
    }
    all.push(("asan", vec!["-fsanitize=address,undefined", "-fno-omit-frame-pointer"], vec![]));
    all
}

/// `program`, run by `wrapper`.
pub fn command(wrapper: &[&str], program: &Path) -> Command {
    let mut words: Vec<String> = wrapper.iter().map(|w| (*w).to_owned()).collect();
    words.push(program.display().to_string());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// The events of a log; every line must be one that this version's reader understands.
pub fn events(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    assert!(text.ends_with('\n'), "{}: the last line is cut", log.display());
    text.lines()
        .map(|l| {
            serde_json::from_str::<llama_resource_instrumentation::format::Line>(l)
                .unwrap_or_else(|e| panic!("{l}: {e}"));
            serde_json::from_str(l).expect("JSON")
        })
        .collect()
}

/// The names of the events, in order.
pub fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["event"].as_str().expect("a kind")).collect()
}

/// Events of one kind.
pub fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["event"] == kind).collect()
}
