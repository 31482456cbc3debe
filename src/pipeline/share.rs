//! How a budget is divided: buffers for the host, a packet in work for each worker, packets that wait for the disk, the
//! disk's own two buffers.

use super::pool::largest_class;
use crate::error::{Error, Result};

const MIB: usize = 1 << 20;

/// Least budget that works at all.
pub(super) const LEAST: usize = 16 * MIB;

/// Queues, index, names, tokens, stacks.
const FIXED: usize = 3 * MIB;

/// What an encoder keeps beside its buffers (tables, contexts).
const ENCODER: usize = MIB;

/// Raw bytes of a packet at most. The format allows sixteen; smaller ones stay in the caches, and memory goes to
/// the host's buffers.
const MOST_PACKET: usize = 4 * MIB;

/// Raw bytes that a packet may have with the least budget.
pub const LEAST_PACKET: usize = 64 << 10;

/// Raw bytes up to which pieces are put together: beyond, a packet gains nothing.
pub(super) const WORTH: usize = MIB;

/// Sizes that follow from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Bytes of all buffers for the host.
    pub(super) pool: usize,
    /// The largest of them.
    pub(super) largest: usize,
    /// Raw bytes that are gathered before they become packets.
    pub(super) segment: usize,
    /// Bytes of buffers that are gathered at most: rows that are encoded already gain nothing by being put
    /// into packets sooner.
    pub(super) gathered: usize,
    /// Raw bytes of a packet, at most.
    pub(super) packet: usize,
    /// Raw bytes up to which small pieces are put together.
    pub(super) gather: usize,
    /// Encoded packets that may be on their way to the disk.
    pub(super) outputs: usize,
    /// Those of the host's threads, which make only small ones: enough for the writer to wake up once in a few steps.
    pub(super) helpers_outputs: usize,
    /// Bytes of one write to the disk.
    pub(super) block: usize,
}

impl Shares {
    /// For `workers` threads of ours and so many `helpers` among the host's.
    pub(super) fn of(max_memory: usize, workers: usize, helpers: usize) -> Result<Self> {
        if max_memory < LEAST {
            return Err(Error::new(
                "dividing",
                "the memory budget of the capture",
                format!("{max_memory} bytes are too few"),
                format!("allow {} MiB or more", LEAST / MIB),
            ));
        }
        let power = |n: usize| (n + 1).next_power_of_two() / 2;
        let block = power(max_memory / 64).clamp(256 << 10, 4 * MIB);
        // While a block is on its way to the disk, the workers go on; a small budget rather has room for long rows.
        let outputs = 2 * workers + if max_memory < 256 * MIB { 2 } else { 10 };
        // A worker's packet exists up to three times (gathered, rearranged, entropy-coded), an output once,
        // a little larger.
        let encoders = workers + helpers;
        let copies = 3 * encoders + outputs + 1;
        let helpers_outputs = if helpers > 0 { (max_memory / 20 / WORTH).clamp(4, 48) } else { 0 };
        let fixed = FIXED + encoders * ENCODER + 2 * block + helpers_outputs * (WORTH + WORTH / 8);
        let packet = ((max_memory.saturating_sub(fixed)) / 3 / copies).clamp(LEAST_PACKET, MOST_PACKET);
        let pool = max_memory.saturating_sub(fixed + copies * packet);
        if pool < max_memory / 4 {
            return Err(Error::new(
                "dividing",
                "the memory budget of the capture",
                format!("{} MiB are too few for {workers} workers", max_memory / MIB),
                "allow more memory or fewer workers",
            ));
        }
        let (segment, gathered) = ((pool / 4).min(64 * MIB), pool / 4);
        let (largest, gather) = (largest_class(pool / 4), packet.min(WORTH));
        Ok(Self { pool, largest, segment, gathered, packet, gather, outputs, helpers_outputs, block })
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST, MIB, MOST_PACKET, Shares, WORTH};

    #[test]
    fn every_budget_is_divided_within_itself() {
        for mib in [16, 17, 33, 64, 100, 256, 1024, 24 * 1024] {
            // The host's threads are asked from 64 MiB on (`gang`).
            for (workers, helpers) in (1..=4).flat_map(|w| [0, 2, 4].map(|h| (w, if mib < 64 { 0 } else { h }))) {
                let Ok(s) = Shares::of(mib * MIB, workers, helpers) else {
                    assert!(
                        mib < 32 || (mib == 64 && workers + helpers > 5),
                        "{mib} MiB, {workers} workers, {helpers} helpers"
                    );
                    continue;
                };
                let own = (3 * (workers + helpers) + s.outputs) * s.packet;
                let used = s.pool + own + s.helpers_outputs * WORTH + 2 * s.block;
                assert!(used <= mib * MIB, "{mib} MiB: {s:?}");
                assert!(s.pool >= mib * MIB / 4 && s.largest * 4 <= s.pool && s.largest * 6 >= s.pool, "{s:?}");
                assert!(s.packet <= s.largest && s.block % 4096 == 0 && s.packet <= MOST_PACKET, "{s:?}");
                assert_eq!(s.helpers_outputs > 0, helpers > 0);
            }
        }
        assert_eq!(Shares::of(64 * MIB, 1, 0).unwrap().block, MIB);
        // Logits of the largest vocabularies there are: a quarter of a million.
        assert!(Shares::of(32 * MIB, 1, 0).unwrap().packet >= 262_144 * 4);
        assert_eq!(Shares::of(1024 * MIB, 1, 0).unwrap().block, 4 * MIB);
        assert!(Shares::of(LEAST - 1, 1, 0).is_err() && Shares::of(LEAST, 1, 0).is_ok());
    }
}
