//! Terminal section about what is missing, last on the screen because it decides how far the rest is to be trusted.

use super::super::gaps::{Gap, Weight, of_file, of_session, reading, sampling};
use super::super::table::{Style, wrap};
use super::heading;
use crate::analyze::{Account, Session};

pub(super) fn session(session: &Session, style: Style) -> String {
    let gaps = of_session(session);
    let aside = if gaps.is_empty() { "nothing" } else { "" };
    let mut out = heading("WHAT IS MISSING", aside, style);
    if let Some(sentence) = sampling(session) {
        out += &wrap("  ", "  ", &sentence);
    }
    out + &list(&gaps, style)
}

pub(super) fn file(account: &Account, style: Style) -> String {
    style.faint(&wrap("", "", &reading(account))) + &list(&of_file(account), style)
}

fn list(gaps: &[Gap], style: Style) -> String {
    let item = |gap: &Gap| match gap.weight {
        Weight::Loss => style.warning(&wrap("  ! ", "    ", &gap.text)),
        Weight::Note => wrap("  - ", "    ", &gap.text),
    };
    gaps.iter().map(item).collect()
}
