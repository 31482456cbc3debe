//! What logs tell as Prometheus reads it: classic text, or OpenMetrics where it is asked for.
//!
//! Counters are sums since the beginning of the log, so they come out the same after a restart of ours. What is true of
//! now is left out once a recording is over, or was never told: an absent series is honest, a frozen one is not.

mod machine;
mod text;

use std::fmt::Write;

use crate::analyze::live::Live;
use crate::analyze::live::histogram::{Exemplar, Histogram};
use crate::read::follow::Taken;
use text::{escaped, number};

pub use text::names;

/// Type of the answer in the classic format.
pub const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Type of the answer in OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is wanted of a page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// OpenMetrics, with exemplars; otherwise the classic text.
    pub openmetrics: bool,
    /// Times of layers.
    pub layers: bool,
    /// Times of operations.
    pub ops: bool,
    /// Choices of experts.
    pub experts: bool,
    /// The names of vLLM for what it has, too.
    pub vllm: bool,
}

/// One log on the page.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What tells it from the others; no label where there is one log only.
    pub name: Option<&'a str>,
    /// What it says.
    pub live: &'a Live,
    /// What was read of it.
    pub taken: Taken,
    /// It could be read.
    pub up: bool,
}

/// The format that an `Accept` header asks for: OpenMetrics only if it is named and not refused.
#[must_use]
pub fn wants_openmetrics(accept: &str) -> bool {
    accept.split(',').any(|part| {
        let mut fields = part.split(';').map(str::trim);
        let refused =
            part.split(';').map(str::trim).any(|f| f.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
        fields.next() == Some("application/openmetrics-text") && !refused
    })
}

/// The page. `now_s`: Unix seconds.
#[must_use]
pub fn page(sources: &[Source<'_>], now_s: f64, options: Options) -> String {
    let mut page = Page { text: String::with_capacity(1 << 14), options };
    page.log(sources, now_s);
    page.requests(sources);
    page.memory(sources);
    page.steps(sources);
    page.machine(sources);
    if options.vllm {
        page.vllm(sources);
    }
    if options.openmetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct Page {
    text: String,
    options: Options,
}

/// Labels of a series: name and value.
type Labels<'a> = Vec<(&'a str, String)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Source<'_> {
    /// Labels that every series of the log has, then `more`.
    fn labels<'a>(&self, more: &[(&'a str, &str)]) -> Labels<'a> {
        let own = [("log", self.name.map(str::to_owned)), ("model", self.live.model_name())];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        own.chain(more.iter().map(|(n, v)| (*n, (*v).to_owned()))).collect()
    }

    /// Whether a recording is on, so that what is true of now can be told.
    fn is_live(&self) -> bool {
        self.live.session.is_some() && !self.live.ended
    }
}

impl Page {
    /// A family of series; none of it is written where it has no values. `name` is without `_total`.
    fn family(&mut self, name: &str, kind: Kind, help: &str, series: impl IntoIterator<Item = (Labels<'static>, f64)>) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        let sample = if kind == Kind::Counter { format!("{name}_total") } else { name.to_owned() };
        self.head(name, &sample, kind, help);
        for (labels, value) in series {
            self.sample(&sample, &labels, value, None);
        }
    }

    /// A family of histograms.
    fn histograms<'h>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'static>, &'h Histogram)>,
    ) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        self.head(name, name, Kind::Histogram, help);
        for (labels, h) in series {
            let mut sum = 0;
            for (i, count) in h.counts.iter().enumerate() {
                sum += count;
                let bound = h.bounds.get(i).map_or_else(|| "+Inf".to_owned(), |&bound| number(bound));
                let mut of_bucket = labels.clone();
                of_bucket.push(("le", bound));
                let exemplar = h.exemplars[i].as_ref().filter(|_| self.options.openmetrics);
                self.sample(&format!("{name}_bucket"), &of_bucket, sum as f64, exemplar);
            }
            self.sample(&format!("{name}_sum"), &labels, h.sum, None);
            self.sample(&format!("{name}_count"), &labels, sum as f64, None);
        }
    }

    fn head(&mut self, name: &str, sample: &str, kind: Kind, help: &str) {
        // The classic text calls a counter by its samples' name, OpenMetrics by the name without `_total`.
        let name = if self.options.openmetrics { name } else { sample };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64, exemplar: Option<&Exemplar>) {
        self.text.push_str(name);
        if !labels.is_empty() {
            let inner: Vec<String> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escaped(v))).collect();
            _ = write!(self.text, "{{{}}}", inner.join(","));
        }
        _ = write!(self.text, " {}", number(value));
        if let Some(e) = exemplar {
            _ = write!(self.text, " # {{trace_id=\"{}\"}} {} {:.3}", e.trace_id, number(e.value), e.unix_s);
        }
        self.text.push('\n');
    }

    /// Series of what every log has one of.
    fn each(
        &mut self,
        sources: &[Source<'_>],
        name: &str,
        kind: Kind,
        help: &str,
        value: impl Fn(&Source<'_>) -> Option<f64>,
    ) {
        self.family(name, kind, help, sources.iter().filter_map(|s| Some((s.labels(&[]), value(s)?))));
    }

    /// Series of what every log has several of, told apart by one label.
    fn by<K: ToString>(
        &mut self,
        sources: &[Source<'_>],
        (name, kind, help): (&str, Kind, &str),
        label: &'static str,
        values: impl Fn(&Source<'_>) -> Vec<(K, f64)>,
    ) {
        let series = sources.iter().flat_map(|s| {
            values(s)
                .into_iter()
                .map(|(key, value)| (s.labels(&[(label, &key.to_string())]), value))
                .collect::<Vec<_>>()
        });
        self.family(name, kind, help, series);
    }

    fn log(&mut self, sources: &[Source<'_>], now_s: f64) {
        use Kind::{Counter, Gauge};
        let is_up = |s: &Source<'_>| Some(f64::from(u8::from(s.up && s.is_live())));
        self.each(sources, "llama_resource_up", Gauge, "Whether the log can be read and its recording is on.", is_up);
        let info = sources.iter().filter_map(|s| {
            let start = s.live.session.as_ref().filter(|_| s.is_live())?;
            let level = start.level.name().to_owned();
            let more = [
                ("session_id", start.session_id.as_str()),
                ("program", &start.program),
                ("level", &level),
                ("library_version", &start.library_version),
            ];
            Some((s.labels(&more), 1.0))
        });
        self.family("llama_resource_session_info", Gauge, "The recording that is on.", info);
        let info = sources.iter().filter_map(|s| {
            let model = s.live.model.as_ref().filter(|_| s.is_live())?;
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let more = [
                ("architecture", text(&model.architecture)),
                ("description", text(&model.description)),
                ("ggml_commit", text(&model.ggml_commit)),
            ];
            let more: Vec<(&'static str, &str)> = more.iter().map(|(n, v)| (*n, v.as_str())).collect();
            Some((s.labels(&more), 1.0))
        });
        self.family("llama_resource_model_info", Gauge, "The model that is loaded.", info);
        let newest = |s: &Source<'_>| s.live.unix_s(s.live.last_ns);
        self.each(
            sources,
            "llama_resource_last_event_timestamp_seconds",
            Gauge,
            "When the newest event of the log happened.",
            newest,
        );
        let lag = |s: &Source<'_>| Some((now_s - newest(s)?).max(0.0)).filter(|_| s.is_live());
        self.each(
            sources,
            "llama_resource_log_lag_seconds",
            Gauge,
            "Age of the newest event of a recording that is on.",
            lag,
        );
        let dropped = |s: &Source<'_>| s.live.dropped.iter().map(|(k, n)| (k.clone(), *n as f64)).collect();
        let what = ("llama_resource_events_dropped", Counter, "Events that the host's log lacks, by reason.");
        self.by(sources, what, "reason", dropped);
        let read = |s: &Source<'_>| {
            let t = s.taken;
            vec![("event", t.events as f64), ("unknown", t.unknown as f64), ("bad", t.bad as f64)]
        };
        let what = ("llama_resource_log_lines", Counter, "Lines read of the log, by what became of them.");
        self.by(sources, what, "result", read);
        let replaced =
            |s: &Source<'_>| vec![("rotated", s.taken.rotations as f64), ("truncated", s.taken.truncations as f64)];
        let what = ("llama_resource_log_replacements", Counter, "Times that the log was replaced or cut back.");
        self.by(sources, what, "how", replaced);
    }

    fn requests(&mut self, sources: &[Source<'_>]) {
        use Kind::{Counter, Gauge};
        let outcomes = |s: &Source<'_>| s.live.requests.outcomes.iter().map(|(k, n)| (k.clone(), *n as f64)).collect();
        let what = ("llama_resource_requests", Counter, "Requests that ended, by outcome.");
        self.by(sources, what, "outcome", outcomes);
        let active = |s: &Source<'_>| s.is_live().then_some(s.live.requests.active.len() as f64);
        self.each(sources, "llama_resource_requests_active", Gauge, "Requests that run.", active);
        let tokens = |s: &Source<'_>| {
            let r = &s.live.requests;
            vec![("prompt", r.prompt_tokens as f64), ("generated", r.generated_tokens as f64)]
        };
        let what =
            ("llama_resource_tokens", Counter, "Tokens of requests that ended; of prompts, cached ones included.");
        self.by(sources, what, "phase", tokens);
        let cached = |s: &Source<'_>| Some(s.live.requests.cached_tokens as f64);
        let help = "Prompt tokens of requests that ended which were in the KV cache.";
        self.each(sources, "llama_resource_prompt_cached_tokens", Counter, help, cached);
        let draft = |s: &Source<'_>| {
            let r = &s.live.requests;
            if r.drafted == 0 {
                Vec::new()
            } else {
                vec![("drafted", r.drafted as f64), ("accepted", r.accepted as f64)]
            }
        };
        let what = ("llama_resource_draft_tokens", Counter, "Tokens of speculative decoding; of a patched server.");
        self.by(sources, what, "state", draft);
        type Which = for<'a> fn(&'a Live) -> &'a Histogram;
        let all: [(&str, &str, Which); 8] = [
            (
                "llama_resource_time_to_first_token_seconds",
                "From the launch in a slot to the first token; a patched server's queue time is not in it.",
                |l| &l.requests.time_to_first_token,
            ),
            ("llama_resource_inter_token_seconds", "Between two tokens of a request that ended.", |l| {
                &l.requests.inter_token
            }),
            ("llama_resource_request_duration_seconds", "From the start of a request to its end.", |l| {
                &l.requests.duration
            }),
            ("llama_resource_queue_seconds", "From a task's creation to its launch; of a patched server.", |l| {
                &l.requests.queue
            }),
            ("llama_resource_prefill_seconds", "From the first work on the prompt to the first token.", |l| {
                &l.requests.prefill
            }),
            ("llama_resource_decode_seconds", "From the first token to the last.", |l| &l.requests.decode),
            ("llama_resource_request_prompt_tokens", "Tokens of a request's prompt.", |l| &l.requests.prompt_size),
            ("llama_resource_request_generated_tokens", "Tokens that a request generated.", |l| {
                &l.requests.generated_size
            }),
        ];
        for (name, help, which) in all {
            let series = sources.iter().map(|s| (s.labels(&[]), which(s.live))).filter(|(_, h)| h.total() > 0);
            self.histograms(name, help, series.collect::<Vec<_>>());
        }
        let gen_ai: [(&str, &str, Which); 3] = [
            ("gen_ai_server_request_duration_seconds", "OpenTelemetry's gen_ai.server.request.duration.", |l| {
                &l.requests.duration
            }),
            ("gen_ai_server_time_to_first_token_seconds", "OpenTelemetry's gen_ai.server.time_to_first_token.", |l| {
                &l.requests.time_to_first_token
            }),
            (
                "gen_ai_server_time_per_output_token_seconds",
                "OpenTelemetry's gen_ai.server.time_per_output_token, of each token.",
                |l| &l.requests.inter_token,
            ),
        ];
        for (name, help, which) in gen_ai {
            let series = sources.iter().filter(|s| which(s.live).total() > 0).map(|s| {
                let mut labels: Labels<'static> = s.name.map(|n| ("log", n.to_owned())).into_iter().collect();
                // The operation is the route's, which the log does not tell: it is left out, not guessed.
                labels.push(("gen_ai_provider_name", "llama.cpp".to_owned()));
                labels.extend(s.live.model_name().map(|m| ("gen_ai_response_model", m)));
                (labels, which(s.live))
            });
            self.histograms(name, help, series.collect::<Vec<_>>());
        }
    }

    fn memory(&mut self, sources: &[Source<'_>]) {
        use Kind::{Counter, Gauge};
        let series = sources.iter().filter(|s| s.is_live()).flat_map(|s| {
            let of = |(place, bytes): (&crate::analyze::live::Place, u64)| {
                let more = [("device", place.device.as_str()), ("kind", &place.kind), ("memory", &place.memory)];
                (s.labels(&more), bytes as f64)
            };
            s.live.memory().into_iter().map(of).collect::<Vec<_>>()
        });
        let help = "Bytes of live backend buffers, by device, kind and memory.";
        self.family("llama_resource_buffer_bytes", Gauge, help, series.collect::<Vec<_>>());
        let series = sources.iter().filter(|s| s.is_live()).flat_map(|s| {
            let of = |(context, cells): (&u64, &crate::analyze::live::Cells)| {
                let context = context.to_string();
                let size = (s.labels(&[("context", &context), ("state", "size")]), cells.size as f64);
                let used = cells.used.map(|n| (s.labels(&[("context", &context), ("state", "used")]), n as f64));
                used.into_iter().chain([size]).collect::<Vec<_>>()
            };
            s.live.contexts.iter().flat_map(of).collect::<Vec<_>>()
        });
        self.family(
            "llama_resource_kv_cells",
            Gauge,
            "Cells of the KV cache, used and in all.",
            series.collect::<Vec<_>>(),
        );
        let help = "Share of the KV cells that are used, of all contexts together: what inference gateways ask for.";
        self.each(sources, "llama_resource_kv_used_ratio", Gauge, help, kv_ratio);
        let operations = |s: &Source<'_>| s.live.kv_operations.iter().map(|(k, n)| (k.clone(), *n as f64)).collect();
        let what =
            ("llama_resource_kv_operations", Counter, "Operations of the host on the KV cache that the log tells of.");
        self.by(sources, what, "operation", operations);
    }

    fn steps(&mut self, sources: &[Source<'_>]) {
        use Kind::Counter;
        type Of = fn(&crate::analyze::live::Phase) -> f64;
        let phases: [(&str, &str, Of); 4] = [
            ("llama_resource_steps", "Ubatches that were computed.", |p| p.steps as f64),
            ("llama_resource_step_tokens", "Tokens that were computed.", |p| p.tokens as f64),
            ("llama_resource_graph_seconds", "Time in the calls that compute graphs.", |p| p.graph_s),
            ("llama_resource_flops", "Floating-point operations, from the shapes of the graphs.", |p| p.flops as f64),
        ];
        for (name, help, of) in phases {
            let values =
                |s: &Source<'_>| vec![("prefill", of(&s.live.steps.prefill)), ("decode", of(&s.live.steps.decode))];
            self.by(sources, (name, Counter, help), "phase", values);
        }
        let graphs = |s: &Source<'_>| {
            vec![("built", s.live.steps.graphs_built as f64), ("reused", s.live.steps.graphs_reused as f64)]
        };
        self.by(sources, ("llama_resource_graphs", Counter, "Graphs that ran, built or reused."), "state", graphs);
        let timed = |s: &Source<'_>| Some(s.live.steps.timed_steps as f64);
        let help = "Steps whose operations were timed: what the seconds of components, operations and layers are of.";
        self.each(sources, "llama_resource_timed_steps", Counter, help, timed);
        let timed = |s: &Source<'_>| Some(s.live.steps.timed_graph_s);
        self.each(
            sources,
            "llama_resource_timed_graph_seconds",
            Counter,
            "Time in the compute calls of timed steps.",
            timed,
        );
        let barriers = |s: &Source<'_>| Some(s.live.steps.barrier_s);
        self.each(
            sources,
            "llama_resource_barrier_seconds",
            Counter,
            "Time at barriers between operations, of timed steps.",
            barriers,
        );
        let components =
            |s: &Source<'_>| s.live.steps.components.iter().map(|(k, t)| (k.clone(), t.timed_us / 1e6)).collect();
        let what = ("llama_resource_component_seconds", Counter, "Time in operations of a component, of timed steps.");
        self.by(sources, what, "component", components);
        let bytes = |s: &Source<'_>| s.live.steps.components.iter().map(|(k, t)| (k.clone(), t.bytes as f64)).collect();
        let what = (
            "llama_resource_component_bytes",
            Counter,
            "Bytes that operations of a component read and wrote, from shapes.",
        );
        self.by(sources, what, "component", bytes);
        if self.options.ops {
            let ops = |s: &Source<'_>| s.live.steps.ops.iter().map(|(k, t)| (k.clone(), t.timed_us / 1e6)).collect();
            self.by(
                sources,
                ("llama_resource_op_seconds", Counter, "Time in an operation, of timed steps."),
                "op",
                ops,
            );
        }
        if self.options.layers {
            let layers = |s: &Source<'_>| s.live.steps.layers.iter().map(|(k, t)| (*k, t.timed_us / 1e6)).collect();
            self.by(
                sources,
                ("llama_resource_layer_seconds", Counter, "Time in a layer, of timed steps."),
                "layer",
                layers,
            );
        }
        if self.options.experts {
            let series = sources.iter().flat_map(|s| {
                let of = |((layer, expert), n): (&(i32, usize), &u64)| {
                    (s.labels(&[("layer", &layer.to_string()), ("expert", &expert.to_string())]), *n as f64)
                };
                s.live.experts.iter().map(of).collect::<Vec<_>>()
            });
            let help = "Tokens that were routed to an expert.";
            self.family("llama_resource_expert_tokens", Counter, help, series.collect::<Vec<_>>());
        }
        let copies = sources.iter().flat_map(|s| {
            let of = |((from, to), bytes): (&(String, String), &u64)| {
                (s.labels(&[("from", from), ("to", to)]), *bytes as f64)
            };
            s.live.steps.copies.iter().map(of).collect::<Vec<_>>()
        });
        let help = "Bytes copied between devices.";
        self.family("llama_resource_copies_bytes", Counter, help, copies.collect::<Vec<_>>());
    }
}

/// Used over all cells, where both are known.
fn kv_ratio(s: &Source<'_>) -> Option<f64> {
    if !s.is_live() {
        return None;
    }
    let (mut used, mut size) = (0, 0);
    for cells in s.live.contexts.values() {
        used += cells.used?;
        size += cells.size;
    }
    (size > 0).then(|| used as f64 / size as f64)
}
