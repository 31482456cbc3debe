//! Requests: a row of slices for each slot, and which of them a step served.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};

use super::trace::{Kind, Name, Notes, Trace, Value};
use super::tracks::{Group, Tracks};
use crate::format::server::{RequestEnd, RequestStart, RequestToken};

/// Requests that have ended and that a step may still come for: steps are written later than requests.
const MOST_ENDED: usize = 256;

/// Requests that are open at once; a damaged log may end none.
const MOST_OPEN: usize = 1 << 14;

#[derive(Clone, Copy, Debug)]
struct Open {
    start: u64,
    seq: i32,
    context: u64,
}

/// The requests of a session.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<u64, Open>,
    ended: VecDeque<(u64, u64, u64)>,
    /// Context of the first request: a slot's name tells only others.
    context: Option<u64>,
}

fn ms(value: f64) -> u64 {
    // A cast of a float ends at the limits of the integer.
    (value * 1e6).round() as u64
}

impl Requests {
    fn slot(&mut self, context: u64, seq: i32) -> String {
        match *self.context.get_or_insert(context) == context {
            true => format!("slot {seq}"),
            false => format!("slot {seq} (context {context})"),
        }
    }

    pub(super) fn start(&mut self, e: &RequestStart, t: u64) {
        if self.open.len() < MOST_OPEN {
            self.open.insert(e.request_id, Open { start: t, seq: e.seq_id, context: e.context_id });
        }
    }

    /// Requests that were open at `t`, oldest first.
    pub(super) fn during(&self, t: u64) -> Vec<u64> {
        let open = self.open.iter().filter(|(_, o)| o.start <= t).map(|(id, _)| *id);
        let mut ids: Vec<u64> = self.ended.iter().filter(|e| e.1 <= t && t < e.2).map(|e| e.0).chain(open).collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn token<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        tracks: &mut Tracks,
        e: &RequestToken,
        t: u64,
    ) -> io::Result<()> {
        // One of no request stands on no slot.
        let Some(&Open { seq, context, .. }) = self.open.get(&e.request_id) else { return Ok(()) };
        let name = self.slot(context, seq);
        let row = tracks.first_row(trace, (Group::Requests, &name, i64::from(seq)), t)?;
        let kind = Kind::Instant { name: Name::Common("token"), category: "token" };
        tracks.event(trace, t, row, kind, &Notes::default())
    }

    /// Writes a request. `number`: what its steps carry too.
    pub(super) fn end<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        tracks: &mut Tracks,
        (e, end, number): (&RequestEnd, u64, u64),
    ) -> io::Result<()> {
        let start = self.open.remove(&e.request_id).map_or(end.saturating_sub(ms(e.duration_ms)), |o| o.start).min(end);
        self.note_ended(e.request_id, start, end);
        let name = self.slot(e.context_id, e.seq_id);
        let row = tracks.row(trace, (Group::Requests, &name, i64::from(e.seq_id)), start, end)?;
        let mut notes = Notes { correlation: Some(number), ..Notes::default() };
        notes.values = values_of(e);
        let name = format!("request {}", e.request_id);
        let begin = Kind::Begin { name: Name::Once(&name), category: "request" };
        tracks.event(trace, start, row, begin, &notes)?;
        let plain = Notes::default();
        let mut part = |from: u64, to: u64, name: &'static str, notes: &Notes| {
            let named = (Name::Common(name), name);
            tracks.slice(trace, row, (from, to), named, notes)
        };
        let worked = start.saturating_add(e.wait_ms.map_or(0, ms)).min(end);
        if worked > start {
            part(start, worked, "wait", &plain)?;
        }
        if let Some(ttft) = e.ttft_ms {
            let first_token = start.saturating_add(ms(ttft)).clamp(worked, end);
            let flow = Notes { flows: vec![number], ..Notes::default() };
            part(worked, first_token, "prefill", &flow)?;
            part(first_token, end, "decode", &plain)?;
        }
        tracks.event(trace, end, row, Kind::End, &plain)
    }

    fn note_ended(&mut self, id: u64, start: u64, end: u64) {
        if self.ended.len() == MOST_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((id, start, end));
    }

    /// Writes what has no end in the log, up to `end`.
    pub(super) fn finish<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        tracks: &mut Tracks,
        end: u64,
        number: impl Fn(u64) -> u64,
    ) -> io::Result<()> {
        for (id, open) in std::mem::take(&mut self.open) {
            let (name, end) = (self.slot(open.context, open.seq), end.max(open.start));
            let row = tracks.row(trace, (Group::Requests, &name, i64::from(open.seq)), open.start, end)?;
            let values = vec![("outcome", Value::Text("its end is not in the log".to_owned()))];
            let notes = Notes { values, correlation: Some(number(id)), flows: Vec::new() };
            let name = format!("request {id}");
            tracks.slice(trace, row, (open.start, end), (Name::Once(&name), "request"), &notes)?;
        }
        Ok(())
    }
}

fn values_of(e: &RequestEnd) -> Vec<(&'static str, Value)> {
    let mut values = vec![
        ("prompt_tokens", Value::Uint(e.prompt_tokens)),
        ("cached_tokens", Value::Uint(e.cached_tokens)),
        ("generated_tokens", Value::Uint(e.generated_tokens)),
        ("outcome", Value::Text(e.outcome.clone())),
    ];
    let texts = [("stop_reason", &e.stop_reason), ("completion_id", &e.completion_id)];
    values.extend(texts.into_iter().filter_map(|(name, text)| Some((name, Value::Text(text.clone()?)))));
    let numbers = [("ttft_ms", e.ttft_ms), ("queue_ms", e.queue_ms), ("tokens_per_second", e.tokens_per_second)];
    values.extend(numbers.into_iter().filter_map(|(name, number)| Some((name, Value::Double(number?)))));
    let counts = [("drafted", e.drafted), ("accepted", e.accepted)];
    values.extend(counts.into_iter().filter_map(|(name, count)| Some((name, Value::Uint(count?)))));
    values
}
