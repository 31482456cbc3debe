//! Slow-down of a server by mode: the measured pairs, what follows from them, and two such results against each other.
//!
//! A pair is the same request to two servers, plain and of a mode, a moment apart. Pairs of a round share their
//! processes. The report that is written holds every pair; everything else is computed again when it is read.

pub mod compare;
pub mod statistics;
pub mod summary;

use serde::{Deserialize, Serialize};

/// Version of the report. Fields are only ever added; it counts the additions.
pub const BENCH_VERSION: u32 = 2;

/// The mode that compares two plain servers: what it shows is the error of the method.
pub const PLAIN: &str = "plain";

/// Captures what it is told: `capture:SELECTION:CODEC`, where the codec, and the selection with it, may be left out.
pub const CAPTURE: &str = "capture";

/// What `capture` captures, and how it is stored, where nothing else is said.
const USUAL_CAPTURE: [&str; 2] = ["residual", "bounded"];

/// Another library in the place of ours: `preload:PATH`.
pub const PRELOAD: &str = "preload";

/// Per cent that each mode may cost.
const CEILINGS: [(&str, f64); 7] = [
    ("disabled", 0.5),
    ("minimal", 0.5),
    ("detailed", 2.0),
    ("verbose", 5.0),
    (CAPTURE, 1.5),
    ("patched-off", 0.5),
    // It records at the default level, DETAILED.
    ("patched-on", 2.0),
];

/// Per cent that a capture of another selection than `residual` may cost: 96 and 92 per cent of the speed are kept.
const CAPTURES: [(&str, f64); 3] = [("ATTENTION_ONLY", 4.2), ("MLP_ONLY", 4.2), ("FULL_TENSOR", 8.7)];

/// The modes that are measured where none is named, in the order in which they are shown.
#[must_use]
pub fn modes() -> Vec<&'static str> {
    std::iter::once(PLAIN).chain(CEILINGS.iter().map(|c| c.0)).collect()
}

/// Per cent that a mode may cost.
#[must_use]
pub fn ceiling(mode: &str) -> Option<f64> {
    let name = match capture(mode) {
        Some([selection, _]) if selection == USUAL_CAPTURE[0] => CAPTURE,
        Some([selection, _]) => selection,
        None => mode,
    };
    CEILINGS.iter().chain(&CAPTURES).find(|c| c.0 == name).map(|c| c.1)
}

/// Selection and codec of a mode that captures.
#[must_use]
pub fn capture(mode: &str) -> Option<[&str; 2]> {
    let mut words = mode.split(':');
    (words.next() == Some(CAPTURE)).then(|| USUAL_CAPTURE.map(|usual| words.next().unwrap_or(usual)))
}

/// A mode as tables show it.
#[must_use]
pub fn shown(mode: &str) -> &str {
    match mode {
        PLAIN => "plain (A/A)",
        // The rest says it all, and the table is narrow.
        _ => mode.strip_prefix("capture:").unwrap_or(mode),
    }
}

/// Whether a mode does nothing, so that it must not be told from the plain server.
#[must_use]
pub fn is_off(mode: &str) -> bool {
    matches!(mode, "disabled" | "patched-off")
}

/// The logarithm of a ratio as per cent above 1.
#[must_use]
pub fn percent(log_ratio: f64) -> f64 {
    log_ratio.exp_m1() * 100.0
}

/// One run of the benchmark, as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`BENCH_VERSION`].
    pub bench_version: u32,
    /// When it began, UTC.
    pub created: String,
    /// Seconds that it took.
    pub took_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub build: Build,
    /// How it was measured.
    pub settings: Settings,
    /// Modes that were asked for and not measured, and why.
    pub not_measured: Vec<NotMeasured>,
    /// What the reader should know: other text than the plain server's, a run cut short.
    pub notes: Vec<String>,
    /// Every pair.
    pub pairs: Vec<Pair>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its processor's name.
    pub cpu: String,
    /// Cores that the program may use.
    pub cores: u32,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Instruction set.
    pub arch: String,
    /// Load average of a minute, before the run.
    pub load_before: f64,
    /// Load average of a minute, after the run.
    pub load_after: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// The plain server, which the preloaded modes use too.
    pub server: Binary,
    /// The patched server, if one was measured.
    pub patched: Option<Binary>,
    /// The model.
    pub model: Model,
    /// The library under test, if one was measured.
    pub library: Option<File>,
}

/// A server and the llama.cpp libraries that it loads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binary {
    /// Where it was.
    pub path: String,
    /// What it says about itself.
    pub version: Option<String>,
    /// The program first, then its libraries.
    pub files: Vec<File>,
}

/// A file by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name without folders.
    pub name: String,
    /// SHA-256 of the whole file; unknown where it could not be had.
    pub sha256: Option<String>,
}

/// The model, which may be too large to be read as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// File name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of the first 16 MiB.
    pub sha256_of_16_mib: Option<String>,
}

/// How it was measured. Results with other requests cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Threads of each server.
    pub threads: u32,
    /// Tokens of the short and of the long prompt.
    pub contexts: Vec<u32>,
    /// Tokens generated for each.
    pub predict: u32,
    /// Requests at once, and tokens generated for each.
    pub parallel: [u32; 2],
    /// Rounds that were wanted, each with new processes.
    pub rounds: u32,
    /// Pairs of each round.
    pub pairs_per_round: u32,
    /// Seconds after which no further step is begun.
    pub time_limit_s: Option<u32>,
    /// What `capture` captures: selection and codec.
    pub capture: [String; 2],
    /// How the two of a pair stand to each other, and by which clock.
    #[serde(default)]
    pub method: Method,
}

/// How pairs are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Requests to two servers, by the servers' own clocks.
    #[default]
    Servers,
    /// Short requests to two servers of one thread each, by the CPU time of the whole request.
    Fine,
    /// Steps inside one process, with our hooks and without.
    InProcess,
}

impl Method {
    /// As it is shown.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Servers => "the servers' clocks",
            Self::Fine => "CPU time of short requests",
            Self::InProcess => "steps inside one process",
        }
    }
}

/// A mode without figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotMeasured {
    /// The mode.
    pub mode: String,
    /// Why.
    pub reason: String,
}

/// The same request to a plain server and to one of a mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The mode.
    pub mode: String,
    /// Its round; the pairs of a round and mode share two processes.
    pub round: u32,
    /// What was timed: `decode 384`.
    pub phase: String,
    /// Seconds since the beginning.
    pub at_s: f64,
    /// Milliseconds a token by the plain server's own clock.
    pub plain_ms: f64,
    /// Milliseconds a token by the clock of the mode's server.
    pub mode_ms: f64,
}

impl Pair {
    /// By how many per cent the mode's request took longer.
    #[must_use]
    pub fn percent(&self) -> f64 {
        percent(self.log_ratio())
    }

    /// The same as the logarithm of a ratio, in which medians and intervals are taken: twice as slow and twice as fast
    /// are equally far from no difference there, so that one pair that met a pause of the machine does not stretch the
    /// interval to one side.
    #[must_use]
    pub fn log_ratio(&self) -> f64 {
        (self.mode_ms / self.plain_ms).ln()
    }
}

impl Report {
    /// A report as it was written.
    ///
    /// # Errors
    /// One line that says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            bench_version: Option<u32>,
        }
        let no_json = |e: serde_json::Error| format!("it is no report of `llama-resource bench --json`: {e}");
        // The version first: a newer report may lack what this one needs, and the version is then the reason.
        match serde_json::from_str::<Head>(text).map_err(no_json)?.bench_version {
            None => {
                return Err("it is no report of `llama-resource bench --json`: it has no `bench_version`".to_owned());
            }
            Some(v) if v == 0 || v > BENCH_VERSION => {
                return Err(format!(
                    "its version is {v}, and this program knows versions up to {BENCH_VERSION}: use the program that wrote it"
                ));
            }
            Some(_) => {}
        }
        let report: Self = serde_json::from_str(text).map_err(no_json)?;
        report.check().map(|()| report)
    }

    fn check(&self) -> Result<(), String> {
        if self.pairs.is_empty() {
            return Err("it holds no pair: nothing was measured".to_owned());
        }
        let time = |ms: f64| ms.is_finite() && ms > 0.0;
        match self.pairs.iter().position(|p| !time(p.plain_ms) || !time(p.mode_ms) || !p.at_s.is_finite()) {
            Some(i) => Err(format!("pair {i}: expected times above 0")),
            None => Ok(()),
        }
    }

    /// Modes with pairs: those we know in our order, then others.
    #[must_use]
    pub fn modes(&self) -> Vec<&str> {
        let known = modes().into_iter().filter(|m| self.pairs.iter().any(|p| p.mode == *m));
        let mut found: Vec<&str> = known.collect();
        for pair in &self.pairs {
            if !found.contains(&pair.mode.as_str()) {
                found.push(&pair.mode);
            }
        }
        found
    }

    /// Phases in the order in which they were measured.
    #[must_use]
    pub fn phases(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for pair in &self.pairs {
            if !found.contains(&pair.phase.as_str()) {
                found.push(&pair.phase);
            }
        }
        found
    }

    /// Two runs as one; the rounds of the second come after those of the first. They should be of the same machine,
    /// build and workload.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        let (rounds, began_s) = (self.pairs.iter().map(|p| p.round + 1).max().unwrap_or(0), self.took_s);
        let later = |p: Pair| Pair { round: p.round + rounds, at_s: p.at_s + began_s, ..p };
        self.pairs.extend(other.pairs.into_iter().map(later));
        self.created = format!("{}, {}", self.created, other.created);
        self.took_s += other.took_s;
        self.machine.load_before = self.machine.load_before.max(other.machine.load_before);
        self.machine.load_after = self.machine.load_after.max(other.machine.load_after);
        self.settings.rounds += other.settings.rounds;
        self.not_measured.extend(other.not_measured);
        self.notes.extend(other.notes);
        if self.build.library != other.build.library {
            self.notes.push("the runs were of different libraries".to_owned());
        }
        self
    }

    /// Logarithms of the slow-downs of one mode and phase, by round.
    #[must_use]
    pub fn rounds(&self, mode: &str, phase: &str) -> Vec<Vec<f64>> {
        let mut rounds: std::collections::BTreeMap<u32, Vec<f64>> = std::collections::BTreeMap::new();
        for pair in self.pairs.iter().filter(|p| p.mode == mode && p.phase == phase) {
            rounds.entry(pair.round).or_default().push(pair.log_ratio());
        }
        rounds.into_values().collect()
    }
}
