#!/usr/bin/env bash
# llama-server, llama-bench and rpc-server of the pinned commit, plain, cached outside the clone; linked at target/llama.cpp.
#
#   .make/llama.sh --cuda         the same with the CUDA backend, for this machine's GPU; linked at target/llama.cpp-cuda
set -euo pipefail; source "$(dirname "$0")/cache.sh"
flags=(-DCMAKE_BUILD_TYPE=Release -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF
       -DLLAMA_BUILD_EXAMPLES=OFF -DGGML_RPC=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON)
targets=(llama-server llama-bench ggml-rpc-server)
link=$top/target/llama.cpp what="llama-server and llama-bench" minutes=11
if [ "${1:-}" = --cuda ]; then
  PATH=$PATH:/usr/local/cuda/bin
  nvcc=$(command -v nvcc) || die "there is no nvcc: install the CUDA toolkit, or put its bin folder into PATH"
  # Without a GPU to ask, cmake takes the architectures that llama.cpp lists, which takes hours.
  nvidia-smi -L >/dev/null 2>&1 || die "nvidia-smi shows no GPU: the build is made for this machine's"
  flags+=(-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native "-DCMAKE_CUDA_COMPILER=$(readlink -f "$nvcc")")
  link=$top/target/llama.cpp-cuda what="llama-server with CUDA" minutes=75
fi
# -march=native is llama.cpp's default, so the processor is part of the key.
key=$(printf '%s\n' "$pinned_commit" "${flags[@]}" "$(${CC:-cc} -dumpfullversion 2>/dev/null)" "$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo)" | sha256sum | cut -c1-12)
out=$LRI_CACHE/llama.cpp-${pinned_commit:0:9}-$key
lock "llama-$key"
if [ ! -f "$out/.complete" ]; then
  say "building $what (about $minutes CPU-minutes, once; kept in $out)"
  if [ -f "$out/CMakeCache.txt" ] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$top/llama.cpp" "$out/CMakeCache.txt"; then rm -rf "$out"; fi
  export PATH=$venv/bin:$PATH
  log=$top/target/llama-build.log
  cmake -S "$top/llama.cpp" -B "$out" -G Ninja "${flags[@]}" >"$log" 2>&1 || { tail -30 "$log" >&2; die "cmake failed; whole log: $log"; }
  # Progress on one line where a person looks, every 100th step where a log does.
  if ! ninja -C "$out" -j "${LRI_JOBS:-$(nproc)}" "${targets[@]}" 2>&1 | tee -a "$log" | { [ -t 2 ] && awk '{printf "\r%-70.70s", $0 > "/dev/stderr"} END {print "" > "/dev/stderr"}' || awk '/^\[[0-9]*00\// {print > "/dev/stderr"}'; }; then
    tail -30 "$log" >&2; die "the build of llama.cpp failed; whole log: $log"
  fi
  [ -x "$out/bin/llama-server" ] || { tail -30 "$log" >&2; die "the build of llama.cpp left no llama-server; whole log: $log"; }
  touch "$out/.complete"
fi
[ "$(readlink "$link" 2>/dev/null)" = "$out" ] || ln -sfn "$out" "$link"
