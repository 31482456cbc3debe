//! A folder of Parquet files, partitioned by layer as Hive does it: `layer=0/part-0.parquet`. One record a
//! row of values.
//!
//! Columns: tensor, row (its number in the tensor), step, sequence, position, token, request (of the event log, 0 where
//! there is none), values (list of floats). Tensors outside of the blocks are in `layer=__HIVE_DEFAULT_PARTITION__`,
//! which readers show as NULL.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{
    ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, TypePtr};
use serde_json::{Map, Value};

use super::elements::Wanted;
use super::npy::empty_folder;
use super::safetensors::part_of;
use super::{Export, Written, cannot_write, create_part};
use crate::analyze::stream::labels;
use crate::error::Error;
use crate::format::stream::TensorMeta;
use crate::read::stream::to_f32;

/// Values that all layers together gather before the largest becomes a row group.
const MOST_PENDING: usize = 4 << 20;
/// What a row takes beside its values - name, numbers, length - in values.
const ROW_COST: usize = 24;
/// Row groups of a file; its footer describes each of them and is kept in memory until the end.
const MOST_GROUPS: usize = 1024;
/// Folder of what belongs to no layer, as Hive names it.
const NO_LAYER: &str = "__HIVE_DEFAULT_PARTITION__";

/// Rows of one layer that are not written yet.
#[derive(Debug, Default)]
struct Pending {
    tensors: Vec<ByteArray>,
    rows: Vec<i64>,
    steps: Vec<i64>,
    sequences: Vec<i32>,
    positions: Vec<i32>,
    tokens: Vec<i32>,
    requests: Vec<i64>,
    widths: Vec<usize>,
    values: Vec<f32>,
}

/// Files of one layer.
#[derive(Default)]
struct Partition {
    pending: Pending,
    writer: Option<SerializedFileWriter<File>>,
    files: usize,
    groups: usize,
}

/// Writes the folder.
pub struct Parquet {
    folder: PathBuf,
    /// Rows of each tensor that were taken.
    taken: BTreeMap<String, i64>,
    half: bool,
    schema: TypePtr,
    properties: WriterPropertiesPtr,
    partitions: BTreeMap<Option<i32>, Partition>,
    pending: usize,
    saturated: u64,
}

impl std::fmt::Debug for Parquet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parquet").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Parquet {
    /// Prepares the folder, which must be new or empty.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(folder: &Path, origin: Map<String, Value>, wanted: Option<Wanted>) -> Result<Self, Error> {
        empty_folder(folder)?;
        let half = wanted == Some(Wanted::F16);
        let element = if half { "fixed_len_byte_array(2) element (FLOAT16)" } else { "float element" };
        let schema = format!(
            "message activations {{
                required binary tensor (STRING); required int64 row; required int64 step;
                required int32 sequence; required int32 position; required int32 token; required int64 request;
                required group values (LIST) {{ repeated group list {{ required {element}; }} }}
            }}"
        );
        let schema = Arc::new(parse_message_type(&schema).map_err(|e| cannot_write(folder, e))?);
        let properties = Arc::new(properties(origin, half));
        let (taken, partitions) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { folder: folder.to_owned(), taken, half, schema, properties, partitions, pending: 0, saturated: 0 })
    }

    fn file_name(&self, layer: Option<i32>, number: usize) -> PathBuf {
        let layer = layer.map_or_else(|| NO_LAYER.to_owned(), |l| l.to_string());
        self.folder.join(format!("layer={layer}")).join(format!("part-{number}.parquet"))
    }

    /// Writes what a layer has gathered as a row group.
    fn flush(&mut self, layer: Option<i32>) -> Result<(), Error> {
        let Some(mut partition) = self.partitions.remove(&layer) else { return Ok(()) };
        let path = self.file_name(layer, partition.files);
        self.pending -= partition.pending.cost();
        if !partition.pending.widths.is_empty() {
            let mut writer = match partition.writer.take() {
                Some(writer) => writer,
                None => self.create(&path)?,
            };
            self.saturated += partition.pending.write(&mut writer, self.half).map_err(|e| cannot_write(&path, e))?;
            partition.groups += 1;
            if partition.groups < MOST_GROUPS {
                partition.writer = Some(writer);
            } else {
                finish_file(writer, &path)?;
                (partition.groups, partition.files) = (0, partition.files + 1);
            }
        }
        self.partitions.insert(layer, partition);
        Ok(())
    }

    /// Writes what the layers have gathered, the largest first, until little enough is left.
    fn flush_largest(&mut self) -> Result<(), Error> {
        while self.pending > MOST_PENDING {
            let largest = self.partitions.iter().max_by_key(|(_, p)| p.pending.cost()).map(|(&layer, _)| layer);
            let Some(layer) = largest else { break };
            self.flush(layer)?;
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<SerializedFileWriter<File>, Error> {
        let part = part_of(path);
        fs::create_dir_all(part.parent().unwrap_or(&self.folder)).map_err(|e| cannot_write(path, e))?;
        let file = create_part(&part).map_err(|e| cannot_write(&part, e))?;
        SerializedFileWriter::new(file, Arc::clone(&self.schema), Arc::clone(&self.properties))
            .map_err(|e| cannot_write(&part, e))
    }
}

impl Export for Parquet {
    fn packet(&mut self, name: &str, meta: &TensorMeta, bytes: &[u8]) -> Result<(), Error> {
        let width = labels::width(meta) as usize;
        let (tensor, mut rest) = (ByteArray::from(name), bytes);
        let mut next_row = self.taken.get(name).copied().unwrap_or(0);
        let mut labels = labels::labels(meta).peekable();
        // In pieces: a packet may have more rows than may wait.
        let most = (MOST_PENDING / (width + ROW_COST)).max(1);
        while labels.peek().is_some() {
            let pending = &mut self.partitions.entry(meta.layer).or_default().pending;
            let before = pending.cost();
            for label in labels.by_ref().take(most) {
                pending.tensors.push(tensor.clone());
                pending.rows.push(next_row);
                pending.steps.push(label.step.cast_signed());
                pending.sequences.push(label.sequence);
                pending.positions.push(label.position);
                pending.tokens.push(label.token);
                pending.requests.push(label.request.cast_signed());
                pending.widths.push(width);
                next_row += 1;
            }
            let (these, behind) = rest.split_at(rest.len().min(most.saturating_mul(width * meta.dtype.size())));
            to_f32(meta.dtype, these, &mut pending.values);
            rest = behind;
            self.pending += pending.cost() - before;
            self.flush_largest()?;
        }
        self.taken.insert(name.to_owned(), next_row);
        Ok(())
    }

    fn finish(&mut self) -> Result<Written, Error> {
        let layers: Vec<Option<i32>> = self.partitions.keys().copied().collect();
        for layer in layers {
            self.flush(layer)?;
        }
        for (layer, partition) in std::mem::take(&mut self.partitions) {
            if let Some(writer) = partition.writer {
                finish_file(writer, &self.file_name(layer, partition.files))?;
            }
        }
        Ok(Written { saturated: self.saturated })
    }
}

fn finish_file(writer: SerializedFileWriter<File>, path: &Path) -> Result<(), Error> {
    writer.close().map_err(|e| cannot_write(path, e))?;
    fs::rename(part_of(path), path).map_err(|e| cannot_write(path, e))
}

impl Pending {
    /// Memory that it takes, counted in values.
    fn cost(&self) -> usize {
        self.values.len() + self.widths.len() * ROW_COST
    }

    /// Writes and forgets everything; how many values did not fit half precision.
    fn write(&mut self, writer: &mut SerializedFileWriter<File>, half: bool) -> Result<u64, ParquetError> {
        let mut group = writer.next_row_group()?;
        {
            let mut column = next(&mut group)?;
            column.typed::<ByteArrayType>().write_batch(&self.tensors, None, None)?;
            column.close()?;
        }
        write_longs(&mut group, &self.rows)?;
        write_longs(&mut group, &self.steps)?;
        for numbers in [&self.sequences, &self.positions, &self.tokens] {
            let mut column = next(&mut group)?;
            column.typed::<Int32Type>().write_batch(numbers, None, None)?;
            column.close()?;
        }
        write_longs(&mut group, &self.requests)?;
        let saturated = self.write_values(&mut group, half)?;
        group.close()?;
        // Memory is kept for the next group; what one layer once needed is bounded.
        let Self { tensors, rows, steps, sequences, positions, tokens, requests, widths, values } = self;
        tensors.clear();
        [rows, steps, requests].into_iter().for_each(Vec::clear);
        [sequences, positions, tokens].into_iter().for_each(Vec::clear);
        widths.clear();
        values.clear();
        values.shrink_to(MOST_PENDING / 64);
        Ok(saturated)
    }

    fn write_values(&self, group: &mut SerializedRowGroupWriter<'_, File>, half: bool) -> Result<u64, ParquetError> {
        let mut column = next(group)?;
        let (mut rest, mut saturated) = (self.values.as_slice(), 0);
        let (mut defined, mut repeated, mut halves) = (Vec::new(), Vec::new(), Vec::new());
        for &width in &self.widths {
            let Some((row, behind)) = rest.split_at_checked(width) else { break };
            rest = behind;
            // A list begins at level 0 and goes on at 1; definition level 0 is the empty list.
            defined.clear();
            defined.resize(width.max(1), i16::from(width > 0));
            repeated.clear();
            repeated.resize(width.max(1), 1);
            repeated[0] = 0;
            if half {
                halves.clear();
                halves.extend(row.iter().map(|&x| narrow(x, &mut saturated)));
                column.typed::<FixedLenByteArrayType>().write_batch(&halves, Some(&defined), Some(&repeated))?;
            } else {
                column.typed::<FloatType>().write_batch(row, Some(&defined), Some(&repeated))?;
            }
        }
        column.close()?;
        Ok(saturated)
    }
}

fn write_longs(group: &mut SerializedRowGroupWriter<'_, File>, values: &[i64]) -> Result<(), ParquetError> {
    let mut column = next(group)?;
    column.typed::<Int64Type>().write_batch(values, None, None)?;
    column.close()
}

fn next<'a>(
    group: &'a mut SerializedRowGroupWriter<'_, File>,
) -> Result<parquet::file::writer::SerializedColumnWriter<'a>, ParquetError> {
    group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns than are written".to_owned()))
}

fn narrow(x: f32, saturated: &mut u64) -> FixedLenByteArray {
    let mut half = f16::from_f32(x);
    if half.is_infinite() && x.is_finite() {
        half = if x < 0.0 { f16::MIN } else { f16::MAX };
        *saturated += 1;
    }
    ByteArray::from(half.to_le_bytes().to_vec()).into()
}

/// Values are split by significance of their bytes before Zstandard sees them, halves not, since readers do not know
/// that encoding for them yet. The other columns repeat and have dictionaries.
fn properties(origin: Map<String, Value>, half: bool) -> WriterProperties {
    let values = ColumnPath::new(["values", "list", "element"].map(str::to_owned).to_vec());
    let text = |(key, value): (String, Value)| {
        let value = if let Value::String(s) = value { s } else { value.to_string() };
        KeyValue::new(key, value)
    };
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_dictionary_enabled(values.clone(), false)
        .set_column_encoding(values.clone(), if half { Encoding::PLAIN } else { Encoding::BYTE_STREAM_SPLIT })
        .set_column_statistics_enabled(values, EnabledStatistics::None)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(concat!("llama-resource ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(origin.into_iter().map(text).collect()))
        .build()
}
