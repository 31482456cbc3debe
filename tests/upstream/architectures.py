#!/usr/bin/env python3
"""Every architecture that the pinned llama.cpp makes from generated weights, each run plain and captured by both routes.

    tests/upstream/architectures.py [WORD...]     only the models whose name holds one of the words

The models are those of llama.cpp's own test-llama-archs and of tests/models/make_tiny.py; the host is archs_host.cpp. Must hold:
outputs bit-identical, steps and tokens counted right, at most 1 % of the operations `other`, the capture's account exact, and every
value that both routes captured equal. One line a model, a table in target/upstream/architectures.json, exit status 1 on a failure.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter

from common import (LIBRARY, PLAIN, PROGRAMS, SOURCE, TARGET, TOP, Mode, capture, make_tiny, read_log, run, tiny, wrong_with_log,
                    wrong_with_stream)

OUT = TARGET / "upstream/architectures"
MODELS = TARGET / "upstream/models"
LEAST_MODELS = 60
MOST_OTHER = 0.01  # of the operations of a model
TIME_LIMIT = 60    # seconds a host may take
SEED = "1"
ROUTES = {route: Mode(route, {"log_level": "VERBOSE", "log_rate": "unlimited", "tensors": "FULL_TENSOR", "codec": "none", "route": route})
          for route in ("retain", "callback")}
# One element of each row: sizes that no alignment divides, and both routes in one graph.
SAMPLED = Mode("sampled", {"log_level": "VERBOSE", "tensors": "FULL_TENSOR,routing", "codec": "none", "sample_elements": "1"})


def host():
    """Path of the host, compiled against the pinned build."""
    source = TOP / "tests/upstream/archs_host.cpp"
    key = hashlib.sha256(source.read_bytes() + str((TARGET / "llama.cpp").resolve()).encode()).hexdigest()[:12]
    built = TARGET / f"upstream/archs_host-{key}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        libraries = (TARGET / "llama.cpp/bin").resolve()
        compiler = os.environ.get("CXX", "c++").split()
        subprocess.run([*compiler, "-std=c++17", "-O1", *(f"-I{SOURCE / folder}" for folder in ("include", "ggml/include", "common", "src")), str(source),
                        "-o", str(built), f"-L{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base",
                        f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"], check=True)
    return built


def models():
    """Name -> path of every model; those of llama.cpp's own generator are written once a generator."""
    generator = PROGRAMS / "test-llama-archs"
    whole, key = MODELS / ".whole", str(generator.resolve())
    if not whole.exists() or whole.read_text() != key:
        shutil.rmtree(MODELS, ignore_errors=True)
        MODELS.mkdir(parents=True)
        subprocess.run([str(generator), "-s", SEED, "-o", str(MODELS)], check=True, stdout=subprocess.DEVNULL)
        whole.write_text(key)
    found = {path.stem: path for path in sorted(MODELS.glob("*.gguf"))}
    return found | {f"tiny-{name}": tiny(name) for name in make_tiny.MODELS}


class Judge:
    """One model's runs and what is wrong with them."""

    def __init__(self, name, path, command):
        self.name, self.path, self.command, self.wrong, self.facts = name, path, command, [], {}

    def judge(self):
        plain = self.run(PLAIN)
        if plain.status != 0:
            self.facts["excluded"] = f"the plain host ends with {plain.status}: {plain.stderr.strip().splitlines()[-1:]}"
            return self
        expected = {line.split(":")[0]: int(line.split(":")[1]) for line in plain.stdout.decode().splitlines() if line.startswith("tokens:")}
        accounts, values = {}, {}
        for mode in (*ROUTES.values(), SAMPLED):
            ended = self.run(mode)
            if ended.status != plain.status or ended.stdout != plain.stdout:
                if self.run(PLAIN).stdout != plain.stdout:
                    self.facts["excluded"] = "two plain runs differ"
                    return self
                self.wrong.append(f"{mode.name}: ends with {ended.status}, {differing(plain.stdout, ended.stdout)}")
                continue
            [log], [stream] = ended.folder.glob("*.jsonl"), ended.folder.glob("*.stream")
            wrong, said = wrong_with_stream(stream, contents=False)
            found = contents(stream)
            stored = sum(n for n, _ in found.values())
            if mode in ROUTES.values():
                self.log(mode.name, read_log(log), expected["tokens"])
                accounts[mode.name], values[mode.name] = said, found
                if stored != capture.total(said, "captured")[1]:
                    wrong.append(f"the file holds {stored} bytes of values: {said}")
            if stored == 0:
                wrong.append("nothing captured")
            wrong += [line for line in ended.ours if "panic" in line]
            self.wrong += [f"{mode.name}: {sentence}" for sentence in wrong + wrong_with_log(log)]
        if len(values) == 2:
            self.routes(accounts, values)
        return self

    def run(self, mode):
        return run([self.command, self.path], mode, OUT / self.name / mode.name, TIME_LIMIT)

    def log(self, route, events, n_tokens):
        """Classification of every operation; tokens against the host's."""
        summaries = [event for event in events if event["event"] == "step_summary"]
        components, counted = Counter(), 0
        for summary in summaries:
            components.update({entry["name"]: entry["count"] for entry in summary["components"]})
            counted += sum(summary[kind]["tokens"] for kind in ("prefill", "decode"))
        operations = sum(components.values())
        if not operations:
            self.wrong.append(f"{route}: no operation in the log")
            return
        share = components["other"] / operations
        if share > MOST_OTHER:
            self.wrong.append(f"{route}: {share:.1%} of {operations} operations are `other`")
        if counted != n_tokens:
            self.wrong.append(f"{route}: {counted} tokens counted, the host processed {n_tokens}")
        others = {(event["operation"], event["tensor"]) for event in events
                  if event["event"] == "compute_execution" and event["component_type"] == "other"}
        if route == "retain":
            self.facts |= {"operations": operations, "other": share, "others": sorted(f"{op} {tensor}" for op, tensor in others),
                           "components": components}

    def routes(self, accounts, values):
        retained, called = values["retain"], values["callback"]
        if capture.total(accounts["retain"], "seen") != capture.total(accounts["callback"], "seen"):
            self.wrong.append(f"the routes do not see the same: {accounts}")
        self.facts |= {"captured_bytes": capture.total(accounts["retain"], "captured")[1], "accounts": accounts}
        different = [key for key in retained.keys() & called.keys() if retained[key] != called[key]]
        if different:
            self.wrong.append(f"{len(different)} of {len(retained)} tensors differ between the routes: {sorted(different)[:4]}")
        alone = sorted({name for _, name in retained.keys() - called.keys()})
        if alone:
            self.wrong.append(f"only by retain: {len(alone)} names, {alone[:6]}")
        # What is overwritten in place cannot be kept: retain says so, in the same bytes that the callback then has more.
        more = sum(called[key][0] for key in called.keys() - retained.keys())
        said = [accounts[route].get("skipped", {}).get("needs_callback", {}).get("bytes", 0) for route in ("retain", "callback")]
        if more != said[0] - said[1]:
            alone = sorted({name for _, name in called.keys() - retained.keys()})
            self.wrong.append(f"only by callback: {more} bytes, {said} said to need it: {alone[:6]}")
        self.facts["needs_callback"] = sorted({name for _, name in called.keys() - retained.keys()})


def contents(stream):
    """(step, name) -> (bytes, digest of values and rows)."""
    found = {}
    for name, parts in capture.Stream(stream).parts.items():
        for part in parts:
            key = part.step, name
            assert key not in found, f"{stream}: {key} twice"
            found[key] = len(part.bytes), hashlib.sha256(part.bytes + part.rows.tobytes()).hexdigest()
    return found


def differing(expected, found):
    expected, found = expected.decode(errors="replace").splitlines(), found.decode(errors="replace").splitlines()
    lines = [(a, b) for a, b in zip(expected, found) if a != b]
    return f"{len(lines)} of {len(expected)} lines differ, {len(found)} found" + (f": {lines[0]}" if lines else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    words = parser.parse_args().words
    assert LIBRARY.exists(), f"{LIBRARY} is missing: build it with `make lib`"
    began, command, judged = time.monotonic(), host(), []
    for name, path in models().items():
        if words and not any(word in name for word in words):
            continue
        judge = Judge(name, path, command)
        try:
            judge.judge()
        except (AssertionError, ValueError, KeyError) as error:
            judge.wrong.append(f"the judge itself failed: {error!r}")
        judged.append(judge)
        facts = judge.facts
        state = "EXCLUDED" if "excluded" in facts else "FAILED" if judge.wrong else "ok"
        print(f"{name:28} {state:8} {facts.get('excluded', '')}"
              + (f"{facts['operations']:6} operations, {facts['other']:6.2%} other, {facts.get('captured_bytes', 0) / 1e6:7.2f} MB" if "operations" in facts else ""),
              flush=True)
        for sentence in judge.wrong:
            print(f"    {sentence}", flush=True)
        for other in facts.get("others", [])[:8]:
            print(f"    other: {other}", flush=True)
        if state != "FAILED":
            shutil.rmtree(OUT / name, ignore_errors=True)
    report = {judge.name: judge.facts | {"wrong": judge.wrong} for judge in judged}
    (TARGET / "upstream/architectures.json").write_text(json.dumps(report, indent=1))
    failed = sum(bool(judge.wrong) for judge in judged)
    excluded = sum("excluded" in judge.facts for judge in judged)
    passed = len(judged) - failed - excluded
    print(f"{passed} passed, {failed} failed, {excluded} excluded; {time.monotonic() - began:.0f} s")
    if not words and passed < LEAST_MODELS:
        print(f"fewer than {LEAST_MODELS} models were judged")
        failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
