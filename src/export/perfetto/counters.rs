//! Values over time: memory by kind, KV cells, what GPUs and the host say of themselves.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::trace::{Kind, Trace};
use super::tracks::{Group, Tracks, Unit};
use crate::format::Line;
use crate::format::gpu::GpuSample;
use crate::format::server::KvCacheUsage;
use crate::format::summary::HostSample;

/// Kinds of memory and contexts that are told apart; a damaged log may name any number.
const MOST_KINDS: usize = 256;

/// The counters of a session.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes of live buffers and the moment that they are of, by kind and buffer type.
    memory: BTreeMap<String, (i64, u64)>,
    /// Cells of each context's cache.
    sizes: BTreeMap<u64, u64>,
}

/// A value as a counter has it.
fn whole(value: u64) -> Kind<'static> {
    Kind::Count(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Counters {
    /// Takes a line; those that hold no value are none of its business.
    pub(super) fn add<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        tracks: &mut Tracks,
        line: &Line,
        t: u64,
    ) -> io::Result<()> {
        match line {
            Line::BufferAllocation(e) => {
                let bytes = i64::try_from(e.size_bytes).unwrap_or(i64::MAX);
                self.memory(trace, tracks, format!("{} {}", e.kind, e.backend), bytes, t)
            }
            Line::BufferFree(e) => {
                let bytes = i64::try_from(e.size_bytes).unwrap_or(i64::MAX);
                self.memory(trace, tracks, format!("{} {}", e.kind, e.backend), -bytes, t)
            }
            Line::KvCacheUsage(e) => self.kv(trace, tracks, e, t),
            Line::HostSample(e) => host(trace, tracks, e, t),
            Line::GpuSample(e) => gpu(trace, tracks, e, t),
            _ => Ok(()),
        }
    }

    fn memory<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        tracks: &mut Tracks,
        name: String,
        change: i64,
        t: u64,
    ) -> io::Result<()> {
        if self.memory.len() >= MOST_KINDS && !self.memory.contains_key(&name) {
            return Ok(());
        }
        let (bytes, at) = self.memory.entry(name.clone()).or_default();
        // An allocation may be told late; freed may be what was allocated before the log began.
        *bytes = bytes.saturating_add(change).max(0);
        *at = t.max(*at);
        tracks.count(trace, *at, (Group::Memory, &name, Unit::Bytes), Kind::Count(*bytes))
    }

    fn kv<W: Write>(&mut self, trace: &mut Trace<W>, tracks: &mut Tracks, e: &KvCacheUsage, t: u64) -> io::Result<()> {
        if self.sizes.len() >= MOST_KINDS && !self.sizes.contains_key(&e.context_id) {
            return Ok(());
        }
        let context = e.context_id;
        if self.sizes.insert(context, e.size_cells) != Some(e.size_cells) {
            let name = format!("size, context {context}");
            tracks.count(trace, t, (Group::Kv, &name, Unit::Named("cells")), whole(e.size_cells))?;
        }
        let Some(used) = e.used_cells else { return Ok(()) };
        tracks.count(trace, t, (Group::Kv, &format!("used, context {context}"), Unit::Named("cells")), whole(used))
    }
}

/// Writes those of the values that were read.
fn each<W: Write>(
    trace: &mut Trace<W>,
    tracks: &mut Tracks,
    (t, group): (u64, Group),
    values: &[(&str, Unit, Option<Kind<'_>>)],
) -> io::Result<()> {
    for (name, unit, value) in values {
        if let Some(value) = value {
            tracks.count(trace, t, (group, name, *unit), *value)?;
        }
    }
    Ok(())
}

fn host<W: Write>(trace: &mut Trace<W>, tracks: &mut Tracks, e: &HostSample, t: u64) -> io::Result<()> {
    let percent = Unit::Named("%");
    let values = [
        ("resident memory", Unit::Bytes, e.rss_bytes.map(whole)),
        ("CPU, of one core", percent, e.cpu_percent.map(Kind::Measure)),
        ("CPU of the recorder", percent, e.own_cpu_percent.map(Kind::Measure)),
        ("major faults", Unit::Named("faults"), e.major_faults.map(whole)),
        ("CPU pressure", percent, e.cpu_pressure_percent.map(Kind::Measure)),
    ];
    each(trace, tracks, (t, Group::Host), &values)
}

fn gpu<W: Write>(trace: &mut Trace<W>, tracks: &mut Tracks, e: &GpuSample, t: u64) -> io::Result<()> {
    let percent = Unit::Named("%");
    let values = [
        ("busy", percent, e.gpu_busy_percent.map(Kind::Measure)),
        ("multiprocessors with work", percent, e.sm_utilization_percent.map(Kind::Measure)),
        ("memory busy", percent, e.memory_busy_percent.map(Kind::Measure)),
        ("memory used", Unit::Bytes, e.memory_used_bytes.map(whole)),
        ("memory of the process", Unit::Bytes, e.process_memory_bytes.map(whole)),
        ("power", Unit::Named("W"), e.power_mw.map(|mw| Kind::Measure(mw / 1e3))),
        ("temperature", Unit::Named("°C"), e.temperature_c.map(Kind::Measure)),
    ];
    for (name, unit, value) in values {
        let name = format!("GPU {}: {name}", e.device);
        each(trace, tracks, (t, Group::Gpu), &[(&name, unit, value)])?;
    }
    Ok(())
}
