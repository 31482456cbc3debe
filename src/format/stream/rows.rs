//! Steps and token rows of a packet as differences: what a decode step adds is a handful of bytes. All tensors of a
//! step share their rows, so they are coded once ([`RowsBlob`]) and copied into each packet.
//!
//! A row is predicted from the row before it, or from the row at the same place in the part before (the same slot, one
//! step ago): same sequence, next position, same request. One byte says what differs.

use super::varint::{Cursor, Malformed, put, put_signed};
use super::{Part, Row};

/// The prediction is the row at the same place of the part before, not the row before.
const FROM_PART_BEFORE: u8 = 1;
/// The sequence differs.
const OTHER_SEQ: u8 = 2;
/// The position is not the next one.
const OTHER_POS: u8 = 4;
/// The request differs.
const OTHER_REQUEST: u8 = 8;
/// No token id (-1); otherwise it follows.
const NO_TOKEN: u8 = 16;
const KNOWN: u8 = FROM_PART_BEFORE | OTHER_SEQ | OTHER_POS | OTHER_REQUEST | NO_TOKEN;

/// Fewest bytes of a part: step, time, number of rows.
const LEAST_PART: usize = 3;

/// What the first row is predicted from.
const START: Row = Row { seq: 0, pos: -1, token: -1, request: 0 };

/// Steps with their times and rows, coded once for every packet that holds the same steps.
#[derive(Clone, Debug)]
pub struct RowsBlob {
    bytes: Vec<u8>,
    parts: usize,
    step: u64,
    t_ns: u64,
    last: Row,
    before: Vec<Row>,
}

impl Default for RowsBlob {
    fn default() -> Self {
        Self { bytes: Vec::new(), parts: 0, step: 0, t_ns: 0, last: START, before: Vec::new() }
    }
}

impl RowsBlob {
    /// No step yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.before.clear();
        (self.parts, self.step, self.t_ns, self.last) = (0, 0, 0, START);
    }

    /// Adds a step. `rows` are those of the part, along its token dimension, or none.
    pub fn push(&mut self, step: u64, t_ns: u64, rows: &[Row]) {
        let out = &mut self.bytes;
        put_signed(out, step.wrapping_sub(self.step) as i64);
        put_signed(out, t_ns.wrapping_sub(self.t_ns) as i64);
        put(out, rows.len() as u64);
        for (i, row) in rows.iter().enumerate() {
            put_row(out, row, &self.last, self.before.get(i));
            self.last = *row;
        }
        self.before.clear();
        self.before.extend_from_slice(rows);
        (self.step, self.t_ns) = (step, t_ns);
        self.parts += 1;
    }

    /// The steps of these parts.
    #[must_use]
    pub fn of(parts: &[Part]) -> Self {
        let mut blob = Self::new();
        for part in parts {
            blob.push(part.step, part.t_ns, &part.rows);
        }
        blob
    }

    /// Number of steps in it.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// As they stand in a packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn differing(row: &Row, from: &Row) -> u8 {
    let mut flags = 0;
    if row.seq != from.seq {
        flags |= OTHER_SEQ;
    }
    if i64::from(row.pos) != i64::from(from.pos) + 1 {
        flags |= OTHER_POS;
    }
    if row.request != from.request {
        flags |= OTHER_REQUEST;
    }
    flags
}

fn put_row(out: &mut Vec<u8>, row: &Row, last: &Row, before: Option<&Row>) {
    let mut flags = differing(row, last);
    let mut from = last;
    if flags != 0
        && let Some(before) = before
    {
        let other = differing(row, before);
        if other.count_ones() < flags.count_ones() {
            (flags, from) = (other | FROM_PART_BEFORE, before);
        }
    }
    if row.token == -1 {
        flags |= NO_TOKEN;
    }
    out.push(flags);
    if flags & OTHER_SEQ != 0 {
        put_signed(out, i64::from(row.seq) - i64::from(from.seq));
    }
    if flags & OTHER_POS != 0 {
        put_signed(out, i64::from(row.pos) - i64::from(from.pos) - 1);
    }
    if flags & OTHER_REQUEST != 0 {
        put_signed(out, row.request.wrapping_sub(from.request) as i64);
    }
    if flags & NO_TOKEN == 0 {
        put_signed(out, i64::from(row.token));
    }
}

fn narrow(value: i64, what: &str) -> Result<i32, Malformed> {
    i32::try_from(value).map_err(|_| Malformed::new(format!("{what} {value} is out of range")))
}

fn sum(a: i32, b: i64, what: &str) -> Result<i32, Malformed> {
    narrow(i64::from(a).saturating_add(b), what)
}

fn read_row(bytes: &mut Cursor<'_>, last: &Row, before: Option<&Row>) -> Result<Row, Malformed> {
    let flags = bytes.u8()?;
    if flags & !KNOWN != 0 {
        return Err(Malformed::new(format!("a row has unknown flags {flags:#04x}")));
    }
    let from = match (flags & FROM_PART_BEFORE != 0, before) {
        (false, _) => last,
        (true, Some(before)) => before,
        (true, None) => return Err(Malformed::new("a row refers to a row that is not there")),
    };
    let mut row = Row { seq: from.seq, pos: from.pos.wrapping_add(1), token: -1, request: from.request };
    if flags & OTHER_SEQ != 0 {
        row.seq = sum(from.seq, bytes.signed()?, "sequence")?;
    }
    if flags & OTHER_POS != 0 {
        let difference = bytes.signed()?.saturating_add(1);
        row.pos = sum(from.pos, difference, "position")?;
    } else if from.pos == i32::MAX {
        return Err(Malformed::new("position is out of range"));
    }
    if flags & OTHER_REQUEST != 0 {
        row.request = from.request.wrapping_add(bytes.signed()? as u64);
    }
    if flags & NO_TOKEN == 0 {
        row.token = narrow(bytes.signed()?, "token")?;
    }
    Ok(row)
}

/// Reads `n` parts, all of the bytes. Shapes are left empty.
pub(super) fn read_parts(bytes: &[u8], n: usize) -> Result<Vec<Part>, Malformed> {
    if n > bytes.len() / LEAST_PART {
        return Err(Malformed::new(format!("{n} steps cannot stand in {} bytes", bytes.len())));
    }
    let mut bytes = Cursor::new(bytes);
    let mut parts: Vec<Part> = Vec::with_capacity(n);
    let (mut step, mut t_ns, mut last) = (0u64, 0u64, START);
    for _ in 0..n {
        step = step.wrapping_add(bytes.signed()? as u64);
        t_ns = t_ns.wrapping_add(bytes.signed()? as u64);
        let n_rows = bytes.count(1, "rows")?;
        let mut rows = Vec::with_capacity(n_rows);
        for i in 0..n_rows {
            let before = parts.last().and_then(|p| p.rows.get(i));
            last = read_row(&mut bytes, &last, before)?;
            rows.push(last);
        }
        parts.push(Part { step, t_ns, ne: [0; 4], token_dim: 0, rows });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::{RowsBlob, read_parts};
    use crate::format::stream::{Part, Row};

    fn row(seq: i32, pos: i32, token: i32, request: u64) -> Row {
        Row { seq, pos, token, request }
    }

    fn part(step: u64, t_ns: u64, rows: Vec<Row>) -> Part {
        Part { step, t_ns, ne: [0; 4], token_dim: 0, rows }
    }

    fn round_trip(parts: &[Part]) -> usize {
        let blob = RowsBlob::of(parts);
        assert_eq!(read_parts(blob.bytes(), blob.parts()).unwrap(), parts);
        // Whatever is cut off, the rest is refused.
        for n in 0..blob.bytes().len() {
            assert!(read_parts(&blob.bytes()[..n], blob.parts()).is_err(), "{n} of {}", blob.bytes().len());
        }
        blob.bytes().len()
    }

    #[test]
    fn extremes_come_back() {
        round_trip(&[
            part(u64::MAX, 0, vec![row(i32::MIN, i32::MAX, i32::MIN, u64::MAX), row(i32::MAX, i32::MIN, i32::MAX, 0)]),
            part(0, u64::MAX, vec![]),
            part(7, 7, vec![row(-1, -1, -1, 0), row(-1, -1, -1, 0), row(0, 0, 0, 1)]),
        ]);
    }

    #[test]
    fn a_prompt_costs_four_bytes_a_row_and_so_does_decoding_with_four_slots() {
        let prompt: Vec<Row> = (0..512).map(|i| row(2, i, 40_000 + i * 7 % 9_000, 17)).collect();
        assert!(round_trip(&[part(9, 1_000_000_000, prompt)]) < 512 * 4 + 20);
        let steps: Vec<Part> = (0..200)
            .map(|s| {
                part(s, 10_000_000 * s, (0..4).map(|q| row(q, 100 * q + s as i32, 45_000, 3 + q as u64)).collect())
            })
            .collect();
        assert!(round_trip(&steps) < 200 * (6 + 4 * 4) + 30, "{}", round_trip(&steps));
    }

    #[test]
    fn each_row_of_values_belongs_to_its_token() {
        let rows: Vec<Row> = (0..3).map(|i| row(0, i, 7, 0)).collect();
        let tokens = |ne, token_dim| {
            let part = Part { step: 0, t_ns: 0, ne, token_dim, rows: rows.clone() };
            (0..part.n_rows()).map(|r| part.row(r).map_or(-1, |row| row.pos)).collect::<Vec<_>>()
        };
        assert_eq!(tokens([8, 3, 1, 1], 1), [0, 1, 2]);
        assert_eq!(tokens([8, 2, 3, 1], 2), [0, 0, 1, 1, 2, 2], "heads below tokens");
        assert_eq!(tokens([8, 3, 2, 1], 1), [0, 1, 2, 0, 1, 2], "heads above tokens");
        assert_eq!(tokens([8, 2, 1, 3], 3), [0, 0, 1, 1, 2, 2]);
        assert_eq!(tokens([8, 2, 1, 1], 0), [-1, -1], "no dimension counts tokens");
        assert_eq!(tokens([8, 1, 1, 1], 200), [-1]);
    }

    #[test]
    fn impossible_counts_are_refused_without_allocating() {
        assert!(read_parts(&[0, 0, 0], usize::MAX).is_err());
        assert!(read_parts(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f], 1).is_err());
        assert!(read_parts(&[0, 0, 1, 0x80], 1).is_err(), "unknown flags");
        assert!(read_parts(&[0, 0, 1, 0x11], 1).is_err(), "no part before");
    }
}
