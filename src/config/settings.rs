//! The table of settings: every environment variable that the library reads.

use std::path::PathBuf;

use super::capture::{LEAST_MEMORY, Policy, RouteChoice};
use super::{Config, value};
use crate::codec::Codec;
use crate::format::Level;
use crate::select::{RequestFilter, Selection, TokenStride};

/// A setting in the table.
#[derive(Debug)]
pub struct Setting {
    /// Environment variable.
    pub name: &'static str,
    /// Default, as a user would write it.
    pub default: &'static str,
    /// What values it takes.
    pub values: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Puts a value into the settings; the error says more than `values` does, or nothing.
    apply: fn(&mut Config, &str) -> Result<(), String>,
}

impl Setting {
    /// Puts a value into the settings; one that is not understood leaves them as they were. The error is what was wrong
    /// with it, where more is to be said than that it is none of `values`.
    pub(super) fn set(&self, config: &mut Config, value: &str) -> Result<(), String> {
        let before = config.clone();
        (self.apply)(config, value).inspect_err(|_| *config = before)
    }
}

const YES_NO: &str = "1/true/yes/on or 0/false/no/off";

/// Every variable that the library reads. docs/CONFIGURATION.md is checked against this table.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "LLAMA_RESOURCE_LOG_LEVEL",
        default: "DETAILED",
        values: "MINIMAL, DETAILED, VERBOSE (or 0, 1, 2)",
        help: "How much is written.",
        apply: |c, v| some(Level::parse(v), &mut c.level),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_PATH",
        default: "llama-resource.%p.jsonl",
        values: "a path; %p is replaced by the process id, %t by the Unix time, %e by the program's name, %% by a percent sign",
        help: "The event log. An existing file is appended to; a missing directory is an error, not created.",
        apply: |c, v| some(path(v), &mut c.log_path),
    },
    Setting {
        name: "LLAMA_RESOURCE_DISABLED",
        default: "0",
        values: YES_NO,
        help: "Loaded, but records nothing and starts no thread.",
        apply: |c, v| some(value::boolean(v), &mut c.disabled),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_RATE",
        default: "10K, 50K or 200K by level",
        values: "bytes a second, with K, M or G (1000-based), or `unlimited`",
        help: "How fast the log may grow. Whole steps are sampled to stay under it; `step_summary` still counts every step.",
        apply: |c, v| some(value::rate(v).map(Some), &mut c.rate),
    },
    Setting {
        name: "LLAMA_RESOURCE_LOG_TEXT",
        default: "0",
        values: YES_NO,
        help: "Write token ids. Off, nothing in the log tells what was said.",
        apply: |c, v| some(value::boolean(v), &mut c.text),
    },
    Setting {
        name: "LLAMA_RESOURCE_FOLLOW_CHILDREN",
        default: "0, and 1 for a llama-server in router mode",
        values: YES_NO,
        help: "Leave LD_PRELOAD as it is, so that programs started by the host are recorded too (give the path a %p).",
        apply: |c, v| some(value::boolean(v).map(Some), &mut c.follow_children),
    },
    Setting {
        name: "LLAMA_RESOURCE_GPU_INTERVAL_MS",
        default: "100",
        values: "milliseconds from 10 to 60000, or 0 to leave GPUs alone",
        help: "How often GPUs are read, on a thread of its own. Without a driver there is neither thread nor cost.",
        apply: |c, v| some(v.parse().ok().filter(|n| matches!(n, 0 | 10..=60_000)), &mut c.gpu_interval_ms),
    },
    Setting {
        name: "LLAMA_RESOURCE_SPLIT_TIMES",
        default: "0",
        values: YES_NO,
        help: "Wait for each device after its part of a graph, so that the time of every part is known. Slows the host.",
        apply: |c, v| some(value::boolean(v), &mut c.split_times),
    },
    Setting {
        name: "LLAMA_RESOURCE_CAPTURE",
        default: "not set: nothing is captured",
        values: "a path; %p, %t, %e and %% as in LLAMA_RESOURCE_LOG_PATH",
        help: "The activation stream: values of the tensors that LLAMA_RESOURCE_TENSORS selects, row by row.",
        apply: |c, v| some(path(v).map(Some), &mut c.capture.path),
    },
    Setting {
        name: "LLAMA_RESOURCE_TENSORS",
        default: "auto",
        values: "terms with commas between them: a preset (`residual`, `MLP_ONLY`), a name or pattern (`l_out`, `ffn_*`), \
                 `component:mlp`, `op:MUL_MAT`, each with or without layers (`@0-5+10`, `@last`); `-` before a term takes away",
        help: "Which tensors are captured. `auto` is the residual stream, and the routing of models with experts.",
        apply: |c, v| Selection::parse(v).map(|s| c.capture.tensors = s),
    },
    Setting {
        name: "LLAMA_RESOURCE_ROUTE",
        default: "auto",
        values: "auto, retain or callback",
        help: "How tensors are read: kept until the graph has run (`retain`), or one by one in the eval callback, which cuts the graph.",
        apply: |c, v| some(RouteChoice::parse(v), &mut c.capture.route),
    },
    Setting {
        name: "LLAMA_RESOURCE_CODEC",
        default: "zstd, or the preset's",
        values: "none, lz4, zstd, f16, bf16, bounded or fast",
        help: "How values are stored: none, lz4 and zstd keep every bit, f16 and bf16 round, bounded and fast keep LLAMA_RESOURCE_ERROR_BOUND.",
        apply: |c, v| some(Codec::parse(v).map(Some), &mut c.capture.codec),
    },
    Setting {
        name: "LLAMA_RESOURCE_ERROR_BOUND",
        default: "1e-3",
        values: "a number from 1e-6 to 0.5",
        help: "Largest relative error of the codecs bounded (of each row, and of each block of 64 values) and fast (of each block).",
        apply: |c, v| some(value::fraction(v, 1e-6, 0.5), &mut c.capture.error_bound),
    },
    Setting {
        name: "LLAMA_RESOURCE_MAX_MEMORY",
        default: "1G",
        values: "bytes, with K, M or G (1024-based), at least 16M",
        help: "Memory that capturing may take for its buffers, queues and writer.",
        apply: |c, v| some(value::memory(v).filter(|&n| n >= LEAST_MEMORY), &mut c.capture.max_memory),
    },
    Setting {
        name: "LLAMA_RESOURCE_POLICY",
        default: "block",
        values: "block, drop or sample",
        help: "When that memory is full: the host waits, tensors are left out, or whole steps are. What is left out is counted in the file.",
        apply: |c, v| some(Policy::parse(v), &mut c.capture.policy),
    },
    Setting {
        name: "LLAMA_RESOURCE_CHECKPOINT_TOKENS",
        default: "0",
        values: "a number of tokens, or 0 for no checkpoints",
        help: "After so many tokens everything captured so far is made safe on disk, as a point from which a capture can go on.",
        apply: |c, v| some(v.parse().ok().map(|n| (n > 0).then_some(n)), &mut c.capture.checkpoint_tokens),
    },
    Setting {
        name: "LLAMA_RESOURCE_CAPTURE_RESUME",
        default: "0",
        values: YES_NO,
        help: "Go on behind the last checkpoint of the stream, if the file exists.",
        apply: |c, v| some(value::boolean(v), &mut c.capture.resume),
    },
    Setting {
        name: "LLAMA_RESOURCE_CAPTURE_REQUESTS",
        default: "all",
        values: "numbers and ranges of requests, as in `1-3,7,20-`, or `all`",
        help: "Only rows of these requests are captured.",
        apply: |c, v| some(RequestFilter::parse(v).ok(), &mut c.capture.requests),
    },
    Setting {
        name: "LLAMA_RESOURCE_TOKEN_STRIDE",
        default: "1",
        values: "a number from 1",
        help: "Only every so many-th position of a sequence is captured, from position 0 on.",
        apply: |c, v| some(TokenStride::parse(v), &mut c.capture.token_stride),
    },
    Setting {
        name: "LLAMA_RESOURCE_SAMPLE_ELEMENTS",
        default: "all, 64 with SAMPLED_SLICES",
        values: "a number of elements, or 0 for all",
        help: "At most so many evenly spaced elements of each row are captured; the stream says which.",
        apply: |c, v| some(v.parse().ok().map(Some), &mut c.capture.sample_elements),
    },
    Setting {
        name: "LLAMA_RESOURCE_CODEC_THREADS",
        default: "one, and the host's own where they fill every core",
        values: "a number from 1 to 64",
        help: "Threads of the library that compress.",
        apply: |c, v| some(v.parse().ok().filter(|n| (1..=64).contains(n)).map(Some), &mut c.capture.codec_threads),
    },
];

fn some<T>(value: Option<T>, place: &mut T) -> Result<(), String> {
    value.map(|v| *place = v).ok_or_else(String::new)
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}
