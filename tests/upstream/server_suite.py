#!/usr/bin/env python3
"""llama.cpp's own server tests as a judge: run plain twice, then with the library preloaded in three modes; every HTTP answer compared.

    tests/upstream/server_suite.py [-k EXPRESSION] [--modes NAME,...] [FILE...]     FILE: unit/test_basic.py, ...

The tests run in a copy, with generated models (hub.py) and with asserts that are counted instead of ending the test (recorder.py), so
that every request is sent. A test whose answers differ between two plain runs is compared by what was asked and how it ended; one that
differs even so is excluded and counted. Exit status 1 on a difference.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict

import hub
from common import AGAIN, CAPTURE, DETAILED, LIBRARY, PINNED, PLAIN, SOURCE, TARGET, TOP, VERBOSE, environment, wrong_with_log, wrong_with_stream

OUT = TARGET / "upstream/server"
COPY = OUT / "llama.cpp/tools/server/tests"
MODES = [PLAIN, AGAIN, DETAILED, VERBOSE, CAPTURE]
PORT = 18480
ATTEMPTS = 3  # of a test that differs
SUITE_LIMIT = 3600  # seconds one mode may take

# What differs from run to run by nature: clocks, ids, addresses, ports that the kernel chose, folders of a run.
MASKED_KEYS = re.compile(r'"(id|[a-z_]*_id|created|created_at|completed_at|[a-z_]*_ms|[a-z_]*_per_second|t_[a-z_]*|[a-z_]*time[a-z_]*|last_[a-z_]*|'
                         r'pid|port|loaded_at|sleep[a-z_]*|token|size|[a-z]*_at)": ?("[^"]*"|-?[0-9.e+-]+)')
MASKED_IDS = re.compile(r"(chatcmpl|resp|msg|call|fc|rs|req|cmpl|toolu)[-_][A-Za-z0-9]{6,}")
MASKED_SECONDS = re.compile(r"^(.*(?:seconds|per_second|_ms|busy)[^ ]*) [0-9.e+-]+$", re.M)


class Soft(ast.NodeTransformer):
    """`assert X` -> try: assert X; except Exception as e: soft.failure(e, where)"""

    def __init__(self, name):
        self.name = name

    def visit_Assert(self, node):
        handler = ast.parse(f"try:\n    pass\nexcept Exception as _lri:\n    import soft\n    soft.failure(_lri, '{self.name}:{node.lineno}')").body[0]
        handler.body = [node]
        return ast.copy_location(handler, node)


def copy_tests():
    shutil.rmtree(OUT / "llama.cpp", ignore_errors=True)
    shutil.copytree(SOURCE / "tools/server/tests", COPY)
    (OUT / "llama.cpp/models").symlink_to(SOURCE / "models")
    for path in [*COPY.glob("unit/*.py"), COPY / "utils.py"]:
        tree = Soft(path.name).visit(ast.parse(path.read_text()))
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))


def run_mode(mode, selection, again=""):
    """One run of the suite; recorder.py writes what every test got into tests.jsonl. Gives it: test -> entry."""
    folder = OUT / (mode.name + again)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cache = hub.fill()
    shutil.copytree(cache / "hub", folder / "hub")
    server = folder / "llama-server"
    set_by_us = {key: value for key, value in environment(mode, folder).items() if os.environ.get(key) != value}
    server.write_text("#!/bin/sh\n" + "".join(f"export {key}='{value}'\n" for key, value in set_by_us.items()) + f'exec {PINNED.resolve()}/llama-server "$@"\n')
    server.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith(("LLAMA_", "GGML_"))}
    env |= {"LLAMA_SERVER_BIN_PATH": str(server), "LLAMA_CACHE": str(folder / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9/", "PORT": str(PORT),
            "PYTHONPATH": str(TOP / "tests/upstream"), "UPSTREAM_OUT": str(folder), "UPSTREAM_DOWNLOADS": str(cache / "downloads"),
            "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(TARGET / "upstream-venv/bin/python"), "-m", "pytest", "-q", "-p", "recorder", "-p", "no:cacheprovider", "-p", "no:randomly",
               "--basetemp", str(folder / "pytest"), "-m", "not slow", *selection]
    shutil.rmtree(COPY / "tmp", ignore_errors=True)
    (COPY / "tmp").mkdir()
    began = time.monotonic()
    with open(folder / "pytest.log", "wb") as log:
        subprocess.run(command, cwd=COPY, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=SUITE_LIMIT, check=False)
    shutil.rmtree(folder / "hub", ignore_errors=True)
    found = read_run(folder)
    n_answers = sum(len(entry["answers"]) for entry in found.values())
    print(f"{folder.name}: {len(found)} tests, {n_answers} answers, {time.monotonic() - began:.0f} s, "
          f"{dict(Counter(entry['outcome'].split(':')[0] for entry in found.values()))}", flush=True)
    return found


def masked(text):
    text = MASKED_KEYS.sub(r'"\1": *', text)
    text = MASKED_IDS.sub(r"\1-*", text)
    text = MASKED_SECONDS.sub(r"\1 *", text)
    text = re.sub(r"__media_\w+?__", "__media__", text)
    text = re.sub(r'127\.0\.0\.1:\d+|"--port","\d+"', "*", text)
    return re.sub(r"/server/(plain|plain-again|detailed|verbose|capture)(-once-more)?/", "/server/*/", text)


def strict(entry):
    """What must be equal: outcome, asserts that failed, how the servers ended, and all answers, those of parallel requests in any order."""
    answers = sorted((masked(answer["request"]), masked(answer["sent"]), answer["status"], masked(answer["body"]) if answer["whole"] else "(cut)")
                     for answer in entry["answers"])
    return essence(entry) | {"answers": answers}


def loose(entry):
    """Of tests that poll, or whose parallel requests meet in one batch or another: what was asked for, once each, and the status."""
    return essence(entry) | {"answers": sorted({(masked(answer["request"]), re.sub(r"\d+", "#", masked(answer["sent"])), answer["status"])
                                                for answer in entry["answers"]})}


def essence(entry):
    return {"outcome": entry["outcome"], "soft": sorted(set(entry["soft"])), "statuses": [str(status) for status in entry["statuses"]]}


def differences(expected, found):
    for part in ("outcome", "soft", "statuses"):
        if expected[part] != found[part]:
            yield f"{part}: {found[part]}, plain {expected[part]}"
    if expected["answers"] != found["answers"]:
        mine, theirs = Counter(found["answers"]), Counter(expected["answers"])
        only_mine, only_theirs = list((mine - theirs).elements()), list((theirs - mine).elements())
        yield f"answers: {len(only_mine)} of {len(found['answers'])} differ (plain has {len(expected['answers'])})"
        for a, b in list(zip(only_theirs, only_mine))[:2]:
            at = next((i for i, (x, y) in enumerate(zip(str(a), str(b))) if x != y), 0)
            yield f"    plain ...{str(a)[max(at - 60, 0):at + 80]}\n            found ...{str(b)[max(at - 60, 0):at + 80]}"


CUT_SHORT = ("no end packet", "no resource_session_end", ": empty", "not readable")  # what a killed process leaves


def captures(mode):
    """(facts, what is wrong): of the logs and streams, each account adds up, nothing is lost, and who ended in order left them whole."""
    folder, wrong, n_bytes, killed = OUT / mode.name, [], 0, 0
    ended = {pid for entry in read_run(folder).values() for pid, status in entry.get("pids", {}).items() if status == 0}
    streams, logs = sorted(folder.glob("acts.*.stream")), sorted(folder.glob("log.*.jsonl"))
    for path in [*streams, *logs]:
        sentences, said = wrong_with_stream(path) if path in streams else (wrong_with_log(path), None)
        if path.name.split(".")[1] not in ended and any(mark in sentence for sentence in sentences for mark in CUT_SHORT):
            # Killed by a test, by SIGTERM before the server had its handler, or a child of the router.
            killed += 1
            sentences = []
        wrong += sentences
        n_bytes += (said or {}).get("captured", {}).get("bytes", 0)
    return f"{len(logs)} logs, {len(streams)} streams with {n_bytes / 1e6:.0f} MB, {killed} of killed processes", wrong


def read_run(folder):
    """Test -> entry of recorder.py."""
    path = folder / "tests.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {entry["test"]: entry for entry in entries}


class Judge:
    """The runs of each test: plain ones, to know what varies by itself, and one or more of each mode."""

    def __init__(self, modes):
        self.modes = [mode for mode in modes if mode.preload]
        self.plain = defaultdict(list)
        self.found = {mode.name: defaultdict(list) for mode in self.modes}
        for mode in modes:
            self.add(mode, read_run(OUT / mode.name))

    def add(self, mode, run):
        for test, entry in run.items():
            (self.found[mode.name] if mode.preload else self.plain)[test].append(entry)

    def way(self, test):
        """How a test is compared; a reason instead where it cannot be."""
        entries = self.plain[test]
        if entries[0]["outcome"] == "skipped":
            return "skipped by the suite itself"
        for way in (strict, loose):
            if all(way(entry) == way(entries[0]) for entry in entries):
                return way
        return "plain runs differ"

    def wrong(self, mode, test):
        """What is different in a mode, as sentences; nothing where one of its runs is as a plain one."""
        way = self.way(test)
        if isinstance(way, str):
            return []
        runs = [way(entry) for entry in self.found[mode.name][test]]
        plain = [way(entry) for entry in self.plain[test]]
        if not runs:
            return ["not run"]
        return [] if any(run in plain for run in runs) else list(differences(plain[0], runs[-1]))

    def suspects(self, mode):
        return [test for test in self.plain if self.wrong(mode, test)]

    def run_suspects_again(self):
        """Parallel requests meet by chance, and polls are as many as they are: who differs runs again, plain and not."""
        for _ in range(ATTEMPTS):
            suspects = {mode.name: self.suspects(mode) for mode in self.modes}
            everyone = sorted(set().union(*suspects.values()))
            if not everyone:
                return
            self.add(PLAIN, run_mode(PLAIN, everyone, "-once-more"))
            for mode in self.modes:
                if suspects[mode.name]:
                    self.add(mode, run_mode(mode, suspects[mode.name], "-once-more"))

    def verdict(self, mode):
        """Prints what is different in a mode; gives its number of faults."""
        compared = [test for test in self.plain if not isinstance(self.way(test), str)]
        different = self.suspects(mode)
        for test in different:
            print(f"{mode.name} {test}")
            for sentence in self.wrong(mode, test):
                print(f"        {sentence}")
        facts, wrong = captures(mode)
        for sentence in wrong[:40]:
            print(f"{mode.name}: {sentence}")
        print(f"{mode.name}: {len(compared) - len(different)} of {len(compared)} tests alike; {facts}; {len(wrong)} faults", flush=True)
        return len(different) + len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", dest="expression")
    parser.add_argument("--modes", default=",".join(mode.name for mode in MODES))
    parser.add_argument("--judge-only", action="store_true", help="judge what earlier runs left")
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_args()
    selection = [*(["-k", arguments.expression] if arguments.expression else []), *(arguments.files or ["unit"])]
    assert LIBRARY.exists(), f"{LIBRARY} is missing: build it with `make lib`"
    OUT.mkdir(parents=True, exist_ok=True)
    modes = [mode for mode in MODES if mode.name in arguments.modes.split(",")]
    if not arguments.judge_only:
        copy_tests()
        for mode in modes:
            run_mode(mode, selection)
    judge = Judge(modes)
    judge.run_suspects_again()
    ways = {test: way if isinstance(way, str) else f"compared {way.__name__}ly" for test, way in ((test, judge.way(test)) for test in judge.plain)}
    print(f"{len(ways)} tests: {dict(Counter(ways.values()))}")
    failed = sum(judge.verdict(mode) for mode in judge.modes)
    (OUT / "ways.json").write_text(json.dumps(ways, indent=1))
    return 1 if failed or not ways else 0


if __name__ == "__main__":
    sys.exit(main())
