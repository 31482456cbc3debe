//! AMD GPUs, from the files of the amdgpu kernel driver under /sys/class/drm.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::reading::{Identity, Lost, Reading};
use crate::clock;

/// `source` of what is read here.
pub const SOURCE: &str = "amdgpu";

/// Where the kernel lists graphics cards.
pub const CARDS: &str = "/sys/class/drm";

/// Where it lists what this process has open.
const OPEN_FILES: &str = "/proc/self/fdinfo";

/// A GPU.
#[derive(Debug)]
pub struct Amd {
    /// `card0/device`.
    folder: PathBuf,
    /// `card0/device/hwmon/hwmon3`.
    sensors: Option<PathBuf>,
    open_files: PathBuf,
    identity: Identity,
    process_memory: Option<u64>,
}

/// All cards of the driver.
pub fn devices(cards: &Path) -> Vec<Amd> {
    let mut found: Vec<(u32, Amd)> = Vec::new();
    for entry in fs::read_dir(cards).into_iter().flatten().flatten() {
        // Not the connectors, `card0-DP-1`.
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("card")?.parse().ok()) else { continue };
        let folder = entry.path().join("device");
        // What only amdgpu has.
        if !folder.join("mem_info_vram_total").exists() {
            continue;
        }
        let sensors = fs::read_dir(folder.join("hwmon")).ok().and_then(|mut d| Some(d.next()?.ok()?.path()));
        let address = fs::read_to_string(folder.join("uevent"))
            .ok()
            .and_then(|text| text.lines().find_map(|l| l.strip_prefix("PCI_SLOT_NAME=")).map(str::to_owned));
        let identity = Identity {
            number: 0,
            name: text(&folder.join("product_name")).or_else(|| {
                let id = |file| Some(text(&folder.join(file))?.trim_start_matches("0x").to_owned());
                Some(format!("AMD GPU {}:{}", id("vendor")?, id("device")?))
            }),
            uuid: text(&folder.join("unique_id")),
            pci_bus_id: address,
            mig_instance: None,
            source: SOURCE,
        };
        found.push((number, Amd { folder, sensors, open_files: OPEN_FILES.into(), identity, process_memory: None }));
    }
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, device)| device).collect()
}

impl Amd {
    /// Identity of the device.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Reads all files that there are; `slowly` also what this process has open.
    pub fn read(&mut self, slowly: bool) -> Result<Reading, Lost> {
        let mut r = Reading { t_ns: clock::now_ns(), ..Reading::default() };
        if !self.folder.join("mem_info_vram_total").exists() {
            return Err(Lost("its files are gone".to_owned()));
        }
        // Asked for anything, a card that sleeps wakes up.
        if text(&self.folder.join("power/runtime_status")).is_some_and(|s| s == "suspended") {
            return Ok(r);
        }
        let sensor = |name: &str| number::<f64>(&self.sensors.as_ref()?.join(name));
        let megahertz = |name: &str| sensor(name).map(|hz| (hz / 1e6) as u32);
        let file = |name: &str| self.folder.join(name);
        // Microwatts, thousandths of a degree, hertz. `power1_input` is the momentary value of drivers that
        // have no average.
        r.power_mw = sensor("power1_average").or_else(|| sensor("power1_input")).map(|uw| uw / 1e3);
        r.temperature_c = sensor("temp1_input").map(|t| t / 1e3);
        r.sm_clock_mhz = megahertz("freq1_input");
        r.memory_clock_mhz = megahertz("freq2_input");
        r.memory_total = number(&file("mem_info_vram_total"));
        r.memory_used = number(&file("mem_info_vram_used"));
        r.memory_free = r.memory_total.zip(r.memory_used).and_then(|(all, used)| all.checked_sub(used));
        r.busy = number(&file("gpu_busy_percent"));
        r.memory_busy = number(&file("mem_busy_percent"));
        r.link_gen = text(&file("current_link_speed")).and_then(|t| generation(&t));
        r.link_width = number(&file("current_link_width"));
        if slowly {
            self.process_memory = self.own_memory();
        }
        r.process_memory = self.process_memory;
        Ok(r)
    }

    /// Video memory of the driver's files that this process has open, each client of the driver once.
    fn own_memory(&self) -> Option<u64> {
        let address = self.identity.pci_bus_id.as_deref()?;
        let mut clients = BTreeMap::new();
        for entry in fs::read_dir(&self.open_files).ok()?.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
            if value("drm-pdev:") != Some(address) {
                continue;
            }
            let client = value("drm-client-id:").map(str::to_owned);
            let memory = value("drm-memory-vram:").and_then(|v| v.strip_suffix(" KiB")?.trim().parse::<u64>().ok());
            if let Some((client, memory)) = client.zip(memory) {
                clients.insert(client, memory * 1024);
            }
        }
        Some(clients.values().sum())
    }
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// PCIe generation of a speed like `16.0 GT/s PCIe`.
fn generation(speed: &str) -> Option<u32> {
    let per_second = ["2.5", "5.0", "8.0", "16.0", "32.0", "64.0"];
    let speed = speed.split_whitespace().next()?;
    per_second.iter().zip(1..).find(|(s, _)| **s == speed).map(|(_, generation)| generation)
}

#[cfg(test)]
#[path = "amd_tests.rs"]
mod tests;
