//! The pipeline with threads of a host that help to compress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Fake, check, feed, feed_of, options, spec, spec_of, steps_in};
use crate::codec::{Codec, DType, Encoder, Params};
use crate::format::stream::{Content, Frame, Packet, Route};
use crate::pipeline::{Form, Job, Options, Piece, Pipeline, Place, Policy, Table, Totals, start};

/// Runs `body` while two threads of a host help at every step, as long as it takes.
fn helped(pipeline: &Pipeline, body: impl FnOnce()) {
    /// Also when `body` panics: its threads are waited for.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
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
        let _ends = Ends(&over);
        body();
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
        while feed_small(&pipeline, 1..10) > 0 || disk.platter().waiting == 0 {}
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

/// Steps of which each has another tensor than the one before: a packet for each.
fn feed_small(pipeline: &Pipeline, steps: std::ops::Range<u64>) -> u64 {
    let specs = ["ADD", "MUL", "SUB"].map(spec_of);
    steps.zip(specs.iter().cycle()).map(|(step, spec)| feed_of(pipeline, step..step + 1, spec)).sum()
}

/// How many packets the host's threads have put into the block themselves.
fn appended_by_the_host(pipeline: &Pipeline) -> u64 {
    pipeline.gang.as_ref().and_then(|gang| gang.desk()).map_or(0, |desk| desk.appended_by_the_host())
}

#[test]
fn a_host_that_helps_puts_small_packets_into_the_block_itself() {
    let disk = Fake::with(|p| p.delay = Duration::from_millis(1));
    let options = Options { may_be_helped: true, ..options(Policy::Block, 64) };
    let pipeline = start::start_with(options, Box::new(disk.clone())).unwrap();
    helped(&pipeline, || {
        feed_small(&pipeline, 1..1001);
        // Between its packets, and with them.
        for part in 10..15 {
            assert!(pipeline.flush(Duration::from_secs(30)));
            feed_small(&pipeline, part * 100 + 1..part * 100 + 101);
        }
    });
    assert!(appended_by_the_host(&pipeline) > 100, "{} of some 1200", appended_by_the_host(&pipeline));
    feed_small(&pipeline, 1501..1601);
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
    assert_eq!(steps_in(&disk.platter().bytes).0, (1..1601).collect::<Vec<_>>());
}

#[test]
fn what_a_host_has_put_into_the_block_is_in_the_file_soon() {
    let disk = Fake::default();
    let options = Options { may_be_helped: true, ..options(Policy::Block, 1024) };
    let pipeline = start::start_with(options, Box::new(disk.clone())).unwrap();
    helped(&pipeline, || {
        let in_file = || {
            let bytes = disk.platter().bytes.clone();
            let (mut at, mut count) = (0, 0);
            while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk()) {
                let end = at + Frame::read(*head).packet_len() as usize;
                if Packet::read(bytes.get(at..end).unwrap_or_default()).is_err() {
                    break;
                }
                (at, count) = (end, count + 1);
            }
            count
        };
        for part in 0..10 {
            // Nothing waits in the block, and the writer's thread has no reason to look again.
            assert!(pipeline.flush(Duration::from_secs(30)));
            let before = pipeline.written().0;
            // A whole segment, behind which nothing is gathered that would be told to settle.
            feed_small(&pipeline, part * 11 + 1..part * 11 + 12);
            let began = Instant::now();
            while in_file() < before + 11 {
                assert!(began.elapsed() < Duration::from_secs(20), "{} of {before} + 11", in_file());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    assert!(appended_by_the_host(&pipeline) > 0);
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
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

/// A hundred steps of three rows of 200 values; those that `encoded` says come with their rows encoded. Gives
/// descriptions and bodies.
fn rows_written(codec: Codec, encoded: impl Fn(u64) -> bool) -> (Totals, Vec<(String, Vec<u8>)>) {
    let disk = Fake::default();
    let params = Params { codec, error_bound: 1e-3 };
    let options = Options { params, ..options(Policy::Block, 32) };
    let pipeline = start::start_with(options, Box::new(disk.clone())).unwrap();
    let (specs, len) = ([spec()].into(), 3 * 200 * 4);
    for step in 1..101 {
        pipeline.account().seen(1, len as u64);
        let values: Vec<u8> = (0..600).flat_map(|i| ((step * 600 + i) as f32).sin().to_le_bytes()).collect();
        let mut rows = Vec::new();
        let mut form = Form::Values;
        if encoded(step)
            && let Some(codec) = pipeline.params().row_codec(DType::F32, 200, len)
        {
            let errors = Encoder::default().rows(pipeline.params(), codec, 200, &values, &mut rows);
            form = Form::Rows(rows.len(), codec, errors);
        }
        let from = if form == Form::Values { &values } else { &rows };
        // Two buffers: the piece says in which one it is.
        let mut data = vec![pipeline.reserve(1).unwrap(), pipeline.reserve_now(len + 8).unwrap()];
        data[1][8..8 + from.len()].copy_from_slice(from);
        let (ne, route) = ([200, 3, 1, 1], Route::Retain);
        let piece = Piece { spec: 0, len, ne, token_dim: 1, rows: None, route, completes: true };
        let table = Arc::new(Table::new(Arc::clone(&specs), vec![piece]));
        let places = vec![Place { buffer: 1, offset: 8, form }];
        pipeline.push(Job { step, t_ns: 0, table, places, row_sets: vec![], data, tokens: 3 });
    }
    let totals = pipeline.finish(Duration::from_secs(30));
    check(&totals);
    let (bytes, mut at, mut found) = (disk.platter().bytes.clone(), 0, Vec::new());
    while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk()) {
        let end = at + Frame::read(*head).packet_len() as usize;
        if let Content::Tensor { meta, body } = Packet::read(&bytes[at..end]).unwrap().content {
            found.push((format!("{meta:?}"), body.to_vec()));
        }
        at = end;
    }
    (totals, found)
}

#[test]
fn rows_that_were_encoded_before_make_the_same_packets() {
    for codec in [Codec::Bounded, Codec::Fast] {
        let (totals, alone) = rows_written(codec, |_| false);
        assert!(totals.clean && !alone.is_empty() && totals.account.captured == totals.account.seen);
        for encoded in [|_| true, |step| step % 3 == 1] {
            let (totals, found) = rows_written(codec, encoded);
            assert!(totals.clean && totals.account.captured == totals.account.seen);
            assert!(found == alone, "{codec:?}");
        }
    }
}

#[test]
fn encoded_rows_are_gathered_for_longer_than_values() {
    let params = Params { codec: Codec::Bounded, error_bound: 1e-3 };
    let (specs, len) = ([spec()].into(), 1 << 20);
    let values = vec![0; len];
    let mut rows = Vec::new();
    let errors = Encoder::default().rows(&params, Codec::Bounded, 1024, &values, &mut rows);
    let encoded = (Form::Rows(rows.len(), Codec::Bounded, errors), &rows);
    for ((form, from), wait) in [(encoded, false), ((Form::Values, &values), true)] {
        let options = Options { params, ..options(Policy::Block, 64) };
        let pipeline = start::start_with(options, Box::new(Fake::default())).unwrap();
        let packets = || pipeline.written().0;
        let (first, began) = (packets(), Instant::now());
        // A third of the memory in values, little of it in rows.
        for step in 1..13 {
            pipeline.account().seen(1, len as u64);
            let mut data = vec![pipeline.reserve(from.len()).unwrap()];
            data[0].copy_from_slice(from);
            let (ne, route) = ([1024, 256, 1, 1], Route::Retain);
            let piece = Piece { spec: 0, len, ne, token_dim: 1, rows: None, route, completes: true };
            let table = Arc::new(Table::new(Arc::clone(&specs), vec![piece]));
            let places = vec![Place { buffer: 0, offset: 0, form }];
            pipeline.push(Job { step, t_ns: 0, table, places, row_sets: vec![], data, tokens: 256 });
        }
        while wait && packets() == first && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        // After 0.8 s either may go on.
        let now = packets();
        assert!(began.elapsed() > Duration::from_millis(750) || (now > first) == wait, "{wait}: {now}");
        let totals = pipeline.finish(Duration::from_secs(30));
        check(&totals);
        assert!(totals.clean && totals.account.captured == totals.account.seen);
    }
}

#[test]
fn work_is_put_off_while_the_host_computes_and_there_is_room() {
    let disk = Fake::default();
    let options = Options { may_be_helped: true, ..options(Policy::Block, 64) };
    let pipeline = start::start_with(options, Box::new(disk)).unwrap();
    let packets = || pipeline.written().0;
    let written = |of: u64| {
        let began = Instant::now();
        while packets() < of && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(packets() >= of);
        began.elapsed()
    };
    let first = packets();
    pipeline.host_computes();
    // Some ten packets, a sixth of the memory.
    feed(&pipeline, 1..101);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(packets(), first, "written while the host computes");
    // Whoever waits for all to be written need not wait for the host.
    assert!(pipeline.flush(Duration::from_secs(20)));
    assert!(packets() > first);
    // It is over.
    let before = packets();
    feed(&pipeline, 101..201);
    pipeline.host_rests();
    written(before + 8);
    // It goes on and on.
    assert!(pipeline.flush(Duration::from_secs(20)));
    let before = packets();
    pipeline.host_computes();
    feed(&pipeline, 201..301);
    assert!(written(before + 8) > Duration::from_secs(1), "not put off");
    // The memory becomes short: a host that waits is not kept waiting.
    feed(&pipeline, 301..2301);
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
}

#[test]
fn a_flush_hurries_only_what_came_before_it() {
    let options = Options { may_be_helped: true, ..options(Policy::Block, 64) };
    let pipeline = start::start_with(options, Box::new(Fake::default())).unwrap();
    feed(&pipeline, 1..31);
    // The second finds nothing to do, and the workers asleep.
    for _ in 0..2 {
        assert!(pipeline.flush(Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = pipeline.written().0;
    pipeline.host_computes();
    feed(&pipeline, 31..131);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(pipeline.written().0, before, "written while the host computes");
    pipeline.host_rests();
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
}

#[test]
fn many_small_steps_lose_nothing_while_the_host_computes() {
    let disk = Fake::default();
    let options = Options { may_be_helped: true, ..options(Policy::Drop, 64) };
    let pipeline = start::start_with(options, Box::new(disk)).unwrap();
    pipeline.host_computes();
    let ne = [10, 10, 1, 1];
    let piece = Piece { spec: 0, len: 400, ne, token_dim: 1, rows: None, route: Route::Retain, completes: true };
    let table = Arc::new(Table::new([spec()].into(), vec![piece]));
    for step in 1..1001 {
        pipeline.account().seen(1, 400);
        // Three buffers a step, as two threads and what they leave take: more than there may be at a time.
        let data: Vec<_> = (0..3).filter_map(|_| pipeline.reserve_now(400)).collect();
        assert_eq!(data.len(), 3, "no buffer in step {step}");
        let places = vec![Place { buffer: 2, offset: 0, form: Form::Values }];
        let table = Arc::clone(&table);
        pipeline.push(Job { step, t_ns: 0, table, places, row_sets: vec![], data, tokens: 1 });
        std::thread::sleep(Duration::from_millis(1));
    }
    let totals = pipeline.finish(Duration::from_secs(30));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
}
