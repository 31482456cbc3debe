//! The pipeline on disks that are slow, full, broken or stuck.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};

use super::message::{Item, Made, Progress};
use super::pool::Pool;
use super::shared::Shared;
use super::writer::{State, Writer};
use super::{
    Account, Amount, Form, Job, Options, Piece, Pipeline, Place, Policy, Reason, Refused, Spec, Table, Totals, start,
    threads,
};
use crate::codec::{Codec, DType, Params};
use crate::format::stream::{self, Content, Frame, IndexBuilder, Packet, Route};
use crate::store::disk::Disk;
use crate::store::file::StreamFile;
use crate::store::open::Opened;

mod ends;
mod rows;

const MIB: usize = 1 << 20;

/// What a disk does and holds.
#[derive(Debug, Default)]
struct Platter {
    bytes: Vec<u8>,
    /// Where the next write fails, and how.
    fails_at: Option<(u64, i32)>,
    /// Bytes that one write takes at most.
    most: Option<usize>,
    delay: Duration,
    stuck: bool,
    direct: bool,
    /// Refuses direct writes when they come, as some file systems do.
    refuses_direct: bool,
    no_room_ahead: bool,
    panics: bool,
    /// Writes that are in the stuck disk.
    waiting: usize,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<(Mutex<Platter>, Condvar)>);

impl Fake {
    fn with(change: impl FnOnce(&mut Platter)) -> Self {
        let fake = Self::default();
        change(&mut fake.platter());
        fake
    }

    fn platter(&self) -> parking_lot::MutexGuard<'_, Platter> {
        self.0.0.lock()
    }

    fn heal(&self) {
        self.platter().stuck = false;
        self.0.1.notify_all();
    }
}

impl Disk for Fake {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> Result<usize> {
        let mut p = self.platter();
        assert!(!p.panics, "asked for");
        p.waiting += 1;
        while p.stuck {
            self.0.1.wait(&mut p);
        }
        p.waiting -= 1;
        std::thread::sleep(p.delay);
        if p.direct {
            let aligned =
                at.is_multiple_of(4096) && bytes.len().is_multiple_of(4096) && bytes.as_ptr().align_offset(4096) == 0;
            if p.refuses_direct || !aligned {
                return Err(Error::from_raw_os_error(libc::EINVAL));
            }
        }
        let mut n = bytes.len().min(p.most.unwrap_or(usize::MAX));
        if let Some((limit, errno)) = p.fails_at {
            if at >= limit {
                return Err(Error::from_raw_os_error(errno));
            }
            n = n.min((limit - at) as usize);
        }
        let end = at as usize + n;
        if p.bytes.len() < end {
            p.bytes.resize(end, 0);
        }
        p.bytes[at as usize..end].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        self.platter().bytes.resize(len as usize, 0);
        Ok(())
    }

    fn allocate(&mut self, _: u64, _: u64) -> Result<()> {
        if self.platter().no_room_ahead { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_direct(&self) -> bool {
        self.platter().direct
    }

    fn leave_direct(&mut self) {
        self.platter().direct = false;
    }
}

fn options(policy: Policy, mib: usize) -> Options {
    Options {
        path: PathBuf::from("/nonexistent/x.stream"),
        header: serde_json::json!({}),
        params: Params { codec: Codec::None, error_bound: 1e-3 },
        max_memory: mib * MIB,
        aside: Arc::default(),
        policy,
        workers: 2,
        helpers: 0,
        checkpoint_tokens: None,
        resume: false,
        tokens_path: None,
    }
}

fn start_with(options: Options, disk: Box<dyn Disk>) -> crate::error::Result<Pipeline> {
    start::start_on(options, Opened::empty(disk))
}

fn spec() -> Arc<Spec> {
    Arc::new(Spec {
        name: "x".into(),
        tensor: "x".into(),
        op: "ADD".into(),
        layer: None,
        component: 0,
        occurrence: 0,
        dtype: DType::F32,
        slice: None,
    })
}

/// Steps of 100 rows of 256 values, `step` in each; counted as the host does.
fn feed(pipeline: &Pipeline, steps: std::ops::Range<u64>) -> u64 {
    let (spec, len) = (spec(), 100 * 256 * 4);
    let mut pushed = 0;
    for step in steps {
        let _in_step = pipeline.account().step_begins();
        pipeline.account().seen(1, len as u64);
        let mut data = match pipeline.reserve(len) {
            Ok(data) => data,
            Err(refused) => {
                let reason = if refused == Refused::Full { Reason::Full } else { Reason::IoError };
                pipeline.account().dropped(reason, 1, len as u64);
                continue;
            }
        };
        data.chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&(step as f32).to_le_bytes()));
        let (ne, route) = ([256, 100, 1, 1], Route::Retain);
        let piece = Piece { spec: 0, len, ne, token_dim: 1, rows: None, route, completes: true };
        let table = Arc::new(Table::new([Arc::clone(&spec)].into(), vec![piece]));
        let places = vec![Place { buffer: 0, offset: 0, form: Form::Values }];
        pipeline.push(Job { step, t_ns: 0, table, places, row_sets: vec![], data: vec![data], tokens: 1 });
        pushed += 1;
    }
    pushed
}

/// Steps whose whole values are in the bytes; the account that the last packets hold.
fn steps_in(bytes: &[u8]) -> (Vec<u64>, Option<serde_json::Value>) {
    let (mut steps, mut last, mut at, mut next) = (vec![], None, 0, 0);
    while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk()) {
        let end = at + Frame::read(*head).packet_len() as usize;
        let packet = Packet::read(&bytes[at..end]).expect("a whole packet");
        assert_eq!(packet.sequence, next, "no gap");
        next += 1;
        match packet.content {
            Content::Tensor { meta, body } => {
                let mut values = vec![];
                crate::codec::decode(meta.codec, meta.dtype, 256, meta.n_values() as usize, body, &mut values).unwrap();
                for (part, own) in meta.parts.iter().zip(values.chunks(100 * 256 * 4)) {
                    assert!(own.chunks(4).all(|v| v == (part.step as f32).to_le_bytes()));
                    steps.push(part.step);
                }
            }
            Content::Account(a) | Content::End(a) => last = Some(a),
            _ => {}
        }
        at = end;
    }
    assert_eq!(at, bytes.len(), "the file ends with a whole packet");
    (steps, last)
}

fn check(totals: &Totals) {
    assert!(totals.account.is_exact(), "{totals:?}");
}

#[test]
fn a_slow_disk_loses_nothing_under_block() {
    let disk = Fake::with(|p| (p.delay, p.direct) = (Duration::from_millis(15), true));
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    assert_eq!(feed(&pipeline, 1..301), 300);
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured == totals.account.seen);
    assert_eq!(steps_in(&disk.platter().bytes).0, (1..301).collect::<Vec<_>>());
}

#[test]
fn a_slow_disk_costs_a_host_that_drops_nothing_but_data() {
    let disk = Fake::with(|p| p.delay = Duration::from_millis(200));
    let pipeline = start_with(options(Policy::Drop, 16), Box::new(disk.clone())).unwrap();
    let began = Instant::now();
    let pushed = feed(&pipeline, 1..1001);
    let took = began.elapsed();
    assert!(pushed < 1000, "100 MB do not fit into 16");
    let totals = pipeline.finish(Duration::from_secs(60));
    check(&totals);
    assert!(totals.clean && totals.account.captured.tensors == pushed);
    assert_eq!(steps_in(&disk.platter().bytes).0.len() as u64, pushed);
    // In this build the copies themselves take a while; a single wait for the disk would be seen.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_disk_that_fills_up_keeps_a_valid_prefix_and_its_account() {
    for (errno, limit) in
        [(libc::ENOSPC, 5_000_000), (libc::EFBIG, 4_321_987), (libc::ENOSPC, 600), (libc::EIO, 3_000_000)]
    {
        for direct in [false, true] {
            let disk = Fake::with(|p| (p.fails_at, p.direct, p.no_room_ahead) = (Some((limit, errno)), direct, true));
            let policy = if direct { Policy::Block } else { Policy::Drop };
            let pipeline = start_with(options(policy, 16), Box::new(disk.clone()));
            let pipeline = match pipeline {
                Ok(pipeline) => pipeline,
                Err(e) => {
                    assert!(direct && limit < 4096, "{e}");
                    continue;
                }
            };
            feed(&pipeline, 1..201);
            // Nobody waits for ever after a failure.
            while !pipeline.has_failed() {
                feed(&pipeline, 201..202);
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(pipeline.reserve(1).unwrap_err(), Refused::Failed);
            assert!(!pipeline.flush(Duration::from_secs(5)));
            let totals = pipeline.finish(Duration::from_secs(30));
            check(&totals);
            assert!(!totals.clean && totals.problem.is_some());
            let bytes = &disk.platter().bytes;
            let (steps, account) = steps_in(bytes);
            assert_eq!(totals.bytes, bytes.len() as u64);
            assert!(bytes.len() as u64 <= limit);
            assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
            assert_eq!(steps.len() as u64, totals.account.captured.tensors);
            assert!(steps.len() as u64 * 102_400 + 2_300_000 > limit, "{} steps below {limit}", steps.len());
            if errno != libc::EIO && limit > 600 {
                // Where the last packet did not fit, the account of it does.
                let account = account.expect("last words");
                assert!(account["account"]["dropped"]["io_error"]["tensors"].as_u64().unwrap() > 0, "{account}");
            }
        }
    }
}

#[test]
fn a_stuck_disk_holds_up_neither_the_end_nor_the_account() {
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    feed(&pipeline, 1..20);
    assert!(pipeline.flush(Duration::from_secs(10)));
    disk.platter().stuck = true;
    feed(&pipeline, 20..40);
    while disk.platter().waiting == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!pipeline.flush(Duration::from_millis(200)));
    let began = Instant::now();
    let totals = pipeline.finish(Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(3));
    check(&totals);
    assert_eq!((totals.account.captured.tensors, totals.account.all_dropped().tensors), (19, 20));
    assert!(!totals.clean);
    // It comes back to life: nobody is harmed, and nothing is counted twice.
    disk.heal();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pipeline.account().totals(), totals.account);
}

#[test]
fn a_host_that_waits_for_a_stuck_disk_is_let_go_by_the_end() {
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    disk.platter().stuck = true;
    std::thread::scope(|s| {
        let host = s.spawn(|| feed(&pipeline, 1..1000));
        while disk.platter().waiting == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(!host.is_finished(), "it waits");
        let totals = pipeline.finish(Duration::from_millis(300));
        assert!(host.join().unwrap() < 1000);
        assert!(!totals.clean);
        // What the host counted after the end was taken.
        assert!(pipeline.account().totals().is_exact());
    });
    disk.heal();
}

#[test]
fn short_writes_and_refused_direct_ones_are_gone_on_with() {
    for (most, refuses) in [(Some(5000), false), (Some(4096), false), (None, true), (Some(777), true)] {
        let disk = Fake::with(|p| (p.most, p.direct, p.refuses_direct) = (most, true, refuses));
        let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
        for from in [1, 21, 41] {
            feed(&pipeline, from..from + 20);
            assert!(pipeline.flush(Duration::from_secs(20)));
        }
        let totals = pipeline.finish(Duration::from_secs(20));
        check(&totals);
        assert!(totals.clean, "{totals:?}");
        assert_eq!(steps_in(&disk.platter().bytes).0, (1..61).collect::<Vec<_>>());
    }
}

#[test]
fn a_file_is_the_same_however_it_is_appended_to_and_paused() {
    for direct in [false, true] {
        for seed in 0..40u64 {
            let disk = Fake::with(|p| p.direct = direct);
            let mut random = seed * 7919 + 1;
            let mut next = |most: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % most
            };
            // Goes on behind a first part, as after a resume.
            let first: Vec<u8> = (0..next(20_000)).map(|i| i as u8).collect();
            disk.platter().bytes.clone_from(&first);
            let offset = first.len();
            let head = first[offset - StreamFile::head_len(offset as u64)..].to_vec();
            let mut file = StreamFile::new(Box::new(disk.clone()), 16 << 10, offset as u64, &head).unwrap();
            let mut want = first;
            for _ in 0..60 {
                let piece: Vec<u8> = (0..next(9000)).map(|i| (i * 31 + seed) as u8).collect();
                file.append(&piece).unwrap();
                want.extend_from_slice(&piece);
                assert_eq!(file.end(), want.len() as u64);
                if next(3) == 0 {
                    file.settle().unwrap();
                    assert_eq!(disk.platter().bytes, want);
                    assert_eq!(file.settled(), want.len() as u64);
                }
            }
            let settled = file.settled() as usize;
            assert_eq!(disk.platter().bytes[..settled], want[..settled]);
            file.settle().unwrap();
            assert_eq!(disk.platter().bytes, want, "direct: {direct}, seed {seed}");
        }
    }
}

#[test]
fn jobs_that_do_not_fit_their_data_are_counted_and_harm_nobody() {
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    let of = |offset, len, ne| {
        let piece = Piece { spec: 0, len, ne, token_dim: 1, rows: Some(3), route: Route::Retain, completes: true };
        (piece, Place { buffer: 0, offset, form: Form::Values })
    };
    let (mut pieces, places): (Vec<_>, Vec<_>) = [
        of(0, 400, [10, 10, 1, 1]),
        of(4, 400, [10, 10, 1, 1]),
        of(usize::MAX, 400, [10, 10, 1, 1]),
        of(0, 404, [10, 10, 1, 1]),
        of(0, 0, [10, 0, 1, 1]),
        of(0, 1 << 40, [u32::MAX; 4]),
        of(0, 400, [10, 10, 1, 1]),
    ]
    .into_iter()
    .unzip();
    // One that has no description, and one that has no place.
    pieces[6].spec = 1;
    pieces.push(of(0, 400, [10, 10, 1, 1]).0);
    let bytes = pieces.iter().map(|p| p.len as u64).sum();
    pipeline.account().seen(8, bytes);
    let table = Arc::new(Table::new([spec()].into(), pieces));
    let data = vec![pipeline.reserve(400).unwrap()];
    pipeline.push(Job { step: 1, t_ns: 0, table, places, row_sets: vec![], data, tokens: 1 });
    let totals = pipeline.finish(Duration::from_secs(10));
    assert!(totals.clean);
    assert_eq!(totals.account.captured.tensors, 2);
    assert_eq!(totals.account.all_dropped().tensors, 6);
    assert!(pipeline.largest() < 16 * MIB && pipeline.reserve(pipeline.largest() + 1).is_err());
}

/// Not known to be false before it is called.
fn pipeline_is_sound() -> bool {
    std::env::var_os("LRI_PANIC").is_none()
}

#[test]
#[ignore = "the child of the test below: a panic of ours ends every recording of a process"]
fn panics_in_a_thread() {
    let which = std::env::var("LRI_PANIC").expect("run by the test below");
    let disk = Fake::default();
    let pipeline = start_with(options(Policy::Block, 16), Box::new(disk.clone())).unwrap();
    assert_eq!(feed(&pipeline, 1..20), 19);
    assert!(pipeline.flush(Duration::from_secs(20)));
    disk.platter().panics = which == "the writer";
    if which == "another thread" {
        let body = || assert!(pipeline_is_sound(), "asked for");
        assert!(threads::spawn(&pipeline.shared, "lri-cap-test".into(), body).unwrap().join().is_ok(), "it ends here");
    }
    feed(&pipeline, 20..21);
    let began = Instant::now();
    // The host waits for memory, and is let go.
    while !pipeline.has_failed() {
        feed(&pipeline, 21..200);
        assert!(began.elapsed() < Duration::from_secs(20), "nobody noticed");
    }
    assert_eq!(pipeline.reserve(1).unwrap_err(), Refused::Failed);
    assert!(!pipeline.flush(Duration::from_secs(20)));
    let began = Instant::now();
    let totals = pipeline.finish(Duration::from_secs(20));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    check(&totals);
    assert!(!totals.clean && totals.account.captured.tensors >= 19, "{totals:?}");
    assert!(totals.account.all_dropped().tensors > 0);
}

#[test]
fn a_packet_whose_worker_is_gone_is_lost_and_the_next_one_is_written() {
    let disk = Fake::default();
    let pool = Pool::new(MIB, MIB, Arc::default());
    let shared = Arc::new(Shared::new(Account::default(), pool, Policy::Block, 0, 0));
    let (spare, outputs) = bounded(2);
    let writer = Writer {
        shared: Arc::clone(&shared),
        spare,
        file: StreamFile::new(Box::new(disk.clone()), MIB, 0, &[]).unwrap(),
        path: PathBuf::new(),
        history: None,
        history_asked: false,
        index: IndexBuilder::default(),
        sequence: 0,
        began_s: 0.0,
        resume_count: 0,
        state: State::default(),
    };
    let (out, items) = bounded(3);
    let amount = Amount::new(1, 100);
    shared.account.seen(2, 200);
    shared.account.enter(Amount::new(2, 200));
    let packet = |worker_panics: bool| {
        let (done, made) = bounded(1);
        if !worker_panics {
            let mut bytes = Vec::new();
            stream::write_account(&mut bytes, 0, &serde_json::json!({})).unwrap();
            done.send(Made { bytes, result: Ok(()) }).unwrap();
        }
        out.send(Item::Packet { made, spec: spec(), amount }).unwrap();
    };
    packet(true);
    packet(false);
    out.send(Item::Finish(Progress::default())).unwrap();
    assert!(writer.run(&items), "closed in order");
    let totals = shared.account.totals();
    assert!(totals.is_exact() && totals.captured == amount, "{totals:?}");
    assert_eq!((totals.dropped, outputs.len()), (vec![(Reason::Internal, amount)], 1));
    assert!(steps_in(&disk.platter().bytes).1.is_some());
}

#[test]
fn a_panic_in_any_thread_ends_the_stream_and_nothing_else() {
    for which in ["another thread", "the writer"] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["pipeline::tests::panics_in_a_thread", "--exact", "--ignored", "--nocapture"]);
        let output = child.env("LRI_PANIC", which).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{which}: {text}");
    }
}
