//! One reading of one device, and who the device is.

/// Identity of a device, found once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// Number within the log.
    pub number: u32,
    /// Name.
    pub name: Option<String>,
    /// UUID.
    pub uuid: Option<String>,
    /// PCI address.
    pub pci_bus_id: Option<String>,
    /// Index of the MIG instance.
    pub mig_instance: Option<u32>,
    /// Which driver interface the values come from.
    pub source: &'static str,
}

/// What a device answered; `None` is what it did not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// When energy and power were read.
    pub t_ns: u64,
    /// Memory in use.
    pub memory_used: Option<u64>,
    /// Free memory.
    pub memory_free: Option<u64>,
    /// All memory.
    pub memory_total: Option<u64>,
    /// Memory of this process: as last read.
    pub process_memory: Option<u64>,
    /// Share of time in which a kernel ran, percent.
    pub busy: Option<f64>,
    /// Share of time in which memory was read or written, percent.
    pub memory_busy: Option<f64>,
    /// SM activity since the reading before, percent.
    pub sm_utilization: Option<f64>,
    /// Power, milliwatts.
    pub power_mw: Option<f64>,
    /// Energy counter, millijoules.
    pub energy_mj: Option<u64>,
    /// The counter was not read this time: where it is slow, it is read only when it is needed.
    pub energy_left: bool,
    /// Temperature, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// SM clock, MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Memory clock, MHz.
    pub memory_clock_mhz: Option<u32>,
    /// PCIe traffic out, KB/s.
    pub pcie_tx: Option<u64>,
    /// PCIe traffic in, KB/s.
    pub pcie_rx: Option<u64>,
    /// PCIe generation.
    pub link_gen: Option<u32>,
    /// PCIe lanes.
    pub link_width: Option<u32>,
    /// What holds the clocks down.
    pub throttle: Option<Vec<String>>,
    /// Performance state.
    pub state: Option<u32>,
}

/// A device that answers no more: why.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost(pub String);
