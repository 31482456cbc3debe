//! The logs that are served: one thread follows them all and keeps what each says now.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::terminal::eprint_line;
use llama_resource_instrumentation::analyze::live::Live;
use llama_resource_instrumentation::export::prometheus::{self, Source};
use llama_resource_instrumentation::read::Follower;
use llama_resource_instrumentation::read::follow::Taken;

/// Between two looks at the logs. Their writers wake as often.
const PERIOD: Duration = Duration::from_millis(100);

/// Bytes of one log that are read before the others have their turn.
const TURN_BYTES: usize = 1 << 22;

/// Logs that one server follows.
const MOST_LOGS: usize = 256;

/// One log.
#[derive(Debug)]
pub struct Watched {
    /// What tells it from the others.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub live: Live,
    /// What was read of it.
    pub taken: Taken,
    /// Why it cannot be read.
    pub trouble: Option<String>,
}

/// What the thread shares with those who answer.
#[derive(Debug, Default)]
pub struct Shared {
    logs: Mutex<Vec<Watched>>,
    /// Grows when something new was read.
    pub version: AtomicU64,
    /// Everything that was there at the start has been read.
    pub caught_up: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    /// The logs; held for as long as an answer is made.
    pub fn logs(&self) -> MutexGuard<'_, Vec<Watched>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes on a page of metrics.
    pub fn sources<T>(&self, with: impl FnOnce(&[Source<'_>]) -> T) -> T {
        let logs = self.logs();
        let one = logs.len() == 1;
        let sources: Vec<Source<'_>> = logs
            .iter()
            .map(|w| Source {
                name: (!one).then_some(w.name.as_str()),
                live: &w.live,
                taken: w.taken,
                up: w.trouble.is_none(),
            })
            .collect();
        with(&sources)
    }
}

/// The thread that follows.
#[derive(Debug)]
pub struct Watch {
    /// What it finds.
    pub shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Files of `places`: a folder stands for the logs in it, now and later.
fn files(places: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for place in places {
        if place.is_dir() {
            let entries = std::fs::read_dir(place).into_iter().flatten().flatten().map(|e| e.path());
            let mut logs: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
            logs.sort();
            found.extend(logs);
        } else {
            found.push(place.clone());
        }
    }
    found
}

/// Leaves out what is too much, and says so the first time.
fn limited(mut found: Vec<PathBuf>, told: &mut bool) -> Vec<PathBuf> {
    if found.len() > MOST_LOGS && !std::mem::replace(told, true) {
        let more = found.len() - MOST_LOGS;
        eprint_line(&format!("warning: {more} logs are not followed: {MOST_LOGS} are the most; serve fewer at a time"));
    }
    found.truncate(MOST_LOGS);
    found
}

impl Watch {
    /// Follows the logs at `places`, each a file or a folder of them. `pattern`: logs of a run whose names only
    /// the library knows.
    pub fn start(places: Vec<PathBuf>, more: impl Fn() -> Vec<PathBuf> + Send + 'static) -> Result<Self, String> {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let body = move || follow(&mine, &places, &more);
        let thread = std::thread::Builder::new().name("follow".to_owned()).spawn(body);
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Reads what there is once more, and ends.
    pub fn finish(mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(shared: &Shared, places: &[PathBuf], more: &impl Fn() -> Vec<PathBuf>) {
    let mut followers: Vec<Follower> = Vec::new();
    let mut told = false;
    loop {
        let last = shared.stop.load(Ordering::Acquire);
        let mut all = files(places);
        all.extend(more().into_iter().filter(|p| !all.contains(p)).collect::<Vec<_>>());
        let all = limited(all, &mut told);
        add_new(shared, &mut followers, &all);
        let mut rest = true;
        while rest {
            rest = false;
            for (i, follower) in followers.iter_mut().enumerate() {
                rest |= look(shared, i, follower);
            }
        }
        shared.caught_up.store(true, Ordering::Release);
        if last {
            return;
        }
        std::thread::sleep(PERIOD);
    }
}

fn add_new(shared: &Shared, followers: &mut Vec<Follower>, all: &[PathBuf]) {
    let is_new = |followers: &[Follower], path: &Path| !followers.iter().any(|f| f.path() == path);
    let new: Vec<&PathBuf> = all.iter().filter(|p| is_new(followers, p)).collect();
    if new.is_empty() {
        return;
    }
    followers.extend(new.iter().map(|path| Follower::new(path)));
    let mut logs = shared.logs();
    logs.extend(new.iter().map(|path| Watched {
        name: String::new(),
        path: (*path).clone(),
        live: Live::default(),
        taken: Taken::default(),
        trouble: None,
    }));
    // A name stays as it is once it was given: numbers are given in order.
    let names = prometheus::names(logs.iter().map(|w| w.path.as_path()));
    logs.iter_mut().zip(names).for_each(|(w, name)| w.name = name);
}

/// Reads on in one log. True if there is more.
fn look(shared: &Shared, i: usize, follower: &mut Follower) -> bool {
    let mut events = Vec::new();
    let result = follower.poll(TURN_BYTES, |line, _| events.push(line));
    let mut logs = shared.logs();
    let Some(watched) = logs.get_mut(i) else { return false };
    let new = !events.is_empty();
    events.iter().for_each(|line| watched.live.add(line));
    watched.taken = follower.account();
    let (rest, trouble) = match result {
        Ok(rest) => (rest, None),
        Err(e) => (false, Some(e.to_string())),
    };
    let changed = new || trouble != watched.trouble;
    watched.trouble = trouble;
    drop(logs);
    if changed {
        shared.version.fetch_add(1, Ordering::Release);
    }
    rest
}
