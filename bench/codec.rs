//! What the codecs make of real activations: size, speed of one core, and the bounds, measured again on
//! what was decoded.
//!
//!     cargo bench --bench codec                    # every kind with `bounded` and `fast`, two kinds with every codec
//!     cargo bench --bench codec -- ffn_up Vcur     # these kinds, with every codec
//!     cargo bench --bench codec -- sample l_out    # only sixteen packets, those of bench/codecs.py
//!
//! The activations are those of bench/dump_activations.cpp, in packets of about 1 MiB, as a prompt gives them. Speeds
//! are of f32 values. bench/codecs.py prints the same for other libraries.
#![expect(clippy::print_stdout, reason = "prints a table")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use llama_resource_instrumentation::codec::{Codec, DType, Encoder, Params, decode};

/// Passes over a tensor; the best time of each packet counts, so that other work on the machine disturbs little.
const PASSES: usize = 7;
/// Packets of a sample.
const SAMPLE: usize = 16;
const BOUND: f32 = 1e-3;

struct Tensor {
    kind: String,
    row_len: usize,
    data: Vec<u8>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/activations")
}

fn tensors() -> Vec<Tensor> {
    let index = std::fs::read_to_string(folder().join("index.tsv")).unwrap_or_default();
    let tensor = |line: &str| {
        let mut fields = line.split('\t');
        let kind = fields.next()?.to_owned();
        let row_len = fields.next()?.parse().ok()?;
        Some(Tensor { row_len, data: std::fs::read(folder().join(format!("{kind}.f32"))).ok()?, kind })
    };
    index.lines().filter_map(tensor).collect()
}

/// How far the decoded values are from the true ones, by the definition of the bounds.
#[derive(Default)]
struct Errors {
    row: f64,
    block: f64,
    rows: (usize, usize),
    blocks: (usize, usize),
}

impl Errors {
    fn measure(row_len: usize, data: &[u8], decoded: &[u8]) -> Self {
        let values = |bytes: &[u8]| -> Vec<f64> {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        };
        let (data, decoded) = (values(data), values(decoded));
        let mut errors = Self::default();
        for (row, back) in data.chunks(row_len).zip(decoded.chunks(row_len)) {
            let (mut squares, mut missed) = (0.0, 0.0);
            for (block, back) in row.chunks(64).zip(back.chunks(64)) {
                let (mut most, mut error) = (0.0_f64, 0.0_f64);
                for (a, b) in block.iter().zip(back) {
                    squares += a * a;
                    missed += (a - b) * (a - b);
                    most = most.max(a.abs());
                    error = error.max((a - b).abs());
                }
                let relative = if error > 0.0 { error / most } else { 0.0 };
                errors.block = errors.block.max(relative);
                errors.blocks.0 += usize::from(relative <= f64::from(BOUND));
                errors.blocks.1 += 1;
            }
            let relative = if missed > 0.0 { (missed / squares).sqrt() } else { 0.0 };
            errors.row = errors.row.max(relative);
            errors.rows.0 += usize::from(relative <= f64::from(BOUND));
            errors.rows.1 += 1;
        }
        errors
    }
}

/// Every so many of the whole packets, 16 in all, as bench/codecs.py takes them.
fn sample(tensor: Tensor) -> Tensor {
    let packet = packet_bytes(&tensor);
    let step = (tensor.data.len() / packet / SAMPLE).max(1);
    let data = tensor.data.chunks_exact(packet).step_by(step).take(SAMPLE).flatten().copied().collect();
    Tensor { data, ..tensor }
}

/// Bytes of whole rows, about 1 MiB.
fn packet_bytes(tensor: &Tensor) -> usize {
    let row = tensor.row_len * 4;
    ((1 << 20) / row).max(1) * row
}

fn print(codec: Codec, tensor: &Tensor) {
    let params = Params { codec, error_bound: BOUND };
    let mut encoder = Encoder::default();
    let packets: Vec<&[u8]> = tensor.data.chunks(packet_bytes(tensor)).collect();
    let mut bodies = vec![Vec::new(); packets.len()];
    let mut encode_s = vec![f64::MAX; packets.len()];
    for _ in 0..PASSES {
        for ((values, body), best) in packets.iter().zip(&mut bodies).zip(&mut encode_s) {
            body.clear();
            let start = Instant::now();
            encoder.encode(&params, DType::F32, tensor.row_len, values, body);
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let mut decoded = Vec::new();
    let mut decode_s = vec![f64::MAX; packets.len()];
    for _ in 0..PASSES {
        decoded.clear();
        for ((values, body), best) in packets.iter().zip(&bodies).zip(&mut decode_s) {
            let start = Instant::now();
            decode(codec, DType::F32, tensor.row_len, values.len() / 4, body, &mut decoded).expect("what was encoded");
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let rate = |seconds: &[f64]| tensor.data.len() as f64 / seconds.iter().sum::<f64>() / 1e9;
    let errors = Errors::measure(tensor.row_len, &tensor.data, &decoded);
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    let percent = |(kept, all): (usize, usize)| 100.0 * kept as f64 / all as f64;
    println!(
        "{:10} {:7} {:6.3} {:7.2} {:7.2}  {:8.2e}  {:8.2e} {:7.2} {:7.2}",
        tensor.kind,
        codec.name(),
        tensor.data.len() as f64 / bytes as f64,
        rate(&encode_s),
        rate(&decode_s),
        errors.row,
        errors.block,
        percent(errors.rows),
        percent(errors.blocks),
    );
}

fn main() {
    // cargo adds options of its own.
    let mut asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let all = asked.len();
    asked.retain(|a| a != "sample");
    let mut tensors = tensors();
    if asked.len() < all {
        tensors = tensors.into_iter().map(sample).collect();
    }
    if tensors.is_empty() {
        println!("no activations in {}: make them with bench/dump_activations.cpp", folder().display());
        return;
    }
    println!("                          GB/s of f32   greatest error      % within {BOUND:e}");
    println!("kind       codec    ratio  encode  decode    row L2     block    rows  blocks");
    if !asked.is_empty() {
        for tensor in tensors.iter().filter(|t| asked.contains(&t.kind)) {
            Codec::ALL.iter().for_each(|codec| print(*codec, tensor));
        }
        return;
    }
    for codec in [Codec::Bounded, Codec::Fast] {
        tensors.iter().for_each(|t| print(codec, t));
        println!();
    }
    for tensor in tensors.iter().filter(|t| ["l_out", "ffn_swiglu"].contains(&t.kind.as_str())) {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd, Codec::F16, Codec::Bf16] {
            print(codec, tensor);
        }
    }
}
