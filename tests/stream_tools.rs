//! `llama-resource stream` as a user meets it: help, answers on the golden stream, exit statuses, damage of every kind,
//! and streams of the capture's own pipeline. tests/server/test_stream_export.py has the exports and the figures beside
//! numpy, safetensors and DuckDB.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "pipeline/feed.rs"]
mod feed;
#[path = "stream/sample.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod sample;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use llama_resource_instrumentation::codec::{Codec, DType, Encoder, Params};
use llama_resource_instrumentation::format::stream::{Part, Row};
use llama_resource_instrumentation::pipeline::{Pipeline, Policy};
use llama_resource_instrumentation::read::stream::decode;
use sample::{Writer, f32_bytes, plain};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares with the golden file; `UPDATE=1` writes it instead.
fn assert_golden(name: &str, actual: &str) {
    let path = golden(&format!("v1/{name}"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(expected == actual, "tests/golden/v1/{name} differs; UPDATE=1 rewrites it. Now it is:\n{actual}");
}

/// A folder of its own for each test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stream-tools-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn program(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-resource"));
    command.arg("stream").args(args).current_dir(folder).env_remove("COLUMNS").stdin(Stdio::null());
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    program(folder, args).output().unwrap()
}

/// Standard output of a run that ends with `code`.
fn said(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = run(folder, args);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    out
}

fn json_of(folder: &Path, code: i32, args: &[&str]) -> Value {
    serde_json::from_str(&said(folder, code, args)).unwrap()
}

/// One line of error, beginning with this.
fn assert_error(folder: &Path, args: &[&str], begins: &str) {
    let output = run(folder, args);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
    assert!(err.starts_with(begins) && err.lines().count() == 1, "{args:?}: {err}");
}

/// A stream with every codec: 40 rows of 128 in each of 7 tensors, packets of 10 rows.
fn every_codec() -> Writer {
    let (mut w, mut encoder) = (Writer::default(), Encoder::default());
    w.header(&json!({"session_id": "codecs"}));
    let mut bytes = 0;
    for packet in 0..4_u64 {
        for (i, codec) in Codec::ALL.into_iter().enumerate() {
            let value = |k: u64| ((k * 7919 + packet * 104_729 + i as u64 * 13) % 2003) as f32 / 100.0 - 9.0;
            let data = f32_bytes(&(0..1280).map(value).collect::<Vec<_>>());
            let rows =
                (0..10).map(|t| Row { seq: 0, pos: 10 * packet as i32 + t, token: 300 + t, request: 1 }).collect();
            let parts = vec![Part { step: packet, t_ns: 1000 * packet, ne: [128, 10, 1, 1], token_dim: 1, rows }];
            let mut body = Vec::new();
            let done = encoder.encode(&Params { codec, error_bound: 1e-3 }, DType::F32, 128, &data, &mut body);
            let name = format!("{}-{i}", codec.name());
            let mut meta = plain(&name, "ADD", i as i32, DType::F32, done.codec, 128, parts);
            (meta.row_l2, meta.block_max, meta.error_bound) = (done.row_l2, done.block_max, 1e-3);
            let mut values = Vec::new();
            decode(&meta, &body, &mut values).unwrap();
            bytes += values.len();
            w.tensor(&name, meta, &body, values);
        }
    }
    let amount = json!({"tensors": 28, "bytes": bytes});
    w.index();
    w.end(&json!({"account": {"seen": amount, "captured": amount, "skipped": {}, "dropped": {}}}));
    w
}

#[test]
fn help_of_every_subcommand() {
    let here = folder("help");
    let mut all = said(&here, 0, &["--help"]);
    for sub in ["info", "ls", "verify", "cat", "stats", "recover", "export", "import"] {
        all += &format!("\n{}\n{}", "=".repeat(80), said(&here, 0, &[sub, "--help"]));
    }
    assert_golden("stream-help.txt", &all);
    assert!(all.lines().all(|l| l.chars().count() <= 100), "a line is too long");
}

#[test]
fn answers_on_the_golden_stream() {
    let here = golden("stream");
    let mut all = String::new();
    for args in [
        &["info", "v1.stream"][..],
        &["ls", "v1.stream"],
        &["verify", "v1.stream"],
        &["stats", "v1.stream"],
        &["stats", "v1.stream", "--by", "layer"],
        &["stats", "v1.stream", "--by", "token", "--tensors", "Qcur*,norm"],
        &["cat", "v1.stream", "Qcur-3.MUL_MAT", "--rows", "0-3"],
        &["info", "older-zstd.stream"],
    ] {
        let text = said(&here, 0, args);
        assert!(args[0] == "cat" || text.lines().all(|l| l.chars().count() <= 80), "{text}");
        all += &format!("$ llama-resource stream {}\n{text}\n", args.join(" "));
    }
    assert_golden("stream.txt", &all);
}

#[test]
fn json_has_the_documented_keys() {
    let info = json_of(&golden("stream"), 0, &["info", "v1.stream", "--json"]);
    for key in
        ["file", "bytes", "header", "clean_end", "account", "tensors", "steps", "tokens", "checkpoints", "damage"]
    {
        assert!(!info[key].is_null(), "{key}");
    }
    for tensor in info["tensors"].as_array().unwrap() {
        let keys =
            ["name", "dtype", "packets", "rows", "values", "bytes", "stored_bytes", "ratio", "row_l2_max", "block_max"];
        for key in keys.into_iter().chain(["saturated", "layers", "routes"]) {
            assert!(!tensor[key].is_null(), "{key}");
        }
    }
}

#[test]
fn every_codec_comes_out_as_it_decodes() {
    let (here, written) = (folder("codecs"), every_codec());
    fs::write(here.join("s"), &written.bytes).unwrap();
    let verified = json_of(&here, 0, &["verify", "s", "--json"]);
    assert_eq!((&verified["verdict"], &verified["clean_end"]), (&json!("good"), &json!(true)), "{verified}");
    for tensor in verified["tensors"].as_array().unwrap() {
        let bound = if tensor["codecs"] == json!(["bounded"]) { 1e-3 } else { 1.0 };
        assert!(
            tensor["row_l2_max"].as_f64().unwrap() <= bound && tensor["block_max"].as_f64().unwrap() <= bound,
            "{tensor}"
        );
    }
    said(&here, 0, &["export", "s", "--to", "npy", "--out", "npy"]);
    for (i, codec) in Codec::ALL.into_iter().enumerate() {
        let name = format!("{}-{i}", codec.name());
        let file = fs::read(here.join(format!("npy/{name}.npy"))).unwrap();
        let header = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
        let expected: Vec<u8> =
            written.tensors.iter().filter(|t| t.name == name).flat_map(|t| t.values.clone()).collect();
        assert!(file[header..] == expected, "{name}");
    }
}

#[test]
fn a_stream_of_the_pipeline_is_good_and_its_account_exact() {
    for (codec, policy) in [(Codec::Bounded, Policy::Block), (Codec::Zstd, Policy::Drop)] {
        let path = feed::scratch(&format!("tools-{}", codec.name()));
        let mut options = feed::options(&path, codec, 32, policy);
        options.checkpoint_tokens = Some(20);
        let pipeline = Pipeline::start(options).unwrap();
        let mut feeder = feed::Feeder::new(2);
        (1..=120).for_each(|step| _ = feeder.step(&pipeline, step));
        let totals = pipeline.finish(feed::PATIENCE);
        assert!(totals.clean);
        let (here, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        let verified = json_of(here, 0, &["verify", name, "--json"]);
        assert_eq!((&verified["verdict"], &verified["clean_end"]), (&json!("good"), &json!(true)), "{verified:#}");
        assert_eq!(verified["account"]["captured"]["bytes"], totals.account.captured.bytes);
        assert_eq!(verified["decoded_bytes"], totals.account.captured.bytes);
        assert!(verified["checkpoints"].as_u64().unwrap() > 1);
        // Killed instead: cut within the last tensor's packet.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let recovered = path.with_extension("recovered");
        said(here, 0, &["recover", name, "--out", recovered.to_str().unwrap()]);
        let again = json_of(here, 0, &["verify", recovered.to_str().unwrap(), "--json"]);
        assert_eq!((&again["verdict"], &again["clean_end"]), (&json!("good"), &json!(true)), "{again:#}");
        let held: u64 = again["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
        assert_eq!(again["account"]["captured"]["bytes"], held);
        fs::remove_file(recovered).unwrap();
        feed::clear(&path);
    }
}

#[test]
fn exit_status_tells_good_damaged_and_unreadable_apart() {
    let (here, written) = (folder("verify"), every_codec());
    let (first, second) = (written.offsets[1], written.offsets[2]);
    fs::write(here.join("good"), &written.bytes).unwrap();
    assert!(said(&here, 0, &["verify", "good"]).starts_with("good: good\n"));
    let mut bytes = written.bytes.clone();
    bytes[first + 60] ^= 4;
    fs::write(here.join("bad"), &bytes).unwrap();
    let text = said(&here, 2, &["verify", "bad"]);
    assert!(text.starts_with("bad: damaged\n") && text.contains("packet 1 is missing"), "{text}");
    let json = json_of(&here, 2, &["verify", "bad", "--json"]);
    assert_eq!((&json["damage"][0]["offset"], &json["damage"][0]["len"]), (&json!(first), &json!(second - first)));
    said(&here, 0, &["recover", "bad", "--out", "repaired"]);
    let repaired = json_of(&here, 0, &["verify", "repaired", "--json"]);
    let lost = json!({"damaged": {"tensors": 1, "bytes": 5120}});
    assert_eq!((&repaired["account"]["dropped"], &repaired["end"]["recovered"]["damaged_ranges"]), (&lost, &json!(1)));
    assert_eq!(repaired["account"]["seen"], json_of(&here, 0, &["info", "good", "--json"])["account"]["seen"]);
    // Not ended, not damaged; then cut within a packet; then without a packet at all.
    fs::write(here.join("open"), &written.bytes[..written.offsets[9]]).unwrap();
    assert!(said(&here, 0, &["verify", "open"]).contains("not ended"));
    fs::write(here.join("cut"), &written.bytes[..written.offsets[9] + 30]).unwrap();
    assert!(said(&here, 0, &["info", "cut"]).contains("in the middle of"));
    assert!(said(&here, 0, &["verify", "cut"]).contains("the last packet was not written to its end"));
    fs::write(here.join("empty"), b"").unwrap();
    said(&here, 2, &["verify", "empty"]);
    assert_error(&here, &["recover", "empty", "--out", "x"], "error: `empty` holds no whole packet");
    assert!(!here.join("x").exists() && !here.join("x.part").exists());
}

#[test]
fn wrong_use_says_what_to_do() {
    let here = folder("wrong");
    fs::write(here.join("s"), every_codec().bytes).unwrap();
    fs::copy(golden("stream/older-lz4.stream"), here.join("old")).unwrap();
    assert_error(&here, &["info", "none"], "error: opening the stream none failed: No such file or directory");
    assert_error(&here, &["info", "."], "error: ");
    assert_error(&here, &["cat", "s", "nothing"], "error: no tensor `nothing` in `s`: `stream ls` lists them");
    assert_error(&here, &["cat", "s", "none-0", "--rows", "40-"], "error: `none-0` has 40 rows, --rows begins at 40");
    assert_error(&here, &["stats", "s", "--tensors", "x*"], "error: no tensor of `s` fits `x*`");
    assert_error(&here, &["ls", "old"], "error: `old` is a stream of the older system");
    assert_error(
        &here,
        &["import", "s", "--dtype", "f16", "--out", "x"],
        "error: `s` is no stream of the older system",
    );
    assert_error(&here, &["recover", "s", "--out", "./s"], "error: `./s` is both read and written");
    assert_error(&here, &["export", "s", "--to", "npy", "--out", "s"], "error: ");
    assert_error(
        &here,
        &["export", "s", "--to", "safetensors", "--out", "no/such/x"],
        "error: writing `no/such/x.part` failed",
    );
    assert_eq!(run(&here, &["cat", "s", "none-0", "--rows", "9-3"]).status.code(), Some(2), "clap's own");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let here = folder("pipe");
    fs::write(here.join("s"), every_codec().bytes).unwrap();
    for args in [&["cat", "s", "none-0"][..], &["stats", "s", "--by", "token", "--csv"], &["info", "s", "--json"]] {
        let mut child = program(&here, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn damage_never_crashes_a_tool_nor_comes_out_as_values() {
    let (here, written) = (folder("flips"), every_codec());
    let whole: Vec<String> = said_lines(&here, &written.bytes);
    // xorshift64*: a fixed sequence, so that a failure can be repeated by its seed.
    for seed in 1..=60_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
        };
        let mut bytes = written.bytes.clone();
        for _ in 0..=random(6) {
            let at = random(bytes.len());
            bytes[at] ^= 1 << random(8);
        }
        if seed % 3 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        for line in said_lines(&here, &bytes) {
            assert!(whole.contains(&line), "seed {seed}: {line:.80}");
        }
        let verify = run(&here, &["verify", "s", "--json"]);
        assert!(
            matches!(verify.status.code(), Some(0 | 2)),
            "seed {seed}: {}",
            String::from_utf8_lossy(&verify.stderr)
        );
        let recover = run(&here, &["recover", "s", "--out", "r"]);
        if recover.status.success() {
            let again = run(&here, &["verify", "r"]);
            assert_eq!(again.status.code(), Some(0), "seed {seed}: {}", String::from_utf8_lossy(&again.stdout));
        } else {
            assert_eq!(recover.status.code(), Some(1), "seed {seed}: {}", String::from_utf8_lossy(&recover.stderr));
        }
    }
}

/// What `cat` prints of one tensor of these bytes.
fn said_lines(here: &Path, bytes: &[u8]) -> Vec<String> {
    fs::write(here.join("s"), bytes).unwrap();
    let output = run(here, &["cat", "s", "bounded-5"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
