//! `stream cat`: values as text.

use llama_resource_instrumentation::analyze::stream::{Globs, labels, values};
use llama_resource_instrumentation::codec::DType;
use llama_resource_instrumentation::read::stream::to_f64;
use serde_json::{Value, json};

use super::args;
use super::out::{Out, Stop};
use super::source::{self, Source};

/// `A-B`, `A-` or `A`: first and last row.
pub fn rows(text: &str) -> Result<(u64, u64), String> {
    let number =
        |t: &str| t.trim().parse::<u64>().map_err(|_| format!("`{t}` is no row number: expected A-B, A- or A"));
    let range = match text.split_once('-') {
        None => (number(text)?, number(text)?),
        Some((first, "")) => (number(first)?, u64::MAX),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    if range.0 > range.1 {
        Err(format!("the first row, {}, is behind the last, {}", range.0, range.1))
    } else {
        Ok(range)
    }
}

/// Runs the subcommand.
pub fn cat(args: &args::Cat) -> Result<(), Stop> {
    let (first, last) = args.rows.unwrap_or((0, u64::MAX));
    let (mut row, mut found) = (0_u64, false);
    let (mut bytes, mut numbers, mut line) = (Vec::new(), Vec::new(), String::new());
    let mut out = Out::new();
    if !args.json {
        out.print(format_args!("# step sequence position token values\n"))?;
    }
    Source::open(&args.file, "reading")?.each_tensor(&Globs::exactly(&args.name), |tensor| {
        found = true;
        let rows: u64 = tensor.meta.parts.iter().map(labels::rows_of).sum();
        let begins = row;
        row = row.saturating_add(rows);
        if begins > last || row <= first {
            return Ok(());
        }
        source::values(tensor, &args.file, &mut bytes)?;
        let (dtype, width) = (tensor.meta.dtype, labels::width(tensor.meta) as usize);
        let mut rows = bytes.chunks(width.saturating_mul(dtype.size()).max(1));
        for (number, label) in (begins..).zip(labels::labels(tensor.meta)) {
            let bytes = rows.next().unwrap_or_default();
            if number > last {
                break;
            }
            if number >= first {
                numbers.clear();
                to_f64(dtype, bytes, &mut numbers);
                let [_, sequence, position, token] = label.numbers();
                line.clear();
                if args.json {
                    let values: Vec<Value> = numbers.iter().map(|&x| value(dtype, x)).collect();
                    let json = json!({
                        "step": label.step, "sequence": sequence, "position": position, "token": token, "request": label.request,
                        "values": values,
                    });
                    out.json(&json.to_string())?;
                } else {
                    line += &format!("{} {sequence} {position} {token}", label.step);
                    numbers.iter().for_each(|&x| push(&mut line, dtype, x));
                    out.print(format_args!("{line}\n"))?;
                }
            }
        }
        Ok(())
    })?;
    out.finish()?;
    if !found {
        return Err(Stop::Failed(format!(
            "no tensor `{}` in `{}`: `stream ls` lists them",
            args.name,
            args.file.display()
        )));
    }
    if args.rows.is_some() && row <= first {
        return Err(Stop::Failed(format!(
            "`{}` has {row} rows, --rows begins at {first} (the first row is 0)",
            args.name
        )));
    }
    Ok(())
}

/// The shortest text that reads back as the same value of the type.
fn push(line: &mut String, dtype: DType, x: f64) {
    use std::fmt::Write;
    let _ = match dtype {
        DType::F64 => write!(line, " {x:?}"),
        _ if values::is_float(dtype) => write!(line, " {:?}", x as f32),
        _ => write!(line, " {x}"),
    };
}

/// JSON has no NaN and no infinities: they are strings.
fn value(dtype: DType, x: f64) -> Value {
    if x.is_finite() {
        let short = || format!("{:?}", x as f32).parse::<f64>().unwrap_or(x);
        return match dtype {
            DType::F64 => json!(x),
            _ if values::is_float(dtype) => json!(short()),
            _ => json!(x as i64),
        };
    }
    let text = if x.is_nan() {
        "NaN"
    } else if x > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    };
    text.into()
}

#[cfg(test)]
mod tests {
    use super::{push, rows, value};
    use llama_resource_instrumentation::codec::DType;

    #[test]
    fn ranges_of_rows() {
        assert_eq!((rows("3"), rows("0-9"), rows("5-")), (Ok((3, 3)), Ok((0, 9)), Ok((5, u64::MAX))));
        for wrong in ["", "-", "a-b", "9-3", "-5", "1-2-3"] {
            assert!(rows(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_as_short_as_they_can_be_and_exact() {
        let mut line = String::new();
        push(&mut line, DType::F32, f64::from(0.1_f32));
        push(&mut line, DType::F64, 0.1);
        push(&mut line, DType::I32, -3.0);
        push(&mut line, DType::F16, f64::NAN);
        push(&mut line, DType::F32, f64::from(f32::MIN_POSITIVE / 2.0));
        assert_eq!(line, " 0.1 0.1 -3 NaN 5.877472e-39");
        assert_eq!(value(DType::F32, f64::from(0.1_f32)).to_string(), "0.1");
        assert_eq!(value(DType::F32, f64::NEG_INFINITY).to_string(), "\"-Infinity\"");
    }
}
