#!/bin/sh
# Builds the library twice, from scratch, in two folders, and compares what came out.
#
#   .make/reproducible.sh [FOLDER]     where to build; default target/reproducible, removed afterwards unless they differ
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/reproducible}
library=release/libllama_resource_instrumentation.so
rm -rf "$folder"
for build in first second; do
    # Where cargo keeps sources and what the compiler is told of the folders must not stand in the library.
    CARGO_TARGET_DIR="$PWD/$folder/$build" cargo build --release --lib --no-default-features --locked --quiet
done
if cmp "$folder/first/$library" "$folder/second/$library"; then
    sha256sum "$folder/first/$library" | cut -d' ' -f1
    rm -rf "$folder"
else
    echo "the two builds differ: $folder/first/$library and $folder/second/$library are kept" >&2
    exit 1
fi
