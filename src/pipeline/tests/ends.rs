//! Hosts that end a stream in the middle of their steps, and disks that do not let it end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Fake, check, feed, options, start_with, steps_in};
use crate::pipeline::{Job, Policy, Reason, Table};

/// What the account in the stream's end says: seen, and the sum of everything that became of it.
fn balance(account: &Value) -> ([u64; 2], [u64; 2]) {
    let of = |v: &Value| ["tensors", "bytes"].map(|n| v[n].as_u64().unwrap_or_default());
    let mut sum = of(&account["captured"]);
    for part in ["skipped", "dropped"] {
        for amount in account[part].as_object().into_iter().flat_map(|reasons| reasons.values()) {
            sum = [sum[0] + of(amount)[0], sum[1] + of(amount)[1]];
        }
    }
    (of(&account["seen"]), sum)
}

#[test]
fn a_step_in_flight_at_the_end_is_stopped_and_the_file_says_so() {
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    feed(&pipeline, 1..20);
    let in_step = pipeline.account().step_begins();
    pipeline.account().seen(3, 300);
    pipeline.account().skipped(Reason::Stride, 1, 100);
    let totals = pipeline.finish(Duration::from_secs(20));
    check(&totals);
    assert!(totals.clean);
    // The graph that ran is over now, and nobody wants to know.
    pipeline.account().dropped(Reason::Unread, 2, 200);
    pipeline.account().seen(9, 900);
    let table = std::sync::Arc::new(Table::new([].into(), vec![]));
    pipeline.push(Job { step: 21, t_ns: 0, table, places: vec![], row_sets: vec![], data: vec![], tokens: 1 });
    drop(in_step);
    assert_eq!(pipeline.account().totals(), totals.account);
    let end = steps_in(&disk.platter().bytes).1.expect("an end");
    let (seen, sum) = balance(&end["account"]);
    assert_eq!((seen, sum), ([22, 19 * 102_400 + 300], seen));
    assert_eq!(end["account"]["dropped"]["stopped"], serde_json::json!({"tensors": 2, "bytes": 200}));
}

#[test]
fn hosts_that_feed_while_the_stream_ends_leave_an_account_that_adds_up() {
    for round in 0..20 {
        let disk = Fake::default();
        let pipeline = start_with(options(Policy::Block, 32), Box::new(disk.clone())).unwrap();
        let over = AtomicBool::new(false);
        let totals = std::thread::scope(|s| {
            for host in 0..3 {
                let (pipeline, over) = (&pipeline, &over);
                s.spawn(move || {
                    let mut step = 1;
                    while !over.load(Ordering::Relaxed) {
                        let _in_step = pipeline.account().step_begins();
                        pipeline.account().seen(2, 8);
                        std::thread::yield_now();
                        feed(pipeline, step..step + 1);
                        pipeline.account().dropped(if host == 0 { Reason::Unread } else { Reason::Full }, 2, 8);
                        step += 1;
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(10 + round));
            let totals = pipeline.finish(Duration::from_secs(30));
            over.store(true, Ordering::Relaxed);
            totals
        });
        check(&totals);
        assert!(totals.clean, "{totals:?}");
        assert_eq!(pipeline.account().totals(), totals.account, "after the end");
        let bytes = disk.platter().bytes.clone();
        let (steps, end) = steps_in(&bytes);
        let (seen, sum) = balance(&end.expect("an end")["account"]);
        assert_eq!(seen, sum, "in the file, round {round}");
        assert_eq!(steps.len() as u64, totals.account.captured.tensors);
    }
}

#[test]
fn a_disk_that_takes_nothing_is_not_waited_for_as_long_as_one_that_is_slow() {
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    feed(&pipeline, 1..20);
    disk.platter().stuck = true;
    feed(&pipeline, 20..40);
    let began = Instant::now();
    let totals = pipeline.finish(Duration::from_secs(60));
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&began.elapsed()), "{:?}", began.elapsed());
    check(&totals);
    assert!(!totals.clean);
    disk.heal();
}
