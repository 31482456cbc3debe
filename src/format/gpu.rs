//! GPU events: what a device says of itself, over time and for a request. Every value that its driver does not
//! give is `null`.

use serde::{Deserialize, Serialize};

/// What a GPU, or a MIG instance of one, says of itself.
///
/// The values are those of the last reading, the mean and largest ones in `since_last` those of all readings since
/// the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuSample {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds: when energy and power were read, first of all values.
    pub t_ns: u64,
    /// Number of the device in this log, from 0: GPUs in the driver's order, each followed by its MIG instances.
    pub device: u32,
    /// Name that the driver gives.
    pub name: Option<String>,
    /// UUID that the driver gives.
    pub uuid: Option<String>,
    /// PCI address, `domain:bus:device.function`; of a MIG instance: of its GPU.
    pub pci_bus_id: Option<String>,
    /// Index of the MIG instance within its GPU; `null` for a whole GPU.
    pub mig_instance: Option<u32>,
    /// Where the values come from: `nvml` or `amdgpu`.
    pub source: String,
    /// Device memory in use, by all processes.
    pub memory_used_bytes: Option<u64>,
    /// Device memory that is free.
    pub memory_free_bytes: Option<u64>,
    /// Device memory.
    pub memory_total_bytes: Option<u64>,
    /// Device memory of this process, read once a second; `null` where the driver does not say.
    pub process_memory_bytes: Option<u64>,
    /// Share of the driver's last sampling period in which a kernel ran at all, percent. It does not say how full
    /// the device was.
    pub gpu_busy_percent: Option<f64>,
    /// Share of the driver's last sampling period in which device memory was read or written, percent.
    pub memory_busy_percent: Option<f64>,
    /// Mean share of the multiprocessors that had work since the reading before (NVML GPM, Hopper and newer), percent.
    pub sm_utilization_percent: Option<f64>,
    /// Power draw in milliwatts, as the driver averages it.
    pub power_mw: Option<f64>,
    /// The driver's energy counter in millijoules: only differences mean something. Read once a second and when a
    /// request begins or ends, `null` in between.
    pub energy_mj: Option<u64>,
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Clock of the multiprocessors (of the shaders) in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// PCIe traffic out of the device in KB/s since the reading before (NVML GPM, Hopper and newer); else over 20 ms of
    /// the driver's choice, read every ten seconds and `null` in between.
    pub pcie_tx_kb_per_s: Option<u64>,
    /// The same into the device.
    pub pcie_rx_kb_per_s: Option<u64>,
    /// PCIe generation of the link at the moment (links slow down when idle).
    pub pcie_link_gen: Option<u32>,
    /// Lanes of the link at the moment.
    pub pcie_link_width: Option<u32>,
    /// What holds the clocks down: `gpu_idle`, `applications_clocks`, `sw_power_cap`, `hw_slowdown`, `sync_boost`,
    /// `sw_thermal`, `hw_thermal`, `hw_power_brake`, `display_clocks`; empty if nothing does.
    pub throttle_reasons: Option<Vec<String>>,
    /// `P0` (fastest) to `P15`.
    pub performance_state: Option<String>,
    /// All readings since the line before, this one included.
    pub since_last: GpuInterval,
}

/// The readings of an interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuInterval {
    /// Length of the interval: from the last reading of the line before to this one; 0 in the first line.
    pub interval_ms: f64,
    /// Readings.
    pub samples: u64,
    /// Mean of `power_mw`.
    pub power_mean_mw: Option<f64>,
    /// Largest `power_mw`.
    pub power_max_mw: Option<f64>,
    /// Mean of `gpu_busy_percent`.
    pub busy_mean_percent: Option<f64>,
    /// Largest `gpu_busy_percent`.
    pub busy_max_percent: Option<f64>,
    /// Mean of `sm_utilization_percent`.
    pub sm_utilization_mean_percent: Option<f64>,
    /// Largest `memory_used_bytes`.
    pub memory_peak_bytes: Option<u64>,
}

/// What a device did during a request. It is all that the device did, for other processes too: overlapping requests are
/// each given all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuUse {
    /// Number of the device, as in `gpu_sample`.
    pub device: u32,
    /// Readings between start and end; the means and peaks are theirs.
    pub samples: u64,
    /// Mean power in milliwatts.
    pub power_mean_mw: Option<f64>,
    /// Largest power in milliwatts.
    pub power_max_mw: Option<f64>,
    /// Energy in millijoules, read off between the readings around start and end; `null` if there is none
    /// on both sides.
    pub energy_mj: Option<f64>,
    /// `counter` (difference of the driver's energy counter) or `power` (integral of its power readings).
    pub energy_source: Option<String>,
    /// Energy over generated tokens, the prompt's work included; `null` without tokens.
    pub joules_per_token: Option<f64>,
    /// Most device memory that was in use, by all processes.
    pub memory_peak_bytes: Option<u64>,
    /// Most device memory of this process.
    pub process_memory_peak_bytes: Option<u64>,
    /// Mean of `gpu_busy_percent`.
    pub busy_mean_percent: Option<f64>,
    /// Mean of `sm_utilization_percent`.
    pub sm_utilization_mean_percent: Option<f64>,
}

/// What a device did during the session, or during a session that the host named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuSummary {
    /// Unix time in microseconds, as a string.
    pub timestamp: String,
    /// Session of this event.
    pub session_id: String,
    /// Monotonic clock in nanoseconds: end of what is summed up.
    pub t_ns: u64,
    /// Length of what is summed up: from the first reading, or the session's start, on.
    pub duration_ms: f64,
    /// Name that the driver gives.
    pub name: Option<String>,
    /// UUID that the driver gives.
    pub uuid: Option<String>,
    /// Highest temperature in degrees Celsius.
    pub temperature_max_c: Option<f64>,
    /// Why there are no values up to the end: `null` if there are.
    pub lost: Option<String>,
    /// Peak, mean and energy. `joules_per_token` is over all tokens of requests that ended.
    #[serde(flatten)]
    pub totals: GpuUse,
}
