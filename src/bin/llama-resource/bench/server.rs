//! One llama-server of our own: started on a port that the kernel chooses, asked, and ended whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http;
use crate::signals;

/// How often a starting or ending server is looked at.
const PERIOD: Duration = Duration::from_millis(10);
/// Seconds for the end after SIGTERM.
const PATIENCE_END: Duration = Duration::from_secs(30);
/// TCP state of a listening socket in /proc/PID/net/tcp.
const LISTENING: &str = "0A";
/// Lines of the server's own output that are shown when it fails.
const SHOWN_LINES: usize = 8;

/// What is to be started.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The program.
    pub binary: &'a Path,
    /// Its arguments, without the port.
    pub arguments: Vec<OsString>,
    /// Variables beside those of the caller; nothing of the caller's LD_PRELOAD, LLAMA_* and GGML_* gets through.
    pub environment: Vec<(&'static str, OsString)>,
    /// Where its output goes.
    pub output: PathBuf,
    /// How long a start and a request may take.
    pub patience: Duration,
}

/// A server that answers.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    output: PathBuf,
    patience: Duration,
}

impl Server {
    /// Starts it and returns when the model is loaded.
    pub fn start(plan: &Plan<'_>) -> Result<Self, String> {
        let cannot_write = |e| format!("cannot write `{}`: {e}", plan.output.display());
        let output = File::create(&plan.output).map_err(cannot_write)?;
        let mut command = cleaned(plan.binary);
        command.args(&plan.arguments).args(["--host", "127.0.0.1", "--port", "0"]);
        command
            .envs(plan.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(cannot_write)?)
            .stderr(output)
            // A wrapper's children are ended with it, and Ctrl-C is ours.
            .process_group(0);
        signals::end_with_us(&mut command);
        let child = command.spawn().map_err(|e| format!("cannot start `{}`: {e}", plan.binary.display()))?;
        let mut server = Self { child, port: 0, output: plan.output.clone(), patience: plan.patience };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// JSON answer of a POST.
    pub fn post(&self, path: &str, body: &str) -> Result<Value, String> {
        let answer = http::request(self.port, "POST", path, Some(body), self.patience);
        let answer = answer.map_err(|e| self.with_output(&e))?;
        if answer.status != 200 {
            let text = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
            return Err(format!("POST {path}: status {}: {text}", answer.status));
        }
        serde_json::from_slice(&answer.body).map_err(|e| format!("POST {path}: the answer is not JSON: {e}"))
    }

    /// CPU time of all threads so far, milliseconds: the first number of their schedstat.
    pub fn cpu_ms(&self) -> f64 {
        let threads =
            family(self.child.id()).into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let of_thread = |thread: fs::DirEntry| -> Option<f64> {
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
        };
        threads.flatten().flatten().filter_map(of_thread).sum::<f64>() / 1e6
    }

    /// Whether a file is mapped into the process, or into a child of it.
    pub fn has_loaded(&self, file: &Path) -> bool {
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let path = file.to_string_lossy();
        family(self.child.id()).iter().any(|pid| {
            fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.lines().any(|l| l.ends_with(&*path)))
        })
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Result<(), String> {
        // llama-server's signal handler takes the task queue's mutex: a signal that meets the main loop inside it, as
        // it may right after the last answer, waits for itself for ever. Let the loop come to rest first.
        std::thread::sleep(Duration::from_millis(50));
        signals::end_group(self.child.id(), false);
        let began = Instant::now();
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.with_output(&format!("the server ended with {status}"))),
                None if began.elapsed() > PATIENCE_END => {
                    return Err(format!("the server did not end within {} s", PATIENCE_END.as_secs()));
                }
                None => std::thread::sleep(PERIOD),
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < self.patience {
            if let Some(status) = self.ended()? {
                return Err(self.with_output(&format!("the server ended ({status}) while it started")));
            }
            if signals::caught() {
                return Err("interrupted".to_owned());
            }
            if self.port == 0 {
                self.port = listening_port(self.child.id()).unwrap_or(0);
            } else if http::request(self.port, "GET", "/health", None, self.patience).is_ok_and(|a| a.status == 200) {
                // /health is green shortly before the main loop runs, and a SIGTERM in between would be lost. /slots is
                // answered by that loop, whatever the answer is.
                return http::request(self.port, "GET", "/slots", None, self.patience).map(|_| ());
            }
            std::thread::sleep(PERIOD);
        }
        Err(self.with_output(&format!("the server was not ready after {} s", self.patience.as_secs())))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|e| format!("cannot wait for the server: {e}"))
    }

    /// The message and the end of what the server has written.
    fn with_output(&self, message: &str) -> String {
        let bytes = fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n  ");
        if last.is_empty() { message.to_owned() } else { format!("{message}; it said last:\n  {last}") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            signals::end_group(self.child.id(), true);
            let _ = self.child.wait();
        }
    }
}

/// A program without the settings of ours and of llama.cpp that the caller has.
pub fn cleaned(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "LD_PRELOAD" || text.starts_with("LLAMA_") || text.starts_with("GGML_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The process and its children: a wrapper script may have started the server.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        next += 1;
    }
    all
}

/// The TCP port at which the process, or a child of it, listens; `None` while there is none.
fn listening_port(pid: u32) -> Option<u16> {
    family(pid).into_iter().find_map(|pid| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let sockets: Vec<String> =
            links.filter_map(|l| fs::read_link(l.path()).ok()).map(|p| p.to_string_lossy().into_owned()).collect();
        port_of(&fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?, &sockets)
    })
}

/// The port of the first listening socket of /proc/PID/net/tcp that is among `sockets` (`socket:[INODE]`).
fn port_of(table: &str, sockets: &[String]) -> Option<u16> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let ours = *state == LISTENING && sockets.contains(&format!("socket:[{inode}]"));
        ours.then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn the_port_is_that_of_our_listening_socket() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0 100 0 0 10 0
   1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 222 1 0 20 4 30 10 -1
   2: 0100007F:D431 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 333 1 0 100 0 0 10 0
";
        let ours = |inode: &str| port_of(table, &[format!("socket:[{inode}]")]);
        assert_eq!((ours("333"), ours("111"), ours("222"), ours("9")), (Some(54321), Some(8080), None, None));
        assert_eq!(port_of("", &[]), None);
        assert_eq!(port_of("head\nshort line\n", &["socket:[0]".to_owned()]), None);
    }
}
