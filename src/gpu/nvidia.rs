//! NVIDIA GPUs and their MIG instances, through NVML.
//!
//! The library is the driver's (`libnvidia-ml.so.1`), loaded at run time. What a device does not support is asked once;
//! what it fails to tell now and then is asked again.

use std::ffi::OsStr;
use std::fs;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::mig;
use super::reading::{Identity, Lost, Reading};
use crate::clock;

/// `source` of what is read here.
pub const SOURCE: &str = "nvml";

/// The name under which every driver installs it; the one without a number comes with development packages only.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Failures in a row, of any kind, after which a value is not asked for any more.
const MOST_FAILURES: u8 = 20;

/// How many slow readings lie between two of PCIe traffic where GPM does not tell it: the call alone takes 40 ms
/// of a core.
const PCIE_EVERY: u32 = 10;

/// Readings in a row without any answer after which a device counts as lost.
const MOST_SILENT: u32 = 3;

/// Inode of the first PID namespace, the same on every Linux (PROC_PID_INIT_INO): NVML counts processes there.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Energy,
    Power,
    Memory,
    Utilization,
    Gpm,
    Temperature,
    SmClock,
    MemoryClock,
    Throttle,
    State,
    LinkGen,
    LinkWidth,
    Processes,
    GraphicsProcesses,
    PcieOut,
    PcieIn,
}

/// All of them, with the fields of `gpu_sample` that they fill.
const ASKS: [(Ask, &str); 16] = [
    (Ask::Energy, "energy_mj"),
    (Ask::Power, "power_mw"),
    (Ask::Memory, "memory_*_bytes"),
    (Ask::Utilization, "gpu_busy_percent, memory_busy_percent"),
    (Ask::Gpm, "sm_utilization_percent"),
    (Ask::Temperature, "temperature_c"),
    (Ask::SmClock, "sm_clock_mhz"),
    (Ask::MemoryClock, "memory_clock_mhz"),
    (Ask::Throttle, "throttle_reasons"),
    (Ask::State, "performance_state"),
    (Ask::LinkGen, "pcie_link_gen"),
    (Ask::LinkWidth, "pcie_link_width"),
    (Ask::Processes, "process_memory_bytes"),
    (Ask::GraphicsProcesses, ""),
    (Ask::PcieOut, "pcie_tx_kb_per_s"),
    (Ask::PcieIn, "pcie_rx_kb_per_s"),
];

/// Loads the driver's library and starts it. The error is for people.
pub fn open() -> Result<Nvml, String> {
    Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|e| match e {
        NvmlError::LibloadingError(_) => format!("no NVIDIA driver: {LIBRARY} is not there"),
        e => format!("NVML does not start: {e}"),
    })
}

/// All devices that answer, each followed by its MIG instances; and what is wrong with those that do not.
pub fn devices(nvml: &Nvml) -> (Vec<Nvidia<'_>>, Vec<String>) {
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    let count = nvml.device_count().unwrap_or_else(|e| {
        silent.push(format!("NVML does not say how many GPUs there are: {e}"));
        0
    });
    for index in 0..count {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(e) => {
                silent.push(format!("GPU {index} of NVML does not answer: {e}"));
                continue;
            }
        };
        let pci_bus_id = device.pci_info().ok().map(|p| p.bus_id);
        let instances = if device.mig_mode().is_ok_and(|m| m.current != 0) {
            let most = device.mig_device_count().unwrap_or(0);
            (0..most).filter_map(|i| Some((i, device.mig_device_by_index(i).ok()?))).collect()
        } else {
            Vec::new()
        };
        found.push(Nvidia::new(device, None, pci_bus_id.clone()));
        for (i, instance) in instances {
            found.push(Nvidia::new(instance, nvml.device_by_index(index).ok().map(|p| (i, p)), pci_bus_id.clone()));
        }
    }
    (found, silent)
}

/// A GPU or a MIG instance.
#[derive(Debug)]
pub struct Nvidia<'nvml> {
    device: Device<'nvml>,
    /// GPU of a MIG instance, and the instance's id in it: GPM asks for it there.
    parent: Option<(Device<'nvml>, u32)>,
    identity: Identity,
    gpm_last: Option<GpmSample<'nvml>>,
    /// Whether GPM tells PCIe traffic, as far as that is known.
    gpm_pcie: Option<bool>,
    /// Slow readings until PCIe traffic is asked for by its own call.
    pcie_due: u32,
    process_memory: Option<u64>,
    /// Failures in a row by [`Ask`].
    failures: [u8; ASKS.len()],
    silent: u32,
    answers: u32,
}

impl<'nvml> Nvidia<'nvml> {
    fn new(device: Device<'nvml>, mig: Option<(u32, Device<'nvml>)>, pci_bus_id: Option<String>) -> Self {
        let identity = Identity {
            number: 0,
            name: device.name().ok(),
            uuid: device.uuid().ok(),
            pci_bus_id,
            mig_instance: mig.as_ref().map(|(index, _)| *index),
            source: SOURCE,
        };
        let parent = mig.and_then(|(_, parent)| Some((parent, mig::instance_id(&device)?)));
        let mut new = Self {
            parent,
            identity,
            gpm_last: None,
            gpm_pcie: None,
            pcie_due: 0,
            process_memory: None,
            failures: [0; ASKS.len()],
            silent: 0,
            answers: 0,
            device,
        };
        let gpm = new.parent.as_ref().map_or(&new.device, |(parent, _)| parent).gpm_support();
        if !gpm.unwrap_or(false) || (new.identity.mig_instance.is_some() && new.parent.is_none()) {
            new.failures[Ask::Gpm as usize] = MOST_FAILURES;
        }
        new
    }

    /// Identity of the device.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Fields that this device does not fill.
    pub fn unanswered(&self) -> Vec<&'static str> {
        let given_up = |ask: Ask| self.failures[ask as usize] >= MOST_FAILURES;
        ASKS.iter().filter(|(ask, field)| !field.is_empty() && given_up(*ask)).map(|(_, field)| *field).collect()
    }

    /// Asks for everything; for the energy counter and what else takes the driver long only when told to.
    pub fn read(&mut self, energy: bool, slowly: bool) -> Result<Reading, Lost> {
        self.answers = 0;
        let t_ns = clock::now_ns();
        let mut r = Reading { t_ns, ..Reading::default() };
        r.energy_left = !energy && self.counts_energy();
        if !r.energy_left {
            r.energy_mj = self.ask(Ask::Energy, Device::total_energy_consumption)?;
        }
        r.power_mw = self.ask(Ask::Power, Device::power_usage)?.map(f64::from);
        if let Some(memory) = self.ask(Ask::Memory, Device::memory_info)? {
            (r.memory_used, r.memory_free, r.memory_total) = (Some(memory.used), Some(memory.free), Some(memory.total));
        }
        if let Some(busy) = self.ask(Ask::Utilization, Device::utilization_rates)? {
            (r.busy, r.memory_busy) = (Some(busy.gpu.into()), Some(busy.memory.into()));
        }
        self.gpm(&mut r)?;
        r.temperature_c = self.ask(Ask::Temperature, |d| d.temperature(TemperatureSensor::Gpu))?.map(f64::from);
        r.sm_clock_mhz = self.ask(Ask::SmClock, |d| d.clock_info(Clock::SM))?;
        r.memory_clock_mhz = self.ask(Ask::MemoryClock, |d| d.clock_info(Clock::Memory))?;
        r.throttle = self.ask(Ask::Throttle, Device::current_throttle_reasons)?.map(words);
        r.state = self.ask(Ask::State, |d| Ok(d.performance_state()?.as_c()))?.filter(|&s| s < 16);
        r.link_gen = self.ask(Ask::LinkGen, Device::current_pcie_link_gen)?;
        r.link_width = self.ask(Ask::LinkWidth, Device::current_pcie_link_width)?;
        if slowly {
            self.process_memory = self.own_memory()?;
            let gpm = self.failures[Ask::Gpm as usize] < MOST_FAILURES && self.gpm_pcie != Some(false);
            if !gpm {
                if self.pcie_due == 0 {
                    r.pcie_tx = self.ask(Ask::PcieOut, |d| d.pcie_throughput(PcieUtilCounter::Send))?.map(u64::from);
                    r.pcie_rx = self.ask(Ask::PcieIn, |d| d.pcie_throughput(PcieUtilCounter::Receive))?.map(u64::from);
                    self.pcie_due = PCIE_EVERY;
                }
                self.pcie_due -= 1;
            }
        }
        r.process_memory = self.process_memory;
        self.silent = if self.answers > 0 { 0 } else { self.silent + 1 };
        if self.silent >= MOST_SILENT {
            return Err(Lost("it has not answered anything for a while".to_owned()));
        }
        Ok(r)
    }

    /// Whether the energy counter has not been given up.
    pub const fn counts_energy(&self) -> bool {
        self.failures[Ask::Energy as usize] < MOST_FAILURES
    }

    fn ask<T>(
        &mut self,
        what: Ask,
        call: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>,
    ) -> Result<Option<T>, Lost> {
        if self.failures[what as usize] >= MOST_FAILURES {
            return Ok(None);
        }
        let answer = call(&self.device);
        self.judge(what, answer)
    }

    /// Takes note of how a question was answered.
    fn judge<T>(&mut self, what: Ask, answer: Result<T, NvmlError>) -> Result<Option<T>, Lost> {
        let failures = &mut self.failures[what as usize];
        match answer {
            Ok(value) => {
                *failures = 0;
                self.answers += 1;
                Ok(Some(value))
            }
            Err(e @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized)) => {
                Err(Lost(e.to_string()))
            }
            Err(
                NvmlError::NotSupported
                | NvmlError::InvalidArg
                | NvmlError::NoPermission
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_),
            ) => {
                *failures = MOST_FAILURES;
                Ok(None)
            }
            Err(_) => {
                *failures += 1;
                Ok(None)
            }
        }
    }

    /// SM activity and PCIe traffic since the last reading: GPM compares two samples.
    fn gpm(&mut self, r: &mut Reading) -> Result<(), Lost> {
        if self.failures[Ask::Gpm as usize] >= MOST_FAILURES {
            return Ok(());
        }
        let sample = match &self.parent {
            Some((parent, instance)) => parent.gpm_mig_sample(*instance),
            None => self.device.gpm_sample(),
        };
        let Some(now) = self.judge(Ask::Gpm, sample)? else { return Ok(()) };
        let before = self.gpm_last.take();
        const WANTED: [GpmMetricId; 3] = [GpmMetricId::SmUtil, GpmMetricId::PcieTxPerSec, GpmMetricId::PcieRxPerSec];
        let metrics = before.map(|then| gpm_metrics_get(self.device.nvml(), &then, &now, &WANTED));
        self.gpm_last = Some(now);
        let mut metrics = match metrics {
            None => return Ok(()),
            Some(Ok(metrics)) => metrics.into_iter(),
            Some(Err(e)) => return self.judge(Ask::Gpm, Err::<(), _>(e)).map(drop),
        };
        let sm = metrics.next().unwrap_or(Err(NvmlError::NoData));
        r.sm_utilization = self.judge(Ask::Gpm, sm)?.map(|m| m.value).filter(|v| v.is_finite());
        let mut traffic = || metrics.next()?.ok().and_then(|m| kilobytes(m.value, &m.metric_info.unit));
        (r.pcie_tx, r.pcie_rx) = (traffic(), traffic());
        self.gpm_pcie = Some(r.pcie_tx.is_some() && r.pcie_rx.is_some());
        Ok(())
    }

    /// Memory of this process. A process that computes and draws stands in both lists, with the same figure.
    fn own_memory(&mut self) -> Result<Option<u64>, Lost> {
        let compute = self.ask(Ask::Processes, Device::running_compute_processes)?;
        let graphics = self.ask(Ask::GraphicsProcesses, Device::running_graphics_processes)?;
        let instance = self.parent.as_ref().map(|(_, id)| *id);
        let own = |list: &Vec<ProcessInfo>| {
            let mine = |p: &&ProcessInfo| {
                p.pid == std::process::id() && instance.is_none_or(|i| p.gpu_instance_id.is_none_or(|of| of == i))
            };
            let mut bytes = list.iter().filter(mine).map(|p| match p.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            });
            let first = bytes.next()?;
            Some(bytes.fold(first, |sum, b| Some(sum?.saturating_add(b?))))
        };
        let lists = [compute.as_ref().and_then(own), graphics.as_ref().and_then(own)];
        if lists.iter().any(Option::is_some) {
            return Ok(lists.into_iter().flatten().flatten().max());
        }
        // Not in the list: without memory there, unless the list has other numbers for processes than we have.
        let same_numbers = fs::read_link("/proc/self/ns/pid").is_ok_and(|n| n == *FIRST_PID_NAMESPACE);
        Ok((compute.is_some() && same_numbers).then_some(0))
    }
}

/// A rate in thousands of bytes a second; `None` where the driver names a unit that is not known here.
fn kilobytes(value: f64, unit: &str) -> Option<u64> {
    let bytes = match unit.trim_end_matches("/s").trim_end_matches("/sec") {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return None,
    };
    (value.is_finite() && value >= 0.0).then_some((value * bytes / 1e3).round() as u64)
}

/// Reasons in our own words.
fn words(reasons: ThrottleReasons) -> Vec<String> {
    const WORDS: [(ThrottleReasons, &str); 9] = [
        (ThrottleReasons::GPU_IDLE, "gpu_idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clocks"),
    ];
    WORDS.iter().filter(|(flag, _)| reasons.contains(*flag)).map(|(_, word)| (*word).to_owned()).collect()
}
