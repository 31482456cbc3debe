//! Description of a tensor packet as bytes: the tensor, how it is stored, the shapes of its parts, their
//! steps and rows.

use super::rows::{RowsBlob, read_parts};
use super::varint::{Cursor, Malformed, put, put_str, zigzag};
use super::{Part, Route, Slice, TensorMeta};
use crate::codec::{Codec, DType};

/// Appends the description. `rows` stands for the steps, times and rows of `meta.parts`, of which only the shapes
/// are read then.
///
/// # Errors
/// When the parts do not fit together: other row lengths, other numbers of steps or rows.
pub(super) fn put_meta(out: &mut Vec<u8>, meta: &TensorMeta, rows: Option<&RowsBlob>) -> Result<(), Malformed> {
    let n = rows.map_or(meta.parts.len(), RowsBlob::parts);
    if n != meta.parts.len() {
        return Err(Malformed::new(format!("{} shapes for {n} steps", meta.parts.len())));
    }
    put_str(out, &meta.tensor);
    put_str(out, &meta.op);
    put(out, meta.layer.map_or(0, |l| zigzag(i64::from(l)) + 1));
    out.push(meta.component);
    put(out, u64::from(meta.occurrence));
    out.extend_from_slice(&[meta.dtype as u8, meta.codec as u8, meta.route as u8]);
    put(out, u64::from(meta.row_len));
    for value in [meta.error_bound, meta.row_l2, meta.block_max] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    put(out, meta.saturated);
    out.push(u8::from(meta.slice.is_some()));
    if let Some(slice) = &meta.slice {
        for value in [slice.start, slice.step, slice.full] {
            put(out, u64::from(value));
        }
    }
    put_shapes(out, &meta.parts, rows.is_none())?;
    let own;
    let rows = match rows {
        Some(rows) => rows,
        None => {
            own = RowsBlob::of(&meta.parts);
            &own
        }
    };
    put(out, rows.bytes().len() as u64);
    out.extend_from_slice(rows.bytes());
    Ok(())
}

/// Number of parts, row length, then runs of parts with the same shape.
fn put_shapes(out: &mut Vec<u8>, parts: &[Part], with_rows: bool) -> Result<(), Malformed> {
    let ne0 = parts.first().map_or(0, |p| p.ne[0]);
    put(out, parts.len() as u64);
    put(out, u64::from(ne0));
    for run in parts.chunk_by(|a, b| a.ne == b.ne && a.token_dim == b.token_dim) {
        let Some(first) = run.first() else { continue };
        check(first, ne0)?;
        put(out, run.len() as u64);
        out.push(first.token_dim);
        for &n in &first.ne[1..] {
            put(out, u64::from(n));
        }
    }
    if with_rows {
        parts.iter().try_for_each(check_rows)?;
    }
    Ok(())
}

fn check(part: &Part, ne0: u32) -> Result<(), Malformed> {
    if part.ne[0] != ne0 {
        return Err(Malformed::new(format!("parts with rows of {ne0} and of {} values in one packet", part.ne[0])));
    }
    if part.token_dim > 3 {
        return Err(Malformed::new(format!("token dimension {} is not 0 to 3", part.token_dim)));
    }
    Ok(())
}

fn check_rows(part: &Part) -> Result<(), Malformed> {
    let tokens = if part.token_dim == 0 { 0 } else { part.ne.get(usize::from(part.token_dim)).copied().unwrap_or(0) };
    if !part.rows.is_empty() && part.rows.len() != tokens as usize {
        return Err(Malformed::new(format!("{} rows for {tokens} tokens", part.rows.len())));
    }
    Ok(())
}

/// The description back; bytes behind it belong to later versions and are ignored.
pub(super) fn read_meta(bytes: &mut Cursor<'_>) -> Result<TensorMeta, Malformed> {
    let tensor = bytes.str("tensor name")?.to_owned();
    let op = bytes.str("operation")?.to_owned();
    let layer = match bytes.varint()? {
        0 => None,
        n => Some(i32::try_from(super::varint::unzigzag(n - 1)).map_err(|_| Malformed::new("layer is out of range"))?),
    };
    let component = bytes.u8()?;
    let occurrence = bytes.narrow("occurrence")?;
    let [dtype, codec, route] = bytes.array()?;
    let dtype = DType::from_u8(dtype).ok_or_else(|| Malformed::new(format!("unknown type of values {dtype}")))?;
    let codec = Codec::from_u8(codec).ok_or_else(|| Malformed::new(format!("unknown codec {codec}")))?;
    let route = Route::from_u8(route).ok_or_else(|| Malformed::new(format!("unknown route {route}")))?;
    let row_len = bytes.narrow("row length")?;
    let (error_bound, row_l2, block_max) = (bytes.f32()?, bytes.f32()?, bytes.f32()?);
    let saturated = bytes.varint()?;
    let slice = match bytes.u8()? {
        0 => None,
        1 => Some(Slice {
            start: bytes.narrow("start of the slice")?,
            step: bytes.narrow("step of the slice")?,
            full: bytes.narrow("length of the row")?,
        }),
        other => return Err(Malformed::new(format!("unknown kind of slice {other}"))),
    };
    let parts = read_all_parts(bytes)?;
    Ok(TensorMeta {
        tensor,
        op,
        layer,
        component,
        occurrence,
        dtype,
        codec,
        route,
        row_len,
        error_bound,
        row_l2,
        block_max,
        saturated,
        slice,
        parts,
    })
}

fn read_all_parts(bytes: &mut Cursor<'_>) -> Result<Vec<Part>, Malformed> {
    let n: usize = bytes.narrow("steps")?;
    let ne0 = bytes.narrow("row length")?;
    let mut runs = Vec::new();
    let mut covered = 0usize;
    while covered < n {
        let run: usize = bytes.narrow("steps of one shape")?;
        if run == 0 || run > n - covered {
            return Err(Malformed::new("the shapes do not cover the steps"));
        }
        let token_dim = bytes.u8()?;
        let mut ne = [ne0, 0, 0, 0];
        for n in &mut ne[1..] {
            *n = bytes.narrow("shape")?;
        }
        covered += run;
        runs.push((run, token_dim, ne));
    }
    let length = bytes.count(1, "bytes of rows")?;
    // Refuses more steps than its bytes can hold, so `n` is honest from here on.
    let mut parts = read_parts(bytes.take(length)?, n)?;
    let mut rest = parts.as_mut_slice();
    for (run, token_dim, ne) in runs {
        let (these, behind) = rest.split_at_mut_checked(run).unwrap_or_default();
        for part in these {
            (part.token_dim, part.ne) = (token_dim, ne);
            check(part, ne0)?;
            check_rows(part)?;
        }
        rest = behind;
    }
    Ok(parts)
}

#[cfg(test)]
pub(super) mod tests {
    use super::{put_meta, read_meta};
    use crate::codec::{Codec, DType};
    use crate::format::stream::rows::RowsBlob;
    use crate::format::stream::varint::Cursor;
    use crate::format::stream::{Part, Route, Row, Slice, TensorMeta};

    pub(in crate::format::stream) fn meta() -> TensorMeta {
        let rows = |n: i32, at: i32| (0..n).map(|i| Row { seq: 1, pos: at + i, token: 300 + i, request: 5 }).collect();
        TensorMeta {
            tensor: "Qcur-3".to_owned(),
            op: "ROPE".to_owned(),
            layer: Some(3),
            component: 4,
            occurrence: 1,
            dtype: DType::F32,
            codec: Codec::Bounded,
            route: Route::Callback,
            row_len: 576,
            error_bound: 1e-3,
            row_l2: 4.5e-4,
            block_max: 9.1e-4,
            saturated: 2,
            slice: Some(Slice { start: 1, step: 9, full: 576 }),
            parts: vec![
                Part { step: 10, t_ns: 123_456_789, ne: [64, 9, 5, 1], token_dim: 2, rows: rows(5, 0) },
                Part { step: 11, t_ns: 133_456_789, ne: [64, 9, 1, 1], token_dim: 2, rows: rows(1, 5) },
                Part { step: 12, t_ns: 143_456_789, ne: [64, 9, 1, 1], token_dim: 2, rows: vec![] },
                Part { step: 13, t_ns: 153_456_789, ne: [64, 9, 1, 1], token_dim: 0, rows: vec![] },
            ],
        }
    }

    fn bytes(meta: &TensorMeta) -> Vec<u8> {
        let mut out = Vec::new();
        put_meta(&mut out, meta, None).unwrap();
        out
    }

    #[test]
    fn a_description_comes_back_and_no_cut_one_does() {
        let meta = meta();
        let mut out = bytes(&meta);
        for n in 0..out.len() {
            assert!(read_meta(&mut Cursor::new(&out[..n])).is_err(), "{n}");
        }
        out.extend_from_slice(b"of a later version");
        assert_eq!(read_meta(&mut Cursor::new(&out)).unwrap(), meta);
        let plain = TensorMeta { layer: None, slice: None, parts: vec![], ..meta.clone() };
        assert_eq!(read_meta(&mut Cursor::new(&bytes(&plain))).unwrap(), plain);
        let extreme = TensorMeta { layer: Some(i32::MIN), row_l2: f32::INFINITY, saturated: u64::MAX, ..meta };
        assert_eq!(read_meta(&mut Cursor::new(&bytes(&extreme))).unwrap(), extreme);
    }

    #[test]
    fn shared_rows_give_the_same_bytes() {
        let meta = meta();
        let blob = RowsBlob::of(&meta.parts);
        let mut shapes = meta.clone();
        for part in &mut shapes.parts {
            (part.step, part.t_ns, part.rows) = (0, 0, vec![]);
        }
        let mut out = Vec::new();
        put_meta(&mut out, &shapes, Some(&blob)).unwrap();
        assert_eq!(out, bytes(&meta));
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let refused = |change: fn(&mut TensorMeta)| {
            let mut meta = meta();
            change(&mut meta);
            put_meta(&mut Vec::new(), &meta, None).unwrap_err().to_string()
        };
        assert!(refused(|m| m.parts[1].ne[0] = 65).contains("rows of 64 and of 65"));
        assert!(refused(|m| m.parts[0].rows.truncate(4)).contains("4 rows for 5 tokens"));
        assert!(refused(|m| m.parts[2].token_dim = 4).contains("token dimension 4"));
        assert!(put_meta(&mut Vec::new(), &meta(), Some(&RowsBlob::new())).is_err());
    }

    #[test]
    fn steps_that_cannot_be_there_are_refused_without_allocating() {
        // 2^40 steps of one shape, no bytes of rows.
        let mut out = bytes(&TensorMeta { parts: vec![], slice: None, ..meta() });
        out.truncate(out.len() - 3);
        let many = [0x80, 0x80, 0x80, 0x80, 0x80, 0x20];
        out.extend_from_slice(&many);
        out.push(64);
        out.extend_from_slice(&many);
        out.extend_from_slice(&[0, 1, 1, 1, 0]);
        assert!(read_meta(&mut Cursor::new(&out)).unwrap_err().to_string().contains("cannot stand"));
    }
}
