#!/usr/bin/env bash
# What `make test` has left out, and why: by reason, with the tests counted.
set -euo pipefail; cd "$(dirname "$0")/.."
[ -s target/skipped.txt ] || { echo "No test was skipped."; exit 0; }
echo "Skipped, with the number of tests and the reason:"
sed -E 's/^[^ ]+: //' target/skipped.txt | sort | uniq -c | sort -rn
echo "target/skipped.txt names them."
