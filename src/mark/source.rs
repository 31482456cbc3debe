//! Marks as a source of the writer's: their lines, the names of sessions for the lines of others, and totals where no
//! step is seen.

use super::expand::Marks;
use super::sessions;
use crate::format::Line;
use crate::journal::{Event, Moment, Source};

impl Source for Marks {
    fn drain(&mut self, at: Moment, out: &mut Vec<Event>) {
        let mut push = |line| out.push(Event::Line(Box::new(line)));
        self.take(at.now_ns, &mut push);
        if at.ends {
            self.end_open_spans(at.now_ns, &mut push);
        }
    }

    fn complete(&mut self, line: &mut Line, _before: &mut Vec<Line>) {
        if matches!(line, Line::ResourceSessionSummary(_) | Line::ResourceSessionEnd(_))
            || !line.session_id().is_empty()
        {
            return;
        }
        if let Some(name) = sessions::at(line.t_ns()) {
            line.envelope().session_id.push_str(&name);
        }
    }

    fn interval(&mut self, at: Moment, out: &mut Vec<Line>) {
        // Of two accounts of the same work one would be too many, and the steps' own totals are the better ones.
        let summary = self.interval.take(at.now_ns);
        if !out.iter().any(|line| matches!(line, Line::StepSummary(_))) {
            out.extend(summary.map(Line::StepSummary));
        }
    }
}
