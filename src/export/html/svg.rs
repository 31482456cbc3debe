//! SVG elements, and the scales and ticks that place them.

use std::fmt::Write;

use super::esc;

/// Width of every drawing in its own units; the page scales it to the card.
pub const WIDTH: f64 = 1000.0;

/// A drawing being made.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// A coordinate: one decimal is a tenth of a pixel. What is no number becomes 0, so that a damaged log gives a wrong
/// place, not a broken page.
#[must_use]
pub fn num(value: f64) -> String {
    let value = if value.is_finite() { value.clamp(-1e6, 1e6) } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

impl Svg {
    /// An empty drawing.
    #[must_use]
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// A rectangle; `tip` shows when the pointer rests on it.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], class: &str, tip: &str) {
        self.shade([x, y, width, height], class, 1.0, tip);
    }

    /// A rectangle of this opacity.
    pub fn shade(&mut self, [x, y, width, height]: [f64; 4], class: &str, opacity: f64, tip: &str) {
        let opacity = if opacity < 1.0 { format!(" fill-opacity=\"{opacity:.2}\"") } else { String::new() };
        let _ = writeln!(
            self.body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{class}\"{opacity}>{}</rect>",
            num(x),
            num(y),
            num(width.max(0.0)),
            num(height.max(0.0)),
            title(tip)
        );
    }

    /// A dot.
    pub fn dot(&mut self, x: f64, y: f64, class: &str, tip: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{}\" cy=\"{}\" r=\"3.5\" class=\"{class}\">{}</circle>",
            num(x),
            num(y),
            title(tip)
        );
    }

    /// A line.
    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], class: &str) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(num);
        let _ = writeln!(self.body, "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" class=\"{class}\"/>");
    }

    /// Text; class `e` ends at `x`, `m` is centred on it.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.body, "<text x=\"{}\" y=\"{}\" class=\"{class}\">{}</text>", num(x), num(y), esc(text));
    }

    /// A path through these points, closed down to `floor` if there is one.
    pub fn path(&mut self, points: &[(f64, f64)], floor: Option<f64>, class: &str) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if i == 0 { "M" } else { "L" }, num(*x), num(*y));
        }
        if let Some(floor) = floor {
            let _ = write!(d, "L{} {}L{} {}Z", num(last.0), num(floor), num(first.0), num(floor));
        }
        let _ = writeln!(self.body, "<path d=\"{d}\" class=\"{class}\"/>");
    }

    /// The element.
    #[must_use]
    pub fn finish(self, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            num(self.width),
            num(self.height),
            esc(label),
            self.body
        )
    }
}

fn title(tip: &str) -> String {
    if tip.is_empty() { String::new() } else { format!("<title>{}</title>", esc(tip)) }
}

/// From values to places.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Largest value; the smallest is 0.
    pub max: f64,
    /// Place of 0.
    pub from: f64,
    /// Place of `max`.
    pub to: f64,
}

impl Scale {
    /// Place of `value`, within the drawing.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.max > 0.0 { (value / self.max).clamp(0.0, 1.0) } else { 0.0 };
        self.from + (self.to - self.from) * share
    }
}

/// Round values from 0 to about `max`, `n` of them or somewhat more, in steps of 1, 2 or 5.
#[must_use]
pub fn ticks(max: f64, n: usize) -> Vec<f64> {
    if !max.is_finite() || max <= 0.0 {
        return vec![0.0];
    }
    let raw = max / n.max(1) as f64;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * power).find(|s| *s >= raw).unwrap_or(raw);
    if !step.is_normal() {
        return vec![0.0];
    }
    let count = ((max / step + 1e-9).floor() as usize).min(100);
    (0..=count).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::{Scale, Svg, num, ticks};

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.7, 4).len(), 4);
        for max in [f64::NAN, f64::INFINITY, -1.0, 0.0, f64::MIN_POSITIVE / 4.0] {
            assert_eq!(ticks(max, 5), [0.0], "{max}");
        }
        for exponent in -300..300 {
            assert!((1..=12).contains(&ticks(3.3 * 10_f64.powi(exponent), 5).len()), "1e{exponent}");
        }
    }

    #[test]
    fn no_number_breaks_the_page() {
        assert_eq!([f64::NAN, f64::INFINITY, 1.25, 2.0, -1e300].map(num), ["0", "0", "1.2", "2", "-1000000"]);
        assert_eq!(Scale { max: 0.0, from: 5.0, to: 9.0 }.at(3.0), 5.0);
        let mut svg = Svg::new(10.0, 10.0);
        svg.rect([0.0, 0.0, -1.0, f64::NAN], "f0", "a<b");
        assert!(svg.finish("x\"y").contains("<title>a&lt;b</title>"));
    }
}
