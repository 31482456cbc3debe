//! One step: its wanted tensors out of the host and into the pipeline.
//!
//! What the allocator keeps is read at once when the graph is over; what only the callback can read is read node by
//! node while it runs.

use std::ops::Range;
use std::sync::Arc;

use super::Capture;
use super::copy::{self, Read};
use super::early::{Encoded, Work, Working};
use super::live::{Live, Way};
use super::rows::StepRows;
use crate::clock;
use crate::format::stream::{Route, Row};
use crate::ggml::api::{self, Ptr};
use crate::pipeline::{Account, Buffer, ENOUGH, Form, InStep, Job, Piece, Pipeline, Place, Reason, Refused, Table};

/// A step that is being captured.
#[derive(Debug)]
pub struct Step {
    capture: Arc<Capture>,
    /// The graph that runs.
    pub live: Arc<Live>,
    sched: Ptr,
    number: u64,
    rows: StepRows,
    /// Bytes that are still to come, so that buffers are asked for in one piece.
    to_come: usize,
    filling: Option<Filling>,
    /// Asynchronous reads into the buffer that is being filled are on their way.
    pending: bool,
    tokens_told: bool,
    /// Wanted nodes that were neither read nor refused yet.
    open: Vec<bool>,
    /// What the host's threads encode while it runs.
    work: Option<Arc<Work>>,
    /// What they have encoded and is not handed on.
    encoded: Encoded,
    /// What the step has seen may still be open in the account.
    _in_step: InStep,
}

#[derive(Debug)]
struct Filling {
    buffers: Vec<Buffer>,
    /// Of these, the one that is being filled, and how much of it is.
    at: Option<usize>,
    used: usize,
    /// What is in them, unless that is all of the graph's tensors up to here, in their order and whole.
    pieces: Option<Vec<Piece>>,
    places: Vec<Place>,
    /// Tables of tokens: the step's two, and one for each group of a tensor that needs several pieces.
    sets: Vec<Arc<[Row]>>,
}

impl Filling {
    fn new(rows: &StepRows, pieces: usize) -> Self {
        Self {
            buffers: Vec::new(),
            at: None,
            used: 0,
            pieces: None,
            places: Vec::with_capacity(pieces),
            sets: rows.sets.to_vec(),
        }
    }

    /// Where in the buffer that is being filled so many bytes can go; `None` if there is none, or not so much
    /// room in it.
    fn offset_for(&self, bytes: usize) -> Option<usize> {
        let buffer = self.buffers.get(self.at?)?;
        place_behind(self.used, bytes, buffer.len())
    }

    /// Adds wanted node `i`, or a part of it; `piece` says what it is.
    fn add(&mut self, live: &Live, i: usize, whole: bool, place: Place, piece: impl FnOnce() -> Piece) {
        if self.pieces.is_none() && !(whole && i == self.places.len()) {
            self.pieces = live.table().pieces().get(..self.places.len()).map(<[Piece]>::to_vec);
        }
        if let Some(pieces) = &mut self.pieces {
            pieces.push(piece());
        }
        self.places.push(place);
    }

    /// The table of what was added.
    fn table(&mut self, live: &Live) -> Arc<Table> {
        let all = live.table();
        let of = |pieces| Arc::new(Table::new(live.plan.specs.clone(), pieces));
        match self.pieces.take() {
            Some(pieces) => of(pieces),
            None if self.places.len() == all.pieces().len() => Arc::clone(all),
            None => of(all.pieces().get(..self.places.len()).map(<[Piece]>::to_vec).unwrap_or_default()),
        }
    }
}

impl Step {
    /// A step of the graph `live` begins, whose rows are `rows`.
    #[must_use]
    pub fn new(
        capture: Arc<Capture>,
        live: Arc<Live>,
        sched: Ptr,
        number: u64,
        rows: StepRows,
        in_step: InStep,
    ) -> Self {
        let mut step = Self {
            open: vec![true; live.plan.wanted.len()],
            capture,
            live,
            sched,
            number,
            rows,
            to_come: 0,
            filling: None,
            pending: false,
            tokens_told: false,
            work: None,
            encoded: Encoded::default(),
            _in_step: in_step,
        };
        step.leave_out();
        step
    }

    /// Counts what is not read of this step, and sums up what is.
    fn leave_out(&mut self) {
        let live = self.live.clone();
        if let Some(bytes) = live.stored.filter(|_| self.rows.are_all_kept() && self.rows.none_is_empty()) {
            self.to_come = bytes;
            return;
        }
        for (i, (w, way)) in live.plan.wanted.iter().zip(&live.ways).enumerate() {
            match way {
                Way::Refused(reason) => self.skip(i, *reason),
                Way::By(_) if w.bytes == 0 => self.skip(i, Reason::Empty),
                Way::By(_) if self.rows.is_empty(w) => self.skip(i, self.capture.row_reason()),
                Way::By(_) => self.to_come += copy::padded(copy::bytes(w, self.rows.kept(w))),
            }
        }
    }

    fn count(&self, f: impl FnOnce(&Account)) {
        if let Some(pipeline) = self.capture.pipeline() {
            f(pipeline.account());
        }
    }

    /// Settles node `i`, once.
    fn settle(&mut self, i: usize, f: impl FnOnce(&Account, u64)) {
        if let (Some(open), Some(w)) = (self.open.get_mut(i), self.live.plan.wanted.get(i)) {
            let bytes = w.bytes as u64;
            if std::mem::replace(open, false) {
                self.count(|a| f(a, bytes));
            }
        }
    }

    fn skip(&mut self, i: usize, reason: Reason) {
        self.settle(i, |a, bytes| a.skipped(reason, 1, bytes));
    }

    /// The host's callback shows node `t`, or we look at it after the graph: reads wanted node `i`.
    ///
    /// # Safety
    /// The node is computed, and its memory still holds its values.
    pub unsafe fn take(&mut self, i: usize, route: Route) {
        let live = self.live.clone();
        let Some(w) = live.plan.wanted.get(i) else { return };
        if !self.open.get(i).copied().unwrap_or(false) {
            return;
        }
        let all: Option<Vec<u32>> = self.rows.kept(w).map(<[u32]>::to_vec);
        let bytes = copy::bytes(w, all.as_deref());
        self.to_come = self.to_come.saturating_sub(copy::padded(bytes));
        let Some(largest) = self.capture.pipeline().map(Pipeline::largest) else { return };
        if bytes <= largest {
            // SAFETY: the caller's promise.
            if unsafe { self.put(i, all.as_deref(), bytes, route, None) } {
                self.close(i, w.bytes, bytes);
            }
            return;
        }
        // More than a buffer holds: by groups of tokens, if these are what the rows are grouped by.
        let n = all.as_ref().map_or(w.tokens(), Vec::len);
        let each = bytes / n.max(1);
        if w.shape.token_dim == 0 || each > largest || !w.tokens_are_outermost() {
            self.drop_one(i, Reason::TooLarge);
            return;
        }
        let all = all.unwrap_or_else(|| (0..n as u32).collect());
        let size = (largest / each.max(1)).max(1);
        for (number, group) in all.chunks(size).enumerate() {
            let at = number * size..number * size + group.len();
            // SAFETY: the caller's promise.
            if !unsafe { self.put(i, Some(group), each * group.len(), route, Some((at, n))) } {
                return;
            }
        }
        self.close(i, w.bytes, bytes);
    }

    /// Node `i` is read: bytes that the filters left out are accounted for.
    fn close(&mut self, i: usize, seen: usize, stored: usize) {
        let rows = self.capture.row_reason();
        let sliced = self.live.plan.wanted.get(i).and_then(|w| Some((w.spec.slice?, w.shape.ne[0])));
        self.settle(i, |account, _| {
            // Of the rows that are kept, what a slice leaves out; the rest are rows that are not.
            let whole = sliced.map_or(stored, |(s, ne0)| stored / copy::slice_len(&s).max(1) * ne0 as usize);
            for (reason, bytes) in [(Reason::Slice, whole.saturating_sub(stored)), (rows, seen.saturating_sub(whole))] {
                if bytes > 0 {
                    account.skipped(reason, 0, bytes as u64);
                }
            }
        });
    }

    fn drop_one(&mut self, i: usize, reason: Reason) {
        self.settle(i, |a, bytes| a.dropped(reason, 1, bytes));
    }

    /// Reads node `i` into the buffer, or a `group` of its tokens: which ones, and of how many. False if that failed;
    /// the node is then accounted for.
    ///
    /// # Safety
    /// As for [`Self::take`].
    unsafe fn put(
        &mut self,
        i: usize,
        kept: Option<&[u32]>,
        bytes: usize,
        route: Route,
        group: Option<(Range<usize>, usize)>,
    ) -> bool {
        let live = self.live.clone();
        let (Some(w), Some(&t)) = (live.plan.wanted.get(i), live.tensors.get(i)) else { return false };
        if let Err(refused) = self.make_room(bytes) {
            self.drop_one(i, Reason::from(refused));
            return false;
        }
        let Some(f) = &mut self.filling else { return false };
        let Some((offset, at)) = f.offset_for(bytes).zip(f.at) else { return false };
        let Some(to) = f.buffers.get_mut(at).and_then(|b| b.get_mut(offset..offset + bytes)) else { return false };
        // SAFETY: the caller's promise; a pending read is over before the buffer is handed on (`push`).
        match unsafe { copy::read(t, w, kept, self.sched, to) } {
            Read::Done => {}
            Read::Pending => self.pending = true,
            Read::Failed => {
                self.drop_one(i, Reason::Unread);
                return false;
            }
        }
        f.used = offset + bytes;
        let mut rows = StepRows::set_of(w);
        if let (Some((range, _)), Some(set)) = (&group, rows) {
            let own = self.rows.sets.get(usize::from(set)).and_then(|s| s.get(range.clone())).unwrap_or_default();
            rows = u8::try_from(f.sets.len()).ok();
            f.sets.push(own.into());
        }
        let place = Place { buffer: at as u8, offset, form: Form::Values };
        let whole = kept.is_none() && group.is_none() && live.ways.get(i) == Some(&Way::By(route));
        f.add(&live, i, whole, place, || Piece {
            spec: i as u32,
            len: bytes,
            ne: copy::shape(w, kept),
            token_dim: w.shape.token_dim,
            rows,
            route,
            completes: group.is_none_or(|(range, of)| range.end == of),
        });
        true
    }

    /// Room for so many bytes in the buffer that is being filled.
    fn make_room(&mut self, bytes: usize) -> Result<(), Refused> {
        if self.filling.as_ref().is_some_and(|f| f.offset_for(bytes).is_some()) {
            return Ok(());
        }
        let capture = self.capture.clone();
        let pipeline = capture.pipeline().ok_or(Refused::Failed)?;
        let ask = copy::padded(bytes).saturating_add(self.to_come).min(ENOUGH).min(pipeline.largest()).max(bytes);
        // Beside what the host's threads have encoded, so that the tensors stay in order; else after it, because
        // this may wait.
        let beside = self.filling.as_ref().is_some_and(|f| f.at.is_none());
        let buffer = match if beside { pipeline.reserve_now(ask) } else { None } {
            Some(buffer) => buffer,
            None => {
                self.push();
                pipeline.reserve(ask)?
            }
        };
        let f = self.filling.get_or_insert_with(|| Filling::new(&self.rows, 0));
        (f.at, f.used) = (Some(f.buffers.len()), 0);
        f.buffers.push(buffer);
        Ok(())
    }

    /// The host's threads encode what they can of this step while it runs on so many of them.
    pub fn encode_early(&mut self, pipeline: &Pipeline, threads: usize) -> Option<Working> {
        if !self.live.retains || !self.rows.are_all_kept() {
            return None;
        }
        let work = Work::new(self.live.early(pipeline), pipeline, threads)?;
        let working = work.begin()?;
        self.work = Some(work);
        Some(working)
    }

    /// The graph is over: what its threads have encoded goes with the step.
    fn collect(&mut self) {
        let Some(work) = self.work.take() else { return };
        let first = self.filling.as_ref().map_or(0, |f| f.buffers.len() as u8);
        let (buffers, encoded) = work.collect(first);
        if !encoded.is_empty() {
            self.to_come = self.to_come.saturating_sub(encoded.bytes);
            let f = self.filling.get_or_insert_with(|| Filling::new(&self.rows, self.open.len()));
            f.buffers.extend(buffers);
            self.encoded = encoded;
        }
    }

    /// Hands on what the threads have encoded of node `i`, of which nothing was left out. False if there is
    /// nothing of it.
    fn take_encoded(&mut self, live: &Live, i: usize) -> bool {
        let Some(place) = self.encoded.take(i) else { return false };
        let table = live.table();
        if let (Some(f), Some(true), Some(piece)) =
            (&mut self.filling, self.open.get_mut(i).map(std::mem::take), table.pieces().get(i))
        {
            f.add(live, i, true, place, || piece.clone());
        }
        true
    }

    /// Hands the buffer on.
    fn push(&mut self) {
        // Their buffers go, and they with them.
        if !self.encoded.is_empty() {
            let live = self.live.clone();
            (0..self.open.len()).for_each(|i| _ = self.take_encoded(&live, i));
        }
        let Some(mut f) = self.filling.take() else { return };
        if std::mem::take(&mut self.pending) {
            // SAFETY: the scheduler of the graph that has run.
            unsafe { api::ggml_backend_sched_synchronize(self.sched) };
        }
        let tokens = if std::mem::replace(&mut self.tokens_told, true) { 0 } else { self.rows.sets[0].len() as u32 };
        let Some(pipeline) = self.capture.pipeline() else { return };
        pipeline.push(Job {
            step: self.number,
            t_ns: clock::now_ns(),
            table: f.table(&self.live),
            places: f.places,
            row_sets: f.sets,
            data: f.buffers,
            tokens,
        });
    }

    /// The graph is over: reads what was kept and hands everything on.
    ///
    /// # Safety
    /// The graph has been computed, and nothing has run on its scheduler since.
    pub unsafe fn finish(mut self, computed: bool) {
        let live = self.live.clone();
        if computed && live.retains {
            // SAFETY: the scheduler of the graph that has run.
            unsafe { api::ggml_backend_sched_synchronize(self.sched) };
            self.collect();
            for (i, way) in live.ways.iter().enumerate() {
                if !self.take_encoded(&live, i) && *way == Way::By(Route::Retain) {
                    // SAFETY: the caller's promise, and the allocator kept its memory.
                    unsafe { self.take(i, Route::Retain) };
                }
            }
        }
        self.push();
    }
}

impl Drop for Step {
    /// What the host's callback, an error, an exception or the end of the thread cut off.
    fn drop(&mut self) {
        if let Some(f) = self.filling.take() {
            // Read, and never handed on.
            let pieces =
                f.pieces.as_deref().or_else(|| self.live.table().pieces().get(..f.places.len())).unwrap_or_default();
            let (tensors, bytes) =
                (pieces.iter().filter(|p| p.completes).count(), pieces.iter().map(|p| p.len).sum::<usize>());
            self.count(|a| a.dropped(Reason::Unread, tensors as u64, bytes as u64));
        }
        for i in 0..self.open.len() {
            if self.open[i] {
                self.drop_one(i, Reason::Unread);
            }
        }
    }
}

/// Whether the pipeline is there to take a step; false counts all of it as dropped.
pub fn admit(pipeline: &Pipeline, live: &Live) -> bool {
    if pipeline.admit() {
        return true;
    }
    for w in &live.plan.wanted {
        pipeline.account().dropped(Reason::Sampled, 1, w.bytes as u64);
    }
    false
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Full,
            Refused::TooLarge => Self::TooLarge,
            Refused::Failed => Self::IoError,
            Refused::NoMemory => Self::NoMemory,
        }
    }
}

/// Where so many bytes go in a buffer of `size` of which `used` are taken: behind them, at a boundary of
/// [`copy::ALIGNMENT`]. `None` if they do not fit. The gap before them may reach beyond the buffer's end, which is why
/// nothing is subtracted here.
fn place_behind(used: usize, bytes: usize, size: usize) -> Option<usize> {
    let offset = used.checked_next_multiple_of(copy::ALIGNMENT)?;
    (offset.checked_add(bytes)? <= size).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::place_behind;

    #[test]
    fn a_tensor_goes_behind_the_others_only_where_it_fits() {
        // A buffer of exactly what two tensors of 8 bytes take: the second stands behind the gap.
        assert_eq!(place_behind(0, 8, 24), Some(0));
        assert_eq!(place_behind(8, 8, 24), Some(16));
        // Full to the last byte, which is no boundary: the gap reaches beyond the end.
        assert_eq!(place_behind(24, 1, 24), None);
        assert_eq!(place_behind(8, 8, 23), None);
        assert_eq!(place_behind(8, 8, 8), None);
        assert_eq!(place_behind(usize::MAX, 1, usize::MAX), None);
        assert_eq!(place_behind(16, usize::MAX, usize::MAX), None);
    }
}
