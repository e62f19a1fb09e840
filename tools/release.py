"""Checks that a tag may become a release:  python tools/release.py v1.2.3

The tag is `v` and the version that the package states, and CHANGELOG.md has a dated section for that version.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(tag: str, package: str, changelog: str) -> list[str]:
    """What keeps a tag from becoming a release; the last two are the texts of the package's `__init__.py` and the changelog."""
    version = tag.removeprefix("v")
    found = []
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        found.append(f"the tag {tag!r} is not 'v' and a version, as 'v1.2.3'")
    stated = re.findall(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    if stated != [version]:
        found.append(f"sparkdiff/__init__.py states version {', '.join(stated) or 'none'}, the tag is {tag}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    return found


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("python tools/release.py v1.2.3")
    texts = [(ROOT / name).read_text("utf-8") for name in ("sparkdiff/__init__.py", "CHANGELOG.md")]
    if found := faults(sys.argv[1], *texts):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
