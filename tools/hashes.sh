#!/usr/bin/env bash
# Writes constraints/hashes/STACK.txt: the pins of a stack with the sha256 of all their files, for `pip install --require-hashes`.
#   tools/hashes.sh           all stacks; needs uv (`pip install uv`), which asks the package index; two seconds a stack
# Without torch: the index that it comes from decides about its file (with or without CUDA), and so about its hash.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p constraints/hashes
for pins in constraints/*.txt; do
    stack=$(basename "$pins" .txt) oldest=3.11
    if [ "$stack" = spark35 ]; then oldest=3.10; fi
    grep -v '^torch==' "$pins" | uv pip compile --quiet --generate-hashes --universal --no-deps --no-annotate --no-header \
        --python-version "$oldest" --output-file "constraints/hashes/$stack.txt" - > /dev/null
done
