//! Two results against each other: did a mode become slower?

use serde::Serialize;

use super::statistics::{Interval, interval, median};
use super::summary::{draws, flat};
use super::{Binary, PLAIN, Report, percent};

/// What is said about a mode and phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Not judged: plain against plain.
    Control,
    /// The whole interval lies above the threshold.
    Regression,
    /// The whole interval lies below minus the threshold.
    Improved,
    /// The interval lies within the threshold on both sides.
    NoDifference,
    /// The interval spans the threshold, or there were too few rounds.
    Undecided,
}

/// The difference of one mode in one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The mode.
    pub mode: String,
    /// What was timed.
    pub phase: String,
    /// Median slow-down against the plain server in the base, per cent.
    pub base: f64,
    /// The same in the new result.
    pub new: f64,
    /// By how many per cent the mode became slower, measured by the plain server beside it each time.
    pub difference: f64,
    /// Its 95 % interval; `null` where a result has fewer than two rounds.
    pub interval: Option<Interval>,
    /// The wider interval that `regression` and `improved` are judged by: all rows together are right in 95
    /// of 100 comparisons.
    pub judged: Option<Interval>,
    /// Rounds of both.
    pub rounds: [usize; 2],
    /// What follows.
    pub finding: Finding,
}

/// The plain server itself, which is not judged: the two runs were at different times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlainChange {
    /// What was timed.
    pub phase: String,
    /// Median of the base, milliseconds a token.
    pub base_ms: f64,
    /// Median of the new result, milliseconds a token.
    pub new_ms: f64,
    /// By how many per cent the new one is slower.
    pub percent: f64,
}

/// Everything that two results say together; the `--json` output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Per cent that a change must exceed.
    pub threshold: f64,
    /// Why the two should not be compared.
    pub mismatches: Vec<String>,
    /// What was meant to differ: the library, the patched server.
    pub under_test: Vec<String>,
    /// By mode and phase.
    pub changes: Vec<Change>,
    /// Modes and phases that only one of them has.
    pub missing: Vec<String>,
    /// The plain server by phase.
    pub plain: Vec<PlainChange>,
}

impl Comparison {
    /// The comparison of two reports.
    #[must_use]
    pub fn of(base: &Report, new: &Report, threshold: f64) -> Self {
        let (cells, missing) = cells(base, new);
        let judged = cells.iter().filter(|(mode, _)| *mode != PLAIN).count();
        Self {
            threshold,
            mismatches: mismatches(base, new),
            under_test: under_test(base, new),
            changes: cells.iter().filter_map(|(m, p)| change(base, new, m, p, threshold, judged)).collect(),
            missing,
            plain: plain(base, new),
        }
    }

    /// How many changes are of this kind.
    #[must_use]
    pub fn count(&self, finding: Finding) -> usize {
        self.changes.iter().filter(|c| c.finding == finding).count()
    }
}

/// Modes and phases that both have, and what only one has.
fn cells<'a>(base: &'a Report, new: &'a Report) -> (Vec<(&'a str, &'a str)>, Vec<String>) {
    let has = |r: &Report, mode: &str, phase: &str| r.pairs.iter().any(|p| p.mode == mode && p.phase == phase);
    let (mut both, mut missing) = (Vec::new(), Vec::new());
    for (of, other, whose) in [(base, new, "the new result"), (new, base, "the base")] {
        for mode in of.modes() {
            for phase in of.phases().into_iter().filter(|p| has(of, mode, p)) {
                if !has(other, mode, phase) {
                    missing.push(format!("{mode}, {phase}: not in {whose}"));
                } else if std::ptr::eq(of, base) {
                    both.push((mode, phase));
                }
            }
        }
    }
    (both, missing)
}

fn change(base: &Report, new: &Report, mode: &str, phase: &str, threshold: f64, judged: usize) -> Option<Change> {
    let (then, now) = (base.rounds(mode, phase), new.rounds(mode, phase));
    let (base, new) = (median(&mut flat(&then))?, median(&mut flat(&now))?);
    // The two were drawn with one seed; the second half of one is put against the first of the other, so that no draw
    // meets its twin.
    let (of_then, mut of_now) = (draws(&then), draws(&now));
    let half = of_now.len() / 2;
    of_now.rotate_left(half);
    let differences: Vec<f64> = of_now.iter().zip(&of_then).map(|(n, b)| n - b).collect();
    let rounds = then.len().min(now.len());
    let usual = interval(new - base, differences.clone(), rounds, 1).map(Interval::in_percent);
    let wide = interval(new - base, differences, rounds, judged).map(Interval::in_percent);
    Some(Change {
        mode: mode.to_owned(),
        phase: phase.to_owned(),
        base: percent(base),
        new: percent(new),
        difference: percent(new - base),
        interval: usual,
        judged: wide,
        rounds: [then.len(), now.len()],
        finding: if mode == PLAIN { Finding::Control } else { finding(usual, wide, threshold) },
    })
}

fn finding(usual: Option<Interval>, wide: Option<Interval>, threshold: f64) -> Finding {
    match (usual, wide) {
        (_, Some(i)) if i.low > threshold => Finding::Regression,
        (_, Some(i)) if i.high < -threshold => Finding::Improved,
        (Some(i), _) if i.reach() <= threshold => Finding::NoDifference,
        _ => Finding::Undecided,
    }
}

/// Why the two should not be compared: another machine, another llama.cpp, another model, other requests.
#[must_use]
pub fn mismatches(base: &Report, new: &Report) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            found.push(format!("{what}: {a} then, {b} now"));
        }
    };
    let (a, b) = (&base.machine, &new.machine);
    differ("processor", &a.cpu, &b.cpu);
    differ("cores", &a.cores, &b.cores);
    differ("memory, GiB", &a.memory_gib, &b.memory_gib);
    differ("kernel", &a.kernel, &b.kernel);
    differ("architecture", &a.arch, &b.arch);
    let (a, b) = (&base.build.model, &new.build.model);
    differ("model's size", &a.size_bytes, &b.size_bytes);
    differ("model", &content(a.sha256_of_16_mib.as_deref()), &content(b.sha256_of_16_mib.as_deref()));
    let (a, b) = (&base.settings, &new.settings);
    differ("method", &a.method.label(), &b.method.label());
    differ("threads", &a.threads, &b.threads);
    differ("prompts, tokens", &format!("{:?}", a.contexts), &format!("{:?}", b.contexts));
    differ("tokens generated", &a.predict, &b.predict);
    differ("requests at once, tokens", &format!("{:?}", a.parallel), &format!("{:?}", b.parallel));
    differ("capture", &a.capture.join(" "), &b.capture.join(" "));
    found.extend(changed_files("plain server", &base.build.server, &new.build.server));
    if base.build.model.sha256_of_16_mib.is_none() || new.build.model.sha256_of_16_mib.is_none() {
        found.push("model: its content is not known".to_owned());
    }
    found
}

/// The first characters tell two files apart.
fn content(sha256: Option<&str>) -> String {
    sha256.map_or_else(|| "unknown".to_owned(), |s| s.chars().take(12).collect())
}

/// Files of a server that are not the same, or not known to be.
fn changed_files(what: &str, base: &Binary, new: &Binary) -> Vec<String> {
    let mut found = Vec::new();
    for file in &base.files {
        match new.files.iter().find(|f| f.name == file.name) {
            None => found.push(format!("{what}: {} is gone", file.name)),
            Some(other) if other.sha256 != file.sha256 || file.sha256.is_none() => found.push(format!(
                "{what}: {}: {} then, {} now",
                file.name,
                content(file.sha256.as_deref()),
                content(other.sha256.as_deref())
            )),
            Some(_) => {}
        }
    }
    let fresh = new.files.iter().filter(|f| !base.files.iter().any(|b| b.name == f.name));
    found.extend(fresh.map(|f| format!("{what}: {} is new", f.name)));
    found
}

fn under_test(base: &Report, new: &Report) -> Vec<String> {
    let mut found = Vec::new();
    if let (Some(a), Some(b)) = (&base.build.library, &new.build.library) {
        let (then, now) = (content(a.sha256.as_deref()), content(b.sha256.as_deref()));
        found.push(if then == now {
            format!("library: {now}, the same")
        } else {
            format!("library: {then} then, {now} now")
        });
    }
    if let (Some(a), Some(b)) = (&base.build.patched, &new.build.patched) {
        let changed = changed_files("patched server", a, b);
        found.extend(if changed.is_empty() { vec!["patched server: the same".to_owned()] } else { changed });
    }
    found
}

fn plain(base: &Report, new: &Report) -> Vec<PlainChange> {
    let center = |r: &Report, phase: &str| {
        median(&mut r.pairs.iter().filter(|p| p.phase == phase).map(|p| p.plain_ms).collect::<Vec<_>>())
    };
    let of = |phase: &str| {
        let (base_ms, new_ms) = (center(base, phase)?, center(new, phase)?);
        Some(PlainChange { phase: phase.to_owned(), base_ms, new_ms, percent: (new_ms / base_ms - 1.0) * 100.0 })
    };
    base.phases().into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::statistics::Interval;
    use super::{Finding, finding};

    #[test]
    fn only_a_whole_interval_beyond_the_threshold_counts() {
        let of = |low: f64, high: f64| finding(Some(Interval { low, high }), Some(Interval { low, high }), 1.0);
        assert_eq!(of(1.01, 3.0), Finding::Regression);
        assert_eq!(of(1.0, 3.0), Finding::Undecided);
        assert_eq!(of(0.2, 0.9), Finding::NoDifference);
        assert_eq!(of(-1.0, 1.0), Finding::NoDifference);
        assert_eq!(of(-1.1, 1.0), Finding::Undecided);
        assert_eq!(of(-3.0, -1.1), Finding::Improved);
        assert_eq!(finding(None, None, 1.0), Finding::Undecided);
    }
}
