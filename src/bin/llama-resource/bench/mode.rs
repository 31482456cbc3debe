//! The modes: which server each starts, with which variables, and what must be there afterwards so that it counts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llama_resource_instrumentation::analyze::bench::{self, PLAIN, PRELOAD};

use super::server::Server;

/// Checks a list of modes.
pub fn parse(text: &str) -> Result<Vec<String>, String> {
    let known = bench::modes();
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim) {
        // Selections, codecs and paths are taken as they are.
        let (name, rest) = word.split_at(word.find(':').unwrap_or(word.len()));
        let (name, word) = (name.to_lowercase(), name.to_lowercase() + rest);
        let is_known = match name.as_str() {
            PRELOAD => rest.len() > 1,
            bench::CAPTURE => rest.split(':').skip(1).all(|w| !w.is_empty()) && rest.split(':').count() <= 3,
            _ => rest.is_empty() && known.contains(&name.as_str()),
        };
        if !is_known {
            let known = known.join(", ");
            return Err(format!("`{word}` is not one of {known}, capture:SELECTION:CODEC, {PRELOAD}:PATH"));
        }
        if !found.contains(&word) {
            found.push(word);
        }
    }
    Ok(found)
}

/// Everything that modes are made of.
#[derive(Debug)]
pub struct Parts {
    /// The plain server.
    pub server: PathBuf,
    /// The patched server, if there is one; else why not.
    pub patched: Result<PathBuf, String>,
    /// A copy of the library, if there is one; else why not.
    pub library: Result<PathBuf, String>,
    /// Where logs and streams go.
    pub folder: PathBuf,
}

/// One mode as it is started.
#[derive(Debug)]
pub struct Start {
    /// The program.
    pub binary: PathBuf,
    /// Its variables.
    pub environment: Vec<(&'static str, OsString)>,
    /// What must be mapped into the process.
    loads: Option<PathBuf>,
    /// What must have been written when it has ended.
    writes: Vec<PathBuf>,
}

impl Start {
    /// How `mode` is started, or why it cannot be. `name` makes the files of this process.
    pub fn of(mode: &str, parts: &Parts, name: &str) -> Result<Self, String> {
        let log = parts.folder.join(format!("{name}.jsonl"));
        let mut start = Self { binary: parts.server.clone(), environment: Vec::new(), loads: None, writes: Vec::new() };
        if mode == PLAIN {
            return Ok(start);
        }
        if let "patched-off" | "patched-on" = mode {
            start.binary.clone_from(parts.patched.as_ref().map_err(Clone::clone)?);
        } else {
            let other = mode.strip_prefix(PRELOAD).and_then(|rest| rest.strip_prefix(':'));
            let library = other.map_or_else(|| parts.library.clone(), |path| Ok(PathBuf::from(path)))?;
            start.set("LD_PRELOAD", &library);
            start.loads = Some(library);
            if other.is_some() {
                return Ok(start);
            }
        }
        match mode {
            "disabled" => start.set("LLAMA_RESOURCE_DISABLED", "1"),
            "patched-off" => {}
            _ => {
                start.set("LLAMA_RESOURCE_LOG_PATH", &log);
                start.writes.push(log);
            }
        }
        if let "minimal" | "detailed" | "verbose" = mode {
            start.set("LLAMA_RESOURCE_LOG_LEVEL", mode.to_uppercase());
        }
        if let Some([selection, codec]) = bench::capture(mode) {
            let stream = parts.folder.join(format!("{name}.stream"));
            start.set("LLAMA_RESOURCE_CAPTURE", &stream);
            start.set("LLAMA_RESOURCE_TENSORS", selection);
            start.set("LLAMA_RESOURCE_CODEC", codec);
            start.writes.push(stream);
        }
        Ok(start)
    }

    fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// How long a server of this mode may be at work after its answer: what was captured lies for 0.8 s at most
    /// (`pipeline::limits`), then it is compressed. The plain server is not to pay for that.
    pub fn aftermath(&self) -> Duration {
        if self.writes.iter().any(|p| p.extension().is_some_and(|e| e == "stream")) {
            Duration::from_millis(1200)
        } else {
            Duration::ZERO
        }
    }

    /// A library that was not loaded would cost nothing: the figures would be those of another mode.
    pub fn check_running(&self, server: &Server) -> Result<(), String> {
        match &self.loads {
            Some(library) if !server.has_loaded(library) => {
                Err("the library was not loaded into the server (`llama-resource doctor` says why)".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What was to be written must have been; then it is deleted.
    pub fn check_written(&self) -> Result<(), String> {
        let is_empty = |p: &Path| std::fs::metadata(p).map_or(true, |m| m.len() == 0);
        let missing = self.writes.iter().find(|p| is_empty(p));
        for file in &self.writes {
            let _ = std::fs::remove_file(file);
        }
        match missing.and_then(|p| p.extension()) {
            Some(kind) if kind == "stream" => Err("nothing was captured".to_owned()),
            Some(_) => Err("nothing was recorded: no event log was written".to_owned()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Parts, Start, parse};
    use llama_resource_instrumentation::analyze::bench;

    #[test]
    fn modes_are_checked() {
        assert_eq!(parse("Minimal, plain,minimal"), Ok(vec!["minimal".to_owned(), "plain".to_owned()]));
        assert!(parse("plain,loud").unwrap_err().starts_with("`loud` is not one of plain, disabled"));
        for good in ["capture:MLP_ONLY", "Capture:FULL_TENSOR:fast", "preload:/a:b.so"] {
            assert_eq!(parse(good).unwrap(), [good.replace("Capture", "capture")]);
        }
        for bad in ["", "capture:", "capture:a:b:c", "capture::fast", "preload", "preload:", "plain:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_mode_starts_its_own_thing() {
        let parts = Parts {
            server: "/s".into(),
            patched: Err("no patched server".to_owned()),
            library: Ok("/l.so".into()),
            folder: "/f".into(),
        };
        let of =
            |mode: &str| Start::of(mode, &parts, "n").map(|s| format!("{} {:?}", s.binary.display(), s.environment));
        assert_eq!(of("plain").unwrap(), "/s []");
        assert!(of("disabled").unwrap().contains("LLAMA_RESOURCE_DISABLED"));
        assert!(of("verbose").unwrap().contains("\"VERBOSE\"") && of("verbose").unwrap().contains("/f/n.jsonl"));
        assert!(of("capture").unwrap().contains("/f/n.stream") && of("capture").unwrap().contains("residual"));
        let full = of("capture:FULL_TENSOR:fast").unwrap();
        assert!(full.contains("\"FULL_TENSOR\"") && full.contains("\"fast\""), "{full}");
        assert_eq!(of("preload:/o.so").unwrap(), "/s [(\"LD_PRELOAD\", \"/o.so\")]");
        assert_eq!(of("patched-on").unwrap_err(), "no patched server");
        // Every mode that has a name is started in some way.
        let all = Parts { patched: Ok("/p".into()), ..parts };
        for mode in bench::modes() {
            let start = Start::of(mode, &all, "n").unwrap();
            assert_eq!(start.binary.ends_with("p"), mode.starts_with("patched"), "{mode}");
            assert_eq!(start.environment.is_empty(), matches!(mode, "plain" | "patched-off"), "{mode}");
        }
    }
}
