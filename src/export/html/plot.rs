//! Charts that more than one section draws: lines over time, histograms, columns, stacked bars.

use super::super::units::{milliseconds, number};
use super::esc;
use super::svg::{Scale, Svg, WIDTH, ticks};

const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
/// Width of a drawing that shares its line with another.
pub const HALF: f64 = WIDTH / 2.0;
/// Points of a line; more are thinned out to the largest of their neighbours.
const POINTS: usize = 1200;

/// Colours that the style sheet knows.
pub const COLOURS: usize = 8;

/// A line of a chart over time.
#[derive(Debug)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Seconds and value, in order.
    pub points: Vec<(f64, f64)>,
}

/// An empty chart with its grid.
pub fn frame(
    [width, height]: [f64; 2],
    x_max: f64,
    y_max: f64,
    x_text: impl Fn(f64) -> String,
    y_text: impl Fn(f64) -> String,
) -> (Svg, Scale, Scale) {
    let x = Scale { max: x_max, from: LEFT, to: width - RIGHT };
    let y = Scale { max: y_max, from: height - BOTTOM, to: TOP };
    let mut svg = Svg::new(width, height);
    for v in ticks(y_max, 4) {
        svg.line([LEFT, y.at(v), width - RIGHT, y.at(v)], "grid");
        svg.text(LEFT - 6.0, y.at(v) + 4.0, "e", &tidy(&y_text(v)));
    }
    for v in ticks(x_max, 8) {
        svg.text(x.at(v), height - 6.0, "m", &tidy(&x_text(v)));
    }
    (svg, x, y)
}

/// `2.00 s` as `2 s`: on an axis the zeros only fill space.
pub fn tidy(text: &str) -> String {
    let (value, unit) = text.split_once(' ').map_or((text, String::new()), |(v, u)| (v, format!(" {u}")));
    if !value.contains('.') || value.contains('e') {
        return text.to_owned();
    }
    format!("{}{unit}", value.trim_end_matches('0').trim_end_matches('.'))
}

/// Counts have no halves.
fn whole(value: f64) -> String {
    if value.fract() == 0.0 { number(value) } else { String::new() }
}

/// Seconds on an axis.
#[must_use]
pub fn seconds(t_s: f64) -> String {
    if t_s == 0.0 {
        "0".to_owned()
    } else if t_s < 120.0 {
        format!("{} s", number(t_s))
    } else {
        milliseconds(t_s * 1e3)
    }
}

/// Lines over time, the area under each tinted.
pub fn over_time(lines: &[Line], x_max: f64, y_max: f64, text: impl Fn(f64) -> String, label: &str) -> String {
    let (mut svg, x, y) = frame([WIDTH, 200.0], x_max, y_max, seconds, &text);
    for (i, line) in lines.iter().enumerate() {
        let thin = line.points.len().div_ceil(POINTS).max(1);
        let highest = |chunk: &[(f64, f64)]| chunk.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let points: Vec<(f64, f64)> = line.points.chunks(thin).filter_map(highest).collect();
        let places: Vec<(f64, f64)> = points.iter().map(|&(t, v)| (x.at(t), y.at(v))).collect();
        let colour = i % COLOURS;
        svg.path(&places, Some(y.from), &format!("area f{colour}"));
        svg.path(&places, None, &format!("line s{colour}"));
        if places.len() <= 200 {
            for (&(px, py), &(t, v)) in places.iter().zip(&points) {
                svg.dot(px, py, &format!("f{colour}"), &format!("{}: {} at {}", line.name, text(v), seconds(t)));
            }
        }
    }
    let names: Vec<String> = lines.iter().map(|l| l.name.clone()).collect();
    let legend = if lines.len() > 1 { legend(&names) } else { String::new() };
    legend + &svg.finish(label)
}

/// How often values fall into ranges of equal width, with marks at some of them.
pub fn histogram(values: &[f64], marks: &[(&str, f64)], text: impl Fn(f64) -> String, label: &str) -> String {
    let max = values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    if max <= 0.0 {
        return "<p class=\"aside\">No values.</p>\n".to_owned();
    }
    let bins = (values.len() as f64).sqrt().ceil().clamp(8.0, 40.0) as usize;
    let mut counts = vec![0_u64; bins];
    for v in values.iter().filter(|v| v.is_finite()) {
        counts[((v / max * bins as f64) as usize).min(bins - 1)] += 1;
    }
    let top = counts.iter().copied().max().unwrap_or(1) as f64;
    // Room above the highest column for the names of the marks.
    let (mut svg, x, y) = frame([HALF, 180.0], max, top * 1.15, &text, whole);
    let width = max / bins as f64;
    for (i, &n) in counts.iter().enumerate().filter(|&(_, &n)| n > 0) {
        let (from, to) = (i as f64 * width, (i + 1) as f64 * width);
        let place = [x.at(from) + 0.5, y.at(n as f64), x.at(to) - x.at(from) - 1.0, y.from - y.at(n as f64)];
        svg.rect(place, "f0", &format!("{n} between {} and {}", text(from), text(to)));
    }
    for (name, v) in marks {
        svg.line([x.at(*v), TOP, x.at(*v), y.from], "mark");
        svg.text(x.at(*v) - 4.0, TOP + 9.0, "e", name);
    }
    svg.finish(label)
}

/// One column a value, with a label below each and a text where the pointer rests.
pub fn columns(values: &[(String, f64, String)], text: impl Fn(f64) -> String, label: &str) -> String {
    let top = values.iter().map(|v| v.1).fold(0.0, f64::max);
    let (mut svg, x, y) = frame([WIDTH, 180.0], values.len() as f64, top, |_| String::new(), text);
    let every = values.len().div_ceil(40).max(1);
    for (i, (name, value, tip)) in values.iter().enumerate() {
        let (from, to) = (x.at(i as f64), x.at((i + 1) as f64));
        let gap = ((to - from) * 0.12).min(4.0).max((to - from - 90.0) / 2.0);
        svg.rect([from + gap, y.at(*value), to - from - 2.0 * gap, y.from - y.at(*value)], "f0", tip);
        if i % every == 0 {
            svg.text((from + to) / 2.0, 174.0, "m", name);
        }
    }
    svg.finish(label)
}

/// One bar a group, its parts side by side: (group, part, value). Bars share one scale.
pub fn stacked(parts: &[(String, String, f64)], text: impl Fn(f64) -> String) -> String {
    let mut groups: Vec<&str> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (group, name, _) in parts {
        if !groups.contains(&group.as_str()) {
            groups.push(group);
        }
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let sum = |group: &str| parts.iter().filter(|p| p.0 == group).map(|p| p.2).sum::<f64>();
    let max = groups.iter().map(|g| sum(g)).fold(0.0, f64::max);
    let x = Scale { max, from: 110.0, to: WIDTH - 90.0 };
    let mut svg = Svg::new(WIDTH, groups.len() as f64 * 34.0 + 4.0);
    for (row, group) in groups.iter().enumerate() {
        let top = row as f64 * 34.0 + 4.0;
        svg.text(104.0, top + 18.0, "e", &super::super::table::shorten(group, 16));
        let mut at = 0.0;
        for (_, name, value) in parts.iter().filter(|p| p.0 == **group) {
            let colour = names.iter().position(|n| n == name).unwrap_or(0) % COLOURS;
            let place = [x.at(at), top, x.at(at + value) - x.at(at), 26.0];
            svg.rect(place, &format!("f{colour}"), &format!("{group}, {name}: {}", text(*value)));
            at += value;
        }
        svg.text(x.at(at) + 8.0, top + 18.0, "", &text(at));
    }
    legend(&names) + &svg.finish("stacked bars")
}

/// Colours and their names.
#[must_use]
pub fn legend(names: &[String]) -> String {
    let item = |(i, name): (usize, &String)| format!("<span><i class=\"f{}\"></i>{}</span>", i % COLOURS, esc(name));
    format!("<div class=\"legend\">{}</div>\n", names.iter().enumerate().map(item).collect::<String>())
}
