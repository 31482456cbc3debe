//! Streams that somebody made to do harm: a few hundred bytes that claim to be gigabytes, packets in packets, names
//! with escape sequences. Every tool gets each of them, with little memory and little time; it may refuse, and must not
//! crash, hang, or write to the terminal what the file tells it to.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "stream/sample.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod sample;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use llama_resource_instrumentation::codec::{Codec, DType, Encoder, Params};
use llama_resource_instrumentation::format::stream::{Part, Slice, TensorMeta};
use llama_resource_instrumentation::read::stream::{Item, StreamReader};
use sample::{Writer, lz4_stored, plain};
use serde_json::json;

/// Address space of a tool, KiB: a packet of 64 MiB twice, and the program itself. What a bomb claims is far beyond.
const MEMORY_KIB: u64 = 600 << 10;
/// The longest that a tool may take: the slowest of them takes a tenth of it in a debug build.
const PATIENCE: Duration = Duration::from_secs(20);

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stream-hostile-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Runs a tool within its limits; its output was looked at.
fn tool(here: &Path, args: &[&str]) -> Output {
    let limited = format!("ulimit -v {MEMORY_KIB} && ulimit -f 1048576 && exec \"$0\" \"$@\"");
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).args(["sh", "-c", &limited, env!("CARGO_BIN_EXE_llama-resource")]);
    let output = command.args(args).current_dir(here).stdin(Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0..=2)), "{args:?}: {:?}\n{err:.2000}", output.status);
    assert!(!err.contains("panicked") && !err.contains("memory allocation"), "{args:?}: {err}");
    for (what, bytes) in [("output", &output.stdout), ("error", &output.stderr)] {
        let text = String::from_utf8_lossy(bytes);
        let unsafe_char = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.contains(unsafe_char), "{args:?}: {what}: {text:.500?}");
    }
    output
}

/// Every tool on a stream.
fn everything(name: &str, stream: &[u8]) {
    let here = folder(name);
    fs::write(here.join("s"), stream).unwrap();
    for args in [
        &["info"][..],
        &["info", "--json"],
        &["ls"],
        &["ls", "--json"],
        &["verify"],
        &["verify", "--json"],
        &["cat", "t"],
        &["cat", "t", "--json", "--rows", "0-9"],
        &["stats"],
        &["stats", "--csv"],
        &["stats", "--by", "layer", "--json"],
        &["stats", "--by", "token"],
        &["stats", "--by", "token", "--csv"],
        &["stats", "--by", "token", "--json"],
        &["export", "--to", "npy", "--out", "npy"],
        &["export", "--to", "npy", "--dtype", "f16", "--out", "npy16"],
        &["export", "--to", "safetensors", "--out", "tensors"],
        &["export", "--to", "parquet", "--out", "parquet"],
        &["export", "--to", "parquet", "--dtype", "f16", "--out", "parquet16"],
        &["export", "--tensors", "t*", "--to", "npy", "--out", "some"],
        &["recover", "--out", "whole"],
        &["import", "--dtype", "f16", "--out", "mine"],
    ] {
        let args: Vec<&str> = ["stream", args[0], "s"].iter().chain(&args[1..]).copied().collect();
        tool(&here, &args);
    }
    fs::remove_dir_all(here).unwrap();
}

fn part(ne: [u32; 4], token_dim: u8) -> Part {
    Part { step: 1, t_ns: 1, ne, token_dim, rows: Vec::new() }
}

/// A whole stream of this one packet, which a second, harmless one follows.
fn stream(name: &str, meta: TensorMeta, body: &[u8]) -> Vec<u8> {
    let mut w = Writer::default();
    w.header(&json!({"session_id": "hostile"}));
    w.tensor(name, meta, body, Vec::new());
    let good = plain("good", "ADD", 1, DType::F32, Codec::None, 2, vec![part([2, 1, 1, 1], 1)]);
    w.tensor("good", good, &lz4_stored(&[0, 0, 128, 63, 0, 0, 0, 64]), Vec::new());
    w.index();
    w.end(&json!({"account": {"seen": {"tensors": 2, "bytes": 16}, "captured": {"tensors": 2, "bytes": 16}, "skipped": {}, "dropped": {}}}));
    w.bytes
}

fn described(codec: Codec, row_len: u32, parts: Vec<Part>) -> TensorMeta {
    plain("t", "ADD", 0, DType::F32, codec, row_len, parts)
}

/// What a codec makes of zeros.
fn zeros(codec: Codec, row_len: usize, n: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let done = Encoder::default().encode(
        &Params { codec, error_bound: 1e-3 },
        DType::F32,
        row_len,
        &vec![0; n * 4],
        &mut body,
    );
    assert_eq!(done.codec, codec);
    body
}

#[test]
fn rows_without_values_are_no_work() {
    for (i, ne) in [[0, u32::MAX, 1, 1], [0, u32::MAX, u32::MAX, u32::MAX], [0, 1 << 30, 2, 1]].into_iter().enumerate()
    {
        for token_dim in [0, 1] {
            let meta = described(Codec::None, 1, vec![part(ne, token_dim)]);
            everything(&format!("narrow-{i}-{token_dim}"), &stream("t", meta, &lz4_stored(&[])));
        }
    }
}

#[test]
fn shapes_beyond_the_bytes_that_are_there_are_no_work() {
    let most = u32::MAX;
    let cases = [
        ([1, most, 1, 1], 1),
        ([most, 1, 1, 1], 1),
        ([most, most, most, most], 1),
        // No rows, and so no values: nothing vouches for the rest of the shape.
        ([most, most, 0, 1], 1),
        ([1, most, most, 0], 2),
    ];
    for (i, (ne, token_dim)) in cases.into_iter().enumerate() {
        let slice = Some(Slice { start: 0, step: 1, full: most });
        let meta = TensorMeta { slice, ..described(Codec::None, 1, vec![part(ne, token_dim); 2]) };
        everything(&format!("wide-{i}"), &stream("t", meta, &lz4_stored(&[0; 8])));
    }
}

#[test]
fn bombs_are_refused() {
    // A row of zeros is two bytes to `bounded`, however long: four gigabytes of three.
    let bounded = zeros(Codec::Bounded, 64, 64);
    everything(
        "bomb-bounded",
        &stream("t", described(Codec::Bounded, 1 << 30, vec![part([1 << 30, 1, 1, 1], 1)]), &bounded),
    );
    // What Zstandard can do is believed up to 64 MiB.
    for (i, values) in [1 << 19, 24 << 20].into_iter().enumerate() {
        let body = zeros(Codec::Zstd, 1024, values);
        assert!(body.len() < 10_000);
        let meta = described(Codec::Zstd, 1024, vec![part([1024, values as u32 / 1024, 1, 1], 1)]);
        everything(&format!("bomb-zstd-{i}"), &stream("t", meta, &body));
    }
    let lz4 = zeros(Codec::Lz4, 1024, 1 << 20);
    let meta = described(Codec::Lz4, 1024, vec![part([1024, 1 << 20, 1, 1], 1)]);
    everything("bomb-lz4", &stream("t", meta, &lz4));
}

#[test]
fn rows_of_one_value_take_no_more_memory_than_their_packet() {
    // Of each, `stats --by token` once kept three hundred bytes, and a row of Parquet takes twenty times its value.
    let n = 1 << 18;
    let meta = described(Codec::Zstd, 1, vec![part([1, n, 1, 1], 1)]);
    let here = folder("narrow-rows");
    fs::write(here.join("s"), stream("t", meta, &zeros(Codec::Zstd, 1, n as usize))).unwrap();
    tool(&here, &["stream", "verify", "s"]);
    tool(&here, &["stream", "export", "s", "--to", "parquet", "--out", "parquet"]);
    // The first lines come before all of the packet was looked at: nothing is gathered.
    let begun = "(\"$0\" stream stats s --by token; echo $? >&2) | head -3";
    let limited = format!("ulimit -v {} && {begun}", 150 << 10);
    let output =
        Command::new("sh").args(["-c", &limited, env!("CARGO_BIN_EXE_llama-resource")]).current_dir(&here).output();
    let output = output.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "0");
    fs::remove_dir_all(here).unwrap();
}

#[test]
fn names_reach_the_terminal_without_their_escapes() {
    let name = "t\u{1b}]0;owned\u{7}\u{9b}31m\r\nerror: all is well\u{202e}\u{7f}";
    let one = vec![part([2, 1, 1, 1], 1)];
    // Once as it should be, and once with values that cannot be decoded, so that an error names it.
    let good = TensorMeta { tensor: name.to_owned(), op: name.to_owned(), ..described(Codec::None, 2, one.clone()) };
    everything("name", &stream(name, good, &lz4_stored(&[0; 8])));
    let mut broken = lz4_stored(&[0; 8]);
    broken[0] = 0;
    let bad = TensorMeta { tensor: name.to_owned(), ..described(Codec::None, 2, one.clone()) };
    let stream_of_bad = stream(name, bad, &broken);
    everything("name-error", &stream_of_bad);
    let here = folder("one-line");
    fs::write(here.join("s"), stream_of_bad).unwrap();
    let error = String::from_utf8(tool(&here, &["stream", "stats", "s"]).stderr).unwrap();
    assert!(error.starts_with("error: cannot decode `t\u{fffd}]0;") && error.lines().count() == 1, "{error}");
    // A stream of the older system has nothing but names.
    let mut older = Vec::new();
    for _ in 0..3 {
        older.extend_from_slice(&(name.len() as u16).to_be_bytes());
        older.extend_from_slice(&3_u32.to_be_bytes());
        older.extend_from_slice(name.as_bytes());
        older.extend_from_slice(b"odd");
    }
    everything("name-older", &older);
    fs::remove_dir_all(here).unwrap();
}

#[test]
fn ids_of_sessions_reach_the_terminal_without_their_escapes() {
    let here = folder("sessions");
    let start = r#"{"event":"resource_session_start","timestamp":"2026-11-22 01:00:00.000","session_id":"ID","level":"MINIMAL","t_ns":5,"unix_us":1,"log_version":1,"library_version":"0.1.0","mode":"preload","pid":1,"program":"p\u001b[2J","rate_limit":null}"#;
    let id = r"a\u001b]0;owned\u0007\u009b31m\nerror: b\u202e";
    let line = start.replace("\"ID\"", &format!("\"{id}\""));
    fs::write(here.join("log"), format!("{line}\n").repeat(50)).unwrap();
    for args in [&["report", "log"][..], &["report", "log", "--session", "all"], &["report", "log", "--json"]] {
        tool(&here, args);
    }
    let output = tool(&here, &["report", "log", "--session", "none"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: no session `none`") && error.lines().count() == 1, "{error}");
    assert!(error.matches("owned").count() <= 20, "{error}");
    fs::remove_dir_all(here).unwrap();
}

/// Beginnings of packets, then their ends: each whole by its lengths, none by its checksum, all within each other.
fn nested(levels: u32) -> Vec<u8> {
    const FRAME: u32 = 6;
    const TRAILER: u32 = 34;
    let mut out = b"x".to_vec();
    for level in 0..levels {
        let len = (levels - level) * (FRAME + TRAILER);
        out.extend_from_slice(&0_u16.to_be_bytes());
        out.extend_from_slice(&(len - FRAME).to_be_bytes());
    }
    for level in (0..levels).rev() {
        let len = (levels - level) * (FRAME + TRAILER);
        out.extend_from_slice(&[0x57, 0x2a, 0x4d, 0x18]);
        out.extend_from_slice(&(TRAILER - 8).to_le_bytes());
        out.extend_from_slice(&[1, 4]);
        out.extend_from_slice(&u64::from(level).to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&TRAILER.to_le_bytes());
        out.extend_from_slice(b"CRC?LRS1");
    }
    out
}

#[test]
fn the_search_behind_damage_takes_as_long_as_the_file_is() {
    let began = Instant::now();
    let good = stream("t", described(Codec::None, 2, vec![part([2, 1, 1, 1], 1)]), &lz4_stored(&[0; 8]));
    // 50,000 packets in each other: 50 GB to check, 2 MB to read.
    let mut hostile = nested(50_000);
    let behind = hostile.len();
    hostile.extend_from_slice(&good);
    let mut reader = StreamReader::new(std::io::Cursor::new(&hostile)).unwrap();
    let first = match reader.next_item().unwrap() {
        Some(Item::Damage(damage)) => damage.at,
        other => panic!("{other:?}"),
    };
    assert_eq!((first.offset, first.len), (0, behind as u64), "what stands behind it is found");
    assert!(matches!(reader.next_item().unwrap(), Some(Item::Packet { .. })));
    assert!(StreamReader::new(std::io::Cursor::new(&hostile)).unwrap().last_checkpoint().unwrap().is_none());
    // 10,000 damaged places of a byte, each with a whole packet behind it.
    let mut w = Writer::default();
    let mut sparse = Vec::new();
    for i in 0..10_000_u64 {
        w.sequence = i;
        w.bytes.clear();
        w.account(&json!({}));
        sparse.push(b'x');
        sparse.extend_from_slice(&w.bytes);
    }
    let mut reader = StreamReader::new(std::io::Cursor::new(&sparse)).unwrap();
    while reader.next_item().unwrap().is_some() {}
    assert_eq!((reader.account().packets, reader.account().damaged_ranges), (10_000, 10_000));
    assert!(StreamReader::new(std::io::Cursor::new(&sparse)).unwrap().last_checkpoint().unwrap().is_none());
    // Empty packets of the older system, six zero bytes each, and one byte that is none at the end.
    let mut empty = vec![0, 1, 0, 0, 0, 1, b'a', b'b'];
    empty.resize(6 * 50_000 + 8, 0);
    empty.extend_from_slice(&[0, 1, 0, 0, 0, 1, b'a', b'b']);
    let mut reader = StreamReader::new(std::io::Cursor::new(&empty)).unwrap();
    while reader.next_item().unwrap().is_some() {}
    assert_eq!(reader.account().packets, 50_002);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn names_that_become_one_are_told_apart_in_no_time() {
    let began = Instant::now();
    let here = folder("names");
    let mut w = Writer::default();
    w.header(&json!({}));
    for i in 0..3000_u32 {
        let name: String = (0..12).map(|bit| if i >> bit & 1 == 1 { '\u{e9}' } else { '\u{e8}' }).collect();
        let meta = described(Codec::None, 1, vec![part([1, 1, 1, 1], 1)]);
        w.tensor(&name, meta, &lz4_stored(&[0; 4]), Vec::new());
    }
    fs::write(here.join("s"), &w.bytes).unwrap();
    tool(&here, &["stream", "export", "s", "--to", "npy", "--out", "npy"]);
    assert_eq!(fs::read_dir(here.join("npy")).unwrap().count(), 2 * 3000 + 1);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    fs::remove_dir_all(here).unwrap();
}
