//! The fixed program that writes the golden stream: every kind of packet, every codec that other tools
//! read, every field.
//!
//! Bodies are made by hand (stored LZ4 blocks, raw Zstandard blocks), so that the file depends on
//! no compressor's version.

use half::{bf16, f16};
use llama_resource_instrumentation::codec::{Codec, DType};
use llama_resource_instrumentation::format::stream::{
    IndexBuilder, Kind, Part, Route, Row, SampledToken, Slice, TensorMeta, write_account, write_checkpoint, write_end,
    write_header, write_index, write_tensor, write_tokens,
};
use serde_json::json;

/// A tensor packet and the values that it must give back.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub name: String,
    pub meta: TensorMeta,
    pub values: Vec<u8>,
}

/// A stream being written: packets with their numbers, an index of them.
#[derive(Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
    pub sequence: u64,
    pub index: IndexBuilder,
    pub tensors: Vec<Written>,
    /// Offsets of all packets, and of the end.
    pub offsets: Vec<usize>,
}

impl Writer {
    fn add(&mut self, kind: Kind, name: &str, write: impl FnOnce(&mut Vec<u8>, u64)) {
        let at = self.bytes.len();
        self.offsets.push(at);
        write(&mut self.bytes, self.sequence);
        self.sequence += 1;
        let len = u32::try_from(self.bytes.len() - at).expect("small");
        if kind == Kind::Index { self.index.written(len) } else { self.index.push(kind, name, len) }
    }

    pub fn header(&mut self, fields: &serde_json::Value) {
        self.add(Kind::Header, "llama-resource-stream", |out, n| write_header(out, n, fields).expect("header"));
    }

    pub fn tensor(&mut self, name: &str, meta: TensorMeta, body: &[u8], values: Vec<u8>) {
        self.add(Kind::Tensor, name, |out, n| write_tensor(out, n, name, &meta, body).expect("tensor"));
        self.tensors.push(Written { name: name.to_owned(), meta, values });
    }

    pub fn tokens(&mut self, tokens: &[SampledToken]) {
        self.add(Kind::Tokens, "llama-resource-tokens", |out, n| write_tokens(out, n, tokens).expect("tokens"));
    }

    pub fn account(&mut self, account: &serde_json::Value) {
        self.add(Kind::Account, "llama-resource-account", |out, n| write_account(out, n, account).expect("account"));
    }

    pub fn checkpoint(&mut self, fields: &serde_json::Value) {
        let write = |out: &mut Vec<u8>, n| write_checkpoint(out, n, fields).expect("checkpoint");
        self.add(Kind::Checkpoint, "llama-resource-checkpoint", write);
    }

    pub fn index(&mut self) {
        let index = self.index.index().clone();
        self.add(Kind::Index, "", |out, n| write_index(out, n, &index).expect("index"));
    }

    pub fn end(&mut self, fields: &serde_json::Value) {
        let last = self.index.previous();
        self.add(Kind::End, "llama-resource-end", |out, n| write_end(out, n, fields, last).expect("end"));
        self.offsets.push(self.bytes.len());
    }
}

/// One LZ4 frame of one stored block.
pub fn lz4_stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
    out.extend_from_slice(&(0x8000_0000 | data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&[0; 4]);
    out
}

/// One Zstandard frame of one raw block; 256 to 65,791 bytes.
pub fn zstd_stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60];
    out.extend_from_slice(&u16::try_from(data.len() - 256).expect("size").to_le_bytes());
    out.extend_from_slice(&(1 | (data.len() as u32) << 3).to_le_bytes()[..3]);
    out.extend_from_slice(data);
    out
}

/// Byte k of every value, least significant first.
pub fn shuffled(data: &[u8], size: usize) -> Vec<u8> {
    (0..size).flat_map(|k| data.iter().skip(k).step_by(size).copied()).collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn row(seq: i32, pos: i32, token: i32, request: u64) -> Row {
    Row { seq, pos, token, request }
}

fn part(step: u64, t_ns: u64, ne: [u32; 4], token_dim: u8, rows: &[Row]) -> Part {
    Part { step, t_ns, ne, token_dim, rows: rows.to_vec() }
}

/// A description with nothing special about it.
pub fn plain(
    tensor: &str,
    op: &str,
    layer: i32,
    dtype: DType,
    codec: Codec,
    row_len: u32,
    parts: Vec<Part>,
) -> TensorMeta {
    let component = match op {
        "ADD" => 9,
        "RMS_NORM" => 3,
        "VIEW" => 4,
        _ => 1,
    };
    TensorMeta {
        tensor: tensor.to_owned(),
        op: op.to_owned(),
        layer: Some(layer),
        component,
        occurrence: 0,
        dtype,
        codec,
        route: Route::Retain,
        row_len,
        error_bound: 0.0,
        row_l2: 0.0,
        block_max: 0.0,
        saturated: 0,
        slice: None,
        parts,
    }
}

/// Three steps: a prompt of one slot, then two slots decoding together.
fn steps(ne: impl Fn(u32) -> [u32; 4], token_dim: u8) -> Vec<Part> {
    vec![
        part(0, 1_000_000, ne(3), token_dim, &[row(0, 0, 1, 1), row(0, 1, 49_151, 1), row(0, 2, -1, 1)]),
        part(1, 11_000_000, ne(2), token_dim, &[row(0, 3, 17, 1), row(1, 0, 42, 2)]),
        part(2, 21_500_000, ne(2), token_dim, &[row(0, 4, 18, 1), row(1, 1, 43, 2)]),
    ]
}

/// Totals: what the packets hold, and two views that were left out.
fn account(tensors: u64, bytes: u64) -> serde_json::Value {
    let amount = |tensors: u64, bytes: u64| json!({"tensors": tensors, "bytes": bytes});
    json!({
        "seen": amount(tensors + 2, bytes + 64), "captured": amount(tensors, bytes),
        "skipped": {"view": amount(2, 64)}, "dropped": {},
    })
}

/// The golden stream.
pub fn golden() -> Writer {
    let mut w = Writer::default();
    w.header(&json!({
        "library_version": "0.1.0", "session_id": "golden", "created_unix_us": 1_763_769_600_000_000u64, "t_ns": 999_000,
        "model": null, "selection": "everything", "route": "auto", "codec": "zstd",
    }));

    // 7 rows of 8: quarters, and what is not a number.
    let mut values: Vec<f32> = (0..56).map(|i| (i as f32 - 20.0) * 0.25).collect();
    (values[5], values[6], values[7], values[8]) =
        (f32::INFINITY, -0.0, f32::from_bits(0x7fc0_0001), f32::from_bits(1));
    let data = f32_bytes(&values);
    let meta = plain("l_out-0", "ADD", 0, DType::F32, Codec::None, 8, steps(|n| [8, n, 1, 1], 1));
    w.tensor("l_out-0", meta, &lz4_stored(&data), data);

    // 7 tokens of 2 heads of 5, under a name of its own because the graph has the name twice.
    let data = f32_bytes(&(0..70).map(|i| i as f32 * -1.5).collect::<Vec<_>>());
    let meta = plain("Qcur-3", "MUL_MAT", 3, DType::F32, Codec::Zstd, 10, steps(|n| [5, 2, n, 1], 2));
    w.tensor("Qcur-3.MUL_MAT", meta, &zstd_stored(&shuffled(&data, 4)), data);

    let data: Vec<u8> = (0..14i32).flat_map(|i| (i * 5 % 8 - 1).to_le_bytes()).collect();
    let mut meta = plain("ffn_moe_topk-11", "VIEW", 11, DType::I32, Codec::Lz4, 2, steps(|n| [2, n, 1, 1], 1));
    meta.occurrence = 2;
    w.tensor("ffn_moe_topk-11", meta, &lz4_stored(&shuffled(&data, 4)), data);

    // Every second of 16 elements, narrowed to half precision.
    let values: Vec<f32> = (0..24).map(|i| i as f32 * 0.125 - 1.0).collect();
    let body: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let rows = [row(5, 100, 7, 0), row(5, 101, 8, 0), row(-1, -1, -1, 0)];
    let mut meta = plain("norm", "RMS_NORM", 0, DType::F32, Codec::F16, 8, vec![part(9, 77, [8, 3, 1, 1], 1, &rows)]);
    (meta.layer, meta.route, meta.slice) = (None, Route::Callback, Some(Slice { start: 0, step: 2, full: 16 }));
    (meta.row_l2, meta.block_max, meta.saturated) = (0.0001, 0.0002, 1);
    w.tensor("norm", meta, &lz4_stored(&body), f32_bytes(&values));

    // No dimension counts tokens.
    let values: Vec<f32> = (0..12).map(|i| i as f32 * 2.0).collect();
    let body: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let meta =
        plain("KQ-0", "SOFT_MAX", 0, DType::F32, Codec::Bf16, 3, vec![part(2, 22_000_000, [3, 2, 2, 1], 0, &[])]);
    w.tensor("KQ-0", meta, &lz4_stored(&body), f32_bytes(&values));

    w.tokens(&[
        SampledToken { seq: 0, pos: 3, token: 17, request: 1, probability: Some(0.75), t_ns: 10_900_000 },
        SampledToken { seq: 1, pos: 1, token: 43, request: 2, probability: None, t_ns: 21_000_000 },
        SampledToken { seq: 1, pos: 2, token: 151_000, request: 2, probability: Some(0.125), t_ns: 20_900_000 },
    ]);
    w.account(&account(11, 704));
    w.checkpoint(&json!({"tokens": 3, "steps": 2, "packets": 8}));
    w.index();
    w.header(&json!({"resumed": true, "session_id": "golden-2"}));
    let data = f32_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let last = vec![part(3, 31_000_000, [8, 1, 1, 1], 1, &[row(0, 5, 19, 1)])];
    let meta = plain("l_out-0", "ADD", 0, DType::F32, Codec::None, 8, last);
    w.tensor("l_out-0", meta, &lz4_stored(&data), data);
    w.index();
    w.end(&account(12, 736));
    w
}
