//! The settings: one table of environment variables, parsed once when recording starts. Pure: the environment comes in
//! as a closure.

pub mod capture;
mod path;
mod settings;
mod value;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use self::path::Placeholders;
use crate::format::Level;

pub use self::capture::{CaptureConfig, Policy, RouteChoice};
pub use self::settings::{SETTINGS, Setting};

/// Variables that only our own programs set: where the library is, and where it is to list what it would capture.
pub const INTERNAL: [&str; 2] = ["LLAMA_RESOURCE_LIBRARY", "LLAMA_RESOURCE_CAPTURE_LIST"];

/// How fast the log may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Bytes a second.
    Limited(u64),
    /// Every step is written.
    Unlimited,
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Level of detail.
    pub level: Level,
    /// Log file, placeholders not yet replaced.
    pub log_path: PathBuf,
    /// Record nothing.
    pub disabled: bool,
    /// `None`: the level's own.
    pub rate: Option<Rate>,
    /// Token ids may be written.
    pub text: bool,
    /// Keep LD_PRELOAD for children; `None`: only in a process that starts servers and is none itself.
    pub follow_children: Option<bool>,
    /// Time between two readings of the GPUs in milliseconds; 0 for none.
    pub gpu_interval_ms: u64,
    /// Wait for each device after its part of a graph.
    pub split_times: bool,
    /// The activation stream.
    pub capture: CaptureConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Level::Detailed,
            log_path: PathBuf::from("llama-resource.%p.jsonl"),
            disabled: false,
            rate: None,
            text: false,
            follow_children: None,
            gpu_interval_ms: 100,
            split_times: false,
            capture: CaptureConfig::default(),
        }
    }
}

/// A path of which every process makes its own: one with its number in it.
#[must_use]
pub fn apart(path: &Path) -> PathBuf {
    path::apart(path)
}

/// Whether a file of this name can be what a path's last part, placeholders and all, becomes in some process.
#[must_use]
pub fn fits(pattern: &OsStr, name: &OsStr) -> bool {
    path::fits(pattern.as_encoded_bytes(), name.as_encoded_bytes())
}

/// Whether the variable would take the value; the error says what is wrong with it, or what was expected.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    let setting = SETTINGS.iter().find(|s| s.name == name).ok_or_else(|| format!("{name} is not a setting"))?;
    setting.set(&mut Config::default(), value).map_err(|why| match why.as_str() {
        "" => format!("expected {}", setting.values),
        _ => why,
    })
}

impl Config {
    /// Reads the settings out of `(name, value)` pairs. A bad value keeps the default and an unknown name with our
    /// prefix is told, since it is most likely a typing error; both come back as warnings.
    pub fn parse(variables: impl IntoIterator<Item = (String, String)>) -> (Self, Vec<String>) {
        let (mut config, mut warnings) = (Self::default(), Vec::new());
        for (name, value) in variables {
            // Set but empty means "not set", as shells do it.
            if !name.starts_with("LLAMA_RESOURCE_") || value.is_empty() || INTERNAL.contains(&name.as_str()) {
                continue;
            }
            match SETTINGS.iter().find(|s| s.name == name) {
                Some(setting) => {
                    if let Err(why) = setting.set(&mut config, &value) {
                        let why = if why.is_empty() { why } else { format!(" ({why})") };
                        warnings.push(format!(
                            "{name}={value:?} is not understood{why}; expected {}; using {}",
                            setting.values, setting.default
                        ));
                    }
                }
                None => warnings.push(format!(
                    "{name} is not a setting of this version and was ignored; known are {}",
                    SETTINGS.iter().map(|s| &s.name["LLAMA_RESOURCE_".len()..]).collect::<Vec<_>>().join(", ")
                )),
            }
        }
        (config, warnings)
    }

    /// Bytes a second that the log may grow, `None` for no limit.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<u64> {
        match self.rate {
            Some(Rate::Unlimited) => None,
            Some(Rate::Limited(n)) => Some(n),
            None => Some(self.level.default_rate()),
        }
    }

    /// The log path with its placeholders replaced.
    #[must_use]
    pub fn resolved_log_path(&self, pid: u32, unix_s: u64, program: &str) -> PathBuf {
        Placeholders { pid, unix_s, program }.fill(&self.log_path)
    }

    /// The path of the activation stream with its placeholders replaced; none: nothing is captured.
    #[must_use]
    pub fn resolved_capture_path(&self, pid: u32, unix_s: u64, program: &str) -> Option<PathBuf> {
        self.capture.path.as_deref().map(|path| Placeholders { pid, unix_s, program }.fill(path))
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, Policy, Rate, RouteChoice, SETTINGS, check};
    use crate::codec::Codec;
    use crate::format::Level;

    fn parse(pairs: &[(&str, &str)]) -> (Config, Vec<String>) {
        Config::parse(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn good_values_are_taken() {
        let (c, w) = parse(&[
            ("LLAMA_RESOURCE_LOG_LEVEL", "verbose"),
            ("LLAMA_RESOURCE_LOG_RATE", "64KB/s"),
            ("LLAMA_RESOURCE_LOG_TEXT", "yes"),
            ("LLAMA_RESOURCE_GPU_INTERVAL_MS", "0"),
            ("PATH", "/bin"),
        ]);
        assert!(w.is_empty(), "{w:?}");
        assert_eq!((c.level, c.rate, c.text), (Level::Verbose, Some(Rate::Limited(64_000)), true));
        assert_eq!(c.gpu_interval_ms, 0);
    }

    #[test]
    fn capture_values_are_taken() {
        let (c, w) = parse(&[
            ("LLAMA_RESOURCE_CAPTURE", "/tmp/%p.stream"),
            ("LLAMA_RESOURCE_TENSORS", "residual,ffn_*@0-3"),
            ("LLAMA_RESOURCE_ROUTE", "Retain"),
            ("LLAMA_RESOURCE_CODEC", "BOUNDED"),
            ("LLAMA_RESOURCE_ERROR_BOUND", "0.01"),
            ("LLAMA_RESOURCE_MAX_MEMORY", "64M"),
            ("LLAMA_RESOURCE_POLICY", "drop"),
            ("LLAMA_RESOURCE_CHECKPOINT_TOKENS", "500"),
            ("LLAMA_RESOURCE_CAPTURE_RESUME", "1"),
            ("LLAMA_RESOURCE_CAPTURE_REQUESTS", "2-"),
            ("LLAMA_RESOURCE_TOKEN_STRIDE", "4"),
            ("LLAMA_RESOURCE_SAMPLE_ELEMENTS", "128"),
            ("LLAMA_RESOURCE_CODEC_THREADS", "2"),
            ("LLAMA_RESOURCE_CAPTURE_LIST", "x"),
        ]);
        assert!(w.is_empty(), "{w:?}");
        assert_eq!(c.resolved_capture_path(5, 6, "srv").as_deref(), Some("/tmp/5.stream".as_ref()));
        let c = c.capture;
        assert_eq!(c.tensors.text(), "residual,ffn_*@0-3");
        assert_eq!((c.route, c.codec, c.policy), (RouteChoice::Retain, Some(Codec::Bounded), Policy::Drop));
        assert_eq!((c.error_bound, c.max_memory, c.checkpoint_tokens), (0.01, 64 << 20, Some(500)));
        assert!(c.resume && !c.requests.wants(1) && c.requests.wants(2));
        assert_eq!((c.token_stride.get(), c.sample_elements, c.codec_threads), (4, Some(128), Some(2)));
    }

    #[test]
    fn a_bad_value_keeps_the_default_and_says_what_was_expected() {
        // Every text but the empty one is a path.
        for s in SETTINGS.iter().filter(|s| !s.values.starts_with("a path")) {
            let (c, w) = parse(&[(s.name, "bogus!")]);
            assert_eq!(c, Config::default(), "{}", s.name);
            assert_eq!(w.len(), 1);
            assert!(w[0].contains(s.name) && w[0].contains("bogus!") && w[0].contains(s.values), "{}", w[0]);
            assert!(w[0].ends_with(&format!("using {}", s.default)), "{}", w[0]);
            assert!(check(s.name, "bogus!").is_err());
        }
        for (name, bad) in [
            ("LOG_RATE", &["0", "-3", "K", "1e9", "99999999999999999999G"][..]),
            ("ERROR_BOUND", &["0", "1e-7", "0.6", "NaN", "inf", "-0.1"]),
            ("MAX_MEMORY", &["0", "15M", "-1", "1T", "64 M!"]),
            ("CHECKPOINT_TOKENS", &["-1", "1.5"]),
            ("TOKEN_STRIDE", &["0", "-1"]),
            ("CODEC_THREADS", &["0", "65", "-1"]),
            ("SAMPLE_ELEMENTS", &["-1", "4294967296"]),
            ("CAPTURE_REQUESTS", &["0", "3-1"]),
            ("GPU_INTERVAL_MS", &["9", "60001", "-1", "0.5", "100ms"]),
            ("TENSORS", &["-l_out", "component:cache", "l_out@"]),
        ] {
            for bad in bad {
                assert_eq!(parse(&[(&format!("LLAMA_RESOURCE_{name}"), bad)]).1.len(), 1, "{name}={bad}");
            }
        }
    }

    #[test]
    fn defaults_are_what_the_table_says() {
        for s in SETTINGS {
            // Defaults that are a value, not a description.
            if !s.default.contains(' ') {
                let mut c = Config::default();
                assert_eq!(s.set(&mut c, s.default), Ok(()), "{}", s.name);
                assert_eq!(c, Config::default(), "{}", s.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_with_our_prefix_is_told() {
        let (_, w) = parse(&[("LLAMA_RESOURCE_LOGLEVEL", "MINIMAL")]);
        assert!(w[0].contains("LLAMA_RESOURCE_LOGLEVEL") && w[0].contains("LOG_LEVEL"));
        assert!(parse(&[("LLAMA_RESOURCE_LIBRARY", "/x")]).1.is_empty());
    }
}
