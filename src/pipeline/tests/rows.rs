//! Rows that the host has encoded before it hands them over, and many small steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Fake, check, options, spec, start_with};
use crate::codec::{Codec, DType, Encoder, Params};
use crate::format::stream::{Content, Frame, Packet, Route};
use crate::pipeline::{Form, Job, Options, Piece, Place, Policy, Table, Totals};

/// A hundred steps of three rows of 200 values; those that `encoded` says come with their rows encoded. Gives
/// descriptions and bodies.
fn rows_written(codec: Codec, encoded: impl Fn(u64) -> bool) -> (Totals, Vec<(String, Vec<u8>)>) {
    let disk = Fake::default();
    let params = Params { codec, error_bound: 1e-3 };
    let options = Options { params, ..options(Policy::Block, 32) };
    let pipeline = start_with(options, Box::new(disk.clone())).unwrap();
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
        let pipeline = start_with(options, Box::new(Fake::default())).unwrap();
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
fn many_small_steps_lose_nothing() {
    let disk = Fake::default();
    let options = Options { helpers: 2, ..options(Policy::Drop, 64) };
    let pipeline = start_with(options, Box::new(disk)).unwrap();
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
