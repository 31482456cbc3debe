#!/usr/bin/env python3
"""llama.cpp's own C++ tests, tools and examples as judges: run plain twice, then with the library preloaded in three modes.

    tests/upstream/programs.py [WORD...]     only the runs whose name holds one of the words

Compared: how each ends, what it prints (times masked), the files it writes; and no capture may lose anything. What differs between plain
runs is not compared, and said. Exit status 1 on a difference. What differs stays in target/upstream/programs/.
"""

import argparse
import hashlib
import re
import shutil
import sys
import time
from dataclasses import dataclass

import architectures
import hub
from common import AGAIN, CAPTURE, DETAILED, LIBRARY, PINNED, PLAIN, PROGRAMS, SMOLLM2, SOURCE, TARGET, VERBOSE, run, tiny, wrong_with_log, wrong_with_stream

OUT = TARGET / "upstream/programs"
TIME_LIMIT = 150  # seconds one run may take
ATTEMPTS = 3  # plain runs more, where a run differs
MOST_READ = 50_000_000  # bytes of a stream whose values are read; the account is read of every one
PROMPT = "There was a house by the water and the people in it"
TEXT = "The people of the small house by the water were there when the light was on. " * 40
BACKEND_SAMPLERS = ("greedy logit_bias penalties temp temp_ext top_k multi_sequence dist dist_and_cpu set_sampler multi_output_limit "
                    "multi_sequence_multi_output_dist multi_output_dist_transaction multi_output_sampling_chain multi_output_cpu mixed min_p "
                    "cpu_mixed top_p").split()


@dataclass
class Job:
    """One program with its arguments. `files`: what it needs beside it, name -> content."""
    name: str
    command: list
    stdin: bytes = b""
    files: dict = None
    limit: int = TIME_LIMIT


def jobs():
    llama, moe, gemma, mamba, qwen35 = tiny("llama"), tiny("qwen3moe"), tiny("gemma3"), tiny("mamba"), tiny("qwen35")
    smol, draft = SMOLLM2, tiny("llama-q4_0")
    cache = hub.fill()
    bert = next((cache / "hub").glob("models--ggml-org--models/snapshots/*/bert-bge-small/*.gguf"))
    adapter = cache / "downloads/moe_shakespeare15M.gguf"
    text, generated = {"text.txt": TEXT}, architectures.MODELS
    vocabularies = sorted((SOURCE / "models").glob("ggml-vocab-*.gguf"))

    def job(name, program, *arguments, **more):
        return Job(name, [PROGRAMS / program, *arguments], **more)

    sampled = ["-t", 2, "-c", 512, "--seed", 7]
    greedy = [*sampled, "--temp", 0]
    return [
        job("alloc", "test-alloc"),
        job("batch-alloc", "test-batch-alloc"),
        job("barrier", "test-barrier", 2, 20),
        job("opt", "test-opt"),
        # Each by itself: some of them expect what a random model does not say, and end the program.
        *[job(f"backend-sampler-{test}", "test-backend-sampler", "--model", llama, "--test", test) for test in BACKEND_SAMPLERS],
        job("llama-archs-llama", "test-llama-archs", "-a", "llama", "-s", 1),
        job("llama-archs-moe", "test-llama-archs", "-a", "deepseek", "-s", 1),
        job("llama-archs-hybrid", "test-llama-archs", "-a", "jamba|qwen35|granitehybrid", "-s", 1),
        job("llama-archs-encoder", "test-llama-archs", "-a", "t5|llada|dream", "-s", 1),
        job("save-load-state", "test-save-load-state", "--models", generated / "some"),
        job("recurrent-state-rollback", "test-recurrent-state-rollback", "--models", generated / "some"),
        job("state-restore-fragmented", "test-state-restore-fragmented", "-m", llama, "-t", 2),
        job("thread-safety", "test-thread-safety", "-m", llama, "-p", PROMPT, "-n", 32, "-c", 256, "-ub", 32, "-np", 4, "-t", 2),
        job("autorelease", "test-autorelease", llama),
        job("model-load-cancel", "test-model-load-cancel", llama),
        job("gguf", "test-gguf"),
        job("c", "test-c"),
        job("rope", "test-rope"),
        job("col2im-1d", "test-col2im-1d"),
        job("sampling", "test-sampling"),
        job("log", "test-log"),
        job("mtmd-c-api", "test-mtmd-c-api"),
        job("backend-ops-grad", "test-backend-ops", "grad", "-o", "MUL"),
        job("backend-ops", "test-backend-ops", "test", "-b", "CPU", "-o", "RMS_NORM"),
        *[job(f"tokenizer-0-{path.stem[11:]}", "test-tokenizer-0", path) for path in vocabularies if path.with_suffix(".gguf.inp").exists()],
        job("tokenizer-1-spm", "test-tokenizer-1-spm", SOURCE / "models/ggml-vocab-llama-spm.gguf"),
        job("tokenizer-1-bpe", "test-tokenizer-1-bpe", SOURCE / "models/ggml-vocab-gpt-2.gguf"),
        job("tokenize", "llama-tokenize", "-m", smol, "-p", PROMPT),
        job("tokenize-vocab", "llama-tokenize", "-m", SOURCE / "models/ggml-vocab-gpt-2.gguf", "-p", PROMPT),
        job("simple", "llama-simple", "-m", smol, "-n", 24, PROMPT),
        job("simple-chat", "llama-simple-chat", "-m", llama, "-c", 512, stdin=b"the people\nand more\n\n"),
        job("completion", "llama-completion", "-m", smol, *greedy, "-no-cnv", "-n", 24, "-p", PROMPT, "--no-display-prompt"),
        job("completion-sampled", "llama-completion", "-m", smol, *sampled, "-no-cnv", "-n", 24, "-p", PROMPT),
        job("completion-shift", "llama-completion", "-m", llama, "-t", 2, "-c", 128, "--seed", 7, "-no-cnv", "-n", 300, "-p", PROMPT, "--context-shift", "--ignore-eos"),
        job("completion-lora", "llama-completion", "-m", moe, "--lora", adapter, *greedy, "-no-cnv", "-n", 24, "-p", PROMPT),
        job("completion-session", "llama-completion", "-m", llama, *greedy, "-no-cnv", "-n", 24, "-p", PROMPT, "--prompt-cache", "session.bin", "--prompt-cache-all"),
        job("completion-mamba", "llama-completion", "-m", mamba, *greedy, "-no-cnv", "-n", 24, "-p", PROMPT),
        job("completion-qwen35", "llama-completion", "-m", qwen35, *greedy, "-no-cnv", "-n", 24, "-p", PROMPT),
        job("completion-gemma3", "llama-completion", "-m", gemma, *greedy, "-no-cnv", "-n", 60, "-p", PROMPT),
        job("perplexity", "llama-perplexity", "-m", llama, "-t", 2, "-c", 128, "-b", 256, "-f", "text.txt", files=text),
        job("perplexity-logits", "llama-perplexity", "-m", llama, "-t", 2, "-c", 128, "-f", "text.txt", "--save-all-logits", "logits.bin", files=text),
        job("imatrix", "llama-imatrix", "-m", moe, "-t", 2, "-c", 128, "-f", "text.txt", "-o", "imatrix.gguf", files=text),
        job("eval-callback", "llama-eval-callback", "-m", llama, *sampled, "-p", PROMPT),
        job("debug", "llama-debug", "-m", llama, *sampled, "-p", PROMPT),
        job("embedding", "llama-embedding", "-m", bert, "-t", 2, "-p", PROMPT, "--embd-output-format", "json"),
        job("embedding-last", "llama-embedding", "-m", llama, "-t", 2, "-p", PROMPT, "--pooling", "last", "--embd-output-format", "array"),
        job("batched", "llama-batched", "-m", llama, "-t", 2, "-p", PROMPT, "-n", 60, "-np", 3, "--seed", 7, "-kvu"),
        job("batched-bench", "llama-batched-bench", "-m", llama, "-t", 2, "-c", 512, "-npp", "32", "-ntg", "8", "-npl", "1,2"),
        Job("bench", [PINNED / "llama-bench", "-m", llama, "-t", "2", "-p", "32", "-n", "8", "-r", "1"]),
        job("lookahead", "llama-lookahead", "-m", llama, "-t", 2, "-c", 1024, "-n", 24, "-p", PROMPT, "--temp", 0),
        job("lookup", "llama-lookup", "-m", llama, *greedy, "-n", 24, "-p", PROMPT),
        job("parallel", "llama-parallel", "-m", llama, "-t", 2, "-c", 2048, "-np", 2, "-ns", 4, "-n", 16, "--seed", 7, "--temp", 0, "-kvu"),
        job("passkey", "llama-passkey", "-m", llama, "-t", 2, "-c", 1024, "--junk", 10, "-b", 256, "--pos", 3, "--keep", 8),
        job("speculative", "llama-speculative", "-m", llama, "-md", draft, *greedy, "-n", 24, "-p", PROMPT),
        job("speculative-simple", "llama-speculative-simple", "-m", llama, "-md", draft, "--spec-type", "draft-simple", *greedy, "-n", 24, "-p", PROMPT),
        job("finetune", "llama-finetune", "-m", tiny("qwen3"), "-t", 2, "-c", 64, "-b", 64, "-ub", 64, "-f", "text.txt", "-o", "tuned.gguf", "-epochs", 1, files=text),
        job("cvector", "llama-cvector-generator", "-m", llama, "-t", 2, "-c", 512, "--positive-file", "p.txt", "--negative-file", "n.txt", "-o", "v.gguf",
            files={"p.txt": "the people are here\n", "n.txt": "the people were not\n"}),
        job("fit-params", "llama-fit-params", "-m", smol, "-c", 512),
        job("quantize", "llama-quantize", llama, "out.gguf", "Q8_0", 2),
        job("quantize-requant", "llama-quantize", "--allow-requantize", smol, "out.gguf", "Q4_0", 2),
        job("gguf-split", "llama-gguf-split", "--split-max-tensors", 12, llama, "part"),
        job("export-lora", "llama-export-lora", "-m", moe, "--lora", adapter, "-o", "merged.gguf"),
        job("gguf-write", "llama-gguf", "out.gguf", "w"),
    ]


NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
# Lines that hold a time, a rate or an address are compared without their numbers.
TIMED = re.compile(r"\b(ms|us|sec|seconds?|s|t/s|tokens per second|speed|tok/s|GB/s|GFLOPS|runs?/s)\b|[\d.]+(?:us|ms|s)\b|time|0x[0-9a-f]{6,}|\|.*±", re.I)


def masked(output):
    lines = []
    for line in output.decode(errors="replace").splitlines():
        line = re.sub(r"^\d+\.\d+\.\d+\.\d+ ", "", line)
        line = re.sub(r"/programs/([^/ ]+)/(plain|plain-again|detailed|verbose|capture)/", r"/programs/\1/*/", line)
        lines.append(re.sub(r"\s+", " ", re.sub(r"0x[0-9a-f]+|" + NUMBER, "#", line)) if TIMED.search(line) else line)
    return lines


def equal(a, b):
    return a == b


def equal_until_cut(a, b):
    """llama.cpp's log is written by a thread of its own, which does not always get to its end: equal as far as both go."""
    n = max(min(len(a), len(b)) - 1, 0)
    return a[:n] == b[:n]


def written(ended, job):
    """Name -> digest of every file that the program wrote."""
    folder = ended.folder / "files"
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in (job.files or {})}


class Judge:
    """One program: its plain runs, and what is different in a mode."""

    def __init__(self, job):
        self.job = job
        self.plain = [self.run(PLAIN), self.run(AGAIN)]
        self.n_streams = self.n_bytes = 0

    def run(self, mode):
        folder = OUT / self.job.name / mode.name
        shutil.rmtree(folder, ignore_errors=True)
        ended = run(self.job.command, mode, folder, self.job.limit, stdin=self.job.stdin, files=self.job.files, extra={"GGML_NO_BACKTRACE": "1"})
        ended.said, ended.files = masked(ended.stdout), written(ended, self.job)
        return ended

    def alike(self):
        """How what is printed can be compared; nothing where plain runs say different things."""
        first, *rest = self.plain
        return next((way for way in (equal, equal_until_cut) if all(way(first.said, other.said) for other in rest)), None)

    def same_files(self):
        return all(other.files == self.plain[0].files for other in self.plain)

    def different(self, ended):
        """What of a run is different from every plain run, as sentences."""
        wrong, first, way = [], self.plain[0], self.alike()
        if way and not way(first.said, ended.said):
            pairs = [(a, b) for a, b in zip(first.said, ended.said) if a != b]
            wrong.append(f"stdout differs, {len(ended.said)} lines for {len(first.said)}: {pairs[:1]}")
        if self.same_files() and ended.files != first.files:
            wrong.append(f"files differ: {sorted(ended.files.items() ^ first.files.items())[:4]}")
        return wrong

    def judge(self):
        """(state, what is wrong, facts)."""
        first, again = self.plain
        if first.status == "did not end":
            return "excluded", [], f"the plain run does not end within {self.job.limit} s"
        if first.status != again.status:
            return "excluded", [], f"two plain runs end with {first.status} and {again.status}"
        wrong = [f"{mode.name}: {sentence}" for mode in (DETAILED, VERBOSE, CAPTURE) for sentence in self.mode(mode)]
        facts = f"ends with {first.status}, {len(first.said)} lines, {first.seconds:.1f} s, {self.n_streams} streams with {self.n_bytes / 1e6:.1f} MB"
        notes = [what for what, same in (("stdout", self.alike() is not None), ("files", self.same_files())) if not same]
        if self.alike() is equal_until_cut:
            facts += "; stdout as far as it goes"
        if notes:
            facts += f"; differs between plain runs: {', '.join(notes)}"
        return "FAILED" if wrong else "ok", wrong, facts

    def mode(self, mode):
        """What is wrong with the program in a mode."""
        ended, first = self.run(mode), self.plain[0]
        if ended.status != first.status:
            return [f"ends with {ended.status}, plain {first.status}: {' | '.join(ended.stderr.strip().splitlines()[-2:])[-300:]}"]
        for _ in range(ATTEMPTS):
            # Some programs take their seed from the clock: plain runs in other seconds tell.
            if not self.different(ended):
                break
            time.sleep(1)
            self.plain.append(self.run(AGAIN))
        wrong = self.different(ended) + [line for line in ended.ours if "panic" in line]
        for log in ended.folder.glob("*.jsonl"):
            wrong += [] if isinstance(ended.status, str) else wrong_with_log(log)
        for stream in ended.folder.glob("*.stream"):
            sentences, account = wrong_with_stream(stream, contents=stream.stat().st_size < MOST_READ)
            wrong += [] if isinstance(ended.status, str) else sentences
            self.n_bytes += (account or {}).get("captured", {}).get("bytes", 0)
            self.n_streams += 1
        return wrong


def some_models():
    """A folder with the models that the tests of saved states run over: one of each kind of memory."""
    all_models, folder = architectures.models(), architectures.MODELS / "some"
    folder.mkdir(exist_ok=True)
    for name in ("llama-dense", "llama-moe", "mamba2-dense", "jamba-dense", "gemma2-dense", "deepseek2-moe", "qwen35-dense", "lfm2-dense"):
        link = folder / f"{name}.gguf"
        if name in all_models and not link.exists():
            link.symlink_to(all_models[name])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    words = parser.parse_args().words
    assert LIBRARY.exists(), f"{LIBRARY} is missing: build it with `make lib`"
    began, count = time.monotonic(), {"ok": 0, "FAILED": 0, "excluded": 0, "missing": 0}
    some_models()
    for job in jobs():
        if words and not any(word in job.name for word in words):
            continue
        if not job.command[0].exists():
            state, wrong, facts = "missing", [], f"{job.command[0]} is not built"
        else:
            try:
                state, wrong, facts = Judge(job).judge()
            except (AssertionError, ValueError, OSError) as error:
                state, wrong, facts = "FAILED", [f"the judge itself failed: {error!r}"[:500]], ""
        count[state] += 1
        print(f"{job.name:28} {state:8} {facts}", flush=True)
        by_sentence = {}
        for sentence in wrong:
            mode, _, rest = sentence.partition(": ")
            by_sentence.setdefault(rest, []).append(mode)
        for sentence, modes in by_sentence.items():
            print(f"    {', '.join(modes)}: {sentence}", flush=True)
        if state == "ok":
            shutil.rmtree(OUT / job.name, ignore_errors=True)
    print(f"{count['ok']} passed, {count['FAILED']} failed, {count['excluded']} excluded, {count['missing']} not built; {time.monotonic() - began:.0f} s")
    return 1 if count["FAILED"] or count["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
