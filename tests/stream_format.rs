//! The stream's bytes: the golden file, the older system's file, and files cut, flipped and spliced in every way.
//! Whatever was done to a file, no panic, and no packet that is not one of those written.

#[path = "stream/sample.rs"]
mod sample;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use llama_resource_instrumentation::codec::{Codec, DType, Encoder, Params};
use llama_resource_instrumentation::format::stream::{Content, Kind, Part, Row};
use llama_resource_instrumentation::read::stream::{
    Form, Item, LegacyCodec, Location, StreamAccount, StreamReader, decode, to_f32,
};
use sample::{Writer, Written, f32_bytes, golden, plain};
use serde_json::json;

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stream").join(name)
}

/// What a reader found.
#[derive(Debug, Default)]
struct Found {
    tensors: Vec<Written>,
    damage: Vec<Location>,
    account: StreamAccount,
    legacy: usize,
}

fn read_all(bytes: &[u8]) -> Found {
    let mut reader = StreamReader::new(Cursor::new(bytes)).expect("memory");
    let mut found = Found::default();
    while let Some(item) = reader.next_item().expect("one version") {
        match item {
            Item::Packet { packet, .. } => {
                if let Content::Tensor { meta, body } = packet.content {
                    let mut values = Vec::new();
                    decode(&meta, body, &mut values).expect("what has a right CRC can be decoded");
                    found.tensors.push(Written { name: packet.name.to_owned(), meta, values });
                }
            }
            Item::Legacy { .. } => found.legacy += 1,
            Item::Damage(damage) => found.damage.push(damage.at),
            Item::Unwritten(_) => {}
        }
    }
    assert!(reader.account().balances(), "{:?}", reader.account());
    assert_eq!(reader.account().bytes, bytes.len() as u64);
    found.account = reader.account().clone();
    found
}

/// Each of `found` is one of `written`, in order.
fn assert_in_order(found: &[Written], written: &[Written], what: &str) {
    let mut rest = written.iter();
    for tensor in found {
        assert!(rest.any(|w| w == tensor), "{what}: a packet that was not written there: {tensor:?}");
    }
}

/// A stream of small packets, with every codec.
fn small() -> Writer {
    let mut w = Writer::default();
    let mut encoder = Encoder::default();
    w.header(&json!({"session_id": "small"}));
    for (i, codec) in Codec::ALL.into_iter().cycle().take(10).enumerate() {
        let values: Vec<f32> = (0..64).map(|k| ((k * 37 + i * 11) % 100) as f32 * 0.37 - 9.0).collect();
        let data = f32_bytes(&values);
        let rows = (0..2).map(|k| Row { seq: 0, pos: 2 * i as i32 + k, token: 100 + k, request: 1 }).collect();
        let parts = vec![Part { step: i as u64, t_ns: 1000 * i as u64, ne: [32, 2, 1, 1], token_dim: 1, rows }];
        let mut body = Vec::new();
        let done = encoder.encode(&Params { codec, error_bound: 1e-2 }, DType::F32, 32, &data, &mut body);
        let meta = plain(&format!("t-{}", i % 3), "ADD", i as i32 % 3, DType::F32, done.codec, 32, parts);
        let mut back = Vec::new();
        decode(&meta, &body, &mut back).expect("just encoded");
        assert!(!codec.is_lossless() || back == data);
        w.tensor(&format!("t-{}", i % 3), meta, &body, back);
        if i == 5 {
            w.checkpoint(&json!({"tokens": 12}));
            w.index();
        }
    }
    w.index();
    w.end(&json!({}));
    w
}

#[test]
fn the_golden_stream_is_written_byte_for_byte_and_read_back() {
    let written = golden();
    let path = golden_path("v1.stream");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &written.bytes).expect("tests/golden is writable");
    }
    let bytes = std::fs::read(&path).expect("`UPDATE=1 cargo test --test stream_format` writes it");
    assert!(bytes == written.bytes, "the bytes of the format changed");
    let found = read_all(&bytes);
    assert!(found.account.is_undamaged() && found.account.ended, "{:?}", found.account);
    assert_eq!(found.tensors, written.tensors);
    assert_eq!(found.account.kinds["header"], 2);
    let kinds = ["tokens", "account", "checkpoint", "end"].map(|k| found.account.kinds[k]);
    assert_eq!((kinds, found.account.kinds["index"]), ([1; 4], 2));
}

#[test]
fn the_index_tells_what_stepping_through_tells() {
    for written in [golden(), small()] {
        let mut reader = StreamReader::new(Cursor::new(&written.bytes)).expect("memory");
        let indexed = reader.catalog().expect("memory").clone();
        assert!(indexed.from_index);
        // Without its end there is no index to find.
        let end = written.offsets[written.offsets.len() - 2];
        let mut reader = StreamReader::new(Cursor::new(&written.bytes[..end])).expect("memory");
        let stepped = reader.catalog().expect("memory").clone();
        assert!(!stepped.from_index && stepped.damaged.is_empty());
        assert_eq!(indexed.tensors, stepped.tensors);
        for tensor in &stepped.tensors {
            let theirs: Vec<_> = written.tensors.iter().filter(|w| w.name == tensor.name).collect();
            assert_eq!(theirs.len(), tensor.packets.len());
            for (at, theirs) in tensor.packets.iter().zip(theirs) {
                let Item::Packet { packet, .. } = reader.packet_at(*at).expect("memory") else { panic!("{at:?}") };
                assert_eq!((packet.name, &packet.kind()), (theirs.name.as_str(), &Some(Kind::Tensor)));
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_gives_every_packet_before_the_cut() {
    let written = small();
    for cut in 0..=written.bytes.len() {
        let found = read_all(&written.bytes[..cut]);
        let whole = written.offsets.windows(2).filter(|o| o[1] <= cut).count() as u64;
        assert_eq!((found.account.packets, found.legacy), (whole, 0), "cut at {cut}");
        assert_eq!(found.account.gaps, 0);
        assert_in_order(&found.tensors, &written.tensors, &format!("cut at {cut}"));
        // Zeros are what is not written: a packet of which only zeros are there has not begun.
        let begun = written.offsets.iter().rfind(|o| **o <= cut).map_or(0, |o| *o);
        let clean = written.bytes[begun..cut].iter().all(|b| *b == 0);
        assert!(found.account.damaged.iter().all(|d| d.cut), "cut at {cut}: {:?}", found.account.damaged);
        assert_eq!(found.damage.len(), usize::from(!clean), "cut at {cut}");
        // The same with the blocks that were reserved for more.
        let mut reserved = written.bytes[..cut].to_vec();
        reserved.resize(cut + 5000, 0);
        let padded = read_all(&reserved);
        assert_eq!(padded.account.packets, whole, "cut at {cut} with zeros behind");
        assert!(padded.account.unwritten >= 5000);
    }
}

#[test]
fn a_hundred_thousand_flipped_files_give_nothing_that_was_not_written() {
    let written = small();
    let mut random = Random(0x5eed);
    let mut given = 0u64;
    for round in 0..100_000 {
        let mut bytes = written.bytes.clone();
        let flips = 1 + random.below(if round % 10 == 0 { 200 } else { 4 });
        let mut hit = vec![];
        for _ in 0..flips {
            let at = random.below(bytes.len());
            hit.push(at);
            bytes[at] ^= 1 + random.below(255) as u8;
        }
        let found = read_all(&bytes);
        assert_eq!(found.legacy, 0);
        assert_in_order(&found.tensors, &written.tensors, &format!("round {round}"));
        // Every packet that was not hit is given. (Two flips at one place may undo each other.)
        let whole = written.offsets.windows(2).filter(|o| !hit.iter().any(|h| (o[0]..o[1]).contains(h))).count() as u64;
        assert!(found.account.packets >= whole, "round {round}: {} of {whole}", found.account.packets);
        given += found.tensors.len() as u64;
        if round % 20 == 0 {
            by_name(&bytes, &written.tensors, round);
        }
    }
    assert!(given > 500_000, "{given}: the damage was not what it should be");
}

#[test]
fn behind_spliced_damage_every_whole_packet_is_given() {
    let written = small();
    let n = written.bytes.len();
    let mut random = Random(7);
    for round in 0..2_000 {
        // Not the header alone: where that comes again, a second file begins.
        let (a, len) = (1 + random.below(n - 1), 1 + random.below(700));
        let b = (a + len).min(n);
        let noise: Vec<u8> = (0..random.below(900)).map(|_| random.below(256) as u8).collect();
        let (head, tail) = (&written.bytes[..a], &written.bytes[b..]);
        let bytes = match round % 4 {
            // A range is missing.
            0 => [head, tail].concat(),
            // A range was overwritten, with more or fewer bytes than it had.
            1 => [head, &noise, tail].concat(),
            // Something stands between.
            2 => [head, &noise, &written.bytes[a..]].concat(),
            // A range stands there twice.
            _ => [&written.bytes[..b], &written.bytes[a..]].concat(),
        };
        let found = read_all(&bytes);
        assert_eq!(found.legacy, 0);
        assert_in_order(&found.tensors, &written.tensors, &format!("round {round}"));
        let hit = |o: &[usize]| match round % 4 {
            0 | 1 => o[1] > a && o[0] < b,
            2 => o[0] < a && a < o[1],
            _ => o[0] < a && b < o[1],
        };
        let whole = written.offsets.windows(2).filter(|o| !hit(o)).count() as u64;
        assert!(found.account.packets >= whole, "round {round}: {} of {whole} packets", found.account.packets);
    }
}

#[test]
fn missing_packets_are_counted_where_the_bytes_do_not_show_it() {
    let written = small();
    let (from, to) = (written.offsets[3], written.offsets[5]);
    let bytes = [&written.bytes[..from], &written.bytes[to..]].concat();
    let found = read_all(&bytes);
    assert_eq!((found.account.damaged_ranges, found.account.gaps, found.account.missing_packets), (0, 1, 2));
    assert_eq!((found.account.missing[0].offset, found.account.missing[0].first), (from as u64, 3));
    assert!(!found.account.is_undamaged());
    // Then the index tells of other places, and must not be believed blindly.
    let mut reader = StreamReader::new(Cursor::new(&bytes)).expect("memory");
    assert!(!reader.catalog().expect("memory").from_index);
}

#[test]
fn two_streams_in_one_file_are_both_read() {
    let written = small();
    let bytes = [&written.bytes[..], &written.bytes[..]].concat();
    let found = read_all(&bytes);
    assert!(found.account.is_undamaged(), "{:?}", found.account);
    assert_eq!(found.tensors.len(), 20);
}

#[test]
fn the_last_checkpoint_is_found_from_the_end_with_its_index() {
    let written = small();
    // The checkpoint is the 8th packet, the index packet behind it the 9th.
    let (before, behind) = (written.offsets[7] as u64, written.offsets[8] as u64);
    for cut in [written.bytes.len(), written.offsets[10] + 5, written.offsets[8]] {
        let mut bytes = written.bytes[..cut].to_vec();
        bytes.resize(bytes.len() + 4096, 0);
        let mut reader = StreamReader::new(Cursor::new(&bytes)).expect("memory");
        let point = reader.last_checkpoint().expect("memory").expect("a checkpoint");
        assert_eq!((point.offset, point.next_sequence, point.checkpoint["tokens"].as_u64()), (behind, 8, Some(12)));
        assert_eq!((point.index.end(), point.index.previous(), point.index.index().entries.len()), (behind, None, 8));
        assert_eq!(point.index.index().entries.last().map(|e| u64::from(e.len)), Some(behind - before));
        // What goes on there is a whole stream again.
        let mut resumed = Writer {
            bytes: bytes[..point.offset as usize].to_vec(),
            sequence: 8,
            index: point.index,
            ..Writer::default()
        };
        resumed.header(&json!({"resumed": true}));
        resumed.index();
        resumed.end(&json!({}));
        let found = read_all(&resumed.bytes);
        assert!(found.account.is_undamaged() && found.account.ended);
        let mut reader = StreamReader::new(Cursor::new(&resumed.bytes)).expect("memory");
        assert!(reader.catalog().expect("memory").from_index);
    }
    let mut reader = StreamReader::new(Cursor::new(&written.bytes[..written.offsets[7] + 40])).expect("memory");
    assert!(reader.last_checkpoint().expect("memory").is_none());
    // A damaged checkpoint is none, and the one before it counts.
    let mut w = small();
    w.checkpoint(&json!({"tokens": 99}));
    let n = w.bytes.len();
    w.bytes[n - 20] ^= 1;
    let mut reader = StreamReader::new(Cursor::new(&w.bytes)).expect("memory");
    assert_eq!(reader.last_checkpoint().expect("memory").map(|p| p.offset), Some(behind));
}

#[test]
fn a_stream_of_the_older_system_is_read_as_one() {
    for (file, codec) in [("older-lz4.stream", "lz4"), ("older-zstd.stream", "zstd"), ("older-none.stream", "none")] {
        let bytes =
            std::fs::read(golden_path(file)).expect("tests/server/test_stream_standards.py says where it comes from");
        let mut reader = StreamReader::new(Cursor::new(&bytes)).expect("memory");
        assert_eq!(reader.form(), Form::Legacy, "{file}");
        let mut found = vec![];
        while let Some(item) = reader.next_item().expect("memory") {
            let Item::Legacy { packet, .. } = item else { panic!("{file}: {item:?}") };
            let (mut told, mut sniffed) = (vec![], vec![]);
            packet.decode(LegacyCodec::parse(codec), &mut told).expect(file);
            packet.decode(None, &mut sniffed).expect(file);
            assert_eq!(told, sniffed);
            let mut values = vec![];
            to_f32(DType::F16, &told, &mut values);
            found.push((packet.name.to_owned(), values));
        }
        // What the script gave it: i * 0.25 - 3 in 4 x 6, then 1,000 * i.
        let first: Vec<f32> = (0..24).map(|i| i as f32 * 0.25 - 3.0).collect();
        let second: Vec<f32> = (0..10).map(|i| i as f32 * 1000.0).collect();
        assert_eq!(found, [("model.layers.0".to_owned(), first), (String::new(), second)], "{file}");
        assert_eq!((reader.account().kinds["legacy"], reader.account().balances()), (2, true));
        assert_eq!(reader.catalog().expect("memory").tensors.len(), 2);
        for cut in 1..bytes.len() {
            let found = read_all(&bytes[..cut]);
            assert!(found.tensors.is_empty() && found.legacy <= 2);
        }
    }
}

#[test]
fn what_is_no_stream_gives_no_packet() {
    let text = b"{\"event\":\"resource_session_start\"}\n".repeat(100);
    for bytes in [&b""[..], &[0; 10_000], &text, &[0xff; 5_000], b"LRS1LRS1LRS1LRS1LRS1LRS1LRS1LRS1LRS1LRS1", &[1]] {
        let found = read_all(bytes);
        assert_eq!((found.account.packets, found.tensors.len(), found.legacy), (0, 0, 0));
    }
}

#[test]
fn a_later_version_is_an_error_and_the_rest_goes_on() {
    let mut written = small();
    let (at, end) = (written.offsets[1], written.offsets[2]);
    let packet = &mut written.bytes[at..end];
    let n = packet.len();
    let trailer = u32::from_le_bytes(packet[n - 12..n - 8].try_into().expect("four")) as usize;
    packet[n - trailer + 8] = 2;
    let crc = crc32c::crc32c(&packet[..n - 8]);
    packet[n - 8..n - 4].copy_from_slice(&crc.to_le_bytes());
    let mut reader = StreamReader::new(Cursor::new(&written.bytes)).expect("memory");
    assert!(reader.next_item().expect("the header").is_some());
    let error = reader.next_item().expect_err("version 2").to_string();
    assert!(error.contains("version 2") && error.contains("version 1"), "{error}");
    let mut rest = 0;
    while reader.next_item().expect("version 1").is_some() {
        rest += 1;
    }
    assert_eq!(rest, written.offsets.len() - 3);
    assert!(reader.account().balances() && reader.account().other_version == 1);
}

/// The other ways into a damaged file: whatever the index says, a packet that is given is one that was written.
fn by_name(bytes: &[u8], written: &[Written], round: usize) {
    let mut reader = StreamReader::new(Cursor::new(bytes)).expect("memory");
    let catalog = reader.catalog().expect("memory").clone();
    for at in catalog.tensors.iter().flat_map(|t| &t.packets) {
        match reader.packet_at(*at).expect("one version") {
            Item::Packet { packet, .. } => assert!(written.iter().any(|w| w.name == packet.name), "round {round}"),
            Item::Damage(_) => {}
            other => unreachable!("round {round}: {other:?}"),
        }
    }
    if let Some(point) = reader.last_checkpoint().expect("memory") {
        assert_eq!(point.checkpoint, json!({"tokens": 12}), "round {round}");
    }
}

/// Numbers that are the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }
}

#[test]
fn the_codecs_write_the_bodies_that_the_golden_stream_has() {
    let written = golden();
    let mut reader = StreamReader::new(Cursor::new(&written.bytes)).expect("memory");
    let mut compared = vec![];
    while let Some(item) = reader.next_item().expect("memory") {
        let Item::Packet { packet, .. } = item else { panic!("{item:?}") };
        let Content::Tensor { meta, body } = packet.content else { continue };
        let mut values = vec![];
        decode(&meta, body, &mut values).expect("golden");
        // Compressed frames depend on the compressor; stored ones are the same everywhere.
        if matches!(meta.codec, Codec::None | Codec::F16 | Codec::Bf16) {
            let mut again = vec![];
            let params = Params { codec: meta.codec, error_bound: 0.0 };
            Encoder::default().encode(&params, meta.dtype, meta.row_len as usize, &values, &mut again);
            assert_eq!(again, body, "{}", packet.name);
            compared.push(meta.codec.name());
        }
    }
    assert_eq!(compared, ["none", "f16", "bf16", "none"]);
}
