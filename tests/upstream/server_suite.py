#!/usr/bin/env python3
"""llama.cpp's own server tests as a judge: run plain twice, then with the library preloaded in three modes; every HTTP answer compared.

    tests/upstream/server_suite.py [-k EXPRESSION] [--modes NAME,...] [FILE...]     FILE: unit/test_basic.py, ...

The tests run in a copy, with generated models (hub.py) and with asserts that are counted instead of ending the test (recorder.py), so
that every request is sent. A test whose answers differ between two plain runs is excluded and counted. Exit status 1 on a difference.
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
from collections import Counter

import hub
from common import AGAIN, CAPTURE, DETAILED, LIBRARY, PINNED, PLAIN, SOURCE, TARGET, TOP, VERBOSE, environment, wrong_with_log, wrong_with_stream

OUT = TARGET / "upstream/server"
COPY = OUT / "llama.cpp/tools/server/tests"
MODES = [PLAIN, AGAIN, DETAILED, VERBOSE, CAPTURE]
PORT = 18480
SUITE_LIMIT = 3600  # seconds one mode may take

# What differs from run to run by nature: clocks, ids, addresses, what the allocator says.
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


def run_mode(mode, selection):
    """One run of the suite: test -> entry of recorder.py."""
    folder = OUT / mode.name
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
               "-m", "not slow", *selection]
    shutil.rmtree(COPY / "tmp", ignore_errors=True)
    (COPY / "tmp").mkdir()
    began = time.monotonic()
    with open(folder / "pytest.log", "wb") as log:
        subprocess.run(command, cwd=COPY, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=SUITE_LIMIT, check=False)
    shutil.rmtree(folder / "hub", ignore_errors=True)
    found = {}
    if (folder / "tests.jsonl").exists():
        for line in (folder / "tests.jsonl").read_text().splitlines():
            entry = json.loads(line)
            found[entry["test"]] = entry
    n_answers = sum(len(entry["answers"]) for entry in found.values())
    print(f"{mode.name}: {len(found)} tests, {n_answers} answers, {time.monotonic() - began:.0f} s, "
          f"{dict(Counter(entry['outcome'].split(':')[0] for entry in found.values()))}", flush=True)
    return found


def masked(text):
    text = MASKED_KEYS.sub(r'"\1": *', text)
    text = MASKED_IDS.sub(r"\1-*", text)
    text = MASKED_SECONDS.sub(r"\1 *", text)
    return re.sub(r"/server/(plain|plain-again|detailed|verbose|capture)/", "/server/*/", text)


def essence(entry):
    """What must be equal: outcome, asserts that failed, how the servers ended, and all answers, those of parallel requests in any order."""
    answers = sorted((answer["request"], masked(answer["sent"]), answer["status"], masked(answer["body"]) if answer["whole"] else "(cut)")
                     for answer in entry["answers"])
    return {"outcome": entry["outcome"], "soft": sorted(entry["soft"]), "statuses": [str(status) for status in entry["statuses"]], "answers": answers}


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


def captures(mode):
    """(number of streams, what is wrong with them): each account adds up and nothing is lost."""
    folder, wrong, bytes_captured = OUT / mode.name, [], 0
    streams = sorted(folder.glob("*.stream"))
    for path in streams:
        sentences, said = wrong_with_stream(path)
        wrong += sentences
        bytes_captured += (said or {}).get("captured", {}).get("bytes", 0)
    logs = sorted(folder.glob("*.jsonl"))
    for path in logs:
        if path.name != "tests.jsonl":
            wrong += wrong_with_log(path)
    return len(streams), len(logs) - 1, bytes_captured, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", dest="expression")
    parser.add_argument("--modes", default=",".join(mode.name for mode in MODES))
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_args()
    selection = [*(["-k", arguments.expression] if arguments.expression else []), *(arguments.files or ["unit"])]
    assert LIBRARY.exists(), f"{LIBRARY} is missing: build it with `make lib`"
    OUT.mkdir(parents=True, exist_ok=True)
    copy_tests()
    runs = {mode.name: run_mode(mode, selection) for mode in MODES if mode.name in arguments.modes.split(",")}
    plain = runs.pop("plain")
    again = runs.pop("plain-again", {})
    excluded = {}
    for test, entry in plain.items():
        if entry["outcome"] == "skipped":
            excluded[test] = "skipped by the suite itself"
        elif again and test not in again:
            excluded[test] = "not run the second time"
        elif again and essence(entry) != essence(again[test]):
            excluded[test] = "two plain runs differ"
    print(f"excluded: {dict(Counter(excluded.values()))}")
    failed = 0
    for name, found in runs.items():
        mode = next(mode for mode in MODES if mode.name == name)
        different = 0
        for test, entry in plain.items():
            if test in excluded:
                continue
            if test not in found:
                different += 1
                print(f"{name} {test}: not run")
                continue
            sentences = list(differences(essence(entry), essence(found[test])))
            if sentences:
                different += 1
                print(f"{name} {test}")
                for sentence in sentences:
                    print(f"        {sentence}")
        n_streams, n_logs, n_bytes, wrong = captures(mode)
        for sentence in wrong[:40]:
            print(f"{name}: {sentence}")
        print(f"{name}: {len(plain) - len(excluded) - different} of {len(plain) - len(excluded)} tests alike; {n_logs} logs, {n_streams} streams with "
              f"{n_bytes / 1e6:.0f} MB, {len(wrong)} faults", flush=True)
        failed += different + len(wrong)
    (OUT / "excluded.json").write_text(json.dumps(excluded, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
