//! Zstandard frames, with contexts that are kept: a packet costs no allocation once the first was written.

use std::cell::RefCell;
use std::io::Cursor;

use zstd::bulk;
use zstd::zstd_safe::compress_bound;

use super::Undecodable;

/// Floats shrink by their exponents only; more effort than the lowest level finds nothing more.
const LEVEL: i32 = 1;

/// Compresses; keeps its context.
#[derive(Default)]
pub(super) struct Compressor(Option<bulk::Compressor<'static>>);

impl Compressor {
    /// Makes the context, unless it is there. False if there is no memory for it.
    pub(super) fn has_context(&mut self) -> bool {
        if self.0.is_none() {
            self.0 = bulk::Compressor::new(LEVEL).ok();
        }
        self.0.is_some()
    }

    /// Appends `data` as one frame; `false`, and nothing appended, if there is no memory for it.
    #[must_use]
    pub(super) fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> bool {
        self.has_context();
        let Some(context) = &mut self.0 else { return false };
        let start = out.len();
        out.reserve(compress_bound(data.len()));
        let mut end = Cursor::new(out);
        end.set_position(start as u64);
        context.compress_to_buffer(data, &mut end).is_ok()
    }
}

/// Writes the content of `frame` over `out`, whose length it must have.
pub(super) fn decompress(frame: &[u8], out: &mut [u8]) -> Result<(), Undecodable> {
    thread_local! {
        static CONTEXT: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = bulk::Decompressor::new().ok();
        }
        let context = context.as_mut().ok_or_else(|| Undecodable("Zstandard: no memory".to_owned()))?;
        match context.decompress_to_buffer(frame, &mut *out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(_) => Err(Undecodable("Zstandard frame: fewer values than there should be".to_owned())),
            Err(e) => Err(Undecodable(format!("Zstandard frame: {e}"))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_appended_and_come_back() {
        let mut compressor = Compressor::default();
        let mut out = vec![1, 2];
        for n in [0_usize, 1, 1000, 300_000] {
            let data: Vec<u8> = (0..n).map(|i| ((i * i) >> 5) as u8).collect();
            out.truncate(2);
            assert!(compressor.compress(&data, &mut out));
            assert_eq!(out[..2], [1, 2]);
            assert_eq!(out[2..6], [0x28, 0xB5, 0x2F, 0xFD]);
            let mut back = vec![0; n];
            decompress(&out[2..], &mut back).unwrap();
            assert!(back == data, "{n}");
            assert!(decompress(&out[2..], &mut vec![0; n + 1]).is_err(), "{n}");
            assert!(n == 0 || decompress(&out[2..], &mut vec![0; n - 1]).is_err(), "{n}");
        }
    }
}
