//! `doctor`: can this binary be instrumented by preloading, and what will work? Reads ELF files, runs
//! nothing. (`--tensors` does.)

mod elf;
mod feature;
mod listing;
mod predict;
mod search;
mod tensors;

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use llama_resource_instrumentation::export::table::{Table, wrap};
use llama_resource_instrumentation::export::units::{printable, printable_json};
use serde::Serialize;

use self::elf::Object;
use self::feature::{Feature, Works};
use self::predict::{Predictions, Value};
use self::search::Closure;
use crate::args;
use crate::terminal::{print, stdout_style};

pub use self::search::program;

/// Exit status for "not usable", apart from 1 for "could not find out".
const NOT_USABLE: u8 = 2;

/// What is to be said about a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Shared libraries with open symbols: preload works.
    Usable,
    /// No ggml yet, but it can load libraries while it runs: hooks resolve when it does.
    Later,
    /// ggml is compiled in.
    StaticallyLinked,
    /// The dynamic linker ignores LD_PRELOAD for it.
    PreloadIgnored,
    /// It has nothing to do with ggml.
    NoGgml,
    /// Libraries are there, but the calls that matter cannot be seen.
    Closed,
}

/// The answer; the `--json` output.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    binary: PathBuf,
    verdict: Verdict,
    /// Whether preloading is worth trying.
    pub usable: bool,
    /// The verdict in one sentence.
    pub summary: String,
    features: Vec<Feature>,
    /// What a log of this host will hold.
    predictions: Predictions,
    /// Its ggml and llama.cpp libraries.
    pub libraries: Vec<PathBuf>,
    /// Backends that ggml opens by itself.
    pub dlopened_backends: Vec<PathBuf>,
    missing_libraries: Vec<String>,
    notes: Vec<String>,
}

/// Runs the subcommand.
pub fn doctor(args: &args::Doctor) -> Result<ExitCode, String> {
    if let Some(selection) = &args.tensors {
        return tensors::tensors(args, selection);
    }
    let path = program(&args.binary).ok_or_else(|| {
        format!("cannot find `{}`: expected the path of a program or library, or a name in PATH", args.binary.display())
    })?;
    let diagnosis = diagnose(&path)?;
    if args.json {
        let json =
            serde_json::to_string_pretty(&diagnosis).map_err(|e| format!("cannot write the answer as JSON: {e}"))?;
        print(&(printable_json(&json) + "\n"))?;
    } else {
        print(&render(&diagnosis))?;
    }
    Ok(if diagnosis.usable { ExitCode::SUCCESS } else { ExitCode::from(NOT_USABLE) })
}

/// Examines the binary at `path`.
pub fn diagnose(path: &Path) -> Result<Diagnosis, String> {
    let closure = search::closure(path)?;
    let root = &closure.objects[0];
    let is_library = !root.has_interpreter && root.is_dynamic;
    // A single extension module with everything inside (xllamacpp) is as good as shared libraries, if it exports ggml
    // and calls it through its own tables.
    let uses_ggml = closure.objects.iter().any(search::is_ggml_library) || !root.own_calls.is_empty();
    let features = feature::features(&closure.objects, is_library);
    let (verdict, summary) = judge(root, uses_ggml, is_setuid(path), &closure, &features);
    let usable = matches!(verdict, Verdict::Usable | Verdict::Later);
    let (features, predictions) = match verdict {
        Verdict::Usable | Verdict::Closed => {
            let predictions = Predictions::of(&closure.objects, &features, is_library);
            (features.into_iter().chain(predictions.lines()).collect(), predictions)
        }
        Verdict::Later => {
            let why = "known when the host loads llama.cpp: ask about the library that it loads";
            (feature::all(Works::Depends, why), Predictions::all(Value::Unknown, why))
        }
        _ => (feature::all(Works::No, "see above"), Predictions::all(Value::No, &summary)),
    };
    let ours =
        |objects: &[Object]| objects.iter().filter(|o| search::is_ggml_library(o)).map(|o| o.path.clone()).collect();
    Ok(Diagnosis {
        binary: path.to_owned(),
        verdict,
        usable,
        summary,
        features,
        predictions,
        libraries: ours(&closure.objects[1..closure.linked]),
        dlopened_backends: closure.objects[closure.linked..].iter().map(|o| o.path.clone()).collect(),
        missing_libraries: closure.missing.iter().map(|(name, by)| format!("{name} (needed by {by})")).collect(),
        notes: notes(&closure, is_library && usable),
    })
}

fn judge(root: &Object, uses_ggml: bool, setuid: bool, closure: &Closure, features: &[Feature]) -> (Verdict, String) {
    const REMEDY: &str = "use the patched build (patches/) or the C API";
    let say = |verdict, text: &str| (verdict, text.to_owned());
    if !root.is_dynamic {
        let ggml = if root.has_ggml_inside { ", ggml included" } else { "" };
        let text = format!("statically linked{ggml}: cannot be instrumented by preload; {REMEDY}");
        return (Verdict::StaticallyLinked, text);
    }
    if setuid {
        return say(
            Verdict::PreloadIgnored,
            "set-user-ID or set-group-ID: the dynamic linker ignores LD_PRELOAD for it",
        );
    }
    if !uses_ggml && root.has_ggml_inside {
        let text = format!("ggml is statically linked into it: cannot be instrumented by preload; {REMEDY}");
        return (Verdict::StaticallyLinked, text);
    }
    if !uses_ggml && closure.objects.iter().any(|o| o.imports_dlopen && !is_libc(o)) {
        let text = "no ggml or llama.cpp in it, but it can load libraries while it runs, as Python and Node.js do: \
                    hooks resolve when it loads llama.cpp";
        return say(Verdict::Later, text);
    }
    if !uses_ggml {
        return say(Verdict::NoGgml, "no ggml or llama.cpp in it or in its libraries: nothing to instrument");
    }
    let works = |name: &str| features.iter().any(|f| f.feature == name && f.works > Works::No);
    if works("decode") || works("graphs") {
        return say(
            Verdict::Usable,
            "calls into llama.cpp go through the dynamic linker: can be instrumented by preload",
        );
    }
    let text = format!("its libraries keep their calls to themselves: cannot be instrumented by preload; {REMEDY}");
    (Verdict::Closed, text)
}

/// libc and the linker import or define dlopen for everybody; that says nothing about the program.
fn is_libc(object: &Object) -> bool {
    let name = object.name();
    ["libc.so", "libdl.so", "ld-linux", "libpthread.so"].iter().any(|prefix| name.starts_with(prefix))
}

fn is_setuid(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o6000 != 0)
}

fn notes(closure: &Closure, needs_host: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if needs_host {
        notes.push("this is a library: preload into the host that loads it (python, node, ...)".to_owned());
    }
    for object in closure.objects.iter().filter(|o| o.is_symbolic && search::is_ggml_library(o)) {
        notes.push(format!("{} is linked with -Bsymbolic: its calls to itself are never seen", object.name()));
    }
    let machine = match std::env::consts::ARCH {
        "x86_64" => object::elf::EM_X86_64.0,
        "aarch64" => object::elf::EM_AARCH64.0,
        _ => closure.objects[0].machine,
    };
    if closure.objects[0].machine != machine {
        notes.push("it is for another machine than this program: use a library that was built for it".to_owned());
    }
    notes
}

fn render(d: &Diagnosis) -> String {
    let style = stdout_style();
    let word = if d.usable { "usable" } else { "NOT USABLE" };
    let mut out = format!("{}\n", style.strong(&printable(&d.binary.display().to_string())));
    out += &wrap(&format!("{word}: "), "  ", &d.summary);
    // One reason for everything needs no table.
    if !matches!(d.verdict, Verdict::NoGgml | Verdict::StaticallyLinked | Verdict::PreloadIgnored | Verdict::Later) {
        let mut table = Table::new(&["<feature", "<works?", "<why"]);
        for f in &d.features {
            let works = match f.works {
                Works::Yes => "yes",
                Works::Partly => "partly",
                Works::Depends => "depends",
                Works::No => "no",
            };
            table.row([f.feature.to_owned(), works.to_owned(), f.why.clone()]);
        }
        out += &format!("\n{}", table.render_wrapped(style));
    }
    let list = |title: &str, items: &[String]| {
        let mut text = String::new();
        if !items.is_empty() {
            let _ = writeln!(text, "\n{}", style.heading(title));
            items.iter().for_each(|item| text += &format!("  {}\n", printable(item)));
        }
        text
    };
    let paths = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
    out += &list("libraries", &paths(&d.libraries));
    out += &list("backends that ggml opens itself", &paths(&d.dlopened_backends));
    out += &list("libraries not found", &d.missing_libraries);
    out += &list("notes", &d.notes);
    out
}
