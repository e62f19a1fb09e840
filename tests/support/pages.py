"""The pages that one reads, their blocks of code, and which tests run some of these."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"(?:<!-- (not run: [^>]+?) -->\n+)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "foreign.md": "tests/importers/test_home.py",
    "own_stages.md": "tests/api/stages/test_own_stages.py",
    "weekly.md": "tests/jobs/test_weekly.py",
}
"""A page whose blocks are run by a test of their own."""
LINES = {
    'pip install ".[cli,report]"': "tests/jobs/test_wheel.py",
    "sparkdiff prepare": "tests/jobs/test_prepare.py",
    "make demo": "tests/jobs/test_demo.py",
    "make test": ".ci/run",
}
"""How a command begins that is run elsewhere, and where."""


class Block(NamedTuple):
    """A block of code of a page; `mark` is its comment "not run: why"."""

    page: Path
    line: int
    mark: str | None
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(Block(page, line, match[1], match[2], match[3]))
    return found
