//! The settings of the next start: what the program has set, then the environment.

use std::path::PathBuf;

use parking_lot::Mutex;

use crate::config::{self, Config};

/// The settings that the program and the environment give, and what was wrong with them.
#[must_use]
pub fn from_environment() -> (Config, Vec<String>) {
    let set = SET.lock().clone();
    let named = |n: &str| set.iter().any(|(own, _)| own == n);
    let variables = std::env::vars_os()
        .map(|(n, v)| (n.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
        .filter(|(n, _)| !named(n));
    let (mut config, warnings) = Config::parse(variables.chain(set.iter().cloned()));
    // The two values that need not be UTF-8.
    let path = |name: &str| std::env::var_os(name).filter(|p| !p.is_empty() && !named(name)).map(PathBuf::from);
    if let Some(path) = path("LLAMA_RESOURCE_LOG_PATH") {
        config.log_path = path;
    }
    if let Some(path) = path("LLAMA_RESOURCE_CAPTURE") {
        config.capture.path = Some(path);
    }
    (config, warnings)
}

/// Settings that the program made by [`set`].
static SET: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Sets `name` for the next start, ahead of the environment; `None` takes it back. The error says what was expected.
pub fn set(name: &str, value: Option<&str>) -> std::result::Result<(), String> {
    if let Some(value) = value {
        config::check(name, value)?;
    }
    let mut set = SET.lock();
    set.retain(|(n, _)| n != name);
    if let Some(value) = value {
        set.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
}
