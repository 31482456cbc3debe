//! Start of a stream: a new file, or an old one from its last checkpoint on; its header; the threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use serde_json::Value;

use super::account::Account;
use super::checkpoint::{self, Checkpoint};
use super::courtesy::Courtesy;
use super::desk::Desk;
use super::disk::{Disk, FileDisk};
use super::file::StreamFile;
use super::gang::{Gang, Kit};
use super::pool::{MOST_OUT, Pool};
use super::resume;
use super::segment::Collector;
use super::share::Shares;
use super::tokens::{self, History};
use super::worker::{Maker, Worker};
use super::writer::{Progress, Writer, now_s};
use super::{NAP, Options, Pipeline, ROOM_FOR_TOKENS, Resumed, Shared, threads};
use crate::error::{Error, Result};
use crate::format::stream::{IndexBuilder, Kind};
use crate::mailbox::mailbox;
use crate::{clock, heap, host, log};

/// Packets to be made that wait for a worker: a segment of most models, so that the collector need not wait for each.
const TASKS: usize = 4096;

/// Bytes of jobs that the collector does not let lie, at most.
const WORTH_A_LOOK: usize = 8 << 20;

/// Packets and notes that wait for the writer; outputs bound the packets already.
pub(super) const ITEMS: usize = 64;

/// Bytes that the queues take, and the first steps beside them. There is a stream if these can be had; more is taken as
/// it is needed.
const QUEUES: usize = 2 << 20;

/// A file to append to, and what its checkpoint says.
struct Opened {
    disk: Box<dyn Disk>,
    from: Option<Checkpoint>,
    /// The packets before, for the index.
    index: IndexBuilder,
    head: Vec<u8>,
}

pub(super) fn start(options: Options) -> Result<Pipeline> {
    clock::init();
    let shares = shares(options.max_memory, options.workers, options.may_be_helped)?;
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
    start_on(options, &shares, opened)
}

/// For tests: a disk of theirs.
#[cfg(test)]
pub(super) fn start_with(options: Options, disk: Box<dyn Disk>) -> Result<Pipeline> {
    clock::init();
    let shares = shares(options.max_memory, options.workers, options.may_be_helped)?;
    start_on(options, &shares, Opened { disk, from: None, index: IndexBuilder::default(), head: Vec::new() })
}

/// How the budget is divided.
pub(super) fn shares(max_memory: usize, workers: usize, may_be_helped: bool) -> Result<Shares> {
    Shares::of(max_memory, workers.max(1), helpers(max_memory, may_be_helped))
}

/// Threads of the host that have room to work in.
fn helpers(max_memory: usize, may_be_helped: bool) -> usize {
    if may_be_helped { Gang::size(max_memory) } else { 0 }
}

/// Whether a stream can be begun at `path`, or gone on with: told now what would only be told at the first step.
pub(super) fn check(path: &Path, resume: bool) -> Result<()> {
    host::without_write_signals(|| open_free(path, resume)).map(|_| ())
}

/// The stream's file, and the bytes that are in it: none unless it is to be gone on with.
fn open_free(path: &Path, resume: bool) -> Result<(FileDisk, u64)> {
    let fail = |e: std::io::Error| Error::new("opening the stream", path.display().to_string(), e, "");
    let disk = FileDisk::open(path)?;
    let length = disk.length().map_err(fail)?;
    if length > 0 && !resume {
        let remedy = "choose another path, remove the file, or ask to resume it (LLAMA_RESOURCE_CAPTURE_RESUME=1)";
        return Err(Error::new(
            "opening the stream",
            path.display().to_string(),
            format!("the file is not empty: it holds {length} bytes already"),
            remedy,
        ));
    }
    Ok((disk, length))
}

fn open(path: &Path, resume: bool) -> Result<Opened> {
    let fail = |e: std::io::Error| Error::new("opening the stream", path.display().to_string(), e, "");
    let (mut disk, length) = open_free(path, resume)?;
    if length > 0 {
        if let Some(found) = resume::find(path, StreamFile::head_len).map_err(fail)? {
            tell_what_is_cut_off(path, &found);
            disk.set_len(found.checkpoint.stream_offset).map_err(fail)?;
            // The index packet stands before the checkpoint, whose packet is the first of the next run.
            let begin = found.checkpoint.stream_offset - u64::from(found.packet_len);
            let mut index = IndexBuilder::new(begin, found.checkpoint.last_index);
            index.push(Kind::Checkpoint, Kind::Checkpoint.packet_name().unwrap_or_default(), found.packet_len);
            return Ok(Opened { disk: Box::new(disk), from: Some(found.checkpoint), index, head: found.head });
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".old");
        let aside = PathBuf::from(aside);
        log::warn(format!(
            "{} holds no checkpoint to go on from: it is kept as {}, and the stream begins anew",
            path.display(),
            aside.display()
        ));
        std::fs::rename(path, &aside).map_err(fail)?;
        disk = FileDisk::open(path)?;
    }
    // Of a stream that is gone.
    checkpoint::remove(&checkpoint::path_of(path));
    Ok(Opened { disk: Box::new(disk), from: None, index: IndexBuilder::default(), head: Vec::new() })
}

/// A stream goes on behind its last checkpoint: what an earlier run has written after it is lost.
fn tell_what_is_cut_off(path: &Path, found: &resume::Found) {
    let resume::Behind { packets, bytes, torn } = found.behind;
    if packets == 0 && torn == 0 {
        return;
    }
    let torn = if torn > 0 { format!(", and {torn} bytes of one that is not whole") } else { String::new() };
    log::warn(format!(
        "{} goes on behind its last checkpoint, of step {}: {packets} packets of values and tokens ({bytes} bytes) that an earlier run has \
         written after it{torn}, are cut off. LLAMA_RESOURCE_CHECKPOINT_TOKENS sets how far checkpoints are apart",
        path.display(),
        found.checkpoint.last_step
    ));
}

fn start_on(options: Options, shares: &Shares, opened: Opened) -> Result<Pipeline> {
    let workers = options.workers.max(1);
    let from = opened.from.as_ref();
    if !heap::has(QUEUES) {
        let path = options.path.display().to_string();
        return Err(Error::new("opening the stream", path, "the system has no memory", "allow the host more memory"));
    }
    let offset = from.map_or(0, |c| c.stream_offset);
    let mut file = StreamFile::new(opened.disk, shares.block, offset, &opened.head)
        .map_err(|e| Error::new("opening the stream", options.path.display().to_string(), e, "allow more memory"))?;
    let shared = Arc::new(Shared {
        account: from.map_or_else(Account::default, |c| Account::resumed(&c.account)),
        pool: Pool::new(shares.pool, shares.largest, Arc::clone(&options.aside)),
        policy: options.policy,
        failed: false.into(),
        problem: Mutex::default(),
        steps: 0.into(),
        packets: from.map_or(0, |c| c.next_packet).into(),
        bytes: offset.into(),
        keeping: false.into(),
        unseen: 0.into(),
        tokens_queued: 0.into(),
        tokens_lost: 0.into(),
        courtesy: Courtesy::default(),
        large_tasks: 0.into(),
        gang: OnceLock::new(),
    });
    let mut all = vec![file.write_behind(&shared)?];
    let (inbox, jobs) = mailbox(MOST_OUT + ROOM_FOR_TOKENS, NAP);
    let (tasks, to_workers) = bounded(TASKS);
    // Notes wait for room (`Collector::send`), so that a packet always finds some, and the one that is put back
    // (`Desk::hand_in`): a thread of the host must not wait for the writer.
    let (out, items) = mailbox(ITEMS + shares.outputs + shares.helpers_outputs + 1, NAP);
    // Their memory comes with the packets that need it (`worker`).
    let outputs = |count: usize| {
        let (spare, outputs) = bounded(count);
        (0..count).for_each(|_| _ = spare.send(Vec::new()));
        (spare, outputs)
    };
    let (spare, workers_outputs) = outputs(shares.outputs);
    let (helpers_spare, helpers_outputs) = outputs(shares.helpers_outputs);
    let began_s = from.map_or_else(now_s, |c| c.start_s);
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        spare,
        helpers_spare,
        file,
        path: options.path.clone(),
        history: Some(history(&options, from, began_s)),
        history_asked: options.tokens_path.is_some(),
        index: opened.index,
        sequence: from.map_or(0, |c| c.next_packet),
        began_s,
        resume_count: from.map_or(0, |c| c.resume_count + 1),
        state: super::writer::State::default(),
    };
    let resumed = from.map(|c| Resumed {
        last_step: c.last_step,
        tokens: c.step_tokens,
        chosen_tokens: c.total_tokens,
        count: c.resume_count + 1,
    });
    let helpers = helpers(options.max_memory, options.may_be_helped);
    let fields = header(options.header, from)?;
    host::without_write_signals(|| writer.header(&fields))?;
    let collector = Collector {
        shared: Arc::clone(&shared),
        inbox: jobs,
        tasks,
        out: out.clone(),
        shares: *shares,
        checkpoint_tokens: options.checkpoint_tokens.filter(|&n| n > 0),
        progress: from
            .map_or_else(Progress::default, |c| Progress { step_tokens: c.step_tokens, last_step: c.last_step }),
        gathering: super::segment::Gathering::default(),
    };
    let (closing, closed) = bounded(1);
    let desk = Arc::new(Desk::new(writer, items.queue()));
    let writers_desk = Arc::clone(&desk);
    all.push(threads::spawn(&shared, "lri-cap-write".to_owned(), move || {
        let _ = closing.send(writers_desk.run(&items));
    })?);
    let worker = |maker| Worker {
        shared: Arc::clone(&shared),
        params: options.params,
        most: if maker == Maker::Worker { shares.packet } else { shares.gather },
        tasks: to_workers.clone(),
        spare: if maker == Maker::Worker { workers_outputs.clone() } else { helpers_outputs.clone() },
        maker,
        out: out.clone(),
        scratch: super::worker::Scratch::default(),
        manners: super::courtesy::Manners::default(),
    };
    let kit = || Kit { worker: worker(Maker::Helper), desk: Arc::clone(&desk), output: None };
    let kits: Vec<Kit> = std::iter::repeat_with(kit).take(helpers).collect();
    let gang = (!kits.is_empty()).then(|| Arc::new(Gang::new(kits)));
    if let Some(gang) = &gang {
        _ = shared.gang.set(Arc::downgrade(gang));
    }
    for i in 0..workers {
        let worker = worker(Maker::Worker);
        all.push(threads::spawn(&shared, format!("lri-cap-codec{i}"), move || worker.run())?);
    }
    all.push(threads::spawn(&shared, "lri-cap-collect".to_owned(), move || collector.run())?);
    let worth_a_look = (shares.segment / 4).min(WORTH_A_LOOK);
    let gives_way = options.may_be_helped;
    let (threads, finished) = (Mutex::new(all), Mutex::default());
    Ok(Pipeline {
        shared,
        inbox,
        worth_a_look,
        threads,
        closed,
        finished,
        resumed,
        params: options.params,
        gives_way,
        helpers,
        gang,
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
