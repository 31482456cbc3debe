//! Which step, sequence, position and token a row of values belongs to.

use std::ops::Range;

use crate::format::stream::{Part, Row, TensorMeta};

/// What a row is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Step (ubatch).
    pub step: u64,
    /// Sequence; -1 where not known.
    pub sequence: i32,
    /// Position; -1 where not known.
    pub position: i32,
    /// Token id; -1 where not known.
    pub token: i32,
    /// Request in the event log; 0 where there is none.
    pub request: u64,
}

impl Label {
    /// The form in which exports carry it: step, sequence, position, token. A step beyond 32 bits is -1.
    #[must_use]
    pub fn numbers(&self) -> [i32; 4] {
        [i32::try_from(self.step).unwrap_or(-1), self.sequence, self.position, self.token]
    }
}

/// Values in a row as exports have it.
#[must_use]
pub fn width(meta: &TensorMeta) -> u32 {
    meta.parts.first().map_or(0, |part| part.ne[0])
}

/// Rows of a part: `ne[1] * ne[2] * ne[3]`.
#[must_use]
pub fn rows_of(part: &Part) -> u64 {
    part.ne[1..].iter().fold(1_u64, |n, &ne| n.saturating_mul(u64::from(ne)))
}

/// Tokens of a part; `None` if no dimension counts them.
#[must_use]
pub fn tokens_of(part: &Part) -> Option<u64> {
    match part.token_dim {
        d @ 1..=3 => Some(u64::from(part.ne[usize::from(d)])),
        _ => None,
    }
}

/// Which token row `r` of a part belongs to, counted along its token dimension.
#[must_use]
pub fn token_of(part: &Part, row: u64) -> Option<u64> {
    let tokens = tokens_of(part)?;
    let stride = part.ne[1..usize::from(part.token_dim)].iter().fold(1_u64, |n, &ne| n.saturating_mul(u64::from(ne)));
    (tokens > 0 && stride > 0).then(|| row / stride % tokens)
}

/// How many groups of rows a part has: one for each token, or one for each row where no dimension counts tokens.
#[must_use]
pub fn groups(part: &Part) -> u64 {
    let rows = rows_of(part);
    if rows == 0 { 0 } else { tokens_of(part).unwrap_or(rows) }
}

/// The rows of group `g` of [`groups`], as runs of rows that follow each other: all heads of a token.
pub fn rows_of_group(part: &Part, g: u64) -> impl Iterator<Item = Range<u64>> {
    let (rows, tokens) = (rows_of(part), groups(part).max(1));
    let below = tokens_of(part).map_or(1, |_| {
        part.ne[1..usize::from(part.token_dim)].iter().fold(1_u64, |n, &ne| n.saturating_mul(u64::from(ne)))
    });
    let stride = below.saturating_mul(tokens);
    (0..rows.checked_div(stride).unwrap_or(0)).map(move |outer| {
        let first = outer * stride + g * below;
        first..first + below
    })
}

/// The label of row `r` of a part.
#[must_use]
pub fn label(part: &Part, row: u64) -> Label {
    let known = token_of(part, row).and_then(|t| part.rows.get(usize::try_from(t).ok()?));
    let row = known.copied().unwrap_or(Row { seq: -1, pos: -1, token: -1, request: 0 });
    Label { step: part.step, sequence: row.seq, position: row.pos, token: row.token, request: row.request }
}

/// The labels of all rows of a packet, in the order of its values.
pub fn labels(meta: &TensorMeta) -> impl Iterator<Item = Label> + '_ {
    meta.parts.iter().flat_map(|part| (0..rows_of(part)).map(move |r| label(part, r)))
}

#[cfg(test)]
mod tests {
    use super::{Label, groups, label, rows_of, rows_of_group, token_of};
    use crate::format::stream::{Part, Row};

    fn part(ne: [u32; 4], token_dim: u8, tokens: i32) -> Part {
        let row = |i| Row { seq: i % 2, pos: 10 + i, token: 100 + i, request: 7 };
        Part { step: 5, t_ns: 0, ne, token_dim, rows: (0..tokens).map(row).collect() }
    }

    #[test]
    fn heads_lie_within_a_token_or_tokens_within_a_head() {
        // [64, 3 heads, 4 tokens]: rows 0-2 are token 0.
        let p = part([64, 3, 4, 1], 2, 4);
        assert_eq!(rows_of(&p), 12);
        assert_eq!((0..12).filter_map(|r| token_of(&p, r)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        // [64, 4 tokens, 3 heads]: rows 0-3 are tokens 0-3 of head 0.
        let p = part([64, 4, 3, 1], 1, 4);
        assert_eq!((0..12).filter_map(|r| token_of(&p, r)).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(label(&p, 6), Label { step: 5, sequence: 0, position: 12, token: 102, request: 7 });
    }

    #[test]
    fn groups_are_the_rows_of_a_token() {
        for p in [
            part([64, 3, 4, 1], 2, 4),
            part([64, 4, 3, 1], 1, 4),
            part([8, 2, 3, 5], 2, 3),
            part([8, 2, 3, 5], 3, 5),
            part([8, 2, 3, 1], 0, 0),
            part([8, 0, 3, 1], 2, 3),
        ] {
            let mut seen = Vec::new();
            for g in 0..groups(&p) {
                for row in rows_of_group(&p, g).flatten() {
                    assert_eq!(token_of(&p, row).unwrap_or(row), g, "{p:?}");
                    seen.push(row);
                }
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..rows_of(&p)).collect::<Vec<_>>(), "{p:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_minus_one() {
        for p in
            [part([8, 2, 1, 1], 1, 0), part([8, 2, 1, 1], 0, 0), part([8, 2, 0, 1], 2, 0), part([8, 2, 1, 1], 9, 2)]
        {
            assert_eq!(label(&p, 1).numbers(), [5, -1, -1, -1]);
        }
        let mut far = part([8, 1, 1, 1], 1, 1);
        far.step = 1 << 40;
        assert_eq!(label(&far, 0).numbers(), [-1, 0, 10, 100]);
    }
}
