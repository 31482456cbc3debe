//! A test of the same program in a process of its own.
#![allow(dead_code, reason = "each test program uses its part")]

use std::process::{Command, Stdio};

/// The ignored test `name` in a child, with `environment`; quiet unless it fails.
pub fn command(name: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(name: &str, environment: &[(&str, &str)]) -> String {
    let output = command(name, environment).output().expect("a child");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {environment:?}: {text}");
    text
}
