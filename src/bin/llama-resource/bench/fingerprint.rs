//! Which machine, which server, which model, which library: what two results must share to be compared.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use llama_resource_instrumentation::analyze::bench;

use crate::doctor;

/// Bytes of a model that are read for its checksum.
const MODEL_HEAD: u64 = 16 << 20;

/// The machine, with the load of this moment.
pub fn machine() -> bench::Machine {
    let cpuinfo = read("/proc/cpuinfo");
    // ARM has no model name; its part numbers are one for all cores of a kind.
    let cpu = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "CPU part")).unwrap_or_else(|| "unknown".into());
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|v| v.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    let load = load();
    bench::Machine {
        cpu,
        cores: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_gib: (kib + (1 << 19)) >> 20,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        load_before: load,
        load_after: load,
    }
}

/// Load average of the last minute.
pub fn load() -> f64 {
    read("/proc/loadavg").split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or_default()
}

/// A server with the llama.cpp libraries that it loads. What is no ELF file (a wrapper script) stands for itself.
pub fn binary(path: &Path) -> bench::Binary {
    let mut files = vec![path.to_owned()];
    if let Ok(diagnosis) = doctor::diagnose(path) {
        files.extend(diagnosis.libraries);
        files.extend(diagnosis.dlopened_backends);
    }
    bench::Binary {
        path: path.display().to_string(),
        version: version(path),
        files: files.iter().map(|p| file(p)).collect(),
    }
}

/// A file by its content.
pub fn file(path: &Path) -> bench::File {
    bench::File { name: name(path), sha256: sha256(path, u64::MAX) }
}

/// The model by its size and its beginning: it may be larger than anybody wants to read.
pub fn model(path: &Path) -> bench::Model {
    bench::Model {
        name: name(path),
        size_bytes: std::fs::metadata(path).map_or(0, |m| m.len()),
        sha256_of_16_mib: sha256(path, MODEL_HEAD),
    }
}

/// `2026-11-22 05:43 UTC`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

fn utc(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

/// What `--version` says behind `version:`.
fn version(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let output = Command::new(path).arg("--version").env_remove("LD_PRELOAD").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(|l| l.trim().strip_prefix("version:")).map(|v| v.trim().to_owned())
}

/// SHA-256 of the first `most` bytes, by the program of that name (GNU coreutils, BusyBox): it has the processor's own
/// instructions for it.
fn sha256(path: &Path, most: u64) -> Option<String> {
    let mut file = File::open(path).ok()?.take(most);
    let mut command = Command::new("sha256sum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    // The pipe closes when `stdin` goes, which is the end of the file for the program.
    let copied = child.stdin.take().map(|mut stdin| std::io::copy(&mut file, &mut stdin));
    let output = child.wait_with_output().ok()?;
    copied?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().next().filter(|w| w.len() == 64).map(str::to_owned)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The first `key : value` of a file under /proc.
fn field(text: &str, key: &str) -> Option<String> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{field, machine, sha256, utc};

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @N
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00 UTC");
    }

    #[test]
    fn content_is_hashed_as_far_as_wanted() {
        let file = std::env::temp_dir().join(format!("llama-resource-sha-{}", std::process::id()));
        std::fs::write(&file, "abcdef").unwrap();
        // FIPS 180-2: "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file, 3).as_deref(), Some(abc));
        assert_ne!(sha256(&file, u64::MAX).as_deref(), Some(abc));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(sha256(&file, 3), None);
    }

    #[test]
    fn this_machine_is_known() {
        let machine = machine();
        assert!(
            machine.cores > 0 && machine.memory_gib > 0 && machine.kernel.contains('.') && machine.cpu != "unknown"
        );
        assert_eq!(field("a\t: x y\nb : z\n", "a").as_deref(), Some("x y"));
    }
}
