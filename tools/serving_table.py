"""Writes the table in docs/serving.md: which classes of MLlib a Scorer takes.

    python tools/serving_table.py          # writes the file
    python tools/serving_table.py --check  # exit code 1 where the file isn't what this would write

The table is read from the registries of stages; nothing is fitted. A test asks a Scorer about a stage of each class.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from sparkdiff.serving.compiling import NOT_SERVED
from sparkdiff.serving.text import SERVED
from sparkdiff.stages import base
from sparkdiff.stages.fields import FieldReader

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- written by tools/serving_table.py -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """A class, where a Scorer computes it (empty if it refuses it), and what limits that."""

    name: str
    where: str
    limits: str


def rows() -> list[Row]:
    names = sorted(n for n in {*base.REGISTRY, *base.UNTRANSLATED} if n.startswith("pyspark.ml."))
    return [row(name) for name in names]


def row(full: str) -> Row:
    name = full.rpartition(".")[2]
    if (text := SERVED.get(full)) is not None:
        return Row(name, "Python", "; ".join(text.refusals))
    if (kind := base.REGISTRY.get(full)) is not None:
        schema = ("tell it the data (`schema=`)",) if issubclass(kind, FieldReader) else ()
        skips = ("handleInvalid='skip'",) if name in SKIPPING else ()
        return Row(name, "torch", "; ".join((*skips, *kind.refusals, *schema)))
    if name == "RFormulaModel":
        return Row(name, "the stages in it", "")
    return Row(name, "", NOT_SERVED[name])


SKIPPING = ("Bucketizer", "VectorIndexerModel", "VectorSizeHint")
"""Translated classes that can drop rows; docs/stages.md lists the setting too."""


def table() -> str:
    found = rows()
    taken = [f"| {r.name} | {r.where} | {r.limits} |" for r in found if r.where]
    refused = [f"| {r.name} | {r.limits} |" for r in found if not r.where]
    head = f"A Scorer takes {len(taken)} of {len(found)} classes. "
    head += "The models of pipelines and searches are replaced by the stages in them.\n"
    lines = ["", "| class | computed in | not with, or better |", "|---|---|---|", *taken]
    lines += ["", "Refused by name:", "", "| class | why |", "|---|---|", *refused]
    return head + "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with today's table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    text = PAGE.read_text("utf-8")
    if "--check" in sys.argv:
        return int(page(text) != text)
    PAGE.write_text(page(text), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
