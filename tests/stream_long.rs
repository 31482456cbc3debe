//! Streams too long to be read for what they say of themselves: `stream info` and `ls` pass over the values. The long
//! file is sparse, and its checksums are wrong on purpose: whoever reads the values finds damage.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

#[path = "stream/sample.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod sample;

use std::cell::Cell;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use llama_resource_instrumentation::codec::{Codec, DType};
use llama_resource_instrumentation::format::stream::{
    Content, FRAME_LEN, Part, Row, write_end, write_header, write_tensor,
};
use llama_resource_instrumentation::read::stream::{Item, StreamReader};
use serde_json::{Value, json};

const PACKETS: u64 = 300;
const ROW: u32 = 1024;

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stream-long-{}-{name}", std::process::id()))
}

/// A packet whose body of `body` zeros is a hole, and whose checksum is that of an empty one.
fn hollow(file: &mut File, sequence: u64, name: &str, body: u32) {
    let rows = body / (4 * ROW);
    let table = (0..rows as i32).map(|i| Row { seq: 0, pos: i, token: 7, request: 1 }).collect();
    let parts = vec![Part { step: sequence, t_ns: sequence, ne: [ROW, rows, 1, 1], token_dim: 1, rows: table }];
    let meta = sample::plain(name, "ADD", 0, DType::F32, Codec::None, ROW, parts);
    let mut packet = Vec::new();
    write_tensor(&mut packet, sequence, name, &meta, b"").unwrap();
    let longer = |packet: &mut [u8], at: usize, big: bool| {
        let field: &mut [u8; 4] = packet[at..at + 4].first_chunk_mut().unwrap();
        let sum = body + if big { u32::from_be_bytes(*field) } else { u32::from_le_bytes(*field) };
        *field = if big { sum.to_be_bytes() } else { sum.to_le_bytes() };
    };
    let end = packet.len();
    longer(&mut packet, 2, true);
    longer(&mut packet, end - 16, false);
    let (front, trailer) = packet.split_at(FRAME_LEN + name.len());
    file.write_all(front).unwrap();
    file.seek(SeekFrom::Current(i64::from(body))).unwrap();
    file.write_all(trailer).unwrap();
}

/// A stream of three tensors, `PACKETS` packets with bodies of `body` bytes.
fn stream(path: &Path, body: u32) -> u64 {
    let mut file = File::create(path).unwrap();
    let mut note = Vec::new();
    write_header(&mut note, 0, &json!({"session_id": "long"})).unwrap();
    file.write_all(&note).unwrap();
    for n in 1..=PACKETS {
        hollow(&mut file, n, &format!("l_out-{}", n % 3), body);
    }
    note.clear();
    let amount = json!({"tensors": PACKETS, "bytes": PACKETS * u64::from(body)});
    let account = json!({"seen": amount, "captured": amount, "skipped": {}, "dropped": {}});
    write_end(&mut note, PACKETS + 1, &json!({"account": account}), None).unwrap();
    file.write_all(&note).unwrap();
    file.stream_position().unwrap()
}

fn said(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_llama-resource")).arg("stream").args(args).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Counts the bytes that are read.
struct Counting {
    file: File,
    bytes: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(to)?;
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

impl Seek for Counting {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

#[test]
fn a_long_stream_is_described_without_its_values() {
    let path = scratch("long");
    let body = 4 << 20;
    let len = stream(&path, body);
    assert!(len > 1 << 30);
    let bytes = Rc::new(Cell::new(0));
    let mut reader = StreamReader::new(Counting { file: File::open(&path).unwrap(), bytes: bytes.clone() }).unwrap();
    let mut rows = 0;
    while let Some(item) = reader.next_described().unwrap() {
        let Item::Packet { packet, .. } = item else { panic!("{item:?}") };
        if let Content::Tensor { meta, body } = packet.content {
            assert!(body.is_empty());
            rows += meta.parts.iter().map(|p| p.rows.len() as u64).sum::<u64>();
        }
    }
    let account = reader.account();
    assert!(account.balances() && account.is_undamaged() && account.ended, "{account:?}");
    assert_eq!((account.bytes, account.packets, rows), (len, PACKETS + 2, PACKETS * 1024));
    // 300 packets and a megabyte at the beginning, where the form is found out.
    assert!(bytes.get() < 300 * (32 << 10) + (2 << 20) && bytes.get() < len / 100, "{} of {len} bytes", bytes.get());

    let file = path.to_str().unwrap();
    let info: Value = serde_json::from_str(&said(&["info", file, "--json"])).unwrap();
    assert_eq!(
        (&info["values_checked"], &info["clean_end"], &info["damaged_ranges"]),
        (&json!(false), &json!(true), &json!(0))
    );
    assert_eq!((&info["steps"], &info["packets"]), (&json!(PACKETS), &json!(PACKETS + 2)));
    let listed: Value = serde_json::from_str(&said(&["ls", file, "l_out-1", "--json"])).unwrap();
    let [tensor] = &listed.as_array().unwrap()[..] else { panic!("{listed}") };
    let (rows, bytes) = (PACKETS / 3 * 1024, PACKETS / 3 * u64::from(body));
    assert_eq!((&tensor["rows"], &tensor["bytes"]), (&json!(rows), &json!(bytes)));
    let text = said(&["info", file]);
    assert!(text.contains("`stream verify`") && text.lines().all(|l| l.chars().count() <= 80), "{text}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_short_stream_is_read_whole() {
    let path = scratch("short");
    stream(&path, 4 * ROW);
    let info: Value = serde_json::from_str(&said(&["info", path.to_str().unwrap(), "--json"])).unwrap();
    assert_eq!(
        (&info["values_checked"], &info["damaged_ranges"]),
        (&json!(true), &json!(1)),
        "the checksums are wrong"
    );
    std::fs::remove_file(&path).unwrap();
}

/// Place, name, number and content without values of every packet.
fn all(bytes: &[u8], described: bool) -> Vec<String> {
    let mut reader = StreamReader::new(Cursor::new(bytes)).unwrap();
    let mut found = Vec::new();
    while let Some(mut item) = if described { reader.next_described() } else { reader.next_item() }.unwrap() {
        if let Item::Packet { packet, .. } = &mut item
            && let Content::Tensor { body, .. } = &mut packet.content
        {
            *body = b"";
        }
        found.push(format!("{item:?}"));
    }
    assert!(reader.account().balances());
    found.push(format!("{:?}", reader.account()));
    found
}

#[test]
fn described_and_whole_are_the_same_packets() {
    let bytes = sample::golden().bytes;
    assert_eq!(all(&bytes, true), all(&bytes, false));
    for n in 0..bytes.len() {
        assert_eq!(all(&bytes[..n], true), all(&bytes[..n], false), "cut at {n}");
    }
    // Damage of one bit is found by both, or it is in a tensor's packet, whose checksum is not looked at.
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        let (described, whole) = (all(&flipped, true), all(&flipped, false));
        assert!(described == whole || described.len() >= whole.len(), "bit 2 of byte {at}");
    }
}
