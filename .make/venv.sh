#!/usr/bin/env bash
# The Python environment under target/venv: cmake, ninja, libclang, gguf as wheels; nothing is installed system-wide.
set -euo pipefail; source "$(dirname "$0")/cache.sh"
want=$(cat "$top/.make/requirements.txt")
[ -x "$venv/bin/python" ] && [ "$(cat "$venv/.requirements" 2>/dev/null)" = "$want" ] && exit 0
python3 -c 'import venv, sys; sys.exit(sys.version_info < (3, 9))' || die "Python 3.9 or newer with the venv module is needed (Debian: python3-venv)"
say "Python wheels into target/venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$top/.make/requirements.txt"
printf '%s\n' "$want" > "$venv/.requirements"
