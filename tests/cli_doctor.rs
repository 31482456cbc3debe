//! `llama-resource doctor` on MOCK builds of llama.cpp, laid out as distributions and official packages lay theirs out:
//! the CPU backend lies in a folder of its own, which only a text in libggml names.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const BASE: &str = "
unsigned long ggml_tensor_overhead(void) { return OVERHEAD; }
_Bool ggml_gallocr_alloc_graph(void *a, void *g) { return a == g; }
int ggml_backend_sched_graph_compute_async(void *s, void *g) { return s == g; }
_Bool ggml_backend_sched_alloc_graph(void *s, void *g) { return ggml_gallocr_alloc_graph(s, g); }
";
const GGML: &str = "
const char *const ggml_backend_dir = FOLDER;
void ggml_backend_load_all(void) { __builtin_puts(ggml_backend_dir); }
";
const CPU: &str = "
void ggml_barrier(void *t) { (void)t; }
_Bool ggml_cpu_extra_compute_forward(void *p, void *t) { return p == t; }
_Bool compute(void *p) { ggml_barrier(p); return ggml_cpu_extra_compute_forward(p, p); }
";
const LLAMA: &str = "
int ggml_backend_sched_graph_compute_async(void *s, void *g);
_Bool ggml_backend_sched_alloc_graph(void *s, void *g);
int llama_decode(void *c) { return ggml_backend_sched_alloc_graph(c, c) + ggml_backend_sched_graph_compute_async(c, c); }
void *llama_model_load_from_file(const char *path) { return (void *)path; }
";
const HOST: &str = "
int llama_decode(void *c);
void *llama_model_load_from_file(const char *path);
void ggml_backend_load_all(void);
int main(int n, char **v) { ggml_backend_load_all(); return llama_decode(llama_model_load_from_file(v[n - 1])); }
";

struct Build {
    folder: PathBuf,
}

impl Build {
    fn new(name: &str, overhead: u32) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for part in ["bin", "lib", "libexec/ggml"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let build = Self { folder };
        build.library("lib/libggml-base.so", BASE, &[&format!("-DOVERHEAD={overhead}")]);
        let backends = format!("-DFOLDER=\"{}\"", build.folder.join("libexec/ggml").display());
        build.library("lib/libggml.so", GGML, &[&backends, "-lggml-base"]);
        build.library("lib/libllama.so", LLAMA, &["-lggml-base", "-lggml"]);
        build.library("libexec/ggml/libggml-cpu-haswell.so", CPU, &[]);
        build.compile("bin/llama-server", HOST, &["-lllama", "-lggml", "-lggml-base"]);
        build
    }

    fn library(&self, file: &str, source: &str, further: &[&str]) {
        let name = format!("-Wl,-soname,{}", Path::new(file).file_name().unwrap().display());
        self.compile(file, source, &[&["-shared", "-fPIC", "-fsemantic-interposition", &name], further].concat());
    }

    fn compile(&self, file: &str, source: &str, further: &[&str]) {
        let source_file = self.folder.join(file).with_extension("c");
        fs::write(&source_file, source).unwrap();
        let (lib, rpath) = (format!("-L{}", self.folder.join("lib").display()), "-Wl,-rpath,$ORIGIN/../lib");
        let output = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
            .args(["-O1", "-w", "-o"])
            .arg(self.folder.join(file))
            .arg(&source_file)
            .args([&lib, rpath, "-Wl,--no-as-needed"])
            .args(further)
            .output()
            .unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(source_file).unwrap();
    }

    fn doctor(&self, file: &str) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
        let output =
            command.arg("doctor").arg(self.folder.join(file)).arg("--json").stdin(Stdio::null()).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn values<const N: usize>(said: &Value, keys: [&str; N]) -> [String; N] {
    keys.map(|key| said["predictions"][key]["value"].as_str().unwrap().to_owned())
}

#[test]
fn predictions_have_their_keys_and_a_backend_is_found_where_the_build_says() {
    let build = Build::new("packaged", 368);
    let said = build.doctor("bin/llama-server");
    let keys: Vec<&String> = said["predictions"].as_object().unwrap().keys().collect();
    let expected = ["capture", "kv_operations", "layout", "memory", "models", "operation_times", "requests", "tensors"];
    let mut sorted: Vec<&str> = keys.iter().map(|k| k.as_str()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert!(
        said["predictions"].as_object().unwrap().values().all(|p| !p["reason"].as_str().unwrap().is_empty()),
        "{said:#}"
    );
    let backends = said["dlopened_backends"].to_string();
    assert!(backends.contains("libggml-cpu-haswell.so"), "{backends}");
    let all = ["requests", "models", "layout", "tensors", "capture", "operation_times"];
    assert_eq!(values(&said, all), ["yes"; 6], "{said:#}");
    // What this build does not export is not there.
    assert_eq!(values(&said, ["memory"]), ["no"]);
    // Without the folder nobody knows.
    fs::remove_dir_all(build.folder.join("libexec")).unwrap();
    let said = build.doctor("bin/llama-server");
    assert_eq!(values(&said, ["operation_times", "capture"]), ["unknown", "yes"], "{said:#}");
}

#[test]
fn a_tensor_of_another_size_is_foretold() {
    let build = Build::new("bigger", 384);
    let said = build.doctor("bin/llama-server");
    assert_eq!(values(&said, ["layout", "tensors", "capture", "requests"]), ["no", "no", "no", "yes"], "{said:#}");
    let why = said["predictions"]["layout"]["reason"].as_str().unwrap();
    assert!(why.starts_with("a tensor has 352 bytes in libggml-base.so, expected 336"), "{why}");
}

#[test]
fn a_library_for_hosts_that_look_functions_up_is_seen() {
    let build = Build::new("library", 368);
    let said = build.doctor("lib/libllama.so");
    let by_handle = if cfg!(target_arch = "x86_64") { "yes" } else { "unknown" };
    assert_eq!(values(&said, ["requests", "models"]), [by_handle; 2], "{said:#}");
    // Of an interpreter nothing is known before it loads something.
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
    let Some(python) = ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().find(|p| Path::new(p).exists())
    else {
        return;
    };
    let output = command.args(["doctor", python, "--json"]).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    if said["verdict"] == "later" {
        assert_eq!(values(&said, ["requests", "layout", "capture"]), ["unknown"; 3], "{said:#}");
    }
}
