//! The settings: one table of environment variables, parsed once when recording starts. Pure: the environment comes in as a closure.

use std::path::PathBuf;

use crate::format::Level;

/// A setting in the table.
#[derive(Debug)]
pub struct Setting {
    /// Environment variable.
    pub name: &'static str,
    /// Default, as a user would write it.
    pub default: &'static str,
    /// What values it takes.
    pub values: &'static str,
    /// What it does.
    pub help: &'static str,
    apply: fn(&mut Config, &str) -> bool,
}

/// Every variable that the library reads. docs/CONFIGURATION.md is checked against this table.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "LLAMA_RESOURCE_LOG_LEVEL",
        default: "DETAILED",
        values: "MINIMAL, DETAILED, VERBOSE (or 0, 1, 2)",
        help: "How much is written.",
        apply: |c, v| Level::parse(v).map(|l| c.level = l).is_some(),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_PATH",
        default: "llama-resource.%p.jsonl",
        values: "a path; %p is replaced by the process id, %t by the Unix time, %e by the program's name, %% by a percent sign",
        help: "The event log. An existing file is appended to; a missing directory is an error, not created.",
        apply: |c, v| {
            c.log_path = PathBuf::from(v);
            !v.is_empty()
        },
    },
    Setting {
        name: "LLAMA_RESOURCE_DISABLED",
        default: "0",
        values: "1/true/yes/on or 0/false/no/off",
        help: "Loaded, but records nothing and starts no thread.",
        apply: |c, v| parse_bool(v).map(|b| c.disabled = b).is_some(),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_RATE",
        default: "10K, 50K or 200K by level",
        values: "bytes a second, with K, M or G (1000-based), or `unlimited`",
        help: "How fast the log may grow. Whole steps are sampled to stay under it; `step_summary` still counts every step.",
        apply: |c, v| parse_rate(v).map(|r| c.rate = Some(r)).is_some(),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_TEXT",
        default: "0",
        values: "1/true/yes/on or 0/false/no/off",
        help: "Write token ids. Off, nothing in the log tells what was said.",
        apply: |c, v| parse_bool(v).map(|b| c.text = b).is_some(),
    },
    Setting {
        name: "LLAMA_RESOURCE_FOLLOW_CHILDREN",
        default: "0",
        values: "1/true/yes/on or 0/false/no/off",
        help: "Leave LD_PRELOAD as it is, so that programs started by the host are recorded too (give the path a %p).",
        apply: |c, v| parse_bool(v).map(|b| c.follow_children = b).is_some(),
    },
];

/// How fast the log may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Bytes a second.
    Limited(u64),
    /// Every step is written.
    Unlimited,
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Keep LD_PRELOAD for children.
    pub follow_children: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Level::Detailed,
            log_path: PathBuf::from("llama-resource.%p.jsonl"),
            disabled: false,
            rate: None,
            text: false,
            follow_children: false,
        }
    }
}

impl Config {
    /// Reads the settings out of `(name, value)` pairs. A bad value keeps the default and an unknown name with our prefix is told,
    /// since it is most likely a typing error; both come back as warnings.
    pub fn parse(variables: impl IntoIterator<Item = (String, String)>) -> (Self, Vec<String>) {
        let (mut config, mut warnings) = (Self::default(), Vec::new());
        for (name, value) in variables {
            if !name.starts_with("LLAMA_RESOURCE_") {
                continue;
            }
            match SETTINGS.iter().find(|s| s.name == name) {
                // Set but empty means "not set", as shells do it.
                Some(_) if value.is_empty() => {}
                Some(s) => {
                    let before = config.clone();
                    if !(s.apply)(&mut config, &value) {
                        config = before;
                        warnings.push(format!(
                            "{name}={value:?} is not understood; expected {}; using {}",
                            s.values, s.default
                        ));
                    }
                }
                // Read by the launcher, not by us.
                None if name == "LLAMA_RESOURCE_LIBRARY" => {}
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
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let mut out = Vec::new();
        let mut bytes = self.log_path.as_os_str().as_bytes().iter().copied();
        while let Some(b) = bytes.next() {
            if b != b'%' {
                out.push(b);
                continue;
            }
            match bytes.next() {
                Some(b'p') => out.extend(pid.to_string().bytes()),
                Some(b't') => out.extend(unix_s.to_string().bytes()),
                Some(b'e') => out.extend(program.bytes()),
                Some(b'%') => out.push(b'%'),
                Some(other) => out.extend([b'%', other]),
                None => out.push(b'%'),
            }
        }
        PathBuf::from(std::ffi::OsString::from_vec(out))
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn parse_rate(text: &str) -> Option<Rate> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Some(Rate::Unlimited);
    }
    let text = text.trim_end_matches("/s").trim_end_matches(['B', 'b']);
    let (digits, factor) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 1_000),
        'm' | 'M' => (&text[..text.len() - 1], 1_000_000),
        'g' | 'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let n: u64 = digits.trim().parse().ok()?;
    n.checked_mul(factor).filter(|&n| n > 0).map(Rate::Limited)
}

#[cfg(test)]
mod tests {
    use super::{Config, Rate, SETTINGS};
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
            ("PATH", "/bin"),
        ]);
        assert!(w.is_empty(), "{w:?}");
        assert_eq!((c.level, c.rate, c.text), (Level::Verbose, Some(Rate::Limited(64_000)), true));
    }

    #[test]
    fn a_bad_value_keeps_the_default_and_says_what_was_expected() {
        for s in SETTINGS.iter().filter(|s| s.name != "LLAMA_RESOURCE_LOG_PATH") {
            let (c, w) = parse(&[(s.name, "bogus!")]);
            assert_eq!(c, Config::default(), "{}", s.name);
            assert_eq!(w.len(), 1);
            assert!(w[0].contains(s.name) && w[0].contains("bogus!") && w[0].contains(s.values), "{}", w[0]);
        }
        for bad in ["0", "-3", "K", "1e9", "99999999999999999999G"] {
            assert_eq!(parse(&[("LLAMA_RESOURCE_LOG_RATE", bad)]).1.len(), 1, "{bad}");
        }
    }

    #[test]
    fn an_unknown_name_with_our_prefix_is_told() {
        let (_, w) = parse(&[("LLAMA_RESOURCE_LOGLEVEL", "MINIMAL")]);
        assert!(w[0].contains("LLAMA_RESOURCE_LOGLEVEL") && w[0].contains("LOG_LEVEL"));
    }

    #[test]
    fn placeholders_are_replaced_and_others_left_alone() {
        let c = Config { log_path: "a%p-%t-%e-%%-%x%".into(), ..Config::default() };
        assert_eq!(c.resolved_log_path(7, 8, "srv").to_string_lossy(), "a7-8-srv-%-%x%");
    }
}
