#!/usr/bin/env bash
# llama-server of the pinned commit with patches/, linked with this library, at target/llama.cpp-patched/bin; its other libraries are those
# of the plain build. Cached outside the clone by commit, flags, patches and header.
set -euo pipefail; source "$(dirname "$0")/cache.sh"
library=${LRI_BUILT:-${CARGO_TARGET_DIR:-$top/target}/release}/libllama_resource_instrumentation.so
[ -f "$library" ] || die "$library is not there; run \`make lib\` first"
plain=$(readlink -f "$top/target/llama.cpp")
[ -f "$plain/.complete" ] || die "target/llama.cpp is not there; run \`make llama\` first"
header=$top/include/llama-resource-instrumentation.h
patches=("$top"/patches/*.patch)
key=$(cat "$top/patches/CMakeLists.txt" "${patches[@]}" "$header" | sha256sum | cut -c1-12)
out=$LRI_CACHE/$(basename "$plain")-patched-$key
lock "$(basename "$out")"
if [ ! -f "$out/.complete" ]; then
  say "building the patched llama-server (about 80 CPU-seconds; kept in $out)"
  rm -rf "$out"; mkdir -p "$out"
  export PATH=$venv/bin:$PATH
  log=$top/target/llama-patched-build.log
  git -C "$top/llama.cpp" archive "$pinned_commit" tools/server | tar -x -C "$out"
  # Outside any repository: inside one, git would skip the files of a folder that is none of its own.
  (cd "$out" && GIT_CEILING_DIRECTORIES=$LRI_CACHE git apply --whitespace=nowarn "${patches[@]}") || die "patches/ do not apply to $pinned_commit"
  LRI_BUILT=$(dirname "$library") "$top/.make/install.sh" "$out/prefix" >"$log"
  { cmake -S "$top/patches" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPATCHED="$out/tools/server" -DSOURCE="$top/llama.cpp" -DPLAIN="$plain" \
      -DLLAMA_RESOURCE_INSTRUMENTATION=ON -DLLAMA_RESOURCE_INSTRUMENTATION_DIR="$out/prefix" &&
    ninja -C "$out/build" -j "${LRI_JOBS:-$(nproc)}" llama-server; } >>"$log" 2>&1 </dev/null || { tail -30 "$log" >&2; die "the patched build failed; whole log: $log"; }
  touch "$out/.complete"
fi
# The server and its own library are copies, since a program's $ORIGIN is where its file really is; the rest is linked. A newly built
# library of ours is taken at once.
bin=$top/target/llama.cpp-patched/bin
rm -rf "$bin"; mkdir -p "$bin"
ln -s "$plain"/bin/lib*.so* "$bin"
cp -f --remove-destination "$out"/build/bin/llama-server "$out"/build/bin/libllama-server-impl.so "$bin"
ln -sf "$library" "$bin/libllama_resource_instrumentation.so.$(sed -n 's/^#define LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION //p' "$header")"
