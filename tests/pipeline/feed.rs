//! Steps made from their number alone, fed into a pipeline, and the stream read back and compared with what was fed.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use llama_resource_instrumentation::codec::{Codec, DType, Params, decode};
use llama_resource_instrumentation::format::stream::{
    Content, Frame, LEAST_PACKET, Packet, Part, Route, Row, SampledToken,
};
use llama_resource_instrumentation::pipeline::{
    Form, Job, Options, Piece, Pipeline, Place, Policy, Reason, Refused, Spec, Table,
};
use llama_resource_instrumentation::read::stream::{Item, StreamReader};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A file of its own for each test, in the build's folder: a real disk.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pipeline");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}-{}.stream", std::process::id()));
    clear(&path);
    path
}

pub fn clear(path: &Path) {
    for end in ["", ".ckpt.json", ".ckpt.json.tmp", ".old"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
    let _ = std::fs::remove_file(tokens_file(path));
}

pub fn tokens_file(path: &Path) -> PathBuf {
    path.to_string_lossy().replace(".stream", "_tokens.json").into()
}

pub fn options(path: &Path, codec: Codec, mib: usize, policy: Policy) -> Options {
    Options {
        path: path.to_owned(),
        header: serde_json::json!({"session_id": "test"}),
        params: Params { codec, error_bound: 1e-3 },
        max_memory: mib << 20,
        aside: std::sync::Arc::default(),
        policy,
        workers: 1,
        helpers: 0,
        checkpoint_tokens: None,
        resume: false,
        tokens_path: None,
    }
}

/// Shape, dimension of tokens and type of the tensors of a step.
pub struct Shape {
    pub name: &'static str,
    pub ne: fn(u32) -> [u32; 4],
    pub token_dim: u8,
    pub dtype: DType,
    /// Steps that have it.
    pub there: fn(u64) -> bool,
}

const ALWAYS: fn(u64) -> bool = |_| true;

pub const SHAPES: [Shape; 7] = [
    Shape { name: "l_out-0", ne: |n| [576, n, 1, 1], token_dim: 1, dtype: DType::F32, there: ALWAYS },
    Shape { name: "Qcur-0", ne: |n| [64, 9, n, 1], token_dim: 2, dtype: DType::F32, there: ALWAYS },
    Shape { name: "kq-0", ne: |n| [33, n, 3, 1], token_dim: 1, dtype: DType::F32, there: ALWAYS },
    Shape { name: "topk-0", ne: |n| [4, n, 1, 1], token_dim: 1, dtype: DType::I32, there: |s| s % 5 != 0 },
    Shape { name: "half-0", ne: |n| [100, n, 1, 1], token_dim: 1, dtype: DType::F16, there: ALWAYS },
    Shape { name: "l_out-1", ne: |n| [576, n, 1, 1], token_dim: 1, dtype: DType::F32, there: |s| s % 3 != 1 },
    Shape { name: "mean", ne: |_| [7, 1, 1, 1], token_dim: 0, dtype: DType::F64, there: |s| s % 4 == 0 },
];

/// Numbers that look like activations: many small ones, a few large ones. A pure function of its arguments.
pub fn noise(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    x ^= x >> 32;
    x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}

fn fill(shape: usize, step: u64, dtype: DType, out: &mut [u8]) {
    let size = dtype.size();
    for (i, value) in out.chunks_mut(size).enumerate() {
        let n = noise(step << 32 ^ (shape as u64) << 24 ^ i as u64);
        let x = ((n as u32 as f32) / 4e9 - 0.5) * if n >> 60 == 0 { 900.0 } else { 3.0 };
        match dtype {
            DType::F32 => value.copy_from_slice(&x.to_le_bytes()),
            DType::F64 => value.copy_from_slice(&f64::from(x).to_le_bytes()),
            DType::I32 => value.copy_from_slice(&((n % 60) as i32).to_le_bytes()),
            _ => value.copy_from_slice(&n.to_le_bytes()[..size]),
        }
    }
}

/// Tokens of a step: now and then a prompt.
pub fn tokens_of(step: u64, scale: u32) -> u32 {
    if step % 11 == 3 { 40 * scale } else { (1 + (noise(step) % 3) as u32) * scale }
}

/// A step's tensors as they must come back.
pub fn truth(step: u64, scale: u32) -> Vec<(usize, [u32; 4], Vec<u8>)> {
    let n = tokens_of(step, scale);
    let there = SHAPES.iter().enumerate().filter(|(_, s)| (s.there)(step));
    there
        .map(|(i, s)| {
            let ne = (s.ne)(n);
            let mut data = vec![0; ne.iter().product::<u32>() as usize * s.dtype.size()];
            fill(i, step, s.dtype, &mut data);
            (i, ne, data)
        })
        .collect()
}

pub fn rows(step: u64, n: u32) -> Vec<Row> {
    (0..n)
        .map(|i| Row {
            seq: (step % 2) as i32,
            pos: (step * 100) as i32 + i as i32,
            token: (i * 7) as i32,
            request: step / 9,
        })
        .collect()
}

pub fn token(step: u64) -> (SampledToken, Option<Box<str>>) {
    let probability = step.is_multiple_of(2).then_some(step as f32 / 1e6);
    let text = (!step.is_multiple_of(3)).then(|| format!(" w{step}").into());
    (
        SampledToken { seq: 0, pos: step as i32, token: (step % 50_000) as i32, request: 1, probability, t_ns: step },
        text,
    )
}

/// Feeds steps as the host does.
pub struct Feeder {
    specs: Arc<[Arc<Spec>]>,
    pub scale: u32,
    /// Bytes that were refused.
    pub refused: u64,
    /// What was handed over: step and tensor.
    pub kept: BTreeSet<(u64, usize)>,
}

impl Feeder {
    pub fn new(scale: u32) -> Self {
        let spec = |s: &Shape| Spec {
            name: s.name.into(),
            tensor: s.name.into(),
            op: "ADD".into(),
            layer: Some(0),
            component: 1,
            occurrence: 0,
            dtype: s.dtype,
            slice: None,
        };
        Self { specs: SHAPES.iter().map(|s| Arc::new(spec(s))).collect(), scale, refused: 0, kept: BTreeSet::new() }
    }

    /// One step, in as many jobs as its size needs. False if it was left out or refused in part.
    pub fn step(&mut self, pipeline: &Pipeline, step: u64) -> bool {
        let tensors = truth(step, self.scale);
        let bytes: usize = tensors.iter().map(|t| t.2.len()).sum();
        let _in_step = pipeline.account().step_begins();
        pipeline.account().seen(tensors.len() as u64, bytes as u64);
        if !pipeline.admit() {
            pipeline.account().dropped(Reason::Sampled, tensors.len() as u64, bytes as u64);
            return false;
        }
        let n = tokens_of(step, self.scale);
        let table: Arc<[Row]> = rows(step, n).into();
        let mut tokens = n;
        let mut whole = true;
        for group in tensors.chunk_by(|_, _| bytes <= pipeline.largest()) {
            let len = group.iter().map(|t| t.2.len()).sum();
            let mut data = match pipeline.reserve(len) {
                Ok(data) => data,
                Err(refused) => {
                    let reason = match refused {
                        Refused::Full => Reason::Full,
                        Refused::TooLarge => Reason::TooLarge,
                        Refused::Failed => Reason::IoError,
                        Refused::NoMemory => Reason::NoMemory,
                    };
                    pipeline.account().dropped(reason, group.len() as u64, len as u64);
                    self.refused += len as u64;
                    whole = false;
                    continue;
                }
            };
            let mut offset = 0;
            let (mut pieces, mut places) = (Vec::new(), Vec::new());
            for (shape, ne, values) in group {
                self.kept.insert((step, *shape));
                data[offset..offset + values.len()].copy_from_slice(values);
                places.push(Place { buffer: 0, offset, form: Form::Values });
                pieces.push(Piece {
                    spec: *shape as u32,
                    len: values.len(),
                    ne: *ne,
                    token_dim: SHAPES[*shape].token_dim,
                    rows: (SHAPES[*shape].token_dim > 0).then_some(0),
                    route: Route::Retain,
                    completes: true,
                });
                offset += values.len();
            }
            pipeline.push(Job {
                step,
                t_ns: step * 1000,
                table: Arc::new(Table::new(Arc::clone(&self.specs), pieces)),
                places,
                row_sets: vec![Arc::clone(&table)],
                data: vec![data],
                tokens: std::mem::take(&mut tokens),
            });
        }
        let (sampled, text) = token(step);
        pipeline.token(sampled, text);
        whole
    }
}

/// A tensor of a step: number, values, tokens.
type Whole = (u64, Vec<u8>, Vec<Row>);

/// A stream read back.
#[derive(Debug, Default)]
pub struct Stream {
    /// By tensor: parts in order with their values.
    pub tensors: BTreeMap<String, Vec<(Part, Vec<u8>)>>,
    pub tokens: Vec<SampledToken>,
    pub headers: Vec<serde_json::Value>,
    pub accounts: Vec<serde_json::Value>,
    pub checkpoints: Vec<serde_json::Value>,
    pub end: Option<serde_json::Value>,
    pub packets: u64,
    /// Bytes of whole packets; zeros may follow.
    pub good: usize,
    /// What follows that is no packet.
    pub torn: usize,
    /// Largest packet of values.
    pub largest: usize,
    /// By tensor: offsets of its packets.
    pub places: BTreeMap<String, Vec<usize>>,
    /// Every packet's offset, by its number.
    pub offsets: Vec<usize>,
}

/// What the product's own reader says of the file: the same packets of every tensor, and whether it found them
/// by the index.
pub fn assert_reader_agrees(path: &Path, stream: &Stream, by_index: bool) {
    let mut reader = StreamReader::open(path).unwrap();
    let catalog = reader.catalog().unwrap();
    assert_eq!(catalog.from_index, by_index);
    let found: BTreeMap<_, Vec<usize>> = catalog
        .tensors
        .iter()
        .map(|t| (t.name.clone(), t.packets.iter().map(|p| p.offset as usize).collect()))
        .collect();
    assert_eq!(found, stream.places);
    let mut packets = 0;
    while let Some(item) = reader.next_item().unwrap() {
        packets += u64::from(matches!(item, Item::Packet { .. }));
    }
    assert_eq!(packets, stream.packets);
    assert!(reader.account().balances() && reader.account().is_undamaged(), "{:?}", reader.account());
}

/// Reads by the framing alone, packet by packet, up to the first that is not whole.
pub fn read(path: &Path) -> Stream {
    read_bytes(&std::fs::read(path).unwrap())
}

pub fn read_bytes(bytes: &[u8]) -> Stream {
    let mut s = Stream::default();
    while let Some(packet) = bytes.get(s.good..).and_then(|rest| {
        let length = usize::try_from(Frame::read(*rest.first_chunk()?).packet_len()).ok()?;
        rest.get(..length).filter(|_| length >= LEAST_PACKET)
    }) {
        let Ok(read) = Packet::read(packet) else { break };
        assert_eq!(read.sequence, s.packets, "packets are numbered without a gap");
        s.packets += 1;
        s.offsets.push(s.good);
        s.good += packet.len();
        match read.content {
            Content::Header(h) => s.headers.push(h),
            Content::Tokens(t) => s.tokens.extend(t),
            Content::Account(a) => s.accounts.push(a),
            Content::Checkpoint(c) => s.checkpoints.push(c),
            Content::End(e) => s.end = Some(e),
            Content::Index(index) => {
                let mut at = index.first as usize;
                for entry in &index.entries {
                    assert!(s.offsets.contains(&at), "the index knows a packet at {at}");
                    at += entry.len as usize;
                }
            }
            Content::Tensor { meta, body } => {
                s.places.entry(read.name.to_owned()).or_default().push(s.good - packet.len());
                let mut values = Vec::new();
                let n = usize::try_from(meta.n_values()).unwrap();
                decode(meta.codec, meta.dtype, meta.row_len as usize, n, body, &mut values).unwrap();
                s.largest = s.largest.max(values.len());
                let parts = s.tensors.entry(read.name.to_owned()).or_default();
                let mut rest = values.as_slice();
                for part in meta.parts {
                    let len = part.ne.iter().product::<u32>() as usize * meta.dtype.size();
                    let (own, behind) = rest.split_at(len);
                    parts.push((part, own.to_vec()));
                    rest = behind;
                }
                assert!(rest.is_empty());
            }
            Content::Unknown { kind } => panic!("unknown kind {kind}"),
        }
    }
    s.torn = bytes[s.good..].iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
    s
}

impl Stream {
    /// Steps of a tensor with all their values, parts of a cut tensor put together again.
    fn steps(&self, name: &str) -> Vec<Whole> {
        let mut steps: Vec<Whole> = Vec::new();
        for (part, values) in self.tensors.get(name).into_iter().flatten() {
            assert_eq!(part.t_ns, part.step * 1000);
            match steps.last_mut().filter(|s| s.0 == part.step) {
                Some(last) => {
                    last.1.extend_from_slice(values);
                    last.2.extend_from_slice(&part.rows);
                }
                None => steps.push((part.step, values.clone(), part.rows.clone())),
            }
        }
        steps
    }

    /// Every tensor of exactly these steps, in this order, to the last byte.
    pub fn assert_steps(&self, steps: impl IntoIterator<Item = u64>, scale: u32) {
        self.assert_kept(&steps.into_iter().flat_map(|s| (0..SHAPES.len()).map(move |t| (s, t))).collect(), scale);
    }

    /// Exactly these tensors of these steps.
    pub fn assert_kept(&self, kept: &BTreeSet<(u64, usize)>, scale: u32) {
        let mut want: BTreeMap<&str, Vec<Whole>> = BTreeMap::new();
        let steps: BTreeSet<u64> = kept.iter().map(|k| k.0).collect();
        for step in steps {
            for (shape, _, values) in truth(step, scale).into_iter().filter(|t| kept.contains(&(step, t.0))) {
                let s = &SHAPES[shape];
                let table = if s.token_dim > 0 { rows(step, tokens_of(step, scale)) } else { vec![] };
                want.entry(s.name).or_default().push((step, values, table));
            }
        }
        let names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        assert_eq!(names, want.keys().copied().collect::<Vec<_>>());
        for (name, want) in want {
            let got = self.steps(name);
            let numbers = |s: &[Whole]| s.iter().map(|s| s.0).collect::<Vec<_>>();
            assert_eq!(numbers(&got), numbers(&want), "{name}: steps in order");
            for (got, want) in got.iter().zip(&want) {
                assert!(got.1 == want.1, "{name}: values of step {}", got.0);
                // A tensor whose outer dimension is not the tokens' has its table once for each cut.
                assert!(got.2.chunks(want.2.len().max(1)).all(|r| r == want.2), "{name}: rows of step {}", got.0);
            }
        }
    }

    /// Of every tensor the steps from the first on, without a gap, at least up to `least`.
    pub fn assert_prefix(&self, least: u64, scale: u32) {
        let mut kept = BTreeSet::new();
        for (i, shape) in SHAPES.iter().enumerate() {
            let steps = self.steps(shape.name);
            let last = steps.last().map_or(0, |s| s.0).max(least);
            kept.extend((1..=last).filter(|&s| (shape.there)(s)).map(|s| (s, i)));
        }
        self.assert_kept(&kept, scale);
    }

    /// How often the stream had been resumed at its last checkpoint.
    pub fn resumes_at_checkpoint(&self) -> u64 {
        self.checkpoints.last().and_then(|c| c["metadata"]["resume_count"].as_u64()).unwrap_or(0)
    }

    /// The numbers of the steps that the stream has of the first tensor, checked against the truth for every tensor.
    pub fn captured_steps(&self) -> Vec<u64> {
        self.steps(SHAPES[0].name).iter().map(|s| s.0).collect()
    }

    pub fn assert_tokens(&self, steps: impl Iterator<Item = u64>) {
        let want: Vec<_> = steps.map(|s| token(s).0).collect();
        assert_eq!(self.tokens.len(), want.len());
        assert_eq!(self.tokens, want);
    }
}
