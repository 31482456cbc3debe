//! `serve`, and `run --serve`: what logs tell, where people look - metrics, events, a summary and a page.

mod body;
mod events;
mod http;
mod watch;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use clap::Args;
use llama_resource_instrumentation::export::prometheus;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::signals;
use crate::terminal::eprint_line;
use watch::Watch;

/// The environment variable that holds the token.
const TOKEN: &str = "LLAMA_RESOURCE_TOKEN";

/// How often a signal is looked for.
const PERIOD: std::time::Duration = std::time::Duration::from_millis(100);

/// `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llama-resource serve llama.jsonl                          then open http://127.0.0.1:9464/
  llama-resource serve /var/log/llama/ --listen 127.0.0.1:9464   every *.jsonl of a folder, now and later
  llama-resource run --serve 127.0.0.1:9464 -- llama-server -m model.gguf
  curl -N 'http://127.0.0.1:9464/api/v1/resource-logs?event=request_end&follow=1'

  /                      a page that shows what the hosts do now
  /metrics               Prometheus; OpenMetrics with trace ids where the scraper asks for it
  /api/v1/summary        the page's figures as JSON; ?follow=1 sends them as they change
  /api/v1/resource-logs  the events: ?event=a,b &session= &request= &layer= &since= &until= &limit=
                         &log= &cursor= &follow=1 &format=ndjson|sse
  /healthz               200 once everything that was there has been read

Only GET and HEAD are answered. An address that is not of this machine alone needs a token in the
environment variable LLAMA_RESOURCE_TOKEN, which clients then show as `Authorization: Bearer TOKEN`
or `?token=TOKEN`.")]
pub struct Serve {
    /// Logs, or folders of them; they need not be there yet
    #[arg(required = true)]
    pub logs: Vec<PathBuf>,
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub listen: String,
    /// What the metrics have
    #[command(flatten)]
    pub metrics: Metrics,
}

/// What `/metrics` has besides.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Metrics")]
pub struct Metrics {
    /// Times of each layer as metrics, too
    #[arg(long)]
    layers: bool,
    /// Times of each operation as metrics, too
    #[arg(long)]
    ops: bool,
    /// Choices of each expert as metrics, too
    #[arg(long)]
    experts: bool,
    /// Names of another server for what it has, too: vllm
    #[arg(long, value_name = "NAMES", value_parser = ["vllm"])]
    names: Option<String>,
}

impl Metrics {
    fn options(&self) -> prometheus::Options {
        prometheus::Options {
            openmetrics: false,
            layers: self.layers,
            ops: self.ops,
            experts: self.experts,
            vllm: self.names.is_some(),
        }
    }
}

/// Runs the subcommand.
pub fn serve(args: &Serve) -> Result<ExitCode, String> {
    let serving = Serving::start(&args.listen, args.logs.clone(), Vec::new, &args.metrics)?;
    signals::catch();
    eprint_line(&format!("serving at http://{}/ (Ctrl-C ends it)", serving.address));
    while !signals::caught() {
        std::thread::sleep(PERIOD);
    }
    serving.finish();
    Ok(ExitCode::SUCCESS)
}

/// A server that runs.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    watch: Watch,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Begins to follow and to listen.
    pub fn start(
        listen: &str,
        logs: Vec<PathBuf>,
        more: impl Fn() -> Vec<PathBuf> + Send + 'static,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot listen at `{listen}`: {e}");
        let asked =
            listen.to_socket_addrs().map_err(|e| failed(&e))?.next().ok_or_else(|| failed(&"no such address"))?;
        let token = std::env::var(TOKEN).ok().filter(|t| !t.is_empty());
        if !asked.ip().is_loopback() && token.is_none() {
            let why = "others can reach this address, and what is served tells much of the host; set a token in LLAMA_RESOURCE_TOKEN";
            return Err(failed(&why));
        }
        let listener = std::net::TcpListener::bind(asked).and_then(|l| l.set_nonblocking(true).map(|()| l));
        let listener = listener.map_err(|e| failed(&e))?;
        let address = listener.local_addr().map_err(|e| failed(&e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
        let watch = Watch::start(logs, more)?;
        let (end, ended) = oneshot::channel();
        let (shared, settings) =
            (Arc::clone(&watch.shared), http::Settings { token, address, options: metrics.options() });
        let body = move || {
            runtime.block_on(async {
                if let Ok(listener) = TcpListener::from_std(listener) {
                    http::serve(listener, shared, settings, async { _ = ended.await }).await;
                }
            });
            // Threads that read for a client end by themselves: they see that nobody takes what they read.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("serve".to_owned()).spawn(body).map_err(|e| failed(&e))?;
        Ok(Self { address, watch, end: Some(end), thread: Some(thread) })
    }

    /// Reads the last events, and ends.
    pub fn finish(mut self) {
        self.watch.finish();
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
