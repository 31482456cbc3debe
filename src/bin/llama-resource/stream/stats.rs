//! `stream stats`: mean, deviation, norm and zeros of the values.

use std::collections::BTreeMap;

use llama_resource_instrumentation::analyze::stream::{Figures, Globs, Label, Moments, labels};
use llama_resource_instrumentation::export::stream::text;
use llama_resource_instrumentation::export::units::{known, printable, printable_json};
use serde_json::{Value, json};

use super::args::{self, By};
use super::out::{Out, Stop};
use super::source::{self, Source, Tensor};
use crate::terminal::stdout_style;

/// Runs the subcommand.
pub fn stats(args: &args::Stats) -> Result<(), Stop> {
    let mut source = Source::open(&args.file, "reading")?;
    let wanted = Globs::new(&args.tensors);
    let mut out = Out::new();
    let mut any = false;
    if args.by == By::Token {
        let mut printer = TokenPrinter::new(args, &mut out)?;
        let mut values = Vec::new();
        source.each_tensor(&wanted, |tensor| {
            any = true;
            source::values(tensor, &args.file, &mut values)?;
            by_token(tensor, &values, |label, size, figures| printer.line(tensor, label, size, figures))
        })?;
        printer.finish()?;
    } else {
        let (mut order, mut groups) = (Vec::new(), BTreeMap::<String, Group>::new());
        let mut values = Vec::new();
        source.each_tensor(&wanted, |tensor| {
            any = true;
            source::values(tensor, &args.file, &mut values)?;
            let key = match args.by {
                By::Layer => known(tensor.meta.layer, |l| l.to_string()),
                _ => tensor.name.to_owned(),
            };
            if !groups.contains_key(&key) {
                order.push(key.clone());
            }
            let group = groups.entry(key).or_insert_with(|| Group {
                layer: tensor.meta.layer,
                bytes: 0,
                moments: Moments::default(),
            });
            group.bytes += values.len() as u64;
            group.moments.add_bytes(tensor.meta.dtype, &values);
            Ok(())
        })?;
        if args.by == By::Layer {
            order.sort_by_key(|key| key.parse::<i32>().ok());
        }
        let lines = order.iter().filter_map(|key| Some((key.clone(), groups.get(key)?))).collect::<Vec<_>>();
        print_groups(args, &lines, &mut out)?;
    }
    out.finish()?;
    if !any {
        return Err(Stop::Failed(format!(
            "no tensor of `{}` fits `{}`: `stream ls` lists them",
            args.file.display(),
            args.tensors
        )));
    }
    Ok(())
}

struct Group {
    layer: Option<i32>,
    bytes: u64,
    moments: Moments,
}

fn print_groups(args: &args::Stats, lines: &[(String, &Group)], out: &mut Out) -> Result<(), Stop> {
    let by_layer = args.by == By::Layer;
    if args.json {
        let stats: Vec<Value> = lines
            .iter()
            .map(|(key, group)| {
                let mut line = figures_json(group.bytes, &group.moments.finish());
                line["layer"] = group.layer.into();
                if !by_layer {
                    line["tensor"] = key.as_str().into();
                }
                line
            })
            .collect();
        let by = if by_layer { "layer" } else { "tensor" };
        let json = json!({ "file": args.file.display().to_string(), "by": by, "stats": stats });
        return out.json(&format!("{json:#}"));
    }
    if args.csv {
        out.print(format_args!("{}layer,{FIGURES}\n", if by_layer { "" } else { "tensor," }))?;
        for (key, group) in lines {
            let name = if by_layer { String::new() } else { quoted(key) + "," };
            let layer = group.layer.map(|l| l.to_string()).unwrap_or_default();
            out.print(format_args!("{name}{layer},{}\n", figures_csv(group.bytes, &group.moments.finish())))?;
        }
        return Ok(());
    }
    let lines: Vec<(String, Figures)> = lines.iter().map(|(k, g)| (k.clone(), g.moments.finish())).collect();
    out.print(format_args!("{}", text::stats(&lines, if by_layer { "layer" } else { "tensor" }, stdout_style())))
}

/// The figures of each token of a packet: the rows of all its heads together. One token at a time, since a row may be
/// a single value.
fn by_token(
    tensor: &Tensor<'_>,
    values: &[u8],
    mut each: impl FnMut(Label, u64, &Figures) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let (meta, dtype) = (tensor.meta, tensor.meta.dtype);
    let width = labels::width(meta) as usize * dtype.size();
    let mut rest = values;
    for part in &meta.parts {
        let bytes = (labels::rows_of(part) as usize).saturating_mul(width);
        let Some((these, behind)) = rest.split_at_checked(bytes) else { return Ok(()) };
        rest = behind;
        for group in 0..labels::groups(part) {
            let (mut moments, mut size, mut first) = (Moments::default(), 0, None);
            for rows in labels::rows_of_group(part, group) {
                let bytes = these.get(rows.start as usize * width..rows.end as usize * width).unwrap_or_default();
                moments.add_bytes(dtype, bytes);
                size += bytes.len() as u64;
                first = first.or(Some(rows.start));
            }
            if let Some(row) = first {
                each(labels::label(part, row), size, &moments.finish())?;
            }
        }
    }
    Ok(())
}

/// Prints line by line: there may be more tokens than fit into memory.
struct TokenPrinter<'a> {
    out: &'a mut Out,
    json: bool,
    csv: bool,
    first: bool,
}

impl<'a> TokenPrinter<'a> {
    fn new(args: &args::Stats, out: &'a mut Out) -> Result<Self, Stop> {
        if args.json {
            let file = Value::from(args.file.display().to_string());
            out.print(format_args!("{{\"file\":{file},\"by\":\"token\",\"stats\":[\n"))?;
        } else if args.csv {
            out.print(format_args!("tensor,layer,step,sequence,position,token,{FIGURES}\n"))?;
        } else {
            let line = format!(
                "  {:<14} {:>6} {:>3} {:>5} {:>6} {:>7} {:>7} {:>7} {:>7} {:>7}",
                "tensor", "step", "seq", "pos", "token", "mean", "std", "min", "max", "L2"
            );
            out.print(format_args!("{}\n", stdout_style().faint(&line)))?;
        }
        Ok(Self { out, json: args.json, csv: args.csv, first: true })
    }

    fn line(&mut self, tensor: &Tensor<'_>, label: Label, size: u64, f: &Figures) -> Result<(), Stop> {
        let [_, sequence, position, token] = label.numbers();
        if self.json {
            let mut line = figures_json(size, f);
            line["tensor"] = tensor.name.into();
            line["layer"] = tensor.meta.layer.into();
            line["step"] = label.step.into();
            (line["sequence"], line["position"], line["token"]) = (sequence.into(), position.into(), token.into());
            let comma = if std::mem::take(&mut self.first) { "" } else { ",\n" };
            return self.out.print(format_args!("{comma}{}", printable_json(&line.to_string())));
        }
        if self.csv {
            let layer = tensor.meta.layer.map(|l| l.to_string()).unwrap_or_default();
            let (name, step) = (quoted(tensor.name), label.step);
            return self
                .out
                .print(format_args!("{name},{layer},{step},{sequence},{position},{token},{}\n", figures_csv(size, f)));
        }
        let [mean, std, min, max, l2] = [f.mean, f.std, f.min, f.max, f.l2].map(|v| known(v, text::short));
        let name = llama_resource_instrumentation::export::table::shorten(&printable(tensor.name), 14);
        let line = format!(
            "  {name:<14} {:>6} {sequence:>3} {position:>5} {token:>6} {mean:>7} {std:>7} {min:>7} {max:>7} {l2:>7}",
            label.step
        );
        self.out.print(format_args!("{line}\n"))
    }

    fn finish(self) -> Result<(), Stop> {
        if self.json { self.out.print(format_args!("\n]}}\n")) } else { Ok(()) }
    }
}

/// Columns of [`figures_csv`].
const FIGURES: &str = "count,bytes,nan,inf,mean,std,min,max,l2,sparsity";

fn figures_csv(size: u64, f: &Figures) -> String {
    let numbers =
        [f.mean, f.std, f.min, f.max, f.l2, f.sparsity].map(|v| v.map(|v| format!("{v:?}")).unwrap_or_default());
    format!("{},{size},{},{},{}", f.count, f.nan, f.inf, numbers.join(","))
}

fn figures_json(size: u64, f: &Figures) -> Value {
    let mut line = json!(f);
    line["bytes"] = size.into();
    line
}

/// A name as CSV wants it, on one line and safe for a terminal: CSV has no escapes for what is neither.
fn quoted(name: &str) -> String {
    let name = printable(name);
    if name.contains([',', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name }
}
