//! The events of one sampled step, until all of them are known: then slices within slices.

use super::trace::Notes;

/// Ends that exceed what they lie in by less are rounded times, nanoseconds.
const ROUNDING_NS: u64 = 1_000;

/// Slices that are held at once; a damaged log may never begin another step.
pub(super) const MOST_SLICES: usize = 1 << 18;

/// What a slice shows; outer ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    Step,
    Layer,
    Component,
    Operation,
}

impl Depth {
    pub(super) const fn category(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Layer => "layer",
            Self::Component => "component",
            Self::Operation => "operation",
        }
    }
}

/// A stretch of time with a name.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) start: u64,
    /// `None` where it could not be timed.
    pub(super) end: Option<u64>,
    pub(super) depth: Depth,
    pub(super) name: String,
    pub(super) notes: Notes,
    /// When its line came: what took no time lies in what came before.
    order: usize,
}

/// What is to be written, in order of time.
#[derive(Debug)]
pub(super) enum Edge {
    Begin(Slice),
    End(u64),
    Instant(Slice),
}

/// A layer or a component that has begun.
#[derive(Debug)]
struct Open {
    depth: Depth,
    name: String,
    layer: Option<i32>,
    t: u64,
    order: usize,
}

/// A step being gathered. Without a number: what the host marked itself, outside of steps.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) number: Option<u64>,
    /// When it began, where that was logged.
    pub(super) began: Option<u64>,
    slices: Vec<Slice>,
    open: Vec<Open>,
    lines: usize,
}

impl Step {
    pub(super) fn new(number: Option<u64>) -> Self {
        Self { number, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.open.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slices.len() + self.open.len() >= MOST_SLICES
    }

    pub(super) fn operation(&mut self, t: u64, end: Option<u64>, name: &str) {
        self.lines += 1;
        let (depth, name) = (Depth::Operation, name.to_owned());
        self.slices.push(Slice { start: t, end, depth, name, notes: Notes::default(), order: self.lines });
    }

    pub(super) fn begin(&mut self, t: u64, depth: Depth, name: String, layer: Option<i32>) {
        self.lines += 1;
        self.open.push(Open { depth, name, layer, t, order: self.lines });
    }

    /// Ends the newest of this kind; one whose beginning is not in the log began `duration` before.
    pub(super) fn end(&mut self, t: u64, depth: Depth, name: String, layer: Option<i32>, duration: u64) {
        self.lines += 1;
        let same = |open: &Open| open.depth == depth && open.layer == layer && open.name == name;
        let (start, order) = match self.open.iter().rposition(same) {
            Some(index) => {
                let open = self.open.remove(index);
                (open.t, open.order)
            }
            None => (t.saturating_sub(duration), self.lines),
        };
        self.slices.push(Slice { start: start.min(t), end: Some(t), depth, name, notes: Notes::default(), order });
    }

    /// The whole step's first and last moment.
    fn span(&self) -> Option<(u64, u64)> {
        let starts = self.slices.iter().map(|s| s.start).chain(self.open.iter().map(|o| o.t)).chain(self.began);
        let start = starts.min()?;
        let ends = self.slices.iter().map(|s| s.end.unwrap_or(s.start)).chain(self.open.iter().map(|o| o.t));
        Some((start, ends.max()?.max(start)))
    }

    /// All its slices, with one around them where it has a number: `name` and `notes` are then asked for, by its
    /// first moment. What began and did not end lasts to the last moment.
    pub(super) fn finish(mut self, around: impl FnOnce(u64) -> (String, Notes)) -> Vec<Slice> {
        let Some((start, end)) = self.span() else { return Vec::new() };
        for Open { depth, name, t, order, .. } in std::mem::take(&mut self.open) {
            self.slices.push(Slice { start: t, end: Some(end), depth, name, notes: Notes::default(), order });
        }
        if self.number.is_some() {
            let (name, notes) = around(start);
            self.slices.push(Slice { start, end: Some(end), depth: Depth::Step, name, notes, order: 0 });
        }
        self.slices
    }
}

/// Puts slices into each other. Those that overlap others in part, and those that begin before `busy_until`, come
/// back as the rest, for another track.
pub(super) fn nest(mut slices: Vec<Slice>, busy_until: u64) -> (Vec<Edge>, Vec<Slice>) {
    let end_of = |s: &Slice| s.end.unwrap_or(s.start);
    slices.sort_by_key(|s| {
        let timed = end_of(s) > s.start;
        (s.start, std::cmp::Reverse(end_of(s)), if timed { (s.depth, 0) } else { (Depth::Step, s.order) })
    });
    let (mut edges, mut rest) = (Vec::with_capacity(slices.len() * 2), Vec::new());
    let mut open = Vec::<(u64, Depth)>::new();
    for mut slice in slices {
        if slice.start.saturating_add(ROUNDING_NS) < busy_until {
            rest.push(slice);
            continue;
        }
        slice.start = slice.start.max(busy_until);
        let end = end_of(&slice).max(slice.start);
        while let Some(&(around, depth)) = open.last()
            && (around < slice.start || around == slice.start && (end > slice.start || depth >= slice.depth))
        {
            edges.push(Edge::End(around));
            open.pop();
        }
        let end = match open.last() {
            Some(&(around, _)) if end > around.saturating_add(ROUNDING_NS) => {
                rest.push(slice);
                continue;
            }
            Some(&(around, _)) => end.min(around),
            None => end,
        };
        if slice.end.is_none() {
            edges.push(Edge::Instant(slice));
        } else {
            let slice_depth = slice.depth;
            edges.push(Edge::Begin(slice));
            open.push((end, slice_depth));
        }
    }
    edges.extend(open.into_iter().rev().map(|(end, _)| Edge::End(end)));
    (edges, rest)
}

#[cfg(test)]
mod tests {
    use super::{Depth, Edge, Notes, Slice, Step, nest};

    fn slice(start: u64, end: u64, depth: Depth) -> Slice {
        Slice { start, end: Some(end), depth, name: depth.category().to_owned(), notes: Notes::default(), order: 0 }
    }

    fn shown(edges: &[Edge]) -> String {
        let words = edges.iter().map(|e| match e {
            Edge::Begin(s) => format!("{}({}", &s.name[..1], s.start),
            Edge::End(t) => format!("{t})"),
            Edge::Instant(s) => format!("!{}", s.start),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn slices_of_one_length_lie_in_each_other_by_what_they_show() {
        let slices = [Depth::Operation, Depth::Component, Depth::Step, Depth::Layer].map(|d| slice(10, 20, d));
        let (edges, rest) = nest(slices.to_vec(), 0);
        assert_eq!(shown(&edges), "s(10 l(10 c(10 o(10 20) 20) 20) 20)");
        assert!(rest.is_empty());
    }

    #[test]
    fn what_overlaps_in_part_goes_to_another_track_and_rounding_does_not() {
        let all = vec![
            slice(0, 100_000, Depth::Step),
            slice(10_000, 50_000, Depth::Operation),
            slice(49_999, 60_000, Depth::Operation),
            slice(60_000, 100_400, Depth::Operation),
        ];
        let (edges, rest) = nest(all, 0);
        assert_eq!(shown(&edges), "s(0 o(10000 50000) o(60000 100000) 100000)");
        assert_eq!(rest.len(), 1);
        let (edges, rest) = nest(rest, 70_000);
        assert_eq!((edges.len(), rest.len()), (0, 1));
    }

    #[test]
    fn what_took_no_time_lies_in_what_came_before_it() {
        let mut step = Step::new(Some(1));
        for layer in 0..2 {
            step.begin(8, Depth::Layer, format!("layer {layer}"), Some(layer));
            step.begin(8, Depth::Component, "mlp".to_owned(), Some(layer));
            step.operation(8, None, "add");
            step.end(8, Depth::Component, "mlp".to_owned(), Some(layer), 0);
            step.end(8, Depth::Layer, format!("layer {layer}"), Some(layer), 0);
        }
        let (edges, _) = nest(step.finish(|_| ("step".to_owned(), Notes::default())), 0);
        assert_eq!(shown(&edges), "s(8 l(8 m(8 !8 8) 8) l(8 m(8 !8 8) 8) 8)");
    }

    #[test]
    fn a_step_closes_what_did_not_end_and_begins_what_did_not_begin() {
        let mut step = Step::new(Some(7));
        step.begin(5_000, Depth::Layer, "layer 0".to_owned(), Some(0));
        step.end(9_000, Depth::Component, "mlp".to_owned(), Some(0), 3_000);
        step.operation(6_500, None, "add");
        step.operation(9_500, Some(9_900), "mul");
        step.began = Some(4_000);
        let slices = step.finish(|start| (format!("at {start}"), Notes::default()));
        assert_eq!(slices.last().unwrap().name, "at 4000");
        let (edges, rest) = nest(slices, 0);
        assert_eq!(shown(&edges), "a(4000 l(5000 m(6000 !6500 9000) m(9500 9900) 9900) 9900)");
        assert!(rest.is_empty());
    }
}
