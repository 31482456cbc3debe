//! Chosen tokens of a `tokens` packet: differences to the token before, one byte that says what differs.

use super::SampledToken;
use super::varint::{Cursor, Malformed, put, put_signed};

/// The sequence differs.
const OTHER_SEQ: u8 = 1;
/// The position is not the next one.
const OTHER_POS: u8 = 2;
/// The request differs.
const OTHER_REQUEST: u8 = 4;
/// A probability follows.
const PROBABILITY: u8 = 8;
const KNOWN: u8 = OTHER_SEQ | OTHER_POS | OTHER_REQUEST | PROBABILITY;

/// Fewest bytes of a token: flags, id, time.
const LEAST: usize = 3;

const START: SampledToken = SampledToken { seq: 0, pos: -1, token: 0, request: 0, probability: None, t_ns: 0 };

pub(super) fn put_tokens(out: &mut Vec<u8>, tokens: &[SampledToken]) {
    put(out, tokens.len() as u64);
    let mut last = START;
    for token in tokens {
        let mut flags = 0;
        if token.seq != last.seq {
            flags |= OTHER_SEQ;
        }
        let difference = i64::from(token.pos) - i64::from(last.pos) - 1;
        if difference != 0 {
            flags |= OTHER_POS;
        }
        if token.request != last.request {
            flags |= OTHER_REQUEST;
        }
        if token.probability.is_some() {
            flags |= PROBABILITY;
        }
        out.push(flags);
        if flags & OTHER_SEQ != 0 {
            put_signed(out, i64::from(token.seq) - i64::from(last.seq));
        }
        if flags & OTHER_POS != 0 {
            put_signed(out, difference);
        }
        if flags & OTHER_REQUEST != 0 {
            put_signed(out, token.request.wrapping_sub(last.request) as i64);
        }
        put_signed(out, i64::from(token.token));
        if let Some(probability) = token.probability {
            out.extend_from_slice(&probability.to_le_bytes());
        }
        put_signed(out, token.t_ns.wrapping_sub(last.t_ns) as i64);
        last = *token;
    }
}

pub(super) fn read_tokens(bytes: &mut Cursor<'_>) -> Result<Vec<SampledToken>, Malformed> {
    let n = bytes.count(LEAST, "tokens")?;
    let mut tokens = Vec::with_capacity(n);
    let mut last = START;
    let out_of_range = |_| Malformed::new("a token is out of range");
    let sum = |a: i32, b: i64| i32::try_from(i64::from(a).saturating_add(b)).map_err(out_of_range);
    for _ in 0..n {
        let flags = bytes.u8()?;
        if flags & !KNOWN != 0 {
            return Err(Malformed::new(format!("a token has unknown flags {flags:#04x}")));
        }
        if flags & OTHER_SEQ != 0 {
            last.seq = sum(last.seq, bytes.signed()?)?;
        }
        let difference = if flags & OTHER_POS != 0 { bytes.signed()? } else { 0 };
        last.pos = sum(last.pos, difference.saturating_add(1))?;
        if flags & OTHER_REQUEST != 0 {
            last.request = last.request.wrapping_add(bytes.signed()? as u64);
        }
        last.token = i32::try_from(bytes.signed()?).map_err(out_of_range)?;
        last.probability = if flags & PROBABILITY != 0 { Some(bytes.f32()?) } else { None };
        last.t_ns = last.t_ns.wrapping_add(bytes.signed()? as u64);
        tokens.push(last);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::{put_tokens, read_tokens};
    use crate::format::stream::SampledToken;
    use crate::format::stream::varint::Cursor;

    #[test]
    fn tokens_come_back_and_no_cut_list_does() {
        let token =
            |seq, pos, token, request, probability, t_ns| SampledToken { seq, pos, token, request, probability, t_ns };
        let tokens = [
            token(0, 0, 5, 0, None, 0),
            token(0, 1, 151_000, 0, Some(0.25), 1_000_000),
            token(3, 77, 9, 12, Some(f32::MIN_POSITIVE), 900_000),
            token(i32::MIN, i32::MAX, i32::MIN, u64::MAX, None, u64::MAX),
            token(i32::MAX, i32::MIN, i32::MAX, 0, Some(1.0), 0),
        ];
        let mut out = Vec::new();
        put_tokens(&mut out, &tokens);
        assert_eq!(read_tokens(&mut Cursor::new(&out)).unwrap(), tokens);
        for n in 0..out.len() {
            assert!(read_tokens(&mut Cursor::new(&out[..n])).is_err(), "{n}");
        }
    }
}
