//! `/api/v1/resource-logs`: the events themselves, filtered, from the beginning or from a cursor on, and on
//! as they come.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use llama_resource_instrumentation::format::Line;
use llama_resource_instrumentation::read::{Cursor, Follower};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::watch::Shared;

/// Bytes that are read before what was found is handed on.
const TURN_BYTES: usize = 1 << 16;

/// Pieces that wait for a slow reader; then the reading waits for it.
const MOST_WAITING: usize = 4;

/// Between two looks at a log that is followed.
const PERIOD: Duration = Duration::from_millis(100);

/// After so long without an event an empty comment is sent, which shows whether the reader is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Kinds of events; all if empty.
    pub event: BTreeSet<String>,
    /// Log, by its name; all if not given.
    pub log: Option<String>,
    /// Session.
    pub session: Option<String>,
    /// Request.
    pub request: Option<u64>,
    /// Layer.
    pub layer: Option<i64>,
    /// Not before this moment, Unix seconds.
    pub since: Option<f64>,
    /// Not after this moment, Unix seconds.
    pub until: Option<f64>,
    /// At most so many events.
    pub limit: Option<u64>,
    /// Go on as events come.
    pub follow: bool,
    /// Server-sent events instead of lines.
    pub sse: bool,
    /// Begin where this says.
    pub cursor: Option<Cursor>,
}

impl Query {
    /// Takes `name=value` pairs apart. The error says which is wrong.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in pairs {
            let wrong = |expected: &str| format!("`{name}={value}`: expected {expected}");
            match name.as_str() {
                "event" => query.event.extend(value.split(',').filter(|v| !v.is_empty()).map(str::to_owned)),
                "log" => query.log = Some(value.clone()),
                "session" => query.session = Some(value.clone()),
                "request" => query.request = Some(value.parse().map_err(|_| wrong("the number of a request"))?),
                "layer" => query.layer = Some(value.parse().map_err(|_| wrong("the number of a layer"))?),
                "since" => query.since = Some(seconds(value).ok_or_else(|| wrong("Unix seconds"))?),
                "until" => query.until = Some(seconds(value).ok_or_else(|| wrong("Unix seconds"))?),
                "limit" => query.limit = Some(value.parse().map_err(|_| wrong("a number of events"))?),
                "follow" => query.follow = matches!(value.as_str(), "1" | "true" | ""),
                "format" if value == "sse" || value == "ndjson" => query.sse = value == "sse",
                "format" => return Err(wrong("ndjson or sse")),
                "cursor" => query.cursor = Some(cursor(value).ok_or_else(|| wrong("a cursor that an answer gave"))?),
                "token" => {}
                _ => {
                    return Err(format!(
                        "unknown parameter `{name}`: there are event, log, session, request, layer, since, until, limit, follow, \
                         format and cursor"
                    ));
                }
            }
        }
        if query.cursor.is_some() && query.log.is_none() {
            return Err("`cursor` is a place in one log: name it with `log=`".to_owned());
        }
        Ok(query)
    }

    /// Whether an event is wanted. `unix_s`: when it was, where that is known.
    fn wants(&self, line: &Line, text: &[u8], unix_s: Option<f64>) -> bool {
        if !self.event.is_empty() && !self.event.contains(line.kind()) {
            return false;
        }
        if self.session.as_ref().is_some_and(|s| s != line.session_id()) {
            return false;
        }
        if self.since.is_some_and(|t| unix_s.is_none_or(|u| u < t))
            || self.until.is_some_and(|t| unix_s.is_none_or(|u| u > t))
        {
            return false;
        }
        if self.request.is_none() && self.layer.is_none() {
            return true;
        }
        let fields: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
        self.request.is_none_or(|r| fields["request_id"] == r) && self.layer.is_none_or(|l| fields["layer_id"] == l)
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.parse().ok().filter(|s: &f64| s.is_finite())
}

/// A cursor as it stands in an address: hexadecimal digits of its JSON.
fn cursor(text: &str) -> Option<Cursor> {
    let digits = text.as_bytes();
    if digits.len() % 2 == 1 || digits.len() > 8192 {
        return None;
    }
    let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    serde_json::from_slice(&bytes.collect::<Option<Vec<u8>>>()?).ok()
}

/// The other way round.
pub fn written(cursor: &Cursor) -> String {
    serde_json::to_vec(cursor).unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect()
}

/// Begins to read; the answer's pieces come out of the receiver.
pub fn open(shared: &Arc<Shared>, query: Query) -> Receiver<Bytes> {
    let (sender, receiver) = channel(MOST_WAITING);
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || read(&shared, &query, &sender));
    receiver
}

struct Reading {
    follower: Follower,
    /// Unix microseconds and monotonic nanoseconds of the session's start.
    began: Option<(u64, u64)>,
}

fn paths(shared: &Shared, query: &Query) -> Vec<PathBuf> {
    let logs = shared.logs();
    logs.iter().filter(|w| query.log.as_ref().is_none_or(|name| *name == w.name)).map(|w| w.path.clone()).collect()
}

fn read(shared: &Shared, query: &Query, out: &Sender<Bytes>) {
    let mut readings: Vec<Reading> = Vec::new();
    let mut left = query.limit.unwrap_or(u64::MAX);
    let mut sent = Instant::now();
    loop {
        for path in paths(shared, query) {
            if !readings.iter().any(|r| r.follower.path() == path) {
                let resumed = query.cursor.as_ref().and_then(|c| Follower::resume(&path, c).ok());
                readings.push(Reading { follower: resumed.unwrap_or_else(|| Follower::new(&path)), began: None });
            }
        }
        let mut rest = false;
        for reading in &mut readings {
            let mut piece = Vec::new();
            let began = &mut reading.began;
            let result = reading.follower.poll(TURN_BYTES, |line, text| {
                if let Line::ResourceSessionStart(start) = &line {
                    *began = Some((start.unix_us, start.t_ns));
                }
                let unix_s = began.map(|(us, ns)| us as f64 / 1e6 + (line.t_ns() as f64 - ns as f64) / 1e9);
                if left > 0 && query.wants(&line, text, unix_s) {
                    left -= 1;
                    if query.sse {
                        piece.extend_from_slice(b"event: ");
                        piece.extend_from_slice(line.kind().as_bytes());
                        piece.extend_from_slice(b"\ndata: ");
                    }
                    piece.extend_from_slice(text);
                    piece.extend_from_slice(if query.sse { b"\n\n" } else { b"\n" });
                }
            });
            rest |= result.unwrap_or(false);
            if query.sse && !piece.is_empty() {
                piece.splice(0..0, format!("id: {}\n", written(&reading.follower.cursor())).into_bytes());
            }
            if !piece.is_empty() {
                sent = Instant::now();
                if out.blocking_send(piece.into()).is_err() {
                    return;
                }
            }
        }
        if left == 0 || (!rest && !query.follow) {
            return;
        }
        if !rest {
            if query.sse && sent.elapsed() >= KEEP_ALIVE {
                sent = Instant::now();
                if out.blocking_send(Bytes::from_static(b":\n\n")).is_err() {
                    return;
                }
            }
            if out.is_closed() {
                return;
            }
            std::thread::sleep(PERIOD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Query, cursor, written};
    use llama_resource_instrumentation::read::Cursor;

    fn parse(pairs: &[(&str, &str)]) -> Result<Query, String> {
        Query::parse(&pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse(&[("event", "request_end,batch"), ("follow", "1")]).unwrap().event.len(), 2);
        assert!(parse(&[("request", "x")]).unwrap_err().contains("`request=x`: expected the number"));
        assert!(parse(&[("since", "NaN")]).is_err() && parse(&[("format", "xml")]).is_err());
        assert!(parse(&[("evnet", "x")]).unwrap_err().contains("unknown parameter `evnet`"));
        assert!(parse(&[("cursor", &written(&Cursor::default()))]).unwrap_err().contains("log="));
    }

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let one = Cursor { file: (3, 99), offset: 1 << 40, head: b"{\"event\"".to_vec() };
        assert_eq!(cursor(&written(&one)), Some(one));
        assert_eq!((cursor("7b"), cursor("zz"), cursor("1")), (None, None, None));
    }
}
