//! A deterministic fuzzer of everything that reads what others wrote: streams, logs, single
//! lines, selections, settings.
//!
//! Inputs are made from a small corpus (the golden files) by a seed, with the structure kept, so that they come behind
//! checksums and parsers. A case may be refused; it may not panic, hang, take memory beyond what its bytes can ask for,
//! lose count, or give a terminal what it acts on. `cargo test` runs some seconds of it; LRI_FUZZ_SECONDS is the time
//! for each target, LRI_FUZZ_SEED the first seed, and `LRI_FUZZ_CASES=1` with the seed of a failure repeats it.
#![expect(unsafe_code, reason = "an allocator that counts")]
#![expect(
    clippy::panic,
    clippy::print_stdout,
    reason = "a case fails by the one, and how many there were is told by the other"
)]

#[path = "fuzz/log.rs"]
mod log;
#[path = "fuzz/random.rs"]
mod random;
#[path = "fuzz/settings.rs"]
mod settings;
#[path = "fuzz/stream.rs"]
mod stream;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use random::Random;

/// The system's allocator, which counts what each thread holds and has held at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends has no cells any more.
    let held = HELD.try_with(|held| {
        held.set(held.get() + change);
        held.get()
    });
    let _ = MOST.try_with(|most| most.set(most.get().max(held.unwrap_or(0))));
}

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The longest that a case may take, in a debug build beside others.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory that any case may take, and for each byte of it: a packet's values twice, a description as values of Rust.
const FREE_MEMORY: usize = 200 << 20;
const MEMORY_A_BYTE: usize = 400;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Whether a terminal would act on a text of lines.
fn unsafe_for_a_terminal(text: &str) -> bool {
    text.contains(|c: char| {
        c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

/// Runs seeds until the time is over. A case that fails is kept as a file, and its seed told.
fn fuzz<T: AsRef<[u8]>>(target: &str, make: impl Fn(&mut Random) -> T, check: impl Fn(&T)) {
    let (first, most) = (number("LRI_FUZZ_SEED", 0), number("LRI_FUZZ_CASES", u64::MAX));
    let until = Instant::now() + Duration::from_secs(number("LRI_FUZZ_SECONDS", 3));
    let mut cases = 0;
    for seed in first..u64::MAX {
        if Instant::now() >= until && cases > 0 || cases >= most {
            break;
        }
        let case = make(&mut Random::new(seed));
        let (held, began) = (HELD.get(), Instant::now());
        MOST.set(held);
        let result = catch_unwind(AssertUnwindSafe(|| check(&case)));
        let (taken, memory) = (began.elapsed(), (MOST.get() - held) as usize);
        let bytes = case.as_ref();
        let why = match result {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Some(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
            }
            Ok(()) if taken > PATIENCE => Some(format!("it took {taken:?}")),
            Ok(()) if memory > FREE_MEMORY + MEMORY_A_BYTE * bytes.len() => {
                Some(format!("{} bytes took {memory} of memory", bytes.len()))
            }
            Ok(()) => None,
        };
        if let Some(why) = why {
            let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{seed}"));
            fs::write(&file, bytes).expect("a file for the case");
            panic!("{target}, LRI_FUZZ_SEED={seed}, kept as {}: {why:.4000}", file.display());
        }
        cases += 1;
    }
    println!("{target}: {cases} cases from seed {first}");
}

fn file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn lines(names: &[&str]) -> Vec<String> {
    let text: String = names.iter().map(|n| String::from_utf8(file(n)).expect("UTF-8")).collect();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn streams() {
    let names = ["v1", "older-lz4", "older-none", "older-zstd"];
    // The golden stream, with every kind of packet, most of the time.
    let corpus: Vec<Vec<u8>> =
        names.iter().chain(&["v1"; 9]).map(|n| file(&format!("tests/golden/stream/{n}.stream"))).collect();
    fuzz("stream", |random| stream::make(random, &corpus), |bytes| stream::check(bytes));
}

#[test]
fn logs() {
    let corpus = lines(&["tests/golden/v2/sample.jsonl", "docs/examples.jsonl"]);
    fuzz("log", |random| log::make(random, &corpus), |bytes| log::check(bytes));
}

#[test]
fn single_lines() {
    let corpus = lines(&["docs/examples.jsonl"]);
    fuzz("line", |random| log::line(random, &corpus), |text| log::check_line(text));
}

#[test]
fn what_was_found_stays_mended() {
    // A number came back as its neighbour.
    let line = r#"{"event":"host_sample","timestamp":"0","session_id":"s","t_ns":1,"rss_bytes":1,"cpu_percent":null,"own_cpu_percent":0.0,"threads":4,"major_faults":null,"minor_faults":null,"involuntary_switches":null,"read_bytes":null,"write_bytes":null,"load_1m":0.29,"available_bytes":1,"cpu_pressure_percent":-1.0774818165301261e+18,"memory_pressure_percent":0.0,"io_pressure_percent":0.69,"cpu_package_energy_mj":null,"cpu_package_power_mw":null}"#;
    assert!(
        serde_json::from_str::<llama_resource_instrumentation::format::Line>(line).is_ok(),
        "the line is read at all"
    );
    log::check_line(line);
}

#[test]
fn selections() {
    let corpus = lines(&["tests/fuzz/selections.txt"]);
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    fuzz("selection", |random| settings::make_selection(random, &corpus), |text| settings::check_selection(text));
}

#[test]
fn variables() {
    let corpus = lines(&["tests/fuzz/values.txt", "tests/fuzz/selections.txt"]);
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    let text = |variables: &[(String, String)]| variables.iter().map(|(n, v)| format!("{n}={v}\n")).collect::<String>();
    // The case is kept as text; its variables are made again from it.
    let make = |random: &mut Random| text(&settings::make_variables(random, &corpus));
    let check = |case: &String| {
        let variables: Vec<(String, String)> =
            case.lines().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        settings::check_variables(&variables);
    };
    fuzz("variables", make, check);
}
