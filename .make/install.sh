#!/bin/sh
# Installs what `cargo build --release` has made: library, header, program, pkg-config and CMake files. The prefix may be moved later.
#
#     .make/install.sh [PREFIX]      PREFIX=/usr/local; DESTDIR and CARGO_TARGET_DIR are respected
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
prefix=${1:-${PREFIX:-/usr/local}}
to=${DESTDIR:-}$prefix
built=${LRI_BUILT:-${CARGO_TARGET_DIR:-$root/target}/release}

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
abi=$(sed -n 's/^#define LLAMA_RESOURCE_INSTRUMENTATION_ABI_VERSION //p' "$root/include/llama-resource-instrumentation.h")
name=libllama_resource_instrumentation.so

if [ ! -f "$built/$name" ]; then
    echo "install: $built/$name is not there; run \`cargo build --release\` first" >&2
    exit 1
fi

fill() {
    sed -e "s/@VERSION@/$version/g" -e "s/@ABI@/$abi/g" "$root/include/$1" > "$2"
    chmod 644 "$2"
}

install -d "$to/lib/pkgconfig" "$to/lib/cmake/llama_resource_instrumentation" "$to/include" "$to/bin"
install -m 755 "$built/$name" "$to/lib/$name.$abi"
ln -sf "$name.$abi" "$to/lib/$name"
install -m 644 "$root/include/llama-resource-instrumentation.h" "$to/include/"
fill llama-resource-instrumentation.pc.in "$to/lib/pkgconfig/llama-resource-instrumentation.pc"
fill llama_resource_instrumentation-config.cmake.in \
    "$to/lib/cmake/llama_resource_instrumentation/llama_resource_instrumentation-config.cmake"
fill llama_resource_instrumentation-config-version.cmake.in \
    "$to/lib/cmake/llama_resource_instrumentation/llama_resource_instrumentation-config-version.cmake"
if [ -f "$built/llama-resource" ]; then
    install -m 755 "$built/llama-resource" "$to/bin/"
fi
echo "installed version $version (ABI $abi) under $to"
