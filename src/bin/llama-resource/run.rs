//! `run`: starts a command with the library loaded into it. Without --report and --serve this process
//! becomes the command.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;

use crate::library::{library, preload};
use crate::serve::{Metrics, Serving};
use crate::terminal::eprint_line;
use crate::{args, doctor, report, signals};

mod logs;

use self::logs::Logs;

/// Runs the subcommand.
pub fn run(args: &args::Run) -> Result<ExitCode, String> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err("no command: expected `llama-resource run -- CMD ARGS...`".to_owned());
    };
    args.capture.check()?;
    let library = library()?;
    check(Path::new(name));
    let mut command = Command::new(name);
    command.args(arguments).env("LD_PRELOAD", preload(&library, std::env::var_os("LD_PRELOAD").as_deref()));
    let set = |command: &mut Command, key: &str, value: Option<&OsStr>| {
        if let Some(value) = value {
            command.env(key, value);
        }
    };
    set(&mut command, "LLAMA_RESOURCE_LOG_LEVEL", args.level.as_ref().map(OsStr::new));
    set(&mut command, "LLAMA_RESOURCE_LOG_RATE", args.rate.as_ref().map(OsStr::new));
    set(&mut command, "LLAMA_RESOURCE_LOG_PATH", args.log.as_ref().map(|p| p.as_os_str()));
    set(&mut command, "LLAMA_RESOURCE_FOLLOW_CHILDREN", args.follow_children.then(|| OsStr::new("1")));
    command.envs(args.capture.variables());
    if args.report || args.serve.is_some() {
        beside(command, args)
    } else {
        // On success exec does not return: signals, exit status and process id are the command's own from here.
        let error = command.exec();
        Err(cannot_start(name, &error))
    }
}

/// Starts the command and stays beside it, for what is served while it runs and for the report when it has ended.
fn beside(mut command: Command, args: &args::Run) -> Result<ExitCode, String> {
    let named = args.log.clone().or_else(|| std::env::var_os("LLAMA_RESOURCE_LOG_PATH").map(PathBuf::from));
    let log = named.unwrap_or_else(|| PathBuf::from(format!("llama-resource.{}.jsonl", std::process::id())));
    command.env("LLAMA_RESOURCE_LOG_PATH", &log);
    let logs = Arc::new(Logs::before(log));
    let serving = match &args.serve {
        Some(address) => {
            let of_this_run = Arc::clone(&logs);
            let more = move || of_this_run.written().into_iter().map(|(path, _)| path).collect();
            let serving = Serving::start(address, Vec::new(), more, &Metrics::default())?;
            eprint_line(&format!("serving at http://{}/", serving.address));
            Some(serving)
        }
        None => None,
    };
    signals::hold();
    let mut child = command.spawn().map_err(|e| cannot_start(command.get_program(), &e))?;
    signals::forward_to(child.id());
    let status = child.wait().map_err(|e| format!("cannot wait for the command: {e}"))?;
    if let Some(serving) = serving {
        serving.finish();
    }
    if args.report {
        report_on(&logs);
    }
    Ok(exit_code(status))
}

/// The report must not change the command's exit status, so its trouble is only told.
fn report_on(logs: &Logs) {
    let written = logs.written();
    if written.is_empty() {
        let path = logs.pattern().display();
        eprint_line(&format!(
            "no report: no log `{path}` was written: the command did not load the library, or could not open its log \
             (llama-resource doctor says whether it can)"
        ));
    }
    for (log, from) in written {
        if let Err(message) = report::after_run(&log, from) {
            eprint_line(&format!("no report: {message}"));
        } else {
            eprint_line(&format!("log: {}", log.display()));
        }
    }
}

fn cannot_start(name: &OsStr, error: &std::io::Error) -> String {
    format!("cannot start `{}`: {error}", name.display())
}

/// As a shell reports it: 128 + signal for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// One clear line when preloading cannot work; the command is started all the same.
fn check(name: &Path) {
    let Some(path) = doctor::program(name) else { return };
    match doctor::diagnose(&path) {
        Ok(d) if !d.usable => eprint_line(&format!("warning: `{}`: {}", path.display(), d.summary)),
        // A script or a wrapper is fine: what it starts inherits the environment.
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::exit_code;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{ExitCode, ExitStatus};

    #[test]
    fn exit_status_is_the_commands_own() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), ExitCode::from(7));
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
    }
}
