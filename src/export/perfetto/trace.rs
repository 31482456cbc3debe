//! The file: packets, sequences of them with the names that they have said already, and the descriptions of tracks.
//!
//! Numbers of fields are those of perfetto/trace/*.proto, whose meaning is frozen.

use std::collections::HashMap;
use std::io::{self, Write};

use super::proto::Message;

/// `BUILTIN_CLOCK_REALTIME`: Unix time.
const CLOCK_UNIX: u64 = 1;
/// `BUILTIN_CLOCK_MONOTONIC`: the clock of the log.
const CLOCK_LOG: u64 = 3;
/// A clock of one sequence: each timestamp is the difference to the one before.
const CLOCK_DELTA: u64 = 64;

/// `SEQ_INCREMENTAL_STATE_CLEARED | SEQ_NEEDS_INCREMENTAL_STATE`, of the first packet of a sequence. Later ones carry
/// no flags: `SEQ_NEEDS_INCREMENTAL_STATE` is for readers that may have missed the first, and in a file nobody does.
const FIRST: u64 = 1 | 2;

/// Names that a sequence remembers; a damaged log may hold any number of them.
const MOST_NAMES: usize = 4096;

/// Where packets go, and how many numbers were given away.
#[derive(Debug)]
pub(super) struct Trace<W> {
    out: W,
    sequences: u64,
    tracks: u64,
    /// Slices and instants.
    pub(super) slices: u64,
    pub(super) bytes: u64,
}

impl<W: Write> Trace<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, sequences: 0, tracks: 0, slices: 0, bytes: 0 }
    }

    /// A number for a new track, from 1.
    pub(super) fn new_track(&mut self) -> u64 {
        self.tracks += 1;
        self.tracks
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn packet(&mut self, packet: &Message) -> io::Result<()> {
        let mut framed = Message::default();
        framed.message(1, packet);
        self.bytes += framed.bytes().len() as u64;
        self.out.write_all(framed.bytes())
    }
}

/// A value beside an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Uint(u64),
    Int(i64),
    Double(f64),
    Text(String),
}

/// A name that comes again, or one that does not.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name<'a> {
    Common(&'a str),
    Once(&'a str),
}

/// What an event is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    Begin { name: Name<'a>, category: &'a str },
    End,
    Instant { name: Name<'a>, category: &'a str },
    Count(i64),
    Measure(f64),
}

/// What else a slice says.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) values: Vec<(&'static str, Value)>,
    /// Slices with the same number belong together.
    pub(super) correlation: Option<u64>,
    /// Slices with the same number are joined by arrows.
    pub(super) flows: Vec<u64>,
}

#[derive(Debug, Default)]
struct Names {
    known: HashMap<String, u64>,
}

impl Names {
    /// The number of a name; one that is new goes into `fresh`. `None` when there are too many.
    fn number(&mut self, name: &str, field: u32, fresh: &mut Message) -> Option<u64> {
        if let Some(&known) = self.known.get(name) {
            return Some(known);
        }
        if self.known.len() >= MOST_NAMES {
            return None;
        }
        let number = self.known.len() as u64 + 1;
        self.known.insert(name.to_owned(), number);
        fresh.within(field, |m| _ = m.uint(1, number).text(2, name));
        Some(number)
    }
}

/// A sequence of packets: names and times are said in full once, and then by number and by difference.
#[derive(Debug)]
pub(super) struct Sequence {
    id: u64,
    /// Track of events that name none.
    default_track: Option<u64>,
    at: u64,
    begun: bool,
    events: Names,
    categories: Names,
    values: Names,
    packet: Message,
    event: Message,
    fresh: Message,
}

impl Sequence {
    pub(super) fn new<W: Write>(trace: &mut Trace<W>, default_track: Option<u64>) -> Self {
        trace.sequences += 1;
        Self {
            id: trace.sequences,
            default_track,
            at: 0,
            begun: false,
            events: Names::default(),
            categories: Names::default(),
            values: Names::default(),
            packet: Message::default(),
            event: Message::default(),
            fresh: Message::default(),
        }
    }

    /// Says what the clocks show, and what later packets leave out. `unix_ns`: the same moment as Unix time.
    pub(super) fn begin<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, unix_ns: Option<u64>) -> io::Result<()> {
        self.begun = true;
        self.at = t;
        let mut packet = Message::default();
        packet.uint(8, t).uint(58, CLOCK_LOG).uint(10, self.id).uint(13, FIRST);
        packet.within(6, |snapshot| {
            snapshot.within(1, |clock| _ = clock.uint(1, CLOCK_LOG).uint(2, t));
            if let Some(unix_ns) = unix_ns {
                snapshot.within(1, |clock| _ = clock.uint(1, CLOCK_UNIX).uint(2, unix_ns));
            }
            snapshot.within(1, |clock| _ = clock.uint(1, CLOCK_DELTA).uint(2, t).uint(3, 1));
            snapshot.uint(2, CLOCK_LOG);
        });
        packet.within(59, |defaults| {
            defaults.uint(58, CLOCK_DELTA);
            if let Some(track) = self.default_track {
                defaults.within(11, |event| _ = event.uint(11, track));
            }
        });
        trace.packet(&packet)
    }

    /// Puts the time and the frame of a packet; one that goes back in time names the clock of the log.
    fn stamp(&mut self, t: u64) {
        self.packet.clear();
        if t < self.at {
            self.packet.uint(8, t).uint(58, CLOCK_LOG);
        } else {
            self.packet.uint(8, t - self.at);
            self.at = t;
        }
        self.packet.uint(10, self.id);
    }

    /// Describes a track.
    pub(super) fn describe<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, track: &Message) -> io::Result<()> {
        self.other(trace, t, 60, track)
    }

    /// A packet of another kind.
    pub(super) fn other<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        t: u64,
        field: u32,
        message: &Message,
    ) -> io::Result<()> {
        if !self.begun {
            self.begin(trace, t, None)?;
        }
        self.stamp(t);
        self.packet.message(field, message);
        trace.packet(&self.packet)
    }

    /// Writes an event; `track` only where it is not the default one.
    pub(super) fn event<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        t: u64,
        track: Option<u64>,
        kind: Kind<'_>,
        notes: &Notes,
    ) -> io::Result<()> {
        if !self.begun {
            self.begin(trace, t, None)?;
        }
        self.stamp(t);
        self.event.clear();
        self.fresh.clear();
        match kind {
            Kind::Begin { name, category } => {
                trace.slices += 1;
                self.event.uint(9, 1);
                self.named(name, category);
            }
            Kind::Instant { name, category } => {
                trace.slices += 1;
                self.event.uint(9, 3);
                self.named(name, category);
            }
            Kind::End => _ = self.event.uint(9, 2),
            Kind::Count(value) => _ = self.event.uint(9, 4).int(30, value),
            Kind::Measure(value) => _ = self.event.uint(9, 4).double(44, value),
        }
        if let Some(track) = track {
            self.event.uint(11, track);
        }
        self.noted(notes);
        self.packet.message(11, &self.event);
        if !self.fresh.is_empty() {
            self.packet.message(12, &self.fresh);
        }
        trace.packet(&self.packet)
    }

    fn named(&mut self, name: Name<'_>, category: &str) {
        let number = match name {
            Name::Common(name) => self.events.number(name, 2, &mut self.fresh),
            Name::Once(_) => None,
        };
        match (number, name) {
            (Some(number), _) => self.event.uint(10, number),
            (None, Name::Common(name) | Name::Once(name)) => self.event.text(23, name),
        };
        match self.categories.number(category, 1, &mut self.fresh) {
            Some(number) => self.event.uint(3, number),
            None => self.event.text(22, category),
        };
    }

    fn noted(&mut self, notes: &Notes) {
        if let Some(number) = notes.correlation {
            self.event.uint(52, number);
        }
        for &flow in &notes.flows {
            self.event.fixed64(47, flow);
        }
        for (name, value) in &notes.values {
            let mut note = Message::default();
            match self.values.number(name, 3, &mut self.fresh) {
                Some(number) => note.uint(1, number),
                None => note.text(10, name),
            };
            match value {
                Value::Uint(v) => note.uint(3, *v),
                Value::Int(v) => note.int(4, *v),
                Value::Double(v) => note.double(5, *v),
                Value::Text(v) => note.text(6, v),
            };
            self.event.message(4, &note);
        }
    }
}
