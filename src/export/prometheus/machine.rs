//! Figures of GPUs and of the machine, and the names that others look for.

use super::{Kind, Page, Source, kv_ratio};
use crate::analyze::live::Live;
use crate::analyze::live::histogram::Histogram;

impl Page {
    pub(super) fn machine(&mut self, sources: &[Source<'_>]) {
        use Kind::{Counter, Gauge};
        type Of = fn(&crate::format::gpu::GpuSample) -> Option<f64>;
        let gpu: [(&str, Kind, &str, Of); 6] = [
            ("llama_resource_gpu_memory_used_bytes", Gauge, "Memory in use on the GPU, by all processes.", |g| {
                g.memory_used_bytes.map(|b| b as f64)
            }),
            (
                "llama_resource_gpu_process_memory_bytes",
                Gauge,
                "Memory of the GPU that the host's process holds.",
                |g| g.process_memory_bytes.map(|b| b as f64),
            ),
            ("llama_resource_gpu_busy_ratio", Gauge, "Share of time in which a kernel ran.", |g| {
                g.gpu_busy_percent.map(|p| p / 100.0)
            }),
            ("llama_resource_gpu_sm_utilization_ratio", Gauge, "Share of the multiprocessors that were busy.", |g| {
                g.sm_utilization_percent.map(|p| p / 100.0)
            }),
            ("llama_resource_gpu_power_watts", Gauge, "Power that the GPU draws.", |g| g.power_mw.map(|p| p / 1e3)),
            ("llama_resource_gpu_energy_joules", Counter, "The GPU's own energy counter.", |g| {
                g.energy_mj.map(|e| e as f64 / 1e3)
            }),
        ];
        for (name, kind, help, of) in gpu {
            let series = sources.iter().filter(|s| s.is_live()).flat_map(|s| {
                let one = |(number, g): (&u32, &crate::format::gpu::GpuSample)| {
                    let (number, name) = (number.to_string(), g.name.clone().unwrap_or_default());
                    Some((s.labels(&[("gpu", &number), ("name", &name)]), of(g)?))
                };
                s.live.gpus.iter().filter_map(one).collect::<Vec<_>>()
            });
            self.family(name, kind, help, series.collect::<Vec<_>>());
        }
        type OfHost = fn(&crate::format::summary::HostSample) -> Option<f64>;
        let host: [(&str, &str, OfHost); 5] = [
            ("llama_resource_host_resident_bytes", "Memory of the host's process.", |h| h.rss_bytes.map(|b| b as f64)),
            ("llama_resource_host_cpu_ratio", "Processors that the host's process uses.", |h| {
                h.cpu_percent.map(|p| p / 100.0)
            }),
            ("llama_resource_instrumentation_cpu_ratio", "Processors that the recording itself uses.", |h| {
                h.own_cpu_percent.map(|p| p / 100.0)
            }),
            ("llama_resource_host_threads", "Threads of the host's process.", |h| h.threads.map(|n| n as f64)),
            ("llama_resource_host_load1", "The machine's load average of a minute.", |h| h.load_1m),
        ];
        for (name, help, of) in host {
            self.each(sources, name, Gauge, help, |s| s.live.host.as_ref().filter(|_| s.is_live()).and_then(of));
        }
    }

    /// Names that dashboards, scalers and gateways made for vLLM look for. They have colons, which linters complain of.
    pub(super) fn vllm(&mut self, sources: &[Source<'_>]) {
        use Kind::{Counter, Gauge};
        let running = |s: &Source<'_>| s.is_live().then_some(s.live.requests.active.len() as f64);
        self.each(sources, "vllm:num_requests_running", Gauge, "As vLLM names it.", running);
        self.each(sources, "vllm:kv_cache_usage_perc", Gauge, "As vLLM names it; 1 is full.", kv_ratio);
        let prompt = |s: &Source<'_>| Some(s.live.requests.prompt_tokens as f64);
        self.each(sources, "vllm:prompt_tokens", Counter, "As vLLM names it.", prompt);
        let generated = |s: &Source<'_>| Some(s.live.requests.generated_tokens as f64);
        self.each(sources, "vllm:generation_tokens", Counter, "As vLLM names it.", generated);
        type Which = for<'a> fn(&'a Live) -> &'a Histogram;
        let all: [(&str, Which); 3] = [
            ("vllm:time_to_first_token_seconds", |l| &l.requests.time_to_first_token),
            ("vllm:inter_token_latency_seconds", |l| &l.requests.inter_token),
            ("vllm:e2e_request_latency_seconds", |l| &l.requests.duration),
        ];
        for (name, which) in all {
            let series = sources.iter().map(|s| {
                let mut labels = s.labels(&[]);
                labels.iter_mut().filter(|(n, _)| *n == "model").for_each(|(n, _)| *n = "model_name");
                (labels, which(s.live))
            });
            self.histograms(name, "As vLLM names it.", series.collect::<Vec<_>>());
        }
    }
}
