//! Where the memory is: backend buffers by device and kind, alive at the end and at their peak.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::format::Line;

/// Buffers of one kind on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Device, or the buffer type where the build does not tell the device.
    pub device: String,
    /// `vram`, `ram` or `mmap`.
    pub memory_type: String,
    /// `weights`, `kv_cache`, `compute`, ...
    pub kind: String,
    /// Bytes alive at the end of the log.
    pub live_bytes: u64,
    /// Largest number of bytes alive at one time.
    pub peak_bytes: u64,
    /// Bytes of this kind at the moment when all kinds together were largest.
    pub at_total_peak_bytes: u64,
    /// Buffers alive at the end.
    pub live_buffers: u64,
    /// Allocations in the whole log.
    pub allocations: u64,
}

/// A point of the sum over all buffers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the session began.
    pub t_s: f64,
    /// Bytes alive.
    pub bytes: u64,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// By device, memory type and kind; largest peak first.
    pub rows: Vec<Row>,
    /// Bytes alive at the end.
    pub live_bytes: u64,
    /// Largest sum; `null` when no allocation was logged.
    pub peak_bytes: Option<u64>,
    /// When that was, seconds since the session began.
    pub peak_t_s: Option<f64>,
    /// Every change of the sum.
    pub series: Vec<Point>,
    /// `buffer_free` of buffers whose allocation is not in the log: they lived before it, or a line was lost.
    pub unmatched_frees: u64,
}

type Key = (String, String, String);

#[derive(Debug, Default)]
struct Sum {
    live: u64,
    peak: u64,
    at_total_peak: u64,
    buffers: u64,
    allocations: u64,
}

/// Gathers [`Memory`].
#[derive(Debug, Default)]
pub struct Fold {
    sums: BTreeMap<Key, Sum>,
    buffers: HashMap<u64, (Key, u64)>,
    result: Memory,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line, t_s: f64) {
        match line {
            Line::BufferAllocation(e) => {
                let device = e.device.clone().unwrap_or_else(|| e.backend.clone());
                let key: Key = (device, e.memory_type.clone(), e.kind.clone());
                let sum = self.sums.entry(key.clone()).or_default();
                sum.live = sum.live.saturating_add(e.size_bytes);
                sum.peak = sum.peak.max(sum.live);
                sum.buffers += 1;
                sum.allocations += 1;
                self.buffers.insert(e.buffer_id, (key, e.size_bytes));
                self.total(self.result.live_bytes.saturating_add(e.size_bytes), t_s);
            }
            Line::BufferFree(e) => {
                let Some((key, size)) = self.buffers.remove(&e.buffer_id) else {
                    self.result.unmatched_frees += 1;
                    return;
                };
                if let Some(sum) = self.sums.get_mut(&key) {
                    sum.live = sum.live.saturating_sub(size);
                    sum.buffers = sum.buffers.saturating_sub(1);
                }
                self.total(self.result.live_bytes.saturating_sub(size), t_s);
            }
            _ => {}
        }
    }

    fn total(&mut self, bytes: u64, t_s: f64) {
        self.result.live_bytes = bytes;
        self.result.series.push(Point { t_s, bytes });
        if self.result.peak_bytes.is_none_or(|peak| bytes > peak) {
            self.result.peak_bytes = Some(bytes);
            self.result.peak_t_s = Some(t_s);
            self.sums.values_mut().for_each(|sum| sum.at_total_peak = sum.live);
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Memory {
        let mut rows: Vec<Row> = self
            .sums
            .into_iter()
            .map(|((device, memory_type, kind), sum)| Row {
                device,
                memory_type,
                kind,
                live_bytes: sum.live,
                peak_bytes: sum.peak,
                at_total_peak_bytes: sum.at_total_peak,
                live_buffers: sum.buffers,
                allocations: sum.allocations,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.peak_bytes));
        Memory { rows, ..self.result }
    }
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;

    fn line(event: &str, id: u64, kind: &str, size: u64) -> Line {
        serde_json::from_value(serde_json::json!({
            "event": event, "timestamp": "0", "session_id": "s", "t_ns": 0, "buffer_id": id, "kind": kind,
            "size_bytes": size, "backend": "CPU", "device": null, "memory_type": "ram", "live_bytes": 0,
        }))
        .unwrap()
    }

    #[test]
    fn peaks_are_kept_when_buffers_go_and_a_stray_free_is_counted() {
        let mut fold = Fold::default();
        let events = [
            line("buffer_allocation", 1, "weights", 100),
            line("buffer_allocation", 2, "compute", 50),
            line("buffer_free", 2, "compute", 50),
            line("buffer_allocation", 3, "compute", 20),
            line("buffer_free", 9, "other", 7),
        ];
        events.iter().enumerate().for_each(|(i, l)| fold.add(l, i as f64));
        let memory = fold.finish();
        assert_eq!((memory.live_bytes, memory.peak_bytes, memory.peak_t_s), (120, Some(150), Some(1.0)));
        assert_eq!(memory.unmatched_frees, 1);
        let compute = &memory.rows[1];
        assert_eq!((compute.live_bytes, compute.peak_bytes, compute.live_buffers, compute.allocations), (20, 50, 1, 2));
        assert_eq!(compute.device, "CPU");
    }

    #[test]
    fn no_allocation_is_no_peak() {
        assert_eq!(Fold::default().finish().peak_bytes, None);
    }
}
