//! Words of a mark in a ring: how names, numbers and tensors are laid out, written by the caller's thread and read
//! by the writer's.
//!
//! ```text
//!   word 0   kind (8 bits) | words of the whole mark (24 bits) | layer (32 bits)
//!   word 1   monotonic ns
//!   word 2   epoch (32 bits) | session (32 bits)
//!   ...      by kind; text is its length and then its bytes, eight a word
//! ```
//!
//! The layout is private to one process and one build: both sides are this file.

/// What a mark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A layer begins.
    LayerBegin = 1,
    /// A component begins: name.
    ComponentBegin = 2,
    /// The innermost recorded span ends.
    End = 3,
    /// An operation: name, component, number of inputs, number of the output's own sources behind them, whether the
    /// inputs are these sources (then they are not there), output, inputs, sources.
    Compute = 4,
    /// Memory of a tensor: component, usage, tensor.
    Allocation = 5,
    /// Memory is given back: resource id.
    Deallocation = 6,
    /// A feed-forward operation: name, weights, activations.
    Mlp = 7,
    /// A KV-cache operation: name, bytes.
    Cache = 8,
    /// A hand-off: from, to.
    Handoff = 9,
    /// A token: sequence, token, index in its session, ns since the one before.
    Token = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Allocation, Cache, ComponentBegin, Compute, Deallocation, End, Handoff, LayerBegin, Mlp, Token};
        [LayerBegin, ComponentBegin, End, Compute, Allocation, Deallocation, Mlp, Cache, Handoff, Token]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// Words of the smallest mark, an `End`.
pub const HEAD: usize = 3;

/// Stands for "no layer".
pub const NO_LAYER: i32 = i32::MIN;

/// First words of every mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Layer, [`NO_LAYER`] for none.
    pub layer: i32,
    /// When, monotonic ns.
    pub t_ns: u64,
    /// Recording that it belongs to.
    pub epoch: u32,
    /// Session, 0 for none.
    pub session: u32,
}

/// Begins a mark in `out`, which is emptied.
#[inline]
pub fn begin(out: &mut Vec<u64>, head: &Head) {
    out.clear();
    out.push(head.kind as u64 | u64::from(head.layer as u32) << 32);
    out.push(head.t_ns);
    out.push(u64::from(head.epoch) << 32 | u64::from(head.session));
}

/// Ends the mark: its length is known.
#[inline]
pub fn end(out: &mut [u64]) {
    let len = out.len() as u64 & 0xff_ffff;
    if let Some(first) = out.first_mut() {
        *first |= len << 8;
    }
}

/// Adds text.
#[inline]
pub fn text(out: &mut Vec<u64>, text: &str) {
    let bytes = text.as_bytes();
    out.push(bytes.len() as u64);
    let mut whole = bytes.chunks_exact(8);
    for chunk in &mut whole {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        out.push(u64::from_ne_bytes(word));
    }
    let rest = whole.remainder();
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        out.push(u64::from_ne_bytes(word));
    }
}

/// Reads the words of one mark. A number that is not there is 0, a text that is not there is empty.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u64]);

impl<'a> Reader<'a> {
    /// Takes the first mark off `words`. `None` when there is none, or when what is there is no mark.
    #[must_use]
    pub fn first(words: &mut &'a [u64]) -> Option<(Head, Self)> {
        let (&a, &t_ns, &c) = (words.first()?, words.get(1)?, words.get(2)?);
        let len = (a >> 8 & 0xff_ffff) as usize;
        if len < HEAD || len > words.len() {
            *words = &[];
            return None;
        }
        let (mark, rest) = words.split_at(len);
        *words = rest;
        let head = Head {
            kind: Kind::from_byte(a as u8)?,
            layer: (a >> 32) as u32 as i32,
            t_ns,
            epoch: (c >> 32) as u32,
            session: c as u32,
        };
        Some((head, Self(&mark[HEAD..])))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let Some((&n, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        n
    }

    /// The next text.
    pub fn text(&mut self) -> String {
        let len = self.number() as usize;
        let (words, rest) = self.0.split_at(len.div_ceil(8).min(self.0.len()));
        self.0 = rest;
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        bytes.truncate(len);
        // It was checked when it came in; a tensor's name was cut at its first bad byte.
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{HEAD, Head, Kind, NO_LAYER, Reader, begin, end, text};

    #[test]
    fn marks_come_out_as_they_went_in_one_after_the_other() {
        let (mut one, mut all) = (Vec::new(), Vec::new());
        let names = ["", "a", "attention", "12345678", "123456789", &"x".repeat(127)];
        for (i, name) in names.iter().enumerate() {
            let layer = if i == 0 { NO_LAYER } else { -(i as i32) };
            begin(&mut one, &Head { kind: Kind::Cache, layer, t_ns: 7, epoch: 8, session: 9 });
            text(&mut one, name);
            one.push(i as u64);
            end(&mut one);
            all.extend_from_slice(&one);
        }
        let mut rest = all.as_slice();
        for (i, name) in names.iter().enumerate() {
            let (head, mut r) = Reader::first(&mut rest).expect("a mark");
            assert_eq!((head.kind, head.t_ns, head.epoch, head.session), (Kind::Cache, 7, 8, 9));
            assert_eq!(head.layer, if i == 0 { NO_LAYER } else { -(i as i32) });
            assert_eq!((r.text().as_str(), r.number(), r.number()), (*name, i as u64, 0));
        }
        assert!(Reader::first(&mut rest).is_none());
    }

    #[test]
    fn nonsense_is_no_mark_and_ends_the_reading() {
        for words in [&[0u64; 2][..], &[0; 8], &[u64::MAX; 8], &[(HEAD as u64) << 8 | 99, 0, 0]] {
            let mut rest = words;
            assert!(Reader::first(&mut rest).is_none());
        }
    }
}
