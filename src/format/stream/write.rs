//! Whole packets of every kind, appended to a buffer.

use serde_json::Value;

use super::index::Index;
use super::meta::put_meta;
use super::packet::{NO_VALUES, OpenPacket, begin, finish};
use super::rows::RowsBlob;
use super::tokens::put_tokens;
use super::varint::Malformed;
use super::{Kind, SampledToken, TensorMeta};
use crate::error::Result;

/// What the header says about the file's format.
pub const FORMAT_NAME: &str = "llama-resource-stream";

/// Ends a tensor packet that was begun with [`begin`] and whose encoded values stand behind it in `out`.
///
/// With `rows`, the steps, times and rows are those; of `meta.parts` only `ne` and `token_dim` are read, so `rows` in
/// them may be empty.
///
/// # Errors
/// When the parts do not fit together, or the packet reaches 4 GiB. `out` is then as before [`begin`].
pub fn finish_tensor(
    out: &mut Vec<u8>,
    open: OpenPacket,
    sequence: u64,
    meta: &TensorMeta,
    rows: Option<&RowsBlob>,
) -> Result<()> {
    finish(out, open, Kind::Tensor, sequence, |out| put_meta(out, meta, rows))
}

/// Appends a tensor packet with `body`, the encoded values.
///
/// # Errors
/// As [`finish_tensor`], and when the name is longer than 65,535 bytes.
pub fn write_tensor(out: &mut Vec<u8>, sequence: u64, name: &str, meta: &TensorMeta, body: &[u8]) -> Result<()> {
    let open = begin(out, name)?;
    out.extend_from_slice(body);
    finish_tensor(out, open, sequence, meta, None)
}

/// Appends the packet that a file, or the continuation of one, begins with. `fields` is an object; format and version
/// are added to it.
///
/// # Errors
/// When `fields` is no object.
pub fn write_header(out: &mut Vec<u8>, sequence: u64, fields: &Value) -> Result<()> {
    let open = begin_note(out, Kind::Header)?;
    finish(out, open, Kind::Header, sequence, |out| {
        let Value::Object(fields) = fields else { return Err(Malformed::new("the header is no JSON object")) };
        let mut header = serde_json::Map::new();
        header.insert("format".to_owned(), FORMAT_NAME.into());
        header.insert("version".to_owned(), super::STREAM_VERSION.into());
        header.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone())));
        put_json(out, &Value::Object(header))
    })
}

/// Appends chosen tokens.
///
/// # Errors
/// When there are so many that the packet reaches 4 GiB.
pub fn write_tokens(out: &mut Vec<u8>, sequence: u64, tokens: &[SampledToken]) -> Result<()> {
    let open = begin_note(out, Kind::Tokens)?;
    finish(out, open, Kind::Tokens, sequence, |out| {
        put_tokens(out, tokens);
        Ok(())
    })
}

/// Appends running totals.
///
/// # Errors
/// Only when the JSON reaches 4 GiB.
pub fn write_account(out: &mut Vec<u8>, sequence: u64, account: &Value) -> Result<()> {
    write_json(out, sequence, Kind::Account, account)
}

/// Appends a checkpoint: everything before it is complete, a capture may go on behind it.
///
/// # Errors
/// Only when the JSON reaches 4 GiB.
pub fn write_checkpoint(out: &mut Vec<u8>, sequence: u64, checkpoint: &Value) -> Result<()> {
    write_json(out, sequence, Kind::Checkpoint, checkpoint)
}

/// Appends an index.
///
/// # Errors
/// Only when it reaches 4 GiB.
pub fn write_index(out: &mut Vec<u8>, sequence: u64, index: &Index) -> Result<()> {
    let open = begin_note(out, Kind::Index)?;
    finish(out, open, Kind::Index, sequence, |out| {
        index.put(out);
        Ok(())
    })
}

/// Appends the last packet of a file that was ended cleanly. `last_index` is the offset of the last index packet,
/// added to `fields`.
///
/// # Errors
/// When `fields` is no object.
pub fn write_end(out: &mut Vec<u8>, sequence: u64, fields: &Value, last_index: Option<u64>) -> Result<()> {
    let mut fields = fields.clone();
    if let Value::Object(fields) = &mut fields {
        fields.insert("last_index".to_owned(), last_index.into());
    }
    write_json(out, sequence, Kind::End, &fields)
}

/// Begins a packet of anything but values.
fn begin_note(out: &mut Vec<u8>, kind: Kind) -> Result<OpenPacket> {
    let open = begin(out, kind.packet_name().unwrap_or_default())?;
    out.push(NO_VALUES);
    Ok(open)
}

fn write_json(out: &mut Vec<u8>, sequence: u64, kind: Kind, value: &Value) -> Result<()> {
    let open = begin_note(out, kind)?;
    finish(out, open, kind, sequence, |out| {
        if value.is_object() { put_json(out, value) } else { Err(Malformed::new("no JSON object")) }
    })
}

fn put_json(out: &mut Vec<u8>, value: &Value) -> std::result::Result<(), Malformed> {
    serde_json::to_writer(out, value).map_err(|e| Malformed::new(e.to_string()))
}
