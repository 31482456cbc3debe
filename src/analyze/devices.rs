//! What each device did in a model that several share, and what was copied between them, from the
//! totals of `step_summary`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::stats::giga_per_second;
use crate::format::Line;
use crate::format::summary::{CopyTotals, DeviceTotals};

/// One device over the whole log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// Its name.
    pub device: String,
    /// Its memory: `vram` or `ram`; `null` where it is not known.
    pub memory_type: Option<String>,
    /// Operations.
    pub operations: u64,
    /// Their floating-point operations.
    pub flops: u64,
    /// Bytes that they read and wrote.
    pub bytes: u64,
    /// Parts of graphs that it was given.
    pub splits: u64,
    /// Those whose end was seen.
    pub timed_splits: u64,
    /// Those that the host was made to wait for.
    pub serialized_splits: u64,
    /// Wall time of the timed ones as the host saw it, microseconds: an upper bound, never the time of kernels; `null`
    /// when none was.
    pub split_us: Option<f64>,
}

/// Copies from one device's memory to another's over the whole log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Copies {
    /// Where the data was.
    pub from_device: Option<String>,
    /// Where it went.
    pub to_device: Option<String>,
    /// Tensors.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Tensors whose copy was timed and waited for nothing else.
    pub timed_count: u64,
    /// Wall time of those calls, microseconds; `null` when there is none.
    pub timed_us: Option<f64>,
    /// Bytes a second of the timed ones, 10^9.
    pub gbps: Option<f64>,
}

/// The answer. Both lists are empty where the log does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Devices {
    /// Most arithmetic first.
    pub devices: Vec<Device>,
    /// Most bytes first.
    pub copies: Vec<Copies>,
}

type Pair = (Option<String>, Option<String>);

/// Gathers [`Devices`].
#[derive(Debug, Default)]
pub struct Fold {
    devices: BTreeMap<String, DeviceTotals>,
    copies: BTreeMap<Pair, CopyTotals>,
}

impl Fold {
    /// Takes one event in.
    pub fn add(&mut self, line: &Line) {
        let Line::StepSummary(e) = line else { return };
        for add in e.devices.iter().flatten() {
            match self.devices.get_mut(&add.device) {
                Some(sum) => add_device(sum, add),
                None => _ = self.devices.insert(add.device.clone(), add.clone()),
            }
        }
        for add in e.copies.iter().flatten() {
            let pair = (add.from_device.clone(), add.to_device.clone());
            match self.copies.get_mut(&pair) {
                Some(sum) => add_copies(sum, add),
                None => _ = self.copies.insert(pair, add.clone()),
            }
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Devices {
        let mut devices: Vec<Device> = self.devices.into_values().map(device).collect();
        let mut copies: Vec<Copies> = self.copies.into_values().map(copy).collect();
        devices.sort_by_key(|d| std::cmp::Reverse(d.flops));
        copies.sort_by_key(|c| std::cmp::Reverse(c.bytes));
        Devices { devices, copies }
    }
}

fn add_device(sum: &mut DeviceTotals, add: &DeviceTotals) {
    sum.operations = sum.operations.saturating_add(add.operations);
    sum.flops = sum.flops.saturating_add(add.flops);
    sum.bytes = sum.bytes.saturating_add(add.bytes);
    sum.splits = sum.splits.saturating_add(add.splits);
    sum.timed_splits = sum.timed_splits.saturating_add(add.timed_splits);
    sum.serialized_splits = sum.serialized_splits.saturating_add(add.serialized_splits);
    sum.split_us += add.split_us;
}

fn add_copies(sum: &mut CopyTotals, add: &CopyTotals) {
    sum.count = sum.count.saturating_add(add.count);
    sum.bytes = sum.bytes.saturating_add(add.bytes);
    sum.timed_count = sum.timed_count.saturating_add(add.timed_count);
    sum.timed_bytes = sum.timed_bytes.saturating_add(add.timed_bytes);
    sum.timed_us += add.timed_us;
}

fn device(t: DeviceTotals) -> Device {
    Device {
        device: t.device,
        memory_type: t.memory_type,
        operations: t.operations,
        flops: t.flops,
        bytes: t.bytes,
        splits: t.splits,
        timed_splits: t.timed_splits,
        serialized_splits: t.serialized_splits,
        split_us: (t.timed_splits > 0).then_some(t.split_us),
    }
}

fn copy(t: CopyTotals) -> Copies {
    Copies {
        from_device: t.from_device,
        to_device: t.to_device,
        count: t.count,
        bytes: t.bytes,
        timed_count: t.timed_count,
        timed_us: (t.timed_count > 0).then_some(t.timed_us),
        gbps: giga_per_second(t.timed_bytes, t.timed_us).filter(|_| t.timed_count > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::Fold;
    use crate::format::Line;

    fn summary(timed: u64) -> Line {
        let phase = serde_json::json!({"steps": 1, "tokens": 1, "graph_us": 1000.0, "flops": 10});
        let device = |name: &str, flops: u64| {
            serde_json::json!({"device": name, "memory_type": "ram", "operations": 5, "flops": flops, "bytes": 7, "splits": 2,
                "timed_splits": timed, "serialized_splits": 0, "split_us": 40.0})
        };
        serde_json::from_value(serde_json::json!({
            "event": "step_summary", "timestamp": "0", "session_id": "s", "t_ns": 0, "interval_ms": 2.0, "step": 3,
            "steps": 1, "timed_steps": 1, "sampled_steps": 0, "graphs_reused": 0, "graphs_built": 1, "prefill": phase,
            "decode": phase, "timed_graph_us": 1000.0, "barrier_us": 0.0, "other_us": 0.0, "component_flows": 1,
            "ops": [], "components": [], "layers": [], "devices": [device("CPU", 3), device("RPC0", 9)],
            "copies": [{"from_device": "CPU", "to_device": "RPC0", "count": 7, "bytes": 5144, "timed_count": timed,
                "timed_bytes": 2000 * timed, "timed_us": 2.0}],
        }))
        .unwrap()
    }

    #[test]
    fn devices_and_copies_add_up_and_untimed_ones_have_no_time() {
        let mut fold = Fold::default();
        fold.add(&summary(1));
        fold.add(&summary(1));
        let d = fold.finish();
        assert_eq!(
            d.devices.iter().map(|d| (d.device.as_str(), d.flops)).collect::<Vec<_>>(),
            [("RPC0", 18), ("CPU", 6)]
        );
        assert_eq!((d.devices[0].splits, d.devices[0].split_us), (4, Some(80.0)));
        assert_eq!((d.copies[0].count, d.copies[0].bytes, d.copies[0].gbps), (14, 10_288, Some(1.0)));
        let mut fold = Fold::default();
        fold.add(&summary(0));
        let d = fold.finish();
        assert_eq!((d.devices[0].split_us, d.copies[0].timed_us, d.copies[0].gbps), (None, None, None));
    }
}
