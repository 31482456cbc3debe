//! Paragraphs of generated pages.

/// Columns of a line.
const COLUMNS: usize = 120;

/// The words of `text` in lines of at most [`COLUMNS`], with `indent` spaces ahead of each line but the first.
#[allow(dead_code, reason = "each test file uses its part")]
pub fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let n = word.chars().count();
        if out.is_empty() {
            column = n;
        } else if column + 1 + n > COLUMNS {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent + n;
        } else {
            out.push(' ');
            column += 1 + n;
        }
        out.push_str(word);
    }
    out
}
