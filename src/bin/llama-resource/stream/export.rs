//! `stream export`: arrays for others to load.

use std::path::Path;

use llama_resource_instrumentation::analyze::stream::Globs;
use llama_resource_instrumentation::export::stream::{
    self as out, Export, Layout, Wanted, layout, npy, parquet, safetensors,
};
use llama_resource_instrumentation::export::units::{bytes, count};
use llama_resource_instrumentation::format::stream::Content;
use llama_resource_instrumentation::read::stream::{Item, Location, StreamReader};
use serde_json::Value;

use super::args::{self, Float, Format};
use super::out::Stop;
use super::refuse_same;
use super::source::{self, Source};
use crate::terminal;

/// Runs the subcommand.
pub fn export(args: &args::Export) -> Result<(), Stop> {
    refuse_same(&args.file, &args.out)?;
    let header = header(&args.file)?;
    let mut source = Source::open(&args.file, "counting")?;
    let (mut layout, mut places) = (Layout::default(), Vec::<Location>::new());
    source.each_tensor(&Globs::new(&args.tensors), |t| {
        layout.add(t.name, t.meta);
        places.push(t.at);
        Ok(())
    })?;
    if layout.arrays().is_empty() {
        return Err(Stop::Failed(format!(
            "no tensor of `{}` fits `{}`: `stream ls` lists them",
            args.file.display(),
            args.tensors
        )));
    }
    let wanted = args.dtype.map(|float| match float {
        Float::F32 => Wanted::F32,
        Float::F16 => Wanted::F16,
    });
    layout.settle(wanted);
    if args.to != Format::Parquet {
        for name in layout.divided() {
            terminal::eprint_line(&format!(
                "rows of `{name}` have several lengths: one array for each, `{name}.nLENGTH`"
            ));
        }
    }
    let origin = layout::origin(&header, &layout);
    let (arrays, rows) = (layout.arrays().len(), layout.arrays().iter().map(|a| a.rows).sum::<u64>());
    let mut writer: Box<dyn Export> = match args.to {
        Format::Safetensors => Box::new(safetensors::Safetensors::new(&args.out, layout, origin)?),
        Format::Npy => Box::new(npy::Npy::new(&args.out, layout, origin)?),
        Format::Parquet => Box::new(parquet::Parquet::new(&args.out, origin, wanted)?),
    };
    let (mut values, mut total) = (Vec::new(), 0_u64);
    let mut second = Source::open(&args.file, "exporting")?;
    second.again(&places, |t| {
        source::values(t, &args.file, &mut values)?;
        total += values.len() as u64;
        Ok(writer.packet(t.name, t.meta, &values)?)
    })?;
    let out::Written { saturated } = writer.finish()?;
    let (arrays, rows, size) = (count(arrays as u64), count(rows), bytes(total));
    terminal::eprint_line(&format!(
        "{arrays} arrays, {rows} rows, {size} of values written to `{}`",
        args.out.display()
    ));
    if saturated > 0 {
        terminal::eprint_line(&format!(
            "{} values do not fit f16 and became its largest: --dtype f32 keeps them",
            count(saturated)
        ));
    }
    Ok(())
}

/// What the stream's first packet says; null if it is damaged.
fn header(file: &Path) -> Result<Value, Stop> {
    let mut reader = StreamReader::open(file)?;
    match reader.next_item()? {
        Some(Item::Packet { packet, .. }) => match packet.content {
            Content::Header(header) => Ok(header),
            _ => Ok(Value::Null),
        },
        _ => Ok(Value::Null),
    }
}
