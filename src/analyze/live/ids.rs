//! Trace and span ids that are made of what a log says, so that the same request always has the same ones.

/// FNV-1a with 64 bits, from `seed` on.
fn hash(seed: u64, parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for part in parts {
        // Its length, too: "a" and "bc" are not "ab" and "c".
        for byte in part.iter().copied().chain((part.len() as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // The last bytes reach every bit (the finaliser of SplitMix64).
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Trace of a request.
#[must_use]
pub fn trace_id(session_id: &str, request_id: u64) -> [u8; 16] {
    let parts: [&[u8]; 2] = [session_id.as_bytes(), &request_id.to_le_bytes()];
    let mut id = [0; 16];
    id[..8].copy_from_slice(&hash(1, &parts).to_be_bytes());
    id[8..].copy_from_slice(&hash(2, &parts).to_be_bytes());
    // All zeros are no id.
    id[15] |= u8::from(id == [0; 16]);
    id
}

/// Span `name` of a request.
#[must_use]
pub fn span_id(session_id: &str, request_id: u64, name: &str) -> [u8; 8] {
    let id = hash(3, &[session_id.as_bytes(), &request_id.to_le_bytes(), name.as_bytes()]);
    id.max(1).to_be_bytes()
}

/// An id as it is written.
#[must_use]
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{hex, span_id, trace_id};

    #[test]
    fn ids_are_the_same_every_time_and_different_for_every_request() {
        assert_eq!(hex(&trace_id("s", 1)), hex(&trace_id("s", 1)));
        assert_eq!(hex(&trace_id("s", 1)).len(), 32);
        let many: HashSet<_> = (0..20_000).flat_map(|i| [trace_id("a", i), trace_id("b", i)]).collect();
        assert_eq!(many.len(), 40_000);
        let spans: HashSet<_> =
            (0..10_000).flat_map(|i| [span_id("a", i, "root"), span_id("a", i, "decode")]).collect();
        assert_eq!(spans.len(), 20_000);
    }
}
