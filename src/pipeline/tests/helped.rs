//! The pipeline with threads of a host that help to compress.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Fake, check, feed, options, steps_in};
use crate::pipeline::{Options, Pipeline, Policy, start};

/// Runs `body` while two threads of a host help at every step, as long as it takes.
fn helped(pipeline: &Pipeline, body: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !is_over() {
                if pipeline.ask_for_help(2) {
                    pipeline.help();
                    pipeline.help_no_more();
                }
                std::thread::yield_now();
            }
        });
        s.spawn(|| {
            while !is_over() {
                pipeline.help();
                std::thread::yield_now();
            }
        });
        body();
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_host_that_helps_makes_the_same_stream() {
    let disk = Fake::with(|p| p.delay = Duration::from_millis(1));
    let options = Options { may_be_helped: true, ..options(Policy::Block, 64) };
    let pipeline = start::start_with(options, Box::new(disk.clone())).unwrap();
    helped(&pipeline, || _ = feed(&pipeline, 1..1001));
    assert!(pipeline.shared.courtesy.helped_ns() > 0, "nobody helped");
    // It goes away; what it has left is ours to make.
    feed(&pipeline, 1001..1101);
    assert!(pipeline.flush(Duration::from_secs(30)));
    feed(&pipeline, 1101..1201);
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
    assert_eq!(steps_in(&disk.platter().bytes).0, (1..1201).collect::<Vec<_>>());
}

#[test]
fn a_host_that_helps_never_waits_for_the_disk() {
    let disk = Fake::default();
    let options = Options { may_be_helped: true, ..options(Policy::Drop, 64) };
    let pipeline = start::start_with(options, Box::new(disk.clone())).unwrap();
    disk.platter().stuck = true;
    // Until nothing can go on: the outputs are all with the writer, and the disk does not answer.
    helped(&pipeline, || {
        while feed(&pipeline, 1..2) > 0 || disk.platter().waiting == 0 {}
        std::thread::sleep(Duration::from_millis(50));
        let before = pipeline.shared.courtesy.helped_ns();
        std::thread::sleep(Duration::from_millis(300));
        let after = pipeline.shared.courtesy.helped_ns();
        assert!(after > before, "a thread of the host waits");
    });
    disk.heal();
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.all_dropped().tensors > 0);
}

#[test]
fn a_host_that_helps_outlives_the_stream() {
    let disk = Fake::with(|p| p.fails_at = Some((9_000_000, libc::EIO)));
    let options = Options { may_be_helped: true, ..options(Policy::Drop, 64) };
    let pipeline = start::start_with(options, Box::new(disk)).unwrap();
    helped(&pipeline, || {
        while !pipeline.has_failed() {
            feed(&pipeline, 1..10);
        }
    });
    assert!(!pipeline.ask_for_help(2), "there is nothing to be made");
    let totals = pipeline.finish(Duration::from_secs(30));
    check(&totals);
    assert!(!totals.clean && totals.problem.is_some());
}
