#!/usr/bin/env bash
# Writes the bill of materials of each pinned stack (CycloneDX, JSON) to a folder:  tools/sbom.sh [dist]
# Needs cyclonedx-bom (`pip install cyclonedx-bom`) and no network. The hashes are those of constraints/hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-dist}
mkdir -p "$folder"
for pins in constraints/*.txt; do
    stack=$(basename "$pins" .txt)
    { cat "constraints/hashes/$stack.txt"; grep '^torch==' "$pins"; } | cyclonedx-py requirements --pyproject pyproject.toml \
        --output-reproducible --output-format JSON --output-file "$folder/sbom-$stack.cdx.json" -
    echo "$folder/sbom-$stack.cdx.json"
done
