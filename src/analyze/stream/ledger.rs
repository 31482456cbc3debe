//! The account of a stream: what the capture saw, and what became of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// Tensors and their bytes before encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Tensors; one counts once a step.
    pub tensors: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn of(value: Option<&Value>) -> Self {
        let number = |name| value.and_then(|v| v.get(name)).and_then(Value::as_u64).unwrap_or(0);
        Self { tensors: number("tensors"), bytes: number("bytes") }
    }

    /// Sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { tensors: self.tensors.saturating_add(other.tensors), bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// What is left of it without the other; never below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { tensors: self.tensors.saturating_sub(other.tensors), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// Totals at one moment. Reasons that this version does not know are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// What the selection wanted.
    pub seen: Amount,
    /// What is in the file.
    pub captured: Amount,
    /// What was left out as asked, by reason.
    pub skipped: BTreeMap<String, Amount>,
    /// What was lost, by reason.
    pub dropped: BTreeMap<String, Amount>,
}

impl Ledger {
    /// From the JSON of an account packet, or of an end packet that holds one.
    #[must_use]
    pub fn of(json: &Value) -> Option<Self> {
        let account = json.get("account").unwrap_or(json);
        account.get("seen")?;
        let reasons = |key: &str| {
            let object = account.get(key).and_then(Value::as_object);
            object.map(|o| o.iter().map(|(k, v)| (k.clone(), Amount::of(Some(v)))).collect()).unwrap_or_default()
        };
        Some(Self {
            seen: Amount::of(account.get("seen")),
            captured: Amount::of(account.get("captured")),
            skipped: reasons("skipped"),
            dropped: reasons("dropped"),
        })
    }

    /// As account packets have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let amount = |a: &Amount| json!({ "tensors": a.tensors, "bytes": a.bytes });
        let reasons =
            |m: &BTreeMap<String, Amount>| m.iter().map(|(k, a)| (k.clone(), amount(a))).collect::<Map<_, _>>();
        json!({
            "seen": amount(&self.seen), "captured": amount(&self.captured),
            "skipped": reasons(&self.skipped), "dropped": reasons(&self.dropped),
        })
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.seen = sum.seen.plus(other.seen);
        sum.captured = sum.captured.plus(other.captured);
        for (to, from) in [(&mut sum.skipped, &other.skipped), (&mut sum.dropped, &other.dropped)] {
            for (reason, amount) in from {
                let entry = to.entry(reason.clone()).or_default();
                *entry = entry.plus(*amount);
            }
        }
        sum
    }

    /// captured + skipped + dropped.
    #[must_use]
    pub fn accounted(&self) -> Amount {
        self.skipped.values().chain(self.dropped.values()).fold(self.captured, |sum, a| sum.plus(*a))
    }

    /// Whether everything seen is accounted for.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.accounted() == self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::{Amount, Ledger};
    use serde_json::json;

    #[test]
    fn reasons_of_later_versions_count_too() {
        let account = json!({
            "seen": {"tensors": 10, "bytes": 100}, "captured": {"tensors": 7, "bytes": 70},
            "skipped": {"stride": {"tensors": 1, "bytes": 10}}, "dropped": {"new_reason": {"tensors": 2, "bytes": 20}},
        });
        let ledger = Ledger::of(&account).unwrap();
        assert!(ledger.is_exact());
        assert_eq!(ledger.dropped["new_reason"], Amount { tensors: 2, bytes: 20 });
        assert_eq!(Ledger::of(&json!({ "account": account })), Some(ledger.clone()));
        assert_eq!(ledger.to_json(), account);
        assert_eq!(Ledger::of(&json!({})), None);
        assert_eq!(ledger.plus(&ledger).dropped["new_reason"], Amount { tensors: 4, bytes: 40 });
        let short = Ledger { captured: Amount { tensors: 7, bytes: 69 }, ..ledger };
        assert!(!short.is_exact());
    }
}
