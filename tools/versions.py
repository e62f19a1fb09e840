"""Writes docs/versions.md, the table of the tested versions, from the heads and the pins of constraints/*.txt.

python tools/versions.py          # writes the file
python tools/versions.py --check  # exit code 1 where the file isn't what this would write
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
PACKAGES = {
    "pyspark": "Spark",
    "torch": "torch",
    "pyarrow": "pyarrow",
    "numpy": "numpy",
    "pandas": "pandas",
    "petastorm": "Petastorm",
}
CI = {
    "petastorm": "all tests but those of each Spark; nightly these, too",
    "modern": "parity, Connect; nightly all that another Spark can change",
    "spark35": "parity; nightly stages of one's own and the laws of each stage, too",
}
HEAD = """# Tested versions

`constraints/*.txt` pin every package of a tested stack; `python tools/versions.py` writes this page from them.

"""
TAIL = """
CI runs on Linux, Java 17 and Python 3.11; the other versions of Python were tried by hand. Versions between those of the table
are expected to work, but are not tested.

Without Petastorm, which is optional, sparkdiff reads its cache with Arrow. Petastorm needs pyarrow 14, numpy 1 and Python up to
3.11.

## Install a tested stack

<!-- not run: it installs from the package index; tests/jobs/test_wheel.py installs the wheel -->

```bash
pip install -c constraints/modern.txt ".[cli,report]"        # in a checkout
pip install -c constraints/petastorm.txt ".[cli,report,petastorm]"   # with Petastorm
```

On Linux, torch brings several gigabytes of CUDA. Without a GPU, take it from the index that has it without CUDA:

<!-- not run: it installs from that index -->

```bash
pip install -c constraints/modern.txt ".[cli,report]" --extra-index-url https://download.pytorch.org/whl/cpu
```

`constraints/hashes/` holds the same pins with the sha256 of their files. torch is missing there, because its file depends on the
index:

<!-- not run: it installs from both indexes -->

```bash
pip install --require-hashes --no-deps -r constraints/hashes/modern.txt
pip install torch==TORCH --index-url https://download.pytorch.org/whl/cpu
pip install --no-deps .
```
"""


def cells(name: str, text: str) -> list[str]:
    """A stack's row of the table; `text` is its constraints file."""
    ((python, java),) = re.findall(r"Python (3[\d.]+(?: (?:to|or) 3[\d.]+)?), Java (\d+)", text)
    pins = pinned(text)
    return [f"`{name}`", *(pins.get(package, "–") for package in PACKAGES), python, java, CI[name]]


def pinned(text: str) -> dict[str, str]:
    """The version of each package that has one for all versions of Python."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, re.MULTILINE))


def page() -> str:
    texts = {name: (ROOT / "constraints" / f"{name}.txt").read_text("utf-8") for name in CI}
    names = ["Stack", *PACKAGES.values(), "Python", "Java", "What CI runs"]
    rows = [names, ["---"] * len(names), *(cells(*item) for item in texts.items())]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return HEAD + table + TAIL.replace("TORCH", pinned(texts["modern"])["torch"])


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif PAGE.read_text("utf-8") != page():
        raise SystemExit("docs/versions.md is not what `python tools/versions.py` would write")


if __name__ == "__main__":
    main()
