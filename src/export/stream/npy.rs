//! A folder of .npy files (NumPy format 1.0): NAME.npy, NAME.rows.npy, where sliced NAME.columns.npy, and index.json.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::elements::Converter;
use super::layout::{Array, Layout};
use super::{Export, Written, cannot_write, changed};
use crate::analyze::stream::labels;
use crate::codec::DType;
use crate::error::Error;
use crate::format::stream::TensorMeta;

/// Writes the folder.
#[derive(Debug)]
pub struct Npy {
    folder: PathBuf,
    layout: Layout,
    stems: Vec<String>,
    left: Vec<u64>,
    origin: Map<String, Value>,
    converter: Converter,
    rows: Vec<u8>,
}

impl Npy {
    /// Makes the folder's files with their headers. The folder must be new or empty.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(folder: &Path, layout: Layout, origin: Map<String, Value>) -> Result<Self, Error> {
        empty_folder(folder)?;
        let stems = file_names(layout.arrays());
        let left = layout.arrays().iter().map(|a| a.rows).collect();
        let npy = Self {
            folder: folder.to_owned(),
            layout,
            stems,
            left,
            origin,
            converter: Converter::default(),
            rows: vec![],
        };
        for (array, stem) in npy.layout.arrays().iter().zip(&npy.stems) {
            array.bytes()?;
            npy.create(&format!("{stem}.npy"), &header(array.element, &[array.rows, u64::from(array.width)]))?;
            npy.create(&format!("{stem}.rows.npy"), &header(DType::I32, &[array.rows, 4]))?;
            if let Some(columns) = array.columns() {
                let mut bytes = header(DType::I32, &[u64::from(array.width)]);
                bytes.extend(columns.iter().flat_map(|c| c.to_le_bytes()));
                npy.create(&format!("{stem}.columns.npy"), &bytes)?;
            }
        }
        Ok(npy)
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.folder.join(name);
        File::create_new(&path).and_then(|mut f| f.write_all(bytes)).map_err(|e| cannot_write(&path, e))
    }

    /// Opened for each packet: models have more tensors than a process may have files.
    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.folder.join(name);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(bytes))
            .map_err(|e| cannot_write(&path, e))
    }
}

impl Export for Npy {
    fn packet(&mut self, name: &str, meta: &TensorMeta, values: &[u8]) -> Result<(), Error> {
        let Some(number) = self.layout.number(name, meta) else { return Err(changed(name)) };
        let (array, stem) = (&self.layout.arrays()[number], self.stems[number].clone());
        self.rows.clear();
        self.rows.extend(labels::labels(meta).flat_map(|l| l.numbers()).flat_map(i32::to_le_bytes));
        let rows = self.rows.len() as u64 / 16;
        self.left[number] = self.left[number].checked_sub(rows).ok_or_else(|| changed(name))?;
        let mut converter = std::mem::take(&mut self.converter);
        self.append(&format!("{stem}.npy"), converter.convert(array.source, array.element, values))?;
        self.append(&format!("{stem}.rows.npy"), &self.rows)?;
        self.converter = converter;
        Ok(())
    }

    fn finish(&mut self) -> Result<Written, Error> {
        let entry = |(array, stem): (&Array, &String)| {
            let columns = array.has_columns().then(|| format!("{stem}.columns.npy"));
            let about = json!({
                "file": format!("{stem}.npy"), "rows": format!("{stem}.rows.npy"), "columns": columns,
                "shape": [array.rows, u64::from(array.width)], "dtype": array.element.name(), "layer": array.layer,
                "exactness": array.exactness(),
            });
            (array.name.clone(), about)
        };
        let arrays: Map<String, Value> = self.layout.arrays().iter().zip(&self.stems).map(entry).collect();
        self.origin.remove("tensors");
        let index = json!({ "origin": self.origin, "arrays": arrays });
        self.create("index.json", format!("{index:#}\n").as_bytes())?;
        Ok(Written { saturated: self.converter.saturated })
    }
}

/// The folder of an export: made, or found empty.
pub(super) fn empty_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|e| cannot_write(folder, e))?;
    let mut entries = fs::read_dir(folder).map_err(|e| cannot_write(folder, e))?;
    if entries.next().is_some() {
        return Err(Error::new(
            "writing",
            format!("`{}`", folder.display()),
            "the folder is not empty",
            "name a new one",
        ));
    }
    Ok(())
}

/// File names that every system takes and no two of which are equal, in any case.
fn file_names(arrays: &[Array]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    // Where to go on counting: thousands of names may become the same one.
    let mut numbers = BTreeMap::<String, u64>::new();
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let mut name = |array: &Array| {
        let mut stem: String = array.name.chars().map(safe).take(200).collect();
        if stem.is_empty() || stem.starts_with(['.', '-']) {
            stem.insert(0, '_');
        }
        let mut free = stem.clone();
        let n = numbers.entry(stem.to_lowercase()).or_insert(2);
        // NAME.rows and NAME.columns are files too.
        while ["", ".rows", ".columns"].iter().any(|end| taken.contains(&(free.to_lowercase() + end))) {
            free = format!("{stem}~{n}");
            *n += 1;
        }
        taken.extend(["", ".rows", ".columns"].map(|end| free.to_lowercase() + end));
        free
    };
    arrays.iter().map(&mut name).collect()
}

/// The header of a .npy file, padded so that the values begin at a multiple of 64.
fn header(element: DType, shape: &[u64]) -> Vec<u8> {
    let descr = match element {
        DType::F32 | DType::Bf16 => "<f4",
        DType::F16 => "<f2",
        DType::F64 => "<f8",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I16 => "<i2",
        DType::I8 => "|i1",
    };
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let shape = if shape.matches(',').count() > 1 { shape.trim_end_matches([',', ' ']) } else { shape.trim_end() };
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let padding = 64 - (10 + dict.len() + 1) % 64;
    dict += &" ".repeat(padding % 64);
    dict.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::header;
    use crate::codec::DType;

    #[test]
    fn header_is_what_numpy_writes() {
        // numpy.save(numpy.zeros((3, 576), "<f4")), but for the padding, which numpy makes larger by
        // its growth reserve.
        let bytes = header(DType::F32, &[3, 576]);
        assert_eq!(bytes.len() % 64, 0);
        let text = String::from_utf8_lossy(&bytes[10..]).into_owned();
        assert!(
            text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 576), }") && text.ends_with(" \n")
        );
        assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10, bytes.len());
        assert!(String::from_utf8_lossy(&header(DType::I32, &[7])).contains("'shape': (7,), }"));
    }
}
