//! How a budget is divided: buffers for the host, a packet in work for each worker, packets that wait for the disk, the
//! disk's own block.

use super::limits::{
    ENCODER, FIXED, LEAST_BLOCK, LEAST_BUDGET, LEAST_PACKET, MIB, MOST_BLOCK, MOST_GATHERED, MOST_PACKET, WORTH,
};
use super::pool::largest_class;
use crate::error::{Error, Result};

/// Sizes that follow from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes of all buffers for the host.
    pub(super) pool: usize,
    /// The largest of them.
    pub(super) largest: usize,
    /// Raw bytes that are gathered before they become packets.
    pub(super) gathered_raw: usize,
    /// Bytes of buffers that are gathered at most: rows that are encoded already gain nothing by being put into packets
    /// sooner.
    pub(super) gathered: usize,
    /// Raw bytes of a packet, at most.
    pub(super) packet: usize,
    /// Raw bytes up to which small pieces are put together.
    pub(super) gather: usize,
    /// Encoded packets that may be on their way to the disk.
    pub(super) outputs: usize,
    /// Bytes of one write to the disk.
    pub(super) block: usize,
}

impl Budget {
    /// For `workers` threads of ours and so many `helpers` among the host's, which have an encoder each.
    pub(super) fn of(max_memory: usize, workers: usize, helpers: usize) -> Result<Self> {
        let fail = |problem: String, remedy: String| {
            Error::new("dividing", "the memory budget of the capture", problem, remedy)
        };
        if max_memory < LEAST_BUDGET {
            return Err(fail(
                format!("{max_memory} bytes are too few"),
                format!("allow {} MiB or more", LEAST_BUDGET / MIB),
            ));
        }
        let workers = workers.max(1);
        let power = |n: usize| (n + 1).next_power_of_two() / 2;
        let block = power(max_memory / 64).clamp(LEAST_BLOCK, MOST_BLOCK);
        // While a block is on its way to the disk, the workers go on; a small budget rather has room for long rows.
        let outputs = 2 * workers + if max_memory < 256 * MIB { 2 } else { 10 };
        // A worker's packet exists up to three times (gathered, rearranged, entropy-coded), an output once, a little
        // larger.
        let copies = 3 * workers + outputs + 1;
        let fixed = FIXED + (workers + helpers) * ENCODER + block;
        let packet = ((max_memory.saturating_sub(fixed)) / 3 / copies).clamp(LEAST_PACKET, MOST_PACKET);
        let pool = max_memory.saturating_sub(fixed + copies * packet);
        if pool < max_memory / 4 {
            return Err(fail(
                format!("{} MiB are too few for {workers} workers", max_memory / MIB),
                "allow more memory or fewer workers".to_owned(),
            ));
        }
        let (gathered_raw, gathered) = ((pool / 4).min(MOST_GATHERED), pool / 4);
        let (largest, gather) = (largest_class(pool / 4), packet.min(WORTH));
        Ok(Self { pool, largest, gathered_raw, gathered, packet, gather, outputs, block })
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, LEAST_BUDGET, MIB, MOST_PACKET};

    #[test]
    fn every_budget_is_divided_within_itself() {
        for mib in [16, 17, 33, 64, 100, 256, 1024, 24 * 1024] {
            for (workers, helpers) in (1..=4).flat_map(|w| [0, 2, 4].map(|h| (w, if mib < 64 { 0 } else { h }))) {
                let Ok(s) = Budget::of(mib * MIB, workers, helpers) else {
                    assert!(mib < 32, "{mib} MiB, {workers} workers, {helpers} helpers");
                    continue;
                };
                let used = s.pool + (3 * workers + s.outputs) * s.packet + s.block;
                assert!(used <= mib * MIB, "{mib} MiB: {s:?}");
                assert!(s.pool >= mib * MIB / 4 && s.largest * 4 <= s.pool && s.largest * 6 >= s.pool, "{s:?}");
                assert!(s.packet <= s.largest && s.block % 4096 == 0 && s.packet <= MOST_PACKET, "{s:?}");
            }
        }
        assert_eq!(Budget::of(64 * MIB, 1, 0).unwrap().block, MIB);
        // Logits of the largest vocabularies there are: a quarter of a million.
        assert!(Budget::of(32 * MIB, 1, 0).unwrap().packet >= 262_144 * 4);
        assert_eq!(Budget::of(1024 * MIB, 1, 0).unwrap().block, 4 * MIB);
        assert!(Budget::of(LEAST_BUDGET - 1, 1, 0).is_err() && Budget::of(LEAST_BUDGET, 1, 0).is_ok());
    }
}
