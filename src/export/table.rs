//! Text in columns, at most 80 wide, without boxes; and the small charts that fit into a cell.

use super::units::printable;

/// Width that no line exceeds.
pub const WIDTH: usize = 80;
const INDENT: &str = "  ";
const GAP: usize = 2;

/// Where colour goes. Without colour the text is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether to write ANSI colours.
    pub colour: bool,
}

impl Style {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    #[must_use]
    pub fn heading(self, text: &str) -> String {
        self.wrap("1;36", text)
    }

    /// What matters most on its line.
    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What can be passed over.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// What should not be passed over.
    #[must_use]
    pub fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }
}

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a heading.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns. A heading that begins with `<` is aligned left.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        let column = |text: &&str| match text.strip_prefix('<') {
            Some(left) => (left.to_owned(), Align::Left),
            None => ((*text).to_owned(), Align::Right),
        };
        Self { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; cells are cleaned of control characters.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines. What is too wide loses the end of its widest left-aligned cells.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let widths = self.widths();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = INDENT.to_owned();
            for (i, cell) in cells.enumerate() {
                let cell = shorten(cell, widths[i]);
                let pad = " ".repeat(widths[i].saturating_sub(width(&cell)));
                let gap = if i == 0 { "" } else { &"  "[..GAP] };
                match self.columns[i].1 {
                    Align::Left => text += &format!("{gap}{cell}{pad}"),
                    Align::Right => text += &format!("{gap}{pad}{cell}"),
                }
            }
            text.trim_end().to_owned()
        };
        let mut out = style.faint(&line(&mut self.columns.iter().map(|c| c.0.as_str()))) + "\n";
        for row in &self.rows {
            out += &line(&mut row.iter().map(String::as_str));
            out.push('\n');
        }
        out
    }

    /// The lines, with the last column running over several of them instead of being cut.
    #[must_use]
    pub fn render_wrapped(&self, style: Style) -> String {
        let last = self.columns.len().saturating_sub(1);
        let widths: Vec<usize> = (0..last).map(|i| self.widest(i)).collect();
        let line = |cells: &[&str]| {
            let mut first = INDENT.to_owned();
            for (cell, &w) in cells.iter().zip(&widths) {
                first += &format!("{cell}{}", " ".repeat((w + GAP).saturating_sub(width(cell))));
            }
            let indent = " ".repeat(width(&first));
            wrap(&first, &indent, cells.last().copied().unwrap_or(""))
        };
        let head: Vec<&str> = self.columns.iter().map(|c| c.0.as_str()).collect();
        let rows = self.rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
        style.faint(&line(&head)) + &rows.collect::<String>()
    }

    fn widest(&self, i: usize) -> usize {
        self.rows.iter().map(|row| width(&row[i])).max().unwrap_or(0).max(width(&self.columns[i].0))
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..self.columns.len()).map(|i| self.widest(i)).collect();
        let room = WIDTH - INDENT.len() - GAP * self.columns.len().saturating_sub(1);
        while widths.iter().sum::<usize>() > room {
            let lefts = (0..widths.len()).filter(|&i| self.columns[i].1 == Align::Left);
            match lefts.max_by_key(|&i| widths[i]) {
                Some(i) if widths[i] > 4 => widths[i] -= 1,
                _ => break,
            }
        }
        widths
    }
}

/// Characters; good enough for a terminal as long as names are not in a double-width script.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// At most `max` characters, with `…` where something is missing.
#[must_use]
pub fn shorten(text: &str, max: usize) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// `text` over several lines of at most [`WIDTH`], each after `indent`; the first line after `first`.
#[must_use]
pub fn wrap(first: &str, indent: &str, text: &str) -> String {
    let (mut out, mut line) = (String::new(), first.to_owned());
    let mut empty = true;
    for word in printable(text).split_whitespace() {
        if !empty && width(&line) + 1 + width(word) > WIDTH {
            out += line.trim_end();
            out.push('\n');
            line = indent.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += &shorten(word, WIDTH.saturating_sub(width(indent)));
        empty = false;
    }
    out + line.trim_end() + "\n"
}

/// A bar of at most `max` cells, in eighths of a cell.
#[must_use]
pub fn bar(share: f64, max: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * max as f64 * 8.0).round() as usize;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + part
}

/// One block a value, at most `max` of them (neighbours become their maximum), scaled to `top`.
#[must_use]
pub fn sparkline(values: &[f64], top: f64, max: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let per_block = values.len().div_ceil(max.max(1)).max(1);
    let block = |chunk: &[f64]| {
        let value = chunk.iter().copied().fold(0.0, f64::max);
        let level = if top > 0.0 { value / top * 8.0 } else { 0.0 };
        BLOCKS[(level as usize).min(7)]
    };
    values.chunks(per_block).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::{Style, Table, WIDTH, bar, sparkline, wrap};

    #[test]
    fn numbers_are_aligned_and_long_names_are_cut() {
        let mut table = Table::new(&["<name", "n"]);
        table.row(["a".to_owned(), "1".to_owned()]);
        table.row(["b".repeat(100), "22".to_owned()]);
        let text = table.render(Style::default());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| l.chars().count() == WIDTH), "{text}");
        assert!(lines[2].contains('…') && lines[1].ends_with(" 1"));
    }

    #[test]
    fn text_wraps_before_the_edge() {
        let text = wrap("  - ", "    ", &"word ".repeat(40));
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH && l.starts_with("  ")), "{text}");
        assert_eq!(wrap("a ", "  ", ""), "a\n");
    }

    #[test]
    fn charts_stay_within_their_cells() {
        assert_eq!((bar(0.0, 4), bar(0.5, 4), bar(9.0, 4)), (String::new(), "██".into(), "████".into()));
        assert_eq!(bar(f64::NAN, 4), "");
        assert_eq!(sparkline(&[0.0, 4.0, 8.0], 8.0, 9), "▁▅█");
        assert_eq!(sparkline(&[1.0; 100], 1.0, 10).chars().count(), 10);
        assert_eq!(sparkline(&[], 1.0, 10), "");
        assert_eq!(sparkline(&[f64::NAN], 0.0, 10), "▁");
    }
}
