//! The pipeline through its own interface: order, content and account for every policy, budget and end.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "pipeline/feed.rs"]
mod feed;

use std::time::{Duration, Instant};

use feed::{Feeder, PATIENCE, clear, options, read, scratch, tokens_file};
use llama_resource_instrumentation::codec::Codec;
use llama_resource_instrumentation::pipeline::{Pipeline, Policy, Reason};

#[test]
fn every_step_comes_back_in_order_whatever_the_codec_and_the_workers() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        for workers in [1, 3] {
            let path = scratch(&format!("exact-{}-{workers}", codec.name()));
            let mut options = options(&path, codec, 64, Policy::Block);
            options.workers = workers;
            let pipeline = Pipeline::start(options).unwrap();
            let mut feeder = Feeder::new(1);
            for step in 1..=300 {
                assert!(feeder.step(&pipeline, step));
            }
            let totals = pipeline.finish(PATIENCE);
            assert!(totals.clean && totals.account.is_exact(), "{totals:?}");
            assert_eq!(totals.account.captured, totals.account.seen);
            let stream = read(&path);
            assert_eq!(stream.torn, 0);
            assert_eq!((stream.packets, stream.good as u64), (totals.packets, totals.bytes));
            stream.assert_steps(1..=300, 1);
            stream.assert_tokens(1..=300);
            let end = stream.end.as_ref().expect("a clean end");
            assert_eq!(end["account"], totals.account.to_json());
            assert_eq!(end["packets"], stream.packets);
            assert_eq!(stream.headers[0]["session_id"], "test");
            feed::assert_reader_agrees(&path, &stream, true);
            clear(&path);
        }
    }
}

#[test]
fn steps_larger_than_the_budget_are_cut_and_put_together_again() {
    let path = scratch("large");
    let pipeline = Pipeline::start(options(&path, Codec::None, 16, Policy::Block)).unwrap();
    let mut feeder = Feeder::new(18);
    assert!(feeder.step(&pipeline, 1));
    for step in 2..=40 {
        // Prompts of 720 tokens: 1.7 MB a tensor, 0.5 MB a packet.
        assert!(feeder.step(&pipeline, step));
    }
    let totals = pipeline.finish(PATIENCE);
    assert!(totals.clean && totals.account.captured == totals.account.seen, "{totals:?}");
    let stream = read(&path);
    stream.assert_steps(1..=40, 18);
    assert!(stream.largest <= 1 << 19, "{}", stream.largest);
    clear(&path);
}

#[test]
fn policy_drop_never_waits_and_counts_what_it_drops() {
    let path = scratch("drop");
    let pipeline = Pipeline::start(options(&path, Codec::Zstd, 16, Policy::Drop)).unwrap();
    let mut feeder = Feeder::new(8);
    for step in 1..=400 {
        feeder.step(&pipeline, step);
    }
    let totals = pipeline.finish(PATIENCE);
    assert!(totals.clean && totals.account.is_exact(), "{totals:?}");
    assert_eq!(totals.account.all_dropped().bytes, feeder.refused);
    assert!(feeder.refused > 0 && !feeder.kept.is_empty());
    read(&path).assert_kept(&feeder.kept, 8);
    clear(&path);
}

#[test]
fn policy_sample_leaves_whole_steps_out() {
    let path = scratch("sample");
    let pipeline = Pipeline::start(options(&path, Codec::Zstd, 16, Policy::Sample)).unwrap();
    let mut feeder = Feeder::new(8);
    let whole = (1..=400).filter(|&step| feeder.step(&pipeline, step)).count();
    assert!((20..400).contains(&whole), "{whole} steps");
    let totals = pipeline.finish(PATIENCE);
    assert!(totals.clean && totals.account.is_exact(), "{totals:?}");
    let sampled = totals.account.dropped.iter().find(|(r, _)| *r == Reason::Sampled).expect("steps left out").1;
    assert!(sampled.bytes > feeder.refused, "{totals:?}");
    read(&path).assert_kept(&feeder.kept, 8);
    clear(&path);
}

#[test]
fn flushed_steps_are_in_the_file_and_others_soon() {
    let path = scratch("flush");
    let pipeline = Pipeline::start(options(&path, Codec::Lz4, 64, Policy::Block)).unwrap();
    let mut feeder = Feeder::new(1);
    for step in 1..=20 {
        assert!(feeder.step(&pipeline, step));
        if step % 5 == 0 {
            assert!(pipeline.flush(PATIENCE));
            let stream = read(&path);
            stream.assert_steps(1..=step, 1);
            stream.assert_tokens(1..=step);
            assert_eq!(stream.torn, 0);
        }
    }
    assert!(feeder.step(&pipeline, 21));
    let pushed = Instant::now();
    while read(&path).captured_steps().last() != Some(&21) {
        assert!(pushed.elapsed() < Duration::from_secs(3), "not in the file after {:?}", pushed.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(pipeline.finish(PATIENCE).clean);
    assert!(!pipeline.flush(PATIENCE) && pipeline.reserve(1).is_err());
    assert!(!feeder.step(&pipeline, 22), "nothing after the end");
    let after = pipeline.finish(PATIENCE);
    assert!(after.clean, "a second finish says the same");
    clear(&path);
}

#[test]
fn tokens_json_is_the_older_systems_document() {
    let path = scratch("tokens");
    let pipeline = Pipeline::start(options(&path, Codec::None, 64, Policy::Block)).unwrap();
    let mut feeder = Feeder::new(1);
    for step in 1..=2000 {
        assert!(feeder.step(&pipeline, step));
    }
    assert!(pipeline.finish(PATIENCE).clean);
    let doc: serde_json::Value = serde_json::from_slice(&std::fs::read(tokens_file(&path)).unwrap()).unwrap();
    assert_eq!(doc["total_tokens"], 2000);
    assert!(doc["capture_duration_seconds"].as_f64().unwrap() > 0.0);
    for (i, t) in doc["tokens"].as_array().unwrap().iter().enumerate() {
        let (want, text) = feed::token(i as u64 + 1);
        assert_eq!((t["token_index"].as_u64(), t["token_id"].as_i64()), (Some(i as u64), Some(want.token.into())));
        assert_eq!(t["token_text"].as_str(), text.as_deref());
        assert_eq!(t["probability"].as_f64().map(|p| p as f32), want.probability);
        assert_eq!(t["position"], want.pos);
    }
    clear(&path);
}

#[test]
fn a_file_with_content_is_never_overwritten() {
    let path = scratch("exists");
    std::fs::write(&path, b"something dear").unwrap();
    let e = Pipeline::start(options(&path, Codec::None, 64, Policy::Block)).unwrap_err().to_string();
    assert!(e.contains("not empty") && e.contains("resume"), "{e}");
    let mut resume = options(&path, Codec::None, 64, Policy::Block);
    resume.resume = true;
    let pipeline = Pipeline::start(resume).unwrap();
    assert!(Feeder::new(1).step(&pipeline, 1));
    assert!(Pipeline::start(options(&path, Codec::None, 64, Policy::Block)).is_err(), "in use");
    assert!(pipeline.finish(PATIENCE).clean);
    assert_eq!(std::fs::read(format!("{}.old", path.display())).unwrap(), b"something dear");
    read(&path).assert_steps([1], 1);
    clear(&path);
}

#[test]
fn paths_and_budgets_that_cannot_work_are_refused_with_a_remedy() {
    for (path, want) in [
        ("/nonexistent-folder/x.stream", "create the directory"),
        ("/dev/full", "No space left"),
        ("/dev", "failed"),
        ("/dev/null/x", "failed"),
    ] {
        let e = Pipeline::start(options(path.as_ref(), Codec::None, 64, Policy::Block)).unwrap_err().to_string();
        assert!(e.contains(path) && e.contains(want), "{e}");
    }
    let path = scratch("tiny");
    let e = Pipeline::start(options(&path, Codec::None, 15, Policy::Block)).unwrap_err().to_string();
    assert!(e.contains("too few") && e.contains("16 MiB"), "{e}");
    clear(&path);
}

#[test]
fn a_file_system_in_memory_does_as_well() {
    let folder = std::path::Path::new("/dev/shm");
    if !folder.is_dir() {
        return;
    }
    let path = folder.join(format!("lri-pipeline-{}.stream", std::process::id()));
    clear(&path);
    let pipeline = Pipeline::start(options(&path, Codec::Zstd, 32, Policy::Block)).unwrap();
    let mut feeder = Feeder::new(2);
    assert!((1..=100).all(|step| feeder.step(&pipeline, step)));
    assert!(pipeline.finish(PATIENCE).clean);
    let stream = read(&path);
    stream.assert_steps(1..=100, 2);
    assert_eq!(stream.torn, 0);
    clear(&path);
}

#[test]
fn tokens_never_go_into_the_stream() {
    let path = scratch("same");
    for tokens in [path.clone(), format!("{}.ckpt.json", path.display()).into()] {
        let mut options = options(&path, Codec::None, 32, Policy::Block);
        options.tokens_path = Some(tokens);
        assert!(Pipeline::start(options).unwrap_err().to_string().contains("same file"));
    }
    clear(&path);
}

#[test]
fn a_device_that_swallows_everything_is_a_stream_too() {
    let mut options = options("/dev/null".as_ref(), Codec::None, 64, Policy::Block);
    let tokens = scratch("swallowed");
    options.tokens_path = Some(tokens.clone());
    let pipeline = Pipeline::start(options).unwrap();
    let mut feeder = Feeder::new(4);
    assert!((1..=50).all(|step| feeder.step(&pipeline, step)));
    let totals = pipeline.finish(PATIENCE);
    assert!(totals.clean && totals.account.captured == totals.account.seen, "{totals:?}");
    clear(&tokens);
}

fn fifo(path: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn pipes_and_links_under_the_names_of_our_files_are_neither_waited_for_nor_followed() {
    let path = scratch("foreign");
    let victim = path.with_extension("victim");
    std::fs::write(&victim, b"somebody's").unwrap();
    let checkpoint = std::path::PathBuf::from(format!("{}.ckpt.json", path.display()));
    let temporary = std::path::PathBuf::from(format!("{}.ckpt.json.tmp", path.display()));
    let began = Instant::now();
    for with_pipes in [true, false] {
        for file in [&tokens_file(&path), &checkpoint, &temporary] {
            if with_pipes { fifo(file) } else { std::os::unix::fs::symlink(&victim, file).unwrap() }
        }
        let mut options = options(&path, Codec::None, 32, Policy::Block);
        (options.resume, options.checkpoint_tokens) = (true, Some(10));
        let pipeline = Pipeline::start(options).unwrap();
        let mut feeder = Feeder::new(1);
        assert!((1..=50).all(|step| feeder.step(&pipeline, step)));
        assert!(pipeline.flush(PATIENCE), "a checkpoint was written meanwhile");
        let totals = pipeline.finish(PATIENCE);
        assert!(totals.clean && totals.account.captured == totals.account.seen, "{totals:?}");
        let stream = read(&path);
        stream.assert_steps(1..=50, 1);
        stream.assert_tokens(1..=50);
        assert!(!stream.checkpoints.is_empty());
        assert_eq!(std::fs::read(&victim).unwrap(), b"somebody's");
        clear(&path);
    }
    // A pipe in place of the stream itself, with nobody at its other end.
    fifo(&path);
    for result in
        [Pipeline::check(&path, false), Pipeline::start(options(&path, Codec::None, 32, Policy::Block)).map(drop)]
    {
        assert!(result.unwrap_err().to_string().contains("neither a file nor a device"));
    }
    assert!(began.elapsed() < Duration::from_secs(20), "waited for a pipe: {:?}", began.elapsed());
    clear(&path);
    std::fs::remove_file(victim).unwrap();
}

#[test]
fn two_streams_never_write_one_file_of_tokens() {
    let (path, other, shared) = (scratch("twins"), scratch("twins-b"), tokens_file(&scratch("twins-shared")));
    let start = |path: &std::path::Path| {
        let mut options = options(path, Codec::None, 32, Policy::Block);
        options.tokens_path = Some(shared.clone());
        Pipeline::start(options).unwrap()
    };
    let pipelines = [start(&path), start(&other)];
    for pipeline in &pipelines {
        let mut feeder = Feeder::new(1);
        assert!((1..=2000).all(|step| feeder.step(pipeline, step)));
        assert!(pipeline.flush(PATIENCE));
    }
    for (pipeline, path) in pipelines.iter().zip([&path, &other]) {
        assert!(pipeline.finish(PATIENCE).clean);
        // Both streams hold their tokens, whoever has the document.
        read(path).assert_tokens(1..=2000);
    }
    let doc: serde_json::Value = serde_json::from_slice(&std::fs::read(&shared).unwrap()).unwrap();
    assert_eq!(doc["tokens"].as_array().map_or(0, Vec::len), 2000, "the document of the first, whole");
    for path in [&path, &other] {
        clear(path);
    }
    std::fs::remove_file(shared).unwrap();
}
