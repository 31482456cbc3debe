//! What all subcommands print with: standard output, standard error under this program's name, and whether
//! colours are wanted.

use std::io::{IsTerminal, Write};

use llama_resource_instrumentation::export::table::Style;
use llama_resource_instrumentation::export::units::{printable, printable_lines};

/// Colour for people only, and not where they asked for none (no-color.org).
pub fn style(out: &impl IsTerminal) -> Style {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    Style { colour: out.is_terminal() && !unwanted }
}

/// Style of standard output.
pub fn stdout_style() -> Style {
    style(&std::io::stdout())
}

/// Prints to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("cannot print: {e}")),
        _ => Ok(()),
    }
}

/// One line on standard error, under this program's name: the command's own messages stand beside it. What a file says,
/// a name with a line break in it, does not make another line.
pub fn eprint_line(text: &str) {
    eprint(&format!("llama-resource: {}", printable(text)));
}

/// Text on standard error, without what a terminal would act on; if even that is closed, there is nobody to tell.
pub fn eprint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable_lines(text));
}
