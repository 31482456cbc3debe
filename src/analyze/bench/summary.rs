//! What the pairs of one run say: median and interval by mode and phase, the verdict against the mode's ceiling, and
//! how steady the machine was.

use serde::Serialize;

use super::statistics::{Interval, Random, interval, median, quartiles, resampled_medians};
use super::{PLAIN, Report, ceiling, is_off, percent};

/// One seed for every report: reading one again must give the same interval.
const SEED: u64 = 20_260_101;

/// A mode that does nothing may lie within this many per cent of the plain server.
const INDISTINGUISHABLE: f64 = 0.5;

/// Drift of the plain server from which on the machine was not steady, per cent.
const STEADY: f64 = 5.0;

/// Load average from which on others were at work.
const QUIET: f64 = 0.5;

/// Where a mode's interval lies against its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Not judged: plain against plain, or a mode without a ceiling.
    None,
    /// The whole interval, stretched for the number of decisions, lies above the ceiling.
    Over,
    /// A mode that does nothing cannot be told from the plain server: the interval spans 0 and lies within half a per
    /// cent of it.
    AsPlain,
    /// The interval lies below the ceiling.
    Within,
    /// The interval spans the ceiling.
    Undecided,
}

impl Verdict {
    /// As it is shown.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Over => "OVER",
            Self::AsPlain => "as plain",
            Self::Within => "within",
            Self::Undecided => "undecided",
        }
    }
}

/// One mode in one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The mode.
    pub mode: String,
    /// What was timed.
    pub phase: String,
    /// Median slow-down, per cent.
    pub median: f64,
    /// Its 95 % interval; `null` of fewer than two rounds.
    pub interval: Option<Interval>,
    /// The wider interval that `over` is judged by: all rows together are right in 95 of 100 runs.
    pub judged: Option<Interval>,
    /// Quartiles of the pairs.
    pub quartiles: [f64; 2],
    /// Median time of the mode, milliseconds a token.
    pub ms_per_token: f64,
    /// Pairs.
    pub pairs: usize,
    /// Rounds.
    pub rounds: usize,
    /// Per cent that the mode may cost.
    pub ceiling: Option<f64>,
    /// The interval against the ceiling.
    pub verdict: Verdict,
}

/// The plain server over time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// What was timed.
    pub phase: String,
    /// By how many per cent the second half of the run was slower than the first.
    pub percent: f64,
    /// Median time of the plain server, milliseconds a token.
    pub plain_ms: f64,
}

/// Everything that follows from a report; its JSON is the report with these fields added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary<'a> {
    /// What was measured.
    #[serde(flatten)]
    pub report: &'a Report,
    /// By mode and phase.
    pub rows: Vec<Row>,
    /// The plain server over time, by phase.
    pub drift: Vec<Drift>,
    /// What speaks against trusting the figures.
    pub warnings: Vec<String>,
}

impl<'a> Summary<'a> {
    /// The summary of this report.
    #[must_use]
    pub fn of(report: &'a Report) -> Self {
        let phases = report.phases();
        let cells: Vec<(&str, &str)> = report.modes().iter().flat_map(|m| phases.iter().map(|p| (*m, *p))).collect();
        let judged = cells.iter().filter(|(m, _)| ceiling(m).is_some()).count();
        let rows: Vec<Row> = cells.iter().filter_map(|(m, p)| row(report, m, p, judged)).collect();
        let drift: Vec<Drift> = phases.iter().filter_map(|p| drift(report, p)).collect();
        let warnings = warnings(report, &rows, &drift);
        Self { report, rows, drift, warnings }
    }

    /// Rows whose mode costs more than it may, beyond doubt.
    pub fn over(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|r| r.verdict == Verdict::Over)
    }
}

/// Logarithms of all rounds.
pub(super) fn flat(rounds: &[Vec<f64>]) -> Vec<f64> {
    rounds.iter().flatten().copied().collect()
}

/// Draws of the median, the same for the same pairs.
pub(super) fn draws(rounds: &[Vec<f64>]) -> Vec<f64> {
    resampled_medians(rounds, &mut Random::new(SEED))
}

fn row(report: &Report, mode: &str, phase: &str, judged: usize) -> Option<Row> {
    let rounds = report.rounds(mode, phase);
    let mut values = flat(&rounds);
    let (center, quartiles) = (median(&mut values)?, quartiles(&values)?);
    let drawn = draws(&rounds);
    let usual = interval(center, drawn.clone(), rounds.len(), 1).map(Interval::in_percent);
    let wide = interval(center, drawn, rounds.len(), judged).map(Interval::in_percent);
    let of_mode = report.pairs.iter().filter(|p| p.mode == mode && p.phase == phase);
    let ms_per_token = median(&mut of_mode.map(|p| p.mode_ms).collect::<Vec<_>>())?;
    Some(Row {
        mode: mode.to_owned(),
        phase: phase.to_owned(),
        median: percent(center),
        interval: usual,
        judged: wide,
        quartiles: quartiles.map(percent),
        ms_per_token,
        pairs: values.len(),
        rounds: rounds.len(),
        ceiling: ceiling(mode),
        verdict: verdict(mode, usual, wide),
    })
}

fn verdict(mode: &str, usual: Option<Interval>, wide: Option<Interval>) -> Verdict {
    let Some(ceiling) = ceiling(mode) else { return Verdict::None };
    let (Some(usual), Some(wide)) = (usual, wide) else { return Verdict::Undecided };
    if wide.low > ceiling {
        Verdict::Over
    } else if is_off(mode) && usual.contains(0.0) && usual.reach() <= INDISTINGUISHABLE {
        Verdict::AsPlain
    } else if usual.high <= ceiling {
        Verdict::Within
    } else {
        Verdict::Undecided
    }
}

fn drift(report: &Report, phase: &str) -> Option<Drift> {
    let mut pairs: Vec<_> = report.pairs.iter().filter(|p| p.phase == phase).collect();
    pairs.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let mut times: Vec<f64> = pairs.iter().map(|p| p.plain_ms).collect();
    let (first, second) = times.split_at_mut(pairs.len() / 2);
    let percent = (median(second)? / median(first)? - 1.0) * 100.0;
    Some(Drift { phase: phase.to_owned(), percent, plain_ms: median(&mut times)? })
}

fn warnings(report: &Report, rows: &[Row], drift: &[Drift]) -> Vec<String> {
    let mut found = Vec::new();
    if report.machine.load_before > QUIET {
        found.push(format!(
            "the load average before was {:.1}: not a quiet machine, and the figures are a trial",
            report.machine.load_before
        ));
    }
    for d in drift.iter().filter(|d| d.percent.abs() > STEADY) {
        found.push(format!("the plain server's {} drifted by {:+.1} % within the run", d.phase, d.percent));
    }
    for r in rows.iter().filter(|r| r.mode == PLAIN) {
        if r.interval.is_some_and(|i| !i.contains(0.0)) {
            found.push(format!("plain differs from plain in {}: one in twenty intervals does by chance", r.phase));
        }
    }
    if let Some(fewest) = rows.iter().map(|r| r.rounds).min().filter(|&n| n < 4) {
        let s = if fewest == 1 { "" } else { "s" };
        found.push(format!("only {fewest} round{s}: intervals are wide, and little can be decided (--rounds, --time)"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::statistics::Interval;
    use super::{Verdict, verdict};

    #[test]
    fn a_verdict_needs_the_whole_interval() {
        let of = |mode: &str, low: f64, high: f64| {
            let i = Some(Interval { low, high });
            verdict(mode, i, i)
        };
        assert_eq!(of("plain", 3.0, 9.0), Verdict::None);
        assert_eq!(of("minimal", 0.51, 9.0), Verdict::Over);
        assert_eq!(of("minimal", 0.5, 9.0), Verdict::Undecided);
        assert_eq!(of("minimal", -1.0, 0.5), Verdict::Within);
        assert_eq!(of("disabled", -0.4, 0.5), Verdict::AsPlain);
        assert_eq!(of("disabled", -0.6, 0.5), Verdict::Within);
        assert_eq!(of("disabled", 0.1, 0.2), Verdict::Within);
        // Slower by the usual interval and not by the wide one: not yet called over, and certainly not within.
        let (usual, wide) = (Interval { low: 0.6, high: 2.0 }, Interval { low: -1.0, high: 4.0 });
        assert_eq!(verdict("minimal", Some(usual), Some(wide)), Verdict::Undecided);
        assert_eq!(verdict("minimal", None, None), Verdict::Undecided);
    }
}
