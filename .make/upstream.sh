#!/usr/bin/env bash
# llama.cpp's own tests, tools and examples, compiled one file at a time against the libraries of the pinned build, so that no
# second build of llama.cpp is needed. Cached outside the clone; linked at target/upstream-bin.
#
#   .make/upstream.sh [NAME...]     all of tests/upstream/programs.txt, or these
set -euo pipefail; source "$(dirname "$0")/cache.sh"
plain=$(readlink -f "$top/target/llama.cpp")
[ -f "$plain/.complete" ] || die "target/llama.cpp is not there; run \`make llama\` first"
source=$top/llama.cpp
compiler=${CXX:-c++}
# What is tested is in the libraries; the programs themselves are compiled for speed of the build.
flags=(-std=c++17 -O1 -w -DGGML_BACKEND_SHARED -DGGML_SHARED -DGGML_USE_CPU -DGGML_USE_RPC -DLLAMA_SHARED -DLLAMA_SUBPROCESS
       -I"$source/include" -I"$source/ggml/include" -I"$source/ggml/src" -I"$source/src" -I"$source/common" -I"$source/vendor"
       -I"$source/tools/server" -I"$source/tools/mtmd" -I"$source/tests" -I"$source")
libraries=(-L"$plain/bin" -lllama-common -lmtmd -lllama -lggml -lggml-cpu -lggml-base -lpthread
           "-Wl,-rpath,$plain/bin" "-Wl,-rpath-link,$plain/bin")
# The paths of the clone are not part of the key: a second clone has the same sources.
key=$(printf '%s\n' "$(basename "$plain")" "${flags[@]//"$top"/}" | sha256sum | cut -c1-12)
out=$LRI_CACHE/upstream-${pinned_commit:0:9}-$key
mkdir -p "$out/bin"
lock "$(basename "$out")"
log=$top/target/upstream-build.log; : >"$log"
wanted=" $* " said= failed=()
while read -r name files; do
  case $name in ''|'#'*) continue ;; esac
  [ $# = 0 ] || [[ $wanted == *" $name "* ]] || continue
  [ -x "$out/bin/$name" ] && continue
  [ -n "$said" ] || { say "compiling llama.cpp's own tests and tools (about 8 CPU-minutes, once; kept in $out)"; said=1; }
  paths=(); for file in $files; do paths+=("$source/$file"); done
  extra=(); case $files in *.c) extra=(-x c -std=c11) ;; esac
  part=$out/bin/.$name.part
  # shellcheck disable=SC2086 # CXX may be a command with arguments
  if [[ $files == *.c ]]; then ${CC:-cc} "${flags[@]:1}" "${paths[@]}" -o "$part" "${libraries[@]}" >>"$log" 2>&1 && mv "$part" "$out/bin/$name" || failed+=("$name")
  else $compiler "${flags[@]}" "${paths[@]}" -o "$part" "${libraries[@]}" >>"$log" 2>&1 && mv "$part" "$out/bin/$name" || failed+=("$name"); fi
done <"$top/tests/upstream/programs.txt"
# The server tests' own imports, on top of the project's environment.
packages=$top/target/upstream-venv want=$(cat "$top/tests/upstream/requirements.txt")
if [ $# = 0 ] && [ "$(cat "$packages/.requirements" 2>/dev/null)" != "$want" ]; then
  say "Python wheels for llama.cpp's server tests"
  "$venv/bin/python" -m venv "$packages"
  site=$("$packages/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/project.pth"
  "$packages/bin/pip" install --quiet --disable-pip-version-check -r "$top/tests/upstream/requirements.txt"
  printf '%s\n' "$want" >"$packages/.requirements"
fi
[ "$(readlink "$top/target/upstream-bin" 2>/dev/null)" = "$out/bin" ] || ln -sfn "$out/bin" "$top/target/upstream-bin"
[ ${#failed[@]} = 0 ] || die "not compiled: ${failed[*]}; whole log: $log"
