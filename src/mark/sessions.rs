//! Named sessions: `begin_session` names the events that follow on all threads, until `end_session`.
//!
//! They are rare, so they live behind a lock; a mark only reads the number of the current one. The writer takes begins
//! and ends from here and not from a ring, so that neither is ever lost to a full one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::observe::{self, recording};

/// Names that are remembered: events of older sessions that are still on their way would lose theirs.
const KEPT: usize = 1024;

static CURRENT: AtomicU32 = AtomicU32::new(0);
static TOKENS: AtomicU64 = AtomicU64::new(0);
static LAST_TOKEN_NS: AtomicU64 = AtomicU64::new(0);
static TABLE: Mutex<Table> =
    Mutex::new(Table { next: 0, open: None, named: BTreeMap::new(), begun: Vec::new(), ended: Vec::new() });

/// What the hooks had seen at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Ubatches.
    pub steps: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Hand-offs between components.
    pub flows: u64,
    /// Requests that ended.
    pub requests: u64,
}

impl Seen {
    fn now() -> Self {
        let totals = &recording::current().totals;
        Self {
            steps: totals.sum(|p| &p.steps),
            flops: totals.sum(|p| &p.flops),
            flows: totals.flows.load(Ordering::Relaxed),
            requests: observe::host().requests.ended(),
        }
    }

    fn since(self, old: Self) -> Self {
        Self {
            steps: self.steps.saturating_sub(old.steps),
            flops: self.flops.saturating_sub(old.flops),
            flows: self.flows.saturating_sub(old.flows),
            requests: self.requests.saturating_sub(old.requests),
        }
    }
}

/// A session that began.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub id: Arc<str>,
    /// When.
    pub t_ns: u64,
}

/// A session that ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub id: Arc<str>,
    /// When.
    pub t_ns: u64,
    /// What the hooks saw while it lasted.
    pub seen: Seen,
}

#[derive(Debug)]
struct Named {
    id: Arc<str>,
    begin_ns: u64,
    end_ns: u64,
}

#[derive(Debug)]
struct Table {
    next: u32,
    open: Option<(u32, Seen)>,
    named: BTreeMap<u32, Named>,
    begun: Vec<Begun>,
    ended: Vec<Ended>,
}

/// Number of the open session, 0 for none.
#[inline]
#[must_use]
pub fn current() -> u32 {
    CURRENT.load(Ordering::Acquire)
}

/// Whether a session is open.
#[must_use]
pub fn open() -> bool {
    current() != 0
}

/// Opens a session. Whoever calls has ended the one before.
pub fn begin(id: &str, t_ns: u64) {
    let seen = Seen::now();
    let mut table = TABLE.lock();
    table.next += 1;
    let (number, id): (u32, Arc<str>) = (table.next, id.into());
    table.open = Some((number, seen));
    table.named.insert(number, Named { id: id.clone(), begin_ns: t_ns, end_ns: u64::MAX });
    if table.named.len() > KEPT {
        table.named.pop_first();
    }
    table.begun.push(Begun { number, id, t_ns });
    TOKENS.store(0, Ordering::Relaxed);
    LAST_TOKEN_NS.store(t_ns, Ordering::Relaxed);
    CURRENT.store(number, Ordering::Release);
}

/// Closes the open session; false if there is none.
pub fn end(t_ns: u64) -> bool {
    let now = Seen::now();
    let mut table = TABLE.lock();
    let Some((number, then)) = table.open.take() else { return false };
    CURRENT.store(0, Ordering::Release);
    let Some(named) = table.named.get_mut(&number) else { return false };
    named.end_ns = t_ns;
    let id = named.id.clone();
    table.ended.push(Ended { number, id, t_ns, seen: now.since(then) });
    true
}

/// A token of the open session (or of none): its index there, and the time since the one before.
pub fn token(t_ns: u64) -> (u64, u64) {
    let before = LAST_TOKEN_NS.swap(t_ns, Ordering::Relaxed);
    let since = if before == 0 { 0 } else { t_ns.saturating_sub(before) };
    (TOKENS.fetch_add(1, Ordering::Relaxed), since)
}

/// Name of session `number`.
#[must_use]
pub fn name(number: u32) -> Option<Arc<str>> {
    (number != 0).then(|| TABLE.lock().named.get(&number).map(|n| n.id.clone())).flatten()
}

/// Name of the session that was open at `t_ns`.
#[must_use]
pub fn at(t_ns: u64) -> Option<Arc<str>> {
    let table = TABLE.lock();
    table.named.values().rev().find(|n| (n.begin_ns..n.end_ns).contains(&t_ns)).map(|n| n.id.clone())
}

/// Takes the begins and ends since the last call, for the writer. To be called before the rings are read: whatever was
/// marked before an end that is seen here is in its ring by then.
pub fn take() -> (Vec<Begun>, Vec<Ended>) {
    let mut table = TABLE.lock();
    (std::mem::take(&mut table.begun), std::mem::take(&mut table.ended))
}

/// Forgets everything. Numbers go on, so that no old mark is taken for one of a later session.
pub fn reset() {
    let mut table = TABLE.lock();
    CURRENT.store(0, Ordering::Release);
    table.open = None;
    table.named.clear();
    table.begun.clear();
    table.ended.clear();
    LAST_TOKEN_NS.store(0, Ordering::Relaxed);
    TOKENS.store(0, Ordering::Relaxed);
}
