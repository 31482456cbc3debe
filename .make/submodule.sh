#!/usr/bin/env bash
# llama.cpp at the pinned commit: from GitHub, or, where that cannot be reached, from the git objects in llama-cpp-python's source package.
set -euo pipefail; source "$(dirname "$0")/cache.sh"
cd "$top"
have() { [ -f llama.cpp/CMakeLists.txt ] && [ "$(git -C llama.cpp rev-parse HEAD 2>/dev/null)" = "$pinned_commit" ]; }
have && exit 0
say "llama.cpp $pinned_commit (submodule)"
# A short time limit: without a route to GitHub a connection may hang instead of failing.
if GIT_TERMINAL_PROMPT=0 timeout "${LRI_GITHUB_TIMEOUT:-300}" git -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=20 -c http.connectTimeout=15 \
    submodule update --init --depth 1 llama.cpp >&2 2>/dev/null && have; then exit 0; fi
say "GitHub cannot be reached; taking the same commit from the source package of llama-cpp-python 0.3.36 (git verifies the hash)"
lock submodule
objects=$LRI_CACHE/llama-cpp-python-0.3.36/.git/modules/vendor/llama.cpp
if [ ! -f "$objects/HEAD" ]; then
  part=$(mktemp -d "$LRI_CACHE/part.XXXXXX"); trap 'rm -rf "$part"' EXIT
  "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d "$part" llama-cpp-python==0.3.36 >&2 \
    || die "neither GitHub nor the Python package index gives llama.cpp $pinned_commit; check the network and run make again"
  tar -xzf "$part"/llama_cpp_python-0.3.36.tar.gz -C "$part"
  rm -rf "$LRI_CACHE/llama-cpp-python-0.3.36"; mv "$part/llama_cpp_python-0.3.36" "$LRI_CACHE/llama-cpp-python-0.3.36"
fi
git submodule deinit -f llama.cpp >/dev/null 2>&1 || true
rm -rf "$(git rev-parse --git-dir)/modules/llama.cpp"
git -c init.defaultBranch=main -c advice.defaultBranchName=false -c protocol.file.allow=always -c submodule.llama.cpp.url="$objects" submodule update --init --depth 1 llama.cpp >&2
git config submodule.llama.cpp.url https://github.com/ggml-org/llama.cpp.git
have || die "llama.cpp is not at $pinned_commit after checkout; remove the directory llama.cpp and run make again"
