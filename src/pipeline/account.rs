//! What became of every tensor that the host computed and the selection wanted: seen = captured + skipped + dropped,
//! to the byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde_json::{Map, Value, json};

macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident $name:literal,)*) => {
        /// Why a tensor is not in the stream.
        #[repr(usize)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $reason,)*
        }

        impl Reason {
            /// Every reason, at its own number.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$reason),*];

            /// The word in files and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Left out by the token stride.
    Stride "stride",
    /// Of a request that is not captured.
    Request "request",
    /// Elements that a sampled slice leaves out.
    Slice "slice",
    /// Of a type that is not stored (quantised).
    Type "type",
    /// The same values again under another shape.
    View "view",
    /// A view into weights, the cache or another tensor that outlives the graph.
    ExternalView "external_view",
    /// Its elements do not lie next to each other.
    NotContiguous "not_contiguous",
    /// Only the callback can read it, and the route was to be `retain`.
    NeedsCallback "needs_callback",
    /// The allocator cannot be made to keep it in this build or graph, and the route was to be `retain`.
    NotRetained "not_retained",
    /// Keeping it would take more than its share of the memory budget, and the route was to be `retain`.
    RetainMemory "retain_memory",
    /// It has no rows.
    Empty "empty",
    /// Of the host's warm-up.
    WarmUp "warm_up",
    /// Of a draft model's context.
    Draft "draft",
    /// The memory budget was used up.
    Full "full",
    /// Policy `sample` left the step out.
    Sampled "sampled",
    /// Larger than the memory budget can ever hold.
    TooLarge "too_large",
    /// The host gave no values (an error of its own, or an aborted graph).
    Unread "unread",
    /// The disk or its thread failed.
    IoError "io_error",
    /// The capture was closed before, or while the step that it is of ran.
    Stopped "stopped",
    /// A fault of ours.
    Internal "internal",
    /// The system had no memory, within the budget.
    NoMemory "no_memory",
}

/// Tensors and their bytes in the host's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Tensors; one counts once a step.
    pub tensors: u64,
    /// Bytes before encoding.
    pub bytes: u64,
}

impl Amount {
    /// Both numbers.
    #[must_use]
    pub const fn new(tensors: u64, bytes: u64) -> Self {
        Self { tensors, bytes }
    }

    fn to_json(self) -> Value {
        json!({ "tensors": self.tensors, "bytes": self.bytes })
    }

    fn from_json(value: &Value) -> Self {
        let number = |name| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        Self { tensors: number("tensors"), bytes: number("bytes") }
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        // A caller's nonsense must not end in a panic.
        self.tensors = self.tensors.saturating_add(other.tensors);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

#[derive(Debug, Default)]
struct Count {
    tensors: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, amount: Amount) {
        self.tensors.fetch_add(amount.tensors, Ordering::Relaxed);
        self.bytes.fetch_add(amount.bytes, Ordering::Relaxed);
    }

    fn get(&self) -> Amount {
        Amount { tensors: self.tensors.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// What was pushed and is neither captured nor dropped yet.
#[derive(Debug, Default)]
struct InFlight {
    amount: Amount,
    closed: bool,
}

/// A step of the host that is being captured: as long as this lives, not all of what was seen need be accounted for.
#[derive(Debug)]
pub struct InStep(Arc<AtomicUsize>);

impl Drop for InStep {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The running account of a stream. `seen`, `skipped` and `dropped` are the caller's; `captured` is counted when the
/// bytes are in the file.
///
/// A host may end at any moment, in the middle of steps on other threads. From `end_begins` on the caller's side of the
/// account is closed: what a step had seen and not accounted for is counted as stopped, and what it tells later is of
/// no stream. So the account that the stream's end holds adds up.
#[derive(Debug, Default)]
pub struct Account {
    /// Whether the caller's side is closed. Read by the caller for as long as it counts.
    ended: RwLock<bool>,
    /// Steps in flight.
    steps: Arc<AtomicUsize>,
    seen: Count,
    captured: Count,
    skipped: [Count; Reason::ALL.len()],
    dropped: [Count; Reason::ALL.len()],
    in_flight: Mutex<InFlight>,
}

impl Account {
    /// The account that a checkpoint holds. What was in flight there is not in the stream, and not seen.
    pub(super) fn resumed(saved: &Value) -> Self {
        let account = Self::default();
        let part = |name: &str| saved.get(name).cloned().unwrap_or_default();
        let mut sum = Amount::from_json(&part("captured"));
        account.captured.add(sum);
        for (counts, saved) in [(&account.skipped, part("skipped")), (&account.dropped, part("dropped"))] {
            for reason in Reason::ALL {
                let amount = Amount::from_json(saved.get(reason.name()).unwrap_or(&Value::Null));
                counts[reason as usize].add(amount);
                sum += amount;
            }
        }
        account.seen.add(sum);
        account
    }

    /// A step begins: what it sees from here on is accounted for when it is over.
    #[must_use]
    pub fn step_begins(&self) -> InStep {
        self.steps.fetch_add(1, Ordering::AcqRel);
        InStep(Arc::clone(&self.steps))
    }

    /// The caller's side, if it is still open: it stays so until this is dropped, which must be soon.
    pub(super) fn open(&self) -> Option<RwLockReadGuard<'_, bool>> {
        Some(self.ended.read()).filter(|ended| !**ended)
    }

    /// The selection wanted these.
    pub fn seen(&self, tensors: u64, bytes: u64) {
        if let Some(_open) = self.open() {
            self.seen.add(Amount::new(tensors, bytes));
        }
    }

    /// These were left out as asked.
    pub fn skipped(&self, reason: Reason, tensors: u64, bytes: u64) {
        if let Some(_open) = self.open() {
            self.skipped[reason as usize].add(Amount::new(tensors, bytes));
        }
    }

    /// These were lost.
    pub fn dropped(&self, reason: Reason, tensors: u64, bytes: u64) {
        if let Some(_open) = self.open() {
            self.dropped[reason as usize].add(Amount::new(tensors, bytes));
        }
    }

    /// The stream is being ended: nothing more is entered, and what steps in flight have seen and not accounted for is
    /// not captured. Without a step in flight an account that does not add up stays so: it would be a fault of ours.
    pub(super) fn end_begins(&self) {
        let mut ended = self.ended.write();
        let first = !std::mem::replace(&mut *ended, true);
        if first && self.steps.load(Ordering::Acquire) > 0 {
            let in_flight = self.in_flight.lock();
            let totals = self.totals();
            let mut settled = in_flight.amount;
            for amount in [totals.captured, totals.all_skipped(), totals.all_dropped()] {
                settled += amount;
            }
            let less = |a: u64, b: u64| a.saturating_sub(b);
            let tensors = less(totals.seen.tensors, settled.tensors);
            self.dropped[Reason::Stopped as usize].add(Amount::new(tensors, less(totals.seen.bytes, settled.bytes)));
        }
    }

    /// These are on their way. The caller holds [`Self::open`].
    pub(super) fn enter(&self, amount: Amount) {
        let mut in_flight = self.in_flight.lock();
        if in_flight.closed {
            self.dropped[Reason::Stopped as usize].add(amount);
        } else {
            in_flight.amount += amount;
        }
    }

    /// These are in the file.
    pub(super) fn captured(&self, amount: Amount) {
        self.leave(amount, &self.captured);
    }

    /// These will never be.
    pub(super) fn lost(&self, reason: Reason, amount: Amount) {
        self.leave(amount, &self.dropped[reason as usize]);
    }

    fn leave(&self, amount: Amount, to: &Count) {
        let mut in_flight = self.in_flight.lock();
        // After the close a disk that comes back to life changes nothing any more: its tensors are counted as dropped.
        if !in_flight.closed {
            in_flight.amount.tensors = in_flight.amount.tensors.saturating_sub(amount.tensors);
            in_flight.amount.bytes = in_flight.amount.bytes.saturating_sub(amount.bytes);
            to.add(amount);
        }
    }

    /// Whatever is still on its way is lost; nothing changes from here on but by the caller.
    pub(super) fn close(&self, reason: Reason) {
        let mut in_flight = self.in_flight.lock();
        in_flight.closed = true;
        self.dropped[reason as usize].add(std::mem::take(&mut in_flight.amount));
    }

    /// The numbers as they are now.
    #[must_use]
    pub fn totals(&self) -> Counts {
        let of = |counts: &[Count]| {
            Reason::ALL
                .iter()
                .map(|&r| (r, counts[r as usize].get()))
                .filter(|(_, a)| *a != Amount::default())
                .collect()
        };
        Counts {
            seen: self.seen.get(),
            captured: self.captured.get(),
            skipped: of(&self.skipped),
            dropped: of(&self.dropped),
        }
    }
}

/// An account at one moment. Reasons without a tensor are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What the selection wanted.
    pub seen: Amount,
    /// What is in the file.
    pub captured: Amount,
    /// What was left out as asked.
    pub skipped: Vec<(Reason, Amount)>,
    /// What was lost.
    pub dropped: Vec<(Reason, Amount)>,
}

impl Counts {
    /// Whether everything seen is accounted for.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let mut sum = self.captured;
        self.skipped.iter().chain(&self.dropped).for_each(|(_, a)| sum += *a);
        sum == self.seen
    }

    /// Sum of what was lost.
    #[must_use]
    pub fn all_dropped(&self) -> Amount {
        let mut sum = Amount::default();
        self.dropped.iter().for_each(|(_, a)| sum += *a);
        sum
    }

    /// Sum of what was left out.
    #[must_use]
    pub fn all_skipped(&self) -> Amount {
        let mut sum = Amount::default();
        self.skipped.iter().for_each(|(_, a)| sum += *a);
        sum
    }

    /// As the stream's account packets have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let of = |list: &[(Reason, Amount)]| {
            Value::Object(list.iter().map(|(r, a)| (r.name().to_owned(), a.to_json())).collect::<Map<_, _>>())
        };
        json!({
            "seen": self.seen.to_json(),
            "captured": self.captured.to_json(),
            "skipped": of(&self.skipped),
            "dropped": of(&self.dropped),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, Amount, Reason};

    #[test]
    fn what_is_in_flight_at_the_close_is_lost_once() {
        let account = Account::default();
        account.seen(10, 1000);
        account.skipped(Reason::Stride, 1, 100);
        account.dropped(Reason::Full, 2, 200);
        account.enter(Amount::new(7, 700));
        account.captured(Amount::new(3, 300));
        account.lost(Reason::Internal, Amount::new(1, 100));
        assert!(!account.totals().is_exact(), "three are on their way");
        account.close(Reason::IoError);
        account.captured(Amount::new(3, 300));
        let totals = account.totals();
        assert!(totals.is_exact(), "{totals:?}");
        assert_eq!(totals.captured, Amount::new(3, 300));
        assert!(totals.dropped.contains(&(Reason::IoError, Amount::new(3, 300))));
        assert_eq!(totals.all_dropped(), Amount::new(6, 600));
    }

    #[test]
    fn what_a_step_in_flight_has_seen_is_stopped_and_what_it_tells_later_is_of_no_stream() {
        for in_flight in [true, false] {
            let account = Account::default();
            let step = account.step_begins();
            account.seen(10, 1000);
            account.dropped(Reason::Full, 2, 200);
            account.enter(Amount::new(3, 300));
            account.captured(Amount::new(1, 100));
            let step = Some(step).filter(|_| in_flight);
            account.end_begins();
            account.seen(5, 500);
            account.skipped(Reason::Stride, 1, 100);
            account.dropped(Reason::Unread, 4, 400);
            drop(step);
            account.end_begins();
            account.captured(Amount::new(2, 200));
            let totals = account.totals();
            assert_eq!(totals.is_exact(), in_flight, "a fault of ours stays visible: {totals:?}");
            assert_eq!(totals.seen, Amount::new(10, 1000));
            assert_eq!(totals.dropped.contains(&(Reason::Stopped, Amount::new(5, 500))), in_flight);
        }
    }

    #[test]
    fn a_checkpoint_gives_the_same_account_back() {
        let account = Account::default();
        account.seen(4, 40);
        account.skipped(Reason::Request, 1, 10);
        account.dropped(Reason::Sampled, 1, 10);
        account.enter(Amount::new(2, 20));
        account.captured(Amount::new(1, 10));
        let resumed = Account::resumed(&account.totals().to_json());
        let totals = resumed.totals();
        assert!(totals.is_exact());
        assert_eq!(totals.seen, Amount::new(3, 30), "what was in flight is not in the stream");
    }
}
