//! GPUs: a thread of ours asks the driver for figures, keeps their history for requests, and has them ready
//! for the writer.
//!
//! Before it: NVML (`nvidia`, `mig`) and the kernel's files (`amd`, `rapl`). After it: `record`, whose writer asks
//! [`Gpus`] as one of its sources: it has lines of its own and completes the events that happened while a device was
//! read. A machine without a GPU keeps no thread.

mod amd;
mod history;
mod lines;
#[expect(unsafe_code, reason = "one function of NVML that its wrapper leaves out")]
mod mig;
mod nvidia;
pub mod rapl;
mod reading;
mod sampler;

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

pub use lines::Gpus;
pub use sampler::{own_cpu_ns, start, stop};

use crate::format::gpu::GpuUse;
use crate::format::summary::Condition;
use history::History;
use reading::{Identity, Reading};

/// Readings that may wait for the writer; at ten a second and device, that is some minutes.
const MOST_FRESH: usize = 4096;

/// What the thread has found out, for the writer.
#[derive(Debug)]
struct Shared {
    /// Devices by number.
    devices: Vec<Device>,
    /// Readings that the writer has not taken yet.
    fresh: VecDeque<(u32, Reading)>,
    /// Readings that it took too late.
    overflowed: u64,
    /// Facts to be told in the log, with the time they were found.
    facts: Vec<Fact>,
    /// Up to when the devices are read; `None` while they are not read.
    horizon_ns: Option<u64>,
    /// The same with their energy counters.
    energy_horizon_ns: Option<u64>,
    /// Something began or ended: the next round reads the counters too.
    energy_wanted: bool,
    /// Time between two readings.
    interval_ns: u64,
}

#[derive(Debug)]
struct Device {
    identity: Identity,
    history: History,
    /// Why it is read no more.
    lost: Option<String>,
}

/// A state of the part `gpu`.
#[derive(Debug)]
pub struct Fact {
    /// When it was found.
    pub t_ns: u64,
    /// How it is.
    pub state: Condition,
    /// What was found.
    pub reason: String,
    /// What is missing from the log because of it.
    pub lost: Option<&'static str>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared::new());

impl Shared {
    const fn new() -> Self {
        Self {
            devices: Vec::new(),
            fresh: VecDeque::new(),
            overflowed: 0,
            facts: Vec::new(),
            horizon_ns: None,
            energy_horizon_ns: None,
            energy_wanted: false,
            interval_ns: 0,
        }
    }

    fn tell(&mut self, t_ns: u64, state: Condition, reason: String, lost: Option<&'static str>) {
        self.facts.push(Fact { t_ns, state, reason, lost });
    }

    /// What happens from now on is not read.
    const fn nobody_reads(&mut self) {
        (self.horizon_ns, self.energy_horizon_ns) = (None, None);
    }

    fn is_read(&self, horizon_ns: Option<u64>, t_ns: u64, now_ns: u64) -> bool {
        let patience_ns = 2 * self.interval_ns + 1_000_000_000;
        horizon_ns.is_none_or(|h| t_ns <= h || now_ns.saturating_sub(t_ns) > patience_ns)
    }

    fn add(&mut self, device: u32, reading: Reading) {
        if let Some(d) = self.devices.get_mut(device as usize) {
            d.history.add(&reading);
        }
        if self.fresh.len() >= MOST_FRESH {
            self.overflowed += 1;
        } else {
            self.fresh.push_back((device, reading));
        }
    }
}

/// Whether what happened up to `t_ns` can be completed now, or never will be more complete: the devices were read
/// behind it, nobody reads them, or they have not been read for long.
#[must_use]
pub fn is_settled(t_ns: u64, now_ns: u64) -> bool {
    let shared = SHARED.lock();
    shared.is_read(shared.horizon_ns, t_ns, now_ns)
}

/// The same for what is told with its energy; where that is not known yet, the next round asks for it.
#[must_use]
pub fn energy_is_settled(t_ns: u64, now_ns: u64) -> bool {
    let mut shared = SHARED.lock();
    let settled = shared.is_read(shared.energy_horizon_ns, t_ns, now_ns);
    shared.energy_wanted |= !settled;
    settled
}

/// Something begins whose energy will be asked for: the next round reads the counters.
pub fn mark_energy() {
    SHARED.lock().energy_wanted = true;
}

/// What each device did between two moments. Devices on which this process is known to have held no memory all that
/// time are left out. `None` where no device was ever read.
#[must_use]
pub fn use_between(from_ns: u64, to_ns: u64, tokens: u64) -> Option<Vec<GpuUse>> {
    let shared = SHARED.lock();
    if shared.devices.is_empty() {
        return None;
    }
    let uses: Vec<GpuUse> = shared
        .devices
        .iter()
        .map(|d| GpuUse { device: d.identity.number, ..d.history.between(from_ns, to_ns, tokens) })
        .collect();
    let idle = |u: &GpuUse| u.process_memory_peak_bytes == Some(0);
    let kept = |(u, d): &(&GpuUse, &Device)| {
        // The energy of a MIG instance is its GPU's.
        let part_of_it = |(u, part): (&GpuUse, &Device)| {
            part.identity.mig_instance.is_some() && part.identity.pci_bus_id == d.identity.pci_bus_id && !idle(u)
        };
        !idle(u) || (d.identity.mig_instance.is_none() && uses.iter().zip(&shared.devices).any(part_of_it))
    };
    Some(uses.iter().zip(&shared.devices).filter(kept).map(|(u, _)| u.clone()).collect())
}

/// Whether SM activity is measured at all.
#[must_use]
pub fn measures_sm() -> bool {
    SHARED.lock().devices.iter().any(|d| d.history.measures_sm())
}

/// SM activity around the moment `t_ns` on the device that ggml calls `device`, where there is no doubt which one that
/// is: the process has a single NVIDIA GPU. (CUDA numbers devices as it likes.)
#[must_use]
pub fn sm_utilization(device: Option<&str>, t_ns: u64) -> Option<f64> {
    device.filter(|d| d.starts_with("CUDA"))?;
    let shared = SHARED.lock();
    let mut whole = shared.devices.iter().filter(|d| d.identity.source == nvidia::SOURCE);
    match (whole.next(), whole.next()) {
        (Some(only), None) => only.history.sm_utilization(t_ns),
        _ => None,
    }
}

/// The longest that the end of the host may wait for a driver that does not answer.
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::{Device, History, Identity, Reading, SHARED, nvidia, sm_utilization, use_between};

    #[test]
    fn an_operation_is_given_sm_activity_where_there_is_no_doubt_about_the_device() {
        const S: u64 = 1_000_000_000;
        let device = |number, process_memory| {
            let mut history = History::default();
            for (t, sm) in [(1, None), (2, Some(40.0))] {
                let process_memory = Some(process_memory);
                history.add(&Reading { t_ns: t * S, sm_utilization: sm, process_memory, ..Reading::default() });
            }
            let identity = Identity { number, source: nvidia::SOURCE, ..Identity::default() };
            Device { identity, history, lost: None }
        };
        assert_eq!(use_between(S, 2 * S, 1), None, "nothing was ever read");
        SHARED.lock().devices.push(device(0, 5));
        assert_eq!(sm_utilization(Some("CUDA0"), S + 1), Some(40.0));
        assert_eq!(sm_utilization(Some("CUDA0"), 3 * S), None, "not read yet");
        assert_eq!((sm_utilization(Some("CPU"), S + 1), sm_utilization(None, S + 1)), (None, None));
        SHARED.lock().devices.push(device(1, 0));
        assert_eq!(sm_utilization(Some("CUDA0"), S + 1), None, "which of the two?");
        let uses = use_between(S, 2 * S, 1).unwrap();
        assert_eq!(uses.iter().map(|u| u.device).collect::<Vec<_>>(), [0], "nothing of this process is on the other");
        let mut part = device(2, 7);
        part.identity.mig_instance = Some(0);
        SHARED.lock().devices.push(part);
        // The whole GPU of the instance; the test's devices have no address, and so are all the same one.
        assert_eq!(use_between(S, 2 * S, 1).map(|u| u.len()), Some(3));
        SHARED.lock().devices.clear();
    }
}
