#!/usr/bin/env python3
"""How much slower does llama-server decode and prefill with the library? Pairs of requests to two real servers, plain and instrumented.

    bench/overhead.py                         24 pairs a mode in 6 rounds; about a quarter of an hour on two quiet cores
    bench/overhead.py --quick                 a look: 4 pairs a mode in 2 rounds
    bench/overhead.py --modes MINIMAL,VERBOSE --pairs 60
    bench/overhead.py --fine                  what costs next to nothing, told from nothing: one thread, CPU time, 80 rounds; half an hour
    bench/overhead.py --fine --modes plain,patched-off --phases prefill    of it: prompts alone
    bench/overhead.py --from-json A B C       results of before, together
    bench/overhead.py --markdown              the table of docs/OVERHEAD.md
    bench/overhead.py --check                 exit 1 if a mode is slower than its ceiling beyond doubt

A round starts a plain server and one of the mode, warms both up and sends them the same request in turn, plain-mode-mode-plain, so
that the two of a pair are a second apart and drift cancels. The clock is the server's own `timings`, with one thread the CPU time of the
whole request. Every round has new processes,
because two processes of one binary differ by a few per cent for their whole life (where their pages and threads lie). The row `plain`
compares two plain servers: what it shows is the error of the method. docs/OVERHEAD.md tells more. Standard library only.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "server"))
import server as harness  # noqa: E402  (starts a server, finds its port, ends it; LIBRARY is set below)

# What the older system promised for each mode, per cent (its documentation has no measurement; it had no patched build), and what we aim at.
CEILING = {"disabled": 0.5, "patched-off": 0.5, "MINIMAL": 0.5, "DETAILED": 2.0, "VERBOSE": 5.0}
AIM = {"disabled": 0.0, "patched-off": 0.0, "MINIMAL": 0.1, "DETAILED": 0.5, "VERBOSE": 1.0}
PLAIN = ("plain", "patched-off")  # nothing is preloaded, nothing recorded; patched-off is the patched build without our environment variables
MODES = ["plain", *CEILING]
USUAL = [m for m in MODES if m != "patched-off"]  # the patched build is not always there
PHASES = ("decode", "prefill")
RESAMPLES = 4000
LAYOUT = random.Random(20260101)


# --- One server ---

def environment(mode, options):
    if mode == "disabled":
        return {"LLAMA_RESOURCE_DISABLED": "1"}
    return {"LLAMA_RESOURCE_LOG_RATE": options.log_rate} if options.log_rate and mode not in PLAIN else None


class Subject:
    """A running server of one mode and what it has used while it was measured."""

    def __init__(self, mode, options, directory):
        self.mode, self.options = mode, options
        self.log = Path(directory) / f"{mode}-{time.monotonic_ns()}.jsonl"
        preload = mode not in PLAIN
        self.server = harness.Server(
            # A name of any length, so that the heap lies elsewhere in every server: in all processes of one binary it would lie alike, and what
            # that is worth would pass for a cost of the mode.
            options.model, args=["-t", options.threads, "-np", "1", "-c", "2048", "--cache-ram", "0", "--alias", "x" * LAYOUT.randrange(1, 4096)],
            binary=options.patched_server if mode == "patched-off" else options.server, preload=preload, env=environment(mode, options),
            level=mode if preload and mode != "disabled" else None, log_path=self.log if preload else None, timeout=options.timeout)
        self.server.start()
        self.busy_s = 0.0

    def begin(self):
        """The measured part begins: what came before is not counted."""
        self.busy_s, self.began_s = 0.0, time.monotonic()
        self.log_bytes, self.writer_ns = self._log_size(), self._cpu_ns("lri-writer")

    def end(self):
        """Account of the measured part; the server ends."""
        wall_s = time.monotonic() - self.began_s
        recorded = self.log.exists()
        account = {"busy_s": self.busy_s, "wall_s": wall_s}
        if recorded:
            written = self._log_size() - self.log_bytes
            account |= {
                "log_bytes": written, "log_kb_per_s": written / 1000 / wall_s, "log_kb_per_busy_s": written / 1000 / self.busy_s,
                "writer_cpu_percent": (self._cpu_ns("lri-writer") - self.writer_ns) / wall_s / 1e7,
            }
        code = self.server.stop(timeout=self.options.timeout)
        if code:
            raise harness.ServerError(f"{self.mode}: the server ended with {code}\n{self.server.stderr[-2000:]}")
        if recorded:
            account |= self._read_log()  # of the whole life, the warm-up included
            if not self.options.keep_logs:
                self.log.unlink()
        return account

    def request(self, phase):
        """(time per token in ms by the server's clock, CPU ms of the process, text) of one request."""
        cpu, start = self._cpu_ns(), time.monotonic()
        reply = self.server.post("/completion", self.options.requests[phase])
        self.busy_s += time.monotonic() - start
        cpu_ms = (self._cpu_ns() - cpu) / 1e6
        timings = reply["timings"]
        key, expected = (("predicted", self.options.n_predict) if phase == "decode" else ("prompt", self.options.n_prompt))
        if timings[f"{key}_n"] != expected:
            raise harness.ServerError(f"{self.mode}: {phase} request processed {timings[f'{key}_n']} tokens, expected {expected}: "
                                      f"{timings}")
        return 1000.0 / timings[f"{key}_per_second"], cpu_ms, reply["content"]

    def settled_request(self, phase):
        """A request, and then whatever it leaves behind to do: that must not slow the other server down."""
        result = self.request(phase)
        self.settle()
        return result

    def settle(self):
        """Nothing that counts is left behind: the log is a few KB/s."""

    def idle_percent(self, seconds):
        """CPU of one core that the server uses while nobody asks."""
        cpu = self._cpu_ns()
        time.sleep(seconds)
        return (self._cpu_ns() - cpu) / seconds / 1e7

    def kill(self):
        self.server.kill()

    def _log_size(self):
        return self.log.stat().st_size if self.log.exists() else 0

    def _cpu_ns(self, name=None):
        """CPU time of all threads, or of those whose name begins so, in ns (the first number of schedstat)."""
        total = 0
        for task in Path(f"/proc/{self.server.pid}/task").iterdir():
            try:
                if name is None or (task / "comm").read_text().startswith(name):
                    total += int((task / "schedstat").read_text().split()[0])
            except OSError:  # the thread has ended meanwhile
                continue
        return total

    def _read_log(self):
        events = harness.read_log(self.log)
        samples = [e for e in events if e["event"] == "host_sample" and e.get("own_cpu_percent") is not None]
        summaries = [e for e in events if e["event"] == "resource_session_summary"]
        states = [e for e in events if e["event"] == "instrumentation_state" and e["state"] not in ("ok", "warning")]
        dropped = {}
        for e in events:
            if e["event"] == "events_dropped":
                key = f"{e['reason']}/{e['kind']}"
                dropped[key] = dropped.get(key, 0) + e["count"]
        return {
            "own_cpu_percent": statistics.fmean(s["own_cpu_percent"] for s in samples) if samples else None,
            "lines": len(events), "dropped": dropped, "steps": summaries[-1]["steps"] if summaries else None,
            "steps_written": len({e["step"] for e in events if e["event"] == "compute_execution"}),
            "problems": sorted({f"{s['component']} {s['state']}: {s['reason']}" for s in states}),
        }


# --- Pairs ---

def measure(options, directory, progress, subject=Subject):
    """All pairs of servers that `subject` starts: [{mode, round, phase, plain, mode_ms, plain_cpu, mode_cpu}], accounts by mode, idle CPU by mode."""
    pairs, accounts, idle, texts = [], {}, {}, {phase: {} for phase in PHASES}
    per_round = options.pairs // options.rounds
    total, done = options.rounds * len(options.modes) * per_round, 0
    for number in range(options.rounds):
        # Another order in every round: what follows what should not matter, so it should not be the same each time.
        modes = options.modes[number % len(options.modes):] + options.modes[:number % len(options.modes)]
        for mode in modes:
            subjects = {}
            try:
                for side in ("plain", "mode") if number % 2 else ("mode", "plain"):
                    subjects[side] = subject("plain" if side == "plain" else mode, options, directory)
                warm_up(subjects, options)
                if number == 0:
                    idle[mode] = subjects["mode"].idle_percent(1.0)
                for s in subjects.values():
                    s.begin()
                for pair in range(per_round):
                    order = ("plain", "mode") if (pair + number) % 2 else ("mode", "plain")
                    for phase in options.phases:
                        result = {side: subjects[side].settled_request(phase) for side in order}
                        pairs.append({
                            "mode": mode, "round": number, "phase": phase, "at_s": round(time.monotonic() - options.began_s, 3),
                            "plain_ms": result["plain"][0], "mode_ms": result["mode"][0],
                            "plain_cpu_ms": result["plain"][1], "mode_cpu_ms": result["mode"][1],
                        })
                        for side, name in (("plain", "plain"), ("mode", mode)):
                            texts[phase].setdefault(name, set()).add(result[side][2])
                    done += 1
                    progress(done, total, mode)
                accounts.setdefault(mode, []).append(subjects["mode"].end())
                subjects["plain"].end()
            except BaseException:
                for s in subjects.values():
                    s.kill()
                raise
    different = sorted({mode for by_mode in texts.values() for mode, found in by_mode.items() if found != by_mode["plain"]})
    return pairs, accounts, idle, different


def keep_busy(mode, options, directory, seconds):
    """Account of one server that is asked without a pause: what the log grows by and what the writer uses while all goes on."""
    subject = Subject(mode, options, directory)
    try:
        warm_up({"mode": subject}, options)
        subject.begin()
        while time.monotonic() - subject.began_s < seconds:
            for phase in options.phases:
                subject.request(phase)
        return subject.end()
    except BaseException:
        subject.kill()
        raise


def warm_up(subjects, options):
    for _ in range(options.warm_up):
        for phase in options.phases:
            for s in subjects.values():
                s.settled_request(phase)


# --- Statistics ---

def percent(pair, key):
    """By how many per cent the mode's request took longer than the plain one's."""
    return (pair[f"mode_{key}"] / pair[f"plain_{key}"] - 1.0) * 100.0


def summary(pairs, key="ms"):
    """Median, quartiles and 95 % interval of the slow-down in per cent.

    Two-stage bootstrap: rounds are drawn, then pairs within each, because the pairs of a round share two processes.
    """
    rounds = {}
    for p in pairs:
        rounds.setdefault(p["round"], []).append(percent(p, key))
    values = [v for r in rounds.values() for v in r]
    draw = random.Random(20260101)
    groups = list(rounds.values())
    medians = sorted(
        statistics.median([v for g in draw.choices(groups, k=len(groups)) for v in draw.choices(g, k=len(g))])
        for _ in range(RESAMPLES))
    low, high = (medians[max(0, min(RESAMPLES - 1, round(q * RESAMPLES)))] for q in (0.025, 0.975))
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "low": low, "high": high, "q1": q1, "q3": q3, "pairs": len(values), "rounds": len(groups)}


def drift(pairs):
    """By how many per cent the plain server was slower in the second half of the run than in the first, by phase."""
    result = {}
    for phase in PHASES:
        times = [p["plain_ms"] for p in sorted(pairs, key=lambda p: p["at_s"]) if p["phase"] == phase]
        if half := len(times) // 2:
            result[phase] = (statistics.median(times[half:]) / statistics.median(times[:half]) - 1) * 100
    return result


def problems(accounts):
    """What the logs of a mode complain about, and how many events were lost: neither a step over the rate limit nor one of a warm-up is."""
    recorded = [a for a in accounts if a.get("dropped") is not None]
    lost = sum(n for a in recorded for key, n in a["dropped"].items() if not key.startswith(("rate_limit/", "warm_up/")))
    return sorted({p for a in recorded for p in a["problems"]}), lost


def verdict(mode, s, resolution=0.0):
    """Where a mode's interval lies against its ceiling and its aim; `noise` where the method cannot see as little as the ceiling."""
    if mode not in CEILING:
        return ""
    if s["low"] > CEILING[mode]:
        return "over"
    if resolution > CEILING[mode]:
        return "noise"
    if s["high"] <= AIM[mode]:
        return "aim met"
    return "within" if s["high"] <= CEILING[mode] else "open"


# --- The machine ---

def run(*command):
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=TOP)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (result.stdout + result.stderr).strip() if result.returncode == 0 else None


def fingerprint(options):
    cpu = re.search(r"^model name\s*:\s*(.+)$|^CPU part\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)
    version = run(options.server, "--version") or ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cpu": next((g for g in cpu.groups() if g), "unknown").strip() if cpu else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory[1]) / 1e6, 1) if memory else None,
        "kernel": platform.release(), "machine": platform.machine(),
        "llama_cpp": (re.search(r"version:\s*(.+)", version) or [None, None])[1],
        "llama_cpp_commit": run("git", "-C", "llama.cpp", "rev-parse", "HEAD"),
        "library": run("git", "describe", "--always", "--dirty", "--tags"),
        "library_sha256": hashlib.sha256(Path(harness.LIBRARY).read_bytes()).hexdigest()[:16],
        "model": Path(options.model).name, "threads": options.threads,
        **({"patched_server_sha256": hashlib.sha256(Path(options.patched_server).read_bytes()).hexdigest()[:16]}
           if "patched-off" in options.modes else {}),
    }


def load_average():
    return round(os.getloadavg()[0], 2)


# --- Output ---

def rows(pairs, modes):
    return [{"mode": mode, "phase": phase, "wall": summary(chosen), "cpu": summary(chosen, "cpu_ms"),
             "ms_per_token": statistics.median(p["mode_ms"] for p in chosen)}
            for mode in modes for phase in PHASES
            if (chosen := [p for p in pairs if p["mode"] == mode and p["phase"] == phase])]


def clocks(machine):
    """Which summary of a row counts, and the other one. One thread's work shows in its CPU time, which other programs hardly touch; two wait for each other."""
    return ("cpu", "wall") if machine["threads"] == 1 else ("wall", "cpu")


def resolution(table, used):
    """What the method cannot tell from nothing: the far end of the plain-against-plain interval, by phase."""
    return {r["phase"]: max(abs(r[used]["low"]), abs(r[used]["high"])) for r in table if r["mode"] == "plain"}


def written(a):
    """Steps that are in the log event by event, of all."""
    return f"{a['steps_written']} of {a['steps']}"


def number(x, digits=2):
    return "-" if x is None else f"{x:+.{digits}f}"


def show(result, out=sys.stdout):
    """The result for a terminal of 80 columns."""
    say = lambda text="": print(text, file=out)
    m = result["machine"]
    say(f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, -t {m['threads']}")
    say(f"llama.cpp {m['llama_cpp'] or (m['llama_cpp_commit'] or '?')[:9]}, {m['model']}")
    say(f"library {m['library']} ({m['library_sha256']}), {m['date']}")
    say(f"load average before {m['load_before']}, after {m['load_after']}"
        + ("  - NOT A QUIET MACHINE" if m["load_before"] > 0.5 else ""))
    say()
    used, other = clocks(m)
    say(f"slow-down in per cent of the plain server ({'time per token' if used == 'wall' else 'CPU time of a request'}, pair by pair)")
    say(f"{'mode':<12}{'phase':<8}{'median':>6}  {'95 % interval':^15}  {'quartiles':^13} {other:>6}  ceiling")
    for r in result["rows"]:
        w = r[used]
        ceiling = f"{CEILING[r['mode']]:g} {r['verdict']}" if r["mode"] in CEILING else "(A/A)"
        interval, quartiles = f"{number(w['low'])} .. {number(w['high'])}", f"{number(w['q1'], 1)} .. {number(w['q3'], 1)}"
        say(f"{r['mode']:<12}{r['phase']:<8}{number(w['median']):>6}  {interval:^15}  {quartiles:^13} {number(r[other]['median']):>6}  "
            f"{ceiling}")
    say()
    if result["busy"]:
        say(f"{'busy for a while':<18}{'log KB/s':>9}{'steps written':>16}{'writer CPU %':>14}{'idle CPU %':>12}{'lost':>7}")
    for mode, a in result["busy"].items():
        say(f"{mode:<18}{a['log_kb_per_s']:>9.1f}{written(a):>16}{a['writer_cpu_percent']:>14.3f}"
            f"{result['idle_percent'].get(mode, math.nan):>12.2f}{result['lost'][mode]:>7}")
    say()
    for line in notes(result):
        say(line)


def notes(result):
    lines = []
    d, seen = result["drift_percent"], result["resolution_percent"]
    lines.append("drift of plain, second half against first: "
                 + ", ".join(f"{p} {number(d[p], 1)} %" for p in d))
    if seen:
        lines.append("A/A: not seen is less than "
                     + ", ".join(f"{seen[p]:.2f} % ({p})" for p in seen))
    counts = {(r["mode"], r["phase"]): (r["cpu"]["pairs"], r["cpu"]["rounds"]) for r in result["rows"]}
    if len(set(counts.values())) > 1:
        lines.append("not every row has all pairs: " + ", ".join(f"{m} {p} {n} in {k} rounds" for (m, p), (n, k) in counts.items()))
    lines.append("promised before, %: " + ", ".join(f"{m} {c:g}" for m, c in CEILING.items()))
    lines.append("our aims, %:        " + ", ".join(f"{m} {a:g}" for m, a in AIM.items()))
    if result["different_text"]:
        lines.append("WARNING: other text than the plain server: " + ", ".join(result["different_text"]))
    for mode, found in result["problems"].items():
        lines += [f"WARNING: {mode}: {p}" for p in found]
    if result.get("log_rate"):
        lines.append(f"LLAMA_RESOURCE_LOG_RATE={result['log_rate']}")
    return lines


def markdown(result, out=sys.stdout):
    """The table of docs/OVERHEAD.md."""
    say = lambda text="": print(text, file=out)
    m = result["machine"]
    say(f"{m['date']}, {m['cpu']}, {m['cores']} cores, Linux {m['kernel']}; llama.cpp {(m['llama_cpp_commit'] or '?')[:9]}, {m['model']}, "
        f"`-t {m['threads']}`; library {m['library']} (sha256 {m['library_sha256']}); load average {m['load_before']} before, "
        f"{m['load_after']} after; {pairs_a_mode(result)} in {result['rounds']} rounds.")
    if m["load_before"] > 0.5:
        say("\n**The machine was not quiet: a trial, not a result.**")
    used, other = clocks(m)
    say(f"\n| mode | phase | slow-down{'' if used == 'wall' else ' in CPU time'}, median | 95 % interval | quartiles | "
        f"{'CPU time' if other == 'cpu' else 'time per token'} | promised | aim |")
    say("|---|---|---|---|---|---|---|---|")
    for r in result["rows"]:
        w, mode = r[used], r["mode"]
        say(f"| {'plain (A/A)' if mode == 'plain' else mode} | {r['phase']} | {number(w['median'])} % | {number(w['low'])} .. {number(w['high'])} | "
            f"{number(w['q1'], 1)} .. {number(w['q3'], 1)} | {number(r[other]['median'])} % | "
            + (f"{CEILING[mode]:g} %, {r['verdict']} | {AIM[mode]:g} % |" if mode in CEILING else "| |"))
    if result["busy"]:
        say("\n| kept busy | log, KB/s | steps written event by event | writer thread, % of a core | idle server, % of a core | events lost |")
        say("|---|---|---|---|---|---|")
        for mode, a in result["busy"].items():
            say(f"| {mode}, {a['wall_s']:.0f} s | {a['log_kb_per_s']:.1f} | {written(a)} | {a['writer_cpu_percent']:.3f} | "
                f"{result['idle_percent'].get(mode, math.nan):.2f} | {result['lost'][mode]} |")
    say()
    for line in notes(result):
        if not line.startswith(("our aims", "promised")):
            say(f"- {line}")


# --- Command line ---

def parse(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--pairs", type=int, default=24, help="pairs of requests for each mode and phase")
    p.add_argument("--rounds", type=int, default=6, help="rounds, each with new processes, that the pairs are spread over")
    p.add_argument("--modes", default=",".join(USUAL), help="which modes; plain is the A/A control; patched-off needs --patched-server")
    p.add_argument("--phases", default=",".join(PHASES), help="decode, prefill or both")
    p.add_argument("--quick", action="store_true", help="4 pairs in 2 rounds, shorter requests, 5 s of logging")
    p.add_argument("--fine", action="store_true",
                   help="where not said otherwise: plain, disabled and patched-off, 480 short pairs in 80 rounds, --threads 1, no logging")
    p.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="llama-server's -t")
    p.add_argument("--n-predict", type=int, default=96, help="tokens of a decode request")
    p.add_argument("--n-prompt", type=int, default=512, help="tokens of a prefill request")
    p.add_argument("--warm-up", type=int, default=1, help="requests of each phase to each new server that are not counted")
    p.add_argument("--server", default=str(harness.LLAMA_SERVER), help="llama-server")
    p.add_argument("--patched-server", default=str(TOP / "target/llama.cpp-patched/bin/llama-server"),
                   help="llama-server of `make llama-patched`, for patched-off")
    p.add_argument("--model", default=str(harness.SMOLLM2), help="GGUF file")
    p.add_argument("--library", default=str(harness.LIBRARY), help="the library to preload (a copy of it is measured)")
    p.add_argument("--json", metavar="OUT", help="write everything, each pair included, to this file")
    p.add_argument("--from-json", metavar="IN", nargs="+", help="show an older result instead of measuring; several: their pairs together")
    p.add_argument("--markdown", action="store_true", help="print Markdown instead of the terminal's table")
    p.add_argument("--check", action="store_true", help="exit 1 if a mode's whole interval lies above its ceiling")
    p.add_argument("--log-seconds", type=float, default=120,
                   help="then keep a server of each level busy so long, for the log's rate; 0: no")
    p.add_argument("--log-rate", help="LLAMA_RESOURCE_LOG_RATE for the levels; `unlimited` writes every step")
    p.add_argument("--keep-logs", metavar="DIR", help="keep the event logs here")
    p.add_argument("--timeout", type=float, default=300, help="seconds that a start or a request may take")
    o = p.parse_args(argv)
    if o.quick:
        o.pairs, o.rounds, o.n_predict, o.log_seconds = min(o.pairs, 4), min(o.rounds, 2), min(o.n_predict, 32), min(o.log_seconds, 5)
    if o.fine:
        fine = {"pairs": 480, "rounds": 80, "n_predict": 32, "n_prompt": 64, "threads": 1, "log_seconds": 0,
                "modes": ",".join(m for m in MODES if AIM.get(m, 0.0) == 0.0)}
        for name, value in fine.items():
            if getattr(o, name) == p.get_default(name):
                setattr(o, name, value)
    o.modes = [next((m for m in MODES if m.lower() == word.strip().lower()), None) or p.error(
        f"--modes: {word!r} is not one of {', '.join(MODES)}") for word in o.modes.split(",")]
    o.phases = [word.strip().lower() for word in o.phases.split(",")]
    if unknown := [word for word in o.phases if word not in PHASES]:
        p.error(f"--phases: {unknown[0]!r} is not one of {', '.join(PHASES)}")
    o.rounds = max(1, min(o.rounds, o.pairs))
    o.pairs = math.ceil(o.pairs / o.rounds) * o.rounds
    if not o.from_json:
        patched = [("--patched-server", o.patched_server, "make llama-patched")] if "patched-off" in o.modes else []
        for option, path, remedy in (*patched, ("--server", o.server, "make"), ("--model", o.model, "make"), ("--library", o.library, "make")):
            if not Path(path).is_file():
                p.error(f"{option}: {path} is missing; build it first ({remedy}) or name another")
    # Token ids, not text: the length is exact. Decode starts from a short prompt; both are the same in every request.
    ids = random.Random(7)
    prompt = [ids.randrange(1000, 20000) for _ in range(o.n_prompt)]
    common = {"temperature": 0, "seed": 1, "cache_prompt": False, "ignore_eos": True, "stream": False}
    o.requests = {"decode": {**common, "prompt": "Once upon a time", "n_predict": o.n_predict},
                  "prefill": {**common, "prompt": prompt, "n_predict": 1}}
    return o


def progress_on(stream):
    def progress(done, total, mode):
        if stream.isatty():
            stream.write(f"\r{done}/{total} pairs ({mode})" + " " * 12 + ("\n" if done == total else ""))
            stream.flush()
        elif done == total or done % max(1, total // 10) == 0:
            stream.write(f"{done}/{total} pairs\n")
    return progress


def measured(options):
    with tempfile.TemporaryDirectory(prefix="lri-overhead-") as directory:
        # A copy: a build that goes on meanwhile must not change what is measured.
        harness.LIBRARY = Path(shutil.copy(options.library, directory))
        if options.keep_logs:
            Path(options.keep_logs).mkdir(parents=True, exist_ok=True)
        machine = fingerprint(options) | {"load_before": load_average()}
        options.began_s = time.monotonic()
        pairs, rounds, idle, different = measure(options, options.keep_logs or directory, progress_on(sys.stderr))
        busy = {mode: keep_busy(mode, options, options.keep_logs or directory, options.log_seconds)
                for mode in options.modes if mode not in (*PLAIN, "disabled") and options.log_seconds > 0}
        machine["load_after"] = load_average()
    return {"machine": machine, "pairs": options.pairs, "rounds": options.rounds, "took_s": round(time.monotonic() - options.began_s, 1),
            "request_tokens": {"decode": options.n_predict, "prefill": options.n_prompt}, "idle_percent": idle,
            "accounts_of_rounds": rounds, "busy": busy, "log_rate": options.log_rate, "different_text": different, "measurements": pairs}


def older(paths, alike):
    """Results of before, as one: on one machine, and with the same `alike`. Their rounds are numbered on. Whether the builds were alike is for the
    reader: they are named."""
    results = [json.loads(Path(path).read_text()) for path in paths]
    first, *others = results
    same = lambda r: [r["machine"][key] for key in ("cpu", "cores", "model", "threads", "llama_cpp_commit")] + [r[key] for key in alike]
    for other in others:
        if same(other) != same(first):
            raise SystemExit(f"--from-json: the runs of {first['machine']['date']} and {other['machine']['date']} were not of the same machine, "
                             f"model and {', '.join(key.replace('_', ' ') for key in alike)}, and say nothing together")
    result = {**first, "pairs": sum(r["pairs"] for r in results), "rounds": sum(r["rounds"] for r in results), "measurements": []}
    result["machine"] = {**first["machine"], **{key: ", ".join(str(r["machine"][key]) for r in results)
                                                for key in ("date", "library", "library_sha256")},
                         **{key: max(r["machine"][key] for r in results) for key in ("load_before", "load_after")}}
    result["accounts_of_rounds"], result["busy"] = {}, {}
    if "modes" in first:
        result["modes"] = list(dict.fromkeys(mode for r in results for mode in r["modes"]))
    rounds, began_s = 0, 0.0
    for r in results:
        result["measurements"] += [{**p, "round": rounds + p["round"], "at_s": began_s + p["at_s"]} for p in r["measurements"]]
        for mode, accounts in r["accounts_of_rounds"].items():
            result["accounts_of_rounds"].setdefault(mode, []).extend(accounts)
        result["busy"] |= r.get("busy", {})
        rounds, began_s = rounds + r["rounds"], began_s + r["took_s"]
    result["different_text"] = sorted({text for r in results for text in r["different_text"]})
    return result


def pairs_a_mode(result):
    """In words; results of before that are shown together need not have the same modes."""
    counts = {sum(p["mode"] == r["mode"] and p["phase"] == r["phase"] for p in result["measurements"]) for r in result["rows"]}
    return f"{min(counts)} to {max(counts)} pairs a mode" if len(counts) > 1 else f"{result['pairs']} pairs a mode"


def evaluate(result):
    """Adds everything that follows from the measurements."""
    modes = [m for m in MODES if any(p["mode"] == m for p in result["measurements"])]
    result["rows"] = rows(result["measurements"], modes)
    found = {m: problems(result["accounts_of_rounds"][m] + [result["busy"].get(m, {})]) for m in modes}
    result["problems"], result["lost"] = {m: f[0] for m, f in found.items()}, {m: f[1] for m, f in found.items()}
    result["drift_percent"] = drift(result["measurements"])
    used, _ = clocks(result["machine"])
    result["resolution_percent"] = resolution(result["rows"], used)
    for r in result["rows"]:
        r["verdict"] = verdict(r["mode"], r[used], result["resolution_percent"].get(r["phase"], 0.0))
    return result


def main(argv):
    options = parse(argv)
    try:
        result = evaluate(older(options.from_json, ["request_tokens"]) if options.from_json else measured(options))
    except harness.ServerError as error:
        print(f"overhead: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("overhead: interrupted; nothing was written", file=sys.stderr)
        return 130
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    (markdown if options.markdown else show)(result)
    over = [r for r in result["rows"] if r["verdict"] == "over"]
    for r in over:
        print(f"over its ceiling: {r['mode']} {r['phase']}: {number(r[clocks(result['machine'])[0]]['low'])} % or more, ceiling {CEILING[r['mode']]:g} %",
              file=sys.stderr)
    return 1 if over and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
