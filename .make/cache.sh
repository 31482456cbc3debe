# Where downloads and builds are kept outside the clone, so that a second checkout does not pay again. Sourced by its siblings.
: "${LRI_CACHE:=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/llama-resource-instrumentation}"
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$top/target/venv
pinned_commit=0c1e57098bba43ac29e6e3b677cdceebdd22334f   # llama.cpp v0.5.0-dev, 1 Oct 2026
mkdir -p "$LRI_CACHE" "$top/target"

say() { printf '\033[36m[make]\033[0m %s\n' "$*" >&2; }
die() { printf '\033[31m[make]\033[0m %s\n' "$*" >&2; exit 1; }
# One build at a time per cache entry; a second clone waits for the first and then uses its result.
lock() { exec 9>"$LRI_CACHE/$1.lock"; flock 9 || die "cannot lock $LRI_CACHE/$1.lock"; }
