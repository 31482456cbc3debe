//! Capturing from the command line: the flags of `run`, and `doctor --tensors` on a stand-in for a server (a script
//! that writes the list as the library would; tests/server asks a real one).
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const FLAGS: &str = "--capture /tmp/%p.stream --tensors residual@0-3,logits --route retain --codec bounded --error-bound 1e-2 \
                     --max-memory 64M --policy drop --checkpoint-tokens 500 --resume --requests 1-3 --token-stride 2 \
                     --sample-elements 128 --codec-threads 2";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("LLAMA_RESOURCE_")) {
        command.env_remove(name);
    }
    // Any file will do: the dynamic linker passes over what it cannot preload.
    command.env_remove("LD_PRELOAD").env("LLAMA_RESOURCE_LIBRARY", std::env::current_exe().unwrap());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn run_sets_the_variable_of_every_flag() {
    let mut command = program();
    command.env("LLAMA_RESOURCE_CODEC", "none").arg("run").args(FLAGS.split_whitespace());
    let output = command.args(["--", "sh", "-c", "env | grep ^LLAMA_RESOURCE_ | sort"]).output().unwrap();
    let expected = "\
LLAMA_RESOURCE_CAPTURE=/tmp/%p.stream
LLAMA_RESOURCE_CAPTURE_REQUESTS=1-3
LLAMA_RESOURCE_CAPTURE_RESUME=1
LLAMA_RESOURCE_CHECKPOINT_TOKENS=500
LLAMA_RESOURCE_CODEC=bounded
LLAMA_RESOURCE_CODEC_THREADS=2
LLAMA_RESOURCE_ERROR_BOUND=1e-2
LLAMA_RESOURCE_MAX_MEMORY=64M
LLAMA_RESOURCE_POLICY=drop
LLAMA_RESOURCE_ROUTE=retain
LLAMA_RESOURCE_SAMPLE_ELEMENTS=128
LLAMA_RESOURCE_TENSORS=residual@0-3,logits
LLAMA_RESOURCE_TOKEN_STRIDE=2
";
    let found: String =
        stdout(&output).lines().filter(|l| !l.contains("_LIBRARY=")).map(|l| format!("{l}\n")).collect();
    assert_eq!(found, expected, "{}", stderr(&output));
}

#[test]
fn run_refuses_a_bad_flag_before_the_command_starts() {
    for (flags, expected) in [
        (&["--capture", "x", "--tensors", "residul"][..], "`residual` is one"),
        (&["--capture", "x", "--codec", "zip"], "expected none, lz4, zstd, f16, bf16, bounded or fast"),
        (&["--tensors", "residual"], "error: --tensors captures nothing: expected --capture PATH"),
    ] {
        let output = program().arg("run").args(flags).args(["--", "sh", "-c", "echo started"]).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(stdout(&output), "", "{flags:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    // The path may come from the environment.
    let mut command = program();
    command.env("LLAMA_RESOURCE_CAPTURE", "x.stream").args(["run", "--tensors", "logits", "--", "true"]);
    assert!(command.status().unwrap().success());
}

/// A folder with a script called `llama-server` and an empty model.
struct Stand(PathBuf);

impl Stand {
    fn new(name: &str, script: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("llama-resource-stand-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let server = folder.join("llama-server");
        std::fs::write(&server, format!("#!/bin/sh\necho \"$@\" > {}/arguments\n{script}\n", folder.display()))
            .unwrap();
        std::fs::set_permissions(&server, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(folder.join("model.gguf"), "").unwrap();
        Self(folder)
    }

    fn doctor(&self, flags: &[&str], further: &[&str]) -> Output {
        let mut command = program();
        command.env("LLAMA_RESOURCE_CAPTURE", self.0.join("never.stream")).env("TMPDIR", &self.0);
        command.args(["doctor", "--tensors", "residual,l_uot"]).args(flags);
        command.arg(self.0.join("llama-server")).arg(self.0.join("model.gguf")).args(further).output().unwrap()
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap().trim().to_owned()
    }

    /// What was made for the run is gone.
    fn is_tidy(&self) -> bool {
        let left = std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name());
        left.into_iter().all(|name| !name.to_string_lossy().starts_with("llama-resource-doctor"))
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes a list as the library does, then serves until it is ended, in a child of its own as wrappers do.
const SERVES: &str = r#"
cat > "$LLAMA_RESOURCE_CAPTURE_LIST.part" <<END
{"arch":"llama","n_layer":2,"n_tokens":2,"unmatched_terms":["l_uot"],"nodes":[
{"name":"l_out-0","store":"l_out-0","op":"ADD","component":"residual","layer":0,"occurrence":0,"dtype":"f32","ne":[576,2,1,1],"token_dim":1,"rows":"tokens","bytes_per_token":2304,"route":"retain","reason":null},
{"name":"l_out-1","store":"l_out-1","op":"ADD","component":"residual","layer":1,"occurrence":0,"dtype":"f32","ne":[576,1,1,1],"token_dim":1,"rows":"outputs","bytes_per_token":2304,"route":"callback","reason":"in_place"}]}
END
env | grep ^LLAMA_RESOURCE_ > "$(dirname "$0")/environment"
sleep 300 &
echo $! > "$(dirname "$0")/child"
mv "$LLAMA_RESOURCE_CAPTURE_LIST.part" "$LLAMA_RESOURCE_CAPTURE_LIST"
wait
"#;

fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn doctor_lists_tensors_and_ends_what_it_started() {
    let stand = Stand::new("list", SERVES);
    let output = stand.doctor(&[], &["--", "-ngl", "9"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("model.gguf, llama, 2 layers: residual,l_uot\n"), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    for part in
        ["l_out   0       1  576xT  f32         2,304  retain", "callback (in_place)", "`l_uot` matched no tensor"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let arguments = format!("-m {}/model.gguf -c 512 --port 0 -np 1 -ngl 9", stand.0.display());
    assert_eq!(stand.text("arguments"), arguments);
    let environment = stand.text("environment");
    assert!(environment.contains("LLAMA_RESOURCE_TENSORS=residual,l_uot"), "{environment}");
    assert!(!environment.contains("LLAMA_RESOURCE_CAPTURE="), "a list captures nothing: {environment}");
    let child = stand.text("child");
    let began = Instant::now();
    while is_alive(&child) && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!is_alive(&child), "the wrapper's child {child} is still there");
    assert!(stand.is_tidy());
}

#[test]
fn doctor_lists_tensors_as_json() {
    let stand = Stand::new("json", SERVES);
    let output = stand.doctor(&["--json"], &[]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["nodes"][1]["reason"], "in_place");
    assert_eq!((&json["selection"], &json["arch"]), (&"residual,l_uot".into(), &"llama".into()));
}

#[test]
fn doctor_says_why_there_is_no_list() {
    for (name, script, flags, code, expected) in [
        ("ends", "echo 'error: unknown architecture'; exit 3", &[][..], 1, "it ended (exit status: 3) before"),
        ("tail", "echo 'error: unknown architecture'; exit 3", &[], 1, "\n  | error: unknown architecture"),
        ("idle", "exec sleep 300", &["--timeout", "1"], 1, "no graph with tokens ran within 1 s (--timeout"),
        ("bad", "echo '{' > $LLAMA_RESOURCE_CAPTURE_LIST", &[], 1, "the library's list cannot be read"),
        (
            "empty",
            "echo '{\"nodes\":[]}' > $LLAMA_RESOURCE_CAPTURE_LIST.p; mv $LLAMA_RESOURCE_CAPTURE_LIST.p \
          $LLAMA_RESOURCE_CAPTURE_LIST",
            &[],
            2,
            "",
        ),
    ] {
        let stand = Stand::new(name, script);
        let output = stand.doctor(flags, &[]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{name}: {}", stderr(&output));
        assert!(stand.is_tidy(), "{name}");
    }
    let output = program().args(["doctor", "--tensors", "auto", "sh", "no-such.gguf"]).output().unwrap();
    assert_eq!(stderr(&output), "error: cannot find the model `no-such.gguf`: expected the path of a GGUF file\n");
    let output = program().args(["doctor", "--tensors", "auto", "/bin/true", "/bin/true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
