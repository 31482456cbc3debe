//! `stream import`: a stream of the older system becomes one of ours.

use std::collections::BTreeMap;

use llama_resource_instrumentation::analyze::stream::{Amount, Ledger};
use llama_resource_instrumentation::codec::{Codec, DType, Encoder, Params};
use llama_resource_instrumentation::export::stream::Rewrite;
use llama_resource_instrumentation::export::units::{bytes, count, printable};
use llama_resource_instrumentation::format::stream::{Part, Route, TensorMeta};
use llama_resource_instrumentation::read::stream::LegacyPacket;
use serde_json::{Map, json};

use super::args::{self, Lossless, Type};
use super::out::Stop;
use super::source::Source;
use super::{info, refuse_same};
use crate::terminal;

/// Name of the packets whose name is empty: the older system's root module.
const ROOT: &str = "<root>";

/// Runs the subcommand.
pub fn import(args: &args::Import) -> Result<(), Stop> {
    refuse_same(&args.file, &args.out)?;
    let mut source = Source::open_any(&args.file, "importing")?;
    if !source.is_legacy() {
        return Err(Stop::Failed(format!(
            "`{}` is no stream of the older system: it needs no import",
            args.file.display()
        )));
    }
    let codec = match args.codec {
        Lossless::None => Codec::None,
        Lossless::Lz4 => Codec::Lz4,
        Lossless::Zstd => Codec::Zstd,
    };
    let dtype = match args.dtype {
        Type::F16 => DType::F16,
        Type::F32 => DType::F32,
        Type::F64 => DType::F64,
        Type::I32 => DType::I32,
        Type::I64 => DType::I64,
    };
    let header = json!({
        "library_version": env!("CARGO_PKG_VERSION"), "model": null, "host": null, "route": Route::Imported.name(), "codec": codec.name(),
        "older": { "file": args.file.display().to_string(), "bytes": source.len(), "dtype": dtype.name() },
    });
    let mut importer = Importer {
        out: Rewrite::with_header(&args.out, &header)?,
        params: Params { codec, ..Params::default() },
        dtype,
        width: args.width,
        encoder: Encoder::default(),
        steps: BTreeMap::new(),
        ledger: Ledger::default(),
        values: Vec::new(),
        body: Vec::new(),
    };
    let account = source.each_legacy(|packet| importer.packet(packet))?;
    let (tensors, size) = (importer.ledger.captured.tensors, importer.ledger.captured.bytes);
    importer.ledger.seen = importer.ledger.captured;
    importer.out.finish(&importer.ledger, Map::new())?;
    terminal::eprint_line(&format!(
        "{} packets, {} of values, written to `{}`",
        count(tensors),
        bytes(size),
        args.out.display()
    ));
    let lost = info::damage(&account);
    if !lost.is_empty() {
        terminal::eprint(lost.trim_end());
    }
    Ok(())
}

struct Importer {
    out: Rewrite,
    params: Params,
    dtype: DType,
    width: Option<u32>,
    encoder: Encoder,
    /// Packets of each name so far.
    steps: BTreeMap<String, u64>,
    ledger: Ledger,
    values: Vec<u8>,
    body: Vec<u8>,
}

impl Importer {
    fn packet(&mut self, packet: &LegacyPacket<'_>) -> Result<(), Stop> {
        let name = if packet.name.is_empty() { ROOT } else { packet.name };
        let step = self.steps.entry(name.to_owned()).or_default();
        let wrong =
            |problem: String| Stop::Failed(format!("cannot import packet {step} of `{}`: {problem}", printable(name)));
        self.values.clear();
        packet.decode(None, &mut self.values).map_err(|e| wrong(e.0))?;
        let (n, odd) = (self.values.len() / self.dtype.size(), self.values.len() % self.dtype.size());
        if odd != 0 {
            return Err(wrong(format!(
                "its {} bytes are no whole number of {} values: another --dtype?",
                self.values.len(),
                self.dtype.name()
            )));
        }
        let n = u32::try_from(n).map_err(|_| wrong(format!("it has {n} values, 2^32 are too many")))?;
        let width = self.width.unwrap_or(n);
        if width > 0 && !n.is_multiple_of(width) {
            return Err(wrong(format!("its {n} values are no whole number of rows of {width}: another --width?")));
        }
        let rows = n.checked_div(width).unwrap_or(0);
        self.body.clear();
        let mut done = self.encoder.encode(&self.params, self.dtype, width as usize, &self.values, &mut self.body);
        let part = Part { step: *step, t_ns: 0, ne: [width, rows, 1, 1], token_dim: 0, rows: Vec::new() };
        let mut meta = TensorMeta {
            tensor: name.to_owned(),
            op: String::new(),
            layer: layer(name),
            component: 0,
            occurrence: 0,
            dtype: self.dtype,
            codec: done.codec,
            route: Route::Imported,
            row_len: width,
            error_bound: 0.0,
            row_l2: done.row_l2,
            block_max: done.block_max,
            saturated: done.saturated,
            slice: None,
            parts: vec![part],
        };
        if meta.check(self.body.len()).is_err() {
            // A great deal of zeros: what they shrink to, no reader would believe.
            self.body.clear();
            let stored = Params { codec: Codec::None, ..self.params };
            done = self.encoder.encode(&stored, self.dtype, width as usize, &self.values, &mut self.body);
            meta.codec = done.codec;
        }
        self.out.tensor(name, &meta, &self.body)?;
        *step += 1;
        self.ledger.captured = self.ledger.captured.plus(Amount { tensors: 1, bytes: self.values.len() as u64 });
        Ok(())
    }
}

/// The block that a module's name tells: the first number between dots, as in `model.layers.3.mlp`.
fn layer(name: &str) -> Option<i32> {
    name.split('.').find_map(|part| part.parse().ok().filter(|&n| n >= 0))
}

#[cfg(test)]
mod tests {
    use super::layer;

    #[test]
    fn layers_of_module_names() {
        assert_eq!(layer("model.layers.3.self_attn.q_proj"), Some(3));
        assert_eq!(layer("transformer.h.11.mlp.c_fc"), Some(11));
        assert_eq!((layer("lm_head"), layer("l_out-3"), layer("a.-1.b")), (None, None, None));
    }
}
