//! The capture pipeline alone: activations in memory to bytes on the disk, sustained, beside what the machine can
//! do at all.
//!
//!     cargo bench --bench pipeline                          all of it, about nine minutes
//!     cargo bench --bench pipeline -- --seconds 10 fast     ten seconds a row, only codecs with `fast` in their name
//!
//! Takes the activations of a real model from target/activations/*.f32 (made by `bench/dump_activations.cpp`); without
//! them it makes heavy-tailed ones and says so. A step has 512 tokens of every kind of tensor in one layer; `--rows 1`
//! is decoding instead. Files are written to target/ (or `--folder`) and deleted, which is not timed; a file that fills
//! half of the free space is followed by another. `--json` prints JSON. Figures: docs/OVERHEAD.md.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints figures, or fails")]

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_resource_instrumentation::codec::{Codec, DType, Params};
use llama_resource_instrumentation::format::stream::{Route, Row};
use llama_resource_instrumentation::host;
use llama_resource_instrumentation::pipeline::{Form, Job, Options, Piece, Pipeline, Place, Policy, Spec, Table};

const MIB: usize = 1 << 20;
const GB: f64 = 1e9;

/// A file is replaced at half of the free space, and at this size.
const ROTATE: u64 = 32 << 30;

/// Values of one kind of tensor that are held in memory.
const HELD: usize = 24 * MIB;

struct Settings {
    seconds: f64,
    rows: usize,
    memory: usize,
    folder: PathBuf,
    json: bool,
    only: Vec<String>,
}

fn main() {
    let s = settings();
    let (source, kinds) = load(&s);
    let limits = Limits::measure(&s);
    if !s.json {
        println!("pipeline alone: {source}; {} rows a step, {} s a row of the table", s.rows, s.seconds);
        println!(
            "memcpy {:.1} GB/s (one thread), {:.1} GB/s (two); plain O_DIRECT writes {:.2} GB/s; load {}",
            limits.copy_one,
            limits.copy_two,
            limits.disk,
            load_average()
        );
        println!("codec    workers   GB/s in    ratio   disk GB/s   limit   of limit   cores");
    }
    let mut results = Vec::new();
    for codec in [Codec::None, Codec::F16, Codec::Bounded, Codec::Fast, Codec::Zstd] {
        let wanted =
            if s.only.is_empty() { codec != Codec::Zstd } else { s.only.iter().any(|o| codec.name().contains(o)) };
        for workers in [1, 2] {
            if !wanted {
                continue;
            }
            let r = measure(&s, &kinds, codec, workers);
            let limit = limits.copy_one.max(limits.copy_two).min(limits.disk * r.ratio());
            let (rate, disk) = (r.raw as f64 / r.seconds / GB, r.written as f64 / r.seconds / GB);
            if !s.json {
                println!(
                    "{:8} {workers:7} {rate:9.2} {:8.2} {disk:11.2} {limit:7.2} {:9.0}% {:7.2}",
                    codec.name(),
                    r.ratio(),
                    100.0 * rate / limit,
                    r.cpu / r.seconds
                );
            }
            results.push(serde_json::json!({
                "codec": codec.name(), "workers": workers, "seconds": r.seconds, "gb_per_s_in": rate, "ratio": r.ratio(),
                "disk_gb_per_s": disk, "limit_gb_per_s": limit, "of_limit": rate / limit, "cores": r.cpu / r.seconds,
                "host_waited": r.waited / r.seconds,
            }));
        }
    }
    if s.json {
        let doc = serde_json::json!({
            "source": source, "rows": s.rows, "max_memory": s.memory, "load_average": load_average(),
            "memcpy_gb_per_s": [limits.copy_one, limits.copy_two], "disk_gb_per_s": limits.disk, "rows_of_table": results,
        });
        println!("{doc:#}");
    }
}

fn settings() -> Settings {
    let mut s = Settings {
        seconds: 60.0,
        rows: 512,
        memory: 1 << 30,
        folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        json: false,
        only: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse::<f64>().ok()).expect("a number behind the option");
        match arg.as_str() {
            "--seconds" => s.seconds = number(),
            "--rows" => s.rows = number() as usize,
            "--memory-mib" => s.memory = number() as usize * MIB,
            "--folder" => s.folder = args.next().expect("a folder").into(),
            "--json" => s.json = true,
            // What cargo adds.
            "--bench" => {}
            only => s.only.push(only.to_owned()),
        }
    }
    s
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// One kind of tensor: width of a token's row, values.
struct Kind {
    name: String,
    width: usize,
    data: Vec<u8>,
}

/// Real activations, or made ones; what they are in words.
fn load(s: &Settings) -> (String, Vec<Kind>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/activations");
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap_or_default();
    let mut kinds: Vec<Kind> = index
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (name, width) = (fields.next()?, fields.next()?.parse::<usize>().ok()?);
            let mut data = Vec::new();
            let file = std::fs::File::open(folder.join(format!("{name}.f32"))).ok()?;
            file.take(HELD as u64).read_to_end(&mut data).ok()?;
            data.truncate(data.len() / (width * 4 * s.rows) * width * 4 * s.rows);
            (!data.is_empty()).then(|| Kind { name: name.to_owned(), width, data })
        })
        .collect();
    let source = if kinds.is_empty() {
        for (i, (name, width)) in
            [("l_out", 576), ("ffn_up", 1536), ("Qcur", 576), ("Kcur", 192)].into_iter().enumerate()
        {
            let rows = HELD / (width * 4) / s.rows * s.rows;
            kinds.push(Kind { name: name.to_owned(), width, data: heavy_tailed(width * rows, i as u64) });
        }
        "synthetic heavy-tailed values"
    } else {
        "activations of a real model"
    };
    (source.to_owned(), kinds)
}

/// Sums of few uniform values, a few of them large: something like the kurtosis of a residual stream.
fn heavy_tailed(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed + 1;
    let mut uniform = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n)
        .flat_map(|_| {
            let normal = uniform() + uniform() + uniform() + uniform();
            let scale = if uniform() > 0.49 { 30.0 } else { 1.0 };
            (normal * scale).to_le_bytes()
        })
        .collect()
}

struct Measured {
    raw: u64,
    written: u64,
    seconds: f64,
    cpu: f64,
    waited: f64,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.raw as f64 / self.written as f64
    }
}

/// Feeds the pipeline for as long as the settings say; everything until the last byte is on the disk is timed.
fn measure(s: &Settings, kinds: &[Kind], codec: Codec, workers: usize) -> Measured {
    let path = s.folder.join(format!("bench-pipeline-{}.stream", std::process::id()));
    let specs: Arc<[Arc<Spec>]> = kinds.iter().map(|k| Arc::new(spec(&k.name))).collect();
    let rows: Arc<[Row]> =
        (0..s.rows).map(|i| Row { seq: 0, pos: i as i32, token: i as i32, request: 1 }).collect::<Vec<_>>().into();
    let mut m = Measured { raw: 0, written: 0, seconds: 0.0, cpu: 0.0, waited: 0.0 };
    let rotate = (free_space(&s.folder) / 2).clamp(1 << 30, ROTATE);
    let mut step = 0;
    while m.seconds < s.seconds {
        let (began, cpu) = (Instant::now(), cpu_seconds());
        let pipeline = Pipeline::start(options(s, &path, codec, workers)).unwrap();
        while pipeline.written().1 < rotate && m.seconds + began.elapsed().as_secs_f64() < s.seconds {
            step += 1;
            m.raw += feed(s, &pipeline, kinds, &specs, &rows, step, &mut m.waited);
        }
        let totals = pipeline.finish(Duration::from_secs(60));
        m.seconds += began.elapsed().as_secs_f64();
        m.cpu += cpu_seconds() - cpu;
        assert!(totals.clean && totals.account.captured == totals.account.seen, "{totals:?}");
        m.written += totals.bytes;
        // Not timed: a disk may take seconds to discard what was in the file, and nobody deletes a stream while
        // it is written.
        std::fs::remove_file(&path).unwrap();
    }
    m
}

/// Bytes that may be written to the file system of `folder`.
fn free_space(folder: &Path) -> u64 {
    let said = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&said.stdout).lines().nth(1).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn spec(name: &str) -> Spec {
    Spec {
        name: format!("{name}-0"),
        tensor: format!("{name}-0"),
        op: "ADD".into(),
        layer: Some(0),
        component: 0,
        occurrence: 0,
        dtype: DType::F32,
        slice: None,
    }
}

fn options(s: &Settings, path: &Path, codec: Codec, workers: usize) -> Options {
    Options {
        path: path.to_owned(),
        header: serde_json::json!({}),
        params: Params { codec, error_bound: 1e-3 },
        max_memory: s.memory,
        aside: Arc::default(),
        policy: Policy::Block,
        workers,
        helpers: 0,
        checkpoint_tokens: Some(16_384),
        resume: false,
        tokens_path: None,
    }
}

/// A step as the host hands it over: one buffer, one copy.
fn feed(
    s: &Settings,
    pipeline: &Pipeline,
    kinds: &[Kind],
    specs: &Arc<[Arc<Spec>]>,
    rows: &Arc<[Row]>,
    step: u64,
    waited: &mut f64,
) -> u64 {
    let len: usize = kinds.iter().map(|k| k.width * 4 * s.rows).sum();
    pipeline.account().seen(kinds.len() as u64, len as u64);
    let before = Instant::now();
    let mut data = pipeline.reserve(len).unwrap();
    *waited += before.elapsed().as_secs_f64();
    let mut offset = 0;
    let pieces = kinds.iter().zip(0..).map(|(kind, spec)| {
        let len = kind.width * 4 * s.rows;
        let from = step as usize * len % kind.data.len();
        data[offset..offset + len].copy_from_slice(&kind.data[from..from + len]);
        offset += len;
        let place = Place { buffer: 0, offset: offset - len, form: Form::Values };
        let piece = Piece {
            spec,
            len,
            ne: [kind.width as u32, s.rows as u32, 1, 1],
            token_dim: 1,
            rows: Some(0),
            route: Route::Retain,
            completes: true,
        };
        (piece, place)
    });
    let (pieces, places) = pieces.unzip();
    let (table, row_sets) = (Arc::new(Table::new(Arc::clone(specs), pieces)), vec![Arc::clone(rows)]);
    pipeline.push(Job { step, t_ns: step, table, places, row_sets, data: vec![data], tokens: s.rows as u32 });
    len as u64
}

/// Processor time of this process.
fn cpu_seconds() -> f64 {
    host::process_cpu_ns() as f64 / 1e9
}

/// What the machine can do at all, measured in the same run.
struct Limits {
    copy_one: f64,
    copy_two: f64,
    disk: f64,
}

impl Limits {
    fn measure(s: &Settings) -> Self {
        let seconds = (s.seconds / 10.0).clamp(0.5, 5.0);
        let two: f64 = std::thread::scope(|scope| {
            let other = scope.spawn(|| copy(seconds));
            copy(seconds) + other.join().unwrap()
        });
        Self { copy_one: copy(seconds), copy_two: two, disk: disk(s, seconds) }
    }
}

/// Copies between two pieces of memory that no cache holds; GB/s.
fn copy(seconds: f64) -> f64 {
    let from = vec![1u8; 128 * MIB];
    let mut to = vec![0u8; 128 * MIB];
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        bytes += from.len();
    }
    bytes as f64 / began.elapsed().as_secs_f64() / GB
}

/// Aligned blocks of 4 MiB past the page cache into reserved space, one after the other; GB/s. Through the page cache,
/// with what must reach the disk, where the file system has nothing else.
fn disk(s: &Settings, seconds: f64) -> f64 {
    let path = s.folder.join(format!("bench-disk-{}", std::process::id()));
    let open =
        |flags| std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(&path);
    let mut file = open(libc::O_DIRECT).or_else(|_| open(0)).unwrap();
    let block = host::Pages::new(4 * MIB).unwrap();
    let (began, mut bytes, mut at) = (Instant::now(), 0u64, 0u64);
    while began.elapsed().as_secs_f64() < seconds {
        if at.is_multiple_of(64 << 20) {
            let _ = host::allocate_ahead(&file, at, 64 << 20);
        }
        file.write_all_at(&block, at).unwrap();
        bytes += block.len() as u64;
        at = (at + block.len() as u64) % ROTATE;
    }
    file.flush().unwrap();
    file.sync_data().unwrap();
    let rate = bytes as f64 / began.elapsed().as_secs_f64() / GB;
    std::fs::remove_file(&path).unwrap();
    rate
}
