//! Writes the hand-made sample log: the format's own types, filled with plausible, round, invented
//! values. No measurement.

use llama_resource_instrumentation::format::summary::{LayerTotals, NamedTotals, PhaseTotals, Totals};
use llama_resource_instrumentation::format::{LOG_VERSION, Level, Line, resource, server, session, summary};

/// 2026-11-22 01:00:00 UTC in microseconds.
const UNIX_US: u64 = 1_795_309_200_000_000;
const LAYERS: i32 = 8;

struct Writer {
    lines: Vec<Line>,
    id: String,
    /// Monotonic clock at the start of the session.
    t0_ns: u64,
    /// Unix time at the start of the session.
    u0_us: u64,
    live: u64,
    buffers: u64,
}

impl Writer {
    fn t(&self, ms: f64) -> u64 {
        self.t0_ns + (ms * 1e6) as u64
    }

    fn unix(&self, ms: f64) -> String {
        (self.u0_us + (ms * 1e3) as u64).to_string()
    }

    fn local(&self, ms: f64) -> String {
        let ms = (self.u0_us - UNIX_US) / 1000 + ms as u64;
        format!("2026-11-22 01:{:02}:{:02}.{:03}", ms / 60_000, ms / 1000 % 60, ms % 1000)
    }

    fn start(&mut self, level: Level, pid: u32) {
        self.lines.push(Line::ResourceSessionStart(session::SessionStart {
            timestamp: self.local(0.0),
            session_id: self.id.clone(),
            level,
            t_ns: self.t0_ns,
            unix_us: self.u0_us,
            log_version: LOG_VERSION,
            library_version: "0.1.0".into(),
            mode: "preload".into(),
            pid,
            program: "llama-server".into(),
            rate_limit: Some(level.default_rate()),
        }));
    }

    fn state(&mut self, component: &str, state: &str, reason: &str, lost: Option<&str>) {
        self.lines.push(Line::InstrumentationState(summary::InstrumentationState {
            timestamp: self.unix(1.0),
            session_id: self.id.clone(),
            t_ns: self.t(1.0),
            component: component.into(),
            state: state.into(),
            reason: reason.into(),
            lost: lost.map(Into::into),
        }));
    }

    fn model(&mut self, ms: f64) {
        self.lines.push(Line::ModelLoad(server::ModelLoad {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            path: Some("/models/tiny-moe-8x50M.Q4_1.gguf".into()),
            outcome: "load".into(),
            duration_ms: 212.5,
            description: Some("llama 8x50M Q4_1".into()),
            name: Some("Tiny <MoE> & Co".into()),
            architecture: Some("llama".into()),
            size_bytes: Some(256_901_120),
            n_params: Some(402_653_184),
            n_layer: Some(LAYERS),
            n_embd: Some(576),
            n_head: Some(9),
            n_head_kv: Some(3),
            n_ctx_train: Some(8192),
            n_expert: Some(8),
            n_expert_used: Some(2),
            ggml_version: Some("0.25.3".into()),
            ggml_commit: Some("0c1e570".into()),
        }));
    }

    fn alloc(&mut self, ms: f64, kind: &str, memory_type: &str, backend: &str, size_bytes: u64) {
        self.live += size_bytes;
        self.buffers += 1;
        self.lines.push(Line::BufferAllocation(server::BufferAllocation {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            buffer_id: self.buffers,
            kind: kind.into(),
            size_bytes,
            backend: backend.into(),
            device: Some("CPU".into()),
            memory_type: memory_type.into(),
            live_bytes: self.live,
        }));
    }

    fn free(&mut self, ms: f64, buffer_id: u64, kind: &str, size_bytes: u64) {
        self.live -= size_bytes;
        self.lines.push(Line::BufferFree(server::BufferFree {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            buffer_id,
            kind: kind.into(),
            size_bytes,
            backend: "CPU".into(),
            live_bytes: self.live,
        }));
    }

    fn request_start(&mut self, ms: f64, request_id: u64, seq_id: i32) {
        self.lines.push(Line::RequestStart(server::RequestStart {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            request_id,
            seq_id,
            context_id: 1,
            source: "launch".into(),
        }));
    }

    /// `tokens` = prompt, cached, generated; `times` = wait, prompt and mean inter-token milliseconds.
    fn request_end(&mut self, start_ms: f64, id: u64, seq_id: i32, tokens: [u64; 3], times: [f64; 3], outcome: &str) {
        let [prompt_tokens, cached_tokens, generated_tokens] = tokens;
        let [wait, prompt, mean] = times;
        let some = generated_tokens > 0;
        let ttft = wait + prompt;
        let duration_ms = ttft + mean * generated_tokens.saturating_sub(1) as f64 + 0.5;
        let ms = start_ms + duration_ms;
        self.lines.push(Line::RequestEnd(server::RequestEnd {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            request_id: id,
            seq_id,
            context_id: 1,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            ttft_ms: some.then_some(ttft),
            prompt_ms: some.then_some(prompt),
            wait_ms: Some(wait),
            inter_token_buckets: None,
            inter_token_ms: (generated_tokens > 1).then_some(server::InterToken {
                mean,
                p50: mean - 0.5,
                p95: mean + 3.0,
                p99: mean + 11.0,
            }),
            tokens_per_second: (generated_tokens > 1).then_some(1e3 / mean),
            prompt_tokens_per_second: some.then_some((prompt_tokens - cached_tokens) as f64 * 1e3 / prompt),
            duration_ms,
            outcome: outcome.into(),
            shifted_tokens: 0,
            task_id: None,
            completion_id: None,
            queue_ms: None,
            stop_reason: None,
            drafted: None,
            accepted: None,
            gpu: None,
        }));
    }

    fn tokens(&mut self, first_ms: f64, request_id: u64, seq_id: i32, n: u64) {
        for index in 0..n {
            let since_previous_ms = if index == 0 { 121.0 } else { 13.0 + (index * 7 % 5) as f64 * 0.5 };
            let ms = first_ms + 14.0 * index as f64;
            self.lines.push(Line::RequestToken(server::RequestToken {
                timestamp: self.unix(ms),
                session_id: self.id.clone(),
                t_ns: self.t(ms),
                request_id,
                seq_id,
                index,
                token_id: None,
                since_previous_ms,
            }));
        }
    }

    fn kv(&mut self, ms: f64, used: u64, sequences: u32) {
        self.lines.push(Line::KvCacheUsage(server::KvCacheUsage {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            context_id: 1,
            used_cells: Some(used),
            size_cells: 4096,
            sequences,
            reason: "interval".into(),
        }));
    }

    fn batch(&mut self, ms: f64, step: u64, tokens: u32, status: i32) {
        self.lines.push(Line::Batch(server::Batch {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            context_id: 1,
            role: "main".into(),
            first_step: Some(step),
            ubatches: 1,
            graphs_reused: 1,
            tokens,
            sequences: 2,
            outputs: 2,
            status,
            duration_us: 15_200.0,
            synchronized_us: Some(15_230.0),
        }));
    }

    fn summary(&mut self, ms: f64, interval_ms: f64, prefill_steps: u64, decode_steps: u64, last_step: u64) {
        let steps = prefill_steps + decode_steps;
        let timed = steps / 2;
        // Of each timed step 15 ms, in hundredths: operations 78, barriers 15, other 7.
        let graph_us = 15_000.0 * timed as f64;
        let totals = |share: f64, count: u64, gflop: f64, mb: f64| Totals {
            count: count * steps,
            flops: (gflop * 1e9) as u64 * steps,
            bytes: (mb * 1e6) as u64 * steps,
            timed_count: count * timed,
            timed_us: graph_us * share,
            timed_flops: (gflop * 1e9) as u64 * timed,
            timed_bytes: (mb * 1e6) as u64 * timed,
        };
        let named = |name: &str, share, count, gflop, mb| NamedTotals {
            name: name.into(),
            totals: totals(share, count, gflop, mb),
        };
        let layer =
            |i: i32| LayerTotals { layer_id: i, totals: totals(0.08 + 0.002 * f64::from(i % 3), 40, 0.03, 10.0) };
        let untimed = NamedTotals {
            name: "set_rows".into(),
            totals: Totals { count: 16 * steps, bytes: 4096 * steps, ..Totals::default() },
        };
        self.lines.push(Line::StepSummary(summary::StepSummary {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            interval_ms,
            step: Some(last_step),
            steps,
            timed_steps: timed,
            sampled_steps: steps / 20,
            graphs_reused: decode_steps.saturating_sub(1),
            graphs_built: prefill_steps + 1,
            prefill: PhaseTotals {
                steps: prefill_steps,
                tokens: prefill_steps * 256,
                graph_us: 180_000.0 * prefill_steps as f64,
                flops: prefill_steps * 70_000_000_000,
            },
            decode: PhaseTotals {
                steps: decode_steps,
                tokens: decode_steps * 2,
                graph_us: 15_000.0 * decode_steps as f64,
                flops: decode_steps * 540_000_000,
            },
            timed_graph_us: graph_us,
            barrier_us: graph_us * 0.15,
            other_us: graph_us * 0.07,
            component_flows: 41 * steps,
            ops: vec![
                named("mul_mat_id", 0.42, 24, 0.16, 62.0),
                named("mul_mat", 0.27, 33, 0.10, 41.0),
                named("flash_attn_ext", 0.05, 8, 0.004, 3.0),
                named("rms_norm", 0.02, 17, 0.0001, 0.5),
                named("glu", 0.015, 8, 0.0002, 0.4),
                named("cpy", 0.005, 16, 0.0, 0.2),
                untimed,
            ],
            components: vec![
                named("moe", 0.45, 72, 0.165, 63.0),
                named("attention", 0.21, 88, 0.08, 25.0),
                named("output", 0.09, 2, 0.03, 17.0),
                named("norm", 0.025, 34, 0.0002, 1.0),
                named("embedding", 0.005, 1, 0.0, 0.1),
            ],
            layers: (0..LAYERS).map(layer).collect(),
            devices: None,
            copies: None,
        }));
    }

    fn moe(&mut self, ms: f64, tokens: u64) {
        for layer_id in 0..LAYERS {
            // Layer 3 never uses expert 7; every layer has another favourite.
            let weight = |e: i32| u64::from(!(layer_id == 3 && e == 7)) * if e == layer_id { 6 } else { 2 };
            let sum: u64 = (0..8).map(weight).sum();
            let mut counts: Vec<u64> = (0..8).map(|e| tokens * 2 * weight(e) / sum).collect();
            counts[0] += tokens * 2 - counts.iter().sum::<u64>();
            self.lines.push(Line::MoeRouting(summary::MoeRouting {
                timestamp: self.unix(ms),
                session_id: self.id.clone(),
                t_ns: self.t(ms),
                layer_id,
                tokens,
                experts_used: 2,
                counts,
            }));
        }
    }

    fn host(&mut self, ms: f64, cpu: f64, own: f64) {
        self.lines.push(Line::HostSample(summary::HostSample {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            rss_bytes: Some(320_000_000 + (ms * 1_000.0) as u64),
            cpu_percent: Some(cpu),
            own_cpu_percent: Some(own),
            threads: Some(7),
            major_faults: Some(0),
            minor_faults: Some(120),
            involuntary_switches: Some(4),
            read_bytes: Some(0),
            write_bytes: Some(65_536),
            load_1m: Some(1.9),
            available_bytes: Some(6_000_000_000),
            cpu_pressure_percent: Some(12.5),
            memory_pressure_percent: None,
            io_pressure_percent: None,
            cpu_package_energy_mj: None,
            cpu_package_power_mw: None,
        }));
    }

    fn threads(&mut self, ms: f64, step: u64) {
        self.lines.push(Line::ThreadImbalance(summary::ThreadImbalance {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            step,
            t_ns: self.t(ms),
            busy_us: vec![12_600.0, 11_400.0],
            imbalance: 1.05,
        }));
    }

    fn dropped(&mut self, ms: f64, reason: &str, kind: &str, count: u64) {
        self.lines.push(Line::EventsDropped(summary::EventsDropped {
            timestamp: self.unix(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
            reason: reason.into(),
            kind: kind.into(),
            count,
        }));
    }

    fn evict(&mut self, ms: f64, seq_id: i32, from: i32) {
        let timestamp = self.unix(ms);
        self.lines.push(Line::KvCacheOperation(resource::KvCacheOperation {
            resource_id: format!("CPU_cache_layer_none_evict_{timestamp}"),
            timestamp,
            cache_type: "key_value".into(),
            layer_id: None,
            seq_id: Some(seq_id),
            cache_start_pos: Some(from),
            cache_end_pos: None,
            key_cache_size_mb: None,
            value_cache_size_mb: None,
            cache_hit_ratio: None,
            cache_operation: "evict".into(),
            session_id: self.id.clone(),
            step: None,
            t_ns: self.t(ms),
            backend: None,
            device: None,
            cache_size_mb: None,
        }));
    }

    fn end(&mut self, ms: f64, steps: u64, requests: u64, events_dropped: u64) {
        let (written, bytes) = (self.lines.len() as u64, self.text().len() as u64);
        self.lines.push(Line::ResourceSessionSummary(session::SessionSummary {
            timestamp: self.local(ms),
            session_id: self.id.clone(),
            total_memory_mb: Some(337.0),
            total_compute_gflops: 1_040.0,
            component_flows: 41 * steps,
            t_ns: self.t(ms),
            steps,
            requests,
            lines_written: written,
            bytes_written: bytes,
            events_dropped,
        }));
        self.lines.push(Line::ResourceSessionEnd(session::SessionEnd {
            timestamp: self.local(ms),
            session_id: self.id.clone(),
            t_ns: self.t(ms),
        }));
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
    }
}

fn session(id: &str, after_ms: u64) -> Writer {
    let (t0_ns, u0_us) = (5_000_000_000 + after_ms * 1_000_000, UNIX_US + after_ms * 1_000);
    Writer { lines: Vec::new(), id: id.into(), t0_ns, u0_us, live: 0, buffers: 0 }
}

/// A host that was killed in the middle of its first request.
fn killed() -> Writer {
    let mut w = session("resource_sess_20261122_010000_000000", 0);
    w.start(Level::Minimal, 4100);
    w.state("hooks", "ok", "38 of 38 hooks resolved", None);
    w.model(400.0);
    w.alloc(401.0, "weights", "mmap", "CPU_Mapped", 256_901_120);
    w.alloc(430.0, "kv_cache", "ram", "CPU", 50_331_648);
    w.request_start(900.0, 1, 0);
    w.kv(1_000.0, 200, 1);
    w
}

/// A host that served four more requests and closed its log in order.
fn whole() -> Writer {
    let mut w = session("resource_sess_20261122_010100_000000", 60_000);
    w.start(Level::Verbose, 4242);
    w.state("hooks", "ok", "37 of 38 hooks resolved", None);
    let lost = Some("moments at which the host dropped cells by llama_memory_seq_add");
    w.state("requests", "degraded", "llama_memory_seq_add is not exported by this build", lost);
    w.state("layout", "ok", "ggml_tensor is 336 bytes, all 9 fields found", None);
    w.model(400.0);
    w.alloc(401.0, "weights", "mmap", "CPU_Mapped", 256_901_120);
    w.alloc(430.0, "kv_cache", "ram", "CPU", 50_331_648);
    w.alloc(440.0, "compute", "ram", "CPU", 15_204_352);
    w.alloc(450.0, "output", "ram", "CPU", 786_432);
    w.alloc(460.0, "compute", "ram", "CPU", 30_408_704);
    w.free(470.0, 3, "compute", 15_204_352);
    w.request_start(1_000.0, 1, 0);
    w.request_start(1_400.0, 2, 1);
    w.summary(2_000.0, 2_000.0, 4, 20, 23);
    w.kv(2_000.0, 620, 2);
    w.host(2_000.0, 180.0, 0.6);
    w.batch(2_100.0, 24, 2, 0);
    w.threads(2_100.0, 24);
    w.summary(4_000.0, 2_000.0, 0, 120, 143);
    w.kv(4_000.0, 860, 2);
    w.host(4_000.0, 196.0, 0.9);
    w.threads(4_100.0, 144);
    w.request_end(1_000.0, 1, 0, [512, 0, 200], [2.0, 410.0, 16.0], "eog");
    w.request_end(1_400.0, 2, 1, [180, 24, 220], [95.0, 190.0, 15.5], "stopped");
    w.evict(5_000.0, 0, 300);
    w.request_start(5_200.0, 3, 0);
    w.tokens(5_321.0, 3, 0, 40);
    w.summary(6_000.0, 2_000.0, 1, 80, 224);
    w.kv(6_000.0, 1_310, 2);
    w.host(6_000.0, 150.0, 0.5);
    w.dropped(6_000.0, "rate_limit", "step_events", 190);
    w.request_end(5_200.0, 3, 0, [640, 512, 96], [1.0, 120.0, 14.0], "eog");
    w.request_start(6_900.0, 4, 1);
    w.request_end(6_900.0, 4, 1, [900, 0, 0], [3.0, 0.0, 0.0], "no_tokens");
    w.batch(6_901.0, 225, 900, 1);
    w.moe(7_500.0, 1_900);
    w.summary(8_000.0, 2_000.0, 1, 30, 255);
    w.kv(8_000.0, 420, 1);
    w.host(8_000.0, 40.0, 0.2);
    w.dropped(8_000.0, "rate_limit", "step_events", 55);
    w.dropped(8_000.0, "queue_full", "request_token", 3);
    w.end(8_200.0, 256, 4, 248);
    w
}

/// The whole file: two sessions, one appended to the other.
pub fn log() -> String {
    killed().text() + &whole().text()
}
