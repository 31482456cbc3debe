//! What a stream holds, as JSON for programs.

use serde_json::{Value, json};

use crate::analyze::stream::Survey;
use crate::read::stream::StreamAccount;

/// Everything that was found in a file of `len` bytes; `all`: the values were read and checked, too. Keys are
/// only ever added.
#[must_use]
pub fn survey(file: &str, len: u64, survey: &Survey, account: &StreamAccount, all: bool) -> Value {
    let inventory = &survey.inventory;
    json!({
        "file": file,
        "bytes": len,
        "form": "described",
        "values_checked": all,
        "header": survey.header,
        "resumed": survey.resumed,
        "clean_end": survey.end.is_some(),
        "end": survey.end,
        "account": survey.ledger(),
        "packets": survey.packets,
        "unknown_packets": survey.unknown,
        "tensors": inventory.tensors(),
        "steps": inventory.steps(),
        "tokens": inventory.tokens(),
        "sequences": inventory.sequences(),
        "requests": inventory.requests(),
        "sampled_tokens": survey.sampled_tokens,
        "checkpoints": survey.checkpoints,
        "unwritten_bytes": account.unwritten,
        "damaged_ranges": account.damaged_ranges,
        "damaged_bytes": account.damaged_bytes,
        "damage": account.damaged,
        "gaps": account.missing,
        "missing_packets": account.missing_packets,
    })
}
