//! Streams: packets taken apart, changed inside, and put together again with a right checksum, so that what is behind
//! it is reached.

use std::io::Cursor;

use llama_resource_instrumentation::analyze::stream::{Moments, Survey, labels};
use llama_resource_instrumentation::export::stream::{json, text};
use llama_resource_instrumentation::export::table::Style;
use llama_resource_instrumentation::export::units::printable_json;
use llama_resource_instrumentation::format::stream::{Content, Packet};
use llama_resource_instrumentation::read::stream::{Form, Item, StreamReader, decode};

use super::random::Random;
use super::unsafe_for_a_terminal;

/// A packet of any kind, in parts.
#[derive(Clone)]
struct Parts {
    name: Vec<u8>,
    body: Vec<u8>,
    version: u8,
    kind: u8,
    sequence: u64,
    metadata: Vec<u8>,
}

impl Parts {
    fn write(&self, out: &mut Vec<u8>) {
        let name = &self.name[..self.name.len().min(65_535)];
        let trailer = 4 + 4 + 10 + self.metadata.len() + 16;
        let (data, packet) = (self.body.len() + trailer, 6 + name.len() + self.body.len() + trailer);
        let start = out.len();
        out.extend((name.len() as u16).to_be_bytes());
        out.extend((data as u32).to_be_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(&self.body);
        out.extend([0x57, 0x2a, 0x4d, 0x18]);
        out.extend((trailer as u32 - 8).to_le_bytes());
        out.extend([self.version, self.kind]);
        out.extend(self.sequence.to_le_bytes());
        out.extend_from_slice(&self.metadata);
        out.extend((packet as u32).to_le_bytes());
        out.extend((trailer as u32).to_le_bytes());
        let crc = crc32c::crc32c(&out[start..]);
        out.extend(crc.to_le_bytes());
        out.extend(b"LRS1");
    }
}

fn parts_of(mut bytes: &[u8]) -> Vec<Parts> {
    let mut all = Vec::new();
    while let Some(frame) = bytes.first_chunk::<6>() {
        let name = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
        let data = u32::from_be_bytes([frame[2], frame[3], frame[4], frame[5]]) as usize;
        let Some((packet, rest)) = bytes.split_at_checked(6 + name + data) else { break };
        bytes = rest;
        let n = packet.len();
        let trailer = u32::from_le_bytes(packet[n - 12..n - 8].try_into().expect("four bytes")) as usize;
        let inner = &packet[n - trailer + 8..n - 16];
        all.push(Parts {
            name: packet[6..6 + name].to_vec(),
            body: packet[6 + name..n - trailer].to_vec(),
            version: inner[0],
            kind: inner[1],
            sequence: u64::from_le_bytes(inner[2..10].try_into().expect("eight bytes")),
            metadata: inner[10..].to_vec(),
        });
    }
    all
}

/// A stream that was never written.
pub fn make(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let base = random.of(corpus);
    let mut parts = if base.ends_with(b"LRS1") { parts_of(base) } else { Vec::new() };
    if parts.is_empty() || random.once_in(20) {
        let mut bytes = base.clone();
        random.damage(&mut bytes);
        return bytes;
    }
    for _ in 0..=*random.of(&[0, 0, 1, 3]) {
        let at = random.below(parts.len());
        match random.below(10) {
            0..=4 => random.damage(&mut parts[at].metadata),
            5 => random.damage(&mut parts[at].body),
            6 => random.damage(&mut parts[at].name),
            7 => parts[at].kind = *random.of(&[0, 1, 2, 3, 4, 5, 6, 7, 255]),
            8 => parts[at].sequence = random.edge(),
            _ if random.once_in(2) && parts.len() > 1 => _ = parts.remove(at),
            _ => {
                let other = random.of(&parts).clone();
                parts.insert(at, other);
            }
        }
    }
    if random.once_in(2) {
        (0..).zip(&mut parts).for_each(|(i, p)| p.sequence = i);
    }
    if random.once_in(30) {
        parts[0].version = random.next() as u8;
    }
    let mut out = Vec::new();
    parts.iter().for_each(|p| p.write(&mut out));
    match random.below(20) {
        0 => random.damage(&mut out),
        1 => out.truncate(random.below(out.len() + 1)),
        2 => out.resize(out.len() + random.below(5000), 0),
        3 => _ = out.splice(0..0, (0..random.below(200)).map(|i| (i * 37) as u8)),
        _ => {}
    }
    out
}

/// Everything that the tools do with a stream, but for writing files.
pub fn check(bytes: &[u8]) {
    let mut reader = StreamReader::new(Cursor::new(bytes)).expect("reads from memory do not fail");
    let form = reader.form();
    let (mut survey, mut values) = (Survey::default(), Vec::new());
    loop {
        let before = reader.offset();
        match reader.next_item() {
            Ok(None) => break,
            Ok(Some(Item::Packet { at, packet })) => {
                survey.add(&packet, at.len);
                look_at(&packet, &mut values);
            }
            Ok(Some(Item::Legacy { packet, .. })) => {
                values.clear();
                let _ = packet.decode(None, &mut values);
            }
            Ok(Some(Item::Damage(_) | Item::Unwritten(_))) | Err(_) => {}
        }
        assert!(reader.offset() > before, "stands still at byte {before}");
    }
    let account = reader.account().clone();
    assert!(account.balances() && account.bytes == bytes.len() as u64, "{account:?}");
    assert!(survey.recovered_ledger().is_exact());

    // Without the values: of a packet whose checksum is wrong only the ends were looked at, so this may give
    // more or fewer.
    let mut again = StreamReader::new(Cursor::new(bytes)).expect("as above");
    loop {
        let before = again.offset();
        match again.next_described() {
            Ok(None) => break,
            _ => assert!(again.offset() > before, "stands still at byte {before}"),
        }
    }
    assert!(again.account().balances() && again.account().bytes == bytes.len() as u64, "{:?}", again.account());
    let mut cataloged = StreamReader::new(Cursor::new(bytes)).expect("as above");
    let _ = cataloged.catalog();
    let _ = cataloged.end();
    let _ = cataloged.last_checkpoint();

    if form == Form::Described {
        let shown = text::tensors(survey.inventory.tensors().iter(), Style::default())
            + &text::codecs(survey.inventory.tensors(), Style::default())
            + &survey.ledger().map(|l| text::ledger(&l, Style::default())).unwrap_or_default();
        assert!(!unsafe_for_a_terminal(&shown), "{shown:?}");
        let json = json::survey("file", bytes.len() as u64, &survey, &account, true).to_string();
        let safe = printable_json(&json);
        assert!(!unsafe_for_a_terminal(&safe), "{safe:?}");
        let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(same(&safe), same(&json));
    }
}

/// Looks at the values as `cat`, `stats` and the exports do.
fn look_at(packet: &Packet<'_>, values: &mut Vec<u8>) {
    let Content::Tensor { meta, body } = &packet.content else { return };
    values.clear();
    if decode(meta, body, values).is_err() {
        assert!(values.is_empty(), "an error leaves nothing behind");
        return;
    }
    assert_eq!(values.len() as u64, meta.n_values() * meta.dtype.size() as u64);
    let rows = labels::labels(meta).count() as u64;
    assert_eq!(rows * u64::from(labels::width(meta)), meta.n_values(), "rows have values");
    let groups: u64 = meta.parts.iter().map(labels::groups).sum();
    assert!(groups <= rows);
    for part in &meta.parts {
        let in_groups = (0..labels::groups(part)).flat_map(|g| labels::rows_of_group(part, g)).map(|r| r.end - r.start);
        assert_eq!(in_groups.sum::<u64>(), labels::rows_of(part));
    }
    let mut moments = Moments::default();
    moments.add_bytes(meta.dtype, values);
    let figures = moments.finish();
    assert_eq!(figures.count, meta.n_values());
}
