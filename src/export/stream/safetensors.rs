//! One .safetensors file: a JSON header, then every array at the place that the header gives it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::elements::Converter;
use super::layout::{Array, Layout};
use super::{Export, Written, cannot_write, changed, create_part};
use crate::analyze::stream::labels;
use crate::codec::DType;
use crate::error::Error;
use crate::format::stream::TensorMeta;

/// Where the next rows of an array go.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    values: u64,
    rows: u64,
    rows_left: u64,
}

/// Writes the file.
#[derive(Debug)]
pub struct Safetensors {
    path: PathBuf,
    part: PathBuf,
    file: File,
    layout: Layout,
    cursors: Vec<Cursor>,
    converter: Converter,
    rows: Vec<u8>,
}

/// A tensor of the file and its place behind the header.
struct Place {
    name: String,
    element: DType,
    shape: Vec<u64>,
    bytes: u64,
    /// The array, and which of its three tensors.
    of: (usize, Kind),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Values,
    Rows,
    Columns,
}

impl Safetensors {
    /// Makes the file with its header, at its full length.
    ///
    /// # Errors
    /// When it cannot be written, or names collide.
    pub fn new(path: &Path, layout: Layout, origin: Map<String, Value>) -> Result<Self, Error> {
        let places = places(layout.arrays())?;
        let (header, ends) = header(&places, origin)?;
        let part = part_of(path);
        let file = create_part(&part).map_err(|e| cannot_write(&part, e))?;
        let length = header.len() as u64 + ends.last().copied().unwrap_or(0);
        let empty = Cursor { values: 0, rows: 0, rows_left: 0 };
        let mut cursors = vec![empty; layout.arrays().len()];
        let mut columns = Vec::new();
        for (place, end) in places.iter().zip(&ends) {
            let (number, kind) = place.of;
            let start = header.len() as u64 + end - place.bytes;
            match kind {
                Kind::Values => cursors[number].values = start,
                Kind::Rows => (cursors[number].rows, cursors[number].rows_left) = (start, layout.arrays()[number].rows),
                Kind::Columns => columns.push((start, layout.arrays()[number].columns().unwrap_or_default())),
            }
        }
        let fill = || {
            file.set_len(length)?;
            file.write_all_at(&header, 0)?;
            for (start, columns) in &columns {
                let bytes: Vec<u8> = columns.iter().flat_map(|c| c.to_le_bytes()).collect();
                file.write_all_at(&bytes, *start)?;
            }
            Ok(())
        };
        fill().map_err(|e: std::io::Error| cannot_write(&part, e))?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            layout,
            cursors,
            converter: Converter::default(),
            rows: Vec::new(),
        })
    }
}

impl Export for Safetensors {
    fn packet(&mut self, name: &str, meta: &TensorMeta, values: &[u8]) -> Result<(), Error> {
        let Some(number) = self.layout.number(name, meta) else { return Err(changed(name)) };
        let (array, cursor) = (&self.layout.arrays()[number], &mut self.cursors[number]);
        self.rows.clear();
        self.rows.extend(labels::labels(meta).flat_map(|l| l.numbers()).flat_map(i32::to_le_bytes));
        cursor.rows_left = cursor.rows_left.checked_sub(self.rows.len() as u64 / 16).ok_or_else(|| changed(name))?;
        let bytes = self.converter.convert(array.source, array.element, values);
        self.file
            .write_all_at(bytes, cursor.values)
            .and_then(|()| self.file.write_all_at(&self.rows, cursor.rows))
            .map_err(|e| cannot_write(&self.part, e))?;
        cursor.values += bytes.len() as u64;
        cursor.rows += self.rows.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<Written, Error> {
        fs::rename(&self.part, &self.path).map_err(|e| cannot_write(&self.path, e))?;
        Ok(Written { saturated: self.converter.saturated })
    }
}

impl Drop for Safetensors {
    fn drop(&mut self) {
        // Half a file has no use; after `finish` there is none of that name.
        let _ = fs::remove_file(&self.part);
    }
}

/// The name of a file that is not whole yet.
pub(super) fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Wider elements first, so that every array is aligned to its element.
fn places(arrays: &[Array]) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    for (number, array) in arrays.iter().enumerate() {
        let mut place = |end: &str, element: DType, shape: Vec<u64>, bytes: u64, kind| {
            places.push(Place { name: format!("{}{end}", array.name), element, shape, bytes, of: (number, kind) });
        };
        let width = u64::from(array.width);
        place("", array.element, vec![array.rows, width], array.bytes()?, Kind::Values);
        place(".rows", DType::I32, vec![array.rows, 4], array.rows.saturating_mul(16), Kind::Rows);
        if array.has_columns() {
            place(".columns", DType::I32, vec![width], width * 4, Kind::Columns);
        }
    }
    places.sort_by_key(|p| std::cmp::Reverse(p.element.size()));
    Ok(places)
}

/// The header with its length before it, and where each tensor ends behind it.
fn header(places: &[Place], origin: Map<String, Value>) -> Result<(Vec<u8>, Vec<u64>), Error> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), Value::Object(origin));
    let (mut ends, mut end) = (Vec::new(), 0_u64);
    for place in places {
        let start = end;
        end = start.saturating_add(place.bytes);
        ends.push(end);
        let entry = json!({ "dtype": dtype(place.element), "shape": place.shape, "data_offsets": [start, end] });
        if entries.insert(place.name.clone(), entry).is_some() {
            return Err(Error::new(
                "exporting the stream",
                format!("tensor `{}`", place.name),
                "two arrays would have this name",
                "leave one of the tensors out with --tensors",
            ));
        }
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok((bytes, ends))
}

fn dtype(element: DType) -> &'static str {
    match element {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::Bf16 => "BF16",
        DType::F64 => "F64",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
    }
}
