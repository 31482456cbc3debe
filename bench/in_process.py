#!/usr/bin/env python3
"""What does the library cost inside one process, on average over many? Runs bench/paired.cpp again and again and pools its pairs.

    bench/in_process.py                         40 processes, 8 pairs a mode in each, one thread: 12 minutes
    bench/in_process.py --modes disabled        one mode only; also MINIMAL, DETAILED, VERBOSE, and MINIMAL+ ... for steps that are written
    bench/in_process.py --phases both           prefill steps too: seconds each, hours in all
    bench/in_process.py --capture               speed kept while activations are captured (bench/paired_capture.cpp), two threads; half an hour
    bench/in_process.py --check                 exit 1 if a mode is slower than its ceiling beyond doubt

The pairs of one process contradict those of the next by half a per cent, because where that process's pages, stacks and tables happen to
lie favours one side for its whole life. So the processes are the sample: each is a new one,
with another layout (the kernel's, and an environment of random length), and the interval is a bootstrap of processes first, then of the
pairs within each. The row `off` compares the plain program with itself: what it shows is the error of the method. Standard library only.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import capture
import overhead

TOP = overhead.TOP


def build(name, server):
    """bench/NAME.cpp, against the llama.cpp that stands beside the server."""
    binaries = Path(server).resolve().parent
    sources, program = [TOP / "bench" / f"{name}.cpp", TOP / "bench" / "switch_hooks.h"], TOP / "target" / name
    if not program.exists() or program.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        subprocess.run(["c++", "-O2", "-std=c++17", str(sources[0]), "-o", str(program), f"-I{TOP}/llama.cpp/include",
                        f"-I{TOP}/llama.cpp/ggml/include", f"-L{binaries}", "-lllama", "-lggml", "-lggml-base",
                        f"-Wl,-rpath,{binaries}"], check=True)
    return program


def one_process(program, options, number, directory, draw):
    """The pairs of one new process: [{mode, phase, round, plain_ms, mode_ms}]."""
    raw = Path(directory) / f"{number}.jsonl"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_"))}
    environment |= {"LD_PRELOAD": str(overhead.harness.LIBRARY), "LD_BIND_NOW": "1", "LLAMA_RESOURCE_DISABLED": "1",
                    "LLAMA_RESOURCE_CODEC": options.codec,
                    "PADDING": "x" * draw.randrange(4096)}
    if options.codec_threads:
        environment["LLAMA_RESOURCE_CODEC_THREADS"] = str(options.codec_threads)
    modes = draw.sample(options.modes, k=len(options.modes))
    result = subprocess.run([str(program), options.model, str(options.pairs), str(options.threads), options.phases, ",".join(modes), str(raw)],
                            env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"in_process: {program.name} ended with {result.returncode}\n{result.stderr[-2000:]}")
    pairs = [json.loads(line) for line in raw.read_text().splitlines()]
    return [p | {"round": number} for p in pairs]


def rows(pairs):
    table = []
    for mode in dict.fromkeys(["off", *overhead.CEILING, *capture.GOAL, *(p["mode"] for p in pairs)]):
        for phase in overhead.PHASES:
            if chosen := [p for p in pairs if p["mode"] == mode and p["phase"] == phase]:
                medians = [statistics.median(overhead.percent(p, "ms") for p in chosen if p["round"] == r)
                           for r in sorted({p["round"] for p in chosen})]
                table.append({"mode": mode, "phase": phase, "wall": overhead.summary(chosen),
                              "between_processes": statistics.stdev(medians) if len(medians) > 1 else None,
                              "plain_ms": statistics.median(p["plain_ms"] for p in chosen)})
    resolution = {r["phase"]: max(abs(r["wall"]["low"]), abs(r["wall"]["high"])) for r in table if r["mode"] == "off"}
    for r in table:
        w = r["wall"]
        r["kept"] = {"median": capture.kept(w["median"]), "low": capture.kept(w["high"]), "high": capture.kept(w["low"])}
        # A bootstrap of a few processes is too sure of itself.
        r["verdict"] = ("too few" if w["rounds"] < 6 else capture.verdict(r["mode"], r["kept"]) if r["mode"] in capture.GOAL
                        else overhead.verdict(r["mode"], w, resolution.get(r["phase"], 0.0)))
    return table


def show(result):
    m = result["machine"]
    print(f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, -t {m['threads']} "
          f"({'CPU time' if result['clock'] == 'cpu' else 'wall time'})")
    print(f"llama.cpp {(m['llama_cpp_commit'] or '?')[:9]}, {m['model']}; library {m['library']} ({m['library_sha256']})")
    print(f"{m['date']}; {result['processes']} processes of {result['pairs']} pairs; load average before {m['load_before']}, "
          f"after {m['load_after']}\n")
    if result.get("codec"):
        print(f"codec {result['codec']}, {result['codec_threads'] or 'default'} thread(s)")
    of_capture = any(r["mode"] in capture.GOAL for r in result["rows"])
    print(f"{'speed kept' if of_capture else 'slow-down'} in per cent of the plain program's; interval of 95 %, processes first")
    print(f"{'mode':<16}{'phase':<8}{'median':>8}  {'interval':^18}{'between processes':>18}  {'goal' if of_capture else 'ceiling'}")
    for r in result["rows"]:
        mode, w = r["mode"], r["kept" if of_capture else "wall"]
        sign = "" if of_capture else "+"
        limit = capture.GOAL.get(mode, overhead.CEILING.get(mode))
        between = "-" if r["between_processes"] is None else f"{r['between_processes']:.2f}"
        interval = f"{w['low']:{sign}.2f} .. {w['high']:{sign}.2f}"
        print(f"{mode:<16}{r['phase']:<8}{w['median']:>{sign}8.2f}  {interval:^18}{between:>18}  "
              + ("(A/A)" if mode == "off" else "" if limit is None else f"{limit:g} {r['verdict']}"))
    for phase in overhead.PHASES:
        times = [p["plain_ms"] for p in result["measurements"] if p["phase"] == phase]
        if times:
            print(f"a plain step of {phase}: {statistics.median(times):.2f} ms")


def main(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--capture", action="store_true", help="what capturing costs, instead of recording")
    p.add_argument("--processes", type=int, help="40, with --capture 20")
    p.add_argument("--pairs", type=int, help="pairs for each mode in each process; 8, with --capture 1")
    p.add_argument("--threads", type=int, help="1, with --capture 2; with 1 the clock of recording is CPU time, which others hardly touch")
    p.add_argument("--phases", choices=("decode", "both"), help="decode, with --capture both")
    p.add_argument("--modes", help="besides the plain program against itself")
    p.add_argument("--codec", default="bounded", help="with --capture")
    p.add_argument("--codec-threads", type=int, help="LLAMA_RESOURCE_CODEC_THREADS with --capture; the library's default if not given")
    p.add_argument("--server", default=str(overhead.harness.LLAMA_SERVER), help="llama-server: its libraries are measured")
    p.add_argument("--model", default=str(overhead.harness.SMOLLM2), help="GGUF file")
    p.add_argument("--library", default=str(overhead.harness.LIBRARY), help="the library to preload (a copy of it is measured)")
    p.add_argument("--json", metavar="OUT", help="write everything, each pair included, to this file")
    p.add_argument("--from-json", metavar="IN", help="show an older result instead of measuring")
    p.add_argument("--check", action="store_true", help="exit 1 if a mode's whole interval lies above its ceiling, or below its goal")
    options = p.parse_args(argv)
    recording = ",".join(m for m in overhead.CEILING if m not in overhead.PLAIN)
    defaults = {"processes": 20, "pairs": 1, "threads": 2, "phases": "both", "modes": ",".join(["off", *capture.GOAL])} \
        if options.capture else {"processes": 40, "pairs": 8, "threads": 1, "phases": "decode", "modes": recording}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.modes = options.modes.split(",")
    if options.from_json:
        result = json.loads(Path(options.from_json).read_text())
    else:
        for option, path in (("--server", options.server), ("--model", options.model), ("--library", options.library)):
            if not Path(path).is_file():
                p.error(f"{option}: {path} is missing; build it first (make) or name another")
        program = build("paired_capture" if options.capture else "paired", options.server)
        draw, pairs, progress = random.Random(20260101), [], overhead.progress_on(sys.stderr)
        with tempfile.TemporaryDirectory(prefix="lri-in-process-") as directory:
            copy = Path(directory) / Path(options.library).name
            copy.write_bytes(Path(options.library).read_bytes())
            overhead.harness.LIBRARY = copy
            machine = overhead.fingerprint(options) | {"load_before": overhead.load_average()}
            for number in range(options.processes):
                pairs += one_process(program, options, number, directory, draw)
                progress((number + 1) * options.pairs, options.processes * options.pairs, "all modes")
            machine["load_after"] = overhead.load_average()
        result = {"machine": machine, "processes": options.processes, "pairs": options.pairs, "measurements": pairs,
                  "codec": options.codec if options.capture else None, "codec_threads": options.codec_threads,
                  "clock": "cpu" if options.threads == 1 and not options.capture else "wall"}
    result["rows"] = rows(result["measurements"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    over = [r for r in result["rows"] if r["verdict"] in ("over", "missed")]
    return 1 if over and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
