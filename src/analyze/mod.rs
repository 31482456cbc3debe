//! What a log says: one file a question, each a fold over the events whose result is a plain struct. The structs are
//! the `--json` output.
//!
//! Before it: `read` (files to events). After it: `export` (results to text, JSON, HTML). Pure: no clock, no files, no
//! environment. What the log does not say stays `null`; sums saturate, since a damaged log may hold any number.

pub mod bench;
pub mod coverage;
pub mod devices;
pub mod gpu;
pub mod host;
pub mod kv;
pub mod live;
pub mod memory;
pub mod model;
pub mod moe;
pub mod requests;
pub mod session;
pub mod stats;
pub mod stream;
pub mod threads;
pub mod time;

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::Serialize;

use crate::format::Line;
pub use crate::read::{Account, BadLine, SessionAccount};
use crate::read::{Error, Log};

/// Version of the `--json` output. Fields are only ever added; it counts the additions.
pub const REPORT_VERSION: u32 = 1;

/// Sessions that one report is about, at most: the newest ones. A session takes a few kilobytes, and a file may hold
/// any number of them.
pub const MOST_SESSIONS: usize = 1000;

/// Which sessions of a file are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that began last.
    Last,
    /// Every one, up to the newest [`MOST_SESSIONS`].
    All,
    /// The one with this id, or with this name if the host itself began it.
    Id(String),
    /// Every one that begins at or behind this byte of the file, up to the newest [`MOST_SESSIONS`].
    From(u64),
}

/// Everything about one log file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub report_version: u32,
    /// The file as it was named on the command line.
    pub file: String,
    /// What could and could not be read of it.
    pub account: Account,
    /// The sessions that were asked for.
    pub sessions: Vec<Session>,
}

/// Everything about one session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Session {
    /// Its index in `account.sessions`.
    pub index: usize,
    /// Who wrote it, when, how.
    pub session: session::Info,
    /// Models that were loaded.
    pub models: Vec<model::Model>,
    /// Backend buffers by device and kind.
    pub memory: memory::Memory,
    /// Requests, one by one and together.
    pub requests: requests::Requests,
    /// KV cache over time.
    pub kv: kv::Kv,
    /// Where the time went.
    pub time: time::Time,
    /// The devices that share the model, and the copies between them.
    pub devices: devices::Devices,
    /// How evenly the compute threads were loaded; `null` when it was not logged.
    pub threads: Option<threads::Threads>,
    /// Expert routing by layer; empty without a mixture of experts.
    pub moe: Vec<moe::Layer>,
    /// What each GPU did; empty where none was read.
    pub gpus: Vec<gpu::Gpu>,
    /// What the process used of the machine; `null` when it was not logged.
    pub host: Option<host::Host>,
    /// What was sampled, dropped, unavailable.
    pub coverage: coverage::Coverage,
}

#[derive(Debug, Default)]
struct SessionFold {
    session: session::Fold,
    models: Vec<model::Model>,
    memory: memory::Fold,
    requests: requests::Fold,
    kv: kv::Fold,
    time: time::Fold,
    devices: devices::Fold,
    threads: threads::Fold,
    moe: moe::Fold,
    gpus: gpu::Fold,
    host: host::Fold,
    coverage: coverage::Fold,
}

impl SessionFold {
    fn add(&mut self, line: &Line) {
        self.session.add(line);
        let t_s = self.session.seconds(line.t_ns());
        self.models.extend(model::Model::of(line));
        self.memory.add(line, t_s);
        self.requests.add(line, t_s);
        self.kv.add(line, t_s);
        self.time.add(line, t_s);
        self.devices.add(line);
        self.threads.add(line);
        self.moe.add(line);
        self.gpus.add(line, t_s);
        self.host.add(line, t_s);
        self.coverage.add(line);
    }

    fn finish(self, index: usize, account: &SessionAccount) -> Session {
        let session = self.session.finish(account);
        Session {
            index,
            models: self.models,
            memory: self.memory.finish(),
            requests: self.requests.finish(),
            kv: self.kv.finish(),
            time: self.time.finish(),
            devices: self.devices.finish(),
            threads: self.threads.finish(),
            moe: self.moe.finish(),
            gpus: self.gpus.finish(),
            host: self.host.finish(),
            coverage: self.coverage.finish(account),
            session,
        }
    }
}

/// What describes the whole process and therefore belongs to every session that the host began within it.
fn is_context(line: &Line) -> bool {
    matches!(
        line,
        Line::ResourceSessionStart(_)
            | Line::ModelLoad(_)
            | Line::BufferAllocation(_)
            | Line::BufferFree(_)
            | Line::CaptureSummary(_)
            | Line::InstrumentationState(_)
    )
}

/// Whether a session is the one of this id, or the host began one of this name within it.
fn holds(session: &SessionAccount, id: &String) -> bool {
    session.session_id == *id || session.tracked.contains(id)
}

/// Reads the whole log and answers every question about the wanted sessions. Memory grows with requests and samples,
/// not with the file.
///
/// # Errors
/// When the file cannot be read on.
pub fn report<R: BufRead>(mut log: Log<R>, file: &str, which: &Which) -> Result<Report, Error> {
    let mut folds: BTreeMap<usize, SessionFold> = BTreeMap::new();
    while let Some(entry) = log.next_entry()? {
        let sessions = &log.account().sessions;
        let session = &sessions[entry.session];
        let is_new = entry.session + MOST_SESSIONS >= sessions.len();
        if is_new && folds.len() >= MOST_SESSIONS && !folds.contains_key(&entry.session) {
            // Where a name is asked for, sessions that may turn out to hold it are kept.
            if let Which::Id(id) = which {
                folds.retain(|&i, _| holds(&sessions[i], id));
            }
            if folds.len() >= MOST_SESSIONS {
                folds.pop_first();
            }
        }
        let wanted = match which {
            Which::All => is_new,
            Which::Last => {
                // A newer session has begun: the older ones are no longer the last.
                if entry.session + 1 == log.account().sessions.len() {
                    folds.retain(|&index, _| index == entry.session);
                }
                entry.session + 1 == log.account().sessions.len()
            }
            Which::From(byte) => is_new && session.first_byte >= *byte,
            Which::Id(id) if session.session_id == *id => true,
            Which::Id(id) => entry.line.session_id() == *id || is_context(&entry.line),
        };
        if wanted {
            folds.entry(entry.session).or_default().add(&entry.line);
        }
    }
    let account = log.account().clone();
    if let Which::Id(id) = which {
        // A session counts only if the name was begun in it; others merely hold its context.
        folds.retain(|&i, _| holds(&account.sessions[i], id));
    }
    let sessions = folds.into_iter().map(|(index, fold)| fold.finish(index, &account.sessions[index])).collect();
    Ok(Report { report_version: REPORT_VERSION, file: file.to_owned(), account, sessions })
}
