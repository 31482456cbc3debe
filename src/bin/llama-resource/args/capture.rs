//! The flags of `run` that begin with `--capture`: each is one environment variable of the library, checked by the
//! library's own parser.

use std::ffi::{OsStr, OsString};

use clap::Args;
use llama_resource_instrumentation::config;

/// Flags for the activation stream.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Activation stream")]
pub struct Capture {
    /// Write the values of tensors into this file; nothing is captured without it (LLAMA_RESOURCE_CAPTURE)
    #[arg(long, value_name = "PATH")]
    capture: Option<OsString>,
    /// Which tensors, e.g. `residual`, `MLP_ONLY@0-5`, `ffn_*,-ffn_norm`, `routing` (LLAMA_RESOURCE_TENSORS)
    #[arg(long, value_name = "SELECTION", value_parser = checked("LLAMA_RESOURCE_TENSORS"), allow_hyphen_values = true)]
    tensors: Option<String>,
    /// How they are read: auto, retain or callback (LLAMA_RESOURCE_ROUTE)
    #[arg(long, value_name = "ROUTE", value_parser = checked("LLAMA_RESOURCE_ROUTE"))]
    route: Option<String>,
    /// How they are stored: none, lz4, zstd, f16, bf16, bounded or fast (LLAMA_RESOURCE_CODEC)
    #[arg(long, value_name = "CODEC", value_parser = checked("LLAMA_RESOURCE_CODEC"))]
    codec: Option<String>,
    /// Largest relative error of bounded and fast, e.g. 1e-3 (LLAMA_RESOURCE_ERROR_BOUND)
    #[arg(long, value_name = "BOUND", value_parser = checked("LLAMA_RESOURCE_ERROR_BOUND"))]
    error_bound: Option<String>,
    /// Memory for capturing, e.g. 64M or 1G (LLAMA_RESOURCE_MAX_MEMORY)
    #[arg(long, value_name = "BYTES", value_parser = checked("LLAMA_RESOURCE_MAX_MEMORY"))]
    max_memory: Option<String>,
    /// When that is full: block, drop or sample (LLAMA_RESOURCE_POLICY)
    #[arg(long, value_name = "POLICY", value_parser = checked("LLAMA_RESOURCE_POLICY"))]
    policy: Option<String>,
    /// A checkpoint every so many tokens (LLAMA_RESOURCE_CHECKPOINT_TOKENS)
    #[arg(long, value_name = "N", value_parser = checked("LLAMA_RESOURCE_CHECKPOINT_TOKENS"))]
    checkpoint_tokens: Option<String>,
    /// Go on behind the last checkpoint of the file (LLAMA_RESOURCE_CAPTURE_RESUME)
    #[arg(long)]
    resume: bool,
    /// Only these requests, e.g. 1-3,7 (LLAMA_RESOURCE_CAPTURE_REQUESTS)
    #[arg(long, value_name = "LIST", value_parser = checked("LLAMA_RESOURCE_CAPTURE_REQUESTS"))]
    requests: Option<String>,
    /// Only every N-th position (LLAMA_RESOURCE_TOKEN_STRIDE)
    #[arg(long, value_name = "N", value_parser = checked("LLAMA_RESOURCE_TOKEN_STRIDE"))]
    token_stride: Option<String>,
    /// At most N evenly spaced elements of each row, 0 for all (LLAMA_RESOURCE_SAMPLE_ELEMENTS)
    #[arg(long, value_name = "N", value_parser = checked("LLAMA_RESOURCE_SAMPLE_ELEMENTS"))]
    sample_elements: Option<String>,
    /// Threads that compress (LLAMA_RESOURCE_CODEC_THREADS)
    #[arg(long, value_name = "N", value_parser = checked("LLAMA_RESOURCE_CODEC_THREADS"))]
    codec_threads: Option<String>,
}

impl Capture {
    /// The variables to set.
    pub fn variables(&self) -> Vec<(&'static str, &OsStr)> {
        let texts = [
            ("LLAMA_RESOURCE_TENSORS", &self.tensors),
            ("LLAMA_RESOURCE_ROUTE", &self.route),
            ("LLAMA_RESOURCE_CODEC", &self.codec),
            ("LLAMA_RESOURCE_ERROR_BOUND", &self.error_bound),
            ("LLAMA_RESOURCE_MAX_MEMORY", &self.max_memory),
            ("LLAMA_RESOURCE_POLICY", &self.policy),
            ("LLAMA_RESOURCE_CHECKPOINT_TOKENS", &self.checkpoint_tokens),
            ("LLAMA_RESOURCE_CAPTURE_REQUESTS", &self.requests),
            ("LLAMA_RESOURCE_TOKEN_STRIDE", &self.token_stride),
            ("LLAMA_RESOURCE_SAMPLE_ELEMENTS", &self.sample_elements),
            ("LLAMA_RESOURCE_CODEC_THREADS", &self.codec_threads),
        ];
        let path = self.capture.as_deref().map(|path| ("LLAMA_RESOURCE_CAPTURE", path));
        let resume = self.resume.then_some(("LLAMA_RESOURCE_CAPTURE_RESUME", OsStr::new("1")));
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, OsStr::new(value.as_deref()?))));
        path.into_iter().chain(texts).chain(resume).collect()
    }

    /// Flags about a stream without `--capture` are a mistake: it is better to say so at once than to run for hours
    /// without a file.
    pub fn check(&self) -> Result<(), String> {
        let path = self.capture.clone().or_else(|| std::env::var_os("LLAMA_RESOURCE_CAPTURE"));
        match (path.filter(|p| !p.is_empty()), self.variables().first()) {
            (None, Some((name, _))) => {
                let flag = name.trim_start_matches("LLAMA_RESOURCE_").trim_start_matches("CAPTURE_").to_lowercase();
                let flag = if flag == "capture" {
                    "an empty --capture".into()
                } else {
                    format!("--{}", flag.replace('_', "-"))
                };
                Err(format!("{flag} captures nothing: expected --capture PATH, the file to write"))
            }
            _ => Ok(()),
        }
    }
}

/// A value that the variable would take.
pub fn checked(name: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync {
    move |text| config::check(name, text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use llama_resource_instrumentation::config::SETTINGS;

    use super::Capture;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        capture: Capture,
    }

    fn parse(flags: &[&str]) -> Result<Capture, String> {
        Flags::try_parse_from([&["x"], flags].concat()).map(|f| f.capture).map_err(|e| e.to_string())
    }

    #[test]
    fn every_flag_is_a_variable_and_every_capture_setting_has_one() {
        let all = parse(&[
            "--capture",
            "a.stream",
            "--tensors",
            "-norm,l_out",
            "--route",
            "retain",
            "--codec",
            "fast",
            "--error-bound",
            "0.01",
            "--max-memory",
            "64M",
            "--policy",
            "drop",
            "--checkpoint-tokens",
            "100",
            "--resume",
            "--requests",
            "1-3",
            "--token-stride",
            "2",
            "--sample-elements",
            "32",
            "--codec-threads",
            "2",
        ])
        .unwrap();
        let mut set: Vec<_> = all.variables().into_iter().map(|(name, _)| name).collect();
        set.sort_unstable();
        let from = SETTINGS.iter().position(|s| s.name == "LLAMA_RESOURCE_CAPTURE").unwrap();
        let mut known: Vec<_> = SETTINGS[from..].iter().map(|s| s.name).collect();
        known.sort_unstable();
        assert_eq!(set, known);
        assert_eq!(all.check(), Ok(()));
    }

    #[test]
    fn bad_values_are_refused_with_what_was_expected() {
        for (flag, value, expected) in [
            ("--tensors", "component:mpl", "expected one of other, attention, mlp"),
            ("--tensors", "atention_only", "ATTENTION_ONLY"),
            ("--route", "both", "expected auto, retain or callback"),
            ("--codec", "gzip", "bounded or fast"),
            ("--error-bound", "2", "from 1e-6 to 0.5"),
            ("--max-memory", "1M", "at least 16M"),
            ("--policy", "wait", "block, drop or sample"),
            ("--requests", "0", "numbers and ranges"),
            ("--token-stride", "0", "a number from 1"),
            ("--codec-threads", "x", "1 to 64"),
        ] {
            let why = parse(&[flag, value]).unwrap_err();
            assert!(why.contains(expected) && why.contains(flag), "{why}");
        }
    }

    #[test]
    fn a_flag_without_a_file_is_told() {
        // The test's own environment has no LLAMA_RESOURCE_CAPTURE.
        let why = |flags: &[&str]| parse(flags).unwrap().check();
        assert_eq!(why(&[]), Ok(()));
        assert!(why(&["--error-bound", "0.1"]).unwrap_err().starts_with("--error-bound captures nothing"));
        assert!(why(&["--resume"]).unwrap_err().starts_with("--resume captures nothing"));
        assert!(why(&["--requests", "1"]).unwrap_err().starts_with("--requests captures nothing"));
        assert!(why(&["--capture", ""]).unwrap_err().starts_with("an empty --capture captures nothing"));
    }
}
