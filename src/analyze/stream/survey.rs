//! Everything about a stream but its values: what it holds, how it ended, whether its numbers agree.

use serde::Serialize;
use serde_json::Value;

use super::inventory::Inventory;
use super::ledger::{Amount, Ledger};
use crate::format::stream::{Content, Packet, TensorMeta};

/// Most problems that are kept one by one; the rest is counted.
const MOST_LISTED: usize = 100;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Number of the packet.
    pub sequence: u64,
    /// Name of the packet.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// Folds packets in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The header the file begins with.
    pub header: Option<Value>,
    /// Headers behind it: how often the capture was resumed.
    pub resumed: u64,
    /// What the tensors' packets say.
    pub inventory: Inventory,
    /// The last packet, if it is the one that ends a file.
    pub end: Option<Value>,
    /// Packets, of all kinds.
    pub packets: u64,
    /// Packets of kinds that this version does not know.
    pub unknown: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Tokens that were chosen.
    pub sampled_tokens: u64,
    /// What does not agree, at most a hundred. Gaps and damage are in the reader's account.
    pub problems: Vec<Problem>,
    /// All that do not agree.
    pub n_problems: u64,
    /// The last account.
    ledger: Option<Ledger>,
    /// Steps of tensors in the file: what accounts call tensors.
    captured: Amount,
    /// That of the moment of the last account.
    captured_then: Amount,
    /// Number that the next packet has if none is missing.
    next_sequence: u64,
    /// Whether packets are missing somewhere; totals cannot agree then, which is no further problem.
    incomplete: bool,
    /// Accounts of captures whose files stand before this one's in the same file.
    earlier: Option<Ledger>,
}

impl Survey {
    /// Adds a packet; `stored` is its length in the file.
    pub fn add(&mut self, packet: &Packet<'_>, stored: u64) {
        self.packets += 1;
        let begins = matches!(packet.content, Content::Header(_)) && packet.sequence == 0;
        self.incomplete |= packet.sequence != self.next_sequence && !begins;
        self.next_sequence = packet.sequence.saturating_add(1);
        self.end = None;
        match &packet.content {
            Content::Header(header) if self.header.is_none() => self.header = Some(header.clone()),
            Content::Header(_) if begins => self.another(),
            Content::Header(_) => self.resumed += 1,
            Content::Tensor { meta, .. } => self.add_tensor(packet, meta, stored),
            Content::Tokens(tokens) => self.sampled_tokens += tokens.len() as u64,
            Content::Checkpoint(_) => self.checkpoints += 1,
            Content::Account(account) => self.add_account(packet, account, false),
            Content::End(end) => {
                self.add_account(packet, end, true);
                self.end = Some(end.clone());
            }
            Content::Index(_) => {}
            Content::Unknown { .. } => self.unknown += 1,
        }
    }

    /// Notes that a packet's values could not be decoded.
    pub fn undecodable(&mut self, packet: &Packet<'_>, why: &str) {
        self.note(packet, format!("its values cannot be decoded: {why}"));
    }

    /// Notes that bytes could not be read.
    pub fn damaged(&mut self) {
        self.incomplete = true;
    }

    fn add_tensor(&mut self, packet: &Packet<'_>, meta: &TensorMeta, stored: u64) {
        let known = self.inventory.get(packet.name).map(|t| t.dtype);
        if known.is_some_and(|dtype| dtype != meta.dtype.name()) {
            self.note(
                packet,
                format!("its type is {}, that of the packets before was {}", meta.dtype.name(), known.unwrap_or("")),
            );
        }
        self.inventory.add(packet.name, meta, stored);
        let bytes = meta.n_values().saturating_mul(meta.dtype.size() as u64);
        self.captured = self.captured.plus(Amount { tensors: meta.parts.len() as u64, bytes });
        for (i, part) in meta.parts.iter().enumerate() {
            let tokens = part.ne.get(usize::from(part.token_dim)).copied().unwrap_or(0) as usize;
            if part.token_dim > 3 || !part.rows.is_empty() && (part.token_dim == 0 || part.rows.len() != tokens) {
                let found =
                    format!("part {i} of step {} names {} tokens, its shape has {tokens}", part.step, part.rows.len());
                self.note(packet, found);
            }
        }
    }

    /// A file that was appended to another has its own account.
    fn another(&mut self) {
        self.earlier = self.ledger();
        (self.ledger, self.captured, self.captured_then) = (None, Amount::default(), Amount::default());
    }

    /// The last account of the file.
    #[must_use]
    pub fn ledger(&self) -> Option<Ledger> {
        match (&self.earlier, &self.ledger) {
            (Some(earlier), Some(last)) => Some(earlier.plus(last)),
            (earlier, last) => last.clone().or_else(|| earlier.clone()),
        }
    }

    fn add_account(&mut self, packet: &Packet<'_>, account: &Value, last: bool) {
        let Some(ledger) = Ledger::of(account) else { return };
        let (sum, seen) = (ledger.accounted(), ledger.seen);
        // While the capture runs, tensors are on their way: seen, and not in the file yet.
        if last && sum != seen || sum.tensors > seen.tensors || sum.bytes > seen.bytes {
            let text = format!(
                "the account does not add up: {} tensors and {} bytes were seen, {} and {} are accounted for",
                seen.tensors, seen.bytes, sum.tensors, sum.bytes
            );
            self.note(packet, text);
        }
        if !self.incomplete && ledger.captured.bytes != self.captured.bytes {
            let text = format!(
                "the account says {} bytes were captured, the packets before it hold {}",
                ledger.captured.bytes, self.captured.bytes
            );
            self.note(packet, text);
        }
        self.ledger = Some(ledger);
        self.captured_then = self.captured;
    }

    fn note(&mut self, packet: &Packet<'_>, problem: String) {
        self.n_problems += 1;
        if self.problems.len() < MOST_LISTED {
            self.problems.push(Problem { sequence: packet.sequence, name: packet.name.to_owned(), problem });
        }
    }

    /// The account of what is really there: the last one in the file, with what was found behind it, and with what it counts as captured
    /// but was not found as dropped.
    #[must_use]
    pub fn recovered_ledger(&self) -> Ledger {
        let mut ledger = self.ledger.clone().unwrap_or_default();
        let lost = ledger.captured.minus(self.captured_then);
        let behind = self.captured.minus(self.captured_then);
        // What the account had seen on its way either lies behind it now or is lost.
        let in_flight = ledger.seen.minus(ledger.accounted());
        ledger.seen = ledger.seen.plus(behind.minus(in_flight));
        ledger.captured = self.captured;
        for (reason, amount) in [("damaged", lost), ("unwritten", in_flight.minus(behind))] {
            if amount != Amount::default() {
                let entry = ledger.dropped.entry(reason.to_owned()).or_default();
                *entry = entry.plus(amount);
            }
        }
        // Whatever else does not agree, the sum does.
        ledger.seen = ledger.accounted();
        self.earlier.as_ref().map_or(ledger.clone(), |earlier| earlier.plus(&ledger))
    }
}
