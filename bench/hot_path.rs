//! What one event costs on the host's threads, and what the writer's thread pays for it afterwards.
//!
//!     cargo bench --bench hot_path                 all of it, about a minute
//!     cargo bench --bench hot_path -- timer        only names with `timer`
//!
//! The rows that need ggml (`host::*`) take it from target/llama.cpp/bin (or the directory in
//! LLAMA_RESOURCE_BENCH_GGML) and are left out, with one line that says so, where it has not been
//! built. Figures: docs/OVERHEAD.md.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints figures")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use llama_resource_instrumentation::journal::Event;
use llama_resource_instrumentation::journal::Token;
use llama_resource_instrumentation::queue::{CAPACITY, Local, Queue};

/// Events timed at once: a single push is shorter than reading the clock. Fits into a ring, so that none is dropped.
const BURST: usize = CAPACITY / 4;

fn main() {
    // Calibrates, which takes milliseconds.
    llama_resource_instrumentation::clock::init();
    let drainer = std::thread::spawn(queue::drain_until_done);
    divan::main();
    queue::DONE.store(true, Ordering::Relaxed);
    if drainer.join().is_err() {
        eprintln!("hot_path: the draining thread failed; the queue's figures are worthless");
    }
    let (taken, dropped) = (queue::TAKEN.load(Ordering::Relaxed), queue::RINGS.dropped());
    if taken + dropped > 0 {
        println!("queue: {taken} events taken by the drainer, {dropped} dropped (a full ring)");
    }
}

fn token() -> Event {
    Event::Token(Token { t_ns: 1, request_id: 2, seq_id: 3, index: 4, token_id: 5, since_previous_ns: 6 })
}

/// From the host's threads to the writer.
mod queue {
    use super::{AtomicBool, AtomicU64, BURST, Duration, Event, Local, Ordering, Queue, token};

    pub static RINGS: Queue<Event> = Queue::new();
    pub static DONE: AtomicBool = AtomicBool::new(false);
    pub static TAKEN: AtomicU64 = AtomicU64::new(0);
    static BUSY: AtomicBool = AtomicBool::new(false);

    thread_local! {
        static LOCAL: Local<Event> = const { Local::new(None) };
    }

    /// The writer's part: it never sleeps while something is pushed, which is harder on the pushing threads than the
    /// real writer, who looks ten times a second.
    pub fn drain_until_done() {
        while !DONE.load(Ordering::Relaxed) {
            let mut n = 0;
            RINGS.drain(|e| {
                divan::black_box(e);
                n += 1;
            });
            TAKEN.fetch_add(n, Ordering::Relaxed);
            if n > 0 || BUSY.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Room for a burst in this thread's ring, waited for outside the timed part.
    fn wait_for_room(total: &AtomicU64) {
        while total.load(Ordering::Relaxed) > TAKEN.load(Ordering::Relaxed) + RINGS.dropped() {
            std::thread::yield_now();
        }
    }

    /// The usual case: the writer comes ten times a second and is elsewhere while this thread pushes.
    #[divan::bench(sample_count = 1000, sample_size = 1)]
    fn push_1024_drained_later(bencher: divan::Bencher<'_, '_>) {
        let (rings, local) = (Queue::new(), Local::default());
        bencher.counter(divan::counter::ItemsCount::new(BURST)).with_inputs(|| rings.drain(drop)).bench_local_refs(
            |()| {
                for _ in 0..BURST {
                    rings.push(&local, divan::black_box(token()));
                }
            },
        );
    }

    /// The worst case: the reader takes each event as it comes.
    #[divan::bench(threads = [1, 8], sample_count = 1000, sample_size = 1)]
    fn push_1024_drained_meanwhile(bencher: divan::Bencher<'_, '_>) {
        static TOTAL: AtomicU64 = AtomicU64::new(0);
        BUSY.store(true, Ordering::Relaxed);
        bencher.counter(divan::counter::ItemsCount::new(BURST)).with_inputs(|| wait_for_room(&TOTAL)).bench_refs(
            |_| {
                LOCAL.with(|local| {
                    for _ in 0..BURST {
                        RINGS.push(local, divan::black_box(token()));
                    }
                });
                TOTAL.fetch_add(BURST as u64, Ordering::Relaxed);
            },
        );
        BUSY.store(false, Ordering::Relaxed);
    }

    #[divan::bench]
    fn push_into_a_full_ring(bencher: divan::Bencher<'_, '_>) {
        let (rings, local) = (Queue::new(), Local::default());
        while rings.push(&local, token()) {}
        bencher.bench_local(|| rings.push(&local, divan::black_box(token())));
    }

    #[divan::bench(sample_count = 1000, sample_size = 1)]
    fn drain_1024(bencher: divan::Bencher<'_, '_>) {
        let (rings, local) = (Queue::new(), Local::default());
        bencher
            .counter(divan::counter::ItemsCount::new(BURST))
            .with_inputs(|| {
                for _ in 0..BURST {
                    rings.push(&local, token());
                }
            })
            .bench_local_refs(|()| {
                rings.drain(|e| {
                    divan::black_box(e);
                });
            });
    }
}

/// The guard around every hook, and the clock.
mod guard {
    use llama_resource_instrumentation::boundary::{self, Phase};
    use llama_resource_instrumentation::clock;
    use llama_resource_instrumentation::observe::{timer, workers};

    #[divan::bench]
    fn clock_now_ns() -> u64 {
        clock::now_ns()
    }

    /// Calls timed together: one of these is shorter than what divan can tell. The loop itself is in the figure.
    const MANY: usize = 100;

    fn many<T>(bencher: divan::Bencher<'_, '_>, call: impl Fn() -> T) {
        bencher.counter(divan::counter::ItemsCount::new(MANY)).bench_local(|| {
            for _ in 0..MANY {
                divan::black_box(call());
            }
        });
    }

    /// A hook when nothing records.
    #[divan::bench]
    fn observe_off_100(bencher: divan::Bencher<'_, '_>) {
        boundary::set_phase(Phase::Stopped);
        many(bencher, || boundary::guarded(0, || divan::black_box(1)));
    }

    /// A hook that records, without its body.
    #[divan::bench]
    fn observe_on_100(bencher: divan::Bencher<'_, '_>) {
        boundary::set_phase(Phase::Running);
        many(bencher, || boundary::guarded(0, || divan::black_box(1)));
        boundary::set_phase(Phase::Stopped);
    }

    /// An operation's hook while no step is timed: every operation of every thread asks this.
    #[divan::bench]
    fn timing_off_100(bencher: divan::Bencher<'_, '_>) {
        many(bencher, || timer::timing() && timer::barrier_enter());
    }

    /// What another compute thread asks in addition while a step is timed on thread 0.
    #[divan::bench]
    fn workers_off_100(bencher: divan::Bencher<'_, '_>) {
        many(bencher, || workers::on() && workers::barrier_enter());
    }
}

/// With the host's own ggml.
mod host {
    use super::PathBuf;
    use llama_resource_instrumentation::ggml::{layout, view::TensorPtr};
    use llama_resource_instrumentation::hook::cpu::ggml_barrier;
    use llama_resource_instrumentation::observe::plan;
    use llama_resource_instrumentation::observe::timer::{self, Timer};
    use std::ffi::{CString, c_void};

    /// Operations and barriers of each thread in a decode step of SmolLM2-135M (counted with breakpoints,
    /// docs/OVERHEAD.md): matrix multiplications have barriers inside.
    const NODES: usize = 515;
    const BARRIERS: usize = 756;

    /// The real ggml, loaded where the hooks look for it; `None` tells once that there is none.
    fn ggml() -> Option<Ggml> {
        static HANDLE: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
        let loaded = HANDLE.get_or_init(|| {
            let bin = std::env::var_os("LLAMA_RESOURCE_BENCH_GGML").map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/llama.cpp/bin")),
                PathBuf::from,
            );
            let path = bin.join("libggml-cpu.so");
            let name = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
            #[expect(unsafe_code, reason = "loads ggml")]
            // SAFETY: ggml's constructors only fill tables.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            if handle.is_null() {
                eprintln!("hot_path: {} cannot be loaded (run `make` first): no figures for `host`", path.display());
                return None;
            }
            Some(handle as usize)
        });
        let handle = (*loaded)?;
        if let Err(e) = layout::check() {
            eprintln!("hot_path: {e}: no figures for `host`");
            return None;
        }
        #[expect(unsafe_code, reason = "looks a function up")]
        // SAFETY: a live handle and a NUL-terminated name.
        let barrier = unsafe { libc::dlsym(handle as *mut c_void, c"ggml_barrier".as_ptr()) };
        // A thread pool of which every number reads 1 has one thread: its barrier returns at once.
        (!barrier.is_null()).then(|| Ggml { barrier, pool: vec![1u32; 1024].into_boxed_slice() })
    }

    struct Ggml {
        barrier: *mut c_void,
        pool: Box<[u32]>,
    }

    impl Ggml {
        fn pool(&self) -> *mut c_void {
            self.pool.as_ptr().cast_mut().cast()
        }
    }

    /// ggml's own, for comparison.
    #[divan::bench]
    fn barrier_without_us(bencher: divan::Bencher<'_, '_>) {
        let Some(ggml) = ggml() else { return };
        #[expect(unsafe_code, reason = "calls ggml")]
        // SAFETY: the signature in ggml-cpu-impl.h.
        let real = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void)>(ggml.barrier) };
        bencher.bench_local(|| real(ggml.pool()));
    }

    /// The hook while no step is timed: it only forwards.
    #[divan::bench]
    fn barrier_forwarded(bencher: divan::Bencher<'_, '_>) {
        let Some(ggml) = ggml() else { return };
        #[expect(unsafe_code, reason = "calls the hook")]
        // SAFETY: the real barrier, which this forwards to, reads one number of the pool.
        let forward = || unsafe { ggml_barrier(ggml.pool()) };
        // The first call looks the real one up.
        forward();
        bencher.bench_local(forward);
    }

    /// A step's operations on thread 0, timed, not written: what DETAILED and VERBOSE do in every step.
    #[divan::bench(sample_count = 500, sample_size = 1)]
    fn step_of_515_operations_timed(bencher: divan::Bencher<'_, '_>) {
        step(bencher, false);
    }

    /// The same for a step that is written event by event.
    #[divan::bench(sample_count = 500, sample_size = 1)]
    fn step_of_515_operations_sampled(bencher: divan::Bencher<'_, '_>) {
        step(bencher, true);
    }

    fn step(bencher: divan::Bencher<'_, '_>, sampled: bool) {
        let Some(ggml) = ggml() else { return };
        // A plan without nodes: what is left out is one store an operation.
        let plan = std::sync::Arc::new(plan::build(std::ptr::null_mut(), 0, &[]));
        let tensors = vec![0u64; NODES];
        #[expect(unsafe_code, reason = "makes handles that are compared, never followed")]
        // SAFETY: the timer compares addresses only (the plan has no node that counts experts).
        let nodes: std::sync::Arc<[TensorPtr]> =
            tensors.iter().filter_map(|t| unsafe { TensorPtr::new(std::ptr::from_ref(t).cast()) }).collect();
        assert_eq!(nodes.len(), NODES);
        bencher
            .counter(divan::counter::ItemsCount::new(NODES))
            .with_inputs(|| {
                Timer::new(plan.clone(), nodes.clone(), sampled, Vec::with_capacity(if sampled { NODES } else { 0 }))
            })
            .bench_local_refs(|timer| {
                let barrier = || {
                    #[expect(unsafe_code, reason = "calls the hook")]
                    // SAFETY: as in `barrier_forwarded`.
                    unsafe {
                        ggml_barrier(ggml.pool());
                    }
                };
                let running = timer.run();
                for (i, node) in nodes.iter().enumerate() {
                    if timer::timing() {
                        timer::op_begins(node.address());
                    }
                    if i < BARRIERS - NODES {
                        barrier();
                    }
                    barrier();
                }
                drop(running);
                divan::black_box(timer.finish());
            });
    }
}

/// The writer's thread: not in the host's way, but on the host's cores.
mod writer {
    use llama_resource_instrumentation::format::{Level, Line};
    use llama_resource_instrumentation::graph::class::Class;
    use llama_resource_instrumentation::graph::component::Component;
    use llama_resource_instrumentation::graph::cost::Cost;
    use llama_resource_instrumentation::journal::rate::may_sample;
    use llama_resource_instrumentation::observe::node::{Flow, Place, PlanNode};
    use llama_resource_instrumentation::observe::parts;
    use llama_resource_instrumentation::observe::plan;
    use llama_resource_instrumentation::observe::sample::{SeqRange, StepSample};
    use llama_resource_instrumentation::observe::timer::{Span, Sums};
    use llama_resource_instrumentation::record::host_sample::Sampler;
    use llama_resource_instrumentation::tell::step::{BestRates, expand};
    use llama_resource_instrumentation::{clock, journal};
    use std::sync::Arc;

    const LAYERS: i32 = 30;
    /// The operations of a layer: a llama block.
    const BLOCK: [(&str, &str, Component); 15] = [
        ("rms_norm", "attn_norm", Component::Norm),
        ("mul_mat", "Qcur", Component::Attention),
        ("mul_mat", "Kcur", Component::Attention),
        ("mul_mat", "Vcur", Component::Attention),
        ("rope", "Qcur", Component::Attention),
        ("rope", "Kcur", Component::Attention),
        ("set_rows", "cache_k_l", Component::KvCache),
        ("set_rows", "cache_v_l", Component::KvCache),
        ("flash_attn_ext", "node_17", Component::Attention),
        ("mul_mat", "attn_out", Component::Attention),
        ("add", "ffn_inp", Component::Residual),
        ("rms_norm", "ffn_norm", Component::Norm),
        ("mul_mat", "ffn_up", Component::Mlp),
        ("glu", "ffn_swiglu", Component::Mlp),
        ("mul_mat", "ffn_out", Component::Mlp),
    ];

    fn node(layer: i32, i: usize) -> PlanNode {
        let (op, name, component) = BLOCK[i];
        let from = if i > 0 { BLOCK[i - 1].2 } else { Component::Residual };
        let flow = || Flow { from, tensor: format!("x-{layer}").into(), bytes: 2304 };
        PlanNode {
            op,
            name: format!("{name}-{layer}").into(),
            inputs: [format!("blk.{layer}.{name}.weight").into(), format!("x-{layer}").into()].into(),
            class: Class { component, layer: Some(layer), mtp: false },
            cost: Cost { flops: 663_552, bytes_read: 209_664, bytes_written: 2304 },
            precision: "f32",
            shape: [576, 1, 1, 1],
            src0_shape: [576, 576, 1, 1],
            out_bytes: 2304,
            src1_bytes: 2304,
            place: Place {
                backend: "CPU",
                device: Some("CPU"),
                is_cpu: true,
                memory_type: "ram",
                answers_late: false,
                backend_address: 0,
            },
            mlp_role: (op == "mul_mat" && component == Component::Mlp).then_some("up_proj"),
            kv_write: (component == Component::KvCache).then_some((name == "cache_k_l", 384)),
            flows: if from == component { Box::default() } else { [flow()].into() },
            moves_only: false,
            counts_experts: false,
        }
    }

    /// A decode step of a 30-layer model, 20 us an operation.
    fn sample() -> StepSample {
        let mut plan = plan::build(std::ptr::null_mut(), 0, &[]);
        plan.nodes = (0..LAYERS).flat_map(|l| (0..BLOCK.len()).map(move |i| node(l, i))).collect();
        plan.parts = parts::parts(&plan.nodes);
        let now = clock::now_ns();
        let spans = (0..plan.nodes.len() as u32)
            .map(|i| {
                let start_ns = now + u64::from(i) * 20_000;
                Span { node: i, until: i + 1, start_ns, end_ns: start_ns + 18_000, barrier_ns: 2_000 }
            })
            .collect();
        StepSample {
            plan: Arc::new(plan),
            step: Some(7),
            permit: may_sample(false, now).expect("no limit of the log is set"),
            start_ns: now,
            end_ns: now + 9_000_000,
            spans,
            sums: Sums { op_ns: 8_100_000, barrier_ns: 900_000, ops: 450, strangers: 0 },
            parts: Vec::new(),
            transfers: Vec::new(),
            workers_ns: vec![8_000_000],
            sequences: vec![SeqRange { seq_id: 0, first_pos: 40, end_pos: 41, hit_permille: Some(0) }],
            placements: Vec::new(),
        }
    }

    fn lines(level: Level) -> Vec<Line> {
        expand(&sample(), level, &mut BestRates::default())
    }

    /// A sampled step of 450 operations becomes lines ...
    #[divan::bench(args = Level::ALL)]
    fn expand_a_step(bencher: divan::Bencher<'_, '_>, level: Level) {
        let (sample, mut rates) = (sample(), BestRates::default());
        let n = expand(&sample, level, &mut rates).len();
        bencher
            .counter(divan::counter::ItemsCount::new(n))
            .bench_local(|| expand(divan::black_box(&sample), level, &mut rates));
    }

    /// ... and the lines bytes.
    #[divan::bench(args = Level::ALL)]
    fn serialise_a_step(bencher: divan::Bencher<'_, '_>, level: Level) {
        let mut lines = lines(level);
        let mut out = Vec::with_capacity(1 << 20);
        lines.iter_mut().for_each(|l| journal::stamp::stamp(l, "resource_sess_20260101_120000_000000"));
        lines.iter().for_each(|l| put(&mut out, l));
        bencher.counter(divan::counter::BytesCount::new(out.len())).bench_local(|| {
            out.clear();
            lines.iter().for_each(|l| put(&mut out, divan::black_box(l)));
        });
    }

    fn put(out: &mut Vec<u8>, line: &Line) {
        if serde_json::to_writer(&mut *out, line).is_ok() {
            out.push(b'\n');
        }
    }

    /// One `compute_execution` line.
    #[divan::bench]
    fn serialise_compute_execution(bencher: divan::Bencher<'_, '_>) {
        let mut lines = lines(Level::Minimal);
        lines.iter_mut().for_each(|l| journal::stamp::stamp(l, "resource_sess_20260101_120000_000000"));
        let Some(line) = lines.into_iter().find(|l| l.kind() == "compute_execution") else { return };
        let mut out = Vec::with_capacity(4096);
        put(&mut out, &line);
        bencher.counter(divan::counter::BytesCount::new(out.len())).bench_local(|| {
            out.clear();
            put(&mut out, divan::black_box(&line));
        });
    }

    /// The wall-clock strings of a line.
    #[divan::bench]
    fn stamp_compute_execution(bencher: divan::Bencher<'_, '_>) {
        let Some(line) = lines(Level::Minimal).into_iter().find(|l| l.kind() == "compute_execution") else { return };
        bencher
            .with_inputs(|| line.clone())
            .bench_local_refs(|l| journal::stamp::stamp(l, "resource_sess_20260101_120000_000000"));
    }

    /// `host_sample`: once in each interval (5, 2 or 1 s by level).
    #[divan::bench(sample_count = 200, sample_size = 1)]
    fn sample_the_host(bencher: divan::Bencher<'_, '_>) {
        let mut sampler = Sampler::default();
        bencher.bench_local(|| sampler.sample(clock::now_ns()));
    }
}
