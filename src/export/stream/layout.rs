//! Which arrays an export has: names, shapes, types, from the descriptions of the packets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::elements::{self, Wanted};
use crate::analyze::stream::inventory::decimal;
use crate::analyze::stream::labels;
use crate::codec::DType;
use crate::error::Error;
use crate::format::stream::{Slice, TensorMeta};

/// Rows of one tensor that have the same length, type and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Name of the array: the packets' name, with `.nWIDTH` behind it where that tensor has rows of several lengths.
    pub name: String,
    /// Values in a row.
    pub width: u32,
    /// Rows.
    pub rows: u64,
    /// Type in the stream.
    pub source: DType,
    /// Type in the export.
    pub element: DType,
    /// Elements of the host's row that are stored, if not all.
    pub slice: Option<Slice>,
    /// Block of the model.
    pub layer: Option<i32>,
    bounds: Bounds,
}

/// How exact an array is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Bounds {
    codecs: BTreeSet<&'static str>,
    error_bound: f32,
    row_l2: f32,
    block_max: f32,
}

/// What makes rows of the same name different arrays.
type Key = (String, u32, u8, Option<(u32, u32, u32)>);

/// All arrays of an export.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    arrays: Vec<Array>,
    numbers: BTreeMap<Key, usize>,
}

impl Layout {
    /// Counts the rows of a packet.
    pub fn add(&mut self, name: &str, meta: &TensorMeta) {
        let arrays = &mut self.arrays;
        let number = *self.numbers.entry(key(name, meta)).or_insert_with(|| {
            arrays.push(Array {
                name: name.to_owned(),
                width: labels::width(meta),
                rows: 0,
                source: meta.dtype,
                element: meta.dtype,
                slice: meta.slice,
                layer: meta.layer,
                bounds: Bounds::default(),
            });
            arrays.len() - 1
        });
        if let Some(array) = self.arrays.get_mut(number) {
            array.rows = meta.parts.iter().map(labels::rows_of).fold(array.rows, u64::saturating_add);
            array.bounds.codecs.insert(meta.codec.name());
            array.bounds.error_bound = array.bounds.error_bound.max(meta.error_bound);
            array.bounds.row_l2 = array.bounds.row_l2.max(meta.row_l2);
            array.bounds.block_max = array.bounds.block_max.max(meta.block_max);
        }
    }

    /// Gives every array its name and type. After this the arrays stand still.
    pub fn settle(&mut self, wanted: Option<Wanted>) {
        let mut of_name: BTreeMap<String, usize> = BTreeMap::new();
        self.arrays.iter().for_each(|a| *of_name.entry(a.name.clone()).or_default() += 1);
        let mut taken: BTreeSet<String> = of_name.keys().cloned().collect();
        let mut numbers = BTreeMap::<String, u64>::new();
        for array in &mut self.arrays {
            array.element = elements::target(array.source, wanted);
            if of_name.get(&array.name).is_some_and(|&n| n > 1) {
                let by_width = format!("{}.n{}", array.name, array.width);
                let next = numbers.entry(by_width.clone()).or_insert(1);
                let mut free = by_width.clone();
                while taken.contains(&free) {
                    *next += 1;
                    free = format!("{by_width}.{next}");
                }
                taken.insert(free.clone());
                array.name = free;
            }
        }
    }

    /// The arrays, in the order in which the stream first has them.
    #[must_use]
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// The number of the array that a packet's rows belong to.
    #[must_use]
    pub fn number(&self, name: &str, meta: &TensorMeta) -> Option<usize> {
        self.numbers.get(&key(name, meta)).copied()
    }

    /// Names of tensors whose rows have several lengths.
    #[must_use]
    pub fn divided(&self) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        self.numbers.keys().filter(|(name, ..)| !seen.insert(name.as_str())).map(|(name, ..)| name.as_str()).collect()
    }
}

fn key(name: &str, meta: &TensorMeta) -> Key {
    let slice = meta.slice.map(|s| (s.start, s.step, s.full));
    (name.to_owned(), labels::width(meta), meta.dtype as u8, slice)
}

impl Array {
    /// Bytes of the array's values in the export.
    ///
    /// # Errors
    /// If they are more than a file can hold: a damaged description.
    pub fn bytes(&self) -> Result<u64, Error> {
        let bytes = u128::from(self.rows) * u128::from(self.width) * self.element.size() as u128;
        u64::try_from(bytes).ok().filter(|&b| b <= 1 << 60).ok_or_else(|| {
            let found = format!("{} rows of {} values are impossible", self.rows, self.width);
            Error::new("exporting the stream", format!("tensor `{}`", self.name), found, "leave it out with --tensors")
        })
    }

    /// Whether [`Self::columns`] says which are stored. Without a row nothing vouches for the width.
    #[must_use]
    pub fn has_columns(&self) -> bool {
        self.slice.is_some() && self.rows > 0
    }

    /// Numbers of the columns that are stored; `None` if all are.
    #[must_use]
    pub fn columns(&self) -> Option<Vec<i32>> {
        let Slice { start, step, .. } = self.slice.filter(|_| self.has_columns())?;
        let column = |i: u32| u64::from(start) + u64::from(i) * u64::from(step);
        Some((0..self.width).map(|i| i32::try_from(column(i)).unwrap_or(-1)).collect())
    }

    /// How exact the values are, for those who open the export.
    #[must_use]
    pub fn exactness(&self) -> Value {
        json!({
            "codec": self.bounds.codecs.iter().copied().collect::<Vec<_>>().join(","),
            "error_bound": decimal(self.bounds.error_bound),
            "row_l2_max": decimal(self.bounds.row_l2),
            "block_max": decimal(self.bounds.block_max),
        })
    }
}

/// What an export says about its origin: strings only, as safetensors wants it. `header` is the stream's own.
#[must_use]
pub fn origin(header: &Value, layout: &Layout) -> Map<String, Value> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        // Written from a float, whose decimals it should show.
        Value::Number(n) if n.is_f64() => n.as_f64().map(|x| (x as f32).to_string()),
        other => Some(other.to_string()),
    };
    let mut out = Map::new();
    out.insert("source".into(), "llama-resource-stream".into());
    for key in ["library_version", "session_id", "created_unix_us", "selection", "codec", "error_bound"] {
        if let Some(value) = header.get(key).and_then(text) {
            out.insert(key.into(), value.into());
        }
    }
    for key in ["model", "host"] {
        if let Some(value) = header.get(key).filter(|v| !v.is_null()) {
            out.insert(key.into(), value.to_string().into());
        }
    }
    let exactness: Map<String, Value> = layout.arrays().iter().map(|a| (a.name.clone(), a.exactness())).collect();
    out.insert("tensors".into(), Value::Object(exactness).to_string().into());
    out.insert("rows_columns".into(), "step, sequence, position, token".into());
    out
}
