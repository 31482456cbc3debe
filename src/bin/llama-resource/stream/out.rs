//! Standard output for long texts: a reader that goes away (`| head`) ends the work quietly.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use llama_resource_instrumentation::export::units::{printable, printable_json};

/// Why the work ends before its time.
#[derive(Debug)]
pub enum Stop {
    /// The reader is gone: no error.
    Closed,
    /// An error to show.
    Failed(String),
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

impl From<llama_resource_instrumentation::error::Error> for Stop {
    fn from(e: llama_resource_instrumentation::error::Error) -> Self {
        // Names of the file stand in it; a message is one line.
        Self::Failed(printable(&e.to_string()))
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(format!("cannot print: {e}")) }
    }
}

/// Buffered standard output.
pub struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    /// Takes standard output.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(1 << 16, io::stdout().lock()))
    }

    /// Prints.
    pub fn print(&mut self, text: fmt::Arguments<'_>) -> Result<(), Stop> {
        Ok(self.0.write_fmt(text)?)
    }

    /// Prints JSON, and ends the line.
    pub fn json(&mut self, text: &str) -> Result<(), Stop> {
        self.print(format_args!("{}\n", printable_json(text)))
    }

    /// Prints what is still in memory.
    pub fn finish(mut self) -> Result<(), Stop> {
        Ok(self.0.flush()?)
    }
}

/// A reader that went away is no error.
pub fn quiet(result: Result<(), Stop>) -> Result<(), String> {
    match result {
        Err(Stop::Failed(text)) => Err(text),
        Ok(()) | Err(Stop::Closed) => Ok(()),
    }
}
