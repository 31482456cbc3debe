//! The log's budget for marks: a bucket that fills at half of the allowed rate and holds a first megabyte. What does
//! not fit is left out in whole outermost spans, so that a layer in the log is always complete; totals still count it.

/// What may be written at once before the rate counts: programs that mark a few thousand events are never cut.
const BURST: f64 = 1024.0 * 1024.0;

/// An admitted span that never ends (a layer around the whole program) may run up this much debt.
const MOST_DEBT: f64 = 4.0 * BURST;

/// The bucket.
#[derive(Debug)]
pub struct Budget {
    bytes_per_ns: Option<f64>,
    left: f64,
    last_ns: u64,
}

impl Budget {
    /// A full bucket that fills at half of `bytes_per_second`; `None` is no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>, now_ns: u64) -> Self {
        Self { bytes_per_ns: bytes_per_second.map(|b| b as f64 / 2.0 / 1e9), left: BURST, last_ns: now_ns }
    }

    /// Time passes.
    pub fn fill(&mut self, now_ns: u64) {
        let Some(rate) = self.bytes_per_ns else { return };
        self.left = (self.left + now_ns.saturating_sub(self.last_ns) as f64 * rate).min(BURST);
        self.last_ns = self.last_ns.max(now_ns);
    }

    /// Whether something new may be written.
    #[must_use]
    pub fn open(&self) -> bool {
        self.bytes_per_ns.is_none() || self.left > 0.0
    }

    /// Whether more of an admitted span may be written.
    #[must_use]
    pub fn may_go_on(&self) -> bool {
        self.bytes_per_ns.is_none() || self.left > -MOST_DEBT
    }

    /// About `bytes` were written.
    pub fn spend(&mut self, bytes: usize) {
        self.left -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, Budget};

    #[test]
    fn the_first_megabyte_is_free_then_half_the_rate() {
        let mut b = Budget::new(Some(10_000), 0);
        b.spend(BURST as usize + 1);
        assert!(!b.open() && b.may_go_on());
        b.fill(500_000_000);
        assert!(b.open(), "2,500 bytes have been paid off");
        b.spend(5 * BURST as usize);
        assert!(!b.may_go_on());
        let mut free = Budget::new(None, 0);
        free.spend(usize::MAX / 4);
        assert!(free.open() && free.may_go_on());
    }
}
