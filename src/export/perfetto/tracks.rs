//! The tracks of one process, made when they are first needed, and the events on those that are not busy.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::proto::Message;
use super::trace::{Kind, Name, Notes, Sequence, Trace};

/// `EXPLICIT`, of the order of a track's children: by their rank.
const BY_RANK: u64 = 3;
/// `SIBLING_MERGE_BEHAVIOR_NONE`: two tracks of one name stay two.
const NEVER_MERGE: u64 = 2;
/// Larger than any number that Linux gives a process: for those that another of the trace has, or that is not known.
const FREE_NUMBERS: i64 = 1 << 22;

/// What stands below a process. Perfetto orders that by name and lets nobody else: so all but the requests stand in one
/// group, whose children come as they are listed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Requests,
    Resources,
    Devices,
    Memory,
    Kv,
    Gpu,
    Host,
    Model,
    Losses,
}

impl Group {
    const fn name(self) -> &'static str {
        match self {
            Self::Requests => "Requests",
            Self::Resources => "Resources",
            Self::Devices => "Devices",
            Self::Kv => "KV cache",
            Self::Memory => "Memory",
            Self::Gpu => "GPU",
            Self::Host => "Host",
            Self::Model => "Models",
            Self::Losses => "Lost events",
        }
    }
}

/// What a counter counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Bytes,
    Named(&'static str),
}

/// Rows of slices of one thing, of which a row holds only those that do not overlap.
#[derive(Debug, Default)]
struct Rows(Vec<(u64, u64)>);

/// The tracks of a process.
#[derive(Debug)]
pub(super) struct Tracks {
    process: u64,
    pid: i64,
    tid: i64,
    sequence: Sequence,
    groups: BTreeMap<Group, u64>,
    counters: BTreeMap<(Group, String), u64>,
    rows: BTreeMap<(Group, String), Rows>,
}

impl Tracks {
    /// Begins a process. `pid`: unless it is unknown, or another process of the trace has it.
    pub(super) fn new<W: Write>(
        trace: &mut Trace<W>,
        t: u64,
        unix_ns: Option<u64>,
        pid: Option<u32>,
        labels: &[String],
    ) -> io::Result<Self> {
        let process = trace.new_track();
        let free = FREE_NUMBERS + i64::try_from(process).unwrap_or(0);
        let pid = pid.map_or(free, i64::from);
        let mut sequence = Sequence::new(trace, None);
        sequence.begin(trace, t, unix_ns)?;
        let mut track = Message::default();
        track.uint(1, process).within(3, |p| {
            p.int(1, pid);
            for label in labels {
                p.text(8, label);
            }
        });
        sequence.describe(trace, t, &track)?;
        Ok(Self {
            process,
            pid,
            tid: pid,
            sequence,
            groups: BTreeMap::new(),
            counters: BTreeMap::new(),
            rows: BTreeMap::new(),
        })
    }

    /// Gives the process its name, once.
    pub(super) fn name<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, name: &str) -> io::Result<()> {
        let (process, pid) = (self.process, self.pid);
        let mut track = Message::default();
        track.uint(1, process).within(3, |p| _ = p.int(1, pid).text(6, name));
        self.sequence.describe(trace, t, &track)
    }

    /// What the trace says of itself.
    pub(super) fn attributes<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        t: u64,
        attributes: &[(String, String)],
    ) -> io::Result<()> {
        let mut message = Message::default();
        for (key, value) in attributes {
            message.within(1, |a| _ = a.text(1, key).text(3, value));
        }
        self.sequence.other(trace, t, 126, &message)
    }

    /// A thread with a sequence of its own. The first is the process's main thread.
    pub(super) fn thread<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, name: &str) -> io::Result<Sequence> {
        let (uuid, pid, tid) = (trace.new_track(), self.pid, self.tid);
        self.tid = FREE_NUMBERS + i64::try_from(trace.new_track()).unwrap_or(0);
        let mut track = Message::default();
        track.uint(1, uuid).uint(5, self.process).within(4, |m| _ = m.int(1, pid).int(2, tid).text(5, name));
        self.sequence.describe(trace, t, &track)?;
        Ok(Sequence::new(trace, Some(uuid)))
    }

    fn group<W: Write>(&mut self, trace: &mut Trace<W>, t: u64, group: Group) -> io::Result<u64> {
        if let Some(&known) = self.groups.get(&group) {
            return Ok(known);
        }
        let parent = match group {
            Group::Requests | Group::Resources => self.process,
            _ => self.group(trace, t, Group::Resources)?,
        };
        let uuid = trace.new_track();
        self.groups.insert(group, uuid);
        let mut track = Message::default();
        track.uint(1, uuid).text(2, group.name()).uint(5, parent);
        track.uint(11, BY_RANK).uint(12, group as u64).uint(15, NEVER_MERGE);
        self.sequence.describe(trace, t, &track)?;
        Ok(uuid)
    }

    /// A value of a counter.
    pub(super) fn count<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        t: u64,
        (group, name, unit): (Group, &str, Unit),
        value: Kind<'_>,
    ) -> io::Result<()> {
        let key = (group, name.to_owned());
        let uuid = match self.counters.get(&key) {
            Some(&known) => known,
            None => {
                let (parent, uuid) = (self.group(trace, t, group)?, trace.new_track());
                self.counters.insert(key, uuid);
                let mut track = Message::default();
                track.uint(1, uuid).text(2, name).uint(5, parent).uint(15, NEVER_MERGE).within(8, |counter| {
                    match unit {
                        Unit::Bytes => counter.uint(3, 3),
                        Unit::Named(unit) => counter.text(6, unit),
                    };
                    if group == Group::Memory {
                        counter.text(7, "memory");
                    }
                });
                self.sequence.describe(trace, t, &track)?;
                uuid
            }
        };
        self.sequence.event(trace, t, Some(uuid), value, &Notes::default())
    }

    /// The first track of `group` that has this name: for instants, which take no room.
    pub(super) fn first_row<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        (group, name, rank): (Group, &str, i64),
        t: u64,
    ) -> io::Result<u64> {
        match self.rows.get(&(group, name.to_owned())).and_then(|rows| rows.0.first()) {
            Some((uuid, _)) => Ok(*uuid),
            None => self.new_row(trace, (group, name, rank), t, 0),
        }
    }

    /// A track of `group` on which nothing else is from `start` to `end`. `rank`: its place among its neighbours.
    pub(super) fn row<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        (group, name, rank): (Group, &str, i64),
        start: u64,
        end: u64,
    ) -> io::Result<u64> {
        let rows = &mut self.rows.entry((group, name.to_owned())).or_default().0;
        if let Some((uuid, busy_until)) = rows.iter_mut().find(|(_, busy_until)| *busy_until <= start) {
            *busy_until = end;
            return Ok(*uuid);
        }
        self.new_row(trace, (group, name, rank), start, end)
    }

    fn new_row<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        (group, name, rank): (Group, &str, i64),
        t: u64,
        busy_until: u64,
    ) -> io::Result<u64> {
        let (parent, uuid) = (self.group(trace, t, group)?, trace.new_track());
        self.rows.entry((group, name.to_owned())).or_default().0.push((uuid, busy_until));
        let mut track = Message::default();
        track.uint(1, uuid).text(2, name).uint(5, parent).int(12, rank).uint(15, NEVER_MERGE);
        self.sequence.describe(trace, t, &track)?;
        Ok(uuid)
    }

    /// A slice on a track.
    pub(super) fn slice<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        track: u64,
        (start, end): (u64, u64),
        (name, category): (Name<'_>, &str),
        notes: &Notes,
    ) -> io::Result<()> {
        self.event(trace, start, track, Kind::Begin { name, category }, notes)?;
        self.event(trace, end, track, Kind::End, &Notes::default())
    }

    /// An event on a track.
    pub(super) fn event<W: Write>(
        &mut self,
        trace: &mut Trace<W>,
        t: u64,
        track: u64,
        kind: Kind<'_>,
        notes: &Notes,
    ) -> io::Result<()> {
        self.sequence.event(trace, t, Some(track), kind, notes)
    }
}
