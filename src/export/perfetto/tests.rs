//! Traces read back with a small decoder: what begins ends, names and times are those of the log.

use std::collections::BTreeMap;

use super::{Export, Written};
use crate::read::Log;

const ID: &str = "resource_sess_1";

/// Fields of a message: number and value.
#[derive(Clone, Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return value;
        }
    }
    unreachable!("longer than a number")
}

fn decode(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (value, rest) = bytes.split_at(8);
                bytes = rest;
                Field::Number(u64::from_le_bytes(value.try_into().unwrap()))
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(value.to_vec())
            }
            wire => unreachable!("wire type {wire}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn number(fields: &[(u64, Field)], wanted: u64) -> Option<u64> {
    fields.iter().find_map(|(n, f)| if let (true, Field::Number(v)) = (*n == wanted, f) { Some(*v) } else { None })
}

fn messages(fields: &[(u64, Field)], wanted: u64) -> Vec<Vec<u8>> {
    let found = fields.iter().filter_map(|(n, f)| match f {
        Field::Bytes(bytes) if *n == wanted => Some(bytes.clone()),
        _ => None,
    });
    found.collect()
}

fn text(fields: &[(u64, Field)], wanted: u64) -> Option<String> {
    messages(fields, wanted).pop().map(|b| String::from_utf8(b).unwrap())
}

/// Name of a track.
fn named(track: &[u8]) -> Option<String> {
    text(&decode(track), 2)
}

/// Events of each track by its name, in order of time: `+name@t`, `-@t`, `!name@t`, `=value@t`.
fn tracks(trace: &[u8]) -> BTreeMap<String, Vec<String>> {
    let (mut names, mut last, mut default) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut strings, mut events) = (BTreeMap::new(), Vec::new());
    for packet in messages(&decode(trace), 1) {
        let packet = decode(&packet);
        let sequence = number(&packet, 10).unwrap();
        let said = number(&packet, 8).unwrap();
        let t = match number(&packet, 58) {
            Some(clock) => {
                assert_eq!(clock, 3);
                said
            }
            None => {
                let at = last.get_mut(&sequence).unwrap();
                *at += said;
                *at
            }
        };
        if !messages(&packet, 6).is_empty() {
            assert_eq!(number(&packet, 13), Some(3));
            last.insert(sequence, t);
        }
        for defaults in messages(&packet, 59) {
            for event in messages(&decode(&defaults), 11) {
                default.insert(sequence, number(&decode(&event), 11).unwrap());
            }
        }
        for fresh in messages(&packet, 12) {
            for name in messages(&decode(&fresh), 2) {
                let name = decode(&name);
                strings.insert((sequence, number(&name, 1).unwrap()), text(&name, 2).unwrap());
            }
        }
        for track in messages(&packet, 60) {
            let track = decode(&track);
            let thread = messages(&track, 4).pop().and_then(|t| text(&decode(&t), 5));
            names.insert(number(&track, 1).unwrap(), text(&track, 2).or(thread).unwrap_or_default());
        }
        for event in messages(&packet, 11) {
            let event = decode(&event);
            let track = number(&event, 11).unwrap_or_else(|| default[&sequence]);
            let name = text(&event, 23).or_else(|| strings.get(&(sequence, number(&event, 10)?)).cloned());
            let name = name.unwrap_or_default();
            let shown = match number(&event, 9).unwrap() {
                1 => format!("+{name}@{t}"),
                2 => format!("-@{t}"),
                3 => format!("!{name}@{t}"),
                _ => format!("={}@{t}", number(&event, 30).or(number(&event, 44)).unwrap()),
            };
            events.push((t, track, shown));
        }
    }
    events.sort_by_key(|e| e.0);
    let mut tracks = BTreeMap::<String, Vec<String>>::new();
    for (_, track, shown) in events {
        tracks.entry(names[&track].clone()).or_default().push(shown);
    }
    tracks
}

fn export(text: &str) -> (Vec<u8>, Written) {
    let (mut log, mut bytes) = (Log::new(text.as_bytes()), Vec::new());
    let mut export = Export::new(&mut bytes);
    while let Some(entry) = log.next_entry().unwrap() {
        export.add(entry.session, &entry.line).unwrap();
    }
    assert_eq!(log.account().unread_lines(), 0, "{:?}", log.account().bad);
    let written = export.finish().unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    (bytes, written)
}

fn line(event: &str, t_ns: u64, fields: &str) -> String {
    format!(r#"{{"event":"{event}","timestamp":"0","session_id":"{ID}","t_ns":{t_ns},{fields}}}"#) + "\n"
}

fn start(t_ns: u64, unix_us: u64) -> String {
    let fields = format!(
        r#""level":"VERBOSE","unix_us":{unix_us},"log_version":1,"library_version":"0.1.0","mode":"preload","pid":7,"program":"llama-server","rate_limit":null"#
    );
    line("resource_session_start", t_ns, &fields)
}

fn step(number: u64, t: u64) -> String {
    let component = format!(r#""component_type":"mlp","layer_id":0,"step":{number}"#);
    let operation = |t: u64, name: &str| {
        let fields = format!(
            r#""resource_id":"","operation":"{name}","component_type":"mlp","layer_id":0,"input_tensors":[],"output_shape":[],"step":{number},"tensor":"x","precision":"f32","bytes_read":0,"bytes_written":0,"fused_with":[],"duration_us":1.5"#
        );
        line("compute_execution", t, &fields)
    };
    line("layer_begin", t, &format!(r#""layer_id":0,"step":{number}"#))
        + &line("component_begin", t, &component)
        + &operation(t, "mul_mat")
        + &operation(t + 2_000, "add")
        + &line("component_end", t + 3_500, &(component + r#","duration_us":3.5"#))
        + &line(
            "layer_end",
            t + 3_500,
            &format!(
                r#""layer_id":0,"duration_us":3.5,"layer_memory_mb":0.0,"layer_compute_gflops":0.0,"memory_operations":0,"compute_operations":2,"step":{number}"#
            ),
        )
}

fn request(id: u64, seq: i32, begin: u64, end: u64) -> String {
    let ms = (end - begin) as f64 / 1e6;
    line("request_start", begin, &format!(r#""request_id":{id},"seq_id":{seq},"context_id":1,"source":"launch""#))
        + &line(
            "request_end",
            end,
            &format!(
                r#""request_id":{id},"seq_id":{seq},"context_id":1,"prompt_tokens":9,"cached_tokens":4,"generated_tokens":3,"ttft_ms":0.02,"prompt_ms":0.01,"wait_ms":0.01,"duration_ms":{ms},"outcome":"eog","shifted_tokens":0"#
            ),
        )
}

fn summary(t: u64, interval_ms: f64, step: u64, steps: u64) -> String {
    let phase = r#"{"steps":0,"tokens":0,"graph_us":0.0,"flops":0}"#;
    let fields = format!(
        r#""interval_ms":{interval_ms},"step":{step},"steps":{steps},"timed_steps":0,"sampled_steps":0,"graphs_reused":0,"graphs_built":0,"prefill":{phase},"decode":{phase},"timed_graph_us":0.0,"barrier_us":0.0,"other_us":0.0,"component_flows":0,"ops":[],"components":[],"layers":[]"#
    );
    line("step_summary", t, &fields)
}

#[test]
fn a_session_is_steps_within_steps_requests_and_what_was_not_sampled() {
    let text = start(1_000, 1)
        + &request(1, 0, 100_000, 200_000)
        + &step(3, 150_000)
        + &step(5, 170_000)
        + &summary(300_000, 0.2, 6, 6);
    let (bytes, written) = export(&text);
    let tracks = tracks(&bytes);
    let one = |t: u64| {
        format!(
            "+step@{t} +layer 0@{t} +mlp@{t} +mul_mat@{t} -@{} +add@{} -@{} -@{} -@{} -@{}",
            t + 1_500,
            t + 2_000,
            t + 3_500,
            t + 3_500,
            t + 3_500,
            t + 3_500
        )
    };
    let gap = |n: u64, s: &str, from: u64, to: u64| format!("+not sampled ({n} step{s})@{from} -@{}", to - 1);
    let want = [
        gap(2, "s", 100_000, 150_000),
        one(150_000),
        gap(1, "", 153_500, 170_000),
        one(170_000),
        gap(1, "", 173_500, 300_000),
    ];
    assert_eq!(tracks["compute 0"].join(" "), want.join(" "));
    assert_eq!(
        tracks["slot 0"].join(" "),
        "+request 1@100000 +wait@100000 -@110000 +prefill@110000 -@120000 +decode@120000 -@200000 -@200000"
    );
    assert_eq!((written.slices, written.steps), (2 * 5 + 3 + 4, 2));
}

#[test]
fn overlapping_requests_of_a_slot_get_tracks_of_their_own_and_those_without_end_get_one() {
    let open = line("request_start", 90_000, r#""request_id":9,"seq_id":1,"context_id":1,"source":"launch""#);
    let text = start(1_000, 1) + &open + &request(1, 0, 100_000, 200_000) + &request(2, 0, 150_000, 250_000);
    let (bytes, written) = export(&text);
    let all = messages(&decode(&bytes), 1).iter().flat_map(|p| messages(&decode(p), 60)).collect::<Vec<_>>();
    let slots = all.iter().filter(|t| named(t) == Some("slot 0".to_owned())).count();
    assert_eq!((slots, written.slices), (2, 9));
    assert_eq!(tracks(&bytes)["slot 1"].join(" "), "+request 9@90000 -@250000");
}

#[test]
fn memory_is_a_sum_by_kind_and_never_below_nothing() {
    let allocated = |t: u64, id: u64, bytes: u64| {
        let fields = format!(
            r#""buffer_id":{id},"kind":"weights","size_bytes":{bytes},"backend":"CPU","device":null,"memory_type":"ram","live_bytes":0"#
        );
        line("buffer_allocation", t, &fields)
    };
    let freed = |t: u64, bytes: u64| {
        let fields = format!(r#""buffer_id":0,"kind":"weights","size_bytes":{bytes},"backend":"CPU","live_bytes":0"#);
        line("buffer_free", t, &fields)
    };
    let text = start(1, 1) + &allocated(10, 1, 100) + &allocated(5, 2, 50) + &freed(20, 150) + &freed(30, 8);
    assert_eq!(tracks(&export(&text).0)["weights CPU"].join(" "), "=100@10 =150@10 =0@20 =0@30");
}

#[test]
fn a_session_after_a_restart_of_the_machine_is_placed_by_unix_time() {
    let text = start(9_000_000_000, 50_000_000) + &start(1_000, 60_000_000) + &request(1, 0, 500_000, 600_000);
    let (bytes, written) = export(&text);
    // Ten seconds after the first session, less the clock's 1 us and plus 500.
    assert_eq!(tracks(&bytes)["slot 0"][0], format!("+request 1@{}", 19_000_000_000_u64 + 499_000));
    assert_eq!(written.steps, 0);
}

#[test]
fn no_line_is_too_strange_and_nothing_makes_nothing() {
    assert_eq!(export(""), (Vec::new(), Written::default()));
    let text = step(u64::MAX, u64::MAX - 10_000)
        + &step(0, 0)
        + &summary(u64::MAX, 1e300, u64::MAX, u64::MAX)
        + &summary(0, -1.0, 0, u64::MAX)
        + &request(u64::MAX, -1, 0, u64::MAX)
        + &start(u64::MAX, u64::MAX)
        + &step(7, 3);
    let (bytes, written) = export(&text);
    assert!(written.steps == 3 && !tracks(&bytes).is_empty());
}
