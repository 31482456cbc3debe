//! Totals of devices and of pairs of them, kept for the next summary: see `splits`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::plan::Plan;
use super::splits::{PartRun, Transfer, device_of_place};

/// What a device's parts took, since the last reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartTotals {
    /// Parts given to it.
    pub parts: u64,
    /// Those whose end was seen.
    pub timed: u64,
    /// Those that the host was made to wait for.
    pub serialized: u64,
    /// From start to end of the timed ones.
    pub ns: u64,
}

/// Copies between two devices, since the last reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyTotals {
    /// Tensors.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those whose call was seen and had to wait for nothing.
    pub timed: u64,
    /// Their bytes.
    pub timed_bytes: u64,
    /// What those calls took.
    pub ns: u64,
}

/// Devices by name, and pairs of them.
#[derive(Debug, Default)]
pub struct Totals {
    /// By device.
    pub parts: BTreeMap<&'static str, PartTotals>,
    /// From and to.
    pub copies: BTreeMap<(Option<&'static str>, Option<&'static str>), CopyTotals>,
}

/// The totals that steps add to and the writer takes.
#[derive(Debug, Default)]
pub struct Shared(Mutex<Totals>);

impl Shared {
    /// Adds a step that is over.
    pub(super) fn account(&self, plan: &Plan, runs: &[PartRun], transfers: &[Transfer]) {
        let mut totals = self.0.lock();
        for run in runs {
            let Some(part) = plan.parts.get(run.part as usize) else { continue };
            let t = totals.parts.entry(device_of_place(part.place).name).or_default();
            t.parts += 1;
            t.serialized += u64::from(run.serialized);
            if let Some(end) = run.end_ns {
                t.timed += 1;
                t.ns += end.saturating_sub(run.start_ns);
            }
        }
        for transfer in transfers {
            let t = totals.copies.entry((transfer.from.map(|d| d.name), transfer.to.map(|d| d.name))).or_default();
            t.count += 1;
            t.bytes += transfer.bytes;
            if let Some(ns) = transfer.ns.filter(|_| !transfer.waited) {
                t.timed += 1;
                t.timed_bytes += transfer.bytes;
                t.ns += ns;
            }
        }
    }

    /// Takes the totals since the last call.
    #[must_use]
    pub fn take(&self) -> Totals {
        std::mem::take(&mut *self.0.lock())
    }
}
