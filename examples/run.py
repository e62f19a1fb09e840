"""Runs the pipelines of the gallery through `sparkdiff improve`, and writes docs/gallery.md from their summaries.

    python examples/run.py [NAME ...]

Budgets are passes over the rows, so that no clock decides and the page doesn't depend on the machine. What a run took is not on
it. With names, only these run; the sections of the others stay as they are.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
HERE, PAGE = ROOT / "examples", ROOT / "docs" / "gallery.md"
NAMES = ("bikes", "digits", "text", "trees", "shops")
HEAD = """# Gallery: five pipelines and what became of them

Each was run through [`sparkdiff improve`](improving.md) as it stands in `examples/`. `python examples/run.py` writes this page
from the summaries of the runs. Budgets are passes over the training rows, so that two runs give the same. `change` is that of the
loss on validation rows, which decide; nothing was chosen by test rows. `flips` is the share of rows whose label changes, or whose
prediction moves by more than a tenth; `serving` the cost of a row relative to the original's.
"""


def run(name: str, folder: Path) -> dict[str, Any]:
    """The summary of one job."""
    environment = {"SPARK_CONF_DIR": str(ROOT / "conf"), "PYSPARK_PYTHON": sys.executable, **os.environ}
    command = [sys.executable, "-m", "sparkdiff", "improve", "--config", str(HERE / f"{name}.yaml")]
    subprocess.run([*command, f"output.path={folder}"], cwd=ROOT, env=environment, check=True)
    return dict(json.loads((folder / "summary.json").read_text()))


def section(name: str, summary: dict[str, Any]) -> str:
    """A heading, what the pipeline is, the table of the run, and why."""
    text = (HERE / f"{name}.yaml").read_text()
    title, *about = [line[2:] for line in text.split("\n\n")[0].splitlines()]
    budget = yaml.safe_load(text)["improver"]["budget"]
    rows = [["", "validation", "test", "change", "flips", "serving", "p", ""]]
    rows += [row_of(row) for row in summary["table"]]
    table = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([
        f"## {title}", "", f"`sparkdiff improve --config examples/{name}.yaml`, {budget}.", *about[:-1], "",
        f"{summary['metric']}, {summary['metricDirection']} is better:", "", table[0], "|---" * len(rows[0]) + "|", *table[1:],
        "", f"Decision: {summary['decision']}. {summary['explanation']}", "",
    ])  # fmt: skip


def row_of(row: dict[str, Any]) -> list[str]:
    """The cells of one row of a summary's table."""
    values = [f"{row['value']:.4g}", "" if row["test"] is None else f"{row['test']:.4g}"]
    if row["arm"] is None:
        return [row["name"], *values, "", "", "1.0x", "", ""]
    flips = "" if row["changed"] is None else f"{row['changed']:.1%}"
    p = "" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    name = row["name"].replace("|", "\\|")
    return [name, *values, f"{row['change']:+.1%}", flips, f"{row['serving']:.1f}x", p, ", ".join(row["offers"])]


def parts_of(page: Path) -> dict[str, str]:
    """The sections of the page by the names of their jobs."""
    text = page.read_text() if page.exists() else ""
    parts = [f"## {part}" for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    return {m[1]: part for part in parts if (m := re.search(r"examples/(\w+)\.yaml", part))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page")
    given = parser.parse_args()
    if unknown := set(given.names) - {*NAMES}:
        parser.error(f"no such example: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in given.names or NAMES:
        found = section(name, run(name, ROOT / "runs" / "examples" / name))
        parts = parts_of(given.page) | {name: found}
        temporary = given.page.with_suffix(".tmp")
        temporary.write_text("\n".join([HEAD, *(parts[n].rstrip("\n") + "\n" for n in NAMES if n in parts)]))
        temporary.replace(given.page)


if __name__ == "__main__":
    main()
