"""Runs the pipelines of the gallery through `sparkdiff improve`, and writes docs/gallery.md and the reports in docs/gallery.

    python examples/run.py [NAME ...]

With names, only these run; the sections and reports of the others stay as they are. Budgets are times, so the figures of two runs
differ a little. `make gallery` does the same.
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

Each was run through [`sparkdiff improve`](improving.md), as it stands in `examples/`. `make gallery` writes this page and the
[reports](report.md) from the runs. Most budgets are times, so the figures of your runs will differ.

`change` is that of the loss on the rows that decide; nothing was chosen by test rows. `flips` is the share of rows whose label
changes, or whose prediction moves by more than a tenth. `serving` is the cost of a row relative to the original's.
"""
OFFERS = {"best": "**best**", "sameForm": "same stages", "asCheap": "as cheap", "simpler": "simpler, and no worse"}
SHOWN = 6
"""Rows of a table, besides the original's and those that are offered; the report has all."""


def run(name: str, folder: Path) -> dict[str, Any]:
    """The summary of one job."""
    environment = {**os.environ, "SPARK_CONF_DIR": str(ROOT / "conf"), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-m", "sparkdiff", "improve", "--config", str(HERE / f"{name}.yaml")]
    subprocess.run([*command, f"output.path={folder}"], cwd=ROOT, env=environment, check=True)
    return dict(json.loads((folder / "summary.json").read_text()))


def portable(text: str) -> str:
    """A text without the path of this checkout."""
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")


def section(name: str, summary: dict[str, Any]) -> str:
    """A heading, what the pipeline is, the table of the run, and why."""
    text = (HERE / f"{name}.yaml").read_text()
    title, *about = [line[2:] for line in text.split("\n\n")[0].splitlines()]
    budget = yaml.safe_load(text)["improver"]["budget"]
    head = ["", "validation", "test", "change", "flips", "serving", "p"]
    rows = [head, *(row_of(row) for row in chosen(summary["table"])), *baseline_of(summary["baseline"])]
    table = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(
        [
            f"## {title}",
            "",
            f"`sparkdiff improve --config examples/{name}.yaml`, budget {budget}.",
            *about[:-1],
            "",
            f"{summary['metric']}, {summary['metricDirection']} is better:",
            "",
            table[0],
            "|---" * len(head) + "|",
            *table[1:],
            "",
            f"**Decision: {summary['decision']}.** {summary['explanation']} [The report](gallery/{name}.html) shows all that was"
            " tried, and why.",
            "",
        ]
    )


def chosen(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The original, all offers, and the best others."""
    others = [row for row in table if row["arm"] is not None and not row["offers"]][:SHOWN]
    return [row for row in table if row["arm"] is None or row["offers"] or row in others]


def row_of(row: dict[str, Any]) -> list[str]:
    """The cells of one row of a summary's table."""
    values = [f"{row['value']:.4g}", number(row["test"])]
    if row["arm"] is None:
        return [row["name"], *values, "", "", "1.0x", ""]
    flips = "" if row["changed"] is None else f"{row['changed']:.1%}"
    p = "" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    name, offers = row["name"].replace("|", "\\|"), ", ".join(OFFERS.get(offer, offer) for offer in row["offers"])
    shown = f"{name} ({offers})" if offers else name
    return [shown, *values, f"{row['change']:+.1%}", flips, f"{row['serving']:.1f}x", p]


def baseline_of(row: dict[str, Any] | None) -> list[list[str]]:
    """The row for comparison, which no test counts."""
    if row is None or row["value"] is None:
        return []
    change, serving = f"{row['change']:+.1%}", f"{row['serving']:.1f}x"
    return [[f"{row['name']} (for comparison)", number(row["value"]), number(row["test"]), change, "", serving, ""]]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def parts_of(page: Path) -> dict[str, str]:
    """The sections of the page by the names of their jobs."""
    text = page.read_text() if page.exists() else ""
    parts = [f"## {part}" for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    return {m[1]: part for part in parts if (m := re.search(r"examples/(\w+)\.yaml", part))}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page; reports go beside it")
    parser.add_argument(
        "--written", action="store_true", help="run nothing: write the page from the runs of runs/examples"
    )
    given = parser.parse_args()
    if unknown := set(given.names) - {*NAMES}:
        parser.error(f"no such example: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in given.names or NAMES:
        folder = ROOT / "runs" / "examples" / name
        summary = json.loads((folder / "summary.json").read_text()) if given.written else run(name, folder)
        write(given.page.parent / "gallery" / f"{name}.html", portable((folder / "report.html").read_text()))
        parts = parts_of(given.page) | {name: section(name, summary)}
        write(given.page, "\n".join([HEAD, *(parts[n].rstrip("\n") + "\n" for n in NAMES if n in parts)]))


if __name__ == "__main__":
    main()
