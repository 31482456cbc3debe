//! Everything that was not written, by reason and kind. Counted where it happens, written as `events_dropped`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

static COUNTS: Mutex<BTreeMap<(&'static str, &'static str), u64>> = Mutex::new(BTreeMap::new());

/// Counts `n` events of `kind` that were not written because of `reason`. Off the hot path only.
pub fn count(reason: &'static str, kind: &'static str, n: u64) {
    if n > 0 {
        *COUNTS.lock().entry((reason, kind)).or_insert(0) += n;
    }
}

/// Takes the counts since the last call.
pub fn take() -> Vec<(&'static str, &'static str, u64)> {
    std::mem::take(&mut *COUNTS.lock()).into_iter().map(|((r, k), n)| (r, k, n)).collect()
}
