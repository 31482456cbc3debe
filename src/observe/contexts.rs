//! Contexts and the batches they process: which row belongs to which sequence, what the KV cache holds, who is a draft.

mod all;
mod usage;

pub use all::Contexts;

use std::collections::HashMap;

use super::kv::Shadow;
use super::ubatch::{Place, Remaining};
use crate::clock;
use crate::format::server::Batch;
use crate::format::{Level, Line};
use crate::ggml::api::{self, Ptr};
use crate::journal;
use crate::observe::sample::SeqRange;

/// One token or embedding of a batch.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its sequence.
    pub seq: i32,
    /// Further sequences that share it.
    pub more: Vec<i32>,
    /// Position; `None` if the host leaves it to llama.cpp.
    pub pos: Option<i32>,
    /// Token id; -1 for an embedding.
    pub token: i32,
    /// Whether an output was asked for.
    pub output: bool,
}

/// What a call processed of one sequence. Positions are `None` where neither host nor build tells.
#[derive(Clone, Copy, Debug)]
pub struct Processed {
    /// Sequence.
    pub seq: i32,
    /// Rows.
    pub rows: u64,
    /// Those of them with an output.
    pub outputs: u64,
    /// Position of the first.
    pub first_pos: Option<i32>,
    /// One past the largest position.
    pub end_pos: Option<i32>,
    /// It was an encoder's call.
    pub encoded: bool,
}

/// Which context it is, for what outlives a call: an address alone may be another context's by then, or no context's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(u64);

/// A call of `llama_process` or `llama_decode` that is running.
#[derive(Debug, Default)]
struct Running {
    begun_ns: u64,
    first_step: Option<u64>,
    ubatches: u32,
    reused: u32,
    sampled: bool,
}

/// One `llama_context`.
#[derive(Debug)]
pub struct Context {
    /// Number within the session, from 1.
    pub id: u64,
    /// Number within the process: a context that is made at the address of a freed one has another.
    pub serial: Serial,
    memory: usize,
    vocab: usize,
    /// Tokens that have a text: 0 where the build does not tell, or the model has none.
    n_vocab: i32,
    size_cells: u64,
    n_seq_max: u32,
    unified: bool,
    has_cells: bool,
    /// [`Self::kv`] is kept: for caches of cells, and where the build does not say (it shows only changes then).
    shadowed: bool,
    /// What its first `llama_set_sampler` told; `None` before.
    serving: Option<bool>,
    /// The cells.
    pub kv: Shadow,
    rows: Vec<Row>,
    remaining: Remaining,
    /// The running call is an encoder's.
    encodes: bool,
    /// Sequences that sample from a row, and how many have.
    samplers_of_row: HashMap<usize, (Vec<i32>, usize)>,
    /// A sampler was applied to this row at this time, and no accept has followed yet.
    applied: Option<(i32, u64)>,
    running: Option<Running>,
    unsynchronized: Option<Batch>,
    batches: u64,
    busy_ns: u64,
    warming_up: bool,
    told_usage_ns: u64,
}

/// Tokens of a vocabulary that have a text. llama.cpp aborts when a model without a vocabulary is asked for one.
fn texts(vocab: Ptr) -> i32 {
    const NO_VOCABULARY: i32 = 0;
    if vocab.is_null() {
        return 0;
    }
    // SAFETY: the vocabulary of a live model.
    let kind = unsafe { api::llama_vocab_type(vocab) }.filter(|&k| k != NO_VOCABULARY);
    // SAFETY: as above.
    kind.and_then(|_| unsafe { api::llama_vocab_n_tokens(vocab) }).unwrap_or(0)
}

impl Context {
    fn new(id: u64, serial: Serial, ctx: Ptr) -> Self {
        // SAFETY: a live context, as the host uses it right now (`Contexts::get`); so for all calls below.
        let told = unsafe { api::llama_get_memory(ctx) };
        let memory = told.unwrap_or(std::ptr::null_mut());
        // SAFETY: as above.
        let model = unsafe { api::llama_get_model(ctx) }.filter(|m| !m.is_null());
        // SAFETY: the model of a live context.
        let vocab = model.and_then(|m| unsafe { api::llama_model_get_vocab(m) }).unwrap_or(std::ptr::null_mut());
        let n_vocab = texts(vocab);
        // SAFETY: as above.
        let recurrent = model.and_then(|m| unsafe { api::llama_model_is_recurrent(m) }).unwrap_or(false);
        // SAFETY: as above.
        let n_ctx = unsafe { api::llama_n_ctx(ctx) }.unwrap_or(0);
        // SAFETY: as above.
        let n_seq_max = unsafe { api::llama_n_seq_max(ctx) }.unwrap_or(1);
        // SAFETY: as above; builds without it have a unified cache.
        let n_ctx_seq = unsafe { api::llama_n_ctx_seq(ctx) }.unwrap_or(n_ctx);
        Self {
            id,
            serial,
            memory: memory as usize,
            vocab: vocab as usize,
            n_vocab,
            size_cells: u64::from(n_ctx),
            n_seq_max,
            // One stream for all sequences: then each may fill the whole context.
            unified: n_seq_max <= 1 || n_ctx_seq == n_ctx,
            has_cells: !memory.is_null() && !recurrent,
            shadowed: (!memory.is_null() || told.is_none()) && !recurrent,
            serving: None,
            kv: Shadow::default(),
            rows: Vec::new(),
            remaining: Remaining::default(),
            encodes: false,
            samplers_of_row: HashMap::new(),
            applied: None,
            running: None,
            unsynchronized: None,
            batches: 0,
            busy_ns: 0,
            warming_up: false,
            told_usage_ns: 0,
        }
    }

    /// `llama_set_sampler`: the first call tells whether this context serves requests or drafts for another.
    pub fn sampler_set(&mut self, is_null: bool) -> bool {
        *self.serving.get_or_insert(is_null)
    }

    /// Whether it has told that it serves requests.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving == Some(true)
    }

    /// Whether copies between sequences share cells.
    #[must_use]
    pub const fn unified(&self) -> bool {
        self.unified
    }

    /// Total time in decode calls so far.
    #[must_use]
    pub const fn busy_ns(&self) -> u64 {
        self.busy_ns
    }

    /// `llama_set_warmup`.
    pub fn set_warmup(&mut self, on: bool) {
        self.warming_up = on;
    }

    /// Whether decodes count: not in a warm-up, and not for a draft context.
    #[must_use]
    pub fn counts(&self, others_serve: bool) -> bool {
        !self.warming_up && self.serving.map_or(!others_serve, |s| s)
    }

    fn role(&self, others_serve: bool) -> &'static str {
        if self.warming_up {
            "warmup"
        } else if self.counts(others_serve) {
            "main"
        } else {
            "draft"
        }
    }

    /// A call begins with these rows.
    pub fn batch_begins(&mut self, mut rows: Vec<Row>, encodes: bool) {
        self.flush_batch();
        self.encodes = encodes;
        self.fill_positions(&mut rows);
        self.remaining.begin(rows.len());
        self.rows = rows;
        self.samplers_of_row.clear();
        self.batches += 1;
        self.running = Some(Running { begun_ns: clock::now_ns(), ..Running::default() });
    }

    /// Rows without a position follow what the cache holds of their sequence before llama.cpp processes them.
    fn fill_positions(&self, rows: &mut [Row]) {
        if rows.iter().all(|r| r.pos.is_some()) {
            return;
        }
        let mut next: HashMap<i32, i32> = HashMap::new();
        for row in rows {
            if row.pos.is_none() {
                row.pos = next.get(&row.seq).copied().or_else(|| Some(self.positions_of(row.seq)?.1 + 1));
            }
            if let Some(pos) = row.pos {
                next.extend(row.more.iter().chain([&row.seq]).map(|&seq| (seq, pos.saturating_add(1))));
            }
        }
    }

    /// Whether a step of the running call may be written event by event. Not a warm-up: llama.cpp makes up to two
    /// batches before it serves, and nothing says what they are; the budget of a long prompt would be gone.
    #[must_use]
    pub fn may_be_sampled(&self, others_serve: bool) -> bool {
        const WARM_UPS: u64 = 2;
        self.counts(others_serve) && (self.is_serving() || self.batches > WARM_UPS)
    }

    /// Sequences of the running call, at least 1: more tokens than that in a ubatch are a prompt.
    #[must_use]
    pub fn sequences_in_batch(&self) -> u64 {
        let mut seqs: Vec<i32> = self.rows.iter().map(|r| r.seq).collect();
        seqs.sort_unstable();
        seqs.dedup();
        seqs.len().max(1) as u64
    }

    /// A ubatch of the running call was computed.
    pub fn step_done(&mut self, step: Option<u64>, reused: bool, sampled: bool) {
        // A graph without a number processes no tokens: a shift of keys, a copy of a stream.
        if let (Some(r), Some(_)) = (&mut self.running, step) {
            r.first_step = r.first_step.or(step);
            r.ubatches += 1;
            r.reused += u32::from(reused);
            r.sampled |= sampled;
        }
    }

    /// The call has returned. Gives when it began, and its rows by sequence if it succeeded.
    pub fn batch_ends(&mut self, status: i32, others_serve: bool) -> Option<(u64, Vec<Processed>)> {
        let running = self.running.take()?;
        let now = clock::now_ns();
        self.busy_ns += now.saturating_sub(running.begun_ns);
        let mut by_seq: Vec<Processed> = Vec::new();
        if status == 0 {
            self.place_rows(&mut by_seq);
        }
        if running.sampled && journal::level() >= Level::Detailed {
            self.unsynchronized = Some(Batch {
                timestamp: String::new(),
                session_id: String::new(),
                t_ns: running.begun_ns,
                context_id: self.id,
                role: self.role(others_serve).to_owned(),
                first_step: running.first_step,
                ubatches: running.ubatches,
                graphs_reused: running.reused,
                tokens: self.rows.len() as u32,
                sequences: self.sequences_in_batch() as u32,
                outputs: self.rows.iter().filter(|r| r.output).count() as u32,
                status,
                duration_us: now.saturating_sub(running.begun_ns) as f64 / 1e3,
                synchronized_us: None,
            });
        }
        Some((running.begun_ns, by_seq))
    }

    fn place_rows(&mut self, by_seq: &mut Vec<Processed>) {
        for i in 0..self.rows.len() {
            let (seq, output) = (self.rows[i].seq, self.rows[i].output);
            // A row that was put into its batch before we were started: whose it is was not seen.
            if seq < 0 {
                continue;
            }
            let pos = self.rows[i].pos;
            if let Some(pos) = pos.filter(|_| self.shadowed) {
                let mut seqs = vec![seq];
                seqs.extend(&self.rows[i].more);
                self.kv.place(&seqs, pos);
            }
            let end_pos = pos.map(|p| p.saturating_add(1));
            match by_seq.iter_mut().find(|e| e.seq == seq) {
                Some(e) => {
                    e.rows += 1;
                    e.outputs += u64::from(output);
                    e.end_pos = e.end_pos.max(end_pos);
                }
                None => by_seq.push(Processed {
                    seq,
                    rows: 1,
                    outputs: u64::from(output),
                    first_pos: pos,
                    end_pos,
                    encoded: self.encodes,
                }),
            }
        }
    }

    /// The backends are idle: the last call's time is known in full.
    pub fn synchronized(&mut self) {
        let now = clock::now_ns();
        if let Some(b) = &mut self.unsynchronized {
            b.synchronized_us = Some(now.saturating_sub(b.t_ns) as f64 / 1e3);
        }
        self.flush_batch();
    }

    /// Writes a call that was not synchronised.
    pub fn flush_batch(&mut self) {
        if let Some(batch) = self.unsynchronized.take() {
            journal::push_line(Line::Batch(batch));
        }
    }

    /// The sequence that row `i` of the last batch belongs to; negative rows count from the end, as in llama.h.
    #[must_use]
    pub fn row_index(&self, i: i32) -> Option<usize> {
        if i >= 0 {
            return usize::try_from(i).ok().filter(|&i| i < self.rows.len());
        }
        let outputs: Vec<usize> = (0..self.rows.len()).filter(|&k| self.rows[k].output).collect();
        outputs.len().checked_sub(i.unsigned_abs() as usize).map(|k| outputs[k])
    }

    /// A token was sampled from row `i`: for which sequence. A row that several completions share serves them in order
    /// of their ids, as llama-server goes through its slots.
    pub fn sampled_from(&mut self, i: usize) -> Option<i32> {
        let own = self.rows.get(i)?.seq;
        let (seqs, taken) = self.samplers_of_row.entry(i).or_insert_with(|| (vec![own], 0));
        let seq = seqs.get(*taken).or(seqs.last()).copied();
        *taken += 1;
        seq
    }

    /// A sampler was applied to the candidates of row `row`. Gives back an older sample that was never accepted, if
    /// this is another row's.
    pub fn sampler_applied(&mut self, row: i32, now: u64) -> Option<(i32, u64)> {
        match self.applied {
            Some((old, _)) if old == row => None,
            old => {
                self.applied = Some((row, now));
                old
            }
        }
    }

    /// Takes a sample that was applied and not accepted: hosts with their own samplers (node-llama-cpp) never accept.
    pub fn take_applied(&mut self) -> Option<(i32, u64)> {
        self.applied.take()
    }

    /// Sequence of row `i`.
    #[must_use]
    pub fn seq_of_row(&self, i: usize) -> Option<i32> {
        Some(self.rows.get(i)?.seq)
    }

    /// Position of row `i` of the last batch.
    #[must_use]
    pub fn position_of_row(&self, i: usize) -> Option<i32> {
        self.rows.get(i)?.pos
    }

    /// The next `n` rows of the running batch that are computed, by the tokens and positions that the graph got.
    pub fn ubatch(&mut self, n: usize, tokens: Option<&[i32]>, positions: Option<&[i32]>) -> Vec<Place> {
        self.remaining.take(&self.rows, n, tokens, positions, self.unified && self.has_cells)
    }

    /// Rows of sequence `seq` in the running batch, and how many have an output.
    #[must_use]
    pub fn rows_of(&self, seq: i32) -> (usize, usize) {
        let own = || self.rows.iter().filter(|r| r.seq == seq);
        (own().count(), own().filter(|r| r.output).count())
    }

    /// Whether it is in a warm-up that the host announced.
    #[must_use]
    pub const fn is_warming_up(&self) -> bool {
        self.warming_up
    }

    /// What its first `llama_set_sampler` told: whether it serves requests. `None` before.
    #[must_use]
    pub const fn serving(&self) -> Option<bool> {
        self.serving
    }

    /// The vocabulary of its model, null if `token` is not in it: llama.cpp throws when asked for such a text.
    #[must_use]
    pub fn vocab_with(&self, token: i32) -> Ptr {
        if (0..self.n_vocab).contains(&token) { self.vocab as Ptr } else { std::ptr::null_mut() }
    }

    /// `to` got a copy of `from`'s prompt and samples from the same row.
    pub fn share_row(&mut self, from: i32, to: i32) {
        let Some(i) = (0..self.rows.len()).rev().find(|&i| self.rows[i].seq == from && self.rows[i].output) else {
            return;
        };
        let (seqs, _) = self.samplers_of_row.entry(i).or_insert_with(|| (vec![from], 0));
        seqs.push(to);
        seqs.sort_unstable();
    }

    /// Whether `token` ends a generation.
    #[must_use]
    pub fn is_end(&self, token: i32) -> bool {
        // SAFETY: the vocabulary of a live context's model; null is not asked.
        self.vocab != 0 && token >= 0 && unsafe { api::llama_vocab_is_eog(self.vocab as Ptr, token) }.unwrap_or(false)
    }

    /// Sequences of the running call with their positions, if the whole call is one ubatch of `tokens` rows.
    #[must_use]
    pub fn ranges(&self, tokens: u64, hit: impl Fn(i32) -> Option<u32>) -> Vec<SeqRange> {
        if self.rows.len() as u64 != tokens {
            return Vec::new();
        }
        let mut ranges: Vec<SeqRange> = Vec::new();
        for row in &self.rows {
            let Some(pos) = row.pos else { return Vec::new() };
            match ranges.iter_mut().find(|r| r.seq_id == row.seq) {
                Some(r) => {
                    r.first_pos = r.first_pos.min(pos);
                    r.end_pos = r.end_pos.max(pos + 1);
                }
                None => ranges.push(SeqRange {
                    seq_id: row.seq,
                    first_pos: pos,
                    end_pos: pos + 1,
                    hit_permille: hit(row.seq),
                }),
            }
        }
        ranges
    }

    /// A state was restored into a sequence, or into all.
    pub fn restored(&mut self, seq: Option<i32>) {
        match seq {
            Some(seq) if seq >= 0 => self.restored_one(seq),
            _ => (0..i32::try_from(self.n_seq_max).unwrap_or(1)).for_each(|seq| self.restored_one(seq)),
        }
    }

    fn restored_one(&mut self, seq: i32) {
        if let Some((p0, p1)) = self.positions_of(seq).filter(|_| self.has_cells) {
            self.kv.restore(seq, p0, p1);
        }
    }

    /// Smallest and largest position of a sequence in the cache, -1 if it has none. `None` where llama.cpp must not be
    /// asked: it aborts on a sequence that the context does not have.
    fn positions_of(&self, seq: i32) -> Option<(i32, i32)> {
        let has = self.memory != 0 && u32::try_from(seq).is_ok_and(|seq| seq < self.n_seq_max);
        // SAFETY: the memory of a live context (only the host's calls on it come here), and a sequence that it has.
        let min = has.then(|| unsafe { api::llama_memory_seq_pos_min(self.memory as Ptr, seq) })??;
        // SAFETY: as above.
        Some((min, unsafe { api::llama_memory_seq_pos_max(self.memory as Ptr, seq) }?))
    }
}
