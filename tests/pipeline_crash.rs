//! `kill -9` at random moments, and resuming: what was flushed is there, and the end is that of a
//! run nobody interrupted.
//!
//! Forty kills by default; LRI_KILLS=500 for as many. LRI_SEED repeats a run (the moments of the kills differ
//! all the same).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "pipeline/child.rs"]
mod child;
#[path = "pipeline/feed.rs"]
mod feed;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use feed::{Feeder, PATIENCE, clear, noise, options, read, scratch, tokens_file};
use llama_resource_instrumentation::codec::Codec;
use llama_resource_instrumentation::format::stream::{Content, Packet};
use llama_resource_instrumentation::pipeline::{Pipeline, Policy, Resumed};
use llama_resource_instrumentation::read::stream::{Item, StreamReader};

const STEPS: u64 = 400;
const EVERY: u64 = 30;

fn resume(path: &Path, codec: Codec) -> Pipeline {
    let mut options = options(path, codec, 32, Policy::Block);
    (options.resume, options.checkpoint_tokens, options.workers) = (true, Some(EVERY), 2);
    Pipeline::start(options).unwrap()
}

fn flushed_file(path: &Path) -> PathBuf {
    path.with_extension("flushed")
}

#[test]
#[ignore = "the child of the test below"]
fn writes_until_it_is_killed() {
    let path = PathBuf::from(std::env::var_os("LRI_CRASH_PATH").expect("run by the test below"));
    let seed: u64 = std::env::var("LRI_CRASH_SEED").unwrap().parse().unwrap();
    let codec = Codec::parse(&std::env::var("LRI_CRASH_CODEC").unwrap()).unwrap();
    let pipeline = resume(&path, codec);
    let mut feeder = Feeder::new(1);
    let first = pipeline.resumed().map_or(1, |r| r.last_step + 1);
    for step in first..=STEPS {
        assert!(feeder.step(&pipeline, step));
        match noise(seed ^ step) % 40 {
            0..4 => {
                assert!(pipeline.flush(PATIENCE));
                std::fs::write(flushed_file(&path), step.to_string()).unwrap();
            }
            4..6 => std::thread::sleep(Duration::from_millis(7)),
            _ => {}
        }
    }
    assert!(pipeline.finish(PATIENCE).clean);
}

/// What a killed child left: whole packets in order, at least up to what it had flushed.
fn check_killed(path: &Path) {
    if std::fs::metadata(path).map_or(0, |m| m.len()) == 0 {
        return;
    }
    let stream = read(path);
    // A child is killed while it writes the number, too.
    let flushed = std::fs::read_to_string(flushed_file(path)).ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    stream.assert_prefix(flushed, 1);
    assert!(stream.tokens.len() as u64 >= flushed);
    stream.assert_tokens(1..=stream.tokens.len() as u64);
}

fn check_end(path: &Path, resumes: u64, texts: bool) {
    let stream = read(path);
    assert_eq!(stream.torn, 0);
    stream.assert_steps(1..=STEPS, 1);
    stream.assert_tokens(1..=STEPS);
    let end = stream.end.as_ref().expect("a clean end");
    assert_eq!(end["packets"], stream.packets);
    let account = &end["account"];
    assert_eq!(account["seen"], account["captured"], "nothing was seen twice or lost: {account}");
    assert_eq!(stream.headers.len() as u64, resumes + 1);
    for (i, header) in stream.headers.iter().enumerate().skip(1) {
        assert_eq!((&header["resumed"], &header["resume_count"]), (&true.into(), &i.into()));
    }
    let doc: serde_json::Value = serde_json::from_slice(&std::fs::read(tokens_file(path)).unwrap()).unwrap();
    assert_eq!(doc["total_tokens"], STEPS);
    for (i, t) in doc["tokens"].as_array().unwrap().iter().enumerate() {
        let (want, text) = feed::token(i as u64 + 1);
        assert_eq!((&t["token_index"], &t["token_id"]), (&i.into(), &want.token.into()));
        assert!(!texts || t["token_text"].as_str() == text.as_deref());
    }
    feed::assert_reader_agrees(path, &stream, true);
    assert!(!Path::new(&format!("{}.ckpt.json", path.display())).exists(), "removed after a clean end");
}

/// What may happen to the files between a kill and the next start.
fn disturb(path: &Path, how: u64) -> bool {
    let checkpoint = format!("{}.ckpt.json", path.display());
    let append = |bytes: &[u8]| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    };
    match how {
        0 => _ = std::fs::remove_file(checkpoint),
        1 => std::fs::write(checkpoint, b"{\"version\": 1, \"total_to").unwrap(),
        2 => append(&[0; 5000]),
        3 => {
            _ = std::fs::remove_file(checkpoint);
            append(b"\x00\x07\x00\x00\x10\x00l_out-0 torn, with an end mark LRS1LRS1 and more");
        }
        4 => {
            let _ = std::fs::remove_file(tokens_file(path));
            return false;
        }
        _ => {}
    }
    true
}

/// How often the stream will have been resumed when it is resumed now: its own last checkpoint counts, whatever the
/// file beside it says, which is at most one checkpoint behind. A stream that was killed before its first
/// checkpoint begins anew.
fn resumes_next(path: &Path) -> u64 {
    let stream = read(path);
    let own: Vec<u64> = stream.checkpoints.iter().filter_map(|c| c["packets"].as_u64()).collect();
    let saved = std::fs::read(checkpoint_of(path)).ok();
    let saved: Option<serde_json::Value> = saved.and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(next) = saved.filter(|_| !own.is_empty()).map(|saved| saved["next_packet"].as_u64().unwrap()) {
        assert!(own.iter().rev().take(2).any(|&n| n == next), "{next} is not one of the last two of {own:?}");
    }
    stream.checkpoints.last().map_or(0, |_| stream.resumes_at_checkpoint() + 1)
}

#[test]
fn killed_at_random_moments_and_resumed_it_is_as_if_nothing_had_happened() {
    let number = |name, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (kills, seed) = (number("LRI_KILLS", 40), number("LRI_SEED", u64::from(std::process::id())));
    let path = scratch("crash");
    let (mut killed, mut streams, mut resumes, mut round, mut texts) = (0, 0, 0, 0, true);
    while killed < kills {
        round += 1;
        let codec = [Codec::None, Codec::Zstd, Codec::Lz4][streams % 3];
        let environment = [
            ("LRI_CRASH_PATH", path.to_str().unwrap()),
            ("LRI_CRASH_SEED", &round.to_string()),
            ("LRI_CRASH_CODEC", codec.name()),
        ];
        let mut command = child::command("writes_until_it_is_killed", &environment);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // A run takes about a second when it is left alone.
        std::thread::sleep(Duration::from_micros(noise(seed ^ round) % 400_000));
        let ended = child.try_wait().unwrap();
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        if let Some(status) = ended {
            assert!(status.success(), "round {round}, seed {seed}: {message}");
            check_end(&path, resumes, texts);
            streams += 1;
            (resumes, texts) = (0, true);
            clear(&path);
            let _ = std::fs::remove_file(flushed_file(&path));
            continue;
        }
        assert!(!message.contains("panicked"), "round {round}, seed {seed}: {message}");
        killed += 1;
        check_killed(&path);
        if path.exists() && std::fs::metadata(&path).unwrap().len() > 0 {
            texts &= disturb(&path, noise(round) % 10);
            resumes = resumes_next(&path);
        }
        let _ = std::fs::remove_file(flushed_file(&path));
    }
    let environment =
        [("LRI_CRASH_PATH", path.to_str().unwrap()), ("LRI_CRASH_SEED", "0"), ("LRI_CRASH_CODEC", "zstd")];
    child::run("writes_until_it_is_killed", &environment);
    check_end(&path, resumes, texts);
    println!("{killed} kills, {} streams, seed {seed}", streams + 1);
    clear(&path);
    let _ = std::fs::remove_file(flushed_file(&path));
}

#[test]
fn a_stream_that_ended_cleanly_can_be_gone_on_with() {
    let path = scratch("after-end");
    for (run, steps) in [(0, 1..=100), (1, 101..=250), (2, 251..=300)] {
        let pipeline = resume(&path, Codec::Zstd);
        let resumed = pipeline.resumed();
        assert_eq!(resumed.map_or(0, |r| r.count), run);
        if let Some(Resumed { last_step, chosen_tokens, .. }) = resumed {
            assert_eq!((last_step + 1, chosen_tokens), (*steps.start(), last_step));
        }
        let mut feeder = Feeder::new(1);
        let end = *steps.end();
        assert!(steps.into_iter().all(|step| feeder.step(&pipeline, step)));
        let totals = pipeline.finish(PATIENCE);
        assert!(totals.clean && totals.account.is_exact());
        let stream = read(&path);
        stream.assert_steps(1..=end, 1);
        assert_eq!(stream.end.expect("an end")["account"], totals.account.to_json());
        assert_eq!(stream.good as u64, std::fs::metadata(&path).unwrap().len());
    }
    clear(&path);
}

/// A stream as a kill leaves it, with its checkpoint's file: nothing is closed.
fn left_behind(path: &Path, steps: u64) {
    let pipeline = resume(path, Codec::None);
    let mut feeder = Feeder::new(1);
    assert!((1..=steps).all(|step| feeder.step(&pipeline, step)));
    assert!(pipeline.flush(PATIENCE));
    let _ = std::mem::ManuallyDrop::new(pipeline);
    assert!(checkpoint_of(path).exists(), "written ahead of the flush");
}

fn checkpoint_of(path: &Path) -> PathBuf {
    format!("{}.ckpt.json", path.display()).into()
}

/// Where the stream's own checkpoints stand, the last step of each, and where its packet ends.
fn checkpoints(path: &Path) -> Vec<(usize, u64, u64)> {
    let mut reader = StreamReader::open(path).unwrap();
    let mut found = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        if let Item::Packet { at, packet: Packet { content: Content::Checkpoint(body), .. } } = item {
            found.push((at.offset as usize + 60, body["last_step"].as_u64().unwrap(), at.end()));
        }
    }
    found
}

#[test]
fn without_a_good_checkpoint_file_the_streams_own_last_checkpoint_counts() {
    let (path, copy) = (scratch("own"), scratch("own-copy"));
    left_behind(&path, 200);
    let own = checkpoints(&path);
    let [.., before, last] = own[..] else { panic!("{own:?}") };
    assert!(before.1 < last.1 && last.1 <= 200);
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(checkpoint_of(&path)).unwrap()).unwrap();
    // The document with one field changed is still a good document.
    let altered = |field: &str, value: serde_json::Value| {
        let mut doc = good.clone();
        doc[field] = value;
        Some(doc.to_string().into_bytes())
    };
    let text = good.to_string().into_bytes();
    for (name, file, broken, expected) in [
        ("untouched", Some(text.clone()), None, last.1),
        ("missing", None, None, last.1),
        ("empty", Some(Vec::new()), None, last.1),
        ("cut", Some(text[..text.len() / 2].to_vec()), None, last.1),
        ("another offset", altered("stream_offset", 77.into()), None, last.1),
        ("behind the end", altered("stream_offset", (1_u64 << 50).into()), None, last.1),
        ("another packet", altered("next_packet", 5.into()), None, last.1),
        ("another step", altered("last_step", 3.into()), None, last.1),
        ("another account", altered("account", serde_json::json!({})), None, last.1),
        ("missing, and the packet damaged", None, Some(last.0), before.1),
        ("good, and the packet damaged", Some(text.clone()), Some(last.0), before.1),
    ] {
        // A copy: the stream itself is locked by the pipeline that was left behind.
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = broken {
            bytes[at] ^= 1;
        }
        std::fs::write(&copy, bytes).unwrap();
        if let Some(file) = file {
            std::fs::write(checkpoint_of(&copy), file).unwrap();
        }
        let pipeline = resume(&copy, Codec::None);
        let resumed = pipeline.resumed().unwrap_or_else(|| panic!("{name}: begun anew"));
        assert_eq!(resumed.last_step, expected, "{name}");
        let mut feeder = Feeder::new(1);
        assert!((expected + 1..=250).all(|step| feeder.step(&pipeline, step)), "{name}");
        let totals = pipeline.finish(PATIENCE);
        assert!(totals.clean && totals.account.is_exact() && totals.account.seen == totals.account.captured, "{name}");
        let stream = read(&copy);
        stream.assert_steps(1..=250, 1);
        stream.assert_tokens(1..=250);
        feed::assert_reader_agrees(&copy, &stream, true);
        clear(&copy);
    }
    clear(&path);
}

#[test]
#[ignore = "the child of the test below"]
fn resumes_and_says_where() {
    let path = PathBuf::from(std::env::var_os("LRI_CRASH_PATH").expect("run by the test below"));
    let pipeline = resume(&path, Codec::None);
    println!("goes on behind {}", pipeline.resumed().map_or(0, |r| r.last_step));
    assert!(pipeline.finish(PATIENCE).clean);
}

#[test]
fn an_older_checkpoint_file_undoes_no_newer_checkpoint_and_what_is_cut_off_is_said() {
    let (path, copy) = (scratch("stale"), scratch("stale-copy"));
    left_behind(&path, 200);
    let own = checkpoints(&path);
    assert!(own.len() > 3, "{own:?}");
    let last = own[own.len() - 1].1;
    // The file as it was at each checkpoint: what a disk that was full since then has kept. The packet says all but
    // its own place.
    for (body, end) in read(&path).checkpoints.iter().zip(&own) {
        let mut saved = body.clone();
        saved["stream_offset"] = end.2.into();
        std::fs::copy(&path, &copy).unwrap();
        std::fs::write(checkpoint_of(&copy), saved.to_string()).unwrap();
        let text = child::run("resumes_and_says_where", &[("LRI_CRASH_PATH", copy.to_str().unwrap())]);
        assert!(text.contains(&format!("goes on behind {last}\n")), "the file of step {}: {text}", end.1);
        // Steps after the last checkpoint are lost, and said.
        assert!(text.contains("cut off") && text.contains(&format!("of step {last}: ")), "{text}");
        // Nothing stands behind the checkpoint of a stream that has ended.
        let text = child::run("resumes_and_says_where", &[("LRI_CRASH_PATH", copy.to_str().unwrap())]);
        assert!(text.contains(&format!("goes on behind {last}\n")) && !text.contains("cut off"), "{text}");
        clear(&copy);
    }
    clear(&path);
}

#[test]
fn a_file_full_of_end_marks_is_given_up_soon() {
    let path = scratch("marks");
    std::fs::write(&path, llama_resource_instrumentation::format::stream::END_MARK.repeat(8 << 20)).unwrap();
    let began = std::time::Instant::now();
    let pipeline = resume(&path, Codec::None);
    assert!(pipeline.resumed().is_none() && began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(pipeline.finish(PATIENCE).clean);
    clear(&path);
}

#[test]
fn a_checkpoint_of_another_stream_is_not_believed() {
    let (path, other, copy) = (scratch("mine"), scratch("other"), scratch("copy"));
    left_behind(&path, 200);
    left_behind(&other, 120);
    // A copy: the stream itself is still locked by the pipeline that was left behind.
    std::fs::copy(&path, &copy).unwrap();
    std::fs::copy(checkpoint_of(&other), checkpoint_of(&copy)).unwrap();
    let pipeline = resume(&copy, Codec::None);
    let last = pipeline.resumed().expect("its own checkpoint").last_step;
    assert!((171..=200).contains(&last), "{last}");
    let mut feeder = Feeder::new(1);
    assert!((last + 1..=250).all(|step| feeder.step(&pipeline, step)));
    assert!(pipeline.finish(PATIENCE).clean);
    read(&copy).assert_steps(1..=250, 1);
    for path in [&path, &other, &copy] {
        clear(path);
    }
}
