//! A made-up amdgpu folder: names and units as the kernel documents them. No real card has confirmed them here.

use std::fs;
use std::path::{Path, PathBuf};

use super::devices;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lri-amd-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}

const CARD: &[(&str, &str)] = &[
    ("card1/device/mem_info_vram_total", "17163091968"),
    ("card1/device/mem_info_vram_used", "5368709120"),
    ("card1/device/gpu_busy_percent", "87"),
    ("card1/device/mem_busy_percent", "41"),
    ("card1/device/product_name", "Made-up Radeon"),
    ("card1/device/unique_id", "83a4d0bc1d2e3f40"),
    ("card1/device/uevent", "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_SLOT_NAME=0000:03:00.0"),
    ("card1/device/current_link_speed", "16.0 GT/s PCIe"),
    ("card1/device/current_link_width", "16"),
    ("card1/device/power/runtime_status", "active"),
    ("card1/device/hwmon/hwmon4/power1_average", "215000000"),
    ("card1/device/hwmon/hwmon4/temp1_input", "61000"),
    ("card1/device/hwmon/hwmon4/freq1_input", "2400000000"),
    ("card1/device/hwmon/hwmon4/freq2_input", "1249000000"),
];

#[test]
fn a_card_is_read_in_our_units() {
    let root = folder("card");
    write(&root, CARD);
    // A card of another driver, and a connector.
    write(&root, &[("card0/device/vendor", "0x8086"), ("card1-DP-1/status", "connected")]);
    let open = root.join("fdinfo");
    let client = |id, kib| {
        format!("drm-driver:\tamdgpu\ndrm-client-id:\t{id}\ndrm-pdev:\t0000:03:00.0\ndrm-memory-vram:\t{kib} KiB")
    };
    // The same client twice, another one, another card.
    write(&open, &[("3", &client(9, 2048)), ("4", &client(9, 2048)), ("5", &client(10, 1024))]);
    write(&open, &[("6", "drm-client-id:\t11\ndrm-pdev:\t0000:04:00.0\ndrm-memory-vram:\t4 KiB"), ("0", "pos:\t0")]);
    let mut found = devices(&root);
    let [card] = &mut found[..] else { panic!("{found:?}") };
    card.open_files = open;
    assert_eq!(card.identity().name.as_deref(), Some("Made-up Radeon"));
    assert_eq!(card.identity().pci_bus_id.as_deref(), Some("0000:03:00.0"));
    let r = card.read(true).unwrap();
    assert_eq!((r.memory_used, r.memory_total), (Some(5_368_709_120), Some(17_163_091_968)));
    assert_eq!(r.memory_free, Some(17_163_091_968 - 5_368_709_120));
    assert_eq!((r.busy, r.memory_busy, r.power_mw), (Some(87.0), Some(41.0), Some(215_000.0)));
    assert_eq!((r.temperature_c, r.sm_clock_mhz, r.memory_clock_mhz), (Some(61.0), Some(2400), Some(1249)));
    assert_eq!((r.link_gen, r.link_width), (Some(4), Some(16)));
    assert_eq!(r.process_memory, Some(3072 * 1024));
    assert_eq!((r.energy_mj, r.sm_utilization, r.throttle), (None, None, None), "the driver has no such files");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn missing_files_are_null_a_sleeping_card_is_left_asleep_and_a_missing_card_is_lost() {
    let root = folder("bare");
    write(&root, &[("card0/device/mem_info_vram_total", "4096"), ("card0/device/vendor", "0x1002")]);
    write(&root, &[("card0/device/device", "0x744c")]);
    let mut card = devices(&root).pop().unwrap();
    assert_eq!(card.identity().name.as_deref(), Some("AMD GPU 1002:744c"));
    let r = card.read(true).unwrap();
    assert_eq!((r.memory_total, r.memory_used, r.power_mw, r.busy), (Some(4096), None, None, None));
    assert_eq!(r.process_memory, None, "without its address nobody can tell");
    write(&root, &[("card0/device/power/runtime_status", "suspended")]);
    assert_eq!(card.read(false).unwrap().memory_total, None);
    fs::remove_dir_all(root.join("card0")).unwrap();
    assert!(card.read(false).is_err());
    fs::remove_dir_all(&root).unwrap();
}
