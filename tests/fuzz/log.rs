//! Logs: whole files through every report, and single lines through the parser.

use llama_resource_instrumentation::analyze::{self, Which};
use llama_resource_instrumentation::export::table::Style;
use llama_resource_instrumentation::export::units::printable_json;
use llama_resource_instrumentation::export::{html, json, text};
use llama_resource_instrumentation::format::Line;
use llama_resource_instrumentation::read::Log;

use super::random::Random;
use super::unsafe_for_a_terminal;

/// What is put between the characters of a line.
const PIECES: [&str; 16] = [
    "null",
    "-1",
    "1e308",
    "1e-400",
    "18446744073709551615",
    "\"\"",
    "[]",
    "{}",
    "\\u001b[2J",
    "\u{1b}]0;x\u{7}",
    "\\u202e",
    "<script>",
    "{\"event\":\"",
    "\u{0}",
    "\\ud800",
    "true",
];

/// A line that was never written: another number, a text, or bytes.
pub fn line(random: &mut Random, corpus: &[String]) -> String {
    let line = random.of(corpus);
    if random.once_in(3) {
        return random.damage_text(line, &PIECES);
    }
    // A value of the right place with the wrong thing in it.
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(line) else { return line.clone() };
    if let Some(fields) = value.as_object_mut() {
        let keys: Vec<String> = fields.keys().cloned().collect();
        for _ in 0..=random.below(3) {
            let key = random.of(&keys).clone();
            let new = match random.below(6) {
                0 => random.edge().into(),
                1 => (*random.of(&[-1.0, 0.0, 1e308, -1e308, 5e-324, 0.1])).into(),
                2 => "\u{1b}[2J\u{9b}31m</script><img src=x>\u{202e}\n".into(),
                3 => serde_json::Value::Null,
                4 => (random.next().cast_signed()).into(),
                _ => {
                    fields.remove(&key);
                    continue;
                }
            };
            fields.insert(key, new);
        }
    }
    value.to_string()
}

/// A file of them.
pub fn make(random: &mut Random, corpus: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(30) {
        let text = if random.once_in(3) { line(random, corpus) } else { random.of(corpus).clone() };
        out.extend(text.as_bytes());
        if !random.once_in(40) {
            out.push(b'\n');
        }
    }
    if random.once_in(10) {
        random.damage(&mut out);
    }
    out
}

/// What is read of a line is written as the same line.
pub fn check_line(text: &str) {
    let Ok(line) = serde_json::from_str::<Line>(text) else { return };
    let written = serde_json::to_string(&line).expect("a line that was read can be written");
    let again: Line = serde_json::from_str(&written).unwrap_or_else(|e| panic!("{written}: {e}"));
    assert_eq!(again, line, "{written}");
}

/// Everything that is done with a log.
pub fn check(bytes: &[u8]) {
    for which in [Which::All, Which::Last, Which::Id("x".to_owned()), Which::From(bytes.len() as u64 / 2)] {
        let report = analyze::report(Log::new(bytes), "log", &which).expect("reads from memory do not fail");
        assert!(report.account.balances(), "{:?}", report.account);
        let shown = text::render(&report, Style::default());
        assert!(!unsafe_for_a_terminal(&shown), "{shown:?}");
        let json = printable_json(&json::render(&report).expect("a report can be written"));
        assert!(!unsafe_for_a_terminal(&json), "{json:?}");
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
        let page = html::render(&report);
        assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    }
}
