//! Opens a log and gives its events one by one, each with the session it belongs to. What it cannot read goes
//! into the [`Account`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::account::{Account, BadLine, SessionAccount};
use super::lines::{MAX_LINE_BYTES, RawLine, RawLines};
use crate::format::Line;

/// Beginning of every event as the writer writes it; a second one on a line marks a torso before it. Within a JSON
/// string the quotes would be escaped, so it cannot be text.
const EVENT_MARK: &[u8] = br#"{"event":""#;

/// An event and where it belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Number of its line.
    pub number: u64,
    /// Index of its session in [`Account::sessions`].
    pub session: usize,
    /// The event.
    pub line: Line,
}

/// The file could not be opened or read. Damage within it is no error.
#[derive(Debug)]
pub struct Error {
    doing: &'static str,
    path: String,
    source: io::Error,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} the log `{}`: {}", self.doing, self.path, self.source)?;
        if self.source.kind() == io::ErrorKind::NotFound {
            write!(f, " (it is the file that LLAMA_RESOURCE_LOG_PATH named in the host)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A log being read.
#[derive(Debug)]
pub struct Log<R> {
    path: String,
    lines: RawLines<R>,
    buffer: Vec<u8>,
    account: Account,
    /// Newest session under each id, host-made names included.
    by_id: HashMap<String, usize>,
    current: Option<usize>,
}

impl Log<BufReader<File>> {
    /// Opens the log at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Ok(Self { path: name, ..Self::new(BufReader::with_capacity(1 << 18, file)) }),
            Err(source) => Err(Error { doing: "open", path: name, source }),
        }
    }
}

impl<R: BufRead> Log<R> {
    /// Reads a log from anything.
    pub fn new(reader: R) -> Self {
        Self {
            path: "-".to_owned(),
            lines: RawLines::new(reader, MAX_LINE_BYTES),
            buffer: Vec::new(),
            account: Account::default(),
            by_id: HashMap::new(),
            current: None,
        }
    }

    /// The next event that can be read, `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read on; whatever its bytes are is no error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            let next = self.lines.next_line(&mut self.buffer);
            let raw = next.map_err(|source| Error { doing: "read", path: self.path.clone(), source })?;
            self.account.bytes = self.lines.offset();
            let Some(raw) = raw else { return Ok(None) };
            self.account.lines += 1;
            if let Some(line) = self.parse(&raw) {
                self.account.events += 1;
                let session = self.session_of(&line, &raw);
                return Ok(Some(Entry { number: raw.number, session, line }));
            }
        }
    }

    /// What was found so far; complete once [`Self::next_entry`] gave `None`.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    fn parse(&mut self, raw: &RawLine) -> Option<Line> {
        let text = self.buffer.trim_ascii();
        if raw.too_long {
            self.account.add_bad(raw.number, format!("longer than {MAX_LINE_BYTES} bytes"));
            return None;
        }
        if text.is_empty() {
            self.account.blank_lines += 1;
            return None;
        }
        match parse(text) {
            Parsed::Event(line) => Some(*line),
            Parsed::Unknown(kind) => {
                self.account.add_unknown(&kind);
                None
            }
            Parsed::Bad { reason, recovered } => {
                if raw.complete {
                    self.account.add_bad(raw.number, reason);
                } else {
                    self.account.truncated_last_line = Some(BadLine { line: raw.number, reason });
                }
                self.account.recovered_events += u64::from(recovered.is_some());
                recovered.map(|line| *line)
            }
        }
    }

    fn session_of(&mut self, line: &Line, raw: &RawLine) -> usize {
        let id = line.session_id();
        let known = self.by_id.get(id).copied();
        let index = match (line, known, self.current) {
            (Line::ResourceSessionStart(_), ..) | (_, None, None) => {
                self.account.sessions.push(SessionAccount {
                    session_id: id.to_owned(),
                    first_line: raw.number,
                    first_byte: raw.offset,
                    started: matches!(line, Line::ResourceSessionStart(_)),
                    ..SessionAccount::default()
                });
                let index = self.account.sessions.len() - 1;
                self.by_id.insert(id.to_owned(), index);
                index
            }
            (Line::ResourceTrackingBegin(_), _, Some(current)) => {
                self.by_id.insert(id.to_owned(), current);
                self.account.sessions[current].tracked.push(id.to_owned());
                current
            }
            (_, Some(index), _) => index,
            (_, None, Some(current)) => {
                self.account.sessions[current].foreign_ids += 1;
                current
            }
        };
        // Two hosts may append to one file: only a start changes what an unknown id is counted for.
        if self.current.is_none() || matches!(line, Line::ResourceSessionStart(_)) {
            self.current = Some(index);
        }
        let session = &mut self.account.sessions[index];
        session.events += 1;
        session.ended |= matches!(line, Line::ResourceSessionEnd(e) if e.session_id == session.session_id);
        index
    }
}

/// The name of the event, when the line is well-formed and the only thing wrong with it is that the name
/// is unknown here.
fn unknown_kind(text: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Name {
        event: String,
    }
    let Name { event } = serde_json::from_slice(text).ok()?;
    // An event with nothing but its name: a known one misses its fields, an unknown one is an unknown variant.
    let alone = serde_json::json!({ "event": event });
    let error = serde_json::from_value::<Line>(alone).err()?;
    error.to_string().starts_with("unknown variant").then_some(event)
}

/// What a line of a log is.
#[derive(Debug)]
pub(super) enum Parsed {
    /// An event.
    Event(Box<Line>),
    /// An event of a kind that this program does not know.
    Unknown(String),
    /// No event; perhaps the torso of one, with another behind it.
    Bad {
        /// What is wrong with it.
        reason: String,
        /// The event behind the torso.
        recovered: Option<Box<Line>>,
    },
}

/// Takes the text of a line, which is not empty.
pub(super) fn parse(text: &[u8]) -> Parsed {
    let error = match serde_json::from_slice(text) {
        Ok(line) => return Parsed::Event(Box::new(line)),
        Err(error) => error,
    };
    if let Some(kind) = unknown_kind(text) {
        return Parsed::Unknown(kind);
    }
    let recovered = event_behind_torso(text).and_then(|rest| serde_json::from_slice(rest).ok()).map(Box::new);
    Parsed::Bad { reason: error.to_string(), recovered }
}

/// The event at the end of a line that begins with the torso of another.
pub(super) fn event_behind_torso(line: &[u8]) -> Option<&[u8]> {
    let start = line.windows(EVENT_MARK.len()).skip(1).rposition(|w| w == EVENT_MARK)? + 1;
    Some(line[start..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::Log;
    use crate::read::Account;

    const START: &str = r#"{"event":"resource_session_start","timestamp":"2026-11-22 01:00:00.000","session_id":"a","level":"MINIMAL","t_ns":5,"unix_us":1,"log_version":1,"library_version":"0.1.0","mode":"preload","pid":1,"program":"p","rate_limit":null}"#;
    const END: &str =
        r#"{"event":"resource_session_end","timestamp":"2026-11-22 01:00:01.000","session_id":"a","t_ns":9}"#;

    fn read(text: &[u8]) -> (usize, Account) {
        let mut log = Log::new(text);
        let mut n = 0;
        while log.next_entry().unwrap().is_some() {
            n += 1;
        }
        assert!(log.account().balances(), "{:?}", log.account());
        (n, log.account().clone())
    }

    #[test]
    fn a_whole_session_leaves_nothing_unread() {
        let (n, account) = read(format!("{START}\n{END}\n").as_bytes());
        assert_eq!((n, account.unread_lines(), account.sessions.len()), (2, 0, 1));
        assert!(account.sessions[0].started && account.sessions[0].ended);
    }

    #[test]
    fn an_unknown_event_is_named_and_a_known_one_without_its_fields_is_bad() {
        let text = format!("{START}\n{{\"event\":\"tea\",\"x\":1}}\n{{\"event\":\"batch\"}}\n{{\"x\":1}}\n[1]\nnull\n");
        let (n, account) = read(text.as_bytes());
        assert_eq!((n, account.unknown_kinds["tea"], account.bad_lines), (1, 1, 4));
        assert_eq!(account.bad[0].line, 3);
        assert!(account.bad[0].reason.contains("missing field"), "{}", account.bad[0].reason);
    }

    #[test]
    fn a_cut_last_line_is_truncated_and_a_whole_one_without_line_break_is_not() {
        let (n, account) = read(format!("{START}\n{}", &END[..40]).as_bytes());
        assert_eq!((n, account.bad_lines), (1, 0));
        assert_eq!(account.truncated_last_line.map(|t| t.line), Some(2));
        assert!(!account.sessions[0].ended);
        let (n, account) = read(format!("{START}\n{END}").as_bytes());
        assert_eq!((n, account.truncated_last_line), (2, None));
    }

    #[test]
    fn an_event_appended_to_a_torso_is_recovered() {
        let second = START.replace(r#""session_id":"a""#, r#""session_id":"b""#);
        let (n, account) = read(format!("{START}\n{}{second}\n", &END[..30]).as_bytes());
        assert_eq!((n, account.bad_lines, account.recovered_events, account.sessions.len()), (2, 1, 1, 2));
        assert!(!account.sessions[0].ended);
    }

    #[test]
    fn two_hosts_in_one_file_are_kept_apart_and_unannounced_ids_are_counted() {
        let b = START.replace(r#""session_id":"a""#, r#""session_id":"b""#);
        let stray = END.replace(r#""a""#, r#""zz""#);
        let (_, account) = read(format!("{START}\n{b}\n{END}\n{stray}\n").as_bytes());
        assert_eq!(account.sessions.len(), 2);
        assert!(account.sessions[0].ended && !account.sessions[1].ended);
        assert_eq!(account.sessions[1].foreign_ids, 1);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let deep = "[".repeat(100_000);
        for text in [&b"\0\0\n\xff\xfe\n{\"event\":\"\xff\"}\n"[..], b"{\"event\":5}\n", b"\"event\"", deep.as_bytes()]
        {
            let (n, account) = read(text);
            assert_eq!(n, 0);
            assert!(account.unread_lines() > 0);
        }
    }
}
