#!/usr/bin/env python3
"""How much of its speed does llama-server keep while its activations are captured, compression and writing to disk included?

    bench/capture.py                          24 pairs a mode in 6 rounds, codec bounded; about 45 minutes on two quiet cores
    bench/capture.py --quick                  a look: 4 pairs a mode in 2 rounds
    bench/capture.py --modes residual,FULL_TENSOR --codec zstd --pairs 60
    bench/capture.py --modes FULL_TENSOR,FULL_TENSOR:none,FULL_TENSOR/callback     another codec, another route
    bench/capture.py --markdown --json OUT    the table of docs, and every pair
    bench/capture.py --from-json A B          results of before, together
    bench/capture.py --check                  exit 1 if a mode misses its goal beyond doubt

A mode is what is captured (LLAMA_RESOURCE_TENSORS). `memcpy residual` is the cheapest tool that can be written with llama.cpp's eval
callback - the same tensors, copied and thrown away, no file (bench/memcpy_callback.c). `plain` compares two plain servers: the error of
the method. What a request leaves to compress is waited for before the other server is asked: bursts, then, with room between them. What
capturing costs while it never rests is `bench/in_process.py --capture`. Rounds, pairs, clock and intervals are bench/overhead.py's, and
so are all options that are not listed here.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import overhead
from overhead import TOP, harness, number

# Speed that must be kept, per cent.
GOAL = {"residual": 98.5, "ATTENTION_ONLY": 96.0, "MLP_ONLY": 96.0, "FULL_TENSOR": 92.0}
SHIM = "memcpy "
# What runs that are shown together (--from-json A B) have in common beside the machine.
ALIKE = ["codec", "max_memory", "policy", "log_level"]
MODES = ["plain", *GOAL, *(SHIM + preset for preset in GOAL)]


class Subject(overhead.Subject):
    """A running server of one mode: plain, capturing, or with the copying callback."""

    def __init__(self, mode, options, directory):
        self.mode, self.options = mode, options
        stem = Path(directory) / f"{mode.replace('/', '-').replace(' ', '-')}-{time.monotonic_ns()}"
        self.log, self.stream, self.report = (stem.with_suffix(f".{kind}") for kind in ("jsonl", "stream", "json"))
        env, preload = {}, False
        if mode.startswith(SHIM):
            tensors = options.tensors[mode.removeprefix(SHIM)]
            env = {"LD_PRELOAD": str(options.shim), "MEMCPY_TENSORS": str(tensors), "MEMCPY_REPORT": str(self.report)}
        elif mode != "plain":
            env, preload = capture_env(mode, options, self.stream), True
        self.server = harness.Server(
            options.model, args=["-t", options.threads, "-np", "1", "-c", "2048", "--cache-ram", "0"], binary=options.server,
            preload=preload, env=env, level=options.log_level if preload else None, log_path=self.log if preload else None,
            timeout=options.timeout)
        self.server.start()
        self.busy_s = 0.0

    def begin(self):
        super().begin()
        self.stream_bytes = self._stream_size()

    def end(self):
        """As in overhead.py, with the stream's own account."""
        written = self._stream_size() - getattr(self, "stream_bytes", 0)
        wall_s = time.monotonic() - self.began_s
        account = super().end()
        if self.stream.exists():
            said = end_packet(self.stream)
            account |= {"stream_mb_per_s": written / 1e6 / wall_s, "stream_bytes": self.stream.stat().st_size, "account": said}
            if not self.options.keep_logs:
                self.stream.unlink()
                for more in self.stream.parent.glob(f"{self.stream.stem}*"):
                    more.unlink()
        elif self.report.exists():
            account["copied"] = json.loads(self.report.read_text())
        elif self.mode != "plain":
            raise harness.ServerError(f"{self.mode}: nothing was captured\n{self.server.stderr[-2000:]}")
        return account

    def settle(self):
        """Waits until what was captured is compressed and written."""
        if not self.stream.exists():
            return
        # A tensor lies for 0.8 s at most before it is compressed (src/pipeline/limits.rs).
        time.sleep(1.0)
        before = self._cpu_ns("lri-cap-")
        while time.sleep(0.1) or (now := self._cpu_ns("lri-cap-")) - before > 1e6:
            before = now

    def _stream_size(self):
        return self.stream.stat().st_blocks * 512 if self.stream.exists() else 0


def capture_env(mode, options, stream):
    """PRESET[:CODEC][/ROUTE] as settings."""
    mode, _, route = mode.partition("/")
    tensors, _, codec = mode.partition(":")
    settings = {"CAPTURE": stream, "TENSORS": tensors, "CODEC": codec or options.codec, "ROUTE": route or "auto",
                "MAX_MEMORY": options.max_memory, "POLICY": options.policy, "CODEC_THREADS": options.codec_threads}
    return {f"LLAMA_RESOURCE_{word}": str(value) for word, value in settings.items() if value}


def end_packet(path):
    """The JSON of a stream's end packet: the last packet, found by its end (docs/STREAM-FORMAT.md)."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        tail = file.read()
    at = tail.rfind(b"LRS1")
    if at < 0:
        raise harness.ServerError(f"{path}: no packet at the end")
    trailer, = struct.unpack_from("<I", tail, at - 8)
    metadata = tail[at + 4 - trailer + 8 : at - 12]
    found = json.loads(metadata[10:])
    return found.get("account", found)


def prepare(options, directory):
    """Builds the copying callback and lists, for each of its modes, the tensors that the library captures."""
    presets = {mode.removeprefix(SHIM) for mode in options.modes if mode.startswith(SHIM)}
    options.tensors = {}
    if not presets:
        return
    options.shim = Path(directory) / "memcpy_callback.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{TOP}/llama.cpp/ggml/include", str(TOP / "bench" / "memcpy_callback.c"),
                    "-o", str(options.shim), "-ldl"], check=True)
    for preset in presets:
        subject = Subject(preset, options, directory)
        subject.begin()
        try:
            subject.request("decode")
            subject.server.stop(timeout=options.timeout)
            listed = json.loads(subprocess.run([str(options.program), "stream", "ls", str(subject.stream), "--json"], check=True,
                                               capture_output=True, text=True).stdout)
        finally:
            subject.kill()
        names = sorted(set(names_of(listed)))
        if not names:
            raise harness.ServerError(f"{preset}: no tensors")
        options.tensors[preset] = Path(directory) / f"{preset}.txt"
        options.tensors[preset].write_text("".join(f"{name}\t{op}\n" for name, op in names))
        subject.stream.unlink()


def names_of(listed):
    """(ggml name, operation) of each entry of `stream ls --json`, wherever in it they are."""
    if isinstance(listed, dict) and isinstance(listed.get("op"), str):
        yield listed.get("tensor") or listed["name"], listed["op"]
    for inner in listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else ():
        yield from names_of(inner)


# --- Evaluation ---

def kept(slower):
    """Speed that is kept, per cent, for a slow-down in per cent."""
    return 100.0 / (1.0 + slower / 100.0)


def preset_of(mode):
    return mode.partition("/")[0].partition(":")[0]


def verdict(mode, row):
    goal = GOAL.get(preset_of(mode))
    if goal is None:
        return ""
    return "met" if row["low"] >= goal else "missed" if row["high"] < goal else "open"


def evaluate(result):
    """Adds everything that follows from the measurements."""
    modes = list(dict.fromkeys(p["mode"] for p in sorted(result["measurements"], key=lambda p: result["modes"].index(p["mode"]))))
    result["rows"] = []
    for r in overhead.rows(result["measurements"], modes):
        w = r["wall"]
        row = {"mode": r["mode"], "phase": r["phase"], "kept": kept(w["median"]), "low": kept(w["high"]), "high": kept(w["low"]),
               "q1": kept(w["q3"]), "q3": kept(w["q1"]), "cpu": r["cpu"]["median"], "ms_per_token": r["ms_per_token"], "pairs": w["pairs"],
               "goal": GOAL.get(preset_of(r["mode"]))}
        result["rows"].append(row | {"verdict": verdict(r["mode"], row)})
    result["drift_percent"] = overhead.drift(result["measurements"])
    result["flow"] = {mode: flow(accounts) for mode, accounts in result["accounts_of_rounds"].items() if mode != "plain"}
    return result


def flow(accounts):
    """What a mode captured: raw and written bytes, and what is missing."""
    raw = written = seen = dropped = tensors = 0
    busy = sum(a["busy_s"] for a in accounts)
    for a in accounts:
        if "copied" in a:
            raw, tensors = raw + a["copied"]["bytes"], tensors + a["copied"]["tensors"]
        else:
            said = a["account"]
            raw, tensors = raw + said["captured"]["bytes"], tensors + said["captured"]["tensors"]
            seen += said["seen"]["bytes"]
            dropped += sum(e["bytes"] for e in said["dropped"].values())
            written += a["stream_bytes"]
    rates = [a["stream_mb_per_s"] for a in accounts if "stream_mb_per_s" in a]
    return {"raw_bytes": raw, "tensors": tensors, "written_bytes": written, "ratio": raw / written if written else None, "busy_s": busy,
            "dropped_bytes": dropped, "seen_bytes": seen, "mb_per_s": statistics.fmean(rates) if rates else None}


def show(result):
    m = result["machine"]
    print(f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, -t {m['threads']}")
    print(f"llama.cpp {m['llama_cpp'] or (m['llama_cpp_commit'] or '?')[:9]}, {m['model']}")
    print(f"library {m['library']} ({m['library_sha256']}), {m['date']}")
    print(f"codec {result['codec']}, budget {result['max_memory']}, policy {result['policy']}, {overhead.pairs_a_mode(result)}")
    print(f"load average before {m['load_before']}, after {m['load_after']}" + ("  - NOT A QUIET MACHINE" if m["load_before"] > 0.5 else ""))
    print("\nspeed kept, per cent of the plain server (pair by pair)")
    print(f"{'mode':<25}{'phase':<8}{'median':>7}  {'95 % interval':^17}{'CPU %':>7}  goal")
    for r in result["rows"]:
        interval = f"{r['low']:.2f} .. {r['high']:.2f}"
        goal = "(A/A)" if r["mode"] == "plain" else f"{r['goal']:g} {r['verdict']}" if r["goal"] else ""
        print(f"{short(r['mode'])}{r['phase']:<8}{r['kept']:>7.2f}  {interval:^17}{number(r['cpu'], 1):>7}  {goal}")
    print(f"\n{'what came through':<25}{'raw GB':>9}{'written GB':>12}{'ratio':>7}{'dropped %':>11}")
    for mode, f in result["flow"].items():
        lost = f"{100 * f['dropped_bytes'] / f['seen_bytes']:.2f}" if f["seen_bytes"] else "-"
        print(short(mode) + (f"{f['raw_bytes'] / 1e9:>9.2f}{f['written_bytes'] / 1e9:>12.2f}{f['ratio']:>7.2f}{lost:>11}" if f["written_bytes"]
                             else f"{f['raw_bytes'] / 1e9:>9.2f}{'-':>12}{'-':>7}{'-':>11}"))
    print()
    for line in notes(result):
        print(line)


def short(mode):
    """A mode in its column of the terminal's table."""
    return f"{mode if len(mode) < 25 else mode[:21] + '...':<25}"


def notes(result):
    drift = result["drift_percent"]
    lines = ["drift of plain, second half against first: " + ", ".join(f"{p} {number(drift[p], 1)} %" for p in drift)]
    counts = {r["mode"]: r["pairs"] for r in result["rows"]}
    if len(set(counts.values())) > 1:
        lines.append("not every mode has all pairs: " + ", ".join(f"{mode} {n}" for mode, n in counts.items()))
    if result["different_text"]:
        lines.append("WARNING: other text than the plain server: " + ", ".join(result["different_text"]))
    for mode, accounts in result["accounts_of_rounds"].items():
        found, _ = overhead.problems(accounts)
        # A machine without a GPU is none, and the event log leaves out steps of the warm-up on purpose.
        lines += [f"WARNING: {mode}: {problem}" for problem in found if not problem.startswith("gpu unavailable")]
        lost = sum(n for a in accounts for reason, n in (a.get("dropped") or {}).items() if reason.split("/")[0] not in ("rate_limit", "warm_up"))
        if lost:
            lines.append(f"WARNING: {mode}: {lost} events were lost")
    return lines


def markdown(result):
    m = result["machine"]
    print(f"{m['date']}, {m['cpu']}, {m['cores']} cores, Linux {m['kernel']}; llama.cpp {(m['llama_cpp_commit'] or '?')[:9]}, {m['model']}, "
          f"`-t {m['threads']}`; library {m['library']} (sha256 {m['library_sha256']}); codec {result['codec']}, budget {result['max_memory']}, "
          f"policy {result['policy']}; load average {m['load_before']} before, {m['load_after']} after; {overhead.pairs_a_mode(result)} in "
          f"{result['rounds']} rounds.")
    if m["load_before"] > 0.5:
        print("\n**The machine was not quiet: a trial, not a result.**")
    print("\n| mode | phase | speed kept, median | 95 % interval | quartiles | CPU time | goal |\n|---|---|---|---|---|---|---|")
    for r in result["rows"]:
        goal = f"{r['goal']:g} %, {r['verdict']}" if r["goal"] else ""
        print(f"| {'plain (A/A)' if r['mode'] == 'plain' else r['mode']} | {r['phase']} | {r['kept']:.2f} % | {r['low']:.2f} .. {r['high']:.2f} | "
              f"{r['q1']:.1f} .. {r['q3']:.1f} | {number(r['cpu'], 1)} % | {goal} |")
    print("\n| mode | raw, GB | written, GB | ratio | dropped |\n|---|---|---|---|---|")
    for mode, f in result["flow"].items():
        written = f"{f['written_bytes'] / 1e9:.2f} | {f['ratio']:.2f} | {100 * f['dropped_bytes'] / f['seen_bytes']:.2f} %" if f["written_bytes"] else "- | - | -"
        print(f"| {mode} | {f['raw_bytes'] / 1e9:.2f} | {written} |")
    print()
    for line in notes(result):
        print(f"- {line}")


# --- Command line ---

def parse(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="All other options are those of bench/overhead.py.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    p.add_argument("--modes", default=",".join(MODES), help="what is captured: PRESET[:CODEC][/ROUTE], `memcpy PRESET`, or plain")
    p.add_argument("--codec", default="bounded", help="LLAMA_RESOURCE_CODEC")
    p.add_argument("--max-memory", default="1G", help="LLAMA_RESOURCE_MAX_MEMORY")
    p.add_argument("--policy", default="block", help="LLAMA_RESOURCE_POLICY")
    p.add_argument("--codec-threads", default="", help="LLAMA_RESOURCE_CODEC_THREADS; the library's default if empty")
    p.add_argument("--log-level", default="DETAILED", help="LLAMA_RESOURCE_LOG_LEVEL of the event log that goes beside")
    p.add_argument("--directory", help="where the streams are written (and deleted); else the system's temporary directory")
    own, rest = p.parse_known_args(argv)
    options = overhead.parse(rest)
    for name, value in vars(own).items():
        setattr(options, name, value)
    options.modes = [mode.strip() for mode in own.modes.split(",")]
    unknown = [mode for mode in options.modes if mode != "plain" and preset_of(mode.removeprefix(SHIM)) not in GOAL]
    if unknown:
        print(f"note: no goal is set for {', '.join(unknown)}", file=sys.stderr)
    options.program = Path(os.environ.get("LLAMA_RESOURCE_TEST_PROGRAM", Path(options.library).parent / "llama-resource"))
    return options


def measured(options):
    with tempfile.TemporaryDirectory(prefix="lri-capture-", dir=options.directory) as directory:
        # A copy: a build that goes on meanwhile must not change what is measured.
        harness.LIBRARY = Path(shutil.copy(options.library, directory))
        options.program = Path(shutil.copy(options.program, directory))
        machine = overhead.fingerprint(options) | {"load_before": overhead.load_average()}
        options.began_s = time.monotonic()
        prepare(options, directory)
        pairs, accounts, idle, different = overhead.measure(options, options.keep_logs or directory, overhead.progress_on(sys.stderr), Subject)
        machine["load_after"] = overhead.load_average()
    return {"machine": machine, "modes": options.modes, "pairs": options.pairs, "rounds": options.rounds, "codec": options.codec,
            "max_memory": options.max_memory, "policy": options.policy, "log_level": options.log_level,
            "took_s": round(time.monotonic() - options.began_s, 1), "idle_percent": idle, "accounts_of_rounds": accounts,
            "different_text": different, "measurements": pairs}


def main(argv):
    options = parse(argv)
    try:
        result = evaluate(overhead.older(options.from_json, ALIKE) if options.from_json else measured(options))
    except harness.ServerError as error:
        print(f"capture: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("capture: interrupted; nothing was written", file=sys.stderr)
        return 130
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    (markdown if options.markdown else show)(result)
    missed = [r for r in result["rows"] if r["verdict"] == "missed"]
    for r in missed:
        print(f"missed: {r['mode']} {r['phase']} keeps {r['high']:.2f} % at most, goal {r['goal']:g} %", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
