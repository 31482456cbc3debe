//! Energy of the CPU packages, from the kernel's powercap files (Intel's RAPL; AMD's processors have it too). Mostly
//! readable by root alone.

use std::fs;
use std::path::Path;

/// Where the kernel lists them.
pub const ZONES: &str = "/sys/class/powercap";

/// Differences of all packages' counters.
#[derive(Debug, Default)]
pub struct Packages {
    last: Option<Vec<Counter>>,
}

/// A package's counter, which starts again behind `range`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counter {
    zone: String,
    energy_uj: u64,
    range_uj: u64,
}

impl Packages {
    /// Energy since the last call in millijoules; `None` at the first call, and where not every package can be read.
    pub fn since_last_mj(&mut self, zones: &Path) -> Option<f64> {
        let now = counters(zones);
        let last = std::mem::replace(&mut self.last, now.clone());
        let (last, now) = (last?, now?);
        if last.len() != now.len() {
            return None;
        }
        let mut sum_uj = 0;
        for (then, now) in last.iter().zip(&now) {
            if then.zone != now.zone {
                return None;
            }
            sum_uj += match now.energy_uj.checked_sub(then.energy_uj) {
                Some(grown) => grown,
                // At most one turn: a package needs minutes for it at least, an interval is seconds.
                None => now.range_uj.checked_sub(then.energy_uj)? + now.energy_uj,
            };
        }
        Some(sum_uj as f64 / 1e3)
    }
}

/// All packages' counters; `None` if there are none, or one cannot be read.
fn counters(zones: &Path) -> Option<Vec<Counter>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(zones).ok()?.flatten() {
        // `intel-rapl:0` is a package or the whole platform, `intel-rapl:0:1` a part of one; `intel-rapl-mmio:0` the
        // same once more.
        let zone = entry.file_name().to_string_lossy().into_owned();
        if zone.strip_prefix("intel-rapl:").is_none_or(|n| n.parse::<u32>().is_err()) {
            continue;
        }
        let text = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        if !text("name").is_some_and(|n| n.starts_with("package-")) {
            continue;
        }
        let number = |file: &str| text(file)?.trim().parse().ok();
        found.push(Counter { zone, energy_uj: number("energy_uj")?, range_uj: number("max_energy_range_uj")? });
    }
    found.sort_by(|a, b| a.zone.cmp(&b.zone));
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::Packages;

    fn zone(folder: &Path, zone: &str, name: &str, energy_uj: u64) {
        let folder = folder.join(zone);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        fs::write(folder.join("energy_uj"), format!("{energy_uj}\n")).unwrap();
        fs::write(folder.join("max_energy_range_uj"), "262143328850\n").unwrap();
    }

    #[test]
    fn packages_are_summed_and_a_counter_may_start_again() {
        let folder = std::env::temp_dir().join(format!("lri-rapl-{}", std::process::id()));
        let mut packages = Packages::default();
        assert_eq!(packages.since_last_mj(&folder), None, "no such folder");
        zone(&folder, "intel-rapl:0", "package-0", 262_143_000_000);
        zone(&folder, "intel-rapl:1", "package-1", 5_000_000);
        zone(&folder, "intel-rapl:0:0", "core", 1);
        zone(&folder, "intel-rapl:2", "psys", 1);
        assert_eq!(packages.since_last_mj(&folder), None, "nothing to compare with");
        zone(&folder, "intel-rapl:0", "package-0", 671_150);
        zone(&folder, "intel-rapl:1", "package-1", 6_500_000);
        zone(&folder, "intel-rapl:2", "psys", 9_000_000);
        // 328,850 to the end of the range, 671,150 behind it; 1,500,000.
        assert_eq!(packages.since_last_mj(&folder), Some(2_500.0));
        fs::remove_file(folder.join("intel-rapl:1/energy_uj")).unwrap();
        assert_eq!(packages.since_last_mj(&folder), None, "half of the machine would be a wrong number");
        fs::remove_dir_all(&folder).unwrap();
    }
}
