//! Terminal section about GPUs; none for a log without them.

use super::super::table::{Style, Table, shorten};
use super::super::units::{bytes, count, known, number};
use super::{heading, joined};
use crate::analyze::Session;
use crate::analyze::gpu::Gpu;

pub(super) fn gpus(session: &Session, style: Style) -> String {
    if session.gpus.is_empty() {
        return String::new();
    }
    let watts = |mw: f64| number(mw / 1e3);
    let mut table = Table::new(&["gpu", "<name", "W mean", "W max", "kJ", "J/token", "busy %", "SM %", "memory", "°C"]);
    for gpu in &session.gpus {
        table.row([
            gpu.device.to_string(),
            shorten(gpu.name.as_deref().unwrap_or("?"), 18),
            known(gpu.power_mean_mw, watts),
            known(gpu.power_max_mw, watts),
            known(gpu.energy_mj, |mj| number(mj / 1e6)),
            known(gpu.joules_per_token, number),
            known(gpu.busy_mean_percent, number),
            known(gpu.sm_utilization_mean_percent, number),
            known(gpu.memory_peak_bytes, bytes),
            known(gpu.temperature_max_c, number),
        ]);
    }
    let samples: u64 = session.gpus.iter().map(|g| g.samples).fold(0, u64::saturating_add);
    let mut out = heading("GPU", &format!("{} readings", count(samples)), style) + &table.render(style);
    for gpu in &session.gpus {
        let line = joined(facts(gpu));
        if !line.is_empty() {
            out += &super::wrap("  ", "  ", &format!("{}: {line}", gpu.device));
        }
    }
    out
}

fn facts(gpu: &Gpu) -> [Option<String>; 4] {
    let throttled: Vec<String> = gpu.throttle_reasons.iter().map(|(reason, n)| format!("{reason} ({n})")).collect();
    [
        gpu.mig_instance.map(|m| format!("MIG instance {m}")),
        gpu.process_memory_peak_bytes.map(|n| format!("this process up to {}", bytes(n))),
        (!throttled.is_empty()).then(|| format!("clocks held by {}", throttled.join(", "))),
        gpu.lost.as_ref().map(|why| format!("LOST: {why}")),
    ]
}
