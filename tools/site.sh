#!/usr/bin/env bash
# Builds the site in site/ by MkDocs; a warning, a missing page and a dead link end it. `make site` sets up VENV first.
# MkDocs gets an environment of its own, VENV-site, with the pins of the extra `docs`. The package and what it imports come from VENV,
# because pages such as that of all options are written from the code.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
site=$venv-site
wanted=$("$venv/bin/python" - <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["docs"], sep="\n")
PYTHON
)

if [ "$wanted" != "$(cat "$site/packages" 2>/dev/null)" ]; then
    "$venv/bin/python" -m venv --clear "$site"
    "$site/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile $wanted
    places='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$venv/bin/python" -c "$places" > "$("$site/bin/python" -c "$places")/behind.pth"
    printf '%s\n' "$wanted" > "$site/packages"
fi
PYTHONPATH=$PWD NO_MKDOCS_2_WARNING=1 "$site/bin/python" -m mkdocs build --quiet --strict
echo "site/index.html"
