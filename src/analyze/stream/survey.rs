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
    /// Accounts of captures whose files stand before this one's in the same file: as they say, and of what
    /// is really there.
    earlier: Option<Ledger>,
    earlier_recovered: Option<Ledger>,
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
        self.earlier_recovered = Some(self.recovered_ledger());
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

    /// The account of what is really there: the last one in the file, with what was found behind it, and with what it
    /// counts as captured but was not found as dropped.
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
        self.earlier_recovered.as_ref().map_or(ledger.clone(), |earlier| earlier.plus(&ledger))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Survey;
    use crate::analyze::stream::Amount;
    use crate::codec::{Codec, DType};
    use crate::format::stream::{Content, Packet, Part, Route, TensorMeta};

    /// A tensor of 8 values, 32 bytes.
    fn tensor(sequence: u64) -> Packet<'static> {
        let part = Part { step: sequence, t_ns: 0, ne: [8, 1, 1, 1], token_dim: 0, rows: Vec::new() };
        let meta = TensorMeta {
            tensor: "t".to_owned(),
            op: "ADD".to_owned(),
            layer: None,
            component: 0,
            occurrence: 0,
            dtype: DType::F32,
            codec: Codec::None,
            route: Route::Retain,
            row_len: 8,
            error_bound: 0.0,
            row_l2: 0.0,
            block_max: 0.0,
            saturated: 0,
            slice: None,
            parts: vec![part],
        };
        Packet { name: "t", sequence, content: Content::Tensor { meta, body: b"" } }
    }

    fn account(seen: u64, captured: u64, dropped: u64) -> serde_json::Value {
        let amount = |n: u64| json!({ "tensors": n, "bytes": 32 * n });
        json!({ "seen": amount(seen), "captured": amount(captured), "skipped": {}, "dropped": { "full": amount(dropped) } })
    }

    fn survey(contents: Vec<(u64, Option<Content<'static>>)>) -> Survey {
        let mut survey = Survey::default();
        survey.add(&Packet { name: "h", sequence: 0, content: Content::Header(json!({})) }, 50);
        for (sequence, content) in contents {
            let packet = content.map_or_else(|| tensor(sequence), |content| Packet { name: "a", sequence, content });
            survey.add(&packet, 100);
        }
        survey
    }

    fn of(tensors: u64) -> Amount {
        Amount { tensors, bytes: 32 * tensors }
    }

    #[test]
    fn an_account_that_fits_its_packets_is_no_problem_and_one_that_does_not_is() {
        let good = survey(vec![
            (1, None),
            // Two are on their way.
            (2, Some(Content::Account(account(4, 1, 1)))),
            (3, None),
            (4, Some(Content::End(account(3, 2, 1)))),
        ]);
        assert_eq!((good.n_problems, good.end.is_some(), good.ledger().unwrap().captured), (0, true, of(2)));
        let wrong = survey(vec![(1, None), (2, Some(Content::End(account(3, 2, 1))))]);
        assert!(wrong.problems[0].problem.contains("64 bytes were captured, the packets before it hold 32"));
        let uneven = survey(vec![(1, None), (2, Some(Content::End(account(3, 1, 1))))]);
        assert!(uneven.problems[0].problem.contains("does not add up"));
        // Where a packet is missing, totals cannot agree.
        let gap = survey(vec![(2, None), (3, Some(Content::End(account(3, 2, 1))))]);
        assert_eq!(gap.n_problems, 0);
    }

    #[test]
    fn a_recovered_account_counts_what_is_there_and_what_is_not() {
        // Killed: of three on their way at the last account, one was written.
        let killed = survey(vec![(1, None), (2, Some(Content::Account(account(5, 1, 1)))), (3, None)]);
        let ledger = killed.recovered_ledger();
        assert_eq!((ledger.seen, ledger.captured), (of(5), of(2)));
        assert_eq!((ledger.dropped["full"], ledger.dropped["unwritten"]), (of(1), of(2)));
        // More was written than had been seen then.
        let behind = survey(vec![(1, None), (2, Some(Content::Account(account(2, 1, 1)))), (3, None), (4, None)]);
        assert_eq!((behind.recovered_ledger().seen, behind.recovered_ledger().captured), (of(4), of(3)));
        // Damaged: one of two is gone.
        let damaged = survey(vec![(2, None), (3, Some(Content::End(account(3, 2, 1))))]);
        let ledger = damaged.recovered_ledger();
        assert_eq!((ledger.seen, ledger.captured, ledger.dropped["damaged"]), (of(3), of(1), of(1)));
        assert!(ledger.is_exact());
        // Without any account, what is there is what was seen.
        assert_eq!(survey(vec![(1, None)]).recovered_ledger().seen, of(1));
    }

    #[test]
    fn of_two_files_in_one_what_is_really_there_is_recovered() {
        // The first was never ended: of three on their way, none was written.
        let mut both = survey(vec![(1, None), (2, Some(Content::Account(account(5, 1, 1))))]);
        both.add(&Packet { name: "h", sequence: 0, content: Content::Header(json!({})) }, 10);
        both.add(&tensor(1), 10);
        let ledger = both.recovered_ledger();
        assert!(ledger.is_exact());
        assert_eq!((ledger.seen, ledger.captured, ledger.dropped["unwritten"]), (of(6), of(2), of(3)));
    }

    #[test]
    fn two_files_in_one_have_two_accounts() {
        let mut both = survey(vec![(1, None), (2, Some(Content::End(account(2, 1, 1))))]);
        for packet in [Packet { name: "h", sequence: 0, content: Content::Header(json!({})) }, tensor(1)] {
            both.add(&packet, 10);
        }
        both.add(&Packet { name: "e", sequence: 2, content: Content::End(account(1, 1, 0)) }, 10);
        let ledger = both.ledger().unwrap();
        assert_eq!((both.n_problems, both.resumed, ledger.seen, ledger.captured), (0, 0, of(3), of(2)));
    }
}
