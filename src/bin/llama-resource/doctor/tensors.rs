//! `doctor --tensors`: starts the binary with the library, which writes what it would capture of the first graph, and
//! ends it again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use llama_resource_instrumentation::export::units::printable;
use serde_json::{Value, json};

use super::listing::Listing;
use super::{NOT_USABLE, Verdict, diagnose, program};
use crate::terminal::{eprint_line, print, stdout_style};
use crate::{args, library, signals};

/// Lines of the program's own output that are shown when it did not get far enough.
const SHOWN_LINES: usize = 12;

/// How often the list is looked for.
const PERIOD: Duration = Duration::from_millis(20);

/// What a server is told unless the user tells it something else: small, alone, on a free port.
const SERVER_DEFAULTS: [(&[&str], &str); 3] =
    [(&["-c", "--ctx-size"], "512"), (&["--port"], "0"), (&["-np", "--parallel"], "1")];

/// Runs the subcommand for `selection`.
pub fn tensors(args: &args::Doctor, selection: &str) -> Result<ExitCode, String> {
    let Some(model) = &args.model else {
        return Err("no model: expected `doctor --tensors SELECTION BINARY MODEL`".into());
    };
    if !model.is_file() {
        return Err(format!("cannot find the model `{}`: expected the path of a GGUF file", model.display()));
    }
    let binary = program(&args.binary).ok_or_else(|| {
        format!("cannot find `{}`: expected the path of a program, or a name in PATH", args.binary.display())
    })?;
    // A script or a wrapper is fine: what it starts inherits the environment.
    if let Ok(d) = diagnose(&binary)
        && !d.usable
        && d.verdict != Verdict::Later
    {
        eprint_line(&format!("`{}`: {}", binary.display(), d.summary));
        return Ok(ExitCode::from(NOT_USABLE));
    }
    let text = list(&binary, model, selection, args)?;
    let unreadable =
        |e| format!("the library's list cannot be read ({e}): program and library are of different versions");
    let listing: Listing = serde_json::from_str(&text).map_err(unreadable)?;
    if args.json {
        let mut value: Value = serde_json::from_str(&text).map_err(unreadable)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("binary".into(), json!(binary));
            fields.insert("model".into(), json!(model));
            fields.insert("selection".into(), json!(selection));
        }
        let text = serde_json::to_string_pretty(&value).map_err(|e| format!("cannot write the list as JSON: {e}"))?;
        print(&(text + "\n"))?;
    } else {
        let arch = listing.arch.as_deref().map(|a| format!(", {}", printable(a))).unwrap_or_default();
        let layers = listing.n_layer.map(|n| format!(", {n} layers")).unwrap_or_default();
        let name = model.file_name().unwrap_or(model.as_os_str()).display().to_string();
        let style = stdout_style();
        let head = format!("{}{arch}{layers}: {}\n", style.strong(&printable(&name)), printable(selection));
        print(&(head + &listing.render(style)))?;
    }
    let found = listing.captured().next().is_some();
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::from(NOT_USABLE) })
}

/// What the library wrote.
fn list(binary: &Path, model: &Path, selection: &str, args: &args::Doctor) -> Result<String, String> {
    let library = library::library()?;
    let folder = Folder::new()?;
    let (file, output) = (folder.0.join("list.json"), folder.0.join("output.txt"));
    let cannot_write = |e| format!("cannot write `{}`: {e}", output.display());
    let log = File::create(&output).map_err(cannot_write)?;
    let mut command = Command::new(binary);
    command
        .args(arguments(binary, model, &args.arguments))
        .env("LD_PRELOAD", library::preload(&library, std::env::var_os("LD_PRELOAD").as_deref()))
        .env("LLAMA_RESOURCE_CAPTURE_LIST", &file)
        .env("LLAMA_RESOURCE_TENSORS", selection)
        .env("LLAMA_RESOURCE_LOG_LEVEL", "MINIMAL")
        .env("LLAMA_RESOURCE_LOG_PATH", folder.0.join("log.jsonl"))
        .env_remove("LLAMA_RESOURCE_CAPTURE")
        .env_remove("LLAMA_RESOURCE_DISABLED")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(cannot_write)?)
        .stderr(log)
        // A wrapper's children are ended with it.
        .process_group(0);
    signals::catch();
    let child = command.spawn().map_err(|e| format!("cannot start `{}`: {e}", binary.display()))?;
    let mut running = Running(child);
    let patience = Duration::from_secs(args.timeout);
    let began = Instant::now();
    loop {
        let ended = running.0.try_wait().map_err(|e| format!("cannot wait for `{}`: {e}", binary.display()))?;
        // It appears whole; a program that has ended may have written it last.
        if let Ok(text) = fs::read_to_string(&file) {
            return Ok(text);
        }
        let why = match ended {
            _ if signals::caught() => return Err("interrupted before a graph with tokens ran".to_owned()),
            Some(status) => format!("it ended ({status}) before a graph with tokens ran"),
            None if began.elapsed() >= patience => {
                format!("no graph with tokens ran within {} s (--timeout gives it more)", patience.as_secs())
            }
            None => {
                std::thread::sleep(PERIOD);
                continue;
            }
        };
        return Err(format!("cannot list the tensors: `{}`: {why}{}", binary.display(), last_lines(&output)));
    }
}

/// The program's arguments: the model, what a server needs, and what the user said.
fn arguments(binary: &Path, model: &Path, further: &[OsString]) -> Vec<OsString> {
    let mut all = vec!["-m".into(), model.into()];
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let given = |names: &[&str]| {
        further.iter().any(|a| names.iter().any(|n| a == n || a.to_string_lossy().starts_with(&format!("{n}="))))
    };
    if name.contains("server") {
        for (names, value) in SERVER_DEFAULTS.iter().filter(|(names, _)| !given(names)) {
            all.extend(names.iter().take(1).map(OsString::from));
            all.push(OsStr::new(value).into());
        }
    }
    all.extend_from_slice(further);
    all
}

/// The end of the program's own output, on lines of its own.
fn last_lines(output: &Path) -> String {
    let bytes = fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES));
    shown.map(|line| format!("\n  | {}", printable(line))).collect()
}

/// The program with everything it started, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Before the first wait the number cannot be another process's.
        if matches!(self.0.try_wait(), Ok(None)) {
            signals::end_group(self.0.id(), false);
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(5) && matches!(self.0.try_wait(), Ok(None)) {
                std::thread::sleep(PERIOD);
            }
        }
        signals::end_group(self.0.id(), true);
        let _ = self.0.wait();
    }
}

/// A folder that only we can read, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, String> {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let name = format!("llama-resource-doctor-{}-{now}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| format!("cannot create `{}`: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::arguments;

    fn of(binary: &str, further: &[&str]) -> String {
        let further: Vec<_> = further.iter().map(Into::into).collect();
        let all = arguments(binary.as_ref(), "m.gguf".as_ref(), &further);
        all.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn a_server_gets_what_it_was_not_told() {
        assert_eq!(of("/x/llama-server", &[]), "-m m.gguf -c 512 --port 0 -np 1");
        assert_eq!(
            of("llama-server", &["-ngl", "9", "--ctx-size", "64"]),
            "-m m.gguf --port 0 -np 1 -ngl 9 --ctx-size 64"
        );
        assert_eq!(of("llama-server", &["--port=80", "-np", "2"]), "-m m.gguf -c 512 --port=80 -np 2");
        assert_eq!(of("llama-bench", &["-n", "1"]), "-m m.gguf -n 1");
    }
}
