//! HTML card about GPUs; none for a log without them.

use super::super::units::{bytes, count, known, number};
use super::plot::{Line, over_time};
use super::{card, html_table};
use crate::analyze::Session;
use crate::analyze::gpu::{Gpu, Point};

/// On an axis, round numbers of MiB are wanted, not of bytes.
const MIB: f64 = 1_048_576.0;

const COLUMNS: [&str; 11] =
    ["gpu", "<name", "<from", "W mean", "W max", "kJ", "J/token", "busy %", "SM %", "memory, peak", "of this process"];

pub(super) fn gpus(session: &Session) -> String {
    if session.gpus.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = session.gpus.iter().map(row).collect();
    let lines = |value: fn(&Point) -> Option<f64>| -> Vec<Line> {
        let of = |g: &Gpu| Line {
            name: format!("gpu {}", g.device),
            points: g.series.iter().filter_map(|p| Some((p.t_s, value(p)?))).collect(),
        };
        session.gpus.iter().map(of).collect()
    };
    let chart = |title: &str, lines: Vec<Line>, unit: fn(f64) -> String| {
        let top = lines.iter().flat_map(|l| &l.points).map(|p| p.1).fold(0.0, f64::max);
        format!("<h3>{title}</h3>\n{}", over_time(&lines, session.session.duration_s, top, unit, title))
    };
    let power = chart("Power", lines(|p| p.power_mw.map(|mw| mw / 1e3)), |v| format!("{} W", number(v)));
    let memory = chart("Memory in use", lines(|p| p.memory_used_bytes.map(|n| n as f64 / MIB)), |v| {
        format!("{} MiB", number(v))
    });
    let samples: u64 = session.gpus.iter().map(|g| g.samples).fold(0, u64::saturating_add);
    let aside =
        format!("{} readings. Busy says that some kernel ran; SM is how much of the device did.", count(samples));
    card("GPU", &aside, &(html_table(&COLUMNS, &rows) + &power + &memory))
}

fn row(gpu: &Gpu) -> Vec<String> {
    let watts = |mw: f64| number(mw / 1e3);
    let mig = gpu.mig_instance.map(|m| format!(" (MIG {m})")).unwrap_or_default();
    let lost = gpu.lost.as_ref().map(|why| format!(" - lost: {why}")).unwrap_or_default();
    vec![
        gpu.device.to_string(),
        format!("{}{mig}{lost}", gpu.name.as_deref().unwrap_or("?")),
        gpu.source.clone(),
        known(gpu.power_mean_mw, watts),
        known(gpu.power_max_mw, watts),
        known(gpu.energy_mj, |mj| number(mj / 1e6)),
        known(gpu.joules_per_token, number),
        known(gpu.busy_mean_percent, number),
        known(gpu.sm_utilization_mean_percent, number),
        known(gpu.memory_peak_bytes, bytes),
        known(gpu.process_memory_peak_bytes, bytes),
    ]
}
