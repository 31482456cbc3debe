//! Start of a stream: a new file, or an old one from its last checkpoint on; its header; the threads.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use serde_json::Value;

use super::account::Account;
use super::budget::Budget;
use super::collector::{Collector, Gathering};
use super::handle::{Options, Pipeline, Resumed};
use super::limits::{MOST_OUT, NAP, QUEUES, ROOM_FOR_TOKENS, TASKS, WORTH_A_LOOK};
use super::message::Progress;
use super::pool::Pool;
use super::shared::Shared;
use super::threads;
use super::worker::{Scratch, Worker};
use super::writer::{State, Writer, now_s};
use crate::error::{Error, Result};
use crate::mailbox::mailbox;
use crate::store::checkpoint::{self, Checkpoint};
use crate::store::file::StreamFile;
use crate::store::open::{Opened, open, open_free};
use crate::store::resume;
use crate::store::tokens::{self, History};
use crate::{clock, heap, host, log};

impl Pipeline {
    /// Whether [`Self::start`] would find a file at `path` that it can write: what is wrong with the path is told
    /// before there is anything to write. Never waits, whatever stands there.
    ///
    /// # Errors
    /// As for [`Self::start`], as far as the file is concerned.
    pub fn check(path: &Path, resume: bool) -> Result<()> {
        host::without_write_signals(|| open_free(path, resume)).map(|_| ())
    }

    /// Opens the stream, writes its first packet (which shows whether it can be written at all) and starts the threads.
    ///
    /// # Errors
    /// When the file cannot be opened or written, the budget is too small, or a thread cannot be started.
    pub fn start(options: Options) -> Result<Self> {
        Budget::of(options.max_memory, options.workers, options.helpers)?;
        let checkpoint = checkpoint::path_of(&options.path);
        if options.tokens_path.as_ref().is_some_and(|p| *p == options.path || *p == checkpoint) {
            let subject = options.path.display().to_string();
            return Err(Error::new(
                "opening the stream",
                subject,
                "the tokens would go into the same file",
                "choose another path for them",
            ));
        }
        // A file that cannot be written must not be made or cut first.
        let opened = host::without_write_signals(|| open(&options.path, options.resume))?;
        start_on(options, opened)
    }
}

pub(super) fn start_on(options: Options, opened: Opened) -> Result<Pipeline> {
    clock::init();
    let budget = Budget::of(options.max_memory, options.workers, options.helpers)?;
    let from = opened.from.as_ref();
    if !heap::has(QUEUES) {
        let path = options.path.display().to_string();
        return Err(Error::new("opening the stream", path, "the system has no memory", "allow the host more memory"));
    }
    let offset = from.map_or(0, |c| c.stream_offset);
    let file = StreamFile::new(opened.disk, budget.block, offset, &opened.head)
        .map_err(|e| Error::new("opening the stream", options.path.display().to_string(), e, "allow more memory"))?;
    let shared = Arc::new(Shared::new(
        from.map_or_else(Account::default, |c| Account::resumed(&c.account)),
        Pool::new(budget.pool, budget.largest, Arc::clone(&options.aside)),
        options.policy,
        from.map_or(0, |c| c.next_packet),
        offset,
    ));
    let (inbox, jobs) = mailbox(MOST_OUT + ROOM_FOR_TOKENS, NAP);
    let (tasks, to_workers) = bounded(TASKS);
    let (out, items) = bounded(TASKS);
    // Their memory comes with the packets that need it (`worker`).
    let (spare, outputs) = bounded(budget.outputs);
    (0..budget.outputs).for_each(|_| _ = spare.send(Vec::new()));
    let began_s = from.map_or_else(now_s, |c| c.start_s);
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        spare,
        file,
        path: options.path.clone(),
        history: Some(history(&options, from, began_s)),
        history_asked: options.tokens_path.is_some(),
        index: opened.index,
        sequence: from.map_or(0, |c| c.next_packet),
        began_s,
        resume_count: from.map_or(0, |c| c.resume_count + 1),
        state: State::default(),
    };
    let resumed = from.map(|c| Resumed {
        last_step: c.last_step,
        tokens: c.step_tokens,
        chosen_tokens: c.total_tokens,
        count: c.resume_count + 1,
    });
    let fields = header(options.header, from)?;
    host::without_write_signals(|| writer.header(&fields))?;
    let collector = Collector {
        shared: Arc::clone(&shared),
        inbox: jobs,
        tasks,
        out,
        budget,
        checkpoint_tokens: options.checkpoint_tokens.filter(|&n| n > 0),
        progress: from
            .map_or_else(Progress::default, |c| Progress { step_tokens: c.step_tokens, last_step: c.last_step }),
        gathering: Gathering::default(),
    };
    let (closing, closed) = bounded(1);
    let mut all = vec![threads::spawn(&shared, "lri-cap-write".to_owned(), move || {
        let _ = closing.send(writer.run(&items));
    })?];
    for i in 0..options.workers.max(1) {
        let worker = Worker {
            shared: Arc::clone(&shared),
            params: options.params,
            most: budget.packet,
            tasks: to_workers.clone(),
            spare: outputs.clone(),
            scratch: Scratch::default(),
        };
        all.push(threads::spawn(&shared, format!("lri-cap-codec{i}"), move || worker.run())?);
    }
    all.push(threads::spawn(&shared, "lri-cap-collect".to_owned(), move || collector.run())?);
    Ok(Pipeline {
        shared,
        inbox,
        worth_a_look: (budget.gathered_raw / 4).min(WORTH_A_LOOK),
        threads: Mutex::new(all),
        closed,
        finished: Mutex::default(),
        resumed,
        params: options.params,
        helpers: options.helpers,
    })
}

/// Adds what a resumed stream says to the fields of its header.
fn header(fields: Value, from: Option<&Checkpoint>) -> Result<Value> {
    let Value::Object(mut fields) = fields else {
        return Err(Error::new("writing the header of", "the stream", "its fields are no JSON object", ""));
    };
    if let Some(checkpoint) = from {
        fields.insert("resumed".to_owned(), true.into());
        fields.insert("resume_count".to_owned(), (checkpoint.resume_count + 1).into());
    }
    Ok(Value::Object(fields))
}

/// The document of chosen tokens: new, gone on with, or made again from the stream.
fn history(options: &Options, from: Option<&Checkpoint>, began_s: f64) -> History {
    let path = options.tokens_path.clone().unwrap_or_else(|| tokens::path_of(&options.path));
    let Some(checkpoint) = from.filter(|c| c.total_tokens > 0) else { return History::new(path, began_s) };
    History::resume(&path, began_s, checkpoint.tokens_offset, checkpoint.total_tokens).unwrap_or_else(|| {
        let mut history = History::new(path.clone(), began_s);
        let mut problem = None;
        let read = resume::tokens_before(&options.path, checkpoint.stream_offset, |tokens| {
            problem = history.add(tokens, now_s()).err().or(problem.take());
        });
        log::warn(format!(
            "{} is not what the checkpoint knows: made again from the stream ({} of {} tokens, without texts){}",
            path.display(),
            history.count(),
            checkpoint.total_tokens,
            read.err().map(|e| format!(": {e}")).or(problem.map(|e| format!(": {e}"))).unwrap_or_default()
        ));
        history
    })
}
